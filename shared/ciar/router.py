"""Which tokens to ask the cloud for: a score and a threshold on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.head_output import HeadOutput
from ciar.threshold import (
    NUM_QUANTILES,
    DynamicThreshold,
    StaticThreshold,
    Threshold,
    check_quantiles,
)
from ciar.uncertainty import TENSOR_SCORES, WindowCorr

DEFAULT_ROUTER = "interval"
DEFAULT_BUDGET = 0.30
_NOISE_KEY = 1  # second word of the noise key; the noise that draws tokens has 0 there

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_BLIND = ("random", "spaced")  # uniform by construction, whatever the head says

ROUTERS: tuple[str, ...] = (*TENSOR_SCORES, "softmax-corr-window", *_BLIND, "always", "never")


class RandomScore:
    """Uniform in [0, 1) by (seed, position), from another stream than the tokens' noise."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, position: int, head: HeadOutput) -> float:
        key = np.array([self._seed, _NOISE_KEY], dtype=np.uint64)
        bits = int(np.random.Philox(counter=[0, 0, 0, position], key=key).random_raw())
        return (bits >> 11) * 2.0**-53


class SpacedScore:
    """Multiples of the golden ratio modulo 1, from a random start: those above any threshold are
    spread over the raster as evenly as can be, with at most three different gaps.
    """

    def __init__(self, seed: int) -> None:
        self._start = RandomScore(seed)

    def __call__(self, position: int, head: HeadOutput) -> float:
        return (self._start(0, head) + position * _GOLDEN_RATIO) % 1.0


Mark = tuple[object, int]
"""Of the threshold, and how many tokens the score remembers."""


@dataclass(frozen=True, eq=False)
class Router:
    """Decides, token by token, whom to trust. It remembers what it saw: one router an image."""

    name: str
    score: Callable[[int, HeadOutput], float]
    threshold: Threshold

    @torch.inference_mode()
    def decide(self, position: int, head: HeadOutput) -> tuple[float, bool]:
        """The score and whether the token is uncertain. Call once a position, as they are drawn."""
        score = self.score(position, head)
        return score, self.threshold.exceeded(score)

    @torch.inference_mode()
    def prepare(self, position: int, head: HeadOutput) -> None:
        """`decide` may follow for this very head: it finds most of its work done then."""
        self.score(position, head)

    @torch.inference_mode()
    def glance(self, position: int, head: HeadOutput) -> float:
        """The score of a token that another one decides: nothing of it is remembered."""
        mark = self.mark()
        score = self.score(position, head)
        self.restore(mark)
        return score

    def refund(self) -> None:
        """The last token was uncertain, and nobody had to be asked."""
        self.threshold.refund()

    def mark(self) -> Mark:
        """What it knows now, for `restore`."""
        seen = self.score.num_seen if isinstance(self.score, WindowCorr) else 0
        return self.threshold.mark(), seen

    def restore(self, mark: Mark) -> None:
        """Forget what was decided since `mark`: it will be decided again, from there on."""
        of_threshold, num_seen = mark
        self.threshold.restore(of_threshold)
        if isinstance(self.score, WindowCorr):
            self.score.forget(num_seen)


def make_router(
    name: str = DEFAULT_ROUTER,
    *,
    budget: float | None = None,
    threshold: float | None = None,
    calibration: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
    grid_size: int = 16,
    prefix_rate: float = 0.0,
) -> Router:
    """A fresh router for one image.

    budget: share of the image's tokens to ask for, prefix included (dynamic threshold).
        prefix_rate: share of the image that the cloud draws first; 0 makes the budget one of routed
        tokens.
    threshold: a static one on the raw score; with neither the usual one, or where the score has no
        quantiles a budget of 0.30.  calibration: quantiles by score name.
    seed: of the image, for `random` and `spaced`.  grid_size: of the image, in tokens a side.
    Raises `InvalidInput`.
    """
    if name not in ROUTERS:
        raise InvalidInput("router", name, f"give one of {', '.join(ROUTERS)}")
    if budget is not None and threshold is not None:
        raise InvalidInput("threshold", threshold, "give a budget or a threshold, not both")
    if name in ("always", "never"):
        if budget is not None or threshold is not None:
            raise InvalidInput("router", name, "it takes neither a budget nor a threshold")
        return Router(name, _constant, StaticThreshold(0.0 if name == "always" else 1.0))
    quantiles = _quantiles(name, calibration or {})
    if budget is None and threshold is None and quantiles is not None:
        threshold = usual_threshold(quantiles)
    rule: Threshold
    if threshold is not None:
        rule = StaticThreshold(threshold)
    else:
        budget = DEFAULT_BUDGET if budget is None else budget
        num_scores = round(grid_size**2 * (1 - prefix_rate))
        rule = DynamicThreshold(budget, quantiles, num_scores=num_scores, spent=prefix_rate)
    return Router(name, _score(name, seed=seed, grid_size=grid_size), rule)


def usual_threshold(quantiles: Sequence[float]) -> float:
    """What 30 % of the calibration's tokens exceed: hard images take what easy ones leave.

    Raises `InvalidInput`.
    """
    return check_quantiles(quantiles)[round((1 - DEFAULT_BUDGET) * (NUM_QUANTILES - 1))]


def _quantiles(name: str, calibration: Mapping[str, Sequence[float]]) -> Sequence[float] | None:
    if name in _BLIND:
        return [i / (NUM_QUANTILES - 1) for i in range(NUM_QUANTILES)]
    return calibration.get(name)


def _score(name: str, *, seed: int, grid_size: int) -> Callable[[int, HeadOutput], float]:
    if name == "random":
        return RandomScore(seed)
    if name == "spaced":
        return SpacedScore(seed)
    if name == "softmax-corr-window":
        return WindowCorr(grid_size)
    return partial(_one_token, TENSOR_SCORES[name])


def _one_token(score: Callable[[HeadOutput], Tensor], position: int, head: HeadOutput) -> float:
    return float(score(head))


def _constant(position: int, head: HeadOutput) -> float:
    return 1.0
