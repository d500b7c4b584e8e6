"""The command `ciar-bench latency`."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.errors import EngineError, InvalidInput
from ciar.output_file import replace_file
from ciar.picture import check_picture_path
from ciar.threshold import StaticThreshold
from ciar_bench.cloud_process import cloud_process, cores
from ciar_bench.emulation import EmulationName, emulation
from ciar_bench.gantt import draw_gantt
from ciar_bench.latency import ALONE, IN_RASTER, METHODS, Cell, LatencyPlan, Method, measure_latency
from ciar_bench.latency_model import DoubtOf, model_images
from ciar_bench.latency_report import CellReport, report_cell
from ciar_bench.latency_table import markdown, routing, show
from ciar_bench.loop_model import Span
from ciar_bench.machine import describe_machine
from ciar_bench.options import ModelOption
from ciar_bench.pair import write_random_pair
from ciar_bench.slow_link import SlowLink
from ciar_bench.workload import seeded_prompts
from ciar_edge.ending import Ending
from ciar_edge.models import load_draft_model
from ciar_train.sizes import load_size

DEFAULTS = LatencyPlan()
RANDOM_SHARE = 0.30  # of random weights, whose scores mean nothing

console = Console(stderr=True)


def latency(
    model: ModelOption = DEFAULT_MODEL,
    size: Annotated[
        str, typer.Option(help="Time this size with random weights instead of a model.")
    ] = "",
    rounds: Annotated[
        int, typer.Option(min=1, help="Images of each method and link.")
    ] = DEFAULTS.rounds,
    modes: Annotated[
        str, typer.Option(help=f"Some of {', '.join(METHODS)}, separated by commas.")
    ] = ",".join(IN_RASTER),
    wavefront: Annotated[
        int, typer.Option(min=1, help="Of the modes with that name: tokens from row to row.")
    ] = DEFAULTS.wavefront,
    max_gap: Annotated[
        float, typer.Option(min=0, help="Of the mode `late`, in nats.")
    ] = DEFAULTS.max_gap,
    share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Ask for this share of tokens at random, not for the model's own."
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="A static threshold on the model's score.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Ask for at most this share of each image's tokens.")
    ] = None,
    rtt: Annotated[
        str, typer.Option(help="Round trips to emulate, milliseconds separated by commas.")
    ] = "0",
    jitter: Annotated[float, typer.Option(help="Most milliseconds more, each way.")] = 0.0,
    bandwidth: Annotated[
        float, typer.Option(help="Mbit/s each way; 0: what the machine has.")
    ] = 0.0,
    loss: Annotated[float, typer.Option(help="Percent of segments lost, each way.")] = 0.0,
    emulate: Annotated[
        EmulationName,
        typer.Option(
            "--emulation",
            help="By network namespaces, which take root, or by a proxy, then at RTT 0 too; "
            "auto: the first that works, where a link is slow.",
        ),
    ] = "auto",
    gantt: Annotated[
        Path | None,
        typer.Option(help="Draw here, .png, who was busy when in the first image of each method."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the tables here as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Base, blocking, optimistic and exact decoding in one run, over links as slow as you say."""
    routes = {"share": share, "threshold": threshold, "budget": budget}
    given = [name for name, value in routes.items() if value is not None]
    if len(given) > 1:
        raise InvalidInput(given[1], routes[given[1]], f"leave it or {given[0]} out")
    plan = LatencyPlan(
        links=tuple(
            SlowLink(rtt=one / 1e3, jitter=jitter / 1e3, bandwidth=bandwidth * 1e6, loss=loss / 100)
            for one in milliseconds(rtt)
        ),
        methods=methods(modes),
        rounds=rounds,
        share=RANDOM_SHARE if size and not given else share,
        threshold=threshold,
        budget=budget,
        wavefront=wavefront,
        max_gap=max_gap,
    )
    if gantt is not None:
        check_picture_path(gantt, field="gantt")
    title = f"latency of {size or Path(model).name}{' (random weights)' if size else ''}"
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)

    def keep(cells: Sequence[CellReport]) -> None:
        if out:
            replace_file(out, markdown(cells, title, plan).encode())

    found = measure(model, size, plan, emulate, gantt, keep)
    if as_json:
        head = {"title": title, "machine": describe_machine(), "routing": routing(plan)}
        print(json.dumps(head | {"cells": [asdict(cell) for cell in found]}))
    else:
        show(found, title)
    if any(cell.equal_images not in (1, None) for cell in found):
        raise EngineError(
            "exact drew other tokens than the base, or optimistic than blocking at a static "
            "threshold"
        )


def milliseconds(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        remedy = "give milliseconds from 0 to 1000, separated by commas"
        raise InvalidInput("rtt", text, remedy) from None


def methods(text: str) -> tuple[Method, ...]:
    """In the order of METHODS."""
    parts = text.split(",")
    if not set(parts) <= set(METHODS):
        raise InvalidInput("modes", text, f"give some of {', '.join(METHODS)}, separated by commas")
    return tuple(method for method in METHODS if method in parts)


def measure(
    model: str,
    size: str,
    plan: LatencyPlan,
    how: EmulationName,
    gantt: Path | None,
    keep: Callable[[Sequence[CellReport]], None],
) -> list[CellReport]:
    """keep: told of all links so far whenever one is done, so that a long run loses little."""
    reports: list[CellReport] = []
    with Ending() as ending, tempfile.TemporaryDirectory(prefix="ciar-bench-") as scratch:
        folder = write_random_pair(load_size(size), Path(scratch)) if size else find_model(model)
        prompts = seeded_prompts(load_size(size or "mini"), plan.rounds)
        usable = cores()
        edge_core, cloud_core = pick_cores(usable)
        with (
            emulation(how, plan.links, cores=usable[2:] or usable, say=console.print) as links,
            cloud_process(
                folder, core=cloud_core, options=links.options, inside=links.inside
            ) as cloud,
        ):
            if edge_core is not None:
                os.sched_setaffinity(0, {edge_core})
            edge = load_draft_model(folder / "edge")
            router = plan.router(edge, seed=0)
            doubt = edge.doubt(router.name)
            is_static = isinstance(router.threshold, StaticThreshold)

            def doubt_of(score: float) -> float:
                return doubt.of(doubt.rank(score))

            def finished(cell: Cell) -> None:
                reports.append(report_cell(cell, doubt_of, is_static=is_static))
                keep(reports)

            say = console.print
            cells = ending.run(
                measure_latency(
                    cloud.address, edge, prompts, plan, links, progress=say, finished=finished
                )
            )
    if gantt is not None:
        draw_gantt(gantt, list(watched(cells, doubt_of)))
    return reports


def watched(cells: Sequence[Cell], doubt_of: DoubtOf) -> Iterator[tuple[str, Sequence[Span]]]:
    """The first image of every method but the base, as it was and as the model has it."""
    for cell in cells:
        for method, spans in cell.rounds[0].spans.items():
            if method not in ALONE:
                yield f"{cell.link}: {method}", spans
                for model in model_images(cell, method, doubt_of)[:1]:
                    yield f"{cell.link}: {method}, modelled", model.spans


def pick_cores(usable: Sequence[int]) -> tuple[int | None, int | None]:
    """One core for the edge and one for the cloud; unpinned on a single core."""
    if len(usable) < 2:
        console.print("only one core: edge and cloud share it, so expect worse ratios")
        return None, None
    return usable[0], usable[1]
