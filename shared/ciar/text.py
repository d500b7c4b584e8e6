"""Whatever turns prompts into the features that a target was trained on, by its folder's kind.

text-encoder      the small BERT of ciar-mini (`models.text_encoder`)
t5                LlamaGen's (`models.t5_encoder`), extra `t5`
token-prompt      a tokenizer and an embedding, as for Anole (`models.token_prompt`)
cached-features   those of known prompts, computed before (`models.cached_features`)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ciar.checkpoint import read_config
from ciar.errors import CheckpointError
from ciar.models.cached_features import CachedFeatures
from ciar.models.t5_encoder import T5Encoder
from ciar.models.text_encoder import TextEncoder
from ciar.models.token_prompt import TokenPrompt


class TextFeatures(Protocol):
    """Frozen. `load_text` makes one."""

    @property
    def dim(self) -> int:
        """Width C of a feature."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most rows of a prompt."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Float32 [L, C] of each prompt, as many rows as it has tokens."""
        ...

    def unknown_words(self, prompt: str) -> list[str]:
        """What the features cannot tell, for a warning."""
        ...


def load_text(folder: Path) -> TextFeatures:
    """`NAME/text` of a bundle. Raises `CheckpointError`, and `MissingExtra` for T5."""
    loaders: dict[str, Callable[[Path], TextFeatures]] = {
        "text-encoder": TextEncoder.load,
        "t5": T5Encoder.load,
        "token-prompt": TokenPrompt.load,
        "cached-features": CachedFeatures.load,
    }
    kind = read_config(folder).get("kind")
    if kind not in loaders:
        raise CheckpointError(f"{folder}: kind {kind!r}, expected one of {', '.join(loaders)}")
    return loaders[kind](folder)
