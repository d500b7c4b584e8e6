"""The command `ciar-bench model`: what a loop would take, from a few numbers."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from ciar.errors import InvalidInput
from ciar.picture import check_picture_path
from ciar_bench.gantt import draw_gantt
from ciar_bench.latency_cli import milliseconds
from ciar_bench.loop_model import LOOPS, Costs, Timeline, tokens_like

IMAGES = 50
COLUMNS = ("image", "base / this", "forwards a token", "positions a token", "drafts a token")


def model(
    draft: Annotated[float, typer.Option(min=0.001, help="e, milliseconds a draft.")] = 0.75,
    step: Annotated[float, typer.Option(min=0.001, help="C(1), milliseconds.")] = 9.0,
    row: Annotated[
        float, typer.Option(min=0, help="Milliseconds that another position adds to a step.")
    ] = 0.45,
    trip: Annotated[
        float, typer.Option(min=0, help="Milliseconds of a round trip beyond the link.")
    ] = 1.4,
    rtt: Annotated[
        str, typer.Option(help="Round trips of links, milliseconds separated by commas.")
    ] = "0,10,50,100",
    uncertain: Annotated[
        float, typer.Option("--uncertain", "-u", min=0, max=1, help="u, share of tokens asked for.")
    ] = 0.30,
    agreed: Annotated[
        float, typer.Option("--agreed", "-a", min=0, max=1, help="a, share of them that stand.")
    ] = 0.70,
    sharpness: Annotated[
        float, typer.Option(min=0.01, help="How little scores tell of it: 0.1 all, 10 nothing.")
    ] = 0.9,
    tokens: Annotated[int, typer.Option(min=1, help="T, tokens of an image.")] = 256,
    prefix: Annotated[int, typer.Option(min=0, help="Tokens of it that are the cloud's.")] = 15,
    gantt: Annotated[
        Path | None, typer.Option(help="Draw here, .png, who is busy when in one image of each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Model base, blocking, optimistic and exact decoding from e, C(k), r, u and a."""
    if prefix > tokens:
        raise InvalidInput("prefix", prefix, f"give at most the {tokens} tokens of the image")
    if gantt is not None:
        check_picture_path(gantt, field="gantt")
    images = [
        tokens_like(uncertain, agreed, num_tokens=tokens, seed=seed, sharpness=sharpness)
        for seed in range(IMAGES)
    ]
    found: dict[str, dict[str, list[Timeline]]] = {}
    for link in milliseconds(rtt):
        costs = Costs(draft=draft / 1e3, step=step / 1e3, row=row / 1e3, trip=(trip + link) / 1e3)
        found[f"RTT {link:g} ms"] = {
            name: [loop(image, costs, prefix) for image in images] for name, loop in LOOPS.items()
        }
    rows = {link: table_rows(loops, tokens) for link, loops in found.items()}
    if as_json:
        print(json.dumps(rows))
    else:
        show(rows)
    if gantt is not None:
        draw_gantt(
            gantt,
            [
                (f"{link}: {name}", timelines[0].spans)
                for link, loops in found.items()
                for name, timelines in loops.items()
                if name != "base"
            ],
        )


def table_rows(loops: dict[str, list[Timeline]], num_tokens: int) -> dict[str, dict[str, float]]:
    """Means over images, by loop and column; the first in seconds."""
    base = mean([image.seconds for image in loops["base"]])
    found = {}
    for name, images in loops.items():
        seconds = mean([image.seconds for image in images])
        counts = ("forwards", "positions", "drafts")
        shares = [mean([getattr(i, count) / num_tokens for i in images]) for count in counts]
        found[name] = dict(zip(COLUMNS, [seconds, base / seconds, *shares], strict=True))
    return found


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def show(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    names = (Column(no_wrap=True), Column(no_wrap=True))
    table = Table(*names, *COLUMNS)
    for link, loops in rows.items():
        for name, values in loops.items():
            seconds, *others = values.values()
            table.add_row(link, name, f"{seconds:.3f} s", *(f"{value:.2f}" for value in others))
    Console().print(table)
