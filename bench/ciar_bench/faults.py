"""`ciar-bench faults`: what is lost when things go wrong.

Scripted edges (`scripted`) draw images while a fault is injected; the same seeds drawn undisturbed
say what their tokens should be. An image is lost if it fails; it has recovered from a fault when
its answer comes: the time is that of the longest wait of each image that waited more than
STALL_SECONDS for one.
"""

import asyncio
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ciar.event_loop import fast_loop
from ciar.target import TargetModel
from ciar.types import ModelInfo, Verdict
from ciar_bench.bad_proxy import BadProxy, Treatment
from ciar_bench.replicas import Replica, Site
from ciar_bench.scripted import ScriptedEdge
from ciar_bench.soak import process_tree, wait_for_rest
from ciar_cloud.kv_budget import slot_bytes
from ciar_edge.connection import RemoteConfig
from ciar_edge.remote import RemoteVerifier

STALL_SECONDS = 1.0
NUM_REPLICAS = 3
PATIENT = RemoteConfig(
    deadline_seconds=600, prefix_seconds=600, resume_seconds=300, max_resumes=1000
)
Progress = Callable[[str], None]


FAULTS = ("engine", "replica", "roll", "memory", "proxy", "edge")


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """faults: of FAULTS.  edges: at a time.  kills: how often each thing is killed.
    proxied: images through the bad proxy.  token_seconds: what edges draft for.
    """

    faults: tuple[str, ...] = FAULTS
    edges: int = 24
    kills: int = 5
    clients: int = 20
    proxied: int = 200
    pause_seconds: float = 2.0  # before a fault, and behind the last
    token_seconds: float = 0.01
    treatment: Treatment = Treatment()


@dataclass(kw_only=True)
class Outcome:
    """Of one fault. stalls: the longest wait of each image that had to wait."""

    fault: str
    num_injected: int = 0
    num_images: int = 0
    errors: list[str] = field(default_factory=list)
    num_unlike: int = 0
    num_resumes: int = 0
    num_evictions: int = 0
    stalls: list[float] = field(default_factory=list)
    remark: str = ""

    @property
    def is_harmless(self) -> bool:
        return not self.errors and not self.num_unlike


class Drawing:
    """Edges that draw seed after seed until they are told to stop."""

    def __init__(self, edge: ScriptedEdge, outcome: Outcome) -> None:
        self._edge, self._outcome = edge, outcome
        self._is_over = asyncio.Event()
        self.found: dict[int, list[int]] = {}

    async def run(self, address: str, seeds: Iterator[int], num_edges: int) -> None:
        await asyncio.gather(*(self._draw(address, seeds) for _ in range(num_edges)))

    def stop(self) -> None:
        """What was begun is finished."""
        self._is_over.set()

    async def _draw(self, address: str, seeds: Iterator[int]) -> None:
        async with RemoteVerifier(address, config=PATIENT) as verifier:
            info = await verifier.info()
            for seed in seeds:
                if self._is_over.is_set():
                    break
                await self._draw_one(verifier, info, seed)
            self._outcome.num_resumes += verifier.traffic.num_resumes

    async def _draw_one(self, verifier: RemoteVerifier, info: ModelInfo, seed: int) -> None:
        last, longest = time.monotonic(), 0.0

        def on_verdict(verdict: Verdict, seconds: float) -> None:
            nonlocal last, longest
            longest = max(longest, time.monotonic() - last)
            last = time.monotonic()

        try:
            self.found[seed] = await self._edge.draw(verifier, info, seed, on_verdict=on_verdict)
        except Exception as error:  # counted, and told
            self._outcome.errors.append(f"image {seed}: {error!r}")
        self._outcome.num_images += 1
        if longest > STALL_SECONDS:
            self._outcome.stalls.append(longest)


@dataclass
class Truth:
    """Tokens of seeds drawn undisturbed, kept for later."""

    model: Path
    edge: ScriptedEdge
    tokens: dict[int, list[int]] = field(default_factory=dict)

    async def compare(self, outcome: Outcome, found: dict[int, list[int]]) -> None:
        missing = sorted(found.keys() - self.tokens.keys())
        if missing:
            undisturbed = Outcome(fault="none")
            drawing = Drawing(replace(self.edge, token_seconds=0.0), undisturbed)
            async with Replica(self.model, ["--slots", "8"]).running() as replica:
                await drawing.run(replica.address, iter(missing), 8)
            assert not undisturbed.errors, undisturbed.errors
            self.tokens |= drawing.found
        outcome.num_unlike = sum(self.tokens[seed] != tokens for seed, tokens in found.items())


async def measure_faults(
    model: Path, envoy_config: str, plan: FaultPlan, *, progress: Progress = lambda line: None
) -> list[Outcome]:
    torch.set_num_threads(1)
    edge = ScriptedEdge(token_seconds=plan.token_seconds)
    truth = Truth(model, edge)
    third = int(
        slot_bytes(TargetModel.load(model / "cloud")) * plan.edges / NUM_REPLICAS / 3 * 1.01
    )
    room = ("--slots", str(plan.edges))
    kills = [(number % NUM_REPLICAS, signal.SIGKILL) for number in range(plan.kills)]
    roll = [(index, signal.SIGTERM) for index in range(NUM_REPLICAS)]
    injections: dict[str, tuple[str, Inject]] = {
        "engine": ("engine process of a cloud: SIGKILL", kill_engines),
        "replica": (
            "one of three replicas behind Envoy: SIGKILL, and its return",
            end_replicas(kills, *room),
        ),
        "roll": (
            "all three replicas: SIGTERM, one after the other",
            end_replicas(roll, *room),
        ),
        "memory": (
            "one SIGKILL and a roll, with KV memory for a third of the images",
            end_replicas([kills[0], *roll], "--kv-budget", str(third), "--no-recompute-features"),
        ),
        "proxy": ("a proxy that delays, cuts and swallows connections", spoil),
        "edge": ("an edge: SIGKILL at any stage", kill_clients),
    }
    found = []
    for name in plan.faults:
        text, inject = injections[name]
        progress(text)
        outcome = Outcome(fault=text)
        tokens = await inject(model, envoy_config, plan, edge, outcome)
        await truth.compare(outcome, tokens)
        for line in outcome.errors:
            progress(line)
        found.append(outcome)
    return found


Inject = Callable[[Path, str, FaultPlan, ScriptedEdge, Outcome], Awaitable[dict[int, list[int]]]]


@asynccontextmanager
async def drawing_at(
    address: str, plan: FaultPlan, edge: ScriptedEdge, outcome: Outcome
) -> AsyncIterator[Drawing]:
    """Edges that draw before, during and behind what happens inside."""
    drawing = Drawing(edge, outcome)
    task = asyncio.create_task(drawing.run(address, itertools.count(1), plan.edges))
    await asyncio.sleep(plan.pause_seconds)
    yield drawing
    await asyncio.sleep(plan.pause_seconds)
    drawing.stop()
    await task


async def kill_engines(
    model: Path, _: str, plan: FaultPlan, edge: ScriptedEdge, outcome: Outcome
) -> dict[int, list[int]]:
    async with (
        Replica(model, ["--slots", str(plan.edges)]).running() as replica,
        drawing_at(replica.address, plan, edge, outcome) as drawing,
    ):
        for _kill in range(plan.kills):
            assert replica.cloud is not None
            server, *engines = process_tree(replica.cloud.pid)
            deaths = await asyncio.to_thread(replica.count, "engine_deaths")
            os.kill(engines[0], signal.SIGKILL)
            outcome.num_injected += 1
            while await asyncio.to_thread(replica.count, "engine_deaths") == deaths:
                await asyncio.sleep(0.05)
            while len(list(process_tree(server))) < 2:
                await asyncio.sleep(0.05)
            await asyncio.sleep(2 * plan.pause_seconds)
    return drawing.found


def end_replicas(ends: Sequence[tuple[int, signal.Signals]], *options: str) -> Inject:
    """Of three behind Envoy, one after the other; each comes back before the next one goes.

    ends: which, and how.  options: of each replica.
    """

    async def inject(
        model: Path, config: str, plan: FaultPlan, edge: ScriptedEdge, outcome: Outcome
    ) -> dict[int, list[int]]:
        async with Site(model, config, count=NUM_REPLICAS, options=options).running() as site:
            async with drawing_at(site.address, plan, edge, outcome) as drawing:
                for index, how in ends:
                    await site.replace(index, how)
                    outcome.num_injected += 1
            outcome.num_evictions = int(await asyncio.to_thread(site.count, "evictions"))
        return drawing.found

    return inject


async def spoil(
    model: Path, config: str, plan: FaultPlan, edge: ScriptedEdge, outcome: Outcome
) -> dict[int, list[int]]:
    drawing = Drawing(edge, outcome)
    async with (
        Site(model, config, options=["--slots", str(plan.edges)]).running() as site,
        BadProxy(site.address, plan.treatment).running() as proxy,
    ):
        await drawing.run(proxy.address, iter(range(1, 1 + plan.proxied)), plan.edges)
    outcome.num_injected = proxy.counts["cut"] + proxy.counts["swallowed"]
    outcome.remark = (
        f"{proxy.counts['cut']} cut, {proxy.counts['swallowed']} swallowed, "
        f"{proxy.counts['delayed']} pieces late by up to {plan.treatment.max_delay * 1000:.0f} ms"
    )
    return drawing.found


CLIENT = """
import asyncio, itertools, sys
from ciar_bench.faults import Drawing, Outcome
from ciar_bench.scripted import ScriptedEdge
print("drawing", flush=True)
drawing = Drawing(ScriptedEdge(), Outcome(fault=""))
asyncio.run(drawing.run(sys.argv[1], itertools.count(int(sys.argv[2])), 2))
"""


async def kill_clients(
    model: Path, _: str, plan: FaultPlan, edge: ScriptedEdge, outcome: Outcome
) -> dict[int, list[int]]:
    """Recovered: no session, slot or work is left. A client draws two images at a time."""
    dice, drawing = random.Random(0), Drawing(edge, outcome)
    async with Replica(model, []).running() as replica:
        for number in range(plan.clients):
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, replica.address, str(100 * number)],
                stdout=subprocess.PIPE,
            )
            assert client.stdout is not None
            await asyncio.to_thread(client.stdout.readline)
            await asyncio.sleep(dice.uniform(0.05, 2.0))
            client.kill()
            killed = time.monotonic()
            left = await wait_for_rest(replica.metrics)
            outcome.stalls.append(time.monotonic() - killed)
            client.communicate()
            outcome.num_injected += 1
            if any(left.values()):
                outcome.errors.append(f"client {number} left {left}")
        await drawing.run(replica.address, iter(range(1, 5)), 4)
    outcome.remark = "until no session, slot or work of it is left; then four images of another"
    return drawing.found


def median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def run_faults(
    model: Path, envoy_config: str, plan: FaultPlan, *, progress: Progress
) -> list[Outcome]:
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(measure_faults(model, envoy_config, plan, progress=progress))
