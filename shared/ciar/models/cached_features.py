"""Text features computed before, so that neither the encoder nor its libraries are needed.

A folder holds `config.json` (kind, dim, max_tokens), `prompts.json` (a list), and
`model.safetensors`: `features` [all rows, C] in float16 or float32, one prompt after another, and
`starts` [P + 1], where each begins.
"""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from ciar.checkpoint import WEIGHTS_FILE, forget_weights, read_config, save_folder
from ciar.errors import CheckpointError, InvalidInput
from ciar.mapped import mapped_tensors
from ciar.output_file import replace_file

KIND = "cached-features"
PROMPTS_FILE = "prompts.json"


class CachedFeatures:
    """Of known prompts. dim: width of a feature.  max_tokens: most rows of a prompt."""

    def __init__(
        self, prompts: Sequence[str], features: Tensor, starts: Sequence[int], *, max_tokens: int
    ) -> None:
        self._index = {prompt: number for number, prompt in enumerate(prompts)}
        self._features, self._starts = features, starts
        self.dim, self.max_tokens = features.shape[1], max_tokens

    @classmethod
    def load(cls, folder: Path) -> "CachedFeatures":
        """Raises `CheckpointError`."""
        config = read_config(folder)
        try:
            prompts = json.loads((folder / PROMPTS_FILE).read_text(encoding="utf-8"))
            tensors = mapped_tensors(folder / WEIGHTS_FILE)
            features, starts = tensors["features"], tensors["starts"].tolist()
            max_tokens, dim = int(config["max_tokens"]), int(config["dim"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: no cached features: {error!r}") from error
        is_whole = len(starts) == len(prompts) + 1 and starts[-1] == len(features)
        if not is_whole or features.ndim != 2 or features.shape[1] != dim:
            raise CheckpointError(
                f"{folder}: {len(prompts)} prompts, {len(starts) - 1} of them with features of "
                f"shape {tuple(features.shape)}: the files belong to different caches"
            )
        return cls(prompts, features, starts, max_tokens=max_tokens)

    @classmethod
    def save(
        cls, folder: Path, prompts: Sequence[str], rows: Sequence[Tensor], *, max_tokens: int
    ) -> None:
        """rows: [L, C] of each prompt, stored as they are."""
        starts = [0, *accumulate(len(one) for one in rows)]
        config = {"kind": KIND, "dim": rows[0].shape[1], "max_tokens": max_tokens}
        tensors = {"features": torch.cat(list(rows)), "starts": torch.tensor(starts)}
        text = json.dumps(list(prompts), ensure_ascii=False, indent=0)
        folder.mkdir(parents=True, exist_ok=True)
        forget_weights(folder)
        replace_file(folder / PROMPTS_FILE, text.encode())
        save_folder(folder, config, tensors)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Float32 [L, dim] of each prompt. Raises `InvalidInput` for one that is not known."""
        found = []
        for prompt in prompts:
            number = self._index.get(prompt)
            if number is None:
                raise InvalidInput(
                    "prompt",
                    prompt,
                    f"give one of the {len(self._index)} prompts whose features are here, or a "
                    "model folder with a text encoder",
                )
            first, last = self._starts[number], self._starts[number + 1]
            found.append(self._features[first:last].float())
        return found

    def unknown_words(self, prompt: str) -> list[str]:
        """None: a prompt is known or it is not."""
        return []
