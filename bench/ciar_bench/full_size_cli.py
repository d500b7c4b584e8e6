"""The command `ciar-bench full-size`."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from ciar.errors import InvalidInput
from ciar_bench.full_size import FullSizeReport, measure_full_size
from ciar_bench.latency import PROMPT
from ciar_bench.machine import describe_machine
from ciar_bench.random_model import PUBLISHED, write_random_model

GIB = 2**30

console = Console(stderr=True)


def full_size(
    size: Annotated[
        str, typer.Option(help=f"Shapes for random weights: {', '.join(PUBLISHED)}.")
    ] = "llamagen-xl-256",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "float32",
    model: Annotated[
        Path | None, typer.Option(help="A model folder to measure instead of random weights.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What is drawn.")] = PROMPT,
    device: Annotated[str, typer.Option(help="Of the cloud: cpu, cuda, ...")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="Of the cloud; 0: all cores.")] = 0,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of tokens sent to the cloud.")
    ] = 0.3,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Also time forwards of so many images; several for several."),
    ] = None,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Steps of fixed shapes, which a GPU replays.")
    ] = False,
    scratch: Annotated[
        Path | None, typer.Option(help="Where random weights are written; default: temporary.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table here as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Memory, start-up and an image of a checkpoint of a published size, in two processes."""
    if size not in PUBLISHED:
        raise InvalidInput("size", size, f"give one of {', '.join(PUBLISHED)}")
    with tempfile.TemporaryDirectory(prefix="ciar-bench-", dir=scratch) as folder:
        bundle = model
        if bundle is None:
            console.print("writing random weights")
            bundle = write_random_model(
                PUBLISHED[size], Path(folder), prompt=prompt, dtype=getattr(torch, dtype)
            )
        report = measure_full_size(
            bundle,
            prompt=prompt,
            dtype=dtype,
            device=device,
            threads=threads,
            share=share,
            batches=batch or (),
            cuda_graphs=cuda_graphs,
            progress=console.print,
        )
    title = f"{model or size} in {dtype} on {device}"
    if as_json:
        print(json.dumps({"title": title, "machine": describe_machine()} | asdict(report)))
    else:
        print(markdown(report, title))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(markdown(report, title))


def markdown(report: FullSizeReport, title: str) -> str:
    def gib(count: int) -> str:
        return f"{count / GIB:.2f} GiB"

    width, height = report.image_pixels
    read = f"{gib(report.read_bytes)} ({report.read_bytes / report.weights_bytes:.2f} of them)"
    rows = [
        ("weights of the target", gib(report.weights_bytes)),
        ("read from the disk until it served", read),
        ("seconds until it served", f"{report.ready_seconds:.1f}"),
        ("an interpreter with its imports, resident", gib(report.interpreter_bytes)),
        ("beyond that, resident when it served", gib(report.resident_bytes)),
        ("beyond that, resident after the image", gib(report.drawn_resident_bytes)),
        (f"image of {report.num_tokens} tokens, {width}x{height}", f"{report.image_seconds:.1f} s"),
        ("cloud calls", f"{report.cloud_calls:.1%}"),
        *((f"C({k})", f"{1e3 * s:.3g} ms") for k, s in sorted(report.cloud_step.items())),
        *((name, f"{1e3 * s:.3g} ms") for name, s in report.batch_steps.items()),
        ("weights over the speed of memory", f"{1e3 * report.limit_seconds:.3g} ms"),
    ]
    lines = [f"# Full size: {title}", "", f"{describe_machine()}; random routing.", ""]
    lines += ["| what | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"
