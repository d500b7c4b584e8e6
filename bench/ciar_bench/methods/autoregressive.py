"""The base: the cloud alone, one token a forward pass, in one request."""

import time
from dataclasses import dataclass

from ciar.types import ImageRequest, SamplingParams
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import DrawnImage, pay_whole_image
from ciar_cloud.solo import draw_alone


@dataclass(frozen=True)
class Autoregressive:
    name = "base"

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        return draw_whole(bench, prompt, sampling)


def draw_whole(
    bench: BenchModel, prompt: str, sampling: SamplingParams, *, wavefront: int = 0
) -> DrawnImage:
    """The cloud draws all tokens; wavefront: see `ciar.order`."""
    features, costs = bench.encode(prompt), bench.meter()
    started = time.perf_counter()
    request = ImageRequest(prompt=prompt, sampling=sampling, wavefront=wavefront)
    image = draw_alone(bench.target, request, features)
    costs.cloud_seconds = time.perf_counter() - started
    pay_whole_image(costs, prompt, num_tokens=bench.num_tokens, vocab_size=bench.vocab_size)
    return DrawnImage(tokens=image.tokens, costs=costs)
