"""Token grids a draft learns and is judged on: drawn pictures, and images that the models drew."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import overload

import torch
from torch import Tensor

from ciar.models.inter_head import DraftModel
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar_train.codes import CodeFolder, Conditions, pad_left
from ciar_train.gpu import moved
from ciar_train.progress import Progress, say_nothing
from ciar_train.rollouts import Choice, roll_out

AT_ONCE = {"cpu": 32, "cuda": 256}  # images drawn in lock step


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


def batches(count: int, size: int) -> Iterator[range]:
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def at_once(target: TargetModel) -> int:
    return AT_ONCE[target.injection.weight.device.type]


def cloud_images(
    target: TargetModel,
    conditions: Sequence[Tensor],
    *,
    sampling: SamplingParams,
    first_seed: int,
    progress: Progress = say_nothing,
) -> Contexts:
    """Images the cloud draws alone for these prompts.

    They are contexts with guidance in them, which drawn pictures lack.
    """
    grids = []
    for span in batches(len(conditions), at_once(target)):
        picked = [conditions[i].float() for i in span]
        seeds = [first_seed + i for i in span]
        grids.append(roll_out(target, None, picked, seeds=seeds, sampling=sampling).tokens)
        progress(span.stop, len(conditions), "cloud images")
    return Contexts(tokens=torch.cat(grids), conditions=conditions)


def protocol_images(
    target: TargetModel,
    draft: DraftModel,
    conditions: Sequence[Tensor],
    *,
    sampling: SamplingParams,
    kept_share: float,
    num_prefix: int,
    first_seed: int,
    progress: Progress = say_nothing,
) -> Contexts:
    """Images both sides draw, a random `kept_share` of the routed tokens the edge's own.

    Random, because the radius that would route is not trained yet; features are zero until phi is.
    """
    generator = torch.Generator().manual_seed(first_seed)
    grids = []

    def keep(choice: Choice) -> Tensor:
        return torch.rand(len(choice.centre), generator=generator) < kept_share

    for span in batches(len(conditions), at_once(target)):
        rollout = roll_out(
            target,
            draft,
            [conditions[i].float() for i in span],
            seeds=[first_seed + i for i in span],
            sampling=sampling,
            num_prefix=num_prefix,
            keep=keep,
        )
        grids.append(rollout.tokens)
        progress(span.stop, len(conditions), "protocol images")
    return Contexts(tokens=torch.cat(grids), conditions=conditions)
