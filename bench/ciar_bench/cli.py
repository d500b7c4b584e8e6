"""`ciar-bench`: measurements, one command each."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ciar import __version__
from ciar.checkpoint import DEFAULT_MODEL, find_model, read_config
from ciar.errors import CiarError
from ciar_bench.certify.cli import certify, risk_check
from ciar_bench.faults_cli import faults
from ciar_bench.full_size_cli import full_size
from ciar_bench.head_scale_cli import head_scale
from ciar_bench.latency_cli import latency
from ciar_bench.load_cli import load
from ciar_bench.machine import describe_machine
from ciar_bench.model_cli import model
from ciar_bench.options import ModelOption, PromptSizeOption
from ciar_bench.quality.cli import add_commands
from ciar_bench.routing import RoutingReport, report_routing, watch_bundle
from ciar_bench.soak_cli import soak
from ciar_bench.tables.cli import table
from ciar_bench.workload import seeded_prompts
from ciar_train.sizes import load_size

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
def routing(
    model: ModelOption = DEFAULT_MODEL,
    size: PromptSizeOption = "mini",
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
app.command()(latency)
app.command()(model)
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


def main() -> None:
    try:
        app()
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
