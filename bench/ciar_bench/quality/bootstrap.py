"""How sure a number is: percentile bootstrap over pictures, seeded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Of a statistic of picture indices [count], drawn anew with replacement each time.

    Two methods at the same pictures and the same `seed` see the same indices, so that differences
    of theirs are paired.
    """
    if count < 2:
        raise ValueError(f"pictures: {count}: give at least 2")
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(count, size=count)) for _ in range(num_resamples)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(np.arange(count))), float(low), float(high))


def mean_estimate(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Of the mean of one number a picture, [count]."""
    values = np.asarray(values, dtype=np.float64)
    return bootstrap(lambda picked: float(values[picked].mean()), len(values), seed=seed)


def paired_difference(values: np.ndarray, others: np.ndarray, *, seed: int = 0) -> Estimate:
    """Of the mean of values - others, [count] each, at the same seeds and captions."""
    if values.shape != others.shape:
        raise ValueError(f"others: {others.shape}: give as many as values, {values.shape}")
    return mean_estimate(values - others, seed=seed)
