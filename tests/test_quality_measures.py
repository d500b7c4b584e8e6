"""Distances equal their definitions; intervals hold, and pairs see what means cannot."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from ciar.errors import InvalidInput, OutputError
from ciar_bench.quality.bootstrap import Measurement, half_samples, mean_of
from ciar_bench.quality.coco import coco_captions, write_captions
from ciar_bench.quality.distances import neighbour_radii
from ciar_bench.quality.feature_cache import cached_array, picture_features
from ciar_bench.quality.features import resized
from ciar_bench.quality.folder import Caption, PictureFolder, write_index
from ciar_bench.quality.measures import Reference, Scores, measure_distances, measure_scores
from ciar_bench.quality.report import (
    Instruments,
    compare,
    markdown,
    measure_folder,
    noise_floor,
)


def gaussian(count: int, *, seed: int, width: int = 6, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.arange(1, width + 1) + shift


def distances(a: Tensor, b: Tensor, *, label: str = "x") -> dict[str, float]:
    """Values of all measures, the reference first."""
    found = measure_distances(Reference(a, label), b)
    return {name: measurement.value for name, measurement in found.items()}


# By their definitions, slowly


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """By the eigenvalues of A^(1/2) B A^(1/2), which are those of A B."""
    a, b = a.double(), b.double()
    own, other = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(own)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + own.trace() + other.trace() - 2 * cross)


def share_within(points: Tensor, centres: Tensor) -> float:
    """Of points that are as near to some centre as the third nearest other centre is to it."""
    circles = [(c, sorted(float((c - other).norm()) for other in centres)[3]) for c in centres]
    within = [any(float((point - c).norm()) <= radius for c, radius in circles) for point in points]
    return sum(within) / len(points)


def cmmd(a: Tensor, b: Tensor) -> float:
    """With the kernel of width 10."""

    def kernel(x: Tensor, y: Tensor) -> float:
        pairs = [math.exp(-float((p - q).square().sum()) / 200) for p in x for q in y]
        return sum(pairs) / len(pairs)

    a, b = F.normalize(a.double()), F.normalize(b.double())
    return 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))


@pytest.mark.parametrize("count", [12, 30])
def test_values_are_the_plain_distances(count: int) -> None:
    """With fewer and with more pictures than the features are wide."""
    a, b = gaussian(40, seed=0, width=20), gaussian(count, seed=1, width=20, shift=0.5)
    found = distances(a, b, label="CLIP-tiny")
    precision, recall = share_within(b, a), share_within(a, b)
    assert 0 < precision < 1 and 0 < recall < 1
    assert found["FD-CLIP-tiny"] == pytest.approx(frechet_distance(a, b))
    assert found["CMMD-tiny"] == pytest.approx(cmmd(a, b), rel=1e-6)
    assert found["precision-CLIP-tiny"] == pytest.approx(precision)
    assert found["recall-CLIP-tiny"] == pytest.approx(recall)
    assert found["F1-CLIP-tiny"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """Diagonal covariances: |mu|^2 + sum (sigma_a - sigma_b)^2."""
    a = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).double()
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov()).T)  # exactly N(0, 1)
    b = a * torch.tensor([1.0, 3.0, 0.5]) + torch.tensor([2.0, 0.0, 0.0])
    expected = 4 + (1 - 3) ** 2 + (1 - 0.5) ** 2
    assert distances(a, b)["FD-x"] == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_with_covariances_that_do_not_commute() -> None:
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    a, b = gaussian(100, seed=0), gaussian(80, seed=1) @ mix
    cov = [x.double().T.cov() for x in (a, b)]
    values = torch.linalg.eigvals(cov[0] @ cov[1]).real.clamp(min=0)
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum()
    expected = float(shift + cov[0].trace() + cov[1].trace() - 2 * values.sqrt().sum())
    assert distances(a, b)["FD-x"] == pytest.approx(expected, rel=1e-6)


def test_equal_sets_have_no_distance() -> None:
    a = gaussian(50, seed=0)
    found = distances(a, a, label="CLIP-x")
    assert found["FD-CLIP-x"] == pytest.approx(0, abs=1e-9)
    assert found["CMMD-x"] == pytest.approx(0, abs=1e-9)
    assert (found["precision-CLIP-x"], found["recall-CLIP-x"]) == (1.0, 1.0)


def test_precision_is_of_the_others_and_recall_of_the_reference() -> None:
    """One of two clusters only: all of it is right, half of the reference is missed."""
    a = torch.cat([gaussian(100, seed=0), gaussian(100, seed=1, shift=1000.0)])
    found = distances(a, a[:100])
    assert (found["precision-x"], found["recall-x"]) == (1.0, 0.5)
    assert found["F1-x"] == pytest.approx(2 / 3)
    far = distances(a, gaussian(50, seed=2, shift=-1e6))
    assert (far["precision-x"], far["recall-x"], far["F1-x"]) == (0.0, 0.0, 0.0)


def test_radii_do_not_depend_on_how_pairs_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    features = gaussian(50, seed=0).double()
    whole = neighbour_radii(features, 3)
    monkeypatch.setattr("ciar_bench.quality.distances.CHUNK", 7)
    torch.testing.assert_close(neighbour_radii(features, 3), whole)


class Channels(torch.nn.Module):
    """uint8 [n, 3, 8, 8] -> the means of the six halves of its channels."""

    num_features = 6

    def forward(self, pictures: Tensor) -> Tensor:
        means: Tensor = pictures.double().reshape(len(pictures), 6, -1).mean(-1)
        return means


def test_the_frechet_distance_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, features = (60, 3, 8, 8), Channels()
    a = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    b = torch.randint(40, 240, shape, generator=generator, dtype=torch.uint8)
    metric = FrechetInceptionDistance(features, input_img_size=(3, 8, 8)).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    found = distances(features(a), features(b))["FD-x"]
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parametrize("side", [299, 20])
def test_pictures_are_resized_as_clean_fid_does(side: int) -> None:
    """Channel by channel in float32 by Pillow's bicubic filter, which is wider when it shrinks."""
    pictures = torch.randint(256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    rows = [
        np.array(Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC))
        for channel in pictures[0].float().numpy()
    ]
    expected = torch.from_numpy(np.stack(rows)).clamp(0, 255)
    torch.testing.assert_close(resized(pictures, side)[0], expected, atol=0.01, rtol=0)


def test_only_inception_has_a_fid_and_only_clip_a_cmmd() -> None:
    a, b = gaussian(20, seed=0), gaussian(20, seed=1)
    assert {"FID", "CMMD-like-Inception"} < set(measure_distances(Reference(a, "Inception"), b))
    names = set(measure_distances(Reference(a, "EffNetLite0"), b))
    assert {"FD-EffNetLite0", "CMMD-like-EffNetLite0", "recall-EffNetLite0"} < names
    assert not {"FID", "CMMD"} & names
    with pytest.raises(InvalidInput, match="at least 8"):
        measure_distances(Reference(a, "Inception"), b[:7])


def test_intervals_of_the_frechet_distance_hold_where_the_bootstrap_of_all_is_biased() -> None:
    """Against what other samples of as many pictures give, not against the limit of many."""
    reference = gaussian(400, seed=0)
    draws = [frechet_distance(reference, gaussian(100, seed=s)) for s in range(1, 60)]
    usual, spread = float(np.mean(draws)), float(np.std(draws))
    widths, held = [], 0
    for seed in range(100, 110):
        found = measure_distances(Reference(reference, "x"), gaussian(100, seed=seed))[
            "FD-x"
        ].estimate()
        held += found.low <= usual <= found.high
        widths.append((found.high - found.low) / (2 * 1.96))
    assert held >= 7
    assert 0.5 < float(np.mean(widths)) / spread < 2.0


def test_halves_spread_as_the_mean_does() -> None:
    values = np.random.default_rng(0).normal(0, 2, size=400)
    halves = half_samples(lambda i: float(values[i].mean()), 400)
    whole = mean_of(values)
    assert halves.value == whole.value == pytest.approx(values.mean())
    assert halves.replicates.std() == pytest.approx(whole.replicates.std(), rel=0.15)
    assert halves.replicates.mean() == pytest.approx(halves.value)


def test_differences_and_ratios_go_draw_by_draw() -> None:
    base = np.random.default_rng(0).uniform(5, 15, size=50)
    own, other = mean_of(base * 2), mean_of(base)
    ratio, difference = own.over(other).estimate(), own.minus(other).estimate()
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2, 2, 2))
    assert difference.value == pytest.approx(base.mean())
    zero = Measurement(0.0, np.zeros(3))
    assert np.isnan(zero.over(zero).value)


def test_scores_of_too_few_pictures_are_left_out() -> None:
    scores = {
        "some": Scores(np.array([0, 2]), np.array([1.0, 0.0])),
        "one": Scores(np.array([1]), np.array([1.0])),
    }
    found = measure_scores(scores)
    assert set(found) == {"some"}
    assert found["some"].value == 0.5


# ------------------------------------------------------------------------------ folders


class Means:
    """A stand-in for a network: the mean of each quarter of each channel."""

    name, label, width, fingerprint = "means", "Means", 12, "0"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pictures: Tensor) -> Tensor:
        self.calls += 1
        return F.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)


class Redness:
    """A stand-in for a scorer: the red of the picture, for prompts that ask for it."""

    extractor, fingerprint = Means(), "r"

    def score(self, features: Tensor, captions: Sequence[Caption]) -> dict[str, Scores]:
        asked = [i for i, caption in enumerate(captions) if "red" in caption.prompt]
        return {"redness": Scores(np.array(asked), features[asked, 0].double().numpy())}


Write = Callable[..., PictureFolder]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def folder(name: str, *, seed: int, first: int = 0, red: int = 0) -> PictureFolder:
        path = tmp_path / name
        path.mkdir()
        rng = np.random.default_rng(seed)
        entries = []
        for i in range(20):
            pixels = rng.integers(0, 200, size=(4, 4, 3))
            pixels[..., 0] += red
            Image.fromarray(pixels.astype(np.uint8)).save(path / f"{i:05d}.png")
            prompt = "a red cat" if i % 2 else "a cat"
            entries.append((f"{i:05d}.png", Caption(prompt=prompt, seed=first + i, nouns=("cat",))))
        write_index(path, entries)
        return PictureFolder(path)

    return folder


def test_a_folder_against_the_base(write: Write) -> None:
    real, base, own = write("real", seed=0), write("base", seed=1), write("own", seed=1, red=40)
    again = write("again", seed=2, first=1000)
    instruments = Instruments(extractors=[Means()], scorers=[Redness()])
    found = measure_folder(own, real, instruments)
    assert {"FD-Means", "precision-Means", "redness"} < set(found)
    versus = compare(own, base, real, instruments)
    assert versus["redness - base"].low == pytest.approx(40)
    assert versus["redness - base"].high == pytest.approx(40)
    assert versus["FD-Means - base"].value == pytest.approx(
        found["FD-Means"].value - measure_folder(base, real, instruments)["FD-Means"].value
    )
    assert versus["FD-Means / base"].low > 1
    floor = noise_floor(base, again, real, instruments)
    assert floor["redness - base"].low < 0 < floor["redness - base"].high
    assert floor["FD-Means to base"].value > 0
    assert "| redness |" in markdown(found, "own")


def test_the_noise_floor_is_paired_where_the_prompts_are(write: Write) -> None:
    """Pictures of 40 more red at every prompt: paired, all draws say 40; without the order of
    prompts they do not.
    """
    real, base, again = write("real", seed=0), write("base", seed=1), write("r", seed=1, red=40)
    shifted = [replace(caption, seed=caption.seed + 100) for caption in again.captions]
    write_index(again.folder, [(f"{i:05d}.png", c) for i, c in enumerate(shifted)])
    instruments = Instruments(scorers=[Redness()])
    found = noise_floor(base, PictureFolder(again.folder), real, instruments)["redness - base"]
    assert found.low == pytest.approx(40) and found.high == pytest.approx(40)
    others = [replace(caption, prompt=f"{caption.prompt}s") for caption in shifted]
    write_index(again.folder, [(f"{i:05d}.png", c) for i, c in enumerate(others)])
    found = noise_floor(base, PictureFolder(again.folder), real, instruments)["redness - base"]
    assert found.low < found.value - 1 < found.value + 1 < found.high


def test_pairs_must_match(write: Write) -> None:
    real, base, other = write("real", seed=0), write("base", seed=1), write("x", seed=1, first=6)
    instruments = Instruments(extractors=[Means()])
    with pytest.raises(InvalidInput, match="pairs"):
        compare(other, base, real, instruments)
    with pytest.raises(InvalidInput, match="other seeds"):
        noise_floor(base, other, real, instruments)
    (real.folder / "pictures.jsonl").unlink()
    bare = PictureFolder(real.folder)
    assert set(measure_folder(bare, base, Instruments(extractors=[Means()], scorers=[Redness()])))
    with pytest.raises(InvalidInput, match="pairs"):
        compare(bare, bare, base, instruments)


def test_features_are_kept_until_pictures_or_weights_change(write: Write) -> None:
    pictures, extractor = write("p", seed=0), Means()
    first = picture_features(pictures, extractor)
    assert torch.equal(picture_features(pictures, extractor), first)
    assert extractor.calls == 1
    Image.new("RGB", (4, 4), (255, 0, 0)).save(pictures.paths[3])
    second = picture_features(pictures, extractor)
    assert extractor.calls == 2
    assert second[3, 0] == 255
    extractor.fingerprint = "1"
    picture_features(pictures, extractor)
    assert extractor.calls == 3


def test_features_that_cannot_be_kept_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be kept"):
        cached_array(tmp_path / "missing" / "x.npy", {}, lambda: np.zeros(1))


def test_the_index_is_read_back(write: Write) -> None:
    pictures = write("p", seed=0, first=7)
    assert pictures.captions[1] == Caption(prompt="a red cat", seed=8, nouns=("cat",))
    assert len(pictures) == 20
    sized = PictureFolder(pictures.folder, size=8)
    assert next(iter(sized.batches())).shape == (20, 3, 8, 8)
    assert sized.tag != pictures.tag


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2.*give an object"),
        ('{"file": "00000.png", "seed": 1}', "line 2.*'prompt'"),
        ('{"file": "no.png", "prompt": "a", "seed": 1}', "line 2.*is not there"),
    ],
)
def test_a_bad_line_of_the_index_is_named(write: Write, line: str, words: str) -> None:
    folder = write("p", seed=0).folder
    index = folder / "pictures.jsonl"
    index.write_text(index.read_text().splitlines()[0] + f"\n{line}\n")
    with pytest.raises(InvalidInput, match=words):
        PictureFolder(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="at least 2"):
        PictureFolder(tmp_path)
    with pytest.raises(InvalidInput, match="give a folder"):
        PictureFolder(tmp_path / "missing")


# ------------------------------------------------------------------------------ COCO


def test_coco_prompts_are_the_longest_of_each_picture(tmp_path: Path) -> None:
    notes = [
        {"id": 4, "image_id": 10, "caption": "A dog."},
        {"id": 5, "image_id": 10, "caption": "A dog on \n a beach."},
        {"id": 6, "image_id": 11, "caption": "Cats."},
        {"id": 3, "image_id": 12, "caption": "aa"},
        {"id": 2, "image_id": 12, "caption": "bb"},
    ]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (10, 11, 12)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    found = coco_captions(path)
    assert {c["file"]: c["prompt"] for c in found} == {
        "10.jpg": "A dog on a beach.",
        "11.jpg": "Cats.",
        "12.jpg": "bb",
    }
    assert coco_captions(path, count=2) == found[:2]
    orders = {tuple(c["file"] for c in coco_captions(path, seed=s)) for s in range(9)}
    assert len(orders) > 1
    write_captions(tmp_path / "out" / "c.jsonl", found)
    lines = (tmp_path / "out" / "c.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found
    path.write_text("{}")
    with pytest.raises(InvalidInput, match="captions_val2017"):
        coco_captions(path)
