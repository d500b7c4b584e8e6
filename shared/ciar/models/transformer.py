"""The LlamaGen text-to-image transformer, target and draft alike.

    B batch   L condition rows   n image tokens fed   N rows packed over sessions
    D width   H heads   d = D / H   V codebook size

Facts of the public model that are kept exactly:
- condition rows come first and have *zero* rotary rows, so their queries and keys vanish: every
  condition key scores 0;
- image token n sits in grid cell (n // grid, n % grid); its rotary angles are `[row * f, col * f]`
  on adjacent pairs;
- the last condition row predicts token 0, and token n, when fed, predicts token n + 1; the last
  token is never fed;
- conditions are left-padded, padding is seen by nobody, and the unconditional branch sees as many
  rows as the prompt. Padding can therefore be left out: the cached path stores valid rows only, the
  training path moves it behind the image.

Attention is handed in (`Attend`), so one forward serves training (whole) and serving (a cache).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciar.models.embedding import LowRankEmbedding
from ciar.models.neighbours import NeighbourConfig, NeighbourEmbedding

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v), each [..., n, H, d] -> [..., n, H, d]."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes. Defaults are LlamaGen-XL text-to-image, stage I."""

    vocab_size: int = 16384
    grid_size: int = 16
    num_layers: int = 36
    dim: int = 1280
    num_heads: int = 20
    ffn_multiple_of: int = 256
    num_condition: int = 120  # most condition rows
    condition_dim: int = 2048  # width of the text features
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    neighbours: NeighbourConfig = NeighbourConfig()  # none: the public model
    embedding_rank: int = 0  # of the tokens' embedding; 0: a full table, as all targets have
    family: ClassVar[str] = "llamagen"

    def __post_init__(self) -> None:
        if self.dim % (4 * self.num_heads):
            raise ValueError(
                f"dim: {self.dim}: give a multiple of 4 x num_heads ({self.num_heads}), "
                "as the 2-D rotary embedding needs"
            )
        if not 0 <= self.embedding_rank < self.dim:
            raise ValueError(
                f"embedding_rank: {self.embedding_rank}: give a rank below dim ({self.dim}), or 0 "
                "for a full table"
            )

    @property
    def num_tokens(self) -> int:
        return self.grid_size**2

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def ffn_dim(self) -> int:
        step = self.ffn_multiple_of
        return -(-int(2 * 4 * self.dim / 3) // step) * step

    @property
    def max_rows(self) -> int:
        """Most positions a sequence can hold: condition, then every image token but the last, and a
        stand-in (`ciar.order`).
        """
        return self.num_condition + self.num_tokens


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    has_head_norms = False

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        shape = x.shape[:-1]
        qkv = self.wqkv(x).view(*shape, 3 * self.num_heads, self.head_dim)
        qk, v = qkv.split((2 * self.num_heads, self.num_heads), dim=-2)
        q, k = rotate(self.normed(qk), rope).chunk(2, dim=-2)  # [..., n, H, d]
        y: Tensor = self.wo(attend(self.layer, q, k, v).reshape(x.shape))
        return y

    def normed(self, qk: Tensor) -> Tensor:
        """Queries and keys [..., 2H, d] before they are rotated: as they are."""
        return qk


class FeedForward(nn.Module):
    """SwiGLU: `w2(silu(w1 x) * w3 x)`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y


class Block(nn.Module):
    attention_type = Attention

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention = self.attention_type(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, attend)
        y: Tensor = self.feed_forward(self.ffn_norm(x))
        return x + y


def token_embedding(config: TransformerConfig) -> nn.Embedding | LowRankEmbedding:
    if config.embedding_rank:
        return LowRankEmbedding(config.vocab_size, config.dim, config.embedding_rank)
    return nn.Embedding(config.vocab_size, config.dim)


class Trunk(nn.Module):
    """Token embedding, blocks and final norm: what target and draft have in common."""

    rope: Tensor
    block_type = Block

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = token_embedding(config)
        self.neighbours = None
        if not config.neighbours.is_empty:
            self.neighbours = NeighbourEmbedding(
                config.neighbours,
                vocab_size=config.vocab_size,
                grid_size=config.grid_size,
                dim=config.dim,
            )
        self.layers = nn.ModuleList(self.block_type(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.register_buffer("rope", self.rope_table(), persistent=False)

    def rebuild_tables(self, device: torch.device | str) -> None:
        """The rotary table is not in the weights, and stays float32 whatever the model's dtype."""
        with torch.device("cpu"):
            self.rope = self.rope_table().to(device)
        if self.neighbours is not None:
            self.neighbours.rebuild_tables(device)

    def rope_table(self) -> Tensor:
        """Rotary rows (cos, sin) [..., d/2, 2], float32: see `grid_rope`."""
        return grid_rope(self.config)

    def inputs(self, tokens: Tensor, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """Input rows [..., n - first, D] of the tokens from `first` on of tokens [..., n].

        And what followed them elsewhere [..., n - first, J], for `recall`, if the model has tables.
        """
        x: Tensor = self.tok_embeddings(tokens[..., first:])
        if self.neighbours is None:
            return x, None
        rows, followers = self.neighbours(tokens, first)
        return x + rows, followers

    def scattered_inputs(self, grids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `inputs`, for n tokens that are no sequence: rows [n, D] and followers [n, J].

        grids: [n, T] what each of them stands in, itself included, V where unknown.
        positions: [n] of the tokens.
        """
        x: Tensor = self.tok_embeddings(grids.gather(1, positions[:, None])[:, 0])
        if self.neighbours is None:
            return x, None
        rows, followers = self.neighbours.scattered(grids, positions)
        return x + rows, followers

    def hidden(self, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        """Inputs [..., n, D] and rotary rows [n, d/2, 2] -> normed hidden states [..., n, D]."""
        for block in self.layers:
            x = block(x, rope, attend)
        y: Tensor = self.norm(x)
        return y

    def recall(self, hidden: Tensor, followers: Tensor | None) -> Tensor:
        """The hidden states [..., D] that heads see: drawn to what followed elsewhere [..., J]."""
        if followers is None or self.neighbours is None:
            return hidden
        return self.neighbours.recall(hidden, followers)

    def image_rope(self, position: int, count: int) -> Tensor:
        """Rotary rows [count, d/2, 2] of the image tokens `position`, `position + 1`, ..."""
        return self.rope[position + 1 : position + 1 + count]

    def condition_rope(self, count: int) -> Tensor:
        """Rotary rows [count, d/2, 2] of condition rows: all zero."""
        return self.rope[:1].expand(count, -1, -1)

    def num_hidden(self, num_condition: int) -> int:
        """How many rows of a prompt, from the first, the unconditional branch does not see."""
        return 0

    def prompt_rope(self, num_condition: int) -> Tensor:
        """Rotary rows [2 or 1, L, d/2, 2] of a prompt."""
        return self.condition_rope(num_condition)[None]

    def fed_rope(self, num_condition: int, first: int, count: int) -> Tensor:
        """Rotary rows [2 or 1, k, d/2, 2] of image tokens from `first` on."""
        return self.image_rope(first, count)[None]

    def scattered_rope(self, num_condition: int, positions: Tensor) -> Tensor:
        """Rotary rows [2 or 1, k, d/2, 2] of image tokens at positions [k]."""
        return self.rope[positions + 1][None]

    def sequence_rope(self, num_condition: int) -> Tensor:
        """Rotary rows [L + T, d/2, 2] of a whole sequence: condition, then every image token."""
        image = self.image_rope(0, self.config.num_tokens)
        return torch.cat([self.condition_rope(num_condition), image])

    def batch_rope(self, num_rows: int, moved: Tensor) -> Tensor:
        """Rotary rows [B, S, d/2, 2] of sequences without their padding.

        num_rows: L, padding included.  moved: [B, S], which of the padded rows stands where.
        """
        rope = torch.cat(
            [self.condition_rope(num_rows), self.image_rope(0, moved.shape[1] - num_rows)]
        )
        return rope[moved]

    def masked_hidden(self, rows: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """One causal pass over whole sequences, for training.

        rows [B, L, D] left-padded projected condition, mask [B, L] true where valid, tokens [B, n]
        ids. Returns hidden states [B, n + 1, D], the i-th predicting token i.
        """
        return self.embedded_hidden(rows, *self.inputs(tokens), mask)

    def embedded_hidden(
        self, rows: Tensor, x: Tensor, followers: Tensor | None, mask: Tensor
    ) -> Tensor:
        """As `masked_hidden`, from what `inputs` gives: x [B, n, D] and followers [B, n, J]."""
        hidden = self._padded_hidden(torch.cat([rows, x], dim=1), mask)
        if followers is not None:  # nothing precedes the first token
            followers = F.pad(followers, (0, 0, 1, 0), value=self.config.vocab_size)
        return self.recall(hidden, followers)

    def _padded_hidden(self, x: Tensor, mask: Tensor) -> Tensor:
        """From embedded sequences [B, L + n, D].

        Padding is moved behind the last token, where causality hides it: attention then needs no
        mask, which its fast kernels do not take.
        """
        num_rows = mask.shape[1]
        order = torch.arange(x.shape[1], device=x.device)
        batch = torch.arange(len(x), device=x.device)[:, None]
        padding = num_rows - mask.sum(1, keepdim=True)  # [B, 1]
        moved = (order + padding) % x.shape[1]  # [B, S]
        hidden = self.hidden(x[batch, moved], self.batch_rope(num_rows, moved), attend_causally)
        return hidden[batch, order[num_rows - 1 :] - padding]


class CaptionMLP(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.condition_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


class CaptionEmbedder(nn.Module):
    """Text features to condition rows; the unconditional branch has learned features of its own."""

    uncond_embedding: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionMLP(config)
        uncond = torch.randn(config.num_condition, config.condition_dim)
        self.register_buffer("uncond_embedding", uncond / config.condition_dim**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """[..., L, condition_dim] -> [..., L, D]; zero rows stay zero."""
        rows: Tensor = self.cap_proj(features)
        return rows

    def uncond(self, count: int) -> Tensor:
        """The unconditional features [count, condition_dim] in place of `count` prompt rows."""
        return self.uncond_embedding[-count:]


class Transformer(Trunk):
    """The target model: a trunk with a caption embedder and an output head.

    What a cache needs to know of a family is here and in the trunk: the rows of a prompt in both
    branches, which of them the unconditional one does not see, the rotary rows of whatever is fed.
    """

    prompt_type: Callable[..., CaptionEmbedder] = CaptionEmbedder

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.cls_embedding = self.prompt_type(config)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    @property
    def projection(self) -> nn.Module:
        """Features to rows, for a draft that draws without the cloud."""
        return self.cls_embedding.cap_proj

    def condition_rows(self, features: Tensor) -> Tensor:
        """Features [L, condition_dim] to rows [L, D]: what a draft starts from."""
        rows: Tensor = self.cls_embedding(features)
        return rows

    def uncond_rows(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [B, L, D] of the unconditional branch beside left-padded prompts, mask [B, L] of
        which are valid, and which of its own rows are.
        """
        rows: Tensor = self.cls_embedding(self.cls_embedding.uncond(mask.shape[1]))
        return rows * mask[..., None], mask

    def prompt_rows(self, features: Tensor) -> Tensor:
        """Features [L, condition_dim] to rows [2, L, D], conditional and unconditional."""
        uncond = self.cls_embedding.uncond(len(features))
        rows: Tensor = self.cls_embedding(torch.stack([features, uncond]))
        return rows

    def forward(self, features: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits, for training.

        features [B, L, condition_dim] left-padded text features, mask [B, L] true where valid,
        tokens [B, n] ids. Returns [B, n + 1, V], the i-th predicting token i.
        """
        logits: Tensor = self.output(self.forced_hidden(features, mask, tokens))
        return logits

    def forced_hidden(self, features: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """The normed hidden states [B, n + 1, D] behind `forward`."""
        return self.masked_hidden(self.cls_embedding(features), tokens, mask)


def grid_rope(config: TransformerConfig) -> Tensor:
    """[1 + T, d/2, 2] as (cos, sin).

    A zero row for every condition position, then one row per grid cell.
    """
    half = config.head_dim // 2
    freqs = config.rope_base ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    cells = torch.arange(config.num_tokens, dtype=torch.float64)
    row, col = cells // config.grid_size, cells % config.grid_size
    angles = torch.cat([row[:, None] * freqs, col[:, None] * freqs], dim=1)  # [T, d/2]
    table = torch.stack([angles.cos(), angles.sin()], dim=-1).float()
    return torch.cat([torch.zeros(1, half, 2), table])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding on adjacent pairs, in float32: x [..., n, H, d], rope [(...,) n, d/2, 2]."""
    if torch.compiler.is_compiling():  # compilers do not fuse complex numbers
        return _rotate_real(x, rope)
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)))  # [..., n, H, d/2]
    turned = pairs * torch.view_as_complex(rope)[..., None, :]
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def _rotate_real(x: Tensor, rope: Tensor) -> Tensor:
    """`rotate` without complex numbers, which takes more calls."""
    a, b = torch.unflatten(x.float(), -1, (-1, 2)).unbind(-1)  # [..., n, H, d/2]
    cos, sin = rope[..., None, :, :].unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).type_as(x)


def attend_causally(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Whole sequences [B, S, H, d]: each position sees itself and what precedes it."""
    q, k, v = (t.transpose(-2, -3) for t in (q, k, v))  # [B, H, S, d]
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(-2, -3)
