"""Every training step on a tiny size.

It learns, it resumes bit for bit, and what it exports loads and fits together.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ciar.checkpoint import fingerprint, read_config, read_weights
from ciar.errors import InvalidInput
from ciar.interval import interfuse
from ciar.models.text_encoder import TextEncoder
from ciar.picture import load_vq
from ciar.target import TargetModel
from ciar_train import steps
from ciar_train.codes import Conditions
from ciar_train.draft import DraftShape, DraftTrainer
from ciar_train.draft_step import run_draft, run_eagle
from ciar_train.eagle import load_eagle
from ciar_train.export import export_target
from ciar_train.loop import Metrics, Run, World, batch_indices, evaluate_rounded, train
from ciar_train.losses import InterDroWeights, auroc, inter_dro_loss, interval_score
from ciar_train.ngrams import ENTRIES
from ciar_train.plan import TrainingPlan
from ciar_train.run_folder import RunFolder
from ciar_train.sizes import Size, load_size, size_names
from ciar_train.target import foresight_loss, misread
from ciar_train.tokenizer import steady_share
from ciar_train.variants import run_variant, with_draft
from tests.tiny import vq_f4

CPU = World(0, 1, torch.device("cpu"))

TINY = """
[data]
count = 24
held_out = 8
num_captions = 2
counted = 16
recipe = { size = 16 }
[vq]
codebook_size = 32
codebook_dim = 4
channels = 8
channel_multipliers = [1, 1, 1]
num_res_blocks = 1
z_channels = 8
norm_groups = 4
[tokenizer]
steps = 12
batch_size = 8
lr = 3e-3
warmup_steps = 1
eval_every = 12
log_every = 1
[transformer]
vocab_size = 32
grid_size = 4
num_layers = 2
dim = 32
num_heads = 2
ffn_multiple_of = 8
num_condition = 16
condition_dim = 384
neighbours = { count = 2, width = 8, ngrams = [1, 3], ngram_slots = 4096 }
[target]
steps = 12
batch_size = 8
lr = 3e-3
muon_lr = 3e-3
foresight = 0.2
replaced = 0.2
warmup_steps = 1
ema = 0.9
log_every = 1
[head]
radius_width = 8
feature_dim = 8
[draft]
num_rollouts = 8
num_drawn = 12
[draft.shape]
num_heads = 4
ffn_multiple_of = 128
neighbours = { count = 3, width = 8, ngrams = [1, 2], ngram_slots = 4096 }
[draft.tokens]
steps = 12
batch_size = 4
lr = 3e-3
warmup_steps = 1
log_every = 1
[draft.centre]
steps = 6
batch_size = 4
lr = 3e-3
[draft.radius]
steps = 6
batch_size = 4
lr = 1e-2
[draft.phi]
steps = 4
batch_size = 4
lr = 3e-3
[eagle]
steps = 12
batch_size = 4
lr = 3e-3
log_every = 1
"""


def quiet(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total, what


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("run")
    (root / "tiny.toml").write_text(TINY)
    folder = RunFolder(root=root, size=load_size(root / "tiny.toml"), world=CPU, progress=quiet)
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("held_out", 8), ("counted", 16)):
        scenes = folder.scenes(part)
        scenes.mkdir(parents=True)
        colors = rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
        np.save(scenes / "images-00000.npy", colors.repeat(8, axis=1).repeat(8, axis=2))
        lines = [json.dumps({"captions": [f"a dog {i % 5}", "a beach"]}) for i in range(count)]
        (scenes / "captions-00000.jsonl").write_text("\n".join(lines))
    steps.run_tokenizer(folder)
    steps.run_target(folder)
    run_draft(folder)
    run_eagle(folder)
    return folder


def share_pictures(run: RunFolder, again: RunFolder, *parts: str) -> None:
    """The same pictures and captions for another run, without the codes made of them."""
    for part in parts:
        ignored = shutil.ignore_patterns("codes")
        shutil.copytree(run.scenes(part), again.scenes(part), ignore=ignored)


def losses(path: Path) -> list[float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize("step", ["tokenizer", "target", "draft/tokens", "eagle"])
def test_losses_fall(run: RunFolder, step: str) -> None:
    values = losses(run.root / step / "metrics.jsonl")
    assert len(values) == 12
    assert sum(values[-3:]) < sum(values[:3])


@pytest.mark.parametrize("step", ["tokenizer", "target", "draft/tokens", "draft/radius"])
def test_a_finished_step_tells_what_storage_costs(run: RunFolder, step: str) -> None:
    lines = (run.root / step / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    live, stored = rows[-2], rows[-1]
    assert (live["kind"], stored["kind"]) == ("eval", "stored")
    assert live["step"] == stored["step"]
    measured = live.keys() - {"kind", "time", "step"}
    assert measured == stored.keys() - {"kind", "time", "step"}
    assert any(live[name] != stored[name] for name in measured)


def test_evaluating_what_is_stored_leaves_the_weights() -> None:
    model = torch.nn.Linear(5, 3)
    before = model.weight.detach().clone()
    seen = evaluate_rounded(model, lambda: {"moved": float((model.weight - before).abs().max())})
    assert 0 < seen["moved"] <= float(before.abs().max()) / 254 * 1.01
    assert torch.equal(model.weight, before)


def test_foresight_is_the_cross_entropy_to_the_tokens_to_come() -> None:
    tokens = torch.tensor([[2, 0, 2], [1, 1, 1]])
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    expected = [-log_p[row, n, tokens[row, n:]].mean() for row in range(2) for n in range(3)]
    found = foresight_loss(logits, tokens)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_contexts_are_misread_in_the_share_asked_for() -> None:
    tokens = torch.arange(64)[:, None] * 1000 + torch.arange(100)  # picture and place
    assert torch.equal(misread(tokens, 0.0, torch.Generator().manual_seed(0)), tokens)
    found = misread(tokens, 0.5, torch.Generator().manual_seed(0))
    wrong = found != tokens
    shares = wrong.float().mean(1)
    assert 0.2 < float(shares.mean()) < 0.3
    assert float(shares.min()) < 0.05 < 0.4 < float(shares.max())
    pictures, places = found.div(1000, rounding_mode="floor"), found % 1000
    others = (torch.arange(64)[:, None] - 1) % 64
    assert torch.equal(pictures[wrong], others.expand_as(tokens)[wrong])
    in_place = places[wrong] == torch.arange(100).expand_as(tokens)[wrong]
    assert 0.4 < float(in_place.float().mean()) < 0.6


@pytest.mark.parametrize("is_local", [True, False])
def test_local_codes_are_steady(*, is_local: bool) -> None:
    vq, pixels = vq_f4(has_local_encoder=is_local), torch.rand(4, 3, 32, 32) * 2 - 1
    share = steady_share(vq, pixels, vq.encode(pixels))
    assert share == 1 if is_local else share < 0.9


def test_phi_learns_on_the_tokens_with_the_narrowest_intervals(run: RunFolder) -> None:
    target = TargetModel.load(run.bundle / "cloud")
    trainer = DraftTrainer(
        target, run.size.head, run.size.draft, sampling=run.size.sampling, world=CPU
    )
    config, generator = target.config, torch.Generator().manual_seed(0)
    shape = (16, config.num_tokens)
    tokens = torch.randint(config.vocab_size, shape, generator=generator)
    features = torch.randn(16, 3, config.condition_dim, generator=generator)
    conditions = Conditions(features, torch.ones(16, 3, dtype=torch.bool))
    mixed, kept = trainer.keep_sure(conditions, tokens, generator)
    assert torch.equal(mixed[~kept], tokens[~kept])
    assert (mixed[kept] != tokens[kept]).any()
    shares = kept.float().mean(1)
    assert shares.min() >= 0.5 - 1 / config.num_tokens
    assert shares.max() > shares.min()
    interval = interfuse(*trainer.draft.inter_head(trainer.hidden(conditions, tokens)))
    width = interval.width.sum(-1)
    widest = width.masked_fill(~kept, -1.0).amax(1)
    narrowest = width.masked_fill(kept, torch.inf).amin(1)
    assert (widest <= narrowest).all()


def test_the_exported_bundle_fits_together(run: RunFolder, tmp_path: Path) -> None:
    assert steps.export_bundle(run, tmp_path / "model") < 2**25
    edge = read_config(tmp_path / "model" / "edge")
    assert edge["target"] == fingerprint(tmp_path / "model" / "cloud")
    assert edge["transformer"]["neighbours"]["ngrams"] == [1, 2]
    assert len(edge["calibration"]["interval"]) == 101
    assert edge["calibration"]["interval"] == sorted(edge["calibration"]["interval"])
    target = TargetModel.load(tmp_path / "model" / "cloud")
    assert bool(target.injection.weight.any())
    tables = target.transformer.neighbours
    assert tables is not None
    assert tables.ngrams is not None
    assert bool((tables.ngrams.entries != -1).any())
    assert TextEncoder.load(tmp_path / "model" / "text").encode(["a dog"])[0].shape[1] == 384


def test_finished_steps_are_not_done_again(run: RunFolder) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.root.rglob("state.pt")}
    exported = {
        p: p.stat().st_mtime_ns for part in ("cloud", "edge") for p in (run.bundle / part).iterdir()
    }
    steps.run_tokenizer(run)
    steps.run_target(run)
    run_draft(run)
    run_eagle(run)
    assert {p: p.stat().st_mtime_ns for p in run.root.rglob("state.pt")} == before
    assert {p: p.stat().st_mtime_ns for p in exported} == exported


def test_the_drafter_of_eagle_keeps_the_targets_ends(run: RunFolder) -> None:
    model = load_eagle(run.bundle / "eagle")
    target = TargetModel.load(run.bundle / "cloud").transformer
    torch.testing.assert_close(model.output.weight, target.output.weight, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        model.tok_embeddings.weight, target.tok_embeddings.weight, atol=1e-3, rtol=0
    )


def test_a_size_without_it_has_no_drafter_of_eagle(run: RunFolder) -> None:
    without = replace(run, size=replace(run.size, eagle=None))
    with pytest.raises(InvalidInput, match="kind"):
        run_eagle(without)


def test_another_target_gets_another_draft(run: RunFolder, tmp_path: Path) -> None:
    """What was trained for the target that was there is not mistaken for its own."""
    again = replace(run, root=tmp_path / "run")
    shutil.copytree(run.root, again.root)
    images, drafted = (again.root / "draft" / n for n in ("cloud_images.pt", "phi/state.pt"))
    before = {path: path.stat().st_mtime_ns for path in (images, drafted)}
    (again.bundle / "edge" / "config.json").unlink()
    run_draft(again)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "it was finished"

    target = TargetModel.load(again.bundle / "cloud")
    with torch.no_grad():
        target.transformer.output.weight.neg_()
    export_target(target, again.bundle / "cloud", name="other", sampling=run.size.sampling)
    with pytest.raises(InvalidInput, match="another target"):
        steps.export_bundle(again, tmp_path / "model")
    run_draft(again)
    assert all(path.stat().st_mtime_ns != before[path] for path in before)
    assert steps.export_bundle(again, tmp_path / "model")


def test_other_sampling_makes_another_draft(run: RunFolder, tmp_path: Path) -> None:
    """The draft imitates the guided target: the weights of this one stay, the draft's do not."""
    colder = replace(run.size.sampling, temperature=0.5, cfg_scale=1.5)
    again = replace(run, root=tmp_path / "run", size=replace(run.size, sampling=colder))
    shutil.copytree(run.root, again.root)
    trained, drafted = (again.root / n / "state.pt" for n in ("target", "draft/phi"))
    before = {path: path.stat().st_mtime_ns for path in (trained, drafted)}
    steps.run_target(again)
    run_draft(again)
    assert read_config(again.bundle / "cloud")["sampling"]["cfg_scale"] == 1.5
    assert trained.stat().st_mtime_ns == before[trained]
    assert drafted.stat().st_mtime_ns != before[drafted]
    assert steps.export_bundle(again, tmp_path / "model")


def test_an_adopted_bundle_keeps_its_tokens_and_trains_on(run: RunFolder, tmp_path: Path) -> None:
    again = replace(run, root=tmp_path)
    share_pictures(run, again, "train", "held_out", "counted")
    steps.adopt(again, run.bundle)
    steps.run_tokenizer(again)
    old, new = (load_vq(r.bundle / "vq") for r in (run, again))
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(old.encode(pixels), new.encode(pixels))
    assert not torch.equal(old.decoder.conv_in.weight, new.decoder.conv_in.weight)
    steps.run_target(again)
    first, later = (losses(r.root / "target" / "metrics.jsonl")[-1] for r in (run, again))
    assert later < first


@pytest.mark.parametrize("name", ["mini", "mini-cpu", "mini-short", "mini-short-gpu"])
def test_a_draft_without_tables_counts_no_pictures(name: str) -> None:
    """As the variants' are, whatever the size's own draft has; a target's tables are filled."""
    size = load_size(name)
    plain = with_draft(size, replace(size.draft, shape=DraftShape()))
    assert bool(plain.data.counted) == bool(size.transformer.neighbours.ngrams)
    assert with_draft(size, size.draft) == size


@pytest.mark.parametrize("name", ["anchor", "plain", "two-layers"])
def test_a_variant_is_a_bundle_of_its_own(name: str, run: RunFolder) -> None:
    before = fingerprint(run.bundle / "edge")
    run_variant(run, "plain")
    variant = run_variant(run, name)
    assert fingerprint(run.bundle / "edge") == before
    assert variant.has_fitting_edge
    config = read_config(variant.bundle / "edge")
    assert config["transformer"]["num_layers"] == (2 if name == "two-layers" else 1)
    assert config["transformer"]["neighbours"]["count"] == 0
    assert (variant.root / "draft" / "radius").exists() == (name != "anchor")
    stages = {p: p.stat().st_mtime_ns for p in variant.root.glob("draft/*/state.pt")}
    run_variant(run, name)
    assert {p: p.stat().st_mtime_ns for p in stages} == stages


def test_an_unknown_variant_names_those_there_are(run: RunFolder) -> None:
    with pytest.raises(InvalidInput, match="two-stage"):
        run_variant(run, "no-such")


def test_a_frozen_bundle_gets_drafts_and_keeps_its_own(run: RunFolder, tmp_path: Path) -> None:
    """What the target alone learned from is not drawn again, and tables are those of its draft."""
    again = replace(run, root=tmp_path)
    share_pictures(run, again, "train", "held_out")
    steps.adopt(again, run.bundle, is_frozen=True)
    assert (run.num_pictures, run.num_counted) == (24, 16)
    assert (again.num_pictures, again.num_counted) == (12 + 8, 0)
    run_eagle(again)
    assert fingerprint(again.bundle / "cloud") == fingerprint(run.bundle / "cloud")
    tables = [read_weights(r.bundle / "eagle")[ENTRIES] for r in (run, again)]
    assert torch.equal(*tables)
    assert bool((tables[0] != -1).any())
    assert not again.adopted.exists()


def test_a_draft_of_another_shape_has_its_pictures_counted(run: RunFolder, tmp_path: Path) -> None:
    again = replace(run, root=tmp_path)
    steps.adopt(again, run.bundle, is_frozen=True)
    smaller = replace(run.size.draft.shape.neighbours, ngram_slots=1024)
    draft = replace(run.size.draft, shape=replace(run.size.draft.shape, neighbours=smaller))
    assert replace(again, size=replace(run.size, draft=draft)).num_counted == 16


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def weights(folder: str, stops: list[int]) -> torch.Tensor:
        for stop in stops:
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 4)

            def step(number: int, model: torch.nn.Linear = model) -> tuple[Tensor, Metrics]:
                x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
                return (model(x) - x.flip(1)).square().mean(), {}

            plan = TrainingPlan(steps=10, batch_size=8, lr=1e-2, save_every=stop, ema=0.9)
            silent = Run(tmp_path / folder, world=CPU, show=lambda _: None)
            if stop == 10:
                train(model, step, plan=plan, run=silent)
                return model.weight.detach()

            def stopping(number: int, stop: int = stop) -> tuple[Tensor, Metrics]:
                if number == stop:
                    raise KeyboardInterrupt
                return step(number)

            with pytest.raises(KeyboardInterrupt):
                train(model, stopping, plan=plan, run=silent)
        raise AssertionError("the last stop is the end")

    assert torch.equal(weights("through", [10]), weights("stopped", [4, 10]))


def test_batches_in_parts_take_the_same_steps(tmp_path: Path) -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    ends = []
    for accumulate in (1, 3):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        plan = TrainingPlan(steps=4, batch_size=6, accumulate=accumulate, lr=0.1, warmup_steps=1)

        def step(
            number: int, model: torch.nn.Linear = model, plan: TrainingPlan = plan
        ) -> tuple[Tensor, Metrics]:
            picked = batch_indices(number, count=12, batch_size=plan.part_size, world=CPU, seed=0)
            return model(x[picked]).square().mean(), {}

        train(model, step, plan=plan, run=Run(tmp_path / str(accumulate), world=CPU))
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends)


def test_batches_are_permutations_shared_by_processes() -> None:
    worlds = [World(rank, 2, torch.device("cpu")) for rank in range(2)]
    seen = [
        index
        for step in range(5)
        for world in worlds
        for index in batch_indices(step, count=20, batch_size=4, world=world, seed=1).tolist()
    ]
    assert sorted(seen) == list(range(20))


def test_auroc_by_hand() -> None:
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8])
    labels = torch.tensor([0, 0, 1, 1])
    assert auroc(scores, labels) == pytest.approx(0.75)
    assert auroc(torch.zeros(4), labels) == pytest.approx(0.5)


def test_the_published_pair_shrinks_the_radius_and_the_interval_score_does_not() -> None:
    """At a centre that misses p_C, Inter-DRO pulls the radius down, the interval score up."""
    torch.manual_seed(0)
    p = torch.randn(1, 64, 50).softmax(-1)
    centre = (p.log() + 0.8 * torch.randn_like(p)).detach()
    slopes = []
    for loss in ("inter-dro", "interval-score"):
        radius = torch.full_like(p, 0.1).requires_grad_()
        interval = interfuse(centre, radius)
        if loss == "inter-dro":
            value, _ = inter_dro_loss(p, interval, InterDroWeights(l1=0.0))
        else:
            value = interval_score(p, interval, miss_rate=0.2).mean()
        (grad,) = torch.autograd.grad(value, radius)
        slopes.append(float(grad.mean()))
    assert slopes[0] > 0 > slopes[1]


@pytest.mark.parametrize("name", size_names())
def test_sizes_that_come_with_the_package_are_consistent(name: str) -> None:
    size = load_size(name)
    assert isinstance(size, Size)
    assert size.transformer.num_tokens == 256


def test_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="mini-cpu"):
        load_size("huge")


def test_a_size_may_say_only_what_differs_from_another(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text('like = "mini"\n[draft.centre]\nsteps = 7\n')
    whole, short = load_size("mini"), load_size(path)
    assert short.draft.centre == replace(whole.draft.centre, steps=7)
    assert replace(short, draft=whole.draft) == whole


def test_a_size_like_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f'like = "{path}"\n')
    with pytest.raises(InvalidInput, match=r"own\.toml"):
        load_size(path)
