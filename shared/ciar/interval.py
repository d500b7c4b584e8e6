"""InterFuse: from centre logits and radii to a probability interval for every token.

With `z_i = logit(softmax(c)_i)`, the interval softmax of credal networks (Wang et al., NeurIPS
2024):

    lower_i = sigmoid(z_i - r_i)    mid = softmax(c)    upper_i = sigmoid(z_i + r_i)

so lower <= mid <= upper elementwise and sum(lower) <= 1 <= sum(upper): the set of distributions
inside is never empty. Everything is computed in float32 and log space. The naive ratio of
exponentials overflows, and `1 - p` cancels for the most likely token.

    V codebook size; all functions work on the last dimension
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Interval:
    """Per-token bounds as logarithms, each [..., V] float32."""

    log_lower: Tensor
    log_mid: Tensor
    log_upper: Tensor
    log_width: Tensor

    @property
    def lower(self) -> Tensor:
        return self.log_lower.exp()

    @property
    def mid(self) -> Tensor:
        return self.log_mid.exp()

    @property
    def upper(self) -> Tensor:
        return self.log_upper.exp()

    @property
    def width(self) -> Tensor:
        """`upper - lower`, without subtracting near-equal numbers."""
        return self.log_width.exp()


def interfuse(centre: Tensor, radius: Tensor) -> Interval:
    """InterFuse of centre logits and radii (>= 0), both [..., V].

    -inf logits get the interval [0, 0].
    """
    centre, radius = centre.float(), radius.float()
    log_mid, z = log_odds(centre)
    return Interval(
        log_lower=F.logsigmoid(z - radius),
        log_mid=log_mid,
        log_upper=F.logsigmoid(z + radius),
        log_width=log_width(z, radius),
    )


def interval_width(centre: Tensor, radius: Tensor) -> Tensor:
    """`upper - lower` alone, [..., V]."""
    _, z = log_odds(centre.float())
    return log_width(z, radius.float()).exp()


def log_width(z: Tensor, radius: Tensor) -> Tensor:
    """log(sigmoid(z + r) - sigmoid(z - r)) = log(sinh r / (cosh z + cosh r)); -inf where r = 0."""
    log_gap = torch.log(-torch.expm1(-2 * radius))  # log(1 - e^-2r)
    return F.logsigmoid(z + radius) + F.logsigmoid(radius - z) + log_gap


def log_odds(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, log p - log(1 - p)) of softmax(logits), each [..., V].

    `1 - p` is the sum over the others. For the largest logit, where p may round to 1, that sum is
    taken directly.
    """
    top = logits.argmax(dim=-1, keepdim=True)
    log_mid = logits - logits.logsumexp(dim=-1, keepdim=True)
    others = logits.scatter(-1, top, -torch.inf)
    log_rest_top = others.logsumexp(dim=-1, keepdim=True) - logits.logsumexp(dim=-1, keepdim=True)
    small = log_mid.scatter(-1, top, -1.0)  # any value with p < 1: the top entry is replaced below
    log_rest = torch.log1p(-small.exp()).scatter(-1, top, log_rest_top)
    return log_mid, log_mid - log_rest
