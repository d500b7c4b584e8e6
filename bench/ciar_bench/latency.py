"""`ciar-bench latency`: base, blocking and exact over a real socket, in one run.

    base       the cloud draws every token in one call (the server-driven loop)
    blocking   the publication's loop, its routing share forced to a given value
    exact      every token verified: the base's own image
    C(k)       a cloud forward over k new positions
    e          the edge's work for a token: draft, score, share of features and of drafts in vain
    r          a round trip less the cloud's queue and compute: what the protocol adds

Each process has a core of its own. A round measures all of them once, one after another; values
are medians over rounds, and a ratio is the median of the rounds' own, so that a slow spell of the
machine falls on both of its sides.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ciar.event_loop import fast_loop
from ciar.prefix import DEFAULT_PREFIX_RATE
from ciar.router import make_router
from ciar.types import (
    ImageRequest,
    ModelInfo,
    SamplingParams,
    Verdict,
    VerifyBatch,
    no_features,
)
from ciar_edge.config import DecodeConfig, Mode
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel
from ciar_edge.remote import RemoteVerifier
from ciar_edge.result import ImageResult, Silent

PROMPT = "a dog on a beach"
MODES: tuple[Mode, ...] = ("blocking", "exact")
CHUNKS = (2, 4, 8, 16)
CHUNK_REPEATS = 8  # a round
WARM_UP_ROUNDS = 1


@dataclass(frozen=True, kw_only=True)
class LatencyPlan:
    rounds: int = 9
    share: float = 0.30  # of routed tokens
    prefix_rate: float = DEFAULT_PREFIX_RATE


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds of one round."""

    base: float
    cloud_step: dict[int, float]  # C(k)
    blocking: ImageResult
    exact: ImageResult
    overheads: list[float]  # of the round trips of both

    @property
    def edge_step(self) -> float:
        """e: over the tokens of `blocking` behind the prefix."""
        image = self.blocking
        seconds = image.draft_seconds + image.ahead_seconds
        return seconds / (len(image.tokens) - image.prefix_tokens)

    def ratios(self) -> dict[str, float]:
        step = self.cloud_step
        return {
            "base / blocking": self.base / self.blocking.seconds,
            "base / exact": self.base / self.exact.seconds,
            "e / C(1)": self.edge_step / step[1],
        } | {f"C({k}) / C(1)": step[k] / step[1] for k in (4, 16) if k in step}


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """Medians over rounds; seconds unless named otherwise."""

    num_tokens: int
    base_seconds: float
    blocking_seconds: float
    exact_seconds: float
    cloud_step: dict[int, float]  # C(k)
    edge_step: float  # e
    protocol_seconds: float  # r
    blocking_round_trips: float
    exact_round_trips: float
    blocking_cloud_calls: float
    exact_cloud_calls: float
    uplink_bytes: float
    downlink_bytes: float
    ratios: dict[str, float]
    ratio_ranges: dict[str, tuple[float, float]]  # least and largest of the rounds'


class CallTimes(Silent):
    """Round-trip overheads of an image."""

    def __init__(self) -> None:
        self.overheads: list[float] = []

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        cloud = verdict.timings.queue_seconds + verdict.timings.compute_seconds
        self.overheads.append(seconds - cloud)


async def measure_latency(
    address: str,
    model: EdgeModel,
    plan: LatencyPlan,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> LatencyReport:
    """Run the plan against a cloud that serves nobody else."""
    torch.set_num_threads(1)
    rounds = []
    async with RemoteVerifier(address) as verifier:
        info = await verifier.info()
        for number in range(-WARM_UP_ROUNDS, plan.rounds):
            sampling = SamplingParams(seed=max(number, 0), cfg_scale=info.sampling.cfg_scale)
            found = await run_round(verifier, model, sampling, info, plan)
            if number >= 0:
                rounds.append(found)
            progress(f"round {number + 1} of {plan.rounds}")
    return summarize(rounds, info.num_tokens)


async def run_round(
    verifier: RemoteVerifier,
    model: EdgeModel,
    sampling: SamplingParams,
    info: ModelInfo,
    plan: LatencyPlan,
) -> Round:
    base, step = await run_base(verifier, sampling, info.num_tokens)
    times = CallTimes()
    images = {
        mode: await generate(
            PROMPT,
            model=model,
            router=make_router("random", budget=plan.share, seed=sampling.seed),
            verifier=verifier,
            config=DecodeConfig(mode=mode, prefix_rate=plan.prefix_rate),
            sampling=sampling,
            observer=times,
        )
        for mode in MODES
    }
    chunks = await chunk_seconds(verifier, sampling, info)
    return Round(base=base, cloud_step={1: step} | chunks, overheads=times.overheads, **images)


async def run_base(
    verifier: RemoteVerifier, sampling: SamplingParams, num_tokens: int
) -> tuple[float, float]:
    """The image, and C(1)."""
    request = ImageRequest(prompt=PROMPT, sampling=sampling, num_prefix=num_tokens)
    started = time.perf_counter()
    async with verifier.open(request) as session:
        seconds = time.perf_counter() - started
        timings = session.prefix.timings
    return seconds, timings.compute_seconds / timings.num_forwards


async def chunk_seconds(
    verifier: RemoteVerifier, sampling: SamplingParams, info: ModelInfo, *, prompt: str = PROMPT
) -> dict[int, float]:
    """C(k): a batch of k - 1 uncertain tokens feeds the last known one and all of the batch."""
    position = info.num_tokens // 2
    request = ImageRequest(prompt=prompt, sampling=sampling, num_prefix=position)
    seconds: dict[int, list[float]] = {k: [] for k in CHUNKS if position + k <= info.num_tokens}
    async with verifier.open(request) as session:
        for epoch, k in enumerate(list(seconds) * CHUNK_REPEATS):
            tokens = tuple((epoch * 31 + i * 7) % info.vocab_size for i in range(k - 1))
            batch = VerifyBatch(
                position=position,
                tokens=tokens,
                uncertain=(True,) * len(tokens),
                features=no_features(info.feature_dim),
                epoch=epoch,
            )
            verdict = await session.verify(batch)
            assert verdict.timings.num_positions == k
            seconds[k].append(verdict.timings.compute_seconds)
    return {k: statistics.median(values) for k, values in seconds.items()}


def summarize(rounds: list[Round], num_tokens: int) -> LatencyReport:
    def median(value: Callable[[Round], float]) -> float:
        return statistics.median(map(value, rounds))

    ratios = {name: [one.ratios()[name] for one in rounds] for name in rounds[0].ratios()}
    return LatencyReport(
        num_tokens=num_tokens,
        base_seconds=median(lambda r: r.base),
        blocking_seconds=median(lambda r: r.blocking.seconds),
        exact_seconds=median(lambda r: r.exact.seconds),
        cloud_step={
            k: statistics.median(one.cloud_step[k] for one in rounds) for k in rounds[0].cloud_step
        },
        edge_step=median(lambda r: r.edge_step),
        protocol_seconds=statistics.median(s for r in rounds for s in r.overheads),
        blocking_round_trips=median(lambda r: r.blocking.round_trips),
        exact_round_trips=median(lambda r: r.exact.round_trips),
        blocking_cloud_calls=median(lambda r: r.blocking.cloud_calls),
        exact_cloud_calls=median(lambda r: r.exact.cloud_calls),
        uplink_bytes=median(lambda r: r.blocking.uplink_bytes),
        downlink_bytes=median(lambda r: r.blocking.downlink_bytes),
        ratios={name: statistics.median(values) for name, values in ratios.items()},
        ratio_ranges={name: (min(values), max(values)) for name, values in ratios.items()},
    )


def run_latency(
    address: str, model: EdgeModel, plan: LatencyPlan, *, progress: Callable[[str], None]
) -> LatencyReport:
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(measure_latency(address, model, plan, progress=progress))
