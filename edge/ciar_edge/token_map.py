"""Who decided what: the picture, the same picture with its tokens coloured, and the uncertainty.

Three panels of equal size with a legend below. The token colours are those of Okabe and Ito, which
stay apart for colour-blind eyes; the heat map runs through viridis, so that brighter is always
more uncertain, and tokens without a score stay grey.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PANEL = 512  # pixels a side
GAP, LEGEND, TITLE = 16, 56, 34
FONT_SIZE = 18

Colour = tuple[int, int, int]
INK: Colour = (30, 30, 30)
PAPER: Colour = (255, 255, 255)
NO_SCORE: Colour = (150, 150, 150)

# Origin of a token -> what the legend calls it, and its colour.
ORIGINS: Mapping[str, tuple[str, Colour]] = {
    "prefix": ("prefix", (0, 114, 178)),
    "kept": ("kept", (0, 158, 115)),
    "agreed": ("agreed", (86, 180, 233)),
    "drawn": ("drawn", (240, 228, 66)),
    "corrected": ("corrected", (213, 94, 0)),
    "fallback": ("fallback", (204, 121, 167)),
}
_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (72, 40, 120),
        (62, 74, 137),
        (49, 104, 142),
        (38, 130, 142),
        (31, 158, 137),
        (53, 183, 121),
        (109, 205, 89),
        (180, 222, 44),
        (253, 231, 37),
    ],
    dtype=float,
)
_RANGE = (2, 98)  # percentiles of the scores between which colours differ
_TINT = 0.62  # how much of a tile is its colour; the rest is the picture, dimmed


def draw_token_map(
    pixels: Tensor, *, origins: Sequence[str], scores: Sequence[float | None]
) -> Tensor:
    """The three panels, uint8 RGB [height, width, 3].

    pixels: the picture, uint8 RGB [H, W, 3].  origins: T keys of `ORIGINS`, in raster order.
    scores: T uncertainty scores, higher is more uncertain; None (or NaN) where there is none.
    """
    side = math.isqrt(len(origins))
    assert side * side == len(origins) == len(scores), (len(origins), len(scores))
    picture = Image.fromarray(pixels.numpy()).resize((PANEL, PANEL), Image.Resampling.NEAREST)
    panels = {
        "picture": picture,
        "who decided": _tint(picture, _origin_tiles(origins, side)),
        "uncertainty": _enlarge(_score_tiles(scores, side)),
    }
    width = len(panels) * (PANEL + GAP) + GAP
    sheet = Image.new("RGB", (width, TITLE + PANEL + LEGEND + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (title, panel) in enumerate(panels.items()):
        left = GAP + index * (PANEL + GAP)
        draw.text((left, TITLE - 6), title, fill=INK, font=_font(), anchor="ls")
        sheet.paste(panel, (left, TITLE))
    top = TITLE + PANEL + GAP // 2
    _origin_legend(draw, origins, left=GAP + PANEL + GAP, top=top)
    _score_legend(draw, sheet, scores, left=GAP + 2 * (PANEL + GAP), top=top)
    return torch.from_numpy(np.array(sheet))


def _origin_tiles(origins: Sequence[str], side: int) -> np.ndarray:
    """uint8 [side, side, 3]"""
    colours = [ORIGINS[origin][1] for origin in origins]
    return np.array(colours, dtype=np.uint8).reshape(side, side, 3)


def _score_tiles(scores: Sequence[float | None], side: int) -> np.ndarray:
    """uint8 [side, side, 3]: linear over the range of most scores, flat beyond it."""
    values = _numbers(scores)
    is_known = np.isfinite(values)
    low, high = _range(values)
    share = np.where(is_known, (values - low) / (high - low or 1.0), 0.0).clip(0, 1)
    tiles = np.where(is_known[:, None], viridis(share), np.array(NO_SCORE))
    return tiles.astype(np.uint8).reshape(side, side, 3)


def viridis(share: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 [n] -> colours [n, 3], ever brighter."""
    stops = np.linspace(0, 1, len(_VIRIDIS))
    return np.stack([np.interp(share, stops, channel) for channel in _VIRIDIS.T], axis=-1)


def _numbers(scores: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if score is None else score for score in scores], dtype=float)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Of most scores: a single outlier must not make all others look alike."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 0.0
    low, high = np.percentile(known, _RANGE)
    return float(low), float(high)


def _enlarge(tiles: np.ndarray) -> Image.Image:
    return Image.fromarray(tiles).resize((PANEL, PANEL), Image.Resampling.NEAREST)


def _tint(picture: Image.Image, tiles: np.ndarray) -> Image.Image:
    """Coloured tiles over the picture, dimmed and grey, with a line between them."""
    dimmed = picture.convert("L").point([60 + value // 2 for value in range(256)])
    tinted = Image.blend(dimmed.convert("RGB"), _enlarge(tiles), _TINT)
    draw = ImageDraw.Draw(tinted)
    side = len(tiles)
    for index in range(1, side):
        at = index * PANEL // side
        draw.line([(at, 0), (at, PANEL)], fill=INK)
        draw.line([(0, at), (PANEL, at)], fill=INK)
    return tinted


def _origin_legend(
    draw: ImageDraw.ImageDraw, origins: Sequence[str], *, left: int, top: int
) -> None:
    """A swatch, a name and a count for each origin that occurs, in two rows of three."""
    found = [origin for origin in ORIGINS if origin in origins]
    for index, origin in enumerate(found):
        name, colour = ORIGINS[origin]
        x, y = left + index % 3 * (PANEL // 3), top + index // 3 * 24
        draw.rectangle([(x, y + 2), (x + 15, y + 17)], fill=colour, outline=INK)
        draw.text((x + 22, y), f"{name} {origins.count(origin)}", fill=INK, font=_font(15))


def _score_legend(
    draw: ImageDraw.ImageDraw,
    sheet: Image.Image,
    scores: Sequence[float | None],
    *,
    left: int,
    top: int,
) -> None:
    """A colour bar over the range of most scores, and the grey of tokens without one."""
    values = _numbers(scores)
    low, high = _range(values)
    bar = viridis(np.linspace(0, 1, PANEL // 2)).astype(np.uint8)[None].repeat(14, axis=0)
    sheet.paste(Image.fromarray(bar), (left, top + 3))
    draw.text((left, top + 22), f"{low:.3g} or less", fill=INK, font=_font(15))
    middle = left + PANEL // 2
    draw.text(
        (middle, top + 22),
        f"{high:.3g} or more",
        fill=INK,
        font=_font(15),
        anchor="ra",
    )
    if not np.isfinite(values).all():
        x = middle + 40
        draw.rectangle([(x, top + 2), (x + 15, top + 17)], fill=NO_SCORE, outline=INK)
        draw.text((x + 22, top), "no score", fill=INK, font=_font(15))


def _font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
