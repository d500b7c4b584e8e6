"""The draft model: one layer of the target's architecture, the Inter-Head, the interval features.

    c_t = W_c h_t                          centre logits
    r_t = softplus(W_r g_t + b_r)          radii, capped; g_t = gelu(W_g h_t), or h_t as published
    f_t = phi(concat(h_t, p^l_t, p^u_t))   the code of a token the edge kept

The last linear layer of phi runs in the cloud. The draft is distilled from the *guided* target, so
it runs one conditional branch. Its condition rows are the target's projected ones, which come with
the prefix; a frozen copy of that projection serves when there is no cloud at all.

    D width   V codebook size   F feature width   R radius width
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.head_output import HeadOutput
from ciar.interval import Interval, interfuse
from ciar.models.transformer import CaptionMLP, TransformerConfig, Trunk


@dataclass(frozen=True, kw_only=True)
class InterHeadConfig:
    radius_width: int = 64  # of the radius's hidden layer; 0: one full matrix, as published
    max_radius: float = 6.0
    initial_radius: float = 0.5
    feature_dim: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.initial_radius < self.max_radius:
            raise ValueError(
                f"initial_radius: {self.initial_radius}: give a value between 0 and max_radius"
            )


class InterHead(nn.Module):
    """Hidden states to centre logits and radii."""

    def __init__(self, dim: int, vocab_size: int, config: InterHeadConfig) -> None:
        super().__init__()
        self.max_radius = config.max_radius
        self.centre = nn.Linear(dim, vocab_size, bias=False)
        width = config.radius_width
        self.radius_down = nn.Linear(dim, width, bias=False) if width else None
        self.radius_up = nn.Linear(width or dim, vocab_size)
        nn.init.zeros_(self.radius_up.weight)
        nn.init.constant_(self.radius_up.bias, math.log(math.expm1(config.initial_radius)))

    @property
    def radius_layers(self) -> list[nn.Linear]:
        layers = (self.radius_down, self.radius_up)
        return [layer for layer in layers if layer is not None]

    def radius(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], from 0 to `max_radius`."""
        if self.radius_down is not None:
            hidden = F.gelu(self.radius_down(hidden))
        raw = self.radius_up(hidden)
        return F.softplus(raw).clamp(max=self.max_radius)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.centre(hidden), self.radius(hidden)


class IntervalFeatures(nn.Module):
    """The edge's part of phi: `gelu(W concat(h, p^l, p^u) + b)`, F numbers for a kept token."""

    def __init__(self, dim: int, vocab_size: int, config: InterHeadConfig) -> None:
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(dim + 2 * vocab_size, config.feature_dim)

    def forward(self, hidden: Tensor, interval: Interval | HeadOutput) -> Tensor:
        """hidden [..., D], interval [..., V] -> [..., F]."""
        return F.gelu(self.mix(torch.cat([hidden, interval.lower, interval.upper], dim=-1)))


class DraftModel(Trunk):
    """The edge model."""

    projection_type: Callable[..., nn.Module] = CaptionMLP

    def __init__(self, config: TransformerConfig, head: InterHeadConfig) -> None:
        super().__init__(config)
        self.head_config = head
        self.cap_proj = self.projection_type(config)  # the target's, for drawing offline
        self.inter_head = InterHead(config.dim, config.vocab_size, head)
        self.phi = IntervalFeatures(config.dim, config.vocab_size, head)

    def features(self, hidden: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
        """Interval-feature codes [..., F]."""
        codes: Tensor = self.phi(hidden, interfuse(centre, radius))
        return codes
