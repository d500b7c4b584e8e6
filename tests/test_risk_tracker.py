"""The mean loss keeps to the risk whatever the images are like."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciar.errors import InvalidInput
from ciar.risk_tracker import STEP_SIZE, RiskTracker
from ciar_edge.result import Origin
from ciar_edge.risk_file import RiskFile, RiskState
from tests.test_loop import Pair, Run, decode, pair, router_for

__all__ = ["pair"]  # the fixture
LINE = [i / 100 for i in range(101)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=80),
    st.floats(0.01, 0.5),
    st.floats(0, 1),
    st.integers(1, 6),
)
def test_any_losses_keep_to_the_risk(
    losses: list[float], risk: float, start: float, at_a_time: int
) -> None:
    """As long as nothing is lost where all is asked for."""
    tracker, total = RiskTracker(risk, LINE, start=start), 0.0
    for first in range(0, len(losses), at_a_time):
        asks_for_all = tracker.tau == -math.inf
        for loss in losses[first : first + at_a_time]:
            paid = 0.0 if asks_for_all else loss
            total += paid
            tracker.learn(paid)
    bound = risk + (1 + at_a_time * STEP_SIZE) / (STEP_SIZE * len(losses))
    assert total / len(losses) <= bound + 1e-9


def test_edges_that_lose_at_one_threshold_are_remembered_all(tmp_path: Path) -> None:
    """Several that began before any of them had learned anything."""
    path, at_work = tmp_path / "risk.json", []
    for _ in range(20):
        at_work.append(RiskFile(path, 0.1, draft="a", router="interval", quantiles=LINE))
    for edge in at_work:
        state = edge.learn(1.0)
    assert (state.num_images, state.lost) == (20, 20.0)
    assert state.rank == pytest.approx(0.7 - 20 * STEP_SIZE * (1 - 0.1))
    again = RiskFile(path, 0.1, draft="a", router="interval", quantiles=LINE)
    assert again.tau == -math.inf
    assert again.learn(0.0).rank == pytest.approx(state.rank + STEP_SIZE * 0.1)
    with pytest.raises(ValueError, match="rank"):
        RiskState(draft="a", router="interval", risk=0.1, rank=-STEP_SIZE, num_images=0)


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
