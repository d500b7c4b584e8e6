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
    max_draft: int = 16

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        config = DecodeConfig(mode="exact", max_draft=self.max_draft)
        return decode_selectively(bench, prompt, sampling, make_router("always"), config)
