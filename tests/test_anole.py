"""Anole: converted from both layouts, it equals transformers' Chameleon; its prompts and errors."""

import copy
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from ciar.checkpoint import fingerprint, read_config
from ciar.errors import CheckpointError, InvalidInput
from ciar.feed import Feed
from ciar.models.chameleon import ChameleonConfig
from ciar.models.inter_head import InterHeadConfig
from ciar.target import Target, TargetModel
from ciar.text import load_text
from ciar.types import SamplingParams
from ciar_bench.methods import make_method
from ciar_bench.methods.bench_model import BenchModel
from ciar_cloud.cli import app
from ciar_cloud.convert import anole
from ciar_cloud.convert.convert import Settings, convert
from ciar_cloud.convert.reader import LazyTensor
from ciar_cloud.convert.target import target_entries
from ciar_edge.drafter import Drafter, PreparedDraft
from ciar_train import teacher
from ciar_train.codes import pad_left
from ciar_train.draft import DraftShape, draft_from_target
from ciar_train.export import export_draft, export_target
from ciar_train.lock_step import BatchedDraft
from tests.test_convert import chameleon_name, small_vq
from tests.toy_anole import (
    FIRST,
    HEADS,
    NUM_CODES,
    image_name,
    meta_weights,
    toy_anole,
    vocabulary,
    write_hf,
    write_tokenizer,
)

PROMPTS = ("a dog", "the cat on the beach in the snow")
CFG = 3.0
SETTINGS = Settings(grid_size=4, num_heads=HEADS, accepted=frozenset({"chameleon"}))


@pytest.fixture(scope="module")
def reference() -> Any:
    return toy_anole()


@pytest.fixture(scope="module")
def bundle(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_anole(tmp_path_factory.mktemp("anole"), reference)


def convert_anole(root: Path, reference: Any) -> Path:
    """Transformer and prompts from Hugging Face's layout, the VQ model beside them."""
    vq = small_vq(is_l2_normalized=False, has_lowest_attention=False)
    save_file(
        {chameleon_name(n, 1): t.contiguous() for n, t in vq.state_dict().items()},
        root / "vqvae.safetensors",
    )
    convert(
        [write_hf(root / "hf", reference), root / "vqvae.safetensors"], root / "model", SETTINGS
    )
    return root / "model"


def ids_of(prompt: str) -> list[int]:
    ids = vocabulary()
    return [
        ids["<s>"],
        *(ids[word] for word in prompt.split()),
        ids["<reserved08706>"],
        ids["<racm3:break>"],
    ]


@torch.inference_mode()
def reference_logits(model: Any, prompt: list[int], tokens: Tensor) -> Tensor:
    """[n + 1, V] over the image codes, without a cache."""
    ids = torch.tensor([[*prompt, *(tokens + FIRST).tolist()]])
    hidden = model.model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 :]
    logits: Tensor = model.lm_head(hidden)[:, FIRST : FIRST + NUM_CODES]
    return logits


def guided(model: Any, prompt: str, tokens: Tensor) -> Tensor:
    ids = vocabulary()
    uncond = reference_logits(model, [ids["<s>"], ids["<racm3:break>"]], tokens)
    cond = reference_logits(model, ids_of(prompt), tokens)
    return uncond + CFG * (cond - uncond)


def test_prompts_are_the_public_layout(bundle: Path, reference: Any) -> None:
    text = load_text(bundle / "text")
    table = reference.model.embed_tokens.weight
    for prompt, rows in zip(PROMPTS, text.encode(PROMPTS), strict=True):
        assert torch.equal(rows, table[ids_of(prompt)])
    assert len(text.encode(["dog " * 1000])[0]) == text.max_tokens
    cut = text.encode(["dog " * 1000])[0]
    assert torch.equal(cut[-2:], table[ids_of("")[-2:]])
    assert text.dim == 64
    assert text.unknown_words("qzxv") == []


@pytest.mark.parametrize("chunks", [(15,), (1,) * 15, (5, 1, 9), (2, 13)])
@pytest.mark.parametrize("is_padded", [False, True])
def test_cached_logits_equal_transformers(
    chunks: tuple[int, ...], is_padded: bool, bundle: Path, reference: Any
) -> None:
    """Two prompts of different lengths in one step; guided, so both branches are right."""
    target = Target(TargetModel.load(bundle / "cloud"), num_slots=2, is_padded=is_padded)
    features = load_text(bundle / "text").encode(PROMPTS)
    tokens = torch.randint(NUM_CODES, (2, 16), generator=torch.Generator().manual_seed(1))
    found: list[list[Tensor]] = [[], []]
    position = 0
    for size in (0, *chunks):
        feeds = [
            Feed(
                slot=1 - i,
                num_condition=len(features[i]),
                position=position,
                tokens=tokens[i, position : position + size],
                cfg_scale=CFG,
                condition=None if size else features[i],
            )
            for i in range(2)
        ]
        for rows, part in zip(found, target.extend(feeds), strict=True):
            rows.append(part)
        position += size
    for i, prompt in enumerate(PROMPTS):
        expected = guided(reference, prompt, tokens[i, :15])
        torch.testing.assert_close(torch.cat(found[i]), expected, atol=1e-4, rtol=1e-4)


def test_rollback_never_happened(bundle: Path) -> None:
    (features,) = load_text(bundle / "text").encode(PROMPTS[:1])
    tokens = torch.arange(12)

    def last(*, wrong_first: bool) -> Tensor:
        target = Target(TargetModel.load(bundle / "cloud"), num_slots=1)
        feed = Feed(
            slot=0,
            num_condition=len(features),
            position=0,
            tokens=tokens[:3],
            cfg_scale=CFG,
            condition=features,
        )
        target.extend([feed])
        after = Feed(
            slot=0,
            num_condition=len(features),
            position=3,
            tokens=tokens[3:6],
            cfg_scale=CFG,
        )
        if wrong_first:
            wrong = Feed(
                slot=0,
                num_condition=len(features),
                position=3,
                tokens=tokens[4:12],
                cfg_scale=CFG,
            )
            target.extend([wrong])
        return target.extend([after])[0]

    assert torch.equal(last(wrong_first=False), last(wrong_first=True))


def test_features_enter_at_their_own_token(bundle: Path) -> None:
    (features,) = load_text(bundle / "text").encode(PROMPTS[:1])
    model = TargetModel.load(bundle / "cloud")
    with torch.no_grad():
        model.injection.weight.normal_(generator=torch.Generator().manual_seed(0))
    codes = torch.zeros(4, model.feature_dim)
    codes[2] = 1.0

    def logits(given: Tensor | None) -> Tensor:
        feed = Feed(
            slot=0,
            num_condition=len(features),
            position=0,
            tokens=torch.arange(4),
            cfg_scale=CFG,
            condition=features,
            features=given,
        )
        return Target(model, num_slots=1).extend([feed])[0]

    plain, moved = logits(None), logits(codes)
    torch.testing.assert_close(moved[:3], plain[:3])
    assert not torch.allclose(moved[3:], plain[3:], atol=1e-3)


# The edge


@pytest.fixture(scope="module")
def pair(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    """The bundle with an untrained draft: a layer of its own family."""
    folder = tmp_path_factory.mktemp("pair") / "model"
    shutil.copytree(bundle, folder)
    target = TargetModel.load(folder / "cloud")
    with torch.no_grad():
        target.injection.weight.normal_(generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    draft = draft_from_target(target, InterHeadConfig(radius_width=8), DraftShape())
    torch.nn.init.normal_(draft.inter_head.radius_up.weight, std=0.5)
    export_target(target, folder / "cloud", name="toy", sampling=SamplingParams(cfg_scale=CFG))
    export_draft(
        draft,
        folder / "edge",
        name="toy",
        target_fingerprint=fingerprint(folder / "cloud"),
        calibration={},
    )
    return BenchModel.load(folder)


@torch.inference_mode()
def test_the_teacher_is_the_cached_target(
    pair: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole sequences of prompts padded to one length, against one feed each."""
    model = TargetModel.load(pair.folder / "cloud")
    features = pair.text.encode(PROMPTS)
    tokens = torch.randint(NUM_CODES, (2, 15), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(teacher, "mixed_precision", lambda _: nullcontext())
    found = teacher.Teacher(model, SamplingParams(cfg_scale=CFG)).logits(pad_left(features), tokens)
    target = Target(model, num_slots=1)
    for i, condition in enumerate(features):
        feed = Feed(
            slot=0,
            num_condition=len(condition),
            position=0,
            tokens=tokens[i],
            cfg_scale=CFG,
            condition=condition,
        )
        torch.testing.assert_close(found[i], target.extend([feed])[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_drafting_token_by_token_is_the_model_at_once(pair: BenchModel) -> None:
    draft = copy.deepcopy(pair.edge.draft)
    for parameter in draft.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.01)  # no int8 rows: float32 products
    features = pair.text.encode(PROMPTS)
    batch = pad_left(features)
    tokens = torch.randint(NUM_CODES, (2, 15), generator=torch.Generator().manual_seed(3))
    whole = draft.masked_hidden(batch.features, tokens, batch.mask)  # [2, 16, D]
    for i, condition in enumerate(features):
        drafter = Drafter(PreparedDraft(draft), condition, SamplingParams(seed=i))
        for position in range(16):
            hidden = drafter.draft().hidden
            torch.testing.assert_close(hidden, whole[i, position], atol=1e-4, rtol=1e-4)
            if position < 15:
                drafter.commit(int(tokens[i, position]))
    steps = BatchedDraft(draft, features)
    torch.testing.assert_close(steps.hidden[:, 0], whole[:, 0], atol=1e-4, rtol=1e-4)
    for position in range(1, 16):
        steps.feed(tokens[:, :position])
        torch.testing.assert_close(steps.hidden[:, 0], whole[:, position], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("spec", ["exact", "always:prefix_rate=0", "random:budget=1"])
def test_everything_verified_is_the_clouds_own_image(
    spec: str, seed: int, pair: BenchModel
) -> None:
    sampling = SamplingParams(seed=seed, cfg_scale=CFG)
    base = make_method("base").draw(pair, PROMPTS[1], sampling)
    assert make_method(spec).draw(pair, PROMPTS[1], sampling).tokens == base.tokens


@pytest.mark.parametrize("spec", ["interval", 'interval:features="none"', "code:share=0"])
def test_the_edge_draws_with_the_cloud_and_alone(spec: str, pair: BenchModel) -> None:
    image = make_method(spec).draw(pair, PROMPTS[0], SamplingParams(seed=4, cfg_scale=CFG))
    assert len(image.tokens) == 16
    assert all(0 <= token < NUM_CODES for token in image.tokens)
    share = {"code:share=0": 0.0}.get(spec)
    if share is not None:
        assert image.cloud_calls == share
    else:
        assert 0 < image.cloud_calls < 1


@pytest.mark.parametrize("seed", range(4))
def test_the_cloud_makes_the_features_that_the_edge_sends(seed: int, pair: BenchModel) -> None:
    sampling = SamplingParams(seed=seed, cfg_scale=CFG)
    sent, made = (
        make_method(f'interval:features="{mode}"').draw(pair, PROMPTS[0], sampling)
        for mode in ("send", "recompute")
    )
    assert made.tokens == sent.tokens
    assert made.costs.uplink_bytes < sent.costs.uplink_bytes


# Layouts


@pytest.mark.parametrize("shape", ["heads", "one row", "vector"])
def test_every_shape_of_head_norms(
    shape: str, bundle: Path, reference: Any, tmp_path: Path
) -> None:
    """Those of early conversions are one for all heads."""
    model = toy_anole()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                parameter.copy_(parameter[:1].expand_as(parameter))
    whole = convert_toy(model, tmp_path / "a")
    write_hf(tmp_path / "hf", model)
    for path in (tmp_path / "hf").glob("*.safetensors"):
        path.unlink()
    (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    state = {n: t.contiguous() for n, t in model.state_dict().items()}
    for name in state:
        if "q_norm" in name or "k_norm" in name:
            state[name] = {
                "heads": state[name],
                "one row": state[name][:1].clone(),
                "vector": state[name][0].clone(),
            }[shape]
    save_file(state, tmp_path / "hf" / "model.safetensors")
    convert([tmp_path / "hf"], tmp_path / "b", SETTINGS)
    assert_same(whole, TargetModel.load(tmp_path / "b" / "cloud"))


def convert_toy(model: Any, root: Path) -> TargetModel:
    convert([write_hf(root / "hf", model)], root / "model", SETTINGS)
    return TargetModel.load(root / "model" / "cloud")


def assert_same(one: TargetModel, other: TargetModel) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_metas_layout_gives_the_same_model(tmp_path: Path) -> None:
    """As downloaded: the weights in models/7b, the tokenizer in a folder beside it."""
    model = toy_anole()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                parameter.copy_(parameter[:1].expand_as(parameter))
    whole = convert_toy(model, tmp_path / "a")
    folder = tmp_path / "Anole-7b-v0.1" / "models" / "7b"
    folder.mkdir(parents=True)
    torch.save(meta_weights(model), folder / "consolidated.pth")
    (folder.parent.parent / "tokenizer").mkdir()
    write_tokenizer(folder.parent.parent / "tokenizer" / "text_tokenizer.json")
    convert([folder / "consolidated.pth"], tmp_path / "b", SETTINGS)
    assert_same(whole, TargetModel.load(tmp_path / "b" / "cloud"))
    texts = [load_text(tmp_path / place / "text") for place in ("a/model", "b")]
    rows = [text.encode(PROMPTS) for text in texts]
    assert all(torch.equal(x, y) for x, y in zip(*rows, strict=True))


def test_the_public_sizes_are_all_there() -> None:
    """419 tensors of the transformer; with the VQ encoder's 129 they are the public 548."""
    sizes = ChameleonConfig()
    assert sizes.ffn_dim == 11008
    dim, ffn, vocab = sizes.dim, sizes.ffn_dim, 65536
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, dim),
        "lm_head.weight": (vocab, dim),
        "model.norm.weight": (dim,),
    }
    for layer in range(sizes.num_layers):
        before = f"model.layers.{layer}."
        shapes |= {f"{before}self_attn.{p}_proj.weight": (dim, dim) for p in "qkvo"}
        for part in "qk":
            for kind in ("weight", "bias"):
                shapes[f"{before}self_attn.{part}_norm.{kind}"] = (32, 128)
        shapes |= {f"{before}mlp.{p}_proj.weight": (ffn, dim) for p in ("gate", "up")}
        shapes[f"{before}mlp.down_proj.weight"] = (dim, ffn)
        shapes[f"{before}input_layernorm.weight"] = (dim,)
        shapes[f"{before}post_attention_layernorm.weight"] = (dim,)
    assert len(shapes) == 419
    tensors = {n: LazyTensor(s, torch.bfloat16, torch.Tensor) for n, s in shapes.items()}
    names = {image_name(code): 4 + code for code in range(8192)}
    names |= {"<s>": 0, "<racm3:break>": 8197, "<reserved08706>": 8710}
    words = anole.Vocabulary(names, Path("config.json"))
    config = anole.sizes(tensors, words, grid_size=32, num_heads=None)
    assert config == sizes
    entries = target_entries(anole.renamed(tensors, config, words), config, None)
    count = sum(torch.Size(e.shape).numel() for e in entries.values())
    left_out = 2 * (vocab - 8192) * dim  # rows of text
    added = 2 * dim + 64 * dim  # the unconditional prompt, and the cloud's half of phi
    assert count == 7_013_666_816 - left_out + added


# Use


def test_a_converted_anole_draws(bundle: Path, tmp_path: Path) -> None:
    options = ["--model", str(bundle), "-o", str(tmp_path / "out.png"), "--json"]
    done = CliRunner().invoke(app, ["generate", PROMPTS[0], *options])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (8, 8)
    found = json.loads(done.stdout)
    assert len(found["tokens"]) == 16
    sampling = read_config(bundle / "cloud")["sampling"]
    assert sampling == {
        "temperature": 0.7,
        "top_k": 0,
        "top_p": 0.9,
        "cfg_scale": 3.0,
        "cfg_interval": -1,
    }
    assert "Chameleon Research License" in (bundle / "README.md").read_text()


# What is refused


def test_the_licence_must_be_accepted(reference: Any, tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", reference)
    with pytest.raises(InvalidInput, match="--accept-license chameleon"):
        convert([source], tmp_path / "out", Settings(grid_size=4, num_heads=HEADS))
    assert not (tmp_path / "out").exists()


Change = Callable[[dict[str, int]], dict[str, int]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: {n: i for n, i in v.items() if n != "<racm3:break>"}, "no token <racm3:break>"),
        (lambda v: v | {image_name(7): 70}, "64 image tokens are not consecutive"),
        (lambda v: {n: i for n, i in v.items() if n != image_name(7)}, "63 image tokens are not"),
        (lambda v: {n: i for n, i in v.items() if "IMG" not in n}, "0 image tokens are not"),
    ],
)
def test_another_vocabulary_is_refused(
    change: Change, words: str, reference: Any, tmp_path: Path
) -> None:
    source = write_hf(tmp_path / "hf", reference)
    config = json.loads((source / "config.json").read_text())
    config["vocabulary_map"] = change(config["vocabulary_map"])
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        convert([source], tmp_path / "out", SETTINGS)


def test_names_are_strict(reference: Any, tmp_path: Path) -> None:
    weights = meta_weights(reference)
    write_tokenizer(tmp_path / "tokenizer.json")
    torch.save(weights | {"layers.0.attention.extra": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="unexpected layers.0.attention.extra"):
        convert([tmp_path / "a.pth"], tmp_path / "out", SETTINGS)
    del weights["layers.1.attention.wk.weight"]
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="missing layers.1.attention.wk.weight"):
        convert([tmp_path / "a.pth"], tmp_path / "out", SETTINGS)


def test_a_missing_tokenizer_is_named(reference: Any, tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", reference, has_tokenizer=False)
    with pytest.raises(CheckpointError, match=r"no tokenizer.json or text_tokenizer.json"):
        convert([source], tmp_path / "out", SETTINGS)


def test_damaged_prompts_are_named(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle / "text", tmp_path / "text")
    (tmp_path / "text" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no token prompts"):
        load_text(tmp_path / "text")


def test_prompts_come_as_rows_of_the_models_width() -> None:
    with pytest.raises(ValueError, match="condition_dim: 2048"):
        ChameleonConfig(condition_dim=2048)
