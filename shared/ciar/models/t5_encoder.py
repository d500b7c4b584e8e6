"""LlamaGen's text features: the last hidden states of flan-t5-xl's encoder.

A folder holds `config.json` (kind `t5`) and `t5/`, the encoder and its tokenizer as transformers
saves them. Prompts are cleaned as the captions of training were, cut to 120 tokens with the final
`</s>`, and only their own rows come back: padding is the target's business.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciar.checkpoint import read_config
from ciar.errors import CheckpointError, InvalidInput, MissingExtra
from ciar.models.caption_cleaning import clean_caption

KIND, INNER = "t5", "t5"
MAX_TOKENS = 120


class T5Encoder:
    """Prompts to features, frozen. dim: width of a feature.  max_tokens: most rows of a prompt."""

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int = MAX_TOKENS) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.dim, self.max_tokens = int(model.config.d_model), max_tokens

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "T5Encoder":
        """Raises `CheckpointError`, or `MissingExtra` without transformers."""
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except ImportError as error:
            raise MissingExtra(
                f"{folder} needs transformers: install it with pip install 'ciar[t5]'"
            ) from error
        max_tokens = int(read_config(folder).get("max_tokens", MAX_TOKENS))
        try:
            model: Any = T5EncoderModel.from_pretrained(
                folder / INNER, dtype=dtype, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder / INNER, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder / INNER}: no T5 encoder: {error}") from error
        model.to(device).eval().requires_grad_(False)
        return cls(model, tokenizer, max_tokens=max_tokens)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Float32 [L, dim] of each prompt, L = 1 .. max_tokens; one forward pass for all."""
        if isinstance(prompts, str):
            raise InvalidInput("prompts", prompts, "give a list of prompts: [prompt]")
        if not prompts:
            return []
        batch = self._tokenizer(
            [clean_caption(prompt) for prompt in prompts],
            max_length=self.max_tokens,
            truncation=True,
            padding="longest",
            return_tensors="pt",
        ).to(self._model.device)
        hidden = self._model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state  # [B, T, C], padding behind
        lengths = batch["attention_mask"].sum(1).tolist()
        return [row[:length].float().clone() for row, length in zip(hidden, lengths, strict=True)]

    def unknown_words(self, prompt: str) -> list[str]:
        """None: its pieces spell every word."""
        return []
