"""Where a training step runs and goes on: devices, waiting, and checkpoints that do not fit."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ciar.errors import InvalidInput
from ciar.models.inter_head import InterHeadConfig
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_train.contexts import Contexts
from ciar_train.draft import DraftPlan, DraftShape, DraftTrainer
from ciar_train.eagle import EaglePlan, train_eagle
from ciar_train.loop import STATE_FILE, Metrics, Run, World, train
from ciar_train.plan import TrainingPlan
from ciar_train.tokenizer import TokenizerLoss, train_tokenizer
from tests.test_train_tokenizer import CONFIG, scene_folder
from tests.tiny import MAX_TEXT_TOKENS, TEXT_DIM, write_bundle

CPU = World(0, 1, torch.device("cpu"))
PLAN = TrainingPlan(steps=4, batch_size=4, lr=1e-2, warmup_steps=1, save_every=2)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    return TargetModel.load(write_bundle(tmp_path_factory.mktemp("bundle")) / "cloud")


def contexts(target: TargetModel) -> Contexts:
    generator, count = torch.Generator().manual_seed(0), 12
    shape = (count, target.config.num_tokens)
    rows = torch.randn(count, MAX_TEXT_TOKENS, TEXT_DIM, generator=generator)
    tokens = torch.randint(target.config.vocab_size, shape, generator=generator)
    return Contexts(tokens=tokens, conditions=list(rows))


def draft_stage(name: str, target: TargetModel, folder: Path) -> nn.Module:
    head = InterHeadConfig(radius_width=4, feature_dim=target.feature_dim)
    plan = DraftPlan(centre=PLAN, radius=PLAN, phi=PLAN)
    trainer = DraftTrainer(target, head, plan, sampling=SamplingParams(), world=CPU)
    if name == "phi":
        trainer.train_phi(contexts(target), folder)
    else:
        trainer.train_centre(contexts(target), contexts(target), folder)
    return trainer.draft


def eagle(target: TargetModel, folder: Path) -> nn.Module:
    plan = EaglePlan(steps=4, batch_size=4, lr=1e-2, warmup_steps=1, save_every=2)
    seen = contexts(target)
    return train_eagle(
        target, plan, DraftShape(), contexts=seen, held_out=seen, run_folder=folder, world=CPU
    )


def tokenizer(folder: Path) -> nn.Module:
    pictures = scene_folder(folder / "scenes")
    loss = TokenizerLoss(dead_below=2.0)  # so that codes move in every step
    return train_tokenizer(
        CONFIG, PLAN, loss, data=pictures, held_out=pictures, run_folder=folder, world=CPU
    )


STEPS: dict[str, Callable[[TargetModel, Path], nn.Module]] = {
    "centre": lambda target, folder: draft_stage("centre", target, folder),
    "phi": lambda target, folder: draft_stage("phi", target, folder),
    "eagle": eagle,
    "tokenizer": lambda _, folder: tokenizer(folder),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_stopped_step_draws_the_random_numbers_it_would_have_drawn(
    name: str, target: TargetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = STEPS[name](target, tmp_path / "through").state_dict()
    save = Run.save

    def stopping(run: Run, state: dict[str, Any]) -> None:
        save(run, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", stopping)
        STEPS[name](target, tmp_path / "stopped")
    stopped = STEPS[name](target, tmp_path / "stopped").state_dict()
    assert all(torch.equal(weight, stopped[n]) for n, weight in through.items())


def test_devices_that_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match="device: 'gpu': give cpu or cuda"):
        World.start("gpu")
    with pytest.raises(InvalidInput, match="device: 'cuda': there is no GPU"):
        World.start("cuda")
    assert World.start().device == torch.device("cpu")


def test_processes_wait_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first draws scenes or encodes them."""
    started: list[tuple[str, timedelta]] = []

    def start(backend: str, *, timeout: timedelta) -> None:
        started.append((backend, timeout))

    monkeypatch.setattr(dist, "init_process_group", start)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert World.start("cpu").size == 2
    assert started == [("gloo", timedelta(hours=12))]


class Small(nn.Module):
    """With a matrix that Muon takes, if the plan has it."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, width)])


def train_small(folder: Path, plan: TrainingPlan, model: nn.Module) -> None:
    def step(_: int) -> tuple[Tensor, Metrics]:
        return torch.stack([p.square().sum() for p in model.parameters()]).sum(), {}

    train(model, step, plan=plan, run=Run(folder, world=CPU, show=lambda _: None))


@pytest.mark.parametrize("case", ["size", "ema", "muon", "adamw"])
def test_a_checkpoint_of_another_size_is_named(case: str, tmp_path: Path) -> None:
    muon = replace(PLAN, muon_lr=1e-2)
    first, second, width = {
        "size": (PLAN, PLAN, 5),
        "ema": (PLAN, replace(PLAN, ema=0.9), 4),
        "muon": (PLAN, muon, 4),
        "adamw": (muon, PLAN, 4),
    }[case]
    train_small(tmp_path, first, Small())
    train_small(tmp_path, first, Small())
    with pytest.raises(InvalidInput, match=f"run: '{tmp_path}': .* another size or plan"):
        train_small(tmp_path, second, Small(width))


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5])
def test_a_damaged_checkpoint_is_named(kept: float, tmp_path: Path) -> None:
    train_small(tmp_path, PLAN, Small())
    path = tmp_path / STATE_FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InvalidInput, match=rf"run: '{tmp_path}': {STATE_FILE} is damaged"):
        train_small(tmp_path, PLAN, Small())
