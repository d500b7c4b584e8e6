"""`ciar-bench soak`: does a cloud's memory stay flat over many images, and does all come back?

Edges without a draft model keep their tokens by dice, so that the cloud has as much to do as it
can. Of ten images one is given up half way. Resident memory is that of the cloud's process and of
its engine processes, read from /proc. It grows at first: slots take memory when they are first
used, and kernels keep what they prepare for each number of rows.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ciar.errors import InvalidInput
from ciar.event_loop import fast_loop
from ciar.metrics import read_page, total
from ciar.types import ModelInfo, Verdict
from ciar_bench.scripted import ScriptedEdge
from ciar_edge.remote import RemoteVerifier

EDGE = ScriptedEdge()
GIVEN_UP = 10  # one image of so many
WARM_SHARE, LAST_SHARE = 0.25, 0.1  # of the images: before memory counts, and at the end
LEFT_SECONDS = 10.0  # for sessions, slots and works to come back to zero
GAUGES = ("sessions", "slots_in_use", "queued_works")


@dataclass(frozen=True, kw_only=True)
class SoakReport:
    """resident_bytes: of the cloud, a sample a second.  left: gauges of the cloud at the end."""

    num_images: int
    num_given_up: int
    num_errors: int
    seconds: float
    first_bytes: float  # median behind the warm-up
    last_bytes: float  # median of the last images
    left: dict[str, float]
    resident_bytes: list[int]

    @property
    def growth(self) -> float:
        """Of resident memory, as a share."""
        return self.last_bytes / self.first_bytes - 1

    @property
    def is_flat(self) -> bool:
        """Under 2 %, nothing left, no error."""
        return self.growth < 0.02 and not any(self.left.values()) and not self.num_errors


class GivenUp(Exception):
    """The edge wants no more of an image."""


def process_tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from process_tree(int(child))


def resident_bytes(pid: int) -> int:
    """Of a process and its descendants. Raises `InvalidInput` where there is no /proc."""
    total = 0
    for one in process_tree(pid):
        status = Path(f"/proc/{one}/status")
        if not status.exists():
            raise InvalidInput("pid", one, "memory is read from /proc: run this on Linux")
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        total += int(fields.get("VmRSS", "0 kB").split()[0]) * 1024
    return total


async def read_gauges(metrics: str) -> dict[str, float]:
    """metrics: the URL of the cloud's page."""
    samples = await asyncio.to_thread(read_page, metrics)
    return {name: total(samples, f"ciar_cloud_{name}") for name in GAUGES}


async def draw_image(verifier: RemoteVerifier, info: ModelInfo, number: int) -> None:
    """Raises `GivenUp` for one of ten."""

    def on_verdict(verdict: Verdict, seconds: float) -> None:
        if number % GIVEN_UP == 0 and verdict.position >= info.num_tokens // 2:
            raise GivenUp

    await EDGE.draw(verifier, info, number, on_verdict=on_verdict)


async def soak(
    address: str,
    metrics: str,
    pid: int,
    *,
    num_images: int,
    num_edges: int,
    progress: Callable[[str], None] = lambda line: None,
) -> SoakReport:
    """Draw images, `num_edges` at a time, against a cloud that serves nobody else."""
    numbers, samples = itertools.count(1), list[tuple[int, int]]()
    counts = {"drawn": 0, "given up": 0, "errors": 0}

    async def edge() -> None:
        while (number := next(numbers)) <= num_images:
            async with RemoteVerifier(address) as verifier:
                try:
                    await draw_image(verifier, await verifier.info(), number)
                    counts["drawn"] += 1
                except GivenUp:
                    counts["given up"] += 1
                except Exception as error:  # counted, and told
                    counts["errors"] += 1
                    progress(f"image {number}: {error!r}")

    async def watch() -> None:
        while True:
            samples.append((sum(counts.values()), resident_bytes(pid)))
            if len(samples) % 10 == 0:
                done, size = samples[-1]
                progress(f"{done}/{num_images} images, {size / 2**20:.1f} MiB")
            await asyncio.sleep(1)

    started = time.monotonic()
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(edge() for _ in range(num_edges)))
    seconds = time.monotonic() - started
    samples.append((num_images, resident_bytes(pid)))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    left = await wait_for_rest(metrics)
    first = [size for done, size in samples if done >= WARM_SHARE * num_images]
    return SoakReport(
        num_images=counts["drawn"],
        num_given_up=counts["given up"],
        num_errors=counts["errors"],
        seconds=seconds,
        first_bytes=statistics.median(first[: max(1, len(first) // 10)]),
        last_bytes=statistics.median(
            [size for done, size in samples if done >= (1 - LAST_SHARE) * num_images]
        ),
        left=left,
        resident_bytes=[size for _, size in samples],
    )


async def wait_for_rest(metrics: str) -> dict[str, float]:
    """The gauges once all are zero, or when there was time enough for that."""
    deadline = time.monotonic() + LEFT_SECONDS
    while any((left := await read_gauges(metrics)).values()) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return left


def run_soak(
    address: str,
    metrics: str,
    pid: int,
    *,
    num_images: int,
    num_edges: int,
    progress: Callable[[str], None],
) -> SoakReport:
    torch.set_num_threads(1)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(
            soak(
                address,
                metrics,
                pid,
                num_images=num_images,
                num_edges=num_edges,
                progress=progress,
            )
        )
