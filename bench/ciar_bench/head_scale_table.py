"""The measurements of `ciar_bench.head_scale` as Markdown."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby

import torch

from ciar_bench.head_scale import CODE_COUNTS, VARIANTS, ScalePlan, ScaleRow
from ciar_bench.interleaved import Timing
from ciar_bench.machine import describe_machine

MIB, KIB = 2**20, 2**10


def scale_markdown(rows: Sequence[ScaleRow], plan: ScalePlan) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "1 thread"
    clock = "CUDA events" if torch.cuda.is_available() else "CPU time of the thread"
    date = datetime.now(UTC).date()
    lines = [
        "# scale of the Inter-Head",
        "",
        f"{describe_machine()}, {device}; {date}. Random weights, one token a call; {clock}, "
        f"median of {plan.rounds} interleaved rounds. In brackets the ratio to the plain head of "
        "the same round: median, and the range without the tenth of rounds at either end. Each "
        "call has another copy of the weights, so that they come from memory. Bytes of weights "
        "are computed, those of temporaries measured: the most that torch has allocated at once.",
        "",
    ]
    for (dim, weights), group in groupby(rows, key=lambda row: (row.dim, row.weights)):
        lines += section(f"D = {dim}, {weights}", list(group))
    return "\n".join(lines)


def section(title: str, rows: Sequence[ScaleRow]) -> list[str]:
    return [
        f"## {title}",
        "",
        *table("ms a token", rows, VARIANTS, lambda row, name: cell(row.costs[name].timing)),
        *table(
            "MiB of weights, KiB of temporaries",
            rows,
            (name for name in VARIANTS if name != "plain again"),
            lambda row, name: (
                f"{row.costs[name].weight_bytes / MIB:.1f}, {row.costs[name].peak_bytes / KIB:.0f}"
            ),
        ),
        *table(
            "discrete, ms a token",
            rows,
            map(str, CODE_COUNTS),
            lambda row, k: cell(row.discrete[int(k)]) if int(k) in row.discrete else "",
        ),
    ]


def table(
    what: str,
    rows: Sequence[ScaleRow],
    names: Iterable[str],
    value: Callable[[ScaleRow, str], str],
) -> list[str]:
    """A column for every V."""
    return [
        "| " + " | ".join([what, *(f"V = {row.vocab_size}" for row in rows)]) + " |",
        "| --- |" + " --- |" * len(rows),
        *("| " + " | ".join([n, *(value(row, n) for row in rows)]) + " |" for n in names),
        "",
    ]


def cell(timing: Timing) -> str:
    spread = f"{timing.least:.2f} to {timing.largest:.2f}"
    return f"{1e3 * timing.seconds:.3f} ({timing.ratio:.3f}; {spread})"
