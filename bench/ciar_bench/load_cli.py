"""The command `ciar-bench load`, and what it found as Markdown."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.errors import EngineError
from ciar_bench.cloud_process import cloud_process, cores, free_port
from ciar_bench.load import BASE, CIAR, Burst, Cell, Crowd, LoadPlan, percentile, run_load
from ciar_bench.machine import describe_machine
from ciar_bench.options import ModelOption

DEFAULTS = LoadPlan()

Value = Callable[[Burst], float]
COLUMNS: tuple[tuple[Value, int], ...] = (  # and digits behind the point
    (lambda one: one.images_per_second, 2),
    (lambda one: one.positions_per_second, 0),
)


def load(
    model: ModelOption = DEFAULT_MODEL,
    edges: Annotated[
        list[int], typer.Option(min=1, help="Edges at a time; several times for several.")
    ] = list(DEFAULTS.edges),  # noqa: B006
    images: Annotated[int, typer.Option(min=1, help="Images of each edge in a round.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = DEFAULTS.rounds,
    crowd: Annotated[
        int, typer.Option(min=0, help="Edges of the last part, 0: none.")
    ] = DEFAULTS.crowd,
    crowd_images: Annotated[
        int, typer.Option(min=1, help="Images of each of these.")
    ] = DEFAULTS.crowd_images,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the first image; the others count on.")
    ] = DEFAULTS.seed,
    options: Annotated[
        str, typer.Option(help="More options of ciar-cloud serve, as one text.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write the tables here as Markdown.")] = None,
) -> None:
    """One cloud under many edges: throughput, fairness, what the server adds, health checks."""
    console, port = Console(stderr=True), free_port()
    plan = LoadPlan(
        edges=tuple(edges),
        images=images,
        rounds=rounds,
        crowd=crowd,
        crowd_images=crowd_images,
        seed=seed,
    )
    most = max([*edges, crowd])
    more = ["--engine-process", "--metrics-port", str(port), "--slots", str(most)]
    more += ["--max-queue", str(2 * most), "--log-level", "error", *options.split()]
    with cloud_process(find_model(model), core=None, options=more) as cloud:
        metrics = f"http://127.0.0.1:{port}/metrics"
        cells, crowded = run_load(cloud.address, metrics, plan, progress=console.print)
    found = load_markdown(cells, crowded, plan, model=Path(model).name)
    print(found)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found)
    faults = list(chain.from_iterable(cell.faults for cell in cells))
    faults += crowded.faults if crowded else []
    if faults:
        raise EngineError("; ".join(faults))


def load_markdown(cells: Sequence[Cell], crowd: Crowd | None, plan: LoadPlan, *, model: str) -> str:
    return "\n".join(chain(head(plan, model), cell_lines(cells), crowd_lines(crowd))) + "\n"


def head(plan: LoadPlan, model: str) -> Iterator[str]:
    yield "# A cloud under many edges"
    yield ""
    yield (
        f"{model}; {describe_machine()}, {len(cores())} of them for one cloud (server and engine "
        f"process, one thread) and all edges; {datetime.now(UTC).date()}. Edges have no draft "
        f"model and no thinking time: they keep tokens by dice and ask for {CIAR.calls:.0%} of "
        f"them, the prefix ({CIAR.prefix_rate:.1%}) included. `base`: the cloud alone draws all "
        f"tokens ({BASE.prefix_rate:.0%} prefix), in the same steps over all images. "
        f"{plan.rounds} rounds after one to warm up, CIAR and base in turns, {plan.images} an "
        f"edge and round, seeds from {plan.seed} on; medians, in brackets the least and the "
        "largest ratio of a round."
    )
    yield ""


def cell_lines(cells: Sequence[Cell]) -> Iterator[str]:
    yield "## Throughput"
    yield ""
    yield (
        "| edges at a time | images/s | base | ratio | cloud positions/s | base | ratio "
        "| sessions a step | base |"
    )
    yield "| --- " * 9 + "|"
    for cell in cells:
        parts = [f"{cell.num_edges}"]
        for read, digits in COLUMNS:
            parts += [f"{median(side, read):.{digits}f}" for side in (cell.ciar, cell.base)]
            parts.append("{:.2f} ({:.2f} to {:.2f})".format(*cell.ratio(read)))
        for side in (cell.ciar, cell.base):
            parts.append(f"{median(side, lambda one: one.sessions_a_step):.1f}")
        yield "| " + " | ".join(parts) + " |"
    yield ""
    yield "## What the server adds to a verify"
    yield ""
    yield (
        "Milliseconds at the edge from a batch to its verdict, without the steps that computed it; "
        "and without its wait for the first of them, too."
    )
    yield ""
    yield "| edges at a time | beyond the forward, p50 | p99 | beyond the queue, p50 | p99 |"
    yield "| --- " * 5 + "|"
    for cell in cells:
        numbers = [
            f"{1000 * percentile(list(chain.from_iterable(values)), q):.2f}"
            for values in (
                [one.beyond_forward for one in cell.ciar],
                [one.beyond_queue for one in cell.ciar],
            )
            for q in (50, 99)
        ]
        yield f"| {cell.num_edges} | " + " | ".join(numbers) + " |"


def crowd_lines(crowd: Crowd | None) -> Iterator[str]:
    if crowd is None:
        return
    burst, health = crowd.burst, crowd.health_seconds
    yield ""
    yield f"## {crowd.num_edges} edges at a time"
    yield ""
    yield "| what | asked | found |"
    yield "| --- | --- | --- |"
    yield f"| images, errors | 0 errors | {len(burst.image_seconds)}, {crowd.num_errors} |"
    yield f"| slowest image over the median | 2 | {crowd.slowest_over_median:.2f} |"
    yield f"| images/s over one edge alone | 3 | {crowd.throughput_over_alone:.2f} |"
    yield (
        f"| health checks meanwhile: p99, s | under 1 | {percentile(health, 99):.3f} "
        f"(median {percentile(health, 50):.3f}, {len(health)} of them, "
        f"{crowd.num_unwell} not SERVING) |"
    )
    left = ", ".join(f"{name} {value:g}" for name, value in crowd.left.items())
    yield f"| left behind | 0 | {left} |"
    yield ""
    yield (
        f"Images took {percentile(burst.image_seconds, 50):.1f} s (median), steps held "
        f"{burst.sessions_a_step:.1f} sessions."
    )


def median(bursts: Sequence[Burst], value: Value) -> float:
    return statistics.median(value(one) for one in bursts)
