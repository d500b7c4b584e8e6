"""The command `ciar-bench head-scale`."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ciar_bench.head_scale import ScalePlan, measure_scale
from ciar_bench.head_scale_table import scale_markdown
from ciar_bench.machine import describe_machine

DEFAULTS = ScalePlan()

console = Console(stderr=True)


def head_scale(
    vocab_size: Annotated[
        list[int], typer.Option(min=2, help="Size of the codebook; several times for several.")
    ] = list(DEFAULTS.vocab_sizes),  # noqa: B006
    dim: Annotated[
        list[int], typer.Option(min=2, help="Width of the draft; several times for several.")
    ] = list(DEFAULTS.dims),  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Tokens of each variant.")] = DEFAULTS.rounds,
    out: Annotated[Path | None, typer.Option(help="Write the tables here as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a score costs behind the centre head: time and memory, by codebook size and by k."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, else talkative
    plan = ScalePlan(vocab_sizes=tuple(vocab_size), dims=tuple(dim), rounds=rounds)
    rows = measure_scale(plan, progress=console.print)
    if as_json:
        found = {"machine": describe_machine(), "rows": [asdict(row) for row in rows]}
        print(json.dumps(found))
    else:
        print(scale_markdown(rows, plan))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(scale_markdown(rows, plan))
