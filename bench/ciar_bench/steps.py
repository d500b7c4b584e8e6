"""Seconds of a cloud forward by how many images share it and how many positions each feeds.

In this process, on any device, without a server around it. A forward reads all weights once, so
their bytes over the memory's speed are its limit while images are few.

    B images   k positions each   T tokens   V codebook size
"""

import statistics
import time
from collections.abc import Sequence

import torch

from ciar.feed import Feed
from ciar.target import Target, TargetModel

REPEATS = 9
WARM_UP = 2
BANDWIDTH_BYTES = 1 << 30


@torch.inference_mode()
def step_seconds(
    model: TargetModel,
    batches: Sequence[int],
    chunks: Sequence[int],
    *,
    num_condition: int,
    has_static_steps: bool,
) -> dict[tuple[int, int], float]:
    """Medians by (B, k), every image in the middle of its tokens."""
    generator = torch.Generator().manual_seed(0)
    half, vocab = model.config.num_tokens // 2, model.config.vocab_size
    known = torch.randint(vocab, (model.config.num_tokens,), generator=generator)
    target = Target(model, num_slots=max(batches), has_static_steps=has_static_steps)
    found = {}
    for batch in batches:
        for chunk in (k for k in chunks if half + k <= model.config.num_tokens):
            feeds = [
                Feed(
                    slot=slot,
                    num_condition=num_condition,
                    position=half,
                    tokens=known[half : half + chunk],
                    before=known[:half],
                    cfg_scale=2.0,
                )
                for slot in range(batch)
            ]
            seconds = [timed(target, feeds) for _ in range(WARM_UP + REPEATS)]
            found[batch, chunk] = statistics.median(seconds[WARM_UP:])
    return found


def timed(target: Target, feeds: Sequence[Feed]) -> float:
    started = time.perf_counter()
    logits = target.extend(feeds)
    float(logits[-1][-1, 0])  # waits for the device
    return time.perf_counter() - started


def read_seconds(num_bytes: int, device: str) -> float:
    """To read as many bytes of the device's memory: by the best of some sums over a gibibyte."""
    x = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        float(x.sum())
        best = min(best, time.perf_counter() - started)
    return best * num_bytes / BANDWIDTH_BYTES
