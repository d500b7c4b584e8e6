"""What was measured of a link, method by method: medians over rounds, and how far these spread.

A ratio is the median of the rounds' own, so that a slow spell of the machine falls on both of its
sides.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ciar_bench.latency import ALONE, METHODS, Cell, Method, Round
from ciar_bench.latency_model import DoubtOf, model_images
from ciar_bench.slow_link import SlowLink
from ciar_edge.result import ImageResult, Origin

K = TypeVar("K")
EQUALS: tuple[tuple[Method, Method], ...] = (
    ("base", "exact"),
    ("blocking", "optimistic"),
    ("wavefront-blocking", "wavefront-optimistic"),
)
FAR = 4.0  # nats: by then the cloud draws it e^4 times less gladly than what it drew
REFERENCES: tuple[Method, ...] = ("base", "blocking", "optimistic")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median over rounds, the 10th and the 90th percentile."""

    median: float
    least: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class LateReport:
    """Kept tokens an image: taken back; left, though they fall short by more than `FAR`.

    With a `max_gap` of at least `FAR` there were as many far ones as both together.
    """

    taken_back: float
    far: float


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """cloud_step: C(k), seconds.  step_ratios: C(k) / C(1), by k.
    methods: the measures of each, by the names in `measures`.
    equal_images: the share of images in which exact has the tokens of the base, and optimistic
        those of blocking; None where they need not.
    """

    link: SlowLink
    carrier: str
    num_rounds: int
    num_tokens: int
    cloud_step: dict[int, Spread]
    step_ratios: dict[int, Spread]
    methods: dict[Method, dict[str, Spread]]
    equal_images: float | None
    late: LateReport | None


def report_cell(cell: Cell, doubt_of: DoubtOf, *, is_static: bool) -> CellReport:
    """is_static: whether a token is uncertain whatever became of those before it."""
    rounds = cell.rounds
    methods = [name for name in METHODS if name in rounds[0].images]
    steps = [one.cloud_step for one in rounds]
    over_one = [{k: one[k] / one[1] for k in one if k > 1} if 1 in one else {} for one in steps]
    pairs = [[one.images.get(name) for name in pair] for pair in EQUALS for one in rounds]
    equal = [a.tokens == b.tokens for a, b in pairs if a and b]
    return CellReport(
        link=cell.link,
        carrier=cell.carrier,
        num_rounds=len(rounds),
        num_tokens=len(next(iter(rounds[0].images.values())).tokens),
        cloud_step=spreads(steps),
        step_ratios=spreads(over_one),
        methods={name: spreads(measures_of(cell, name, doubt_of)) for name in methods},
        equal_images=statistics.mean(equal) if equal and is_static else None,
        late=report_late([one.images["late"] for one in rounds]) if "late" in methods else None,
    )


def report_late(images: Sequence[ImageResult]) -> LateReport:
    def num_far(image: ImageResult) -> int:
        pairs = zip(image.gaps, image.origins, strict=True)
        return sum(gap > FAR and origin is Origin.KEPT for gap, origin in pairs)

    return LateReport(
        taken_back=statistics.mean(image.late for image in images),
        far=statistics.mean(map(num_far, images)),
    )


def measures_of(cell: Cell, method: Method, doubt_of: DoubtOf) -> list[dict[str, float]]:
    """Of every round; also what the model makes of its image, if anything, and that over what was
    measured.
    """
    found = [measures(one, method) for one in cell.rounds]
    for values, image in zip(found, model_images(cell, method, doubt_of), strict=False):
        values["model_seconds"] = image.seconds
        values["model_ratio"] = image.seconds / values["seconds"]
    return found


def measures(one: Round, method: Method) -> dict[str, float]:
    """Of an image; what there is nothing of is left out.

    base_ratio, blocking_ratio, optimistic_ratio: seconds of that method over those of this one.
    cloud_forwards, cloud_positions: a token of the image.
    uncertain: u, the share of tokens behind the prefix that nobody trusted the edge with.
    agreed: a, the share of those it had drafted that stood.
    edge_seconds: draft model, router and features, also for drafts in vain.
    edge_blocking_ratio: these over those of blocking.
    late: kept tokens taken back, a token of the image.
    draft_seconds: e, them a draft.  draft_step_ratio: e / C(1).
    protocol_seconds: r, of a round trip without the cloud's queue and compute.
    """
    image = one.images[method]
    num_tokens = len(image.tokens)
    found = {
        "seconds": image.seconds,
        **{
            f"{name}_ratio": one.images[name].seconds / image.seconds
            for name in REFERENCES
            if name in one.images and name != method
        },
        "cloud_forwards": image.cloud_forwards / num_tokens,
        "cloud_positions": image.cloud_positions / num_tokens,
        "round_trips": float(image.round_trips),
        "uplink_bytes": float(image.uplink_bytes),
        "downlink_bytes": float(image.downlink_bytes),
    }
    if method in ALONE:
        return found
    origins = zip(image.origins, image.scores, strict=True)
    routed = [origin for origin, score in origins if not math.isnan(score)]
    behind = routed or [origin for origin in image.origins if origin is not Origin.PREFIX]
    num_agreed, num_corrected = (behind.count(o) for o in (Origin.AGREED, Origin.CORRECTED))
    found["uncertain"] = 1 - behind.count(Origin.KEPT) / len(behind)
    if method == "late":
        found["late"] = image.late / num_tokens
    if num_agreed + num_corrected:
        found["agreed"] = num_agreed / (num_agreed + num_corrected)
    found["drafts"] = float(image.drafts)
    found["edge_seconds"] = edge = image.draft_seconds + image.ahead_seconds
    if "blocking" in one.images and method != "blocking":
        blocking = one.images["blocking"]
        found["edge_blocking_ratio"] = edge / (blocking.draft_seconds + blocking.ahead_seconds)
    found["draft_seconds"] = edge / image.drafts
    if "base" in one.images:
        found["draft_step_ratio"] = found["draft_seconds"] / one.cloud_step[1]
    if one.overheads[method]:
        found["protocol_seconds"] = statistics.median(one.overheads[method])
    return found


def spreads(rounds: Sequence[Mapping[K, float]]) -> dict[K, Spread]:
    """Of every value, over the rounds that have it."""
    keys = dict.fromkeys(key for one in rounds for key in one)
    return {key: spread([one[key] for one in rounds if key in one]) for key in keys}


def spread(values: Sequence[float]) -> Spread:
    least, median, largest = np.percentile(values, (10, 50, 90))
    return Spread(median=float(median), least=float(least), largest=float(largest))
