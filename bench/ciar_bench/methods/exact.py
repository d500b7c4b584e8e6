"""CIAR with every token verified: coupled speculative decoding, the base's own image."""

from dataclasses import dataclass

from ciar.router import make_router
from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import DrawnImage
from ciar_bench.methods.selective import decode_selectively
from ciar_edge.config import DecodeConfig


@dataclass(frozen=True, kw_only=True)
class Exact:
    name = "exact"

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        config = DecodeConfig(mode="exact")
        edge = bench.edge
        router = make_router(edge.router, calibration=edge.calibration)  # for its scores
        return decode_selectively(bench, prompt, sampling, router, config)
