"""CoDe (Chen et al. 2024) in raster order: one hand-over, and nothing is verified.

The cloud draws the first N of an image, the edge all the rest, with the same sampler. As a control
the cloud may draw the last N instead, after what the edge drew.
"""

from dataclasses import dataclass

from ciar.head_output import HeadOutput
from ciar.router import Router, make_router
from ciar.threshold import StaticThreshold
from ciar.types import SamplingParams
from ciar_bench.methods.autoregressive import Autoregressive
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import DrawnImage
from ciar_bench.methods.selective import decode_selectively
from ciar_edge.config import DecodeConfig


@dataclass(frozen=True, kw_only=True)
class CoDe:
    """share: N of the publication, a share of the image: 0 is the edge alone, 1 the base.

    is_last: the cloud's share is the end of the image, decided token by token as with a router that
        asks for these alone.
    """

    share: float = 0.3
    is_last: bool = False
    name = "code"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share}: give a number from 0 to 1")

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        count = round(self.share * bench.num_tokens)
        if count == bench.num_tokens:
            return Autoregressive().draw(bench, prompt, sampling)
        if not count:
            config = DecodeConfig(mode="offline")
        elif self.is_last:
            config = DecodeConfig(prefix_rate=0.0, features="none")
            first = StaticThreshold(bench.num_tokens - count - 0.5)
            return decode_selectively(
                bench, prompt, sampling, Router(self.name, position_of, first), config
            )
        else:
            # The loop takes floor(rate T).
            config = DecodeConfig(prefix_rate=(count + 0.5) / bench.num_tokens)
        return decode_selectively(bench, prompt, sampling, make_router("never"), config)


def position_of(position: int, _: HeadOutput) -> float:
    """A score that grows along the raster."""
    return position
