"""Thresholds on a score: static, or dynamic to keep the share of uncertain tokens at a budget."""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from typing import Protocol

from ciar.errors import InvalidInput

NUM_QUANTILES = 101  # of a calibration: 0, 1, ..., 100 percent
STEP_SIZE = 0.03  # of the dynamic threshold: it forgets in about 1 / STEP_SIZE tokens


class Threshold(Protocol):
    def exceeded(self, score: float) -> bool:
        """Whether this token is uncertain. Call once a token, as they are drawn."""
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

        uncertain = s > tau,     tau = 1 - budget + gain (asked - budget * decided)
        gain = max(step_size, 1 / left)

    asked and decided count tokens so far, left those to come. While many are to come this is a
    running quantile, tau <- tau + step_size (asked - budget). Over the last 1 / step_size tokens it
    is a token bucket, tau = 1 - (calls left) / (tokens left), which is empty at the end.

    An uncertain token is asked, unless its answer came with the one before (`refund`). For *any*
    scores at most one token more than the budget is asked, and at most one less where all that are
    uncertain are asked; after n of them the share is within (1 + step_size) / (step_size n).
    Budgets 0 and 1 are exact.

    num_scores: tokens that will have a score. Behind them the bucket goes on.
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
        num_scores: int,
        spent: float = 0.0,
        step_size: float = STEP_SIZE,
    ) -> None:
        if not 0 <= budget <= 1:
            raise InvalidInput("budget", budget, "give a share from 0 (never ask) to 1 (always)")
        self.budget = max(0.0, (budget - spent) / (1 - spent)) if spent < 1 else 0.0
        self._num_scores, self._step_size = num_scores, step_size
        self._num_asked = self._num_decided = 0
        self._seen = RunningRank()
        self._rank = self._seen if quantiles is None else calibrated_rank(quantiles)

    @property
    def tau(self) -> float:
        left = max(1, self._num_scores - self._num_decided)
        gain = max(self._step_size, 1 / left)
        return 1 - self.budget + gain * (self._num_asked - self.budget * self._num_decided)

    def exceeded(self, score: float) -> bool:
        assert not math.isnan(score), "a score is a number"
        if self.budget in (0, 1):
            return self.budget == 1
        is_uncertain = self._rank(score) > self.tau
        self._num_asked += is_uncertain
        self._num_decided += 1
        return is_uncertain

    def refund(self) -> None:
        self._num_asked -= 1

    def mark(self) -> object:
        return self._num_asked, self._num_decided, len(self._seen)

    def restore(self, mark: object) -> None:
        assert isinstance(mark, tuple), "what mark() gave"
        self._num_asked, self._num_decided, num_seen = mark
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
