"""Which tokens to ask the cloud for: scores of the edge's own prediction, and routers on them.

The scores that need InterFuse use its rational form, cheap enough for every token. With p =
softmax(c) and w = e^r - 1, the definition in `ciar.interval` becomes

    lower = p / (1 + w (1 - p))     upper = p (1 + w) / (1 + w p)
    width = upper - lower = q w (w + 2) / (1 + w + q w^2),     q = p (1 - p)

without a subtraction of near-equal numbers: 1 - p of the most likely token is the sum of the
others.

    V codebook size; functions of tensors work on the last dimension
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.threshold import NUM_QUANTILES, DynamicThreshold, StaticThreshold, Threshold

DEFAULT_ROUTER = "interval"
DEFAULT_BUDGET = 0.30
_ROUTER_KEY = 1  # second word of the noise key; the noise that draws tokens has 0 there


class HeadOutput:
    """The Inter-Head's prediction, and what routers derive from it, computed when first asked for.

    centre: [..., V] logits.
    growth: w = e^r - 1 of the radii, [..., V], or how to get it, so that a score that does not look
        at it does not pay.
    token: [...] the edge's own draw; the likeliest code if there is none.
    """

    def __init__(
        self,
        centre: Tensor,
        growth: Tensor | Callable[[], Tensor],
        token: Tensor | int | None = None,
    ) -> None:
        self.centre = centre
        self._growth = growth
        self._token = token

    @cached_property
    def token(self) -> Tensor:
        if self._token is None:
            return self.centre.argmax(dim=-1)
        return torch.as_tensor(self._token, device=self.centre.device)

    @cached_property
    def growth(self) -> Tensor:
        return self._growth() if callable(self._growth) else self._growth

    @property
    def radius(self) -> Tensor:
        return self.growth.log1p()

    @cached_property
    def _odds(self) -> tuple[Tensor, Tensor, Tensor]:
        """p and 1 - p [..., V], and 1 - max p [..., 1]."""
        logits = self.centre.float()
        largest, top = logits.max(dim=-1, keepdim=True)
        p = (logits - largest).exp_().scatter_(-1, top, 0.0)
        others = p.sum(dim=-1, keepdim=True)
        total = others + 1
        least_rest = others / total
        p = p.div_(total).scatter_(-1, top, 1 / total)
        return p, (1 - p).scatter_(-1, top, least_rest), least_rest

    @property
    def mid(self) -> Tensor:
        return self._odds[0]

    @property
    def rest(self) -> Tensor:
        """1 - p, [..., V]."""
        return self._odds[1]

    @property
    def doubt(self) -> Tensor:
        """1 - max p, [...]: exact also where max p rounds to 1."""
        return self._odds[2].squeeze(-1)

    @cached_property
    def width(self) -> Tensor:
        """upper - lower, [..., V]."""
        p, rest, _ = self._odds
        w, q = self.growth, p * rest
        below = torch.addcmul(w + 1, q, w * w)
        return q.mul_(w).mul_(w + 2).div_(below)

    @classmethod
    def stack(cls, heads: Sequence["HeadOutput"], growth: Callable[[], Tensor]) -> "HeadOutput":
        """Heads of one token each as one of n; what all have computed is not computed again.

        growth: of all, [n, V], for the case that one has not computed its own.
        """
        head = cls(torch.stack([h.centre for h in heads]), growth)
        if all("growth" in vars(h) for h in heads):
            head.growth = torch.stack([h.growth for h in heads])
        if all("_odds" in vars(h) for h in heads):
            mid, rest, doubt = map(torch.stack, zip(*(h._odds for h in heads), strict=True))
            head._odds = mid, rest, doubt
        return head

    def of_token(self, values: Tensor) -> Tensor:
        """[..., V] -> [...]: the drawn token's."""
        return values.gather(-1, self.token[..., None]).squeeze(-1)

    @property
    def lower(self) -> Tensor:
        p, rest, _ = self._odds
        return p / (self.growth * rest).add_(1)

    @property
    def upper(self) -> Tensor:
        p, _, _ = self._odds
        grown = p * self.growth
        return (p + grown).div_(grown.add_(1))


def total_width(head: HeadOutput) -> Tensor:
    """||width||_1, [...]: does not depend on the size of the codebook."""
    total: Tensor = head.width.sum(dim=-1)
    return total


def draw_doubt(head: HeadOutput) -> Tensor:
    """Bound on the chance that the cloud draws another token than the edge drew, [...].

    With the same noise both draw x with probability 1 / sum_i max(p_i / p_x, q_i / q_x), which is
    smallest over all q in the interval where q_x is at its lower bound and all others at their
    upper ones. Given that the edge drew x, they agree with at least

        1 / (p_x + p_x / lower_x * sum_{i != x} upper_i)

    So a rare draw is doubtful even where the prediction as a whole is sure.
    """
    others = head.upper.scatter(-1, head.token[..., None], 0).sum(dim=-1)
    rest = head.of_token(head.rest)  # 1 - p_x
    odds = (1 + head.of_token(head.growth) * rest) * others - rest
    return odds / (1 + odds)


def interval_uncertainty(head: HeadOutput) -> Tensor:
    """The publication's U = ||width||_1 * std(width), population std over V, [...]."""
    return total_width(head) * head.width.std(dim=-1, correction=0)


def scaled_uncertainty(head: HeadOutput) -> Tensor:
    """U sqrt(V), [...]: std shrinks as 1 / sqrt(V), so this means the same for every codebook."""
    return interval_uncertainty(head) * math.sqrt(head.centre.shape[-1])


def entropy(head: HeadOutput) -> Tensor:
    """Shannon entropy of softmax(c) in nats, [...]."""
    terms: Tensor = torch.special.entr(head.mid)
    return terms.sum(dim=-1)


def softmax_corr(head: HeadOutput) -> Tensor:
    """1 - max p, [...]: SoftmaxCorr for one token, where its own formula would be a constant."""
    return head.doubt


def discrete_uncertainty(head: HeadOutput, *, num_codes: int) -> Tensor:
    """U from a materialised solution set instead of the closed form: one token, c [V] -> [].

    Of the `num_codes` most likely codes and one bucket for the rest, every code is raised by its
    radius, then lowered: 2k distributions over k + 1 entries. The envelope of code i is taken from
    the two that move code i.
    """
    k = min(num_codes, head.centre.shape[-1])
    centre, codes = head.centre.float().topk(k)
    rest = head.centre.float().scatter(-1, codes, -torch.inf).logsumexp(dim=-1, keepdim=True)
    moves = torch.diag(head.radius[codes])  # [k, k]
    raised = torch.cat([centre + moves, rest.expand(k, 1)], dim=1).softmax(-1)  # [k, k + 1]
    lowered = torch.cat([centre - moves, rest.expand(k, 1)], dim=1).softmax(-1)
    width = raised.diagonal() - lowered.diagonal()  # [k]
    return width.sum() * width.std(correction=0)


def window_corr(rows: Tensor) -> Tensor:
    """1 - cos(P^T P / N, I) sqrt(V / N), []: SoftmaxCorr of N neighbouring predictions [N, V].

    By the Gram matrix G = P P^T the cosine is tr G / (sqrt(V) |G|_F), without a V x V matrix. From
    0 (confident and all different, or N = 1) to 1 - 1 / sqrt(N) (all alike).
    """
    gram = rows @ rows.T
    similarity: Tensor = gram.trace() / (math.sqrt(len(rows)) * gram.norm())
    return 1 - similarity


class WindowCorr:
    """`window_corr` of a token and its nearest neighbours predicted before it."""

    NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-1, 2))

    def __init__(self, grid_size: int) -> None:
        self._grid_size = grid_size
        self._rows: dict[int, Tensor] = {}

    def __call__(self, position: int, head: HeadOutput) -> float:
        self._rows[position] = head.mid
        row, column = divmod(position, self._grid_size)
        window = [head.mid]
        for up, right in self.NEIGHBOURS:
            neighbour = (row + up) * self._grid_size + column + right
            if 0 <= column + right < self._grid_size and neighbour in self._rows:
                window.append(self._rows[neighbour])
        return float(window_corr(torch.stack(window)))


class RandomScore:
    """Uniform in [0, 1) by (seed, position), from another stream than the tokens' noise."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, position: int, head: HeadOutput) -> float:
        key = np.array([self._seed, _ROUTER_KEY], dtype=np.uint64)
        bits = int(np.random.Philox(counter=[0, 0, 0, position], key=key).random_raw())
        return (bits >> 11) * 2.0**-53


TENSOR_SCORES: Mapping[str, Callable[[HeadOutput], Tensor]] = {
    "interval": total_width,
    "interval-draw": draw_doubt,
    "interval-u": interval_uncertainty,
    "interval-u-scaled": scaled_uncertainty,
    "entropy": entropy,
    "softmax-corr": softmax_corr,
    "discrete-100": partial(discrete_uncertainty, num_codes=100),
    "discrete-300": partial(discrete_uncertainty, num_codes=300),
}
"""Scores of one token's prediction alone. Higher is less certain."""

ROUTERS: tuple[str, ...] = (*TENSOR_SCORES, "softmax-corr-window", "random", "always", "never")


@dataclass(frozen=True, eq=False)
class Router:
    """Decides, token by token, whom to trust. It remembers what it saw: one router an image."""

    name: str
    score: Callable[[int, HeadOutput], float]
    threshold: Threshold

    @torch.inference_mode()
    def decide(self, position: int, head: HeadOutput) -> tuple[float, bool]:
        """The token's score and whether it is uncertain. Call once a position, in raster order."""
        score = self.score(position, head)
        return score, self.threshold.exceeded(score)

    @torch.inference_mode()
    def prepare(self, position: int, head: HeadOutput) -> None:
        """`decide` may follow for this very head: it finds most of its work done then."""
        self.score(position, head)

    def refund(self) -> None:
        """The last token was uncertain, and nobody had to be asked."""
        self.threshold.refund()


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

    budget: share of the image's tokens to ask for, prefix included (dynamic threshold, default
        0.30).  prefix_rate: share of the image that the cloud draws first; 0 makes the budget one
        of routed tokens.
    threshold: a static one on the raw score.  calibration: quantiles by score name.
    seed: of the image, for `random`.  grid_size: for `softmax-corr-window`.
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
    rule: Threshold
    if threshold is not None:
        rule = StaticThreshold(threshold)
    else:
        quantiles = _quantiles(name, calibration or {})
        budget = DEFAULT_BUDGET if budget is None else budget
        rule = DynamicThreshold(budget, quantiles, spent=prefix_rate)
    return Router(name, _score(name, seed=seed, grid_size=grid_size), rule)


def _quantiles(name: str, calibration: Mapping[str, Sequence[float]]) -> Sequence[float] | None:
    if name == "random":  # uniform by construction
        return [i / (NUM_QUANTILES - 1) for i in range(NUM_QUANTILES)]
    return calibration.get(name)


def _score(name: str, *, seed: int, grid_size: int) -> Callable[[int, HeadOutput], float]:
    if name == "random":
        return RandomScore(seed)
    if name == "softmax-corr-window":
        return WindowCorr(grid_size)
    return partial(_one_token, TENSOR_SCORES[name])


def _one_token(score: Callable[[HeadOutput], Tensor], position: int, head: HeadOutput) -> float:
    return float(score(head))


def _constant(position: int, head: HeadOutput) -> float:
    return 1.0
