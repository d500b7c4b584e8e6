"""Sets of emoji artwork as they come in packages, and the pictures of single emoji from them.

Packages name an emoji by its code points in lower-case hex, joined by "-", with or without the
variation selector fe0f; both are tried.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageFilter

from ciar_train.scenes.colour import rgb_to_hsv
from ciar_train.scenes.registry import read_package

_VARIATION = "\ufe0f"


class GlyphSet(Protocol):
    """A style of artwork."""

    def draw(self, emoji: str, size: int) -> Image.Image | None:
        """The emoji as RGBA, `size` pixels wide; None if the set has none."""


class WebpSet:
    """A package with one WebP file for every emoji, named by its code points."""

    def __init__(self, package: Path) -> None:
        self._files = read_package(package, lambda name: name.endswith(".webp"))

    def draw(self, emoji: str, size: int) -> Image.Image | None:
        """See `GlyphSet.draw`."""
        for name in code_names(emoji):
            content = self._files.get(f"assets/{name}.webp")
            if content is not None:
                image = Image.open(io.BytesIO(content)).convert("RGBA")
                if image.width == size:
                    return image
                return image.resize((size, size), Image.Resampling.LANCZOS)
        return None


class IconSet:
    """A package of icons: chars.json maps code points to names, icons.json holds SVG bodies."""

    def __init__(self, package: Path) -> None:
        files = read_package(package, lambda name: name in ("icons.json", "chars.json"))
        self._icons: dict[str, Any] = json.loads(files["icons.json"])
        self._names: Mapping[str, str] = json.loads(files["chars.json"])

    def draw(self, emoji: str, size: int) -> Image.Image | None:
        """See `GlyphSet.draw`."""
        for code in code_names(emoji):
            icon = self._find(self._names.get(code))
            if icon is not None:
                return self._render(icon, size)
        return None

    def _find(self, name: str | None) -> Mapping[str, Any] | None:
        icons: dict[str, Any] = self._icons["icons"]
        if name in self._icons.get("aliases", {}):
            name = self._icons["aliases"][name]["parent"]
        return icons.get(name) if name is not None else None

    def _render(self, icon: Mapping[str, Any], size: int) -> Image.Image:
        width = icon.get("width", self._icons.get("width", 16))
        height = icon.get("height", self._icons.get("height", 16))
        left, top = icon.get("left", 0), icon.get("top", 0)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
            f"{icon['body']}</svg>"
        )
        return render_svg(svg, width=size, height=round(size * height / width))


def code_names(emoji: str) -> tuple[str, ...]:
    """The names under which packages may have an emoji."""
    full = "-".join(f"{ord(char):x}" for char in emoji)
    bare = "-".join(f"{ord(char):x}" for char in emoji if char != _VARIATION)
    return tuple(dict.fromkeys((full, bare, f"{full}-fe0f", f"{bare}-fe0f")))


def render_svg(svg: str, *, width: int, height: int) -> Image.Image:
    """An SVG document as RGBA."""
    import resvg_py  # of the `train` extra; needed for building artwork only

    content = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width, height=height))
    return Image.open(io.BytesIO(content)).convert("RGBA")


def trim(image: Image.Image) -> Image.Image | None:
    """The picture without its transparent margins; None if nothing is left."""
    alpha = np.asarray(image)[..., 3]
    rows = np.where(alpha.max(1) > 10)[0]
    columns = np.where(alpha.max(0) > 10)[0]
    if len(rows) == 0:
        return None
    return image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def feet_of(image: Image.Image) -> tuple[float, float]:
    """Where a thing touches the ground: columns of its lowest tenth, as fractions of its width."""
    alpha = np.asarray(image)[..., 3]
    columns = np.where(alpha[int(alpha.shape[0] * 0.9) :].max(0) > 60)[0]
    if len(columns) == 0:
        return 0.0, 1.0
    return int(columns[0]) / image.width, (int(columns[-1]) + 1) / image.width


def cut_water(image: Image.Image) -> Image.Image:
    """A boat without the slab of water it is drawn with, taken away column by column from below."""
    pixels = np.array(image)
    hue, saturation, value = rgb_to_hsv(pixels[..., :3].astype(np.float32) / 255)
    is_blue = (hue > 0.535) & (hue < 0.612) & (saturation > 0.5) & (value > 0.8)
    is_water = is_blue | (pixels[..., 3] < 30)
    below = np.cumprod(is_water[::-1], 0)[::-1].astype(bool)  # unbroken down to the lower edge
    rim = np.zeros_like(below)
    rim[:-2] = below[2:]  # its soft upper edge
    pixels[..., 3] = np.where(below | rim, 0, pixels[..., 3])
    alpha = Image.fromarray(pixels[..., 3])
    solid = np.asarray(alpha.filter(ImageFilter.MinFilter(5)).filter(ImageFilter.MaxFilter(9)))
    half = pixels.shape[0] // 2  # specks and hairlines that are left over go
    pixels[half:, :, 3] = np.minimum(pixels[half:, :, 3], solid[half:])
    return Image.fromarray(pixels)
