"""Speculative Jacobi decoding with coupled noise (SCD, An et al. 2025): the cloud alone.

A window of guesses is fed at once. Every position is drawn from what the guesses before it predict,
always with the noise of its own; the draws are the next guesses. Those up to the first that changed
are final: they were drawn on the right context. So the image is the base's own.
"""

import time
from dataclasses import dataclass

import torch

from ciar.feed import Feed
from ciar.sampling import Noise, coupled_draw
from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import SLOT, BenchModel
from ciar_bench.methods.costs import DrawnImage, pay_whole_image
from ciar_bench.methods.settings import need_positive


@dataclass(frozen=True, kw_only=True)
class Jacobi:
    """window: guesses a forward pass."""

    window: int = 16
    name = "jacobi"

    def __post_init__(self) -> None:
        need_positive(window=self.window)

    @torch.inference_mode()
    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        condition, costs = bench.encode(prompt), bench.meter()
        noise = Noise(sampling.seed, vocab_size=bench.vocab_size)
        total, side = bench.num_tokens, bench.target.config.grid_size
        tokens: list[int] = []
        guesses: list[int] = []  # of the positions behind the known tokens
        started = time.perf_counter()
        while len(tokens) < total:
            first = len(tokens)
            most = min(self.window, total - 1 - first)  # nothing follows the last of an image
            guesses = guesses[:most]
            while len(guesses) < most:
                known = tokens + guesses
                guesses.append(known[len(known) - side] if len(known) >= side else 0)
            fed = torch.tensor(tokens[-1:] + guesses)
            feed = Feed(
                slot=SLOT,
                num_condition=len(condition),
                position=max(first - 1, 0),
                tokens=fed,
                before=torch.tensor(tokens[:-1], dtype=torch.long),
                cfg_scale=sampling.cfg_scale,
                cfg_interval=sampling.cfg_interval,
                condition=None if tokens else condition,
                num_outputs=len(guesses) + 1,
            )
            (logits,) = bench.target.extend([feed])
            rows = logits.cpu()  # at once: a device is waited for once a pass
            drawn = [coupled_draw(row, first + i, sampling, noise) for i, row in enumerate(rows)]
            stands = 0
            while stands < len(guesses) and guesses[stands] == drawn[stands]:
                stands += 1
            tokens += drawn[: stands + 1]
            guesses = drawn[stands + 1 :]
        costs.cloud_seconds = time.perf_counter() - started
        pay_whole_image(costs, prompt, num_tokens=bench.num_tokens, vocab_size=bench.vocab_size)
        return DrawnImage(tokens=tuple(tokens), costs=costs)
