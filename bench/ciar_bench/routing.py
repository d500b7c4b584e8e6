"""`ciar-bench routing`: which score finds the tokens that need the cloud?

Images of seeded prompts are rolled out with the real protocol at a budget. At every routed position
both sides predict from the same committed context, so for each score we know what it would have
kept:

    AUROC         of the score against "total variation between edge and cloud above its median"
    disagreement  share of tokens among the kept whose coupled draws differ
    kept TV       mean total variation among the kept

kept: all but the share of positions with the highest scores. The ceiling is the score that knows
the total variation; disagreement itself is a coin toss given the two distributions, so no score
reaches zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ciar.checkpoint import read_sampling
from ciar.errors import InvalidInput
from ciar.models.inter_head import DraftModel
from ciar.prefix import DEFAULT_PREFIX_RATE, prefix_length
from ciar.target import TargetModel
from ciar.text import load_text
from ciar.types import SamplingParams
from ciar.uncertainty import TENSOR_SCORES
from ciar_edge.models import load_draft_model
from ciar_train.calibrate import score_rows
from ciar_train.draft import describe
from ciar_train.losses import auroc
from ciar_train.model_images import at_once, batches
from ciar_train.progress import Progress, say_nothing
from ciar_train.rollouts import Choice, roll_out

CEILING = "total variation (ceiling)"
RANDOM = "random"
DIFFERS = "differs"
IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class RoutingRow:
    """One score."""

    score: str
    auroc: float
    disagreement: float
    kept_tv: float


@dataclass(frozen=True, kw_only=True)
class RoutingReport:
    num_images: int
    num_positions: int
    share: float
    cloud_share: float  # routed positions the rollouts sent to the cloud
    disagreement: float  # over all routed positions
    tv: float
    expected_agreement: float  # closed form, without the luck of the draw
    mean_width: float
    covered: float  # mass of p_C inside the interval
    rows: tuple[RoutingRow, ...]


class Watcher:
    """Decides by one score with a threshold, and records every score beside the truth."""

    def __init__(self, router: str, threshold: float, names: list[str]) -> None:
        self.router, self.threshold, self.names = router, threshold, names
        self.columns: dict[str, list[Tensor]] = {}
        self.first = 0  # image of those that are drawn together

    def keep(self, choice: Choice) -> Tensor:
        found = describe(choice.cloud.softmax(-1), choice.centre, choice.radius)
        values = {name: score_rows(name, choice) for name in self.names}
        is_kept = values[self.router] <= self.threshold
        values |= {
            CEILING: found["tv"],
            "agreement": found["agreement"],
            "covered": found["covered"],
            DIFFERS: (choice.drafted != choice.drawn).float(),
            "kept": is_kept.float(),
            IMAGE: self.first + torch.arange(len(is_kept)),
        }
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value.cpu())
        return is_kept

    def flat(self) -> dict[str, Tensor]:
        return {name: torch.cat(column) for name, column in self.columns.items()}


def watch_bundle(
    folder: Path,
    prompts: Sequence[str],
    *,
    share: float,
    has_discrete: bool = False,
    device: str = "cpu",
    progress: Progress = say_nothing,
) -> dict[str, Tensor]:
    """Roll out prompts with a model bundle as it ships: see `watch_routing`.

    Raises `CheckpointError`, and `InvalidInput` without a calibration.
    """
    target = TargetModel.load(folder / "cloud", device=device)
    edge, encoder = load_draft_model(folder / "edge"), load_text(folder / "text")
    return watch_routing(
        target,
        edge.draft.to(device),
        [encoder.encode([prompt])[0] for prompt in prompts],
        sampling=read_sampling(folder / "cloud"),
        calibration={name: list(row) for name, row in edge.calibration.items()},
        router=edge.router,
        share=share,
        num_prefix=prefix_length(DEFAULT_PREFIX_RATE, target.config.num_tokens),
        has_discrete=has_discrete,
        progress=progress,
    )


def watch_routing(
    target: TargetModel,
    draft: DraftModel,
    conditions: list[Tensor],
    *,
    sampling: SamplingParams,
    calibration: Mapping[str, list[float]],
    router: str,
    share: float,
    num_prefix: int,
    has_discrete: bool = False,
    progress: Progress = say_nothing,
) -> dict[str, Tensor]:
    """Roll out all conditions (text features, one [L, C] an image); a number a position by name.

    The scores, `RANDOM`, `CEILING`, `DIFFERS`, `IMAGE`, and what else `RoutingReport` tells of.
    Raises `InvalidInput` without a calibration.
    """
    names = [n for n in TENSOR_SCORES if has_discrete or not n.startswith("discrete")]
    watcher = Watcher(router, threshold_at(share, router, calibration), names)
    for span in batches(len(conditions), at_once(target)):
        watcher.first = span.start
        roll_out(
            target,
            draft,
            [conditions[i] for i in span],
            seeds=list(span),
            sampling=sampling,
            num_prefix=num_prefix,
            keep=watcher.keep,
        )
        progress(span.stop, len(conditions), "rollouts")
    values = watcher.flat()
    values[RANDOM] = torch.rand(values[CEILING].shape, generator=torch.Generator().manual_seed(0))
    return values


def threshold_at(share: float, router: str, calibration: Mapping[str, Sequence[float]]) -> float:
    """What so large a share of the calibration's tokens exceed by the router's score.

    Raises `InvalidInput` if the score has no calibration.
    """
    if router not in calibration:
        remedy = "the edge has no calibration of it: train the draft, `ciar-train draft` makes one"
        raise InvalidInput("router", router, remedy)
    return calibration[router][round(100 * (1 - share))]


def scores_in(values: Mapping[str, Tensor]) -> list[str]:
    """Names of all scores, the floor and the ceiling last."""
    return [*(name for name in TENSOR_SCORES if name in values), RANDOM, CEILING]


def report_routing(values: Mapping[str, Tensor], *, share: float) -> RoutingReport:
    """Judge every score. values: of `watch_routing`."""
    return RoutingReport(
        num_images=int(values[IMAGE].max()) + 1,
        num_positions=len(values[CEILING]),
        share=share,
        cloud_share=1 - float(values["kept"].mean()),
        disagreement=float(values[DIFFERS].mean()),
        tv=float(values[CEILING].mean()),
        expected_agreement=float(values["agreement"].mean()),
        mean_width=float(values["interval"].mean()),
        covered=float(values["covered"].mean()),
        rows=tuple(judge(name, values, share) for name in scores_in(values)),
    )


def judge(name: str, values: Mapping[str, Tensor], share: float) -> RoutingRow:
    """Keep the lowest `1 - share` of the positions by this score."""
    scores, tv = values[name], values[CEILING]
    num_kept = round((1 - share) * len(scores))
    return RoutingRow(
        score=name,
        auroc=auroc(scores, tv > tv.median()),
        disagreement=float(by_score(values[DIFFERS], scores)[:num_kept].mean()),
        kept_tv=float(by_score(tv, scores)[:num_kept].mean()),
    )


def by_score(values: Tensor, scores: Tensor) -> Tensor:
    """Values [n] as the scores [n] rise, float64; where scores are equal, their mean.

    So a score that ties positions does as well as one that orders them by chance.
    """
    order = scores.argsort()
    group = torch.cat([torch.zeros(1), scores[order].diff() != 0]).cumsum(0).long()
    return (group.bincount(values[order].double()) / group.bincount())[group]
