"""A picture in the making: shapes, noise and sprites on a float32 image.

Positions and lengths are fractions of the picture's side, x to the right and y down; colours are
float32 0 to 1. Shapes have soft edges about a pixel wide. Every random choice comes from the
canvas's own generator, so the order of the calls is part of the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.colour import Array, mix
from ciar_train.scenes.lights import LIGHTS
from ciar_train.scenes.noise import SMOOTH_KINDS, noise_field

Band: TypeAlias = tuple[float, float]  # upper and lower y
Window: TypeAlias = tuple[slice, slice]  # rows, columns
Option = TypeVar("Option")

_POLYGON_SAMPLES = 3  # a side, for each pixel


@dataclass(kw_only=True)
class Zones:
    """Where in a place things stand, fly, swim or hang: bands of y, None where they cannot."""

    ground: Band | None = (0.66, 0.95)
    sky: Band = (0.06, 0.5)
    water: Band | None = None
    floating: Band | None = None
    is_plain: bool = False


class Canvas:
    """A picture of one place at one time, `image` [size, size, 3].

    Attributes:
        stops: colours of the sky; `haze` is the one at the horizon, into which distance fades.
        ambient: what the light multiplies the colours of the landscape with [3].
        horizon: y of the horizon.
        zones: where things may be put.
        sun_position: x and y of sun or moon, None without one.
        has_sun: False keeps sun and moon out of the sky, for pictures with another one in it.
        is_snowing: whether snow falls in front of everything.
    """

    def __init__(
        self,
        size: int,
        rng: np.random.Generator,
        *,
        atlas: Atlas,
        style: str,
        time: str,
        texture: float = 1.0,
    ) -> None:
        self.size = size
        self.rng = rng
        self.atlas = atlas
        self.style = style
        self.time = time
        self.texture = texture
        line = ((np.arange(size) + 0.5) / size).astype(np.float32)
        self.x: Array = line[None, :]  # [1, size]
        self.y: Array = line[:, None]  # [size, 1]
        self.image: Array = np.zeros((size, size, 3), np.float32)
        light = LIGHTS[time]
        self.stops = light.jittered_stops(rng)
        self.ambient: Array = np.array(light.landscape, np.float32)
        self.sun_colour = light.sun
        self.haze: Array = self.stops[-1][1]
        self.zones = Zones()
        self.horizon = 0.5
        self.sun_position: tuple[float, float] | None = None
        self.has_sun = True
        self.is_snowing = False

    # ---- choices

    def uniform(self, low: float, high: float) -> float:
        """A random number between the two."""
        return float(self.rng.uniform(low, high))

    def integer(self, low: int, high: int) -> int:
        """A random whole number from `low` up to `high - 1`."""
        return int(self.rng.integers(low, high))

    def chance(self, probability: float) -> bool:
        """True with the probability."""
        return self.rng.random() < probability

    def pick(self, *options: Option) -> Option:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    # ---- colours

    def vary(self, colour: Any, spread: float = 0.03) -> Array:
        """The colour, a little different in every picture."""
        shift = self.rng.normal(0, spread, 3).astype(np.float32)
        varied: Array = np.clip(np.asarray(colour, np.float32) + shift, 0, 1)
        return varied

    def lit(self, colour: Any) -> Array:
        """The colour in the light of the place."""
        shown: Array = np.clip(np.asarray(colour, np.float32) * self.ambient, 0, 1)
        return shown

    def noise(self, kind: str) -> Array:
        """A random window [size, size] of a noise field, weakened by `texture`."""
        row, column = self.rng.integers(self.size, size=2)
        window = noise_field(kind, self.size)[row : row + self.size, column : column + self.size]
        if self.texture != 1 and kind not in SMOOTH_KINDS:
            window = window * np.float32(self.texture)
        return window[:, ::-1] if self.chance(0.5) else window

    def grain(self, kind: str, strength: float) -> Array:
        """Factors [size, size, 1] around 1 that give a colour a texture."""
        factors: Array = 1 + strength * self.noise(kind)[..., None]
        return factors

    # ---- shapes

    def cover(self, mask: Array, colour: Array) -> None:
        """Paint a colour [3] or [size, size, 3] where the mask [size, size] is 1."""
        self.image += (colour - self.image) * mask[..., None]

    def blend(self, window: Window, mask: Array, colour: Array) -> None:
        """As `cover`, within a window of the picture."""
        view = self.image[window]
        view += (colour - view) * mask[..., None]

    def window(self, left: float, top: float, right: float, bottom: float) -> Window | None:
        """The pixels of a rectangle, None where it lies outside the picture."""
        first, last = self._pixels(left, right)
        upper, lower = self._pixels(top, bottom)
        if last <= first or lower <= upper:
            return None
        return slice(upper, lower), slice(first, last)

    def _pixels(self, low: float, high: float) -> tuple[int, int]:
        start = max(0, math.floor(low * self.size))
        return start, min(self.size, math.ceil(high * self.size))

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: Array,
        *,
        alpha: float = 1.0,
        softness: float = 0.0,
    ) -> None:
        """An ellipse around (x, y) with radii rx and ry; its edge is `softness` wide."""
        soft = softness or 1.0 / self.size
        window = self.window(x - rx - soft, y - ry - soft, x + rx + soft, y + ry + soft)
        if window is None:
            return
        dx = (self.x[:, window[1]] - x) / rx
        dy = (self.y[window[0]] - y) / ry
        distance = (np.sqrt(dx * dx + dy * dy) - 1) * min(rx, ry)
        self.blend(window, np.clip(0.5 - distance / soft, 0, 1) * alpha, colour)

    def glow(self, x: float, y: float, radius: float, colour: Any, *, alpha: float) -> None:
        """Light around a point, added to what is there."""
        distance = ((self.x - x) ** 2 + (self.y - y) ** 2) / (radius * radius)
        light = np.asarray(colour, np.float32) - self.image * 0.5
        self.image += (np.exp(-distance) * alpha)[..., None] * light

    def rectangle(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        colour: Array,
        *,
        alpha: float = 1.0,
        radius: float = 0.0,
    ) -> None:
        """A rectangle with corners of the given radius."""
        edge = 1.0 / self.size
        window = self.window(left - edge, top - edge, right + edge, bottom + edge)
        if window is None:
            return
        dx = np.abs(self.x[:, window[1]] - (left + right) / 2) - ((right - left) / 2 - radius)
        dy = np.abs(self.y[window[0]] - (top + bottom) / 2) - ((bottom - top) / 2 - radius)
        if radius > 0:
            outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
            distance = outside + np.minimum(np.maximum(dx, dy), 0) - radius
        else:
            distance = np.maximum(dx, dy)
        self.blend(window, np.clip(0.5 - distance * self.size, 0, 1) * alpha, colour)

    def polygon(
        self, points: Sequence[tuple[float, float]], colour: Array, *, alpha: float = 1.0
    ) -> None:
        """A filled polygon."""
        corners = np.asarray(points, float) * self.size
        left, top = (int(v) - 1 for v in np.floor(corners.min(0)))
        right, bottom = (int(v) + 1 for v in np.ceil(corners.max(0)))
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, self.size), min(bottom, self.size)
        if right <= left or bottom <= top:
            return
        scale = _POLYGON_SAMPLES
        drawing = Image.new("L", ((right - left) * scale, (bottom - top) * scale))
        ImageDraw.Draw(drawing).polygon(
            [((x - left) * scale, (y - top) * scale) for x, y in corners], fill=255
        )
        mask = np.asarray(drawing.reduce(scale), np.float32) / 255
        self.blend((slice(top, bottom), slice(left, right)), mask * alpha, colour)

    def below(self, line: float | Array) -> Array:
        """A mask of everything below a height, or below a curve [size]; broadcasts to the image."""
        mask: Array = np.clip((self.y - line) * self.size + 0.5, 0, 1)
        return mask

    def sprite(
        self,
        emoji: str,
        x: float,
        base: float,
        height: float,
        *,
        ambient: Any = None,
        haze: float = 0.0,
        is_flipped: bool | None = None,
    ) -> None:
        """A piece of scenery from the atlas: `base` is the y of its foot, None flips by chance."""
        sprite = self.atlas.find(self.style, emoji)
        if sprite is None:
            return
        rows = max(2, round(height * self.size))
        columns = max(1, round(rows * sprite.image.width / sprite.image.height))
        pixels = np.asarray(self.atlas.scaled(sprite, columns, rows), np.float32) / 255
        if is_flipped if is_flipped is not None else self.chance(0.5):
            pixels = pixels[:, ::-1]
        light = self.ambient if ambient is None else np.asarray(ambient, np.float32)
        colours = pixels[..., :3] * light
        if haze:
            colours = mix(colours, self.haze, haze)
        left = round(x * self.size - columns / 2)
        top = round(base * self.size - rows)
        self.paste(np.minimum(colours, 1), pixels[..., 3], left=left, top=top)

    def paste(self, colours: Array, alpha: Array, *, left: int, top: int) -> None:
        """Put colours [h, w, 3] with alpha [h, w] at a pixel; what lies outside is cut off."""
        rows, columns = alpha.shape
        first, upper = max(left, 0), max(top, 0)
        last, lower = min(left + columns, self.size), min(top + rows, self.size)
        if last <= first or lower <= upper:
            return
        part = slice(upper - top, lower - top), slice(first - left, last - left)
        self.blend((slice(upper, lower), slice(first, last)), alpha[part], colours[part])

    def to_bytes(self) -> Array:
        """The picture as uint8 [size, size, 3]."""
        pixels: Array = (np.clip(self.image, 0, 1) * 255 + 0.5).astype(np.uint8)
        return pixels
