"""Where the time of an image goes: who was busy when, watched or modelled, as a picture."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ciar.types import Verdict, VerifyBatch
from ciar_bench.loop_model import Lane, Span
from ciar_bench.tables.figures import save
from ciar_edge.result import ImageResult, Silent

COLOURS: Mapping[Lane, str] = {
    "edge": "#0072B2",
    "edge, in vain": "#56B4E9",
    "cloud": "#D55E00",
}
LANES = ("cloud", "edge")  # from the bottom


class Watch(Silent):
    """An observer that notes when edge and cloud are busy, in seconds from now on.

    overheads: of the round trips, without the cloud's queue and compute.
    """

    def __init__(self) -> None:
        self.overheads: list[float] = []
        self._started = time.perf_counter()
        self._drafts: list[tuple[int, float, float]] = []  # position, seconds, end or later
        self._steps: list[Span] = []

    def on_draft(self, *, position: int, seconds: float) -> None:
        now = time.perf_counter() - self._started
        self._drafts.append((position, seconds, now))

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        now = time.perf_counter() - self._started
        timings = verdict.timings
        overhead = seconds - timings.queue_seconds - timings.compute_seconds
        end = now - overhead / 2  # half of it on each way: the clocks of the two know no better
        self._steps.append(Span("cloud", end - timings.compute_seconds, end))
        self.overheads.append(overhead)

    def spans(self, result: ImageResult) -> list[Span]:
        """Of the image; drafts of a position that was drafted again were in vain.

        Those of a wave, which are told at once, stand one behind the other.
        """
        drafts: list[Span] = []  # from the last
        seen: set[int] = set()
        start = math.inf
        for position, seconds, told in reversed(self._drafts):
            end = min(told, start)
            start = end - seconds
            drafts.append(Span("edge, in vain" if position in seen else "edge", start, end))
            seen.add(position)
        opening = [Span("cloud", 0.0, result.prefix_seconds)] if result.prefix_seconds else []
        return [*opening, *reversed(drafts), *self._steps]


def draw_gantt(path: Path, images: Sequence[tuple[str, Sequence[Span]]]) -> None:
    """A row of lanes an image, one below the other on one scale. images: titles and spans."""
    end = max(span.end for _, spans in images for span in spans)
    figure = Figure(figsize=(11, 0.6 + 0.95 * len(images)), layout="constrained")
    for number, (title, spans) in enumerate(images):
        axes = figure.add_subplot(len(images), 1, number + 1)
        for lane, colour in COLOURS.items():
            bars = [(s.start * 1e3, (s.end - s.start) * 1e3) for s in spans if s.lane == lane]
            row = LANES.index(lane.partition(",")[0])
            label = lane if number == 0 else None
            axes.broken_barh(bars, (row + 0.1, 0.8), color=colour, lw=0, label=label)
        axes.set(xlim=(0, 1.02e3 * end), ylim=(0, 2), yticks=(0.5, 1.5), yticklabels=LANES)
        axes.set_title(title, fontsize=8, loc="left", pad=2)
        axes.tick_params(labelsize=7, labelbottom=number == len(images) - 1)
    axes.set_xlabel("milliseconds", fontsize=8)
    figure.legend(fontsize=7, loc="outside upper right", ncols=len(COLOURS))
    save(figure, path)
