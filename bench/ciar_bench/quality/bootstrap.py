"""How sure a number is: it is computed again of other draws of the pictures, seeded.

    R resamples   n pictures

- A mean over pictures: of n pictures drawn with replacement (percentile bootstrap).
- A distance between sets: of random halves of the pictures, drawn without replacement. Pictures
  drawn twice would be each other's nearest neighbours and shrink the covariance. The spread of
  halves around their mean is that of the whole around its truth (the delete-half jackknife, Shao
  and Wu 1989); their mean is set to the value of the whole, which a small set biases less.

Two measurements of as many pictures with one `seed` saw the same draws, so that their replicates
can be compared one by one: what both owe to the choice of pictures cancels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 1000
NUM_HALVES = 200

Statistic = Callable[[np.ndarray], float]
"""Of picture indices [k]."""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, eq=False)
class Measurement:
    """A value, and what it was in each resample, [R]."""

    value: float
    replicates: np.ndarray

    def estimate(self, *, level: float = LEVEL) -> Estimate:
        low, high = np.quantile(self.replicates, [(1 - level) / 2, (1 + level) / 2])
        return Estimate(self.value, float(low), float(high))

    def minus(self, other: "Measurement") -> "Measurement":
        """The difference, replicate by replicate."""
        return Measurement(self.value - other.value, self.replicates - other.replicates)

    def over(self, other: "Measurement") -> "Measurement":
        """The ratio, replicate by replicate. NaN over zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.true_divide(self.replicates, other.replicates)
            value = np.true_divide(self.value, other.value)
        return Measurement(float(value), ratios)


def bootstrap(
    statistic: Statistic, count: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Measurement:
    """Of `count` pictures drawn anew with replacement each time."""
    check_count(count)
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(count, size=count)) for _ in range(num_resamples)]
    return Measurement(float(statistic(np.arange(count))), np.array(values))


def half_samples(
    statistic: Statistic, count: int, *, num_halves: int = NUM_HALVES, seed: int = 0
) -> Measurement:
    """Of half the `count` pictures each time, around the value of all."""
    check_count(count)
    rng = np.random.default_rng(seed)
    halves = [statistic(rng.permutation(count)[: count // 2]) for _ in range(num_halves)]
    value = float(statistic(np.arange(count)))
    return Measurement(value, value + np.array(halves) - np.mean(halves))


def check_count(count: int) -> None:
    if count < 2:
        raise ValueError(f"pictures: {count}: give at least 2")


def mean_of(values: np.ndarray, *, seed: int = 0) -> Measurement:
    """`bootstrap` of the mean of one number a picture, [n], in one piece."""
    values = np.asarray(values, dtype=np.float64)
    check_count(len(values))
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(values), size=(NUM_RESAMPLES, len(values)))
    return Measurement(float(values.mean()), values[picked].mean(1))


def mean_estimate(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Of the mean of one number a picture, [n]."""
    return mean_of(values, seed=seed).estimate()
