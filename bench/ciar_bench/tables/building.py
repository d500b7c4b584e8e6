"""A table from nothing: cells are drawn, timed, measured and written, as far as they were not."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from ciar.checkpoint import find_model, read_config
from ciar.errors import InvalidInput
from ciar.output_file import replacing
from ciar.picture import Painter
from ciar.router import DEFAULT_BUDGET
from ciar_bench.machine import describe_machine
from ciar_bench.methods import check_drafter
from ciar_bench.quality.feature_cache import PictureSet
from ciar_bench.quality.folder import Caption
from ciar_bench.quality.report import Instruments
from ciar_bench.routing import IMAGE, threshold_at, watch_bundle
from ciar_bench.tables.cells import Cell, digest_of, state_of
from ciar_bench.tables.contents import (
    FIGURE_LATENCY,
    FIGURE_QUALITY,
    FLOOR,
    MAPPED,
    TABLES,
    Contents,
)
from ciar_bench.tables.drawing import draw_cells
from ciar_bench.tables.figures import (
    draw_maps,
    draw_quality_against_latency,
    draw_risk,
    draw_sheet,
    draw_wall,
)
from ciar_bench.tables.measuring import Numbers, measure_cell, measure_floor
from ciar_bench.tables.risk import risk_curves
from ciar_bench.tables.timing import BASE, NUM_PROMPTS, Timings, measure_timings
from ciar_bench.tables.writing import (
    columns_of,
    markdown_table,
    matching,
    paired_name,
    quality_columns,
    write_csv,
)
from ciar_edge.models import load_draft_model
from ciar_train.progress import Progress, say_nothing
from ciar_train.run_folder import BUNDLE, VARIANTS

RTT = 0.020  # s
BANDWIDTH = 10e6 / 8  # bytes/s each way

RISK = "risk"  # the table of `build_risk`; all others are of `build`

# Of the code that rolls out. Raise it when `watch_bundle` gives other values of the same inputs.
ROLLOUTS = 1


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Where tables are made and of what.

    out: tables and figures, and `cells/` with all pictures.
    num_timed: captions that every method is timed with, from the first.
    captions: to draw; picture i has the seed of the i-th.  source: where they come from, in words.
    reference: real pictures.  size: pixels to which all are brought before they are measured.
    variants: folder of the drafts that differ in one thing, NAME/bundle each.
    """

    out: Path
    model: Path
    captions: Sequence[Caption]
    source: str
    reference: PictureSet
    instruments: Instruments
    num_workers: int
    size: int | None = None
    num_timed: int = NUM_PROMPTS
    variants: Path | None = None
    device: str = "cpu"
    progress: Progress = field(default=say_nothing)

    @property
    def cells(self) -> Path:
        return self.out / "cells"

    def cell(self, method: str, *, variant: str = "", again: int = 0) -> Cell:
        return Cell(method, self.bundle(variant), again)

    def bundle(self, variant: str) -> Path:
        """Of a variant, or the model. Raises `InvalidInput` and `CheckpointError`."""
        if not variant:
            return self.model
        if self.variants is None:
            raise InvalidInput("variants", None, "give the folder of `ciar-train variant`")
        return find_model(self.variants / variant / BUNDLE)


@dataclass(frozen=True, kw_only=True)
class BuiltTable:
    """rows: label, cell folder, numbers; the noise floor apart."""

    name: str
    contents: Contents
    folders: dict[str, Path]
    rows: list[tuple[str, Numbers]]
    floor: Numbers


def check(name: str, plan: TablePlan) -> None:
    """Raise what would stop a table after hours of drawing.

    `CheckpointError` for a variant or a drafter of EAGLE that is not there, `InvalidInput` for no
    folder of variants, and for rollouts with a router that has no calibration.
    """
    routed = {plan.model}
    if name != RISK:
        rows = TABLES[name](load_draft_model(plan.model / "edge")).rows
        for row in rows:
            check_drafter(row.method, plan.bundle(row.variant))
        routed = {plan.bundle(row.variant) for row in rows if row.variant}
    for model in routed:
        edge = load_draft_model(model / "edge")
        threshold_at(DEFAULT_BUDGET, edge.router, edge.calibration)


def build(name: str, plan: TablePlan) -> BuiltTable:
    """Draw, time, measure, write `NAME.md` and `NAME.csv`."""
    edge = load_draft_model(plan.model / "edge")
    contents = TABLES[name](edge)
    cells = [plan.cell(row.method, variant=row.variant) for row in contents.rows]
    base, again = plan.cell(BASE), plan.cell(BASE, again=1)
    folders = draw_cells(
        [base, again, *cells],
        plan.cells,
        plan.captions,
        num_workers=plan.num_workers,
        device=plan.device,
        progress=plan.progress,
    )
    timings = None
    if "speedup" in contents.costs:
        timings = measure_timings(
            cells,
            plan.captions,
            plan.cells,
            num_prompts=plan.num_timed,
            device=plan.device,
            progress=plan.progress,
        )
    rows = []
    trained = {cell.model for row, cell in zip(contents.rows, cells, strict=True) if row.variant}
    rollouts = {model: plan_routing(plan, model) for model in trained}
    for row, cell in zip(contents.rows, cells, strict=True):
        numbers = measure_cell(
            folders[cell], folders[base], plan.reference, plan.instruments, size=plan.size
        )
        if row.variant:
            (curve,) = risk_curves(rollouts[cell.model], names=[cell.method])
            numbers |= curve.numbers
        if timings:
            numbers |= times(timings, cell.method, num_tokens=edge.draft.config.num_tokens)
        rows.append((row.label, numbers))
        plan.progress(len(rows), len(cells), f"{name}: measured rows")
    floor = measure_floor(
        folders[again], folders[base], plan.reference, plan.instruments, size=plan.size
    )
    table = BuiltTable(
        name=name,
        contents=contents,
        folders={row.label: folders[c] for row, c in zip(contents.rows, cells, strict=True)},
        rows=rows,
        floor=floor,
    )
    write(table, plan, timings)
    draw_figures(table, plan)
    return table


def draw_figures(table: BuiltTable, plan: TablePlan) -> None:
    """Quality against latency, walls of pictures, and maps of the methods that have scores."""
    is_timed = bool(columns_of(table.rows, [FIGURE_LATENCY]))
    for name in matching(table.rows, FIGURE_QUALITY if is_timed else ()):
        quality = paired_name(name)
        path = plan.out / f"{table.name}-{stem_of(quality)}.png"
        draw_quality_against_latency(path, table.rows, quality=quality, latency=FIGURE_LATENCY)
    draw_wall(plan.out / f"{table.name}-wall.jpg", table.folders)
    painter = Painter.load(plan.model / "vq")
    for label in MAPPED:
        if label in table.folders:
            path = plan.out / f"{table.name}-map-{stem_of(label)}.jpg"
            draw_maps(path, table.folders[label], painter)
    for label in table.contents.sheets:
        draw_sheet(plan.out / f"{table.name}-sheet-{stem_of(label)}.jpg", table.folders[label])


def stem_of(label: str) -> str:
    """Of a file's name: lower-case letters and digits, all else a hyphen."""
    return re.sub("[^a-z0-9]+", "-", label.lower()).strip("-")


def build_risk(plan: TablePlan) -> None:
    """Every score on rollouts of the whole protocol: `risk.md`, `risk.csv`, `risk.png`."""
    values = plan_routing(plan, plan.model)
    curves = risk_curves(values)
    rows = [(one.score, one.numbers) for one in curves]
    columns = list(rows[0][1])
    head = f"{len(values[IMAGE])} routed positions. {heading(plan)}"
    text = f"# Risk: kept tokens unlike the cloud's\n\n{head}\n\n{markdown_table(rows, columns)}"
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / "risk.md").write_text(text)
    write_csv(plan.out / "risk.csv", rows, columns)
    draw_risk(plan.out / "risk.png", curves)


def plan_routing(plan: TablePlan, model: Path) -> dict[str, Tensor]:
    """Rollouts of the captions, by the model's own router (see `watch_bundle`); kept."""
    prompts = [caption.prompt for caption in plan.captions]
    inputs = {
        "version": ROLLOUTS,
        "share": DEFAULT_BUDGET,
        "prompts": prompts,
        **state_of(model, ("cloud", "edge", "text")),
    }
    path = plan.cells / f"routing-{digest_of(inputs)[:12]}.pt"
    if not path.exists():
        values = watch_bundle(
            model, prompts, share=DEFAULT_BUDGET, device=plan.device, progress=plan.progress
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            torch.save(values, part)
    found: dict[str, Tensor] = torch.load(path, weights_only=True)
    return found


def times(timings: Timings, method: str, *, num_tokens: int) -> Numbers:
    return {
        "speedup": timings.speedup(method),
        "speedup, RTT 20 ms": timings.speedup(method, rtt=RTT),
        "speedup, RTT 20 ms, 10 Mbit/s": timings.speedup(method, rtt=RTT, bandwidth=BANDWIDTH),
        "edge_ms": timings.edge_milliseconds(method, num_tokens=num_tokens),
    }


def write(table: BuiltTable, plan: TablePlan, timings: Timings | None) -> None:
    plan.out.mkdir(parents=True, exist_ok=True)
    rows = [*table.rows, (FLOOR, table.floor)]
    contents = table.contents
    sections = {
        "Quality": quality_columns(rows, contents.quality),
        "Costs": contents.costs,
        "Routing": contents.routing,
    }
    columns = [column for section in sections.values() for column in section]
    write_csv(plan.out / f"{table.name}.csv", rows, columns)
    floor = f"`{FLOOR}`: the base with other seeds, the noise floor."
    parts = [f"# {contents.title}", f"{heading(plan, timings)} {floor}"]
    for section, wanted in sections.items():
        if columns_of(rows, wanted):
            parts += [f"## {section}", markdown_table(rows, wanted).rstrip()]
    (plan.out / f"{table.name}.md").write_text("\n\n".join(parts) + "\n")


def heading(plan: TablePlan, timings: Timings | None = None) -> str:
    """What was drawn, where and when. timings: of a table that has times."""
    count = len(plan.captions)
    timed = f", times of the first {timings.num_prompts}" if timings else ""
    machine = timings.machine if timings else describe_machine()
    return (
        f"{title_of(plan.model)}; "
        f"{count} captions of {plan.source}, seeds 0 to {count - 1}{timed}; "
        f"{machine}; {datetime.now(UTC):%Y-%m-%d}. Brackets: 95 % intervals."
    )


def title_of(model: Path) -> str:
    """The name in the model's configuration, and the variant of the draft if it is one."""
    name: str = read_config(model / "cloud")["name"]
    is_variant = model.name == BUNDLE and model.parent.parent.name == VARIANTS
    return f"{name}, draft `{model.parent.name}`" if is_variant else name
