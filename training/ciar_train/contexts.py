"""Token grids that a draft learns and is judged on, beside the text features of their prompts."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import overload

import torch
from torch import Tensor

from ciar_train.codes import CodeFolder, Conditions, pad_left
from ciar_train.gpu import moved


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """Token grids with the text features of their prompts."""

    tokens: Tensor  # [N, T]
    conditions: Sequence[Tensor]  # one [L, C] an image

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Conditions, Tensor]:
        padded = pad_left([self.conditions[i].float() for i in indices.tolist()])
        return (
            Conditions(moved(padded.features, device), moved(padded.mask, device)),
            moved(self.tokens[indices].long(), device),
        )


class Lazy(Sequence[Tensor]):
    """Tensors that are read when they are asked for; a slice reads all of it."""

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self.read(i) for i in range(len(self))[index]]
        return self.read(range(len(self))[index])

    def read(self, index: int) -> Tensor:
        raise NotImplementedError


class FirstCaptions(Lazy):
    """Text features [L, C] float16 of the first caption of pictures.

    They stay in the folder: a million pictures' features of a large encoder fit no memory.
    """

    def __init__(self, folder: CodeFolder, indices: range) -> None:
        self._folder, self._indices = folder, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Tensor:
        return self._folder.first_caption(self._indices[index])


class Chain(Lazy):
    """Several sequences, one after another."""

    def __init__(self, *parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._starts = list(accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> Tensor:
        part = bisect_right(self._starts, index) - 1
        return self._parts[part][index - self._starts[part]]


def drawn(folder: CodeFolder, indices: range) -> Contexts:
    """Drawn pictures with their first caption."""
    return Contexts(
        tokens=folder.token_batch(torch.tensor(list(indices))),
        conditions=FirstCaptions(folder, indices),
    )


def joined(*parts: Contexts) -> Contexts:
    return Contexts(
        tokens=torch.cat([p.tokens for p in parts]),
        conditions=Chain(*(p.conditions for p in parts)),
    )
