"""The mean loss keeps to the risk whatever the images are like."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciar.errors import InvalidInput
from ciar.risk_tracker import STEP_SIZE, RiskTracker
from ciar_edge.result import Origin
from tests.test_loop import Pair, Run, decode, pair, router_for

__all__ = ["pair"]  # the fixture
LINE = [i / 100 for i in range(101)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=80),
    st.floats(0.01, 0.5),
    st.floats(0, 1),
)
def test_any_losses_keep_to_the_risk(losses: list[float], risk: float, start: float) -> None:
    """As long as nothing is lost where all is asked for."""
    tracker, total = RiskTracker(risk, LINE, start=start), 0.0
    for loss in losses:
        paid = 0.0 if tracker.tau == -math.inf else loss
        total += paid
        tracker.learn(paid)
    bound = risk + (1 + STEP_SIZE) / (STEP_SIZE * len(losses))
    assert total / len(losses) <= bound + 1e-9


def test_it_finds_the_threshold_of_a_steady_world() -> None:
    """Kept tokens of rank s differ with probability s^3: a share tau^3 / 4 of those below tau."""
    tracker = RiskTracker(0.02, LINE, start=1.0)
    for _ in range(2000):
        tracker.learn(max(0.0, tracker.tau) ** 3 / 4)
    assert tracker.tau == pytest.approx(0.08 ** (1 / 3), abs=0.01)


def test_ranks_are_read_off_the_quantiles() -> None:
    tracker = RiskTracker(0.1, [10 * q * q for q in LINE], start=0.705)
    assert tracker.tau == pytest.approx((10 * 0.7**2 + 10 * 0.71**2) / 2)
    assert RiskTracker(0.1, LINE, start=1.0).tau == 1.0
    for values in ({"risk": 0.0}, {"risk": math.nan}, {"start": 1.5}):
        given: dict[str, Any] = {"risk": 0.1, "quantiles": LINE} | values
        with pytest.raises(InvalidInput):
            RiskTracker(**given)


def test_an_image_tells_what_it_lost(pair: Pair, run: Run) -> None:
    router = router_for(pair, threshold=pair.model.calibration["interval"][60])
    options: Any = {"router": router, "mode": "optimistic"}
    found = run(decode(pair, max_gap=1.0, **options))
    kept = [g for g, o in zip(found.gaps, found.origins, strict=True) if o is Origin.KEPT]
    wrong = sum(gap > 0 for gap in kept)
    assert found.loss == (wrong + found.late) / (len(kept) + found.late) > 0
    assert math.isnan(run(decode(pair, **options)).loss), "nobody looked"
