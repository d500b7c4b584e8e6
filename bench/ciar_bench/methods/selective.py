"""The publication's loop with any router: a score decides, token by token, whom to trust.

It is the edge's own decoding loop over a target in the same process, so what a router does here is
what it does in service. Routers differ in their score alone: prefix, sampler, weights and cloud are
the same. Interval features are for intervals: the methods of other scores have none.
"""

import asyncio
import time
from dataclasses import dataclass

from ciar.feature_mode import FeatureMode
from ciar.local import LocalVerifier
from ciar.prefix import DEFAULT_PREFIX_RATE
from ciar.router import DEFAULT_BUDGET, DEFAULT_ROUTER, Router, make_router
from ciar.types import SamplingParams, Verdict, VerifyBatch
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import Costs, DrawnImage, id_bytes, number_bytes
from ciar_edge.config import DecodeConfig
from ciar_edge.loop import generate
from ciar_edge.result import ImageResult, Silent


@dataclass(frozen=True, kw_only=True)
class Selective:
    """router: see `ciar.router.ROUTERS`; `never` is the edge alone behind the prefix.

    budget: share of the image to ask for, prefix included.  threshold: a static one instead.
    features: None sends them for the scores of intervals.  wavefront: see `ciar.order`.
    """

    router: str = DEFAULT_ROUTER
    budget: float | None = None
    threshold: float | None = None
    prefix_rate: float = DEFAULT_PREFIX_RATE
    features: FeatureMode | None = None
    wavefront: int = 0

    @property
    def name(self) -> str:
        return self.router

    @property
    def feature_mode(self) -> FeatureMode:
        if self.features is None:
            return "send" if self.router.startswith("interval") else "none"
        return self.features

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        config = DecodeConfig(
            prefix_rate=self.prefix_rate, features=self.feature_mode, wavefront=self.wavefront
        )
        return decode_selectively(
            bench, prompt, sampling, self.make_router(bench, sampling), config
        )

    def make_router(self, bench: BenchModel, sampling: SamplingParams) -> Router:
        is_constant = self.router in ("always", "never")
        has_default = not is_constant and self.threshold is None and self.budget is None
        return make_router(
            self.router,
            budget=DEFAULT_BUDGET if has_default else self.budget,
            threshold=self.threshold,
            calibration=bench.edge.calibration,
            seed=sampling.seed,
            grid_size=bench.target.config.grid_size,
            prefix_rate=self.prefix_rate,
        )


class PayloadMeter(Silent):
    """Counts what batches and verdicts carry."""

    def __init__(self, costs: Costs, bench: BenchModel) -> None:
        self.costs, self.vocab_size = costs, bench.vocab_size

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        flags = id_bytes(len(batch.tokens), 2)
        ids = id_bytes(len(batch.tokens), self.vocab_size)
        numbers = number_bytes(batch.features.numel())
        self.costs.uplink_bytes += flags + ids + numbers
        self.costs.downlink_bytes += id_bytes(1, len(batch.tokens) + 1)
        num_drawn = (verdict.token is not None) + len(verdict.run_on)
        self.costs.downlink_bytes += id_bytes(num_drawn, self.vocab_size)


def decode_selectively(
    bench: BenchModel, prompt: str, sampling: SamplingParams, router: Router, config: DecodeConfig
) -> DrawnImage:
    """One image by the edge's loop; text encoding comes before the clock starts."""
    features, costs = bench.encode(prompt), bench.meter()
    started = time.perf_counter()
    result = asyncio.run(
        generate(
            prompt,
            model=bench.edge,
            router=router,
            verifier=LocalVerifier(bench.target, lambda _: features, bench.info),
            config=config,
            sampling=sampling,
            encode_text=lambda _: features,
            observer=PayloadMeter(costs, bench),
        )
    )
    return account(result, costs, bench, time.perf_counter() - started, prompt, len(features))


def account(
    result: ImageResult, costs: Costs, bench: BenchModel, seconds: float, prompt: str, num_rows: int
) -> DrawnImage:
    """Add what the loop counted; num_rows: of the condition, sent down with the prefix."""
    assert result.cloud_forwards >= costs.forwards, "every forward pass is counted"
    costs.forwards = result.cloud_forwards
    costs.decided = result.cloud_decided
    costs.cloud_seconds = result.cloud_compute_seconds
    costs.edge_seconds = seconds - costs.cloud_seconds
    if costs.positions:
        costs.round_trips = result.round_trips + 1
        costs.uplink_bytes += len(prompt.encode())
        costs.downlink_bytes += id_bytes(result.prefix_tokens, bench.vocab_size)
    if costs.round_trips:
        costs.downlink_bytes += number_bytes(num_rows * bench.dim)
    return DrawnImage(
        tokens=result.tokens,
        costs=costs,
        origins=tuple(str(origin) for origin in result.origins),
        scores=result.scores,
    )
