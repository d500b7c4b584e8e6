"""Chameleon's transformer, which Anole draws with, over image tokens alone: target and draft.

    L prompt rows   n image tokens fed   D width   H heads   d = D / H   V image codes

Facts of the public model that are kept exactly:
- queries and keys go through a LayerNorm of each head before the rotary embedding;
- the rotary embedding counts positions of the sequence, each branch from its own first token;
- a prompt is `<s>`, its text, `<reserved08706>`, `<racm3:break>`; without one, `<s>`,
  `<racm3:break>`. Its last row predicts token 0.

Ours: tokens are codebook ids 0 to V - 1, so embedding and head hold the image rows only; a prompt
comes as embedded rows. The unconditional prompt is shorter: it stands at the end of as many rows,
and what is before it nobody sees. Weights lie as in Meta's files, rotary pairs adjacent.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.models.eagle import EagleModel
from ciar.models.inter_head import DraftModel
from ciar.models.transformer import Attention, Block, Transformer, TransformerConfig, Trunk

NORM_EPS = 1e-5  # of queries and keys


@dataclass(frozen=True, kw_only=True)
class ChameleonConfig(TransformerConfig):
    """Sizes. Defaults are Anole-7B's. num_uncond: rows of the unconditional prompt."""

    vocab_size: int = 8192
    grid_size: int = 32
    num_layers: int = 32
    dim: int = 4096
    num_heads: int = 32
    num_condition: int = 256
    condition_dim: int = 4096
    num_uncond: int = 2
    family: ClassVar[str] = "chameleon"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.condition_dim != self.dim:
            raise ValueError(
                f"condition_dim: {self.condition_dim}: prompts come as rows of width {self.dim}"
            )


class ChameleonAttention(Attention):
    has_head_norms = True

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm = HeadNorm(self.num_heads, self.head_dim)
        self.k_norm = HeadNorm(self.num_heads, self.head_dim)

    def normed(self, qk: Tensor) -> Tensor:
        q, k = qk.chunk(2, dim=-2)
        return torch.cat([self.q_norm(q), self.k_norm(k)], dim=-2)


class HeadNorm(nn.Module):
    """LayerNorm over the d numbers of a head, [..., H, d], with weights of its own for each."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * self.weight + self.bias


class ChameleonBlock(Block):
    attention_type = ChameleonAttention


class EmbeddedPrompt(nn.Module):
    """Prompts are rows already; those of the unconditional branch are stored, [num_uncond, D]."""

    uncond_rows: Tensor

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.register_buffer("uncond_rows", torch.zeros(config.num_uncond, config.dim))


class Positions(Trunk):
    """Rotary rows by the position in the sequence, wherever on the grid a token stands."""

    config: ChameleonConfig
    block_type = ChameleonBlock

    def rope_table(self) -> Tensor:
        """[max_rows + 1, d/2, 2] as (cos, sin), a row a position."""
        return position_rope(self.config)

    def num_hidden(self, num_condition: int) -> int:
        assert num_condition >= self.config.num_uncond, "a prompt has as many rows at least"
        return num_condition - self.config.num_uncond

    def prompt_rope(self, num_condition: int) -> Tensor:
        own = torch.arange(num_condition, device=self.rope.device)
        shorter = (own - self.num_hidden(num_condition)).clamp(min=0)
        return self.rope[torch.stack([own, shorter])]

    def fed_rope(self, num_condition: int, first: int, count: int) -> Tensor:
        starts = (num_condition + first, self.config.num_uncond + first)
        return torch.stack([self.rope[start : start + count] for start in starts])

    def scattered_rope(self, num_condition: int, positions: Tensor) -> Tensor:
        starts = (num_condition, self.config.num_uncond)
        return torch.stack([self.rope[start + positions] for start in starts])

    def sequence_rope(self, num_condition: int) -> Tensor:
        return self.rope[: num_condition + self.config.num_tokens]

    def batch_rope(self, num_rows: int, moved: Tensor) -> Tensor:
        return self.rope[: moved.shape[1]].expand(len(moved), -1, -1, -1)


class Chameleon(Positions, Transformer):
    """The target model."""

    cls_embedding: EmbeddedPrompt  # type: ignore[assignment]
    prompt_type = EmbeddedPrompt  # type: ignore[assignment]

    @property
    def projection(self) -> nn.Module:
        return NoProjection(self.config)

    def condition_rows(self, features: Tensor) -> Tensor:
        return features

    def uncond_rows(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.zeros_like(mask)
        own[:, self.num_hidden(mask.shape[1]) :] = True
        return self._padded_uncond(mask.shape[1]).expand(len(mask), -1, -1), own

    def prompt_rows(self, features: Tensor) -> Tensor:
        return torch.stack([features, self._padded_uncond(len(features)).to(features)])

    def _padded_uncond(self, num_rows: int) -> Tensor:
        """[L, D], zero before the unconditional prompt."""
        return F.pad(self.cls_embedding.uncond_rows, (0, 0, self.num_hidden(num_rows), 0))


class NoProjection(nn.Identity):
    """Of prompts that are rows already."""

    def __init__(self, _: TransformerConfig) -> None:
        super().__init__()


class ChameleonDraft(Positions, DraftModel):
    """The edge model."""

    projection_type = NoProjection


class ChameleonEagle(Positions, EagleModel):
    """The drafter of EAGLE."""


def position_rope(config: TransformerConfig) -> Tensor:
    """[max_rows + 1, d/2, 2] as (cos, sin) of position times frequency."""
    freqs = config.rope_base ** (
        -torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    )
    angles = torch.arange(config.max_rows + 1, dtype=torch.float64)[:, None] * freqs
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()
