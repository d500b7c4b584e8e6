"""Caption scorers on tiny scenes, and the extractors that need weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from ciar.checkpoint import fingerprint
from ciar.errors import CheckpointError, InvalidInput, PairMismatch
from ciar.picture import load_vq
from ciar_bench.cli import app
from ciar_bench.quality.clip import ClipFeatures, clip_scorer
from ciar_bench.quality.feature_cache import picture_features
from ciar_bench.quality.features import EfficientNetFeatures
from ciar_bench.quality.folder import Caption
from ciar_bench.quality.report import Instruments
from ciar_bench.quality.scenes import DrawnScenes, Reconstructed, stated_place
from ciar_bench.quality.scorer import CaptionScorer, find_scorer, load_scorer, save_scorer
from ciar_bench.quality.train_scorer import TrainPlan, train_scorer
from tests.tiny import write_bundle

NOUNS = ("cat", "dog")
PLACES = {"beach": "on the beach", "snow": "in the snow"}


class Corners:
    """A stand-in for a network: the picture in 2 x 2 pixels."""

    name, label, width, fingerprint = "corners", "Corners", 12, "c"

    def __call__(self, pictures: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)


def write_scenes(folder: Path, count: int, *, seed: int) -> DrawnScenes:
    """Pictures in two shards: red for a dog, blue below for snow."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for shard in range(2):
        pictures = rng.integers(0, 80, size=(count // 2, 8, 8, 3)).astype(np.uint8)
        lines = []
        for picture in pictures:
            noun, place = NOUNS[rng.integers(2)], list(PLACES)[rng.integers(2)]
            picture[:4, :, 0] += 150 * (noun == "dog")
            picture[4:, :, 2] += 150 * (place == "snow")
            captions = [f"a {noun} {PLACES[place]}", f"the {noun}"]
            lines.append(json.dumps({"captions": captions, "nouns": [noun], "place": place}))
        np.save(folder / f"images-{shard:05d}.npy", pictures)
        (folder / f"captions-{shard:05d}.jsonl").write_text("\n".join(lines) + "\n")
    return DrawnScenes(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def scorer(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    plan = TrainPlan(epochs=30, batch_size=32, learning_rate=1e-2)
    heads, metadata = train_scorer(
        write_scenes(folder / "train", 256, seed=0),
        write_scenes(folder / "held_out", 40, seed=1),
        bundle,
        Corners(),
        plan,
    )
    save_scorer(folder / "s.safetensors", heads, metadata)
    return folder / "s.safetensors"


def test_a_trained_scorer_knows_scenes_it_has_not_seen(scorer: Path, bundle: Path) -> None:
    _, metadata = load_scorer(scorer)
    real = metadata["held_out"]["real"]
    assert real["scene@1"] > 0.8
    assert real["matched"] > real["mismatched"] + 0.2
    assert real["place-top1"] > 0.9
    assert real["object-top1"] > 0.9
    assert set(metadata["held_out"]["reconstructed"]) == set(real)
    loaded = CaptionScorer(scorer, bundle / "text", extractor=Corners())
    scenes = DrawnScenes(scorer.parent / "held_out")
    features = picture_features(scenes, Corners())
    found = loaded.score(features, scenes.captions)
    others = tuple(reversed(scenes.captions))
    assert found["caption-score"].values.mean() == pytest.approx(real["matched"], abs=0.01)
    assert loaded.score(features, others)["caption-score"].values.mean() < real["matched"] - 0.05
    assert found["place-top1"].values.mean() > 0.9
    assert found["object-top5"].values.mean() == 1.0  # there are but two


def test_places_count_only_where_they_are_said(scorer: Path, bundle: Path) -> None:
    loaded = CaptionScorer(scorer, bundle / "text", extractor=Corners())
    captions = [
        Caption(prompt="a cat", seed=0, nouns=("cat",)),
        Caption(prompt="a cat in the snow", seed=1, nouns=("cat",), place="snow"),
        Caption(prompt="a horse", seed=2, nouns=("horse",)),
    ]
    found = loaded.score(torch.zeros(3, 12), captions)
    assert found["place-top1"].pictures.tolist() == [1]
    assert found["object-top5"].pictures.tolist() == [0, 1]
    assert found["caption-score"].pictures.tolist() == [0, 1, 2]
    none = loaded.score(torch.zeros(1, 12), [Caption(prompt="a horse", seed=0)])
    assert none["place-top1"].values.size == none["object-top5"].values.size == 0


def test_training_again_gives_the_same(scorer: Path, bundle: Path, tmp_path: Path) -> None:
    scenes = DrawnScenes(scorer.parent / "train", count=64)
    plan = TrainPlan(epochs=1, batch_size=32)
    one, again = (train_scorer(scenes, scenes, bundle, Corners(), plan)[0] for _ in range(2))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with pytest.raises(InvalidInput, match="2 to 256"):
        DrawnScenes(scorer.parent / "train", count=257)


def test_a_scorer_is_for_its_own_parts(scorer: Path, bundle: Path) -> None:
    other = Corners()
    other.fingerprint = "d"
    with pytest.raises(PairMismatch, match="another extractor"):
        CaptionScorer(scorer, bundle / "text", extractor=other)
    with pytest.raises(CheckpointError, match="train-scorer"):
        find_scorer("no such")
    assert find_scorer(scorer) == scorer
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_scorer(scorer.with_name("missing.safetensors"))


def test_the_shipped_scorer_fits_the_shipped_model() -> None:
    path = find_scorer("mini")
    _, metadata = load_scorer(path)
    assert path.stat().st_size < 5_000_000
    model = path.parents[1] / "ciar-mini"
    assert metadata["text"] == fingerprint(model / "text")
    assert metadata["vq"] == fingerprint(model / "vq")


def test_reconstructions_are_kept_apart_from_pictures(scorer: Path, bundle: Path) -> None:
    scenes = DrawnScenes(scorer.parent / "held_out")
    rebuilt = Reconstructed(scenes, load_vq(bundle / "vq"), fingerprint="v")
    whole = torch.cat(list(scenes.batches()))
    again = torch.cat(list(rebuilt.batches()))
    assert whole.shape == again.shape == (40, 3, 8, 8)
    shard = np.load(scenes.folder / "images-00000.npy")
    assert torch.equal(whole[:20], torch.from_numpy(shard).permute(0, 3, 1, 2))
    assert not torch.equal(whole, again)
    assert rebuilt.tag != scenes.tag
    assert rebuilt.source() != scenes.source()


def test_reconstruction_is_the_mean_of_the_pictures_psnr(scorer: Path, bundle: Path) -> None:
    scenes = DrawnScenes(scorer.parent / "held_out", count=30)
    rebuilt = Reconstructed(scenes, load_vq(bundle / "vq"), fingerprint="v")
    errors = [
        float(F.mse_loss(a.float(), b.float()))
        for before, after in zip(scenes.batches(), rebuilt.batches(), strict=True)
        for a, b in zip(before, after, strict=True)
    ]
    expected = [10 * math.log10(255**2 / error) for error in errors]
    options = ["--model", str(bundle), "--count", "30", "--json"]
    done = CliRunner().invoke(app, ["reconstruction", str(scenes.folder), *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["pictures"] == 30
    assert found["psnr"]["value"] == pytest.approx(sum(expected) / 30, rel=1e-5)
    pooled = 10 * math.log10(255**2 * 30 / sum(errors))
    assert found["pooled_psnr"] == pytest.approx(pooled, rel=1e-5)
    assert found["psnr"]["low"] < found["psnr"]["value"] < found["psnr"]["high"]


@pytest.mark.parametrize(
    ("caption", "place", "stated"),
    [
        ("a car in a green forest", "forest", "forest"),
        ("A duck on calm water.", "lake", "lake"),
        ("an airplane over the ocean", "ocean", "ocean"),
        ("a zebra", "forest", None),
        ("a tiger on the right side in the daytime", "meadow", None),
    ],
)
def test_a_place_is_stated_or_not(caption: str, place: str, stated: str | None) -> None:
    assert stated_place(caption, place) == stated


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "FileNotFoundError"),
        ("", "0 lines for 4 pictures"),
        ('{"captions": ["a cat"], "nouns": [], "place": "beach"}\n' * 3, "3 lines for 4 pictures"),
        ('{"captions": ["a c', "JSONDecodeError"),
        ("[]\n" * 4, "TypeError"),
        ('{"captions": [], "nouns": [], "place": "beach"}\n' * 4, "IndexError"),
        ('{"captions": ["a cat"], "place": "beach"}\n' * 4, "nouns"),
        ('{"captions": ["a cat"], "nouns": [], "place": "nowhere"}\n' * 4, "nowhere"),
    ],
)
def test_captions_that_are_not_those_of_the_pictures_are_named(
    text: str | None, words: str, tmp_path: Path
) -> None:
    folder = write_scenes(tmp_path / "scenes", 8, seed=0).folder
    path = folder / "captions-00001.jsonl"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInput, match="remove images-00001.npy") as caught:
        DrawnScenes(folder)
    assert caught.value.field == str(path)
    assert words in caught.value.value


def test_captions_of_a_shard_that_grows_are_those_of_the_pictures(tmp_path: Path) -> None:
    """They are written before its pictures."""
    scenes = write_scenes(tmp_path / "scenes", 8, seed=0)
    path = scenes.folder / "captions-00000.jsonl"
    path.write_text(path.read_text() + path.read_text())
    assert DrawnScenes(scenes.folder).lines == scenes.lines


def test_quality_of_drawn_scenes_from_the_command_line(
    scorer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corners = Instruments(extractors=[Corners()])
    monkeypatch.setattr("ciar_bench.quality.cli.make_instruments", lambda **_: corners)
    train, held_out = str(scorer.parent / "train"), str(scorer.parent / "held_out")
    out = tmp_path / "tables" / "quality.md"
    arguments = ["quality", held_out, "--reference", train, "--against", held_out, "--json"]
    found = CliRunner().invoke(app, [*arguments, "--out", str(out)], catch_exceptions=False)
    tables = list(json.loads(found.stdout).values())
    assert tables[0]["FD-Corners"]["low"] < tables[0]["FD-Corners"]["high"]
    assert tables[1]["FD-Corners - base"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "| FD-Corners / base | 1 | 1 to 1 |" in out.read_text()
    with pytest.raises(InvalidInput, match="--against"):
        arguments = ["quality", held_out, "--reference", train, "--floor", held_out]
        CliRunner().invoke(app, arguments, catch_exceptions=False)


# ------------------------------------------------------------------------------ networks


def test_efficientnet_is_pooled_in_two_ways(tmp_path: Path) -> None:
    library = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    model = library.EfficientNet.from_name("efficientnet-lite0").eval()
    torch.save(model.state_dict(), tmp_path / "random.pth")
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    means = EfficientNetFeatures(tmp_path / "random.pth")
    both = EfficientNetFeatures(tmp_path / "random.pth", has_maxima=True)
    assert means(pictures).shape == (2, means.width) == (2, 1280)
    assert both(pictures).shape == (2, both.width) == (2, 2560)
    torch.testing.assert_close(both(pictures)[:, :1280], means(pictures))
    assert (both(pictures)[:, 1280:] >= means(pictures) - 1e-6).all()
    assert means.name != both.name
    full = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.extract_features((full.float() - 127) / 128).mean((2, 3))
    torch.testing.assert_close(means(full), expected, atol=1e-4, rtol=1e-3)


def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(match=r"ciar\[quality\]"):
        ClipFeatures()


@pytest.fixture
def tiny_clip(tmp_path: Path) -> Callable[[], ClipFeatures]:
    """A random CLIP of open_clip's, in a file."""
    open_clip = pytest.importorskip("open_clip")
    sizes = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 64,
            "heads": 1,
            "layers": 1,
        },
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    weights = tmp_path / "tiny.pt"
    torch.save(open_clip.create_model("tiny-clip").state_dict(), weights)
    return lambda: ClipFeatures("tiny-clip", str(weights))


def test_clip_scores_pictures_and_prompts(tiny_clip: Callable[[], ClipFeatures]) -> None:
    clip = tiny_clip()
    pictures = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    features = clip(pictures)
    assert features.shape == (3, clip.width) == (3, 16)
    captions = [Caption(prompt=p, seed=0) for p in ("a cat", "a dog on a beach", "snow")]
    texts = clip.encode_captions([c.prompt for c in captions])
    expected = 100 * F.cosine_similarity(features, texts).clamp(min=0)
    found = clip_scorer(clip).score(features, captions)["CLIP-tiny-clip-score"]
    np.testing.assert_allclose(found.values, expected.double().numpy(), atol=1e-4)
    assert tiny_clip().fingerprint == clip.fingerprint
    with pytest.raises(InvalidInput, match="weights of tiny-clip"):
        ClipFeatures("tiny-clip", "no such tag")
