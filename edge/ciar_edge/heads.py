"""The Inter-Head's weights laid out for drafting: a hidden state to centre logits and intervals.

Behind a large centre head nothing is in the caches any more, and a torch call costs tens of
microseconds however little it does. So the first layer of the radius shares the centre's product,
its activation is in part in the weights, and the rest is computed only for a score that asks for
it, behind the products in one call where there is a kernel (`ciar_edge.kernel`):

    gelu(x) = x/2 erfc(-x/sqrt 2) = z erfc(z) / -sqrt 2      z = x / -sqrt 2
    r = softplus(raw)    tanh(r / 2) = sigmoid(raw - log 2)

    n tokens   D width   V codebook   R radius width, or D where the radius is one full matrix
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from ciar.head_output import MAX_REACH, HeadOutput
from ciar.models.inter_head import InterHead
from ciar_edge.kernel import IntervalKernel, Intervals, interval_kernel
from ciar_edge.matrix import matrix

_FACTOR = -1 / math.sqrt(2)


class PreparedHeads:
    """Equal to `InterHead` up to rounding, which is bfloat16's for int8 weights."""

    def __init__(self, head: InterHead) -> None:
        first, last = head.centre.weight, head.radius_up.weight
        self.has_codes = head.radius_down is not None
        if head.radius_down is not None:
            first = torch.cat([first, head.radius_down.weight * _FACTOR])
            last = last * _FACTOR
        self.vocab_size = head.centre.out_features
        self._sizes = [self.vocab_size, len(first) - self.vocab_size]  # V, R
        self.first = matrix(first)  # D -> V (+ R)
        self.radius = matrix(last, head.radius_up.bias - math.log(2))  # R -> V
        self.max_reach = min(math.tanh(head.max_radius / 2), MAX_REACH)
        self.kernel = interval_kernel() if last.device.type == "cpu" else None

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """h [n, D] -> centre logits [n, V] float32, and the codes z [n, R], or h, for `reach`."""
        outputs = self.first(hidden).float()
        if not self.has_codes:
            return outputs, hidden
        centres, codes = torch.split_with_sizes(outputs, self._sizes, dim=1)
        return centres, codes

    def outputs(
        self, centres: Tensor, codes: Tensor, tokens: Sequence[int | None]
    ) -> list[HeadOutput]:
        """What was predicted for n tokens: its radii are computed, for all, when one is asked for.

        centres, codes: as called.  tokens: the edge's own draws.
        """
        if self.kernel is not None:
            run = KernelRun(self, self.kernel, centres, codes)
            return [KernelOutput(run, row, token) for row, token in enumerate(tokens)]
        reaches = functools.cache(partial(self.reach, codes))
        return [
            HeadOutput(centres[row], partial(_row, reaches, row), token)
            for row, token in enumerate(tokens)
        ]

    def reach(self, codes: Tensor) -> Tensor:
        """[n, R] -> tanh(r / 2) of the radii [n, V]."""
        return self.raw_reach(codes).sigmoid_().clamp_max_(self.max_reach)

    def raw_reach(self, codes: Tensor) -> Tensor:
        """[n, R] -> what `reach` is the sigmoid of, [n, V] in memory of its own."""
        return self.radius(codes.erfc().mul_(codes) if self.has_codes else codes)


def _row(rows: Callable[[], Tensor], row: int) -> Tensor:
    return rows()[row]


class KernelRun:
    """Intervals of n tokens, by one call of a kernel when something of them is asked for."""

    def __init__(
        self, heads: PreparedHeads, kernel: IntervalKernel, centres: Tensor, codes: Tensor
    ) -> None:
        self.centres = centres
        self.found: Intervals | None = None
        self._heads, self._kernel, self._codes = heads, kernel, codes

    def __call__(self) -> Intervals:
        if self.found is None:
            raw, max_reach = self._heads.raw_reach(self._codes), self._heads.max_reach
            self.found = self._kernel(self.centres, raw, max_reach)
        return self.found

    def reach(self, row: int) -> Tensor:
        return self().reach[row]


class KernelOutput(HeadOutput):
    """A token of a run. Its p come from there, too, once there has been one."""

    def __init__(self, run: KernelRun, row: int, token: int | None) -> None:
        super().__init__(run.centres[row], partial(run.reach, row), token)
        self._run, self._row = run, row

    def has(self, name: str) -> bool:
        return self._run.found is not None or super().has(name)

    @cached_property
    def mid(self) -> Tensor:
        found = self._run.found
        return super().mid if found is None else found.mid_width[0, self._row]

    @cached_property
    def width(self) -> Tensor:
        return self._run().mid_width[1, self._row]

    @cached_property
    def total(self) -> Tensor:
        return self._run().total_spread[self._row, 0]

    @cached_property
    def spread(self) -> Tensor:
        return self._run().total_spread[self._row, 1]
