"""Which weights are stepped by what, and where layers run in bfloat16."""

import pytest
import torch
from torch import nn

from ciar_train import precision
from ciar_train.muon import Muon, orthogonal
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


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 8)])
@pytest.mark.parametrize("is_fast", [False, True])
def test_muon_takes_the_steps_of_the_librarys(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], is_fast: bool
) -> None:
    monkeypatch.setattr("ciar_train.muon.has_fast_bfloat16", lambda device_type: is_fast)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(3)]
    ends = []
    for is_ours in (True, False):
        weight = nn.Parameter(start.clone())
        optimizer: torch.optim.Optimizer = (
            Muon([weight], lr=1e-2, weight_decay=0.1)
            if is_ours
            else torch.optim.Muon(
                [weight], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
            )
        )
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach() - start)
    ours, theirs = ends
    # bfloat16 has 8 bits, and three steps of five iterations carry its rounding on
    assert (ours - theirs).norm() < (1e-6 if is_fast else 0.02) * theirs.norm()


def test_a_step_of_muon_in_float32_brings_the_singular_values_near_one() -> None:
    matrix = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))
    found = orthogonal(matrix[None], coefficients=(3.4445, -4.7750, 2.0315), steps=5, eps=1e-7)[0]
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.6 and values.max() < 1.3


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
