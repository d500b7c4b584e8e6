"""Rollouts of the real protocol: contexts to train the draft on, and the calibration of its scores.

A threshold on a score means a share of calls only on the scores' own distribution, which is that of
the edge's *own* rollouts, not of teacher forcing. So: roll out with a threshold, take the
quantiles, and once more with those.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ciar.head_output import HeadOutput, reach_of
from ciar.models.inter_head import DraftModel
from ciar.target import TargetModel
from ciar.types import SamplingParams
from ciar.uncertainty import TENSOR_SCORES
from ciar_train.export import quantiles
from ciar_train.progress import Progress, say_nothing
from ciar_train.rollouts import Choice, Rollout, roll_out

NUM_ROUNDS = 3


class Recorder:
    """Scores of every routed position of a rollout, deciding by one of them."""

    def __init__(self, router: str, threshold: float, names: Iterable[str]) -> None:
        self.router = router
        self.threshold = threshold
        self.scores: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(self, choice: Choice) -> Tensor:
        for name, column in self.scores.items():
            column.append(score_rows(name, choice))
        return self.scores[self.router][-1] <= self.threshold

    def stacked(self) -> dict[str, Tensor]:
        """[B, routed positions] a score."""
        return {name: torch.stack(columns, dim=1).cpu() for name, columns in self.scores.items()}


def score_rows(name: str, choice: Choice) -> Tensor:
    """A score of the edge's half of a choice, for every image: [B].

    The discrete ones know single tokens only.
    """
    score = TENSOR_SCORES[name]
    columns = choice.centre, reach_of(choice.radius), choice.drafted
    if name.startswith("discrete"):
        return torch.stack([score(HeadOutput(*row)) for row in zip(*columns, strict=True)])
    return score(HeadOutput(*columns))


def calibrate(
    target: TargetModel,
    draft: DraftModel,
    conditions: list[Tensor],
    *,
    sampling: SamplingParams,
    budget: float,
    num_prefix: int,
    router: str = "interval",
    progress: Progress = say_nothing,
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
