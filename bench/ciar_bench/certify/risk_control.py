"""Which thresholds have a risk of at most a level, from one loss in [0, 1] an image.

    n images   R mean loss   a level   delta chance of a wrong answer

Learn-then-Test (Angelopoulos et al., arXiv 2110.01052): "the risk is above a" is refuted for a
threshold where its p-value is at most delta. Thresholds are tested from the safest on until one
cannot be refuted, so that no level is spent on how many there are, and no order of the risks is
supposed. Conformal risk control (arXiv 2208.02814) bounds the expected loss instead, for losses
that only grow with the threshold.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np


def hoeffding_bentkus(mean: float, count: int, level: float) -> float:
    """P-value of "the risk is above the level" for the mean of `count` losses in [0, 1].

    min( exp(-n h(min(R, a), a)), e P(Bin(n, a) <= ceil(n R)) ), h the relative entropy of coins
    """
    hoeffding = math.exp(-count * relative_entropy(min(mean, level), level))
    bentkus = math.e * binomial_cdf(math.ceil(count * mean), count, level)
    return min(1.0, hoeffding, bentkus)


def relative_entropy(a: float, b: float) -> float:
    """Of a coin of a to one of b, in nats; 0 < b < 1."""
    heads = a * math.log(a / b) if a > 0 else 0.0
    tails = (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return heads + tails


def binomial_cdf(most: int, count: int, chance: float) -> float:
    """P(Bin(count, chance) <= most), 0 < chance < 1."""
    hits = range(min(most, count) + 1)
    return math.fsum(math.exp(log_binomial(k, count, chance)) for k in hits)


def log_binomial(hits: int, count: int, chance: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return ways + hits * math.log(chance) + (count - hits) * math.log1p(-chance)


def learn_then_test(losses: Sequence[np.ndarray], *, level: float, delta: float) -> int:
    """How many of the thresholds, safest first, have a risk of at most the level.

    losses: [n] a threshold. With probability 1 - delta all of these do.
    """
    return passed(
        losses, lambda values: hoeffding_bentkus(values.mean(), len(values), level) <= delta
    )


def conformal_risk_control(losses: Sequence[np.ndarray], *, level: float) -> int:
    """As many, where n / (n + 1) R + 1 / (n + 1) is at most the level."""
    return passed(losses, lambda values: (values.sum() + 1) / (len(values) + 1) <= level)


def passed(losses: Sequence[np.ndarray], is_safe: Callable[[np.ndarray], bool]) -> int:
    """How many are safe in a row, from the first on."""
    failed = (number for number, values in enumerate(losses) if not is_safe(values))
    return next(failed, len(losses))
