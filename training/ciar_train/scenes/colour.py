"""Colours as numbers, and sprites in another colour.

Colours are float32 arrays [..., 3] (or [..., 4] with alpha), 0 to 1. Arithmetic stays in float32
where the pictures are made: one operation in float64 would change the last bit of some pixels.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

# The colours that things are tinted in: hue, saturation, value.
TINTS: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 0.88, 0.92),
    "orange": (0.075, 0.92, 1.0),
    "yellow": (0.14, 0.88, 1.0),
    "green": (0.36, 0.75, 0.72),
    "blue": (0.59, 0.82, 0.90),
    "purple": (0.76, 0.62, 0.78),
    "pink": (0.92, 0.48, 1.0),
    "brown": (0.07, 0.62, 0.58),
    "black": (0, 0, 0.22),
    "white": (0, 0, 1.0),
    "gray": (0, 0, 0.62),
}


class MainHue(NamedTuple):
    """Which hue most of a sprite has, and how much of the sprite has a hue at all (0 to 1)."""

    hue: float
    coloured: float


def rgb(red: float, green: float, blue: float) -> Array:
    """A colour [3] from bytes, 0 to 255."""
    colour: Array = np.array([red, green, blue], np.float32) / np.float32(255)
    return colour


def mix(start: Any, end: Any, share: Any) -> Any:
    """`start` at share 0, `end` at share 1, a straight line between; broadcasts."""
    return start + (end - start) * share


def smoothstep(low: float, high: float, x: Any) -> Any:
    """0 below `low`, 1 above `high`, smooth between; `low > high` turns it round."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rgb_to_hsv(colours: Array) -> tuple[Array, Array, Array]:
    """Hue, saturation and value of colours [..., 3], each [...] and 0 to 1."""
    value = colours.max(-1)
    chroma = value - colours.min(-1)
    red, green, blue = colours[..., 0], colours[..., 1], colours[..., 2]
    divisor = np.where(chroma == 0, 1, chroma)
    hue = np.where(
        value == red,
        ((green - blue) / divisor) % 6,
        np.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    saturation = np.where(value == 0, 0, chroma / np.where(value == 0, 1, value))
    return hue / 6, saturation, value


def hsv_to_rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """Colours [..., 3] from three arrays [...]."""
    sector = np.floor(hue * 6)
    rest = hue * 6 - sector
    low = value * (1 - saturation)
    falling = value * (1 - rest * saturation)
    rising = value * (1 - (1 - rest) * saturation)
    sector = sector.astype(int) % 6
    red = np.choose(sector, [value, falling, low, low, rising, value])
    green = np.choose(sector, [rising, value, value, falling, low, low])
    blue = np.choose(sector, [low, low, rising, value, value, falling])
    return np.stack([red, green, blue], -1)


def main_hue(sprite: Array) -> MainHue:
    """The commonest hue of a sprite [h, w, 4], in 36 bins smoothed over their neighbours."""
    hue, saturation, value = rgb_to_hsv(sprite[..., :3])
    weight = sprite[..., 3] * saturation * (value > 0.2) * (saturation > 0.25)
    histogram, _ = np.histogram(hue, 36, (0, 1), weights=weight)
    smoothed = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
    coloured = weight.sum() / max(sprite[..., 3].sum(), 1e-6)
    return MainHue(hue=(int(smoothed.argmax()) + 0.5) / 36, coloured=float(coloured))


def recolour(sprite: Array, *, tint: str, main: MainHue) -> Array:
    """The sprite [h, w, 4] in another colour: the parts of its main hue, or all of a grey one."""
    if main.coloured > 0.12:
        return _shift_hue(sprite, tint=tint, hue=main.hue)
    hue, saturation, value = TINTS[tint]
    brightest = sprite[..., :3].max(-1)
    target = hsv_to_rgb(
        np.full_like(brightest, hue), np.full_like(brightest, saturation), brightest * value
    ).astype(np.float32)
    stained = sprite.copy()
    stained[..., :3] = mix(stained[..., :3], target, 0.85)
    return stained


def _shift_hue(sprite: Array, *, tint: str, hue: float) -> Array:
    """Pixels near `hue` take the tint; light and shade stay relative to the upper quartile."""
    tint_hue, tint_saturation, tint_value = TINTS[tint]
    hues, saturation, value = rgb_to_hsv(sprite[..., :3])
    distance = np.abs(hues - hue)
    distance = np.minimum(distance, 1 - distance)
    mask = smoothstep(0.125, 0.075, distance) * smoothstep(0.12, 0.3, saturation)
    mask = mask[..., None].astype(np.float32)
    chosen = mask[..., 0] > 0.5
    usual_saturation = np.percentile(saturation[chosen], 75) if chosen.any() else 1
    usual_value = np.percentile(value[chosen], 75) if chosen.any() else 1
    new_saturation = np.clip(saturation / max(usual_saturation, 0.05) * tint_saturation, 0, 1)
    new_value = np.clip(value / max(usual_value, 0.05) * tint_value, 0, 1)
    if tint == "black":
        new_value = np.clip(value / usual_value * 0.26, 0, 0.6)
    colours = hsv_to_rgb(np.full_like(hues, tint_hue), new_saturation, new_value)
    shifted = sprite.copy()
    shifted[..., :3] = mix(sprite[..., :3], colours.astype(np.float32), mask)
    return shifted
