"""`ciar-bench table NAME`: the publication's tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.errors import InvalidInput
from ciar_bench.cloud_process import cores
from ciar_bench.options import ModelOption
from ciar_bench.quality.cli import show_progress
from ciar_bench.quality.clip import CLIP_MODEL, CLIP_WEIGHTS
from ciar_bench.quality.coco import read_captions
from ciar_bench.quality.feature_cache import PictureSet
from ciar_bench.quality.folder import Caption, PictureFolder
from ciar_bench.quality.instruments import EXTRACTORS, make_instruments
from ciar_bench.quality.scenes import DrawnScenes
from ciar_bench.tables.building import RISK, TablePlan, build, build_risk, check
from ciar_bench.tables.contents import TABLES
from ciar_bench.tables.timing import NUM_PROMPTS
from ciar_cloud.bundle import check_device

NAMES = (*TABLES, RISK)


def table(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}, or all.")],
    out: Annotated[Path, typer.Option(help="Tables, and the pictures behind them.")],
    scenes: Annotated[
        Path | None, typer.Option(help="Held-out scenes: captions and real pictures.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Instead: prompts, as of `ciar-bench coco-captions`.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="With --captions: a folder of real pictures.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Bring all pictures to this size first (COCO: 256).")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    count: Annotated[int, typer.Option(min=16, help="Captions to draw.")] = 500,
    extractor: Annotated[
        str, typer.Option(help=f"Features, separated by commas: {', '.join(EXTRACTORS)}.")
    ] = "efficientnet",
    scorer: Annotated[str, typer.Option(help="A caption scorer: its file or its name.")] = "",
    clip_model: Annotated[str, typer.Option(help="CLIP: an architecture.")] = CLIP_MODEL,
    clip_weights: Annotated[str, typer.Option(help="CLIP: a tag, or a path.")] = CLIP_WEIGHTS,
    hps_weights: Annotated[str, typer.Option(help="HPSv2: path of its weights.")] = "",
    variants: Annotated[
        Path | None, typer.Option(help="RUN/variants of `ciar-train variant`, for `losses`.")
    ] = None,
    timed: Annotated[int, typer.Option(min=2, help="Captions to time.")] = NUM_PROMPTS,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    device: Annotated[str, typer.Option(help="Where the target is: cpu or cuda.")] = "cpu",
) -> None:
    """Draw, time, measure and write a table; what is there already is kept."""
    if name != "all" and name not in NAMES:
        raise InvalidInput("name", name, f"give one of {', '.join(NAMES)}, or all")
    check_device(device)
    folder = find_model(model)
    prompts, source, real = open_source(scenes, captions, reference, size=size)
    if count > len(prompts):
        raise InvalidInput("count", count, f"there are {len(prompts)} captions")
    plan = TablePlan(
        out=out,
        model=folder,
        captions=prompts[:count],
        source=source,
        reference=real,
        size=size,
        instruments=make_instruments(
            extractors=extractor,
            model=folder,
            scorer=scorer,
            clip_model=clip_model,
            clip_weights=clip_weights,
            hps_weights=hps_weights,
            device=device,
            progress=show_progress,
        ),
        num_workers=workers or len(cores()),
        num_timed=timed,
        variants=variants,
        device=device,
        progress=show_progress,
    )
    names = NAMES if name == "all" else (name,)
    for each in names:
        check(each, plan)
    for each in names:
        if each == RISK:
            build_risk(plan)
        else:
            build(each, plan)
        print(plan.out / f"{each}.md")


def open_source(
    scenes: Path | None, captions: Path | None, reference: Path | None, *, size: int | None
) -> tuple[Sequence[Caption], str, PictureSet]:
    """Captions, where they come from, and real pictures. Raises `InvalidInput`."""
    if scenes:
        if captions or reference or size:
            raise InvalidInput(
                "scenes", str(scenes), "give it alone: captions and pictures are there"
            )
        drawn = DrawnScenes(scenes)
        return drawn.captions, "held-out scenes", drawn
    if not (captions and reference):
        raise InvalidInput("scenes", None, "give --scenes, or --captions and --reference")
    return read_captions(captions), captions.name, PictureFolder(reference, size=size)
