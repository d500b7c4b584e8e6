"""The measurements of `ciar_bench.head_scale` as Markdown."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby

import torch

from ciar_bench.head_scale import ScalePlan, ScaleRow
from ciar_bench.interleaved import IN_A_ROW, Timing
from ciar_bench.machine import cache_bytes, describe_machine
from ciar_edge.kernel import interval_kernel

MIB, KIB = 2**20, 2**10


def scale_markdown(rows: Sequence[ScaleRow], plan: ScalePlan) -> str:
    has_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if has_gpu else "1 thread"
    clock = "CUDA events" if has_gpu else "CPU time of the thread"
    cache = cache_bytes(torch.device("cuda" if has_gpu else "cpu")) / MIB
    means = "in torch" if has_gpu or interval_kernel() is None else "by the compiled kernel"
    date = datetime.now(UTC).date()
    lines = [
        "# scale of the Inter-Head",
        "",
        f"{describe_machine()}, {device}; {date}. Random weights, one token a call, intervals "
        f"{means}; {clock}, "
        f"median of {plan.rounds} rounds: {IN_A_ROW} calls in a row of the plain head and of the "
        "other, of which the first does not count. In brackets the ratio to the plain head of the "
        "same round: median, and the range without the tenth of rounds at either end; that of the "
        "plain head is to itself. Calls go through copies of the weights that take more than twice "
        f"the largest cache, {cache:.0f} MiB, so that they come from memory. Bytes of weights are "
        "computed, those of temporaries measured: the most that torch has allocated at once.",
        "",
    ]
    for (dim, weights), group in groupby(rows, key=lambda row: (row.dim, row.weights)):
        lines += section(f"D = {dim}, {weights}", list(group))
    return "\n".join(lines)


def section(title: str, rows: Sequence[ScaleRow]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.costs))
    return [
        f"## {title}",
        "",
        *table("ms a token", rows, names, lambda row, name: cell(row.costs[name].timing)),
        *table(
            "MiB of weights, KiB of temporaries",
            rows,
            names,
            lambda row, name: (
                f"{row.costs[name].weight_bytes / MIB:.1f}, {row.costs[name].peak_bytes / KIB:.0f}"
            ),
        ),
    ]


def table(
    what: str,
    rows: Sequence[ScaleRow],
    names: Iterable[str],
    value: Callable[[ScaleRow, str], str],
) -> list[str]:
    """A column for every V; empty where it lacks the name."""
    heads = [f"V = {row.vocab_size}" for row in rows]
    lines = [[n, *(value(row, n) if n in row.costs else "" for row in rows)] for n in names]
    return [
        "| " + " | ".join([what, *heads]) + " |",
        "| --- |" + " --- |" * len(rows),
        *("| " + " | ".join(line) + " |" for line in lines),
        "",
    ]


def cell(timing: Timing) -> str:
    spread = f"{timing.least:.2f} to {timing.largest:.2f}"
    return f"{1e3 * timing.seconds:.3f} ({timing.ratio:.3f}; {spread})"
