"""`ciar-bench load`: one cloud under many edges.

Scripted edges (`scripted`) need no draft model, so the edges of a measurement do not take the
machine from the cloud. CIAR draws a prefix and then asks for 30 % of the tokens; the base is the
cloud alone, all tokens of an image by PrefixInject, in the same steps over all images. Both are
measured in turns within a round, and ratios are to the other of the same round.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ciar.event_loop import fast_loop
from ciar.metrics import Samples, read_page, total
from ciar.types import ModelInfo, Verdict
from ciar_bench.probe import HealthWatch
from ciar_bench.scripted import ScriptedEdge
from ciar_bench.soak import wait_for_rest
from ciar_edge.connection import RemoteConfig
from ciar_edge.remote import RemoteVerifier

CIAR, BASE = ScriptedEdge(), ScriptedEdge(prefix_rate=1.0)
CONFIG = RemoteConfig(deadline_seconds=600, prefix_seconds=600, max_resumes=1000)


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """edges: how many at a time, in turns.  images: of each edge in a round.
    crowd: edges of the last part, 0: none; `crowd_images` of each.  seed: of the first image,
    the others count on.
    """

    edges: tuple[int, ...] = (1, 8, 32)
    images: int = 1
    rounds: int = 3
    crowd: int = 64
    crowd_images: int = 2
    seed: int = 1


@dataclass(kw_only=True)
class Burst:
    """Images that a number of edges drew at a time.

    beyond_forward, beyond_queue: seconds of each verify without the steps it took part in, and
    without its wait for the first of them.
    """

    seconds: float = 0.0
    image_seconds: list[float] = field(default_factory=list)
    beyond_forward: list[float] = field(default_factory=list)
    beyond_queue: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    num_positions: float = 0.0
    num_forwards: float = 0.0
    sessions_a_step: float = 0.0

    @property
    def images_per_second(self) -> float:
        return len(self.image_seconds) / self.seconds

    @property
    def positions_per_second(self) -> float:
        return self.num_positions / self.seconds

    def note(self, verdict: Verdict, seconds: float) -> None:
        timings = verdict.timings
        self.beyond_forward.append(seconds - timings.compute_seconds)
        self.beyond_queue.append(seconds - timings.compute_seconds - timings.queue_seconds)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Bursts of CIAR and of the base with as many edges, a pair a round."""

    num_edges: int
    ciar: list[Burst]
    base: list[Burst]

    def ratio(self, value: Callable[[Burst], float]) -> tuple[float, float, float]:
        """CIAR over base: median, least and largest of the rounds."""
        pairs = zip(self.ciar, self.base, strict=True)
        found = [quotient(value(a), value(b)) for a, b in pairs]
        return statistics.median(found), min(found), max(found)

    @property
    def faults(self) -> list[str]:
        count = sum(len(burst.errors) for burst in (*self.ciar, *self.base))
        return [f"{count} errors with {self.num_edges} edges"] if count else []


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Many edges at a time, and one alone before and after them.

    health_seconds: of all answers to health checks meanwhile.  left: gauges at the end.
    """

    num_edges: int
    burst: Burst
    alone: list[Burst]
    health_seconds: list[float]
    num_unwell: int
    left: dict[str, float]

    @property
    def slowest_over_median(self) -> float:
        seconds = self.burst.image_seconds
        return quotient(max(seconds, default=0.0), percentile(seconds, 50))

    @property
    def throughput_over_alone(self) -> float:
        alone = statistics.median(burst.images_per_second for burst in self.alone)
        return quotient(self.burst.images_per_second, alone)

    @property
    def num_errors(self) -> int:
        return sum(len(burst.errors) for burst in (self.burst, *self.alone))

    @property
    def faults(self) -> list[str]:
        """What is asked of a cloud and does not hold."""
        asked = {
            f"{self.num_errors} errors": not self.num_errors,
            "an image took over twice the median": self.slowest_over_median <= 2,
            "throughput under 3 times that of one edge": self.throughput_over_alone >= 3,
            "p99 of health checks of a second or more": percentile(self.health_seconds, 99) < 1,
            f"{self.num_unwell} health checks said it is not well": not self.num_unwell,
            f"left behind: {self.left}": not any(self.left.values()),
        }
        return [fault for fault, holds in asked.items() if not holds]


def quotient(a: float, b: float) -> float:
    """Not a number where nothing was drawn, so that it satisfies no limit."""
    return a / b if b else float("nan")


def percentile(values: Sequence[float], q: float) -> float:
    return float(np.percentile(values, q)) if len(values) else float("nan")


async def burst(
    address: str,
    metrics: str,
    edge: ScriptedEdge,
    info: ModelInfo,
    *,
    num_edges: int,
    num_images: int,
    seeds: Iterator[int],
) -> Burst:
    """`num_images` of each of `num_edges`, every edge over a connection of its own."""
    found = Burst()

    async def draw_all() -> None:
        async with RemoteVerifier(address, config=CONFIG) as verifier:
            await verifier.info()
            for _ in range(num_images):
                started = time.monotonic()
                try:
                    await edge.draw(verifier, info, next(seeds), on_verdict=found.note)
                except Exception as error:  # counted, and told
                    found.errors.append(repr(error))
                else:
                    found.image_seconds.append(time.monotonic() - started)

    before = await asyncio.to_thread(read_page, metrics)
    started = time.monotonic()
    await asyncio.gather(*(draw_all() for _ in range(num_edges)))
    found.seconds = time.monotonic() - started
    after = await asyncio.to_thread(read_page, metrics)
    found.num_positions = more(before, after, "positions_total")
    found.num_forwards = more(before, after, "forwards_total")
    found.sessions_a_step = more(before, after, "batch_size_sum") / max(1.0, found.num_forwards)
    return found


def more(before: Samples, after: Samples, name: str) -> float:
    return total(after, f"ciar_cloud_{name}") - total(before, f"ciar_cloud_{name}")


async def measure_load(
    address: str,
    metrics: str,
    plan: LoadPlan,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[list[Cell], Crowd | None]:
    """Against a cloud that serves nobody else.

    metrics: URL of its page.
    """
    torch.set_num_threads(1)
    seeds = itertools.count(plan.seed)
    async with RemoteVerifier(address, config=CONFIG) as verifier:
        info = await verifier.info()

    async def one(edge: ScriptedEdge, num_edges: int, num_images: int) -> Burst:
        found = await burst(
            address,
            metrics,
            edge,
            info,
            num_edges=num_edges,
            num_images=num_images,
            seeds=seeds,
        )
        for error in found.errors:
            progress(f"an image failed: {error}")
        return found

    cells = [Cell(num_edges=n, ciar=[], base=[]) for n in plan.edges]
    for number in range(1 + plan.rounds):  # the first one warms up
        for cell in cells:
            progress(f"round {number} of {plan.rounds}: {cell.num_edges} edges")
            pair = [await one(edge, cell.num_edges, plan.images) for edge in (CIAR, BASE)]
            if number > 0:
                cell.ciar.append(pair[0])
                cell.base.append(pair[1])
    crowd = None
    if plan.crowd:
        progress(f"{plan.crowd} edges")
        before = await one(CIAR, 1, 3)
        async with HealthWatch(address) as health:
            crowded = await one(CIAR, plan.crowd, plan.crowd_images)
        left = await wait_for_rest(metrics)
        crowd = Crowd(
            num_edges=plan.crowd,
            burst=crowded,
            alone=[before, await one(CIAR, 1, 3)],
            health_seconds=health.seconds,
            num_unwell=health.num_unwell,
            left=left,
        )
    return cells, crowd


def run_load(
    address: str, metrics: str, plan: LoadPlan, *, progress: Callable[[str], None]
) -> tuple[list[Cell], Crowd | None]:
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(measure_load(address, metrics, plan, progress=progress))
