"""Token grids a draft learns and is judged on: drawn pictures, and images that the models drew."""

from collections.abc import Iterator
from dataclasses import dataclass

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
    conditions: list[Tensor]  # one [L, C] an image

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Conditions, Tensor]:
        padded = pad_left([self.conditions[i].float() for i in indices.tolist()])
        return (
            Conditions(moved(padded.features, device), moved(padded.mask, device)),
            moved(self.tokens[indices].long(), device),
        )


def drawn(folder: CodeFolder, indices: range) -> Contexts:
    """Drawn pictures with their first caption."""
    picks = torch.tensor(list(indices))
    rows = folder.condition_batch(picks, torch.zeros_like(picks))
    conditions = [f[m].half() for f, m in zip(rows.features, rows.mask, strict=True)]
    return Contexts(tokens=folder.token_batch(picks), conditions=conditions)


def joined(*parts: Contexts) -> Contexts:
    return Contexts(
        tokens=torch.cat([p.tokens for p in parts]),
        conditions=[c for p in parts for c in p.conditions],
    )


def batches(count: int, size: int) -> Iterator[range]:
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def at_once(target: TargetModel) -> int:
    return AT_ONCE[target.injection.weight.device.type]


def cloud_images(
    target: TargetModel,
    conditions: list[Tensor],
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
    conditions: list[Tensor],
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
