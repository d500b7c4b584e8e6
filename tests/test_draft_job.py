"""Drafts in training: what stays between runs, however they end, and plans that give nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ciar.checkpoint import fingerprint
from ciar.errors import InvalidInput
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_train import draft_step, target_draft
from ciar_train.contexts import Contexts
from ciar_train.draft import DraftPlan
from ciar_train.draft_job import CLOUD_IMAGES, DraftJob
from ciar_train.draft_step import TARGET_FILE, begin, finish, write_targets
from ciar_train.plan import TrainingPlan
from ciar_train.plans import EdgePlan
from ciar_train.run_folder import RunFolder
from ciar_train.target_draft import INJECTION, TargetDraft
from tests.test_training import CPU, quiet
from tests.tiny import write_bundle

STAGE = TrainingPlan(steps=1, batch_size=1, lr=0.1)
PLAN = DraftPlan(centre=STAGE, radius=STAGE, phi=STAGE)


def job(folder: Path, plan: DraftPlan = PLAN) -> DraftJob:
    """One that has a folder and a plan, and no models."""
    nothing = cast(Any, None)
    return DraftJob(
        target=nothing,
        train=nothing,
        held_out=nothing,
        plan=plan,
        head=nothing,
        sampling=SamplingParams(),
        folder=folder,
        world=CPU,
        progress=quiet,
    )


class Drawing:
    """Images by number, and how often they were drawn."""

    def __init__(self) -> None:
        self.times = 0

    def once(self, folder: Path, counts: list[int], *, first_seed: int = 7) -> list[int]:
        def draw() -> Contexts:
            self.times += 1
            return Contexts(tokens=torch.arange(sum(counts))[:, None] + first_seed, conditions=[])

        own = job(folder)
        tokens = own._drawn_once(CLOUD_IMAGES, draw, first_seed=first_seed, counts=counts)
        found: list[int] = tokens[:, 0].tolist()
        return found


def test_images_are_drawn_once(tmp_path: Path) -> None:
    drawing = Drawing()
    for _ in range(3):
        assert drawing.once(tmp_path / "draft", [4, 2]) == [7, 8, 9, 10, 11, 12]
    assert drawing.times == 1
    assert [path.name for path in (tmp_path / "draft").iterdir()] == [CLOUD_IMAGES]


@pytest.mark.parametrize("counts", [[3, 2], [5, 2], [4, 3], [5, 1]])
def test_other_images_are_drawn_for_other_prompts(counts: list[int], tmp_path: Path) -> None:
    """Else tokens would be taken for those of other prompts, held-out ones for some to train on."""
    drawing = Drawing()
    drawing.once(tmp_path, [4, 2])
    assert len(drawing.once(tmp_path, counts)) == sum(counts)
    assert drawing.times == 2
    drawing.once(tmp_path, counts, first_seed=8)
    assert drawing.times == 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_damaged_images_are_drawn_again(share: float, tmp_path: Path) -> None:
    drawing, path = Drawing(), tmp_path / CLOUD_IMAGES
    whole = drawing.once(tmp_path, [4, 2])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert drawing.once(tmp_path, [4, 2]) == whole
    assert drawing.times == 2


def test_images_of_before_their_numbers_were_kept_are_used(tmp_path: Path) -> None:
    drawing = Drawing()
    torch.save({"tokens": torch.arange(6)[:, None]}, tmp_path / CLOUD_IMAGES)
    assert drawing.once(tmp_path, [4, 2]) == [0, 1, 2, 3, 4, 5]
    assert drawing.once(tmp_path, [4, 3])[0] == 7
    assert drawing.times == 1


def test_an_interruption_leaves_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", save)
        Drawing().once(tmp_path, [4, 2])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["num_rollouts", "num_drawn", "num_calibration"])
def test_a_plan_without_images_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"{name}: 0: give at least 1"):
        job(tmp_path, replace(PLAN, **cast(Any, {name: 0})))


# Two fingerprints of one target


class Killed(Exception):
    pass


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """With a target, and the stages of a draft for it."""
    write_bundle(tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle" / "edge")
    found = RunFolder(root=tmp_path, size=cast(Any, None), world=CPU, progress=quiet)
    begin(found, tmp_path / "draft")
    (tmp_path / "draft" / "state").touch()
    return found


def export(run: RunFolder) -> None:
    """As after training: the target with its half of phi, then the calibration, then the edge."""
    target = TargetModel.load(run.bundle / "cloud")
    with torch.no_grad():
        target.injection.weight.add_(1)
    trained: Any = SimpleNamespace(target=target, draft=None)
    own = SimpleNamespace(folder=run.root / "draft", sampling=SamplingParams(), calibration=killed)
    finish(run, cast(Any, own), trained, trained_for=begin(run, own.folder))


@pytest.mark.parametrize("step", ["write_targets", "replace_folder", "the calibration"])
def test_a_draft_outlives_an_interrupted_export_of_its_target(
    step: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(run.bundle / "cloud")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if step != "the calibration":
            patch.setattr(draft_step, step, killed)
        export(run)
    current = fingerprint(run.bundle / "cloud")
    assert (current == before) == (step != "the calibration")
    assert begin(run, run.root / "draft") == current
    assert (run.root / "draft" / "state").exists()


def test_a_draft_of_another_target_goes_at_once(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of it, without its stamp, would pass for that of the new target."""
    write_targets(run.root / "draft", {"another"})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        real = shutil.rmtree

        def rmtree(folder: Path, **options: Any) -> None:
            (folder / TARGET_FILE).unlink(missing_ok=True)
            return real(folder, **options) if options else killed()

        patch.setattr(shutil, "rmtree", rmtree)
        begin(run, run.root / "draft")
    begin(run, run.root / "draft")
    assert [path.name for path in (run.root / "draft").iterdir()] == [TARGET_FILE]
    assert "the target has changed" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["write_targets", "export_draft"])
@pytest.mark.parametrize("place", ["in place", "beside"])
def test_a_target_of_others_stays_known_to_its_run(
    place: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_bundle(tmp_path / "model")
    own = TargetDraft(
        model=model,
        data=tmp_path,
        plan=EdgePlan(draft=PLAN),
        run=tmp_path / "run",
        out=model if place == "in place" else tmp_path / "pair",
        world=CPU,
        progress=quiet,
    )
    own._claim()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target_draft, step, killed)
        own._write(cast(Any, None), {INJECTION: torch.ones(32, 8)}, {})
    own._claim()
    known = json.loads((own.run / TARGET_FILE).read_text())
    assert fingerprint(own.out / "cloud") in known
    assert len(known) == (1 if step == "write_targets" else 2)
    names = {path.name for path in (own.out / "cloud").iterdir()}
    assert names - {"phi.safetensors"} == {"config.json", "model.safetensors"}
    assert not list(own.out.glob(".ciar-*"))


def test_pictures_held_out_are_some(tmp_path: Path) -> None:
    own = TargetDraft(
        model=tmp_path,
        data=tmp_path,
        plan=EdgePlan(draft=PLAN, held_out=0),
        run=tmp_path,
        out=tmp_path,
        world=CPU,
        progress=quiet,
    )
    with pytest.raises(InvalidInput, match="held_out: 0: give"):
        own.train()
