"""Thresholds on a score: static, or dynamic to keep the share of uncertain tokens at a budget."""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from typing import Protocol

from ciar.errors import InvalidInput

NUM_QUANTILES = 101  # of a calibration: 0, 1, ..., 100 percent
STEP_SIZE = 0.06  # of the dynamic threshold: it forgets in about 1 / STEP_SIZE tokens


class Threshold(Protocol):
    def exceeded(self, score: float) -> bool:
        """Whether this token is uncertain. Call once a token, in raster order."""
        ...

    def refund(self) -> None:
        """The last token was uncertain, and its answer was there without asking."""
        ...

    def mark(self) -> object:
        """What it knows now, for `restore`."""
        ...

    def restore(self, mark: object) -> None:
        """Forget the tokens since: they are drafted again."""
        ...


class StaticThreshold:
    """Uncertain when `score > tau`."""

    def __init__(self, tau: float) -> None:
        if math.isnan(tau):
            raise InvalidInput("threshold", tau, "give a number")
        self.tau = tau

    def exceeded(self, score: float) -> bool:
        return score > self.tau

    def refund(self) -> None:
        """Nothing is counted."""

    def mark(self) -> object:
        return None

    def restore(self, mark: object) -> None:
        """Nothing is remembered."""


class DynamicThreshold:
    """Keeps the share of asked tokens at a budget, on ranks s in [0, 1] instead of raw scores:

        uncertain = s > tau,     tau <- tau + step_size (asked - budget),     tau_0 = 1 - budget

    An uncertain token is asked, unless its answer came with the one before (`refund`). Where all
    are, tau cannot leave [-step_size, 1 + step_size], so for *any* n scores the share is within
    (1 + step_size) / (step_size n) of the budget. Budgets 0 and 1 are exact.

    spent: share of the image that was asked for before the first score (the prefix). The budget
        is one of the whole image, so less of it is left for the scores.
    quantiles: of the score on the edge's own rollouts, ascending, at 0, 1, ..., 100 percent.
        Without them a score is ranked among the ones seen before it, so the first few tokens of an
        image are routed almost blindly.
    """

    def __init__(
        self,
        budget: float,
        quantiles: Sequence[float] | None = None,
        *,
        spent: float = 0.0,
        step_size: float = STEP_SIZE,
    ) -> None:
        if not 0 <= budget <= 1:
            raise InvalidInput("budget", budget, "give a share from 0 (never ask) to 1 (always)")
        self.budget = max(0.0, (budget - spent) / (1 - spent)) if spent < 1 else 0.0
        self.tau = 1 - self.budget
        self._step_size = step_size
        self._seen = RunningRank()
        self._rank = self._seen if quantiles is None else calibrated_rank(quantiles)

    def exceeded(self, score: float) -> bool:
        assert not math.isnan(score), "a score is a number"
        if self.budget in (0, 1):
            return self.budget == 1
        is_uncertain = self._rank(score) > self.tau
        self.tau += self._step_size * (is_uncertain - self.budget)
        return is_uncertain

    def refund(self) -> None:
        self.tau -= self._step_size

    def mark(self) -> object:
        return self.tau, len(self._seen)

    def restore(self, mark: object) -> None:
        assert isinstance(mark, tuple), "what mark() gave"
        self.tau, num_seen = mark
        self._seen.forget(num_seen)


def calibrated_rank(quantiles: Sequence[float]) -> Callable[[float], float]:
    """The piecewise linear CDF through the quantiles; ties have their mean rank."""
    values = check_quantiles(quantiles)
    last = len(values) - 1

    def rank(score: float) -> float:
        low, high = bisect_left(values, score), bisect_right(values, score)
        if high > low:
            return (low + high - 1) / (2 * last)
        if low in (0, len(values)):
            return float(low > 0)
        return (low - 1 + (score - values[low - 1]) / (values[low] - values[low - 1])) / last

    return rank


class RunningRank:
    """The share of earlier scores below, counting ties half."""

    def __init__(self) -> None:
        self._sorted: list[float] = []
        self._scores: list[float] = []

    def __len__(self) -> int:
        return len(self._scores)

    def __call__(self, score: float) -> float:
        below = (bisect_left(self._sorted, score) + bisect_right(self._sorted, score)) / 2
        share = below / len(self._sorted) if self._sorted else 0.5
        insort(self._sorted, score)
        self._scores.append(score)
        return share

    def quantiles(self) -> list[float]:
        """Of what was seen, as a calibration has them."""
        last = len(self._sorted) - 1
        return [self._sorted[round(i * last / (NUM_QUANTILES - 1))] for i in range(NUM_QUANTILES)]

    def forget(self, count: int) -> None:
        """All but the first `count` scores."""
        for score in self._scores[count:]:
            del self._sorted[bisect_left(self._sorted, score)]
        del self._scores[count:]


def check_quantiles(quantiles: Sequence[float]) -> list[float]:
    """A calibration row as a list; raises `InvalidInput`."""
    values = [float(q) for q in quantiles]
    is_ascending = all(a <= b for a, b in zip(values, values[1:], strict=False))
    if len(values) != NUM_QUANTILES or not is_ascending or not all(map(math.isfinite, values)):
        raise InvalidInput(
            "calibration", values[:3], f"give {NUM_QUANTILES} finite ascending quantiles"
        )
    return values
