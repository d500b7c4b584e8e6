"""Mixed precision where the machine gains from it."""

import time
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch.nn.functional import linear

WIDTH = 512
REPEATS = 5
WORTH_IT = 0.7  # bfloat16 must take at most this share of float32's time


def mixed_precision(device: torch.device) -> AbstractContextManager[None]:
    """Autocast to bfloat16 where its matrix products are clearly faster, else no change.

    Weights, residual stream, norms and losses stay float32.
    """
    is_on = has_fast_bfloat16(device.type)
    context: AbstractContextManager[None] = torch.autocast(
        device.type, torch.bfloat16, enabled=is_on
    )
    return context


@cache
def has_fast_bfloat16(device_type: str) -> bool:
    """GPUs by what they support; CPUs differ widely (some emulate it), so they are timed, once."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return product_seconds(torch.bfloat16) < WORTH_IT * product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype) -> float:
    """Best time of one [WIDTH, WIDTH] x [WIDTH, WIDTH] product on the CPU."""
    x = torch.ones(WIDTH, WIDTH, dtype=dtype)
    linear(x, x)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        linear(x, x)
        times.append(time.perf_counter() - started)
    return min(times)
