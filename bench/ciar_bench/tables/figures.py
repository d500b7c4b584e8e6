"""Figures of the tables: diagrams as PNG, pictures and maps as JPEG. Colours are those of Okabe and
Ito.
"""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from PIL import Image, ImageDraw, ImageFont

from ciar.picture import Painter
from ciar_bench.quality.bootstrap import Estimate
from ciar_bench.routing import CEILING, RANDOM
from ciar_bench.tables.cells import read_record
from ciar_bench.tables.measuring import Numbers
from ciar_bench.tables.risk import RiskCurve
from ciar_edge.token_map import draw_token_map

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
REFERENCES = {CEILING: "-.", RANDOM: ":"}  # line styles, in grey
DPI = 150
QUALITY, WALL_QUALITY = 75, 60  # of JPEG: walls are large
TILE, LABEL, GAP = 96, 190, 6  # pixels of the wall
LABEL_CHARACTERS = 26  # a line
WALL_COLUMNS = 8
SHEET_ROWS, SHEET_COLUMNS, SHEET_TILE, SHEET_TEXT = 4, 6, 128, 42  # pictures, pixels, pixels
MAPS = 4


def draw_quality_against_latency(
    path: Path, rows: Sequence[tuple[str, Numbers]], *, quality: str, latency: str
) -> None:
    """A point a method with both intervals; rows without either number are left out."""
    figure, axes = new_figure(9, 6)
    found = [(label, n[latency], n[quality]) for label, n in rows if {latency, quality} <= n.keys()]
    for index, (label, x, y) in enumerate(found):
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(
            x.value,
            y.value,
            xerr=arms(x),
            yerr=arms(y),
            fmt="osD^v"[index // len(COLOURS) % 5],
            color=colour,
            capsize=2,
            elinewidth=0.8,
            label=label,
        )
    axes.set_xscale("log")  # the edge alone is far off
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{latency} over the base")
    axes.set_ylabel(quality)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def draw_risk(path: Path, curves: Sequence[RiskCurve]) -> None:
    """Disagreement left against the share of calls, with its interval."""
    figure, axes = new_figure(8, 5)
    for index, one in enumerate(curves):
        shares = sorted(one.risks)
        values = [one.risks[s].value for s in shares]
        colour = "#888888" if one.score in REFERENCES else COLOURS[index % len(COLOURS)]
        style = REFERENCES.get(one.score) or ("-", "--")[index // len(COLOURS) % 2]
        axes.plot(shares, values, style, color=colour, label=one.score)
        low, high = ([getattr(one.risks[s], end) for s in shares] for end in ("low", "high"))
        axes.fill_between(shares, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("share of routed tokens sent to the cloud")
    axes.set_ylabel("kept tokens unlike the cloud's, a routed token")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    save(figure, path)


def draw_wall(path: Path, folders: dict[str, Path]) -> None:
    """The first pictures of every method, a row each: the same captions and seeds in a column."""
    width = LABEL + WALL_COLUMNS * (TILE + GAP)
    sheet = Image.new("RGB", (width, len(folders) * (TILE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, folder) in enumerate(folders.items()):
        top = row * (TILE + GAP)
        lines = "\n".join(textwrap.wrap(label, LABEL_CHARACTERS))
        pen.multiline_text((4, top + TILE // 3), lines, fill="black", font=font(), spacing=2)
        for column in range(WALL_COLUMNS):
            with Image.open(folder / f"{column:05d}.png") as image:
                tile = image.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (LABEL + column * (TILE + GAP), top))
    sheet.save(path, quality=WALL_QUALITY, optimize=True, progressive=True)


def draw_sheet(path: Path, folder: Path) -> None:
    """The first 24 pictures of a method, seeds 0 to 23, with their captions."""
    step_x, step_y = SHEET_TILE + 2 * GAP, SHEET_TILE + SHEET_TEXT
    sheet = Image.new("RGB", (SHEET_COLUMNS * step_x, SHEET_ROWS * step_y), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(SHEET_ROWS * SHEET_COLUMNS):
        if not (folder / f"{index:05d}.png").exists():
            break
        row, column = divmod(index, SHEET_COLUMNS)
        left, top = column * step_x + GAP, row * step_y
        with Image.open(folder / f"{index:05d}.png") as image:
            size = (SHEET_TILE, SHEET_TILE)
            sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, top))
        lines = textwrap.wrap(read_record(folder, index).prompt, 24, max_lines=3, placeholder="...")
        below = (left, top + SHEET_TILE + 2)
        pen.multiline_text(below, "\n".join(lines), fill="black", font=font(9), spacing=1)
    sheet.save(path, quality=QUALITY, optimize=True, progressive=True)


def draw_maps(path: Path, folder: Path, painter: Painter) -> None:
    """Who decided what, and how uncertain it was: the first pictures of a method."""
    panels = []
    for index in range(MAPS):
        image = read_record(folder, index).image
        pixels = painter.paint(image.tokens)
        panel = draw_token_map(pixels, origins=image.origins, scores=image.scores).numpy()
        panels.append(Image.fromarray(panel))
    half = [p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS) for p in panels]
    sheet = Image.new("RGB", (half[0].width, sum(p.height for p in half)), "white")
    top = 0
    for panel_image in half:
        sheet.paste(panel_image, (0, top))
        top += panel_image.height
    sheet.save(path, quality=QUALITY, optimize=True, progressive=True)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def arms(found: Estimate) -> np.ndarray:
    """[2, 1] lengths of the error bar below and above."""
    ends = [max(0.0, found.value - found.low), max(0.0, found.high - found.value)]
    return np.array(ends)[:, None]


def save(figure: Figure, path: Path) -> None:
    """A PNG with a palette: a third of the bytes."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(dither=Image.Dither.NONE)
    palette.save(path, optimize=True)


def font(size: int = 12) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
