"""What `loop_model` makes of the times and tokens that `ciar-bench latency` measured of a link."""

import math
import statistics
from collections.abc import Callable

import numpy as np

from ciar.order import order_of
from ciar_bench.latency import WAVE, Cell, Method
from ciar_bench.loop_model import LOOPS, Costs, Timeline, Token, base
from ciar_edge.result import ImageResult, Origin

AHEAD: tuple[Method, ...] = ("optimistic", "exact")  # they draft on, the prefix too
# Where round trips are measured, best first: those that draft on see answers between two drafts.
WAITING: tuple[Method, ...] = ("blocking", *AHEAD)

DoubtOf = Callable[[float], float]
"""How likely the cloud is to differ, by the router's score."""


def model_images(cell: Cell, method: Method, doubt_of: DoubtOf) -> list[Timeline]:
    """Each image as the model has it, with its own tokens and the times of the whole cell.

    Nothing of `late`, nor of edges along a wavefront: the model does not know them.
    """
    images = [one.images[method] for one in cell.rounds]
    costs = costs_of(cell, method)
    if method == WAVE:
        num_tokens = len(images[0].tokens)
        order = order_of(math.isqrt(num_tokens), cell.wavefront)
        return [base(num_tokens, costs, wave=order.wave) for _ in images]
    if method not in LOOPS:
        return []
    first = cell.rounds[0].images.values()
    num_prefix = max((one.prefix_tokens for one in first if one.drafts), default=0)
    return [LOOPS[method](tokens_of(image, doubt_of), costs, num_prefix) for image in images]


def costs_of(cell: Cell, method: Method) -> Costs:
    rounds = cell.rounds
    steps: dict[int, list[float]] = {}
    for one in rounds:
        for k, seconds in one.cloud_step.items():
            steps.setdefault(k, []).append(seconds)
    sizes = sorted(steps)
    medians = [statistics.median(steps[k]) for k in sizes]
    row, first = (
        np.polyfit([k - 1 for k in sizes], medians, 1) if len(sizes) > 1 else (0, medians[0])
    )
    if method == "base":  # one step right behind another is faster than those that edges wait for
        first = statistics.median(steps[1])
    trips: list[float] = []
    for name in WAITING:
        trips = trips or [s for one in rounds for s in one.overheads.get(name, [])]
    trip = statistics.median(trips) if trips else 0.0
    drafted = [one.images[method] for one in rounds if one.images[method].drafts]
    edge = [(i.draft_seconds + i.ahead_seconds) / i.drafts for i in drafted]
    opened = [one.images[name] for one in rounds for name in AHEAD if name in one.images]
    opening = statistics.median(i.prefix_seconds for i in opened) - trip if opened else 0.0
    return Costs(
        draft=statistics.median(edge) if edge else 0.0,
        step=float(first),
        row=float(row),
        trip=trip,
        opening=max(0.0, opening),
    )


def tokens_of(image: ImageResult, doubt_of: DoubtOf) -> list[Token]:
    """What became of its tokens. Those that no router saw are doubted as often as they differed."""
    unseen = [o for o, s in zip(image.origins, image.scores, strict=True) if math.isnan(s)]
    share = unseen.count(Origin.CORRECTED) / max(1, len(unseen))
    return [
        Token(
            is_uncertain=origin is not Origin.KEPT,
            differs=origin is Origin.CORRECTED,
            doubt=share if math.isnan(score) else doubt_of(score),
        )
        for origin, score in zip(image.origins, image.scores, strict=True)
    ]
