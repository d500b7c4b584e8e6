"""`ciar-cloud convert`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ciar_cloud.convert.convert import DTYPES, Settings, convert

console = Console(stderr=True)


def convert_command(
    sources: Annotated[
        list[Path], typer.Argument(help="Checkpoint files, or folders of safetensors.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The model folder to write.")],
    stage: Annotated[
        int | None,
        typer.Option(help="LlamaGen: 1 (256 px) or 2 (512 px), where the file is not known."),
    ] = None,
    grid_size: Annotated[
        int | None, typer.Option(min=1, help="Instead of a stage: tokens a side.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; default: of width 64.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help=f"Of the transformer's weights: {', '.join(DTYPES)}.")
    ] = "keep",
    accept_license: Annotated[
        list[str], typer.Option(help="A licence you have read and accept: chameleon.")
    ] = [],  # noqa: B006
) -> None:
    """Turn public checkpoints into a model folder; several at once or one after another."""
    settings = Settings(
        stage=stage,
        grid_size=grid_size,
        num_heads=heads,
        dtype=dtype,
        accepted=frozenset(accept_license),
    )
    columns = (SpinnerColumn(), TextColumn("{task.completed} tensors  {task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        parts = convert(
            sources,
            out,
            settings,
            on_tensor=lambda name: bar.update(task, advance=1, description=name),
        )
    for part in parts:
        print(f"{part.folder}: {part.what}")
