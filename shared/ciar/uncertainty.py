"""Scores of how unsure the edge is of a token, from its own prediction. Higher is less certain.

V codebook size; functions of tensors work on the last dimension
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from ciar.head_output import HeadOutput

NUCLEUS_MASS = 0.9


def total_width(head: HeadOutput) -> Tensor:
    """||width||_1, [...]: does not depend on the size of the codebook."""
    return head.total


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
    t = head.of_token(head.reach)
    odds = (1 + 2 * t / (1 - t) * rest) * others - rest  # 1 + (e^r - 1) (1 - p_x) = p_x / lower_x
    return odds / (1 + odds)


def interval_uncertainty(head: HeadOutput) -> Tensor:
    """The publication's U = ||width||_1 * std(width), population std over V, [...]."""
    return head.total * head.spread


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


def nucleus_size(head: HeadOutput, *, num_codes: int) -> Tensor:
    """Size of the smallest set of codes with a mass of 0.9, as a share of `num_codes`, [...].

    Without any radius, the conventional solution set: all `num_codes` where they have less mass.
    """
    k = min(num_codes, head.centre.shape[-1])
    likely = head.mid.topk(k).values
    before = likely.cumsum(dim=-1) - likely
    return (before < NUCLEUS_MASS).float().mean(dim=-1)


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

    @property
    def num_seen(self) -> int:
        return len(self._rows)

    def forget(self, num_seen: int) -> None:
        """All but the tokens seen first."""
        for position in list(self._rows)[num_seen:]:
            del self._rows[position]

    def __call__(self, position: int, head: HeadOutput) -> float:
        self._rows[position] = head.mid
        row, column = divmod(position, self._grid_size)
        window = [head.mid]
        for up, right in self.NEIGHBOURS:
            neighbour = (row + up) * self._grid_size + column + right
            if 0 <= column + right < self._grid_size and neighbour in self._rows:
                window.append(self._rows[neighbour])
        return float(window_corr(torch.stack(window)))


TENSOR_SCORES: Mapping[str, Callable[[HeadOutput], Tensor]] = {
    "interval": total_width,
    "interval-draw": draw_doubt,
    "interval-u": interval_uncertainty,
    "interval-u-scaled": scaled_uncertainty,
    "entropy": entropy,
    "softmax-corr": softmax_corr,
    "discrete-100": partial(discrete_uncertainty, num_codes=100),
    "discrete-300": partial(discrete_uncertainty, num_codes=300),
    "nucleus-100": partial(nucleus_size, num_codes=100),
    "nucleus-300": partial(nucleus_size, num_codes=300),
}
"""Scores of one token's prediction alone. Higher is less certain."""
