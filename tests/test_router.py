"""Routers repeat themselves; thresholds keep their promise for any sequence of scores."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ciar.errors import InvalidInput
from ciar.router import ROUTERS, make_router
from ciar.sampling import gumbel_noise
from ciar.threshold import NUM_QUANTILES, STEP_SIZE, DynamicThreshold, StaticThreshold
from tests.tiny import random_head

UNIFORM = [i / 100 for i in range(NUM_QUANTILES)]


def test_random_has_a_stream_of_its_own() -> None:
    head = random_head()
    first, again, other = (make_router("random", seed=seed) for seed in (1, 1, 2))
    scores = [first.decide(position, head)[0] for position in range(2000)]
    assert scores == [again.decide(position, head)[0] for position in range(2000)]
    assert scores[0] != other.decide(0, head)[0]
    assert sum(scores) / 2000 == pytest.approx(0.5, abs=0.03)
    assert min(scores) >= 0 and max(scores) < 1
    noise = torch.stack([gumbel_noise(1, position, 1) for position in range(2000)])[:, 0]
    both = torch.stack([torch.tensor(scores), noise])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_spaced_tokens_lie_evenly(seed: int, share: float) -> None:
    """Random ones leave gaps several times as long."""
    router = make_router("spaced", seed=seed, threshold=1 - share)
    asked = [position for position in range(1000) if router.decide(position, random_head())[1]]
    assert len(asked) == pytest.approx(1000 * share, abs=4)
    gaps = {b - a for a, b in zip(asked, asked[1:], strict=False)}
    assert len(gaps) <= 3
    assert max(gaps) <= 2 / share


def test_spaced_tokens_are_others_for_another_seed() -> None:
    scores = {make_router("spaced", seed=seed).decide(0, random_head())[0] for seed in range(20)}
    assert len(scores) == 20


@pytest.mark.parametrize(("name", "expected"), [("always", True), ("never", False)])
def test_constant_routers(name: str, expected: bool) -> None:
    router = make_router(name)
    assert [router.decide(i, random_head())[1] for i in range(5)] == [expected] * 5


def test_static_threshold() -> None:
    threshold = StaticThreshold(0.5)
    assert [threshold.exceeded(s) for s in (0.4, 0.5, 0.6)] == [False, False, True]


def test_answers_that_came_for_free_are_not_counted() -> None:
    """Every second uncertain token is answered by the call before: all calls go to the others."""
    num_asked, is_bonus, count = 0, False, 4000
    threshold, rng = DynamicThreshold(0.3, UNIFORM, num_scores=count), random.Random(0)
    for _ in range(count):
        if threshold.exceeded(rng.random()):
            if is_bonus:
                threshold.refund()
            else:
                num_asked += 1
            is_bonus = not is_bonus
        else:
            is_bonus = False
    assert abs(num_asked / count - 0.3) < 0.01


@pytest.mark.parametrize(
    ("budget", "spent", "left"),
    [
        (0.0, 0.06, 0.0),
        (0.05, 0.06, 0.0),
        (0.3, 15 / 256, 61.8 / 241),
        (1.0, 0.06, 1.0),
        (0.5, 1.0, 0.0),
    ],
)
def test_the_prefix_is_part_of_the_budget(budget: float, spent: float, left: float) -> None:
    threshold = DynamicThreshold(budget, UNIFORM, num_scores=241, spent=spent)
    assert threshold.budget == pytest.approx(left)
    router = make_router("random", budget=budget, prefix_rate=spent)
    share = sum(router.decide(i, random_head(8))[1] for i in range(2000)) / 2000
    assert share == pytest.approx(left, abs=0.02)


def adversary(kind: str, threshold: DynamicThreshold, rng: random.Random) -> float:
    if kind == "constant":
        return 0.7
    if kind == "extreme":
        return rng.choice([-1e30, 0.0, 1.0, 1e30])
    if kind == "against":  # always just on the side that costs most
        return threshold.tau + (1e-9 if threshold.tau > 1 - threshold.budget else -1e-9)
    if kind == "with":
        return 2.0 if rng.random() < 0.5 else -1.0
    return rng.random() ** 4


@pytest.mark.parametrize("kind", ["constant", "extreme", "against", "with", "skewed"])
@pytest.mark.parametrize("budget", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("quantiles", [UNIFORM, None])
def test_the_share_of_uncertain_tokens_tracks_the_budget(
    kind: str, budget: float, quantiles: list[float] | None
) -> None:
    threshold = DynamicThreshold(budget, quantiles, num_scores=1500)
    rng, num_uncertain = random.Random(0), 0
    for n in range(1, 1501):
        num_uncertain += threshold.exceeded(adversary(kind, threshold, rng))
        bound = (1 + STEP_SIZE) / (STEP_SIZE * n)
        assert abs(num_uncertain / n - budget) <= bound + 1e-9
    assert abs(num_uncertain - 1500 * budget) <= 1 + 1e-9


RANKS = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=120)


@settings(max_examples=300, deadline=None)
@given(RANKS, st.floats(0, 1), st.floats(0.005, 1))
def test_whatever_the_scores_a_budget_is_met_within_one_call(
    scores: list[float], budget: float, step_size: float
) -> None:
    threshold = DynamicThreshold(budget, UNIFORM, num_scores=len(scores), step_size=step_size)
    num_asked = sum(threshold.exceeded(score) for score in scores)
    assert abs(num_asked - budget * len(scores)) <= 1 + 1e-6


@settings(max_examples=300, deadline=None)
@given(RANKS, st.floats(0, 1), st.data())
def test_whatever_comes_for_free_a_budget_is_exceeded_by_one_call_at_most(
    scores: list[float], budget: float, data: st.DataObject
) -> None:
    threshold = DynamicThreshold(budget, UNIFORM, num_scores=len(scores))
    num_asked = 0
    for score in scores:
        if threshold.exceeded(score):
            if data.draw(st.booleans()):
                threshold.refund()
            else:
                num_asked += 1
    assert num_asked <= budget * len(scores) + 1 + 1e-6


@settings(max_examples=200, deadline=None)
@given(RANKS, RANKS, RANKS, st.sampled_from([UNIFORM, None]))
def test_what_was_decided_since_a_mark_leaves_no_trace(
    before: list[float], void: list[float], after: list[float], quantiles: list[float] | None
) -> None:
    once, twice = (DynamicThreshold(0.3, quantiles, num_scores=150) for _ in range(2))
    for threshold in (once, twice):
        for score in before:
            if threshold.exceeded(score) and score > 0.9:
                threshold.refund()
    mark = twice.mark()
    for score in void:
        if twice.exceeded(score):
            twice.refund()
    twice.restore(mark)
    for score in after:
        assert once.tau == twice.tau
        assert once.exceeded(score) == twice.exceeded(score)


def test_the_last_row_is_neither_starved_nor_flooded() -> None:
    """Of images of many kinds, whose scores lie higher or lower than those of the calibration."""
    rng, last, asked = random.Random(0), 0, 0
    for _ in range(200):
        threshold, power = DynamicThreshold(0.3, UNIFORM, num_scores=241), 2 ** rng.uniform(-2, 2)
        flags = [threshold.exceeded(rng.random() ** power) for _ in range(241)]
        last, asked = last + sum(flags[-16:]), asked + sum(flags)
    assert last / (200 * 16) == pytest.approx(asked / (200 * 241), abs=0.1)


@pytest.mark.parametrize("budget", [0.1, 0.3, 0.5])
def test_a_calibrated_threshold_is_right_from_the_first_image(budget: float) -> None:
    """Within three points of the budget, and two of three chosen are of the top."""
    threshold = DynamicThreshold(budget, [q**3 for q in UNIFORM], num_scores=256)
    rng = random.Random(1)
    ranks = [rng.random() for _ in range(256)]
    flags = [threshold.exceeded(rank**3) for rank in ranks]
    assert sum(flags) / 256 == pytest.approx(budget, abs=0.03)
    chosen = [rank for rank, flag in zip(ranks, flags, strict=True) if flag]
    assert sum(rank > 1 - budget for rank in chosen) / len(chosen) > 2 / 3


def test_what_nobody_chose_is_the_usual_threshold() -> None:
    """Or a budget, where the score has no quantiles."""
    quantiles = [i / 10 for i in range(101)]
    rule = make_router("entropy", calibration={"entropy": quantiles}).threshold
    assert isinstance(rule, StaticThreshold) and rule.tau == 7.0
    for router in (
        make_router("entropy"),
        make_router("entropy", budget=0.3, calibration={"entropy": quantiles}),
    ):
        assert isinstance(router.threshold, DynamicThreshold)
        assert router.threshold.budget == 0.3


@pytest.mark.parametrize(("budget", "expected"), [(0.0, False), (1.0, True)])
def test_the_ends_of_the_budget_are_exact(budget: float, expected: bool) -> None:
    threshold = DynamicThreshold(budget, UNIFORM, num_scores=5)
    assert {threshold.exceeded(s) for s in (-1e9, 0.0, 0.5, 1.0, 1e9)} == {expected}


def test_ranks_of_ties_and_of_scores_out_of_range() -> None:
    """tau moves little here, so a flag tells on which side of 0.5 a score's rank is."""
    quantiles = [0.0] * 41 + [1.0] * 60  # 40 % zeros, the rest ones

    def flag(budget: float, score: float) -> bool:
        return DynamicThreshold(budget, quantiles, num_scores=100).exceeded(score)

    flags = [flag(0.5, score) for score in (-1.0, 0.0, 0.99, 1.0, 2.0)]
    assert flags == [False, False, False, True, True]
    assert [flag(0.9, score) for score in (-1.0, 0.0)] == [False, True]


def test_routers_without_calibration_rank_what_they_saw() -> None:
    router = make_router("entropy", budget=0.5)
    flags = [router.threshold.exceeded(float(score)) for score in (5, 1, 2, 9, 8, 0)]
    assert flags == [False, False, True, True, True, False]


@pytest.mark.parametrize("name", [n for n in ROUTERS if n not in ("always", "never")])
def test_every_router_keeps_a_budget_and_repeats_itself(name: str) -> None:
    heads = [random_head(400, seed=seed, scale=1 + seed % 4) for seed in range(80)]

    def decisions() -> list[tuple[float, bool]]:
        router = make_router(name, budget=0.4, seed=5)
        return [router.decide(position, head) for position, head in enumerate(heads)]

    found = decisions()
    assert found == decisions()
    assert len({score for score, _ in found}) > 20
    assert 0.15 < sum(flag for _, flag in found) / 80 < 0.65


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("confidence", {}, "router"),
        ("interval", {"budget": -0.1}, "budget"),
        ("interval", {"budget": 1.1}, "budget"),
        ("interval", {"budget": math.nan}, "budget"),
        ("interval", {"budget": 0.3, "threshold": 0.3}, "threshold"),
        ("interval", {"threshold": math.nan}, "threshold"),
        ("interval", {"calibration": {"interval": [0.0, 1.0]}}, "calibration"),
        ("interval", {"calibration": {"interval": UNIFORM[::-1]}}, "calibration"),
        ("always", {"budget": 0.3}, "router"),
        ("never", {"threshold": 0.3}, "router"),
    ],
)
def test_bad_settings_name_the_field(name: str, options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_router(name, **options)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_an_unknown_router_lists_the_known() -> None:
    with pytest.raises(InvalidInput, match=r"interval, .*softmax-corr-window.*never"):
        make_router("confidence")
