"""Losses of the Inter-Head. p_C is the cloud's *model view*: guided, temperature 1, no filter.

Published (Inter-DRO), with `A(p) = lv |p - p_C|_1 + lp CE(p_C, p)`:

    L = [A(p_mid) + lb KL(p_C || p_mid)] + A(p_upper)
        + [A(p_lower) + sum_n w_n CE(p_C_n, p_lower_n)],
    w_n = softmax over the batch of alpha * CE_n (no gradient through w)

For fixed p_C its cross-entropy pair always shrinks the radius, which collapses. Ours trains the
centre first (KL and anchor) and then the radius alone by the interval (Winkler) score, a proper
scoring rule that charges width and misses:

    sum_i (upper_i - lower_i) + (2 / a) (relu(lower_i - p_C_i) + relu(p_C_i - upper_i))

    B batch   n positions   V codebook size; inputs [B, n, V], results are means over positions
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.interval import Interval


@dataclass(frozen=True, kw_only=True)
class InterDroWeights:
    """The publication's coefficients, whose values it does not state.

    effective_share: of a batch that stays in effect under the worst-case weights; alpha follows.
    """

    l1: float = 1.0
    cross_entropy: float = 0.1
    kl: float = 1.0
    dro: float = 1.0
    effective_share: float = 0.35


def cross_entropy(p: Tensor, log_q: Tensor) -> Tensor:
    """[..., V] -> [...]: `-sum p log q`; q may be an unnormalized bound."""
    return -(p * log_q).sum(-1)


def anchor(p: Tensor, log_q: Tensor, weights: InterDroWeights) -> Tensor:
    """A(q) of the publication, [...]."""
    distance = (log_q.exp() - p).abs().sum(-1)
    return weights.l1 * distance + weights.cross_entropy * cross_entropy(p, log_q)


def centre_loss(p: Tensor, log_mid: Tensor, weights: InterDroWeights) -> Tensor:
    """`A(p_mid) + lb KL(p_C || p_mid)`, a scalar."""
    kl = F.kl_div(log_mid, p, reduction="none").sum(-1)
    return (anchor(p, log_mid, weights) + weights.kl * kl).mean()


def dro_weights(losses: Tensor, share: float) -> Tensor:
    """Worst-case weights `softmax(alpha losses)` over all positions of the batch, scaled to mean 1.

    alpha is found by bisection, so that the effective sample size is `share` of the batch. No
    gradient flows through the weights.
    """
    flat = losses.detach().flatten().double()
    flat = flat - flat.max()
    low, high = 0.0, 64.0  # alpha
    for _ in range(30):
        alpha = (low + high) / 2
        weights = torch.softmax(alpha * flat, 0) * len(flat)
        is_too_even = float(effective_share(weights)) > share
        low, high = (alpha, high) if is_too_even else (low, alpha)
    return weights.view_as(losses).type_as(losses)


def effective_share(weights: Tensor) -> Tensor:
    """Effective sample size of weights of mean 1, as a share of the batch."""
    return 1 / weights.square().mean()


def inter_dro_loss(
    p: Tensor, interval: Interval, weights: InterDroWeights
) -> tuple[Tensor, Tensor]:
    """The published loss and the effective share of its worst-case weights."""
    lower_ce = cross_entropy(p, interval.log_lower)
    worst = dro_weights(lower_ce, weights.effective_share)
    total = (
        centre_loss(p, interval.log_mid, weights)
        + anchor(p, interval.log_upper, weights).mean()
        + anchor(p, interval.log_lower, weights).mean()
        + weights.dro * (worst * lower_ce).mean()
    )
    return total, effective_share(worst)


def interval_score(p: Tensor, interval: Interval, *, miss_rate: float) -> Tensor:
    """The interval score of central `1 - miss_rate` intervals, summed over V: [...]."""
    lower, upper = interval.lower, interval.upper
    missed = (lower - p).relu() + (p - upper).relu()
    return (interval.width + (2 / miss_rate) * missed).sum(-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """[..., V] -> [...]: half the L1 distance."""
    return 0.5 * (p - q).abs().sum(-1)


def auroc(scores: Tensor, labels: Tensor) -> float:
    """P(score of a positive > score of a negative), ties count half; nan without both kinds."""
    scores, labels = scores.flatten().double(), labels.flatten().bool()
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # average rank of ties, from 1
    num_pos, num_neg = int(labels.sum()), int((~labels).sum())
    if not num_pos or not num_neg:
        return float("nan")
    total = float(mid_rank[labels].sum()) - num_pos * (num_pos + 1) / 2
    return total / (num_pos * num_neg)
