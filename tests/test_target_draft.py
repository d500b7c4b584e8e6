"""An edge model for a converted target: trained from pictures, served over sockets, for both
families."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ciar.checkpoint import fingerprint, read_config, read_weights
from ciar.errors import InvalidInput
from ciar.models.embedding import LowRankEmbedding
from ciar.models.transformer import TransformerConfig
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_bench.methods import make_method
from ciar_bench.methods.bench_model import BenchModel
from ciar_edge.models import load_draft_model
from ciar_train.cli import app
from ciar_train.codes import CodeFolder
from ciar_train.contexts import Chain, drawn
from ciar_train.plan import TrainingPlan
from ciar_train.plans import EdgePlan, default_plan, load_plan
from ciar_train.target_draft import INJECTION
from tests.test_anole import convert_anole
from tests.test_convert import convert_llamagen, golden_weights
from tests.test_edge_cli import edge
from tests.toy_anole import toy_anole

PROMPT = "a dog on the beach"
CAPTIONS = [PROMPT, "a cat in the snow", "the dog", "a cat on the beach"]
NUM_PICTURES, SIDE, NUM_TOKENS = 84, 8, 16
PLAN = """
held_out = 3
[draft]
num_drawn = 6
num_rollouts = 36
shape = {{ embedding_rank = {rank} }}
tokens = {{ steps = 2, batch_size = 4, lr = 1e-3 }}
centre = {{ steps = {steps}, batch_size = 4, accumulate = 2, lr = 1e-3, warmup_steps = 1 }}
radius = {{ steps = 2, batch_size = 4, lr = 1e-2, warmup_steps = 1 }}
phi = {{ steps = 2, batch_size = 4, accumulate = 2, lr = 1e-1, warmup_steps = 1 }}
[eagle]
steps = 3
batch_size = 4
accumulate = 2
lr = 1e-3
"""


@pytest.fixture(scope="module", params=["llamagen", "anole"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "anole":
        return convert_anole(root, toy_anole())
    return convert_llamagen(root, golden_weights())


@pytest.fixture(scope="module")
def data(model: Path) -> Path:
    """Codes of random pictures."""
    pictures, out = model.parent / "pictures", model.parent / "codes"
    pictures.mkdir()
    for index in range(NUM_PICTURES):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(CAPTIONS[index % len(CAPTIONS)])
    call("extract", pictures, "--target", model, "--out", out)
    return out


@pytest.fixture(scope="module")
def pair(model: Path, data: Path) -> Path:
    out = model.parent / "pair"
    train(model, data, out=out)
    return out


def call(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def train(model: Path, data: Path, *, out: Path, steps: int = 2, **options: Any) -> str:
    plan = model.parent / f"plan-{steps}.toml"
    plan.write_text(PLAN.format(rank=8 if "anole" in str(model) else 0, steps=steps))
    run = options.pop("run", model.parent / "run")
    flags = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    more = [x for name, value in flags.items() for x in (name, value) if x is not None]
    files = ("--target", model, "--data", data, "--plan", plan, "--run", run, "--out", out)
    return call("draft", *files, "--device", "cpu", *more)


def test_two_processes_draw_with_the_trained_pair(pair: Path, tmp_path: Path) -> None:
    options: list[str | Path] = [
        "--model",
        pair,
        "-o",
        tmp_path / "out.png",
        "--json",
        "--seed",
        "3",
    ]
    done = edge(PROMPT, *options, "--router", "random", "--budget", "0.5", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (SIDE, SIDE)
    found = json.loads(done.stdout)
    assert len(found["tokens"]) == NUM_TOKENS
    assert 0 < found["cloud_calls"] < NUM_TOKENS


def test_the_target_stays_as_it_is(pair: Path, model: Path) -> None:
    """Links to its files, and phi beside them; the edge is for just that."""
    assert not (model / "cloud" / "phi.safetensors").exists()
    assert not (model / "edge").exists()
    before, after = read_weights(model / "cloud"), read_weights(pair / "cloud")
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert before.keys() == after.keys()
    assert changed == {INJECTION}
    assert fingerprint(pair / "cloud") != fingerprint(model / "cloud")
    assert read_config(pair / "edge")["target"] == fingerprint(pair / "cloud")
    assert (pair / "vq").resolve() == (model / "vq").resolve()
    assert TargetModel.load(pair / "cloud").injection.weight.abs().sum() > 0


def test_the_draft_begins_as_the_targets_first_layer(pair: Path, model: Path) -> None:
    draft, target = load_draft_model(pair / "edge").draft, TargetModel.load(model / "cloud")
    name = "layers.0.attention.wo.weight"
    ours, theirs = draft.get_parameter(name), target.transformer.get_parameter(name)
    assert (ours - theirs).norm() < 0.1 * theirs.norm()
    assert isinstance(draft.tok_embeddings, LowRankEmbedding) == ("anole" in str(model))


def test_nothing_is_done_twice(pair: Path, model: Path, data: Path) -> None:
    edge_file = pair / "edge" / "model.safetensors"
    before = edge_file.read_bytes()
    train(model, data, out=pair)
    assert edge_file.read_bytes() == before


def test_in_place_the_pair_is_the_targets_folder(model: Path, data: Path, tmp_path: Path) -> None:
    own = tmp_path / model.parent.name / "own"
    shutil.copytree(model, own)
    train(own, data, out=own)
    assert read_config(own / "edge")["target"] == fingerprint(own / "cloud")
    train(own, data, out=own)  # its fingerprint changed, the run is still its own


def test_a_target_in_bfloat16_teaches_as_well(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / model.parent.name / "pair"
    out.parent.mkdir()
    train(model, data, out=out, run=tmp_path / "run", dtype="bfloat16")
    assert read_config(out / "edge")["target"] == fingerprint(out / "cloud")


def test_every_baseline_draws_with_it(pair: Path, model: Path, data: Path, tmp_path: Path) -> None:
    """EAGLE's drafter learns for the same target; what is lossless draws the base's own image."""
    out = tmp_path / model.parent.name / "pair"
    shutil.copytree(pair, out, symlinks=True)
    train(model, data, out=out, kind="eagle")
    bench = BenchModel.load(out)
    for interval in (-1, 4):
        sampling = SamplingParams(temperature=0.0, cfg_scale=4.0, cfg_interval=interval)
        base = make_method("base").draw(bench, PROMPT, sampling).tokens
        for name in ("eagle-1", "eagle-2", "exact", "jacobi"):
            drawn = make_method(name).draw(bench, PROMPT, sampling)
            assert drawn.tokens == base, name
    for name in ("lantern", "lantern++", "code", "wavefront"):
        assert len(make_method(name).draw(bench, PROMPT, sampling).tokens) == NUM_TOKENS


def test_processes_share_a_target_and_its_images(
    model: Path, data: Path, pair: Path, tmp_path: Path
) -> None:
    """Two processes, each with half of every layer, draw the images that one draws."""
    out, run = tmp_path / "pair", tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m"]
    files = ("--target", model, "--data", data, "--plan", model.parent / "plan-2.toml")
    more = ("--run", run, "--out", out, "--device", "cpu", "--threads", "1", "--shard-target")
    done = subprocess.run(
        [*command, "--", "ciar_train.cli", "draft", *map(str, (*files, *more))],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone, both = (torch.load(r / "cloud_images.pt") for r in (model.parent / "run", run))
    assert torch.equal(alone["tokens"], both["tokens"])
    assert read_config(out / "edge")["target"] == fingerprint(out / "cloud")
    name = "layers.0.attention.wo.weight"
    ours, theirs = (read_weights(p / "edge")[name] for p in (out, pair))
    assert (ours - theirs).norm() < 0.05 * theirs.norm()  # each replaced other tokens


def test_a_single_process_cannot_share(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="shard-target: .*torchrun"):
        train(model, data, out=tmp_path / "out", run=tmp_path / "run", shard_target=None)


def test_what_does_not_fit_is_named(model: Path, data: Path, pair: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="data: .*ciar-train extract"):
        train(model, tmp_path, out=tmp_path / "out", run=tmp_path / "run")
    other = tmp_path / "codes"
    shutil.copytree(data, other)
    tokens = np.load(other / "tokens.npy")
    np.save(other / "tokens.npy", tokens[:, :9])
    with pytest.raises(InvalidInput, match="tokens a picture: 9, the target has 16"):
        train(model, other, out=tmp_path / "out", run=tmp_path / "run")
    with pytest.raises(InvalidInput, match="run: .*another target"):
        train(pair, data, out=tmp_path / "out", run=other_run(tmp_path))
    changed = tmp_path / "changed"
    shutil.copytree(pair / "cloud", changed / "cloud")
    with pytest.raises(InvalidInput, match="out: .*another model"):
        train(model, data, out=changed, run=tmp_path / "run")


def other_run(folder: Path) -> Path:
    run = folder / "other"
    run.mkdir()
    (run / "target.json").write_text('["0123456789abcdef"]')
    return run


@pytest.mark.parametrize(
    ("family", "name"), [("llamagen", "llamagen-xl"), ("chameleon", "anole-7b")]
)
def test_every_family_has_a_plan(family: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud" / "config.json").write_text(json.dumps({"family": family}))
    assert default_plan(tmp_path) == name
    assert isinstance(load_plan(name), EdgePlan)


def test_a_family_without_a_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud" / "config.json").write_text('{"family": "other"}')
    with pytest.raises(InvalidInput, match="plan: .*'other'"):
        default_plan(tmp_path)


def test_parts_of_a_batch_must_be_whole() -> None:
    with pytest.raises(ValueError, match="accumulate: 3: batch_size .4. must be a multiple"):
        TrainingPlan(steps=1, batch_size=4, accumulate=3, lr=1.0)


def test_an_embedding_of_low_rank_is_the_nearest() -> None:
    """Its error is what the singular values that are left out amount to."""
    table = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    embedding = LowRankEmbedding(40, 24, 6)
    embedding.approximate(table)
    left_out = torch.linalg.svdvals(table)[6:].norm()
    assert float((embedding.weight.detach() - table).norm()) == pytest.approx(
        float(left_out), rel=1e-4
    )
    ids = torch.tensor([[3, 7]])
    torch.testing.assert_close(embedding(ids)[0], embedding.weight[[3, 7]])


def test_a_full_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="embedding_rank: 48: give a rank below dim"):
        TransformerConfig(dim=48, num_heads=4, embedding_rank=48)


def test_captions_stay_on_disk_until_they_are_asked_for(data: Path) -> None:
    folder = CodeFolder(data)
    first, rest = (drawn(folder, indices).conditions for indices in (range(4), range(4, 9)))
    chain = Chain(first, rest)
    assert len(chain) == 9
    picked = torch.tensor([6])
    expected = folder.condition_batch(picked, torch.zeros_like(picked))
    torch.testing.assert_close(chain[6].float(), expected.features[0][expected.mask[0]])
    assert all(torch.equal(a, chain[i]) for i, a in enumerate([*first, *rest]))
    assert [len(c) for c in chain[2:5]] == [len(chain[i]) for i in (2, 3, 4)]
    with pytest.raises(IndexError):
        chain[9]
