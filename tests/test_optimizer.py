"""Which weights are stepped by what, and where layers run in bfloat16."""

import pytest
import torch
from torch import nn

from ciar_train import precision
from ciar_train.optimizer import MuonWithAdamW, optimizer_for
from ciar_train.plan import TrainingPlan

CPU = torch.device("cpu")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def plan(*, muon_lr: float = 0.0) -> TrainingPlan:
    return TrainingPlan(steps=10, batch_size=1, lr=1e-2, muon_lr=muon_lr)


def test_muon_takes_the_matrices_of_layers_and_adamw_the_rest() -> None:
    model = Model()
    optimizer = optimizer_for(model, plan(muon_lr=4e-2), device=CPU)
    assert isinstance(optimizer, MuonWithAdamW)
    muon, adamw = ([p for g in part.param_groups for p in g["params"]] for part in optimizer.parts)
    assert [id(p) for p in muon] == [id(model.layers[0].weight)]
    assert {id(p) for p in adamw} == {
        id(p) for p in (model.layers[0].bias, model.head.weight, model.head.bias)
    }
    assert [g["lr_scale"] for g in optimizer.parts[0].param_groups] == [4.0]


def test_without_a_rate_for_muon_adamw_decays_matrices_only() -> None:
    model = Model()
    groups = optimizer_for(model, plan(), device=CPU).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(model.layers[0].weight), id(model.head.weight)}


@pytest.mark.parametrize(("share", "expected"), [(0.25, torch.bfloat16), (1.5, torch.float32)])
def test_a_cpu_uses_bfloat16_where_its_products_are_faster(
    monkeypatch: pytest.MonkeyPatch, share: float, expected: torch.dtype
) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: share}
    monkeypatch.setattr(precision, "product_seconds", lambda dtype: seconds[dtype])
    precision.has_fast_bfloat16.cache_clear()
    try:
        with precision.mixed_precision(CPU):
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == expected
    finally:
        precision.has_fast_bfloat16.cache_clear()


def test_a_product_takes_its_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = [0, 5, 10, 13, 20, 24, 30, 32, 40, 47]  # each product's start and end
    assert len(readings) == 2 * precision.REPEATS
    clock = iter(readings)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert precision.product_seconds(torch.float32) == 2
