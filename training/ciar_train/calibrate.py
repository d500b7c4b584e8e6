"""Rollouts of the real protocol: contexts to train the draft on, and the calibration of its scores.

A threshold on a score means a share of calls only on the scores' own distribution, which is that of
the edge's *own* rollouts, not of teacher forcing. So: roll out with a threshold, take the
quantiles, and once more with those.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ciar.models.inter_head import DraftModel
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar.uncertainty import TENSOR_SCORES, HeadOutput
from ciar_train.draft import Contexts
from ciar_train.export import quantiles
from ciar_train.rollouts import Choice, Rollout, roll_out

Progress = Callable[[int, int, str], None]
BATCH = 32
NUM_ROUNDS = 3


def batches(count: int, size: int = BATCH) -> Iterator[range]:
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def cloud_images(
    target: TargetModel,
    conditions: list[Tensor],
    *,
    sampling: SamplingParams,
    first_seed: int,
    progress: Progress = lambda done, total, what: None,
) -> Contexts:
    """Images the cloud draws alone for these prompts.

    They are contexts with guidance in them, which drawn pictures lack.
    """
    grids = []
    for span in batches(len(conditions)):
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
    progress: Progress = lambda done, total, what: None,
) -> Contexts:
    """Images both sides draw, a random `kept_share` of the routed tokens the edge's own.

    Random, because the radius that would route is not trained yet; features are zero until phi is.
    """
    generator = torch.Generator().manual_seed(first_seed)
    grids = []

    def keep(choice: Choice) -> Tensor:
        return torch.rand(len(choice.centre), generator=generator) < kept_share

    for span in batches(len(conditions)):
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


class Recorder:
    """Scores of every routed position of a rollout, deciding by one of them."""

    def __init__(self, router: str, threshold: float, names: Iterable[str]) -> None:
        self.router = router
        self.threshold = threshold
        self.scores: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(self, choice: Choice) -> Tensor:
        for name, column in self.scores.items():
            column.append(score_rows(name, choice.centre, choice.radius))
        return self.scores[self.router][-1] <= self.threshold

    def stacked(self) -> dict[str, Tensor]:
        """[B, routed positions] a score."""
        return {name: torch.stack(columns, dim=1).cpu() for name, columns in self.scores.items()}


def score_rows(name: str, centre: Tensor, radius: Tensor) -> Tensor:
    """A score for each row of centre and radius [B, V]: [B].

    The discrete ones know single tokens only.
    """
    score = TENSOR_SCORES[name]
    if name.startswith("discrete"):
        rows = [score(HeadOutput(c, r)) for c, r in zip(centre, radius, strict=True)]
        return torch.stack(rows)
    return score(HeadOutput(centre, radius))


def calibrate(
    target: TargetModel,
    draft: DraftModel,
    conditions: list[Tensor],
    *,
    sampling: SamplingParams,
    budget: float,
    num_prefix: int,
    router: str = "interval",
    progress: Progress = lambda done, total, what: None,
) -> tuple[dict[str, list[float]], Rollout]:
    """101 quantiles of every score on the edge's own rollouts at `budget`, and the last rollout."""
    threshold = float("inf")
    found: dict[str, Tensor] = {}
    for round_number in range(NUM_ROUNDS):
        is_last = round_number == NUM_ROUNDS - 1
        recorder = Recorder(router, threshold, TENSOR_SCORES if is_last else [router])
        rollout = roll_out(
            target,
            draft,
            conditions,
            seeds=list(range(1_000_000, 1_000_000 + len(conditions))),
            sampling=sampling,
            num_prefix=num_prefix,
            keep=recorder.keep,
        )
        found = recorder.stacked()
        threshold = float(found[router].flatten().quantile(1 - budget))
        progress(round_number + 1, NUM_ROUNDS, "calibration")
    return {name: quantiles(values) for name, values in found.items()}, rollout
