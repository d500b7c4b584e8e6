"""`ciar-train scenes | tokenizer | target | draft | export | all`: the steps of ciar-mini.

Each step is resumable; all of them work in one run folder.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ciar import __version__
from ciar.checkpoint import find_model
from ciar.errors import CiarError, InvalidInput
from ciar_train import steps
from ciar_train.captioned import list_items
from ciar_train.draft_step import run_draft, run_eagle
from ciar_train.extract import Extractor
from ciar_train.extract import extract as extract_codes
from ciar_train.loop import World
from ciar_train.plans import default_plan, load_plan, plan_names
from ciar_train.run_folder import RunFolder
from ciar_train.sizes import load_size, size_names
from ciar_train.target_draft import TargetDraft
from ciar_train.variants import VARIANTS, run_variant

app = typer.Typer(
    help="Train ciar-mini: captioned scenes, tokenizer, target, draft, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SizeOption = Annotated[
    str,
    typer.Option("--size", help=f"One of {', '.join(size_names())}, or the path of a TOML file."),
]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="Run folder, default: runs/SIZE; an interrupted run in it goes on."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda; default: cuda when present.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads of the model; 0: all cores.")]
ArtworkOption = Annotated[
    Path | None, typer.Option(help="An artwork pack to use instead of fetching the artwork.")
]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Processes that draw scenes; 0: all cores.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the model bundle.")]

DtypeName = Literal["float32", "bfloat16", "float16"]
DEFAULT_SIZE = "mini-cpu"
RUNS = Path("runs")


class ProgressBars:
    """A bar a kind of work on a terminal, a line every tenth of it elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.tasks: dict[str, TaskID] = {}
        self.said: dict[str, int] = {}

    def __call__(self, done: int, total: int, what: str) -> None:
        if self.console.is_terminal:
            self._draw(done, total, what)
        elif (tenth := 10 * done // max(total, 1)) != self.said.get(what):
            self.said[what] = tenth
            self.console.print(f"{what} {done}/{total}", highlight=False)

    def _draw(self, done: int, total: int, what: str) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total)
            self.bars.start()
        self.bars.update(self.tasks[what], completed=done, total=total)
        if all(task.finished for task in self.bars.tasks):
            self.bars.stop()


def open_run(size: str, run: Path | None, device: str, threads: int) -> RunFolder:
    if threads:
        torch.set_num_threads(threads)
    return RunFolder(
        root=run or RUNS / Path(size).stem,
        size=load_size(size),
        world=World.start(device),
        progress=ProgressBars(),
    )


@app.command()
def scenes(
    size: SizeOption = DEFAULT_SIZE,
    run: RunOption = None,
    artwork: ArtworkOption = None,
    workers: WorkersOption = 0,
) -> None:
    """Fetch the artwork once, then draw captioned pictures in parallel."""
    steps.draw_scenes(
        open_run(size, run, "cpu", 1), artwork=artwork, num_workers=workers or num_cores()
    )


@app.command()
def extract(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Folders of captioned pictures, or WebDataset archives (.tar)."),
    ],
    target: Annotated[
        str, typer.Option(help="The model folder whose tokenizer and text encoder to take.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the codes; an interrupted run goes on.")],
    device: DeviceOption = "",
    threads: ThreadsOption = 0,
) -> None:
    """Turn captioned pictures into token grids and text features, for a draft to learn from."""
    if threads:
        torch.set_num_threads(threads)
    items = list_items(sources)
    extractor = Extractor.load(find_model(target), device=World.start(device).device)
    left_out = extract_codes(items, extractor, out, progress=ProgressBars())
    print(f"{out}: {len(items) - left_out} pictures, {left_out} could not be read")


@app.command()
def adopt(
    model: Annotated[str, typer.Argument(help="A model folder or an embedded model.")],
    size: SizeOption = DEFAULT_SIZE,
    run: RunOption = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Keep its target and draft; train other drafts.")
    ] = False,
) -> None:
    """Go on from a finished bundle: keep its tokenizer, train its target further."""
    steps.adopt(open_run(size, run, "cpu", 0), find_model(model), is_frozen=frozen)


@app.command()
def tokenizer(
    size: SizeOption = DEFAULT_SIZE,
    run: RunOption = None,
    device: DeviceOption = "",
    threads: ThreadsOption = 0,
) -> None:
    """Train the VQ tokenizer on the drawn pictures."""
    steps.run_tokenizer(open_run(size, run, device, threads))


@app.command()
def target(
    size: SizeOption = DEFAULT_SIZE,
    run: RunOption = None,
    device: DeviceOption = "",
    threads: ThreadsOption = 0,
) -> None:
    """Tokenize the pictures, encode their captions, and train the cloud's transformer."""
    steps.run_target(open_run(size, run, device, threads))


@app.command()
def draft(
    size: SizeOption = DEFAULT_SIZE,
    run: RunOption = None,
    device: DeviceOption = "",
    threads: ThreadsOption = 0,
    kind: Annotated[
        Literal["inter-head", "eagle"],
        typer.Option(help="The edge model, or the drafter of EAGLE for comparisons."),
    ] = "inter-head",
    target: Annotated[
        str | None, typer.Option(help="A model folder with another target, in place of the run's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --target: what `extract` made with that target.")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help=f"With --target: {', '.join(plan_names())}, or a TOML file; default: its family's."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --target: folder of the pair; default: that of the target."),
    ] = None,
    dtype: Annotated[
        DtypeName, typer.Option(help="With --target: of the target's weights.")
    ] = "float32",
    shard_target: Annotated[
        bool,
        typer.Option(
            "--shard-target", help="With --target, under torchrun: share its layers out (FSDP)."
        ),
    ] = False,
) -> None:
    """Train the edge model for a target, both halves of phi, and calibrate its scores."""
    if target is not None:
        if data is None:
            raise InvalidInput("data", None, "give the folder that `ciar-train extract` made")
        if threads:
            torch.set_num_threads(threads)
        model = find_model(target)
        job = TargetDraft(
            model=model,
            data=data,
            plan=load_plan(plan or default_plan(model)),
            run=run or RUNS / f"draft-{model.name}",
            out=out or model,
            world=World.start(device),
            progress=ProgressBars(),
            dtype=getattr(torch, dtype),
            is_sharded=shard_target,
        )
        job.train_eagle() if kind == "eagle" else job.train()
        print(out or model)
        return
    folder = open_run(size, run, device, threads)
    if kind == "eagle":
        run_eagle(folder)
    else:
        run_draft(folder)


@app.command()
def variant(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(VARIANTS)}, or all.")],
    size: SizeOption = DEFAULT_SIZE,
    run: RunOption = None,
    device: DeviceOption = "",
    threads: ThreadsOption = 0,
) -> None:
    """Train a draft that differs in one thing, for comparisons; `plain` before all others."""
    folder = open_run(size, run, device, threads)
    for each in VARIANTS if name == "all" else (name,):
        print(run_variant(folder, each).bundle)


@app.command()
def export(
    size: SizeOption = DEFAULT_SIZE,
    run: RunOption = None,
    out: OutOption = Path("models/ciar-mini"),
) -> None:
    """Copy the finished bundle and say how large it is."""
    num_bytes = steps.export_bundle(open_run(size, run, "cpu", 0), out)
    print(f"{out}: {num_bytes / 2**20:.1f} MiB")


@app.command(name="all")
def all_steps(
    size: SizeOption = DEFAULT_SIZE,
    run: RunOption = None,
    out: OutOption = Path("models/ciar-mini"),
    artwork: ArtworkOption = None,
    workers: WorkersOption = 0,
    device: DeviceOption = "",
    threads: ThreadsOption = 0,
) -> None:
    """Every step in order; what is finished is not done again."""
    folder = open_run(size, run, device, threads)
    steps.check_trains_target(folder)
    if folder.world.is_main:
        steps.draw_scenes(folder, artwork=artwork, num_workers=workers or num_cores())
    folder.world.wait()
    steps.run_tokenizer(folder)
    folder.world.wait()
    steps.run_target(folder)
    folder.world.wait()
    run_draft(folder)
    if folder.world.is_main:
        num_bytes = steps.export_bundle(folder, out)
        print(f"{out}: {num_bytes / 2**20:.1f} MiB")


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def version(value: bool) -> None:
    if value:
        print(f"ciar-train {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train ciar-mini."""


def main() -> None:
    try:
        app()
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        World.leave()


if __name__ == "__main__":
    main()
