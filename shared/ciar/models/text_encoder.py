"""Frozen text features: a small BERT encoder, one vector (its last hidden state) per word piece.

With x = LayerNorm(piece[id] + position[t]), every layer is post-norm:
    x <- LayerNorm(x + Attention(x));  x <- LayerNorm(x + Down(GELU(Up(x))))
Rows of padding are masked out of every attention, so a prompt's features do not depend on the
prompts it is batched with (up to float rounding).

A folder holds `config.json`, `model.safetensors` (see `ciar.int8`) and `vocab.txt`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ciar.checkpoint import forget_weights, write_tensors
from ciar.errors import CheckpointError, InvalidInput
from ciar.int8 import pack_state_dict, unpack_state_dict
from ciar.models.wordpiece import WordPiece
from ciar.output_file import replace_file, replacing

KIND = "text-encoder"
CONFIG_FILE, WEIGHTS_FILE, VOCAB_FILE = "config.json", "model.safetensors", "vocab.txt"


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Sizes of the encoder. `max_tokens` counts [CLS] and [SEP]."""

    vocab_size: int
    dim: int = 384
    heads: int = 12
    ffn: int = 1536
    layers: int = 6
    max_tokens: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise InvalidInput(field.name, value, "give a whole number of at least 1")
        if self.dim % self.heads:
            raise InvalidInput("heads", self.heads, f"give a divisor of dim = {self.dim}")
        if self.max_tokens < 2:
            raise InvalidInput(
                "max_tokens", self.max_tokens, "give at least 2: [CLS] and [SEP] are always there"
            )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with its residual and then its norm."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.dim, config.dim)
        self.key = nn.Linear(config.dim, config.dim)
        self.value = nn.Linear(config.dim, config.dim)
        self.output = nn.Linear(config.dim, config.dim)
        self.attention_norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.up = nn.Linear(config.dim, config.ffn)
        self.down = nn.Linear(config.ffn, config.dim)
        self.ffn_norm = nn.LayerNorm(config.dim, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x` [B, T, D], `mask` bool [B, 1, 1, T]: False where a key is padding."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, D / heads]
            for linear in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.attention_norm(x + self.output(mixed.transpose(1, 2).flatten(2)))
        x = self.ffn_norm(x + self.down(F.gelu(self.up(x))))
        return x


class TextEncoder(nn.Module):
    """Prompts to features. `load` gives it frozen, in float32 and in evaluation mode."""

    def __init__(self, config: TextEncoderConfig, tokenizer: WordPiece) -> None:
        super().__init__()
        if len(tokenizer) != config.vocab_size:
            raise CheckpointError(
                f"{VOCAB_FILE} has {len(tokenizer)} pieces but vocab_size is {config.vocab_size}: "
                "the files belong to different exports"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.pieces = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_tokens, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def max_tokens(self) -> int:
        return self.config.max_tokens

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of which the vocabulary has no pieces."""
        return list(self.tokenizer.unknown_words(prompt))

    @classmethod
    def load(cls, folder: str | Path) -> "TextEncoder":
        """Read a folder written by `save`. Raises `CheckpointError` when it is not one."""
        folder = Path(folder)
        encoder = cls(_read_config(folder / CONFIG_FILE), WordPiece.from_file(folder / VOCAB_FILE))
        try:
            encoder.load_state_dict(unpack_state_dict(load_file(folder / WEIGHTS_FILE)))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"cannot load {folder / WEIGHTS_FILE}: {error}") from error
        return encoder.eval().requires_grad_(False)

    def save(self, folder: str | Path) -> None:
        """Write the folder: 2-D weights as int8 rows, the rest as float16.

        `config.json` comes last: where it is, the folder is whole.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        packed = pack_state_dict(self.state_dict(), quantize=lambda _, tensor: tensor.dim() == 2)
        with replacing(folder / WEIGHTS_FILE) as part:
            write_tensors(part, packed, metadata={"kind": KIND})
            forget_weights(folder)
        replace_file(folder / VOCAB_FILE, ("\n".join(self.tokenizer.pieces) + "\n").encode())
        config = {"kind": KIND, **asdict(self.config)}
        replace_file(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden state [B, T, D] of `ids` int64 [B, T]; `mask` bool [B, T]: False on padding.

        Padding goes at the end of a row: positions count from its start.
        """
        x: Tensor = self.norm(self.pieces(ids) + self.positions.weight[: ids.shape[1]])  # [B, T, D]
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return x

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Float32 features [n, dim] of each prompt, n = 2 .. max_tokens, from [CLS] to [SEP].

        One forward pass for all of them: the memory needed grows with the number of prompts.
        """
        if isinstance(prompts, str):
            raise InvalidInput("prompts", prompts, "give a list of prompts: [prompt]")
        rows = [
            self.tokenizer.encode(prompt, max_tokens=self.config.max_tokens) for prompt in prompts
        ]
        if not rows:
            return []
        device = self.pieces.weight.device
        lengths = torch.tensor([len(row) for row in rows])  # [B]
        width = int(lengths.max())
        padded = [row + [self.tokenizer.pad_id] * (width - len(row)) for row in rows]
        mask = torch.arange(width) < lengths[:, None]  # [B, T]
        hidden = self(torch.tensor(padded, device=device), mask.to(device)).float()
        # Copies, so that keeping one prompt's features does not keep the whole batch.
        return [hidden[i, : len(row)].clone() for i, row in enumerate(rows)]


def _read_config(path: Path) -> TextEncoderConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("kind", None) != KIND:
            raise CheckpointError(f"{path} is not the config of a {KIND}")
        return TextEncoderConfig(**values)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, InvalidInput) as error:
        raise CheckpointError(f"cannot use {path}: {error}") from error
