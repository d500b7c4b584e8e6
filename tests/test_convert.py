"""Public checkpoints to model folders: golden files through every layout, and what is refused."""

import argparse
import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE
from typer.testing import CliRunner

from ciar.checkpoint import fingerprint, read_config, read_weights, weights_files
from ciar.errors import CheckpointError, InvalidInput, OutputError
from ciar.models.transformer import TransformerConfig
from ciar.models.vq import VQConfig, VQModel
from ciar.picture import load_vq
from ciar.target import Target, TargetModel
from ciar.text import load_text
from ciar_cloud.bundle import load_cloud_model
from ciar_cloud.cli import app
from ciar_cloud.convert import llamagen, vq
from ciar_cloud.convert.convert import Settings, convert
from ciar_cloud.convert.reader import forget, of_tensor, read_file
from ciar_cloud.text_features import read_prompts
from tests import test_transformer, test_vq
from tests.tiny import vq_f4
from tests.toy_t5 import write_t5

TINY = Settings(grid_size=4, num_heads=4)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return golden_weights()


def golden_weights() -> dict[str, Tensor]:
    """Of the golden transformer, under the names of the public file."""
    with safe_open(test_transformer.GOLDEN, "pt") as file:
        names = [n for n in file.keys() if n.startswith("weights.")]  # noqa: SIM118
        return {n.removeprefix("weights."): file.get_tensor(n) for n in names}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def target_of(source: Path, out: Path, settings: Settings = TINY) -> TargetModel:
    convert([source], out, settings)
    return TargetModel.load(out / "cloud")


Layout = Callable[[dict[str, Tensor]], Any]
LAYOUTS: Mapping[str, Layout] = {
    "FSDP": lambda w: w,
    "release": lambda w: {"model": w},
    "DeepSpeed": lambda w: {"module": w},
    "Lightning": lambda w: {"state_dict": w, "epoch": 3},
    "DDP": lambda w: {"model": {f"module.{n}": t for n, t in w.items()}},
    "compiled": lambda w: {"model": {f"module._orig_mod.{n}": t for n, t in w.items()}},
    "training": lambda w: {
        "model": w,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
        "steps": 7,
        "args": argparse.Namespace(lr=1e-4, gpt_model="GPT-XL"),
        "ema": {n: t + 1 for n, t in w.items()},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_upstream_scripts(
    layout: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    target = target_of(saved(tmp_path / "file.pt", LAYOUTS[layout](weights)), tmp_path / "out")
    found = target.transformer.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


@torch.inference_mode()
@pytest.mark.parametrize("row", [0, 1])
def test_a_converted_transformer_equals_the_reference(
    row: int, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Logits of both branches by the cached path, and greedy guided tokens."""
    target = target_of(saved(tmp_path / "file.pt", {"model": weights}), tmp_path / "out")
    test_transformer.test_uncached_logits_equal_the_reference(target, row)
    caption = test_transformer.golden(test_transformer.CAPTIONS[row])
    expected = test_transformer.golden("expected.greedy_cfg3_tokens")[row].tolist()
    assert test_transformer.greedy(Target(target, num_slots=1), 0, caption, 3.0) == expected


def hf_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of the Hugging Face repositories."""
    ends = {"tok_embeddings.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    inner = {
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    found = {}
    for name, tensor in weights.items():
        if name.endswith("wqkv.weight"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                layer = name.removesuffix("attention.wqkv.weight")
                found[f"model.{layer}self_attn.{part}_proj.weight"] = rows.clone()
            continue
        theirs = ends.get(name, f"model.{name}")
        for ours, other in inner.items():
            theirs = theirs.replace(ours, other)
        found[theirs] = tensor
    return found


def test_the_hugging_face_style(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "LlamaGen-T2I"
    folder.mkdir()
    save_file(hf_weights(weights), folder / "model.safetensors")
    found = target_of(folder, tmp_path / "out").transformer.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("block_size", "grid"), [(256, 16), (1024, 32)])
def test_the_configuration_beside_the_weights_tells_the_stage(
    block_size: int, grid: int, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(hf_weights(weights), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"block_size": block_size}))
    convert([tmp_path], tmp_path / "out", Settings(num_heads=4))
    config = read_config(tmp_path / "out" / "cloud")
    assert config["transformer"]["grid_size"] == grid
    expected = {"cfg_scale": 7.5, "temperature": 1.0, "top_k": 1000, "top_p": 1.0}
    assert config["sampling"] == expected | {"cfg_interval": -1}


@torch.inference_mode()
def test_a_converted_tokenizer_equals_the_reference(tmp_path: Path) -> None:
    with safe_open(test_vq.GOLDEN, "pt") as file:
        salt = file.metadata()["salt"]
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in VQModel(VQConfig()).state_dict().items()}
    state = {name: test_vq.recipe_weight(salt, name, shape) for name, shape in shapes.items()}
    state["quantize.codebook_used"] = torch.zeros(65536)
    assert len(state) == 344
    convert([saved(tmp_path / "vq.pt", {"model": state})], tmp_path / "out", TINY)
    model = load_vq(tmp_path / "out" / "vq")
    assert model.config == VQConfig()
    pixels = model.decode(test_vq.golden("input.ids").long())
    torch.testing.assert_close(pixels, test_vq.golden("expected.pixels"), atol=1e-4, rtol=0)
    ids = model.encode(test_vq.golden("input.image")).int()
    assert torch.equal(ids, test_vq.golden("expected.ids"))


def test_names_of_chameleons_tokenizer_are_all_there() -> None:
    """293 tensors, 68,718,467 parameters: those of the public file."""
    sizes = VQConfig(
        codebook_size=8192,
        codebook_dim=256,
        has_lowest_attention=False,
        is_l2_normalized=False,
        middle_level=127.5,
    )
    with torch.device("meta"):
        state = VQModel(sizes).state_dict()
    assert len(state) == 293
    assert sum(t.numel() for t in state.values()) == 68_718_467
    theirs = {chameleon_name(name, 4): of_tensor(tensor) for name, tensor in state.items()}
    assert theirs["decoder.up.0.block.0.conv1.weight"].shape == (128, 128, 3, 3)
    assert theirs["decoder.up.3.block.0.nin_shortcut.weight"].shape == (256, 512, 1, 1)
    config, entries = vq.chameleon_entries(theirs)
    assert config == sizes
    assert {n: e.shape for n, e in entries.items()} == {n: tuple(t.shape) for n, t in state.items()}


def chameleon_name(name: str, last: int) -> str:
    """Of a tensor of ours in Chameleon's files."""
    name = name.replace(".mid.0.", ".mid.block_1.").replace(".mid.1.", ".mid.attn_1.")
    name = name.replace(".mid.2.", ".mid.block_2.").replace(".res.", ".block.")
    name = name.replace("encoder.conv_blocks.", "encoder.down.")
    parts = name.split(".")
    if parts[:2] == ["decoder", "conv_blocks"]:
        parts[1:3] = ["up", str(last - int(parts[2]))]
    return ".".join(parts)


def small_vq(*, is_l2_normalized: bool, has_lowest_attention: bool) -> VQModel:
    torch.manual_seed(0)
    sizes = VQConfig(
        codebook_size=64,
        codebook_dim=16,
        channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        z_channels=32,
        is_l2_normalized=is_l2_normalized,
        has_lowest_attention=has_lowest_attention,
    )
    return VQModel(sizes).eval()


@torch.inference_mode()
@pytest.mark.parametrize("place", ["alone", "inside Anole", "Lightning"])
def test_chameleons_tokenizer_equals_transformers(place: str, tmp_path: Path) -> None:
    ours = small_vq(is_l2_normalized=False, has_lowest_attention=False)
    state = {chameleon_name(n, 1): t.contiguous() for n, t in ours.state_dict().items()}
    path = tmp_path / "vq.safetensors"
    if place == "Lightning":
        extra = {"loss.logvar": torch.zeros(())}
        path = saved(tmp_path / "vqgan.ckpt", {"state_dict": state | extra, "global_step": 5})
    elif place == "inside Anole":
        save_file({f"model.vqmodel.{n}": t for n, t in state.items()}, path)
    else:
        save_file(state, path)
    convert([path], tmp_path / "out", Settings(accepted=frozenset({"chameleon"})))
    converted = load_vq(tmp_path / "out" / "vq")
    sizes = ChameleonVQVAEConfig(
        embed_dim=16,
        num_embeddings=64,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
    )
    reference: Any = ChameleonVQVAE(sizes)
    reference.eval()
    kept = {n: t for n, t in state.items() if not n.startswith("decoder.")}
    reference.load_state_dict(kept)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = reference.encode(pixels).image_tokens.view(2, 8, 8)
    assert torch.equal(converted.encode(pixels), expected)
    assert torch.equal(converted.decode(expected), ours.decode(expected))
    assert "Chameleon Research License" in (tmp_path / "out" / "README.md").read_text()


@torch.inference_mode()
def test_vq_16_decodes_as_transformers_does() -> None:
    """Janus has the same network; its levels are named in LlamaGen's order."""
    ours = small_vq(is_l2_normalized=True, has_lowest_attention=True)
    sizes = JanusVQVAEConfig(
        embed_dim=16,
        num_embeddings=64,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        num_patches=8,  # a side
    )
    reference: Any = JanusVQVAE(sizes)
    reference.eval()
    state = {}
    for name, tensor in ours.state_dict().items():
        theirs = chameleon_name(name, 1)
        if match := re.match(r"decoder\.up\.(\d+)\.", theirs):
            theirs = f"decoder.up.{1 - int(match[1])}.{theirs[match.end() :]}"
        state[theirs] = tensor
    reference.load_state_dict(state)
    ids = torch.randint(64, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    codes = reference.quantize.get_codebook_entry(ids.view(2, -1))
    expected = reference.decoder(reference.post_quant_conv(codes))
    torch.testing.assert_close(ours.decode(ids), expected, atol=1e-5, rtol=1e-5)


def test_chameleons_licence_must_be_accepted(tmp_path: Path) -> None:
    ours = small_vq(is_l2_normalized=False, has_lowest_attention=False)
    state = {chameleon_name(n, 1): t.contiguous() for n, t in ours.state_dict().items()}
    path = tmp_path / "vq.safetensors"
    save_file(state, path)
    done = CliRunner().invoke(app, ["convert", str(path), "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, InvalidInput)
    assert "non-commercial research only" in str(done.exception)
    assert "--accept-license chameleon" in str(done.exception)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInput, match="accept-license"):
        Settings(accepted=frozenset({"mit"}))
    save_file({n: t for n, t in state.items() if "decoder" not in n}, path)
    with pytest.raises(CheckpointError, match="the VQ decoder is missing"):
        convert([path], tmp_path / "out", Settings(accepted=frozenset({"chameleon"})))


def test_sizes_of_the_published_transformer() -> None:
    with torch.device("meta"):
        state = TargetModel(TransformerConfig(), feature_dim=64).transformer.state_dict()
    tensors = {name: of_tensor(tensor) for name, tensor in state.items()}
    assert llamagen.transformer_config(tensors, grid_size=16) == TransformerConfig()


# Stages


def test_a_published_file_is_known_by_its_hash(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "renamed.pt", {"model": weights})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    release = llamagen.Release(file="t2i_XL_stage2_512.pt", stage=2)
    monkeypatch.setitem(llamagen.RELEASES, sha256, release)
    convert([path], tmp_path / "out", Settings(num_heads=4))
    config = read_config(tmp_path / "out" / "cloud")
    assert (config["name"], config["transformer"]["grid_size"]) == ("llamagen-t2i-stage2", 32)
    assert sha256 in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InvalidInput, match=r"stage: 1: this is t2i_XL_stage2_512.pt, of stage 2"):
        convert([path], tmp_path / "out", Settings(num_heads=4, stage=1))


def test_the_stage_of_an_unknown_file_must_be_said(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = saved(tmp_path / "t2i_XL_stage2_512.pt", {"model": weights})
    with pytest.raises(InvalidInput, match=r"--stage 1 .*--stage 2"):
        convert([path], tmp_path / "out", Settings(num_heads=4))
    with pytest.raises(InvalidInput, match="stage: 3"):
        convert([path], tmp_path / "out", Settings(num_heads=4, stage=3))
    convert([path], tmp_path / "out", Settings(num_heads=4, stage=1))
    assert read_config(tmp_path / "out" / "cloud")["transformer"]["grid_size"] == 16


# Storing


def test_shards_hold_the_same(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pt", {"model": weights})
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    convert([path], whole, TINY)
    convert([path], shards, Settings(grid_size=4, num_heads=4, max_bytes=100_000))
    files = weights_files(shards / "cloud")
    assert len(files) > 2
    assert [f.name for f in files][0] == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = [sum(t.nbytes for t in load_file(f).values()) for f in files]
    largest = max(t.nbytes for t in weights.values())
    assert max(sizes) <= max(100_000, largest)
    one, many = read_weights(whole / "cloud"), read_weights(shards / "cloud")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    before = fingerprint(shards / "cloud")
    files[-1].unlink()
    with pytest.raises(CheckpointError, match=f"no {files[-1].name}"):
        read_weights(shards / "cloud")
    convert([path], shards, Settings(grid_size=4, num_heads=4, max_bytes=100_000))
    assert fingerprint(shards / "cloud") == before


def test_what_was_there_before_is_not_read_in_place_of_it(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """The index of an earlier conversion in shards, and the half of phi of a draft."""
    other, path = ({"model": {n: t + k for n, t in weights.items()}} for k in (1, 0)), tmp_path
    sources = [saved(path / f"{k}.pt", state) for k, state in enumerate(other)]
    convert(sources[:1], path / "out", Settings(grid_size=4, num_heads=4, max_bytes=100_000))
    phi = {"injection.weight": torch.ones(64, 64)}
    save_file(phi, path / "out" / "cloud" / "phi.safetensors")
    convert(sources[1:], path / "out", TINY)
    convert(sources[1:], path / "fresh", TINY)
    assert fingerprint(path / "out" / "cloud") == fingerprint(path / "fresh" / "cloud")
    assert not read_weights(path / "out" / "cloud")["injection.weight"].any()


@pytest.mark.parametrize("kind", ["T5", "LlamaGen"])
def test_an_interrupted_conversion_leaves_no_configuration(
    kind: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    source = saved(tmp_path / "file.pt", {"model": weights})
    if kind == "T5":
        source = write_t5(tmp_path / "flan", dim=48)
    part = tmp_path / "out" / ("text" if kind == "T5" else "cloud")
    convert([source], tmp_path / "out", TINY)
    assert (part / "config.json").exists()

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert([source], tmp_path / "out", TINY, on_tensor=stop)
    assert not (part / "config.json").exists()
    assert not list((tmp_path / "out").rglob("*.part"))


def test_where_nothing_can_be_written_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = ["-o", str(tmp_path / "file" / "out")]
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "missing.pt"), *options])
    assert isinstance(done.exception, OutputError)
    assert str(done.exception).startswith("out: ")


@pytest.mark.parametrize("name", ["README.md", "cloud/config.json", "text/config.json"])
def test_what_cannot_be_written_is_named(
    name: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """A folder is in the way of the file."""
    sources = [saved(tmp_path / "file.pt", {"model": weights}), write_t5(tmp_path / "flan", dim=48)]
    (tmp_path / "out" / name / "full").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"out: .*(irectory|permission)"):
        convert(sources, tmp_path / "out", TINY)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_weights_are_stored_in_the_dtype_asked_for(
    name: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    dtype = getattr(torch, name)
    path = saved(tmp_path / "file.pt", {"model": weights})
    convert([path], tmp_path / "out", Settings(grid_size=4, num_heads=4, dtype=name))
    stored = load_file(tmp_path / "out" / "cloud" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {dtype}
    expected = weights["output.weight"].to(dtype)
    assert torch.equal(stored["transformer.output.weight"], expected)


def test_files_before_pytorch_1_6_are_read(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=False)
    found = target_of(path, tmp_path / "out").transformer.state_dict()
    assert torch.equal(found["output.weight"], weights["output.weight"])


# What is refused


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_code_is_refused_and_does_not_run(
    weights: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "zip.pt", tmp_path / "plain.pt"):
        content = {"model": weights, "args": Code()}
        if path.name == "zip.pt":
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(Code()))
        with pytest.raises(CheckpointError, match="run as code, so it is refused"):
            convert([path], tmp_path / "out", TINY)
    assert "must not run" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w | {"freqs_cis": torch.zeros(2)}, "unexpected transformer.freqs_cis"),
        (
            lambda w: {n: t for n, t in w.items() if n != "layers.1.ffn_norm.weight"},
            "missing transformer.layers.1.ffn_norm.weight",
        ),
        (
            lambda w: w | {"output.weight": torch.zeros(95, 64)},
            r"transformer.output.weight is \(95, 64\), expected \(96, 64\)",
        ),
        (
            lambda w: {n: t for n, t in w.items() if n != "tok_embeddings.weight"},
            "no LlamaGen transformer: 'tok_embeddings.weight' is missing",
        ),
        (
            lambda w: w | {"layers.0.feed_forward.w1.weight": torch.zeros(9999, 64)},
            "feed-forward width 9999",
        ),
    ],
)
def test_names_and_shapes_are_strict(
    change: Change, words: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = saved(tmp_path / "file.pt", {"model": change(weights)})
    with pytest.raises(CheckpointError, match=words):
        convert([path], tmp_path / "out", TINY)
    assert not (tmp_path / "out" / "cloud").exists()


def test_a_missing_value_matrix_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    state = hf_weights(weights)
    del state["model.layers.0.self_attn.v_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="layers.0.self_attn.q_proj.weight: its key or value"):
        convert([tmp_path], tmp_path / "out", TINY)


def test_a_missing_shard_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(hf_weights(weights), tmp_path / "a.safetensors")
    index = {"weight_map": {"lm_head.weight": "a.safetensors", "x": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"b.safetensors is missing, one of 2 shards"):
        convert([tmp_path], tmp_path / "out", TINY)


def test_codebooks_must_be_of_one_size(weights: dict[str, Tensor], tmp_path: Path) -> None:
    gpt = saved(tmp_path / "gpt.pt", {"model": weights})
    sizes = VQConfig(codebook_size=64, channels=32, channel_multipliers=(1, 1), z_channels=32)
    codes = saved(tmp_path / "vq.pt", {"model": VQModel(sizes).state_dict()})
    with pytest.raises(CheckpointError, match="96 codes and the tokenizer"):
        convert([gpt, codes], tmp_path / "out", TINY)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files_are_refused(
    keep: float, suffix: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"file{suffix}"
    if suffix == ".pt":
        torch.save({"model": weights}, path)
    else:
        save_file(hf_weights(weights), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match=str(path)):
        convert([path], tmp_path / "out", TINY)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="source"):
        convert([tmp_path / "missing.pt"], tmp_path / "out", TINY)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InvalidInput, match="ends in one of"):
        convert([tmp_path / "notes.txt"], tmp_path / "out", TINY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="folder with weights"):
        convert([tmp_path / "empty"], tmp_path / "out", TINY)
    thin = saved(tmp_path / "vq.pt", vq_f4(has_local_encoder=False).state_dict())
    with pytest.raises(CheckpointError, match="no VQ tokenizer of that kind"):
        convert([thin], tmp_path / "out", TINY)
    other = saved(tmp_path / "other.pt", {"model": {"conv1.weight": torch.zeros(2)}})
    with pytest.raises(CheckpointError, match="none of the checkpoints that are known"):
        convert([other], tmp_path / "out", TINY)
    number = saved(tmp_path / "number.pt", 3)
    with pytest.raises(CheckpointError, match="holds int"):
        convert([number], tmp_path / "out", TINY)
    nothing = saved(tmp_path / "nothing.pt", {"epoch": 3})
    with pytest.raises(CheckpointError, match="no weights in it, only epoch"):
        convert([nothing], tmp_path / "out", TINY)
    with pytest.raises(InvalidInput, match="at least one"):
        convert([], tmp_path / "out", TINY)


# Bundles


@pytest.fixture(scope="module")
def bundle(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_llamagen(tmp_path_factory.mktemp("bundle"), weights)


def convert_llamagen(root: Path, weights: dict[str, Tensor]) -> Path:
    """The golden transformer with a random tokenizer and T5, converted in one go."""
    torch.manual_seed(0)
    sizes = VQConfig(codebook_size=96, channels=32, channel_multipliers=(1, 1), z_channels=32)
    sources = [
        saved(root / "gpt.pt", {"model": weights}),
        saved(root / "vq.pt", {"model": VQModel(sizes).state_dict()}),
        write_t5(root / "flan", dim=48),
    ]
    convert(sources, root / "model", TINY)
    return root / "model"


def draw(model: Path, out: Path) -> dict[str, Any]:
    options = ["--model", str(model), "-o", str(out), "--json", "--temperature", "0"]
    done = CliRunner().invoke(app, ["generate", "A dog on the beach", *options])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@torch.inference_mode()
def test_a_converted_bundle_draws(bundle: Path, tmp_path: Path) -> None:
    """Guided by 7.5, as its published sampling has it; text, transformer and tokenizer in place."""
    found = draw(bundle, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (8, 8)
    (caption,) = load_text(bundle / "text").encode(["A dog on the beach"])
    target = Target(TargetModel.load(bundle / "cloud"), num_slots=1)
    assert found["tokens"] == test_transformer.greedy(target, 0, caption, 7.5)
    card = (bundle / "README.md").read_text()
    assert "MIT (LlamaGen)" in card
    assert "Apache-2.0 (flan-t5)" in card
    assert fingerprint(bundle / "cloud") in card


@pytest.mark.parametrize("chunks", [(15,), (5, 1, 9)])
def test_what_the_server_loads_equals_the_reference(bundle: Path, chunks: tuple[int, ...]) -> None:
    """Laid out as it is served: logits, and guided greedy tokens."""
    served = load_cloud_model(str(bundle)).target
    test_transformer.test_cached_logits_equal_the_reference(served, chunks)
    test_transformer.test_greedy_guided_tokens_equal_the_reference(served)


def test_kept_features_take_the_encoders_place(bundle: Path, tmp_path: Path) -> None:
    """No T5 is needed then."""
    model, prompts = tmp_path / "model", tmp_path / "prompts.txt"
    for part in ("cloud", "vq"):
        shutil.copytree(bundle / part, model / part)
    prompts.write_text("A dog on the beach\na cat\n")
    options = ["--model", str(bundle), "-o", str(model / "text")]
    done = CliRunner().invoke(app, ["text-features", str(prompts), *options])
    assert done.exit_code == 0, done.output
    expected = draw(bundle, tmp_path / "a.png")["tokens"]
    assert draw(model, tmp_path / "b.png")["tokens"] == expected
    options = ["--model", str(model), "-o", str(tmp_path / "c.png")]
    done = CliRunner().invoke(app, ["generate", "a horse", *options])
    assert isinstance(done.exception, InvalidInput)
    assert "one of the 2 prompts" in str(done.exception)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "at least one"), ('{"prompt": "a"}\n{}', "line 2"), ('{"prompt": " "}', "line 1")],
)
def test_bad_prompts_are_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=words):
        read_prompts(path)


# The command


def test_the_command(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path, out = saved(tmp_path / "file.pt", {"model": weights}), tmp_path / "out"
    options = ["-o", str(out), "--grid-size", "4", "--heads", "4"]
    done = CliRunner().invoke(app, ["convert", str(path), *options])
    assert done.exit_code == 0, done.output
    assert "LlamaGen transformer, 4 x 4 tokens" in done.stdout
    assert TargetModel.load(out / "cloud").config.num_heads == 4
    bad = CliRunner().invoke(app, ["convert", str(path), *options, "--dtype", "int4"])
    assert isinstance(bad.exception, InvalidInput)
    assert bad.exception.field == "dtype"


def test_what_was_read_can_be_forgotten_and_read_again(tmp_path: Path) -> None:
    """Whole pages of mapped files only: a file that is in memory as a whole keeps its numbers."""
    state = {"a": torch.randn(300, 100), "b": torch.randn(7)}
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "c.safetensors")
    for name in ("new.pt", "old.pt", "c.safetensors"):
        tensors = read_file(tmp_path / name)
        assert (tensors["a"].mapped is None) == (name == "old.pt")
        for _ in range(2):
            assert all(torch.equal(tensors[n].read(), state[n]) for n in state)
            forget(tensors)
