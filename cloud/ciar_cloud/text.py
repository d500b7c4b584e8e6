"""Prompts: what can be drawn from, and the text features of it.

Encoding takes milliseconds, so it runs in a thread of its own and never in the event loop. A small
cache serves prompts that come again (other seeds, retries).
"""

import asyncio
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ciar.errors import InvalidInput
from ciar.models.wordpiece import words
from ciar.text import TextFeatures

MAX_PROMPT_CHARS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPrompt:
    """features: [L, condition_dim], what the target prefills.

    rows: [L, D], the same projected, for the edge layer.
    """

    features: Tensor
    rows: Tensor
    unknown_words: tuple[str, ...]


def check_prompt(prompt: str) -> None:
    """Raise `InvalidInput` for a prompt that is empty, too long, or not text."""
    if len(prompt) > MAX_PROMPT_CHARS:
        raise InvalidInput(
            "prompt", f"{len(prompt)} characters", f"give at most {MAX_PROMPT_CHARS}"
        )
    for char in prompt:
        if unicodedata.category(char) in ("Cc", "Cs") and not char.isspace():
            raise InvalidInput("prompt", prompt, f"leave out the control character {char!r}")
    if next(words(prompt), None) is None:
        raise InvalidInput("prompt", prompt, "say what to draw: it is empty")


class PromptEncoder:
    """Text encoder and the target's projection, with a cache of the last `cache_size` prompts.

    condition_rows: features [L, condition_dim] to the rows [L, D] of the edge.
    """

    def __init__(
        self,
        encoder: TextFeatures,
        condition_rows: Callable[[Tensor], Tensor],
        *,
        cache_size: int = 256,
    ) -> None:
        self._encoder = encoder
        self._condition_rows = condition_rows
        self._cache_size = cache_size
        self._cache: OrderedDict[str, EncodedPrompt] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ciar-text")

    async def encode(self, prompt: str) -> EncodedPrompt:
        """Checked and encoded. Raises `InvalidInput`."""
        check_prompt(prompt)
        found = self._cache.get(prompt)
        if found is None:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._thread, self.encode_now, prompt)
            self._cache[prompt] = found
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        self._cache.move_to_end(prompt)
        return found

    @torch.no_grad()
    def encode_now(self, prompt: str) -> EncodedPrompt:
        """In the calling thread, unchecked and uncached."""
        (features,) = self._encoder.encode([prompt])  # [L, condition_dim]
        return EncodedPrompt(
            features=features,
            rows=self._condition_rows(features),
            unknown_words=tuple(self._encoder.unknown_words(prompt)),
        )

    def close(self) -> None:
        self._thread.shutdown()
