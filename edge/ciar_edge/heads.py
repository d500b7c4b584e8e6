"""The Inter-Head's weights laid out for drafting: a hidden state to centre logits and growths.

Behind a large centre head nothing is in the caches any more, and a torch call costs tens of
microseconds however little it does. So the first layer of the radius shares the centre's product,
and the rest is computed only for a score that asks for it.

    D width   V codebook   R radius width, or D where the radius is one full matrix
"""

import math

import torch
from torch import Tensor

from ciar.models.inter_head import InterHead
from ciar_edge.matrix import matrix

_SQRT_HALF = math.sqrt(0.5)


class PreparedHeads:
    """Equal to `InterHead` up to rounding, which is bfloat16's for int8 weights."""

    def __init__(self, head: InterHead) -> None:
        *hidden_layers, last = head.radius_layers
        layers = [head.centre, *hidden_layers]
        self.vocab_size = head.centre.out_features
        self.has_codes = len(layers) == 2
        self.first = matrix(torch.cat([layer.weight for layer in layers]))  # D -> V (+ R)
        self.radius = matrix(last.weight, last.bias)  # R -> V
        self.max_growth = math.expm1(head.max_radius)

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """h [D] -> centre logits [V] float32, and the code [R] that `growth` takes."""
        outputs = self.first(hidden[None])[0].float()
        if not self.has_codes:
            return outputs, hidden
        return outputs[: self.vocab_size], outputs[self.vocab_size :]

    def growth(self, codes: Tensor) -> Tensor:
        """[n, R] -> e^r - 1 of the radii [n, V]: of r = softplus(raw) that is e^raw."""
        raw = self.radius(gelu(codes) if self.has_codes else codes)
        return raw.exp_().clamp_(max=self.max_growth)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) in new memory. Behind a large head some 0.07 ms less than `F.gelu`."""
    return (x * -_SQRT_HALF).erfc_().mul_(x).mul_(0.5)
