"""`ciar-bench full-size` with toy shapes of both families: real files, two processes, one image."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ciar.checkpoint import weights_files
from ciar.models.chameleon import ChameleonConfig
from ciar.models.transformer import TransformerConfig
from ciar.models.vq import VQConfig
from ciar.types import SamplingParams
from ciar_bench.cli import app
from ciar_bench.random_model import PUBLISHED, PublishedSize, write_random_model

SAMPLING = SamplingParams(cfg_scale=3.0)
VQ = VQConfig(codebook_size=64, channels=32, channel_multipliers=(1, 1), z_channels=32)
LLAMAGEN = TransformerConfig(
    vocab_size=64,
    grid_size=6,
    num_layers=2,
    dim=64,
    num_heads=4,
    num_condition=20,
    condition_dim=24,
)
CHAMELEON = ChameleonConfig(
    vocab_size=64,
    grid_size=6,
    num_layers=2,
    dim=64,
    num_heads=4,
    num_condition=20,
    condition_dim=64,
)


FAMILIES = (LLAMAGEN, CHAMELEON)


def write_plan(folder: Path) -> str:
    path, stage = folder / "plan.toml", "{ steps = 1, batch_size = 1, lr = 1.0 }"
    path.write_text(f"draft = {{ centre = {stage}, radius = {stage}, phi = {stage} }}")
    return str(path)


@pytest.mark.parametrize("sizes", FAMILIES, ids=lambda s: s.family)
def test_an_image_through_both_processes(
    sizes: TransformerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = PublishedSize(transformer=sizes, vq=VQ, plan=write_plan(tmp_path), sampling=SAMPLING)
    monkeypatch.setitem(PUBLISHED, "toy", toy)
    kept = write_random_model(toy, tmp_path / "model", prompt="a cat", dtype=torch.float32)
    options = ["--size", "toy", "--dtype", "float32", "--share", "0.5", "--json"]
    done = CliRunner().invoke(app, ["full-size", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["weights_bytes"] == sum(p.stat().st_size for p in weights_files(kept / "cloud"))
    assert (found["num_tokens"], found["image_pixels"]) == (36, [12, 12])
    assert 0.3 < found["cloud_calls"] < 0.8
    assert set(found["cloud_step"]) == {"2", "4", "8", "16"}
    assert found["interpreter_bytes"] > 50e6
    out = tmp_path / "table.md"
    options = ["--model", str(kept), "--prompt", "a cat", "--out", str(out)]
    options += ["--batch", "1", "--batch", "3"]
    done = CliRunner().invoke(app, ["full-size", *options], catch_exceptions=False)
    text = out.read_text()
    assert "| image of 36 tokens, 12x12 |" in text
    assert all(f"| {batch} x C({k}) |" in text for batch in (1, 3) for k in (1, 4, 16))
    assert "C(32)" not in text  # more than are left of 36


def test_an_unknown_size_names_the_known_ones() -> None:
    done = CliRunner().invoke(app, ["full-size", "--size", "huge"])
    assert "llamagen-xl-256" in str(done.exception)
