"""The Inter-Head's weights laid out for drafting: a hidden state to centre logits and reaches.

Behind a large centre head nothing is in the caches any more, and a torch call costs tens of
microseconds however little it does. So the first layer of the radius shares the centre's product,
its activation is in part in the weights, and the rest is computed only for a score that asks for
it:

    gelu(x) = x/2 erfc(-x/sqrt 2) = z erfc(z) / -sqrt 2      z = x / -sqrt 2
    r = softplus(raw)    tanh(r / 2) = sigmoid(raw - log 2)

    D width   V codebook   R radius width, or D where the radius is one full matrix
"""

import math

import torch
from torch import Tensor

from ciar.head_output import MAX_REACH
from ciar.models.inter_head import InterHead
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

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """h [n, D] -> centre logits [n, V] float32, and the codes z [n, R], or h, for `reach`."""
        outputs = self.first(hidden).float()
        if not self.has_codes:
            return outputs, hidden
        centres, codes = torch.split_with_sizes(outputs, self._sizes, dim=1)
        return centres, codes

    def reach(self, codes: Tensor) -> Tensor:
        """[n, R] -> tanh(r / 2) of the radii [n, V]."""
        raw = self.radius(codes.erfc().mul_(codes) if self.has_codes else codes)
        return raw.sigmoid_().clamp_max_(self.max_reach)
