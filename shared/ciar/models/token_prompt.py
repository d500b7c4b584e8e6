"""Prompts of models that read text as tokens of their own: ids, looked up in their embedding.

    ids = <s>, BPE of the text, end of turn, begin of image

A folder holds `config.json` (kind `token-prompt`, the special ids), `tokenizer.json`, and
`model.safetensors`: `embed` [vocabulary, D], memory-mapped, so that a prompt costs its own rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, tensor

from ciar.checkpoint import WEIGHTS_FILE, from_dict, read_config
from ciar.errors import CheckpointError, InvalidInput, MissingExtra
from ciar.mapped import mapped_tensors

KIND = "token-prompt"
TOKENIZER_FILE = "tokenizer.json"
EMBEDDING = "embed"


@dataclass(frozen=True, kw_only=True)
class TokenPromptConfig:
    """dim: D.  max_tokens: most rows, the special ones included.  before, after: special ids."""

    dim: int
    max_tokens: int
    before: tuple[int, ...]
    after: tuple[int, ...]


class TokenPrompt:
    """Prompts to embedded rows."""

    def __init__(self, config: TokenPromptConfig, tokenizer: Any, embedding: Tensor) -> None:
        self._config, self._tokenizer, self._embedding = config, tokenizer, embedding
        self.dim, self.max_tokens = config.dim, config.max_tokens

    @classmethod
    def load(cls, folder: Path) -> "TokenPrompt":
        """Raises `CheckpointError`, or `MissingExtra` without tokenizers."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtra(
                f"{folder} needs tokenizers: install it with pip install 'ciar[anole]'"
            ) from error
        values = {k: v for k, v in read_config(folder).items() if k != "kind"}
        config = from_dict(TokenPromptConfig, values, where=str(folder))
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            embedding = mapped_tensors(folder / WEIGHTS_FILE)[EMBEDDING]
        except CheckpointError:
            raise
        except Exception as error:  # the tokenizer's library raises nothing narrower
            raise CheckpointError(f"{folder}: no token prompts: {error!r}") from error
        if embedding.ndim != 2 or embedding.shape[1] != config.dim:
            raise CheckpointError(
                f"{folder}: embedding {tuple(embedding.shape)}, expected rows of {config.dim}"
            )
        return cls(config, tokenizer, embedding)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Float32 [L, D] of each; text beyond `max_tokens` is cut."""
        if isinstance(prompts, str):
            raise InvalidInput("prompts", prompts, "give a list of prompts: [prompt]")
        return [self._embedding[tensor(self.ids(prompt))].float() for prompt in prompts]

    def ids(self, prompt: str) -> list[int]:
        before, after = self._config.before, self._config.after
        text = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return [*before, *text[: self.max_tokens - len(before) - len(after)], *after]

    def unknown_words(self, prompt: str) -> list[str]:
        """None: its pieces spell every word."""
        return []
