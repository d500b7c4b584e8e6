"""`ciar-bench`: measurements, one command each."""

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ciar import __version__
from ciar.checkpoint import DEFAULT_MODEL, find_model, read_config
from ciar.errors import CiarError
from ciar_bench.certify.cli import certify, risk_check
from ciar_bench.cloud_process import cloud_process, cores
from ciar_bench.faults_cli import faults
from ciar_bench.full_size_cli import full_size
from ciar_bench.head_scale_cli import head_scale
from ciar_bench.latency import LatencyPlan, LatencyReport, run_latency
from ciar_bench.load_cli import load
from ciar_bench.machine import describe_machine
from ciar_bench.pair import write_random_pair
from ciar_bench.quality.cli import add_commands
from ciar_bench.routing import RoutingReport, report_routing, watch_bundle
from ciar_bench.soak_cli import soak
from ciar_bench.tables.cli import table
from ciar_bench.workload import seeded_prompts
from ciar_edge.models import load_draft_model
from ciar_train.sizes import load_size

DEFAULTS = LatencyPlan()

app = typer.Typer(
    help="Measure CIAR.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
console = Console(stderr=True)


def version(value: bool) -> None:
    if value:
        print(f"ciar-bench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure CIAR."""


@app.command()
def latency(
    model: Annotated[
        str, typer.Option(help="A model folder or an embedded model.")
    ] = DEFAULT_MODEL,
    size: Annotated[
        str, typer.Option(help="Time this size with random weights instead of a model.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Images of each method.")] = DEFAULTS.rounds,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of routed tokens sent to the cloud.")
    ] = DEFAULTS.share,
    out: Annotated[Path | None, typer.Option(help="Write the table here as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Base, blocking and exact decoding in one run, both processes on a core each."""
    plan = LatencyPlan(rounds=rounds, share=share)
    with tempfile.TemporaryDirectory(prefix="ciar-bench-") as scratch:
        folder = write_random_pair(load_size(size), Path(scratch)) if size else find_model(model)
        edge_core, cloud_core = pick_cores()
        with cloud_process(folder, core=cloud_core) as cloud:
            if edge_core is not None:
                os.sched_setaffinity(0, {edge_core})
            edge = load_draft_model(folder / "edge")
            report = run_latency(cloud.address, edge, plan, progress=console.print)
    title = f"latency of {size or model}{' (random weights)' if size else ''}"
    if as_json:
        print(json.dumps({"title": title, "machine": describe_machine()} | asdict(report)))
    else:
        show(report, title)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(markdown(report, title, plan))


@app.command()
def routing(
    model: Annotated[
        str, typer.Option(help="A model folder or an embedded model.")
    ] = DEFAULT_MODEL,
    size: Annotated[
        str, typer.Option(help="The size whose nouns and places make the prompts.")
    ] = "mini",
    images: Annotated[int, typer.Option(min=1, help="Seeded prompts.")] = 200,
    budget: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of tokens sent to the cloud.")
    ] = 0.30,
    discrete: Annotated[bool, typer.Option(help="Also the discrete scores (slow).")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the table here as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Every score on the edge's own rollouts: AUROC, and what is left among the kept tokens."""
    folder = find_model(model)
    name = read_config(folder / "cloud")["name"]
    values = watch_bundle(
        folder,
        seeded_prompts(load_size(size), images),
        share=budget,
        has_discrete=discrete,
        progress=lambda done, total, what: console.print(f"{what} {done}/{total}"),
    )
    report = report_routing(values, share=budget)
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        print(routing_markdown(report, name))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(routing_markdown(report, name))


add_commands(app)
app.command()(table)
app.command()(head_scale)
app.command()(full_size)
app.command()(soak)
app.command()(load)
app.command()(faults)
app.command()(certify)
app.command()(risk_check)


def routing_markdown(report: RoutingReport, name: str) -> str:
    head = (
        f"{describe_machine()}, float32; {report.num_images} images, "
        f"{report.num_positions} routed positions, "
        f"{report.cloud_share:.1%} of them sent to the cloud. "
        f"Over all: disagreement {report.disagreement:.3f}, total variation {report.tv:.3f}, "
        f"expected agreement {report.expected_agreement:.3f}, width {report.mean_width:.3f}, "
        f"covered mass {report.covered:.3f}."
    )
    lines = [f"# Routing of {name}", "", head, ""]
    kept = f"among the kept {1 - report.share:.0%}"
    lines += [
        f"| score | AUROC, TV > median | disagreement {kept} | TV among the kept |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.score} | {row.auroc:.3f} | {row.disagreement:.3f} | {row.kept_tv:.3f} |"
        for row in report.rows
    ]
    return "\n".join(lines) + "\n"


def pick_cores() -> tuple[int | None, int | None]:
    """One core for the edge and one for the cloud; unpinned on a single core."""
    usable = cores()
    if len(usable) < 2:
        console.print("only one core: edge and cloud share it, so expect worse ratios")
        return None, None
    return usable[0], usable[1]


def rows(report: LatencyReport) -> list[tuple[str, str]]:
    """What the tables show: name and value."""
    lines = [
        ("base, image", f"{report.base_seconds:.3f} s"),
        ("blocking, image", f"{report.blocking_seconds:.3f} s"),
        ("exact, image", f"{report.exact_seconds:.3f} s"),
        *((f"cloud step C({k})", f"{1e3 * s:.2f} ms") for k, s in report.cloud_step.items()),
        ("edge step e", f"{1e3 * report.edge_step:.3f} ms"),
        ("protocol, a round trip", f"{1e3 * report.protocol_seconds:.2f} ms"),
        (
            "round trips, blocking / exact",
            f"{report.blocking_round_trips:.0f} / {report.exact_round_trips:.0f}",
        ),
        (
            "cloud calls, blocking / exact",
            f"{report.blocking_cloud_calls:.1%} / {report.exact_cloud_calls:.1%}",
        ),
        ("uplink, blocking", f"{report.uplink_bytes / 1024:.1f} KiB"),
        ("downlink, blocking", f"{report.downlink_bytes / 1024:.1f} KiB"),
    ]
    for name, value in report.ratios.items():
        least, largest = report.ratio_ranges[name]
        lines.append((name, f"{value:.3f} ({least:.3f} to {largest:.3f})"))
    return lines


def show(report: LatencyReport, title: str) -> None:
    table = Table("what", "median", title=title)
    for name, value in rows(report):
        table.add_row(name, value)
    Console().print(table)


def markdown(report: LatencyReport, title: str, plan: LatencyPlan) -> str:
    head = (
        f"{describe_machine()}; cloud in float32, edge in int8 where its file is; "
        f"{plan.rounds} rounds, routing share {plan.share:.2f}, RTT 0."
    )
    lines = [f"# {title}", "", head, ""]
    lines += ["| what | median |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows(report))]
    return "\n".join(lines) + "\n"


def main() -> None:
    try:
        app()
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
