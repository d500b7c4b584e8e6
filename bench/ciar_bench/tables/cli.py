"""`ciar-bench table NAME`: the publication's tables."""

from pathlib import Path
from typing import Annotated

import typer

from ciar.checkpoint import DEFAULT_MODEL, find_model
from ciar.errors import InvalidInput
from ciar_bench.cloud_process import cores
from ciar_bench.quality.cli import load_extractor, show_progress
from ciar_bench.quality.features import EfficientNetFeatures
from ciar_bench.quality.report import Instruments
from ciar_bench.quality.scenes import DrawnScenes
from ciar_bench.quality.scorer import CaptionScorer, find_scorer
from ciar_bench.tables.building import TablePlan, build, build_risk
from ciar_bench.tables.contents import TABLES
from ciar_bench.tables.timing import NUM_PROMPTS

RISK = "risk"
NAMES = (*TABLES, RISK)


def table(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}, or all.")],
    scenes: Annotated[Path, typer.Option(help="Held-out scenes: captions and real pictures.")],
    out: Annotated[Path, typer.Option(help="Tables, and the pictures behind them.")],
    model: Annotated[
        str, typer.Option(help="A model folder or an embedded model.")
    ] = DEFAULT_MODEL,
    count: Annotated[int, typer.Option(min=16, help="Captions to draw.")] = 500,
    extractor: Annotated[
        str, typer.Option(help="Features, separated by commas: efficientnet, inception.")
    ] = "efficientnet",
    scorer: Annotated[str, typer.Option(help="A caption scorer: its file or its name.")] = "",
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
    folder, reference = find_model(model), DrawnScenes(scenes)
    if count > len(reference):
        raise InvalidInput("count", count, f"there are {len(reference)} held-out scenes")
    scorers = []
    if scorer:
        maxima = EfficientNetFeatures(has_maxima=True, device=device)
        scorers.append(CaptionScorer(find_scorer(scorer), folder / "text", extractor=maxima))
    plan = TablePlan(
        out=out,
        model=folder,
        reference=reference,
        instruments=Instruments(
            extractors=[load_extractor(e, device=device) for e in extractor.split(",")],
            scorers=scorers,
            progress=show_progress,
        ),
        count=count,
        num_workers=workers or len(cores()),
        num_timed=timed,
        variants=variants,
        device=device,
        progress=show_progress,
    )
    for each in NAMES if name == "all" else (name,):
        if each == RISK:
            build_risk(plan)
        else:
            build(each, plan)
        print(plan.out / f"{each}.md")
