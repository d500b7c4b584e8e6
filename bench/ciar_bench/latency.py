"""`ciar-bench latency`: base, blocking and exact over a real socket, in one run.

    base       the cloud draws every token in one call (the server-driven loop)
    blocking   the publication's loop, its routing share forced to a given value
    exact      every token verified: the base's own image
    C(k)       a cloud forward over k new positions
    e          a draft, its score and its share of features
    r          a round trip less the cloud's queue and compute: what the protocol adds

Each process has a core of its own. Rounds alternate the methods, so that a slow spell of the
machine falls on all of them; values are medians.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ciar.event_loop import fast_loop
from ciar.prefix import DEFAULT_PREFIX_RATE
from ciar.types import ImageRequest, SamplingParams, Verdict, VerifyBatch, no_features
from ciar.uncertainty import make_router
from ciar_edge.config import DecodeConfig, Mode
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel
from ciar_edge.remote import RemoteVerifier
from ciar_edge.result import ImageResult, Silent

PROMPT = "a dog on a beach"
CHUNKS = (2, 4, 8, 16)
CHUNK_REPEATS = 30
WARM_UP_IMAGES = 1


@dataclass(frozen=True, kw_only=True)
class LatencyPlan:
    rounds: int = 5
    share: float = 0.30  # of routed tokens
    prefix_rate: float = DEFAULT_PREFIX_RATE


@dataclass(kw_only=True)
class LatencyReport:
    """Medians; seconds unless named otherwise."""

    num_tokens: int
    base_seconds: float
    blocking_seconds: float
    exact_seconds: float
    cloud_step: dict[int, float] = field(default_factory=dict)  # C(k)
    edge_step: float = 0.0  # e
    protocol_seconds: float = 0.0  # r
    blocking_round_trips: float = 0.0
    exact_round_trips: float = 0.0
    blocking_cloud_calls: float = 0.0
    exact_cloud_calls: float = 0.0
    uplink_bytes: float = 0.0
    downlink_bytes: float = 0.0

    def ratios(self) -> dict[str, float]:
        return {
            "base / blocking": self.base_seconds / self.blocking_seconds,
            "base / exact": self.base_seconds / self.exact_seconds,
            "e / C(1)": self.edge_step / self.cloud_step[1],
        } | {
            f"C({k}) / C(1)": self.cloud_step[k] / self.cloud_step[1]
            for k in (4, 16)
            if k in self.cloud_step
        }

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"ratios": self.ratios()}


class CallTimes(Silent):
    """Round-trip overheads of an image."""

    def __init__(self) -> None:
        self.overheads: list[float] = []

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        cloud = verdict.timings.queue_seconds + verdict.timings.compute_seconds
        self.overheads.append(seconds - cloud)


@dataclass(kw_only=True)
class Rounds:
    """What every round leaves."""

    base: list[float] = field(default_factory=list)
    base_step: list[float] = field(default_factory=list)
    images: dict[Mode, list[ImageResult]] = field(
        default_factory=lambda: {"blocking": [], "exact": []}
    )
    overheads: list[float] = field(default_factory=list)


async def measure_latency(
    address: str,
    model: EdgeModel,
    plan: LatencyPlan,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> LatencyReport:
    """Run the plan against a cloud that serves nobody else."""
    torch.set_num_threads(1)
    rounds = Rounds()
    async with RemoteVerifier(address) as verifier:
        info = await verifier.info()
        for number in range(-WARM_UP_IMAGES, plan.rounds):
            this = Rounds() if number < 0 else rounds
            sampling = SamplingParams(seed=max(number, 0), cfg_scale=info.sampling.cfg_scale)
            await run_base(verifier, sampling, info.num_tokens, this)
            for mode in ("blocking", "exact"):
                await run_mode(verifier, model, sampling, mode, plan, this)
            progress(f"round {number + 1} of {plan.rounds}")
        position = info.num_tokens // 2
        sizes = [k for k in CHUNKS if position + k <= info.num_tokens]  # that fit on the grid
        chunks = {k: await chunk_seconds(verifier, position, k, info.vocab_size) for k in sizes}
    return summarize(rounds, chunks, info.num_tokens)


async def run_base(
    verifier: RemoteVerifier, sampling: SamplingParams, num_tokens: int, rounds: Rounds
) -> None:
    request = ImageRequest(prompt=PROMPT, sampling=sampling, num_prefix=num_tokens)
    started = time.perf_counter()
    async with verifier.open(request) as session:
        rounds.base.append(time.perf_counter() - started)
        timings = session.prefix.timings
    rounds.base_step.append(timings.compute_seconds / timings.num_forwards)


async def run_mode(
    verifier: RemoteVerifier,
    model: EdgeModel,
    sampling: SamplingParams,
    mode: Mode,
    plan: LatencyPlan,
    rounds: Rounds,
) -> None:
    times = CallTimes()
    result = await generate(
        PROMPT,
        model=model,
        router=make_router("random", budget=plan.share, seed=sampling.seed),
        verifier=verifier,
        config=DecodeConfig(mode=mode, prefix_rate=plan.prefix_rate),
        sampling=sampling,
        observer=times,
    )
    rounds.images[mode].append(result)
    rounds.overheads += times.overheads


async def chunk_seconds(
    verifier: RemoteVerifier, position: int, num_positions: int, vocab_size: int
) -> float:
    """C(k): a batch of k - 1 uncertain tokens feeds the last known one and all of the batch."""
    sampling = SamplingParams(seed=1, cfg_scale=(await verifier.info()).sampling.cfg_scale)
    request = ImageRequest(prompt=PROMPT, sampling=sampling, num_prefix=position)
    seconds = []
    async with verifier.open(request) as session:
        width = (await verifier.info()).feature_dim
        for repeat in range(CHUNK_REPEATS):
            tokens = tuple((repeat * 31 + i * 7) % vocab_size for i in range(num_positions - 1))
            batch = VerifyBatch(
                position=position,
                tokens=tokens,
                uncertain=(True,) * len(tokens),
                features=no_features(width),
                epoch=repeat,
            )
            verdict = await session.verify(batch)
            seconds.append(verdict.timings.compute_seconds)
            assert verdict.timings.num_positions == num_positions
    return statistics.median(seconds)


def summarize(rounds: Rounds, chunks: dict[int, float], num_tokens: int) -> LatencyReport:
    blocking, exact = rounds.images["blocking"], rounds.images["exact"]

    def median(images: list[ImageResult], value: Callable[[ImageResult], float]) -> float:
        return statistics.median(value(image) for image in images)

    return LatencyReport(
        num_tokens=num_tokens,
        base_seconds=statistics.median(rounds.base),
        blocking_seconds=median(blocking, lambda r: r.seconds),
        exact_seconds=median(exact, lambda r: r.seconds),
        cloud_step={1: statistics.median(rounds.base_step)} | chunks,
        edge_step=median(blocking, lambda r: r.draft_seconds / (len(r.tokens) - r.prefix_tokens)),
        protocol_seconds=statistics.median(rounds.overheads),
        blocking_round_trips=median(blocking, lambda r: r.round_trips),
        exact_round_trips=median(exact, lambda r: r.round_trips),
        blocking_cloud_calls=median(blocking, lambda r: r.cloud_calls),
        exact_cloud_calls=median(exact, lambda r: r.cloud_calls),
        uplink_bytes=median(blocking, lambda r: r.uplink_bytes),
        downlink_bytes=median(blocking, lambda r: r.downlink_bytes),
    )


def run_latency(
    address: str, model: EdgeModel, plan: LatencyPlan, *, progress: Callable[[str], None]
) -> LatencyReport:
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(measure_latency(address, model, plan, progress=progress))
