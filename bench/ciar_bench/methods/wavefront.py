"""The cloud alone along a wavefront, after ZipAR (He et al. 2024): rows side by side.

What a token sees is less than in raster order, so this is not the base's distribution.
"""

from dataclasses import dataclass

from ciar.types import SamplingParams
from ciar_bench.methods.autoregressive import draw_whole
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import DrawnImage
from ciar_bench.methods.settings import need_positive


@dataclass(frozen=True, kw_only=True)
class Wavefront:
    """window: tokens that a row waits for the row above; a whole row or more: the base."""

    window: int = 5
    name = "wavefront"

    def __post_init__(self) -> None:
        need_positive(window=self.window)

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        window = min(self.window, bench.target.config.grid_size)
        return draw_whole(bench, prompt, sampling, wavefront=window)
