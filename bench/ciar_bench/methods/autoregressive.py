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
        features, costs = bench.encode(prompt), bench.meter()
        started = time.perf_counter()
        image = draw_alone(bench.target, ImageRequest(prompt=prompt, sampling=sampling), features)
        costs.cloud_seconds = time.perf_counter() - started
        pay_whole_image(costs, prompt, num_tokens=bench.num_tokens, vocab_size=bench.vocab_size)
        return DrawnImage(tokens=image.tokens, costs=costs)
