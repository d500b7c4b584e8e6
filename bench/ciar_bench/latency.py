"""`ciar-bench latency`: the same images by several methods over a real socket, in one run.

    base        the cloud draws every token in one call (the server-driven loop)
    blocking    the edge asks for uncertain tokens one at a time, and waits
    optimistic  the edge drafts on meanwhile
    late        optimistic, and kept tokens that fall short by much are taken back (`max_gap`)
    exact       every token verified: the base's own image
    wavefront, wavefront-blocking, wavefront-optimistic
                the first three with rows drawn side by side (`ciar.order`)
    C(k)        a cloud forward over k new positions

Each process has a core of its own. A round draws one image by every method, one after another; the
methods take turns in going first. Links are measured one after another.
"""

import math
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from ciar.errors import CloudUnavailable
from ciar.order import order_of
from ciar.prefix import DEFAULT_PREFIX_RATE
from ciar.router import Router, make_router
from ciar.tolerance import DEFAULT_MAX_GAP
from ciar.types import (
    ImageRequest,
    ModelInfo,
    SamplingParams,
    VerifyBatch,
    no_features,
)
from ciar_bench.emulation import Emulation
from ciar_bench.gantt import Watch
from ciar_bench.loop_model import Span
from ciar_bench.slow_link import SlowLink
from ciar_edge.config import DecodeConfig, Mode
from ciar_edge.connection import RemoteConfig
from ciar_edge.loop import generate
from ciar_edge.models import EdgeModel
from ciar_edge.remote import RemoteVerifier
from ciar_edge.result import ImageResult, Origin

PROMPT = "a dog on a beach"
Method = Literal[
    "base",
    "blocking",
    "optimistic",
    "late",
    "exact",
    "wavefront",
    "wavefront-blocking",
    "wavefront-optimistic",
]
METHODS: tuple[Method, ...] = get_args(Method)
IN_RASTER: tuple[Method, ...] = ("base", "blocking", "optimistic", "exact")
ALONE: tuple[Method, ...] = ("base", "wavefront")  # the cloud
WAVE = "wavefront"
CHUNKS = (2, 4, 8, 16)
CHUNK_REPEATS = 8  # a round
PATIENT = RemoteConfig(deadline_seconds=600, connect_seconds=60, prefix_seconds=600)


@dataclass(frozen=True, kw_only=True)
class LatencyPlan:
    """links: a cell each.  rounds: images of each method in a cell.

    share: of the tokens behind the prefix, asked for at random; None: what the model's own router
    asks for, by its usual threshold, another one on its score, or a budget of each image's tokens.
    wavefront: tokens that a row is behind the row above, in the methods that are named after it.
    max_gap: of `late`.
    """

    links: tuple[SlowLink, ...] = (SlowLink(),)
    methods: tuple[Method, ...] = IN_RASTER
    rounds: int = 20
    share: float | None = None
    threshold: float | None = None
    budget: float | None = None
    prefix_rate: float = DEFAULT_PREFIX_RATE
    wavefront: int = 5
    max_gap: float = DEFAULT_MAX_GAP

    def config(self, method: Method) -> DecodeConfig:
        """Of a method with an edge."""
        mode: Mode = "optimistic"
        if method != "late":
            mode = method.removeprefix(f"{WAVE}-")  # type: ignore[assignment]
        return DecodeConfig(
            mode=mode,
            prefix_rate=self.prefix_rate,
            wavefront=self.wavefront_of(method),
            max_gap=self.max_gap if method == "late" else math.inf,
        )

    def wavefront_of(self, method: Method) -> int:
        return self.wavefront if method.startswith(WAVE) else 0

    def router(self, model: EdgeModel, *, seed: int) -> Router:
        if self.share is not None:
            return make_router("random", budget=self.share, seed=seed)
        config = model.draft.config
        num_prefix = DecodeConfig(prefix_rate=self.prefix_rate).num_prefix(config.num_tokens)
        return make_router(
            model.router,
            threshold=self.threshold,
            budget=self.budget,
            calibration=model.calibration,
            seed=seed,
            grid_size=config.grid_size,
            prefix_rate=num_prefix / config.num_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Round:
    """An image by every method.

    overheads: seconds of their round trips without the cloud's queue and compute.
    spans: who was busy when.  chunk_seconds: C(k) from k = 2 on.
    """

    images: dict[Method, ImageResult]
    overheads: dict[Method, list[float]]
    spans: dict[Method, list[Span]]
    chunk_seconds: dict[int, float]

    @property
    def cloud_step(self) -> dict[int, float]:
        """C(k), seconds; the base has nothing but single steps."""
        base = self.images.get("base")
        single = {1: base.cloud_compute_seconds / base.cloud_forwards} if base else {}
        return single | self.chunk_seconds


@dataclass(frozen=True, kw_only=True)
class Cell:
    """carrier: what the link was made with.  wavefront: as `LatencyPlan` has it."""

    link: SlowLink
    carrier: str
    rounds: list[Round]
    wavefront: int = 0


async def measure_latency(
    address: str,
    model: EdgeModel,
    prompts: Sequence[str],
    plan: LatencyPlan,
    emulation: Emulation,
    *,
    progress: Callable[[str], None] = lambda line: None,
    finished: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Against a cloud that serves nobody else.  prompts: one a round.  finished: told each cell."""
    torch.set_num_threads(1)
    cells = []
    for link in plan.links:
        rounds = []
        with emulation.slow(address, link) as reached:
            async with RemoteVerifier(reached, config=PATIENT) as verifier:
                async for found in draw_rounds(verifier, model, prompts, plan):
                    rounds.append(found)
                    progress(f"{link}: round {len(rounds)} of {plan.rounds}")
        carrier, wavefront = emulation.carrier(link), plan.wavefront
        cells.append(Cell(link=link, carrier=carrier, rounds=rounds, wavefront=wavefront))
        finished(cells[-1])
    return cells


async def draw_rounds(
    verifier: RemoteVerifier, model: EdgeModel, prompts: Sequence[str], plan: LatencyPlan
) -> AsyncIterator[Round]:
    """Number i is prompt i with seed i, behind a round to warm up."""
    info = await verifier.info()
    for number in range(-1, plan.rounds):
        sampling = replace(info.sampling, seed=max(number, 0))
        first = number % len(plan.methods)
        found = Round(images={}, overheads={}, spans={}, chunk_seconds={})
        for method in plan.methods[first:] + plan.methods[:first]:
            watch = Watch()
            prompt = prompts[sampling.seed]
            if method in ALONE:
                wavefront = plan.wavefront_of(method)
                image = await draw_base(prompt, verifier, sampling, info, wavefront=wavefront)
            else:
                image = await generate(
                    prompt,
                    model=model,
                    router=plan.router(model, seed=sampling.seed),
                    verifier=verifier,
                    config=plan.config(method),
                    sampling=sampling,
                    observer=watch,
                )
            if image.lost or image.fallbacks:
                raise CloudUnavailable(f"{method}: {image.lost or 'an answer came too late'}")
            found.images[method], found.overheads[method] = image, watch.overheads
            found.spans[method] = watch.spans(image)
        found.chunk_seconds.update(await chunk_seconds(verifier, sampling, info))
        if number >= 0:
            yield found


async def draw_base(
    prompt: str,
    verifier: RemoteVerifier,
    sampling: SamplingParams,
    info: ModelInfo,
    *,
    wavefront: int = 0,
) -> ImageResult:
    """The cloud draws every token in one call."""
    request = ImageRequest(
        prompt=prompt, sampling=sampling, num_prefix=info.num_tokens, wavefront=wavefront
    )
    started = time.perf_counter()
    async with verifier.open(request) as session:
        seconds = time.perf_counter() - started
        timings = session.prefix.timings
        return ImageResult(
            tokens=order_of(info.grid_size, wavefront).to_raster(session.prefix.tokens),
            origins=(Origin.PREFIX,) * info.num_tokens,
            scores=(math.nan,) * info.num_tokens,
            cloud_forwards=timings.num_forwards,
            cloud_positions=timings.num_positions,
            uplink_bytes=session.traffic.uplink_bytes,
            downlink_bytes=session.traffic.downlink_bytes,
            seconds=seconds,
            prefix_seconds=seconds,
            cloud_compute_seconds=timings.compute_seconds,
        )


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
