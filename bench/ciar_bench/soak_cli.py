"""`ciar-bench soak`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.errors import EngineError
from ciar_bench.cloud_process import cloud_process, free_port
from ciar_bench.machine import describe_machine
from ciar_bench.options import ModelOption
from ciar_bench.soak import SoakReport, run_soak


def soak(
    model: ModelOption = DEFAULT_MODEL,
    images: Annotated[int, typer.Option(min=10, help="Images to draw.")] = 2000,
    edges: Annotated[int, typer.Option(min=1, help="Edges at a time.")] = 8,
    options: Annotated[
        str, typer.Option(help="More options of ciar-cloud serve, as one text.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw many images: is memory flat, and do sessions and slots come back to zero?"""
    console, port = Console(stderr=True), free_port()
    more = ["--metrics-port", str(port), *options.split()]
    with cloud_process(find_model(model), core=None, options=more) as cloud:
        report = run_soak(
            cloud.address,
            f"http://127.0.0.1:{port}/metrics",
            cloud.pid,
            num_images=images,
            num_edges=edges,
            progress=console.print,
        )
    values = asdict(report) | {"growth": report.growth, "machine": describe_machine()}
    print(json.dumps(values) if as_json else text(report))
    if not report.is_flat:
        raise EngineError(
            "the cloud's memory grew by 2 % or more, or something was left: see above"
        )


def text(report: SoakReport) -> str:
    left = ", ".join(f"{name} {value:g}" for name, value in report.left.items())
    return (
        f"{report.num_images} images drawn, {report.num_given_up} given up, "
        f"{report.num_errors} errors in {report.seconds:.0f} s\n"
        f"resident: {report.first_bytes / 2**20:.1f} MiB behind the warm-up, "
        f"{report.last_bytes / 2**20:.1f} MiB at the end ({report.growth:+.2%})\n"
        f"left: {left}"
    )
