"""Times of small calls against one of them, on a machine that others use too.

A round calls each of them a few times in a row, and all in an order of its own, because what ran
before has filled the caches. The first call of a row does not count, the others' median does: what
is called token after token finds its code where the last token left it. A ratio is to the reference
of the same round. On a CPU time is that of the calling thread, so that waiting for a core does not
count; on a GPU it is that between two events.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]

IN_A_ROW = 4


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over rounds, and the range of the ratios without the tenth at either end."""

    seconds: float
    ratio: float
    least: float
    largest: float


def time_calls(
    calls: Mapping[str, Call], reference: str, *, rounds: int, device: torch.device
) -> dict[str, Timing]:
    """`reference` is the name of one of the calls."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(1 + rounds):  # the first one warms up
        for name in random.Random(number).sample(names, len(names)):
            row = [seconds_of(calls[name], device) for _ in range(IN_A_ROW)]
            if number > 0:
                seconds[name].append(statistics.median(row[1:]))
    return {name: summarize(values, seconds[reference]) for name, values in seconds.items()}


def seconds_of(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    started = time.thread_time()
    call()
    return time.thread_time() - started


def summarize(seconds: Sequence[float], reference: Sequence[float]) -> Timing:
    ratios = sorted(a / b for a, b in zip(seconds, reference, strict=True))
    tenth = len(ratios) // 10
    return Timing(
        seconds=statistics.median(seconds),
        ratio=statistics.median(ratios),
        least=ratios[tenth],
        largest=ratios[-1 - tenth],
    )


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most bytes that torch has allocated at once in a call, beyond what was there before."""
    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
