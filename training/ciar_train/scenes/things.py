"""Puts one thing into a picture: sized, tinted, lit, with its shadow and, for heads, shoulders."""

import math
from dataclasses import dataclass

import numpy as np

from ciar_train.scenes.atlas import Atlas, Sprite
from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.colour import Array, recolour, rgb, smoothstep
from ciar_train.scenes.lights import LIGHTS
from ciar_train.scenes.nouns import Noun
from ciar_train.scenes.placement import Placement, Stance
from ciar_train.scenes.places import PLAIN, find_place
from ciar_train.scenes.plan import Plan

_UNLIT_PLACES = ("space", "moon", "stage", PLAIN)
_LUMINOUS = ("campfire", "candle", "light bulb", "ghost", "balloon")
_WEIGHTLESS = ("sky", "air", "flyer", "kite")  # categories without a shadow on a plain background
_ON_TOP_OF_WATER = ("surfer", "swimmer")  # drawn with their own waves
_WITHOUT_SHOULDERS = ("robot", "unicorn", "moose", "boar")
_SHIRTS = (
    rgb(210, 60, 60),
    rgb(60, 110, 200),
    rgb(80, 160, 90),
    rgb(240, 190, 60),
    rgb(130, 90, 180),
    rgb(240, 240, 240),
    rgb(60, 64, 80),
)


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where a thing was painted: left, top, right, bottom as fractions of the picture's side.

    A box may reach beyond the picture, and things behind may be covered by those in front.
    """

    noun: str
    emoji: str
    colour: str | None
    stance: Stance
    corners: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A sprite at its final size: its middle x, the y of its foot, width and height."""

    x: float
    base: float
    width: float
    height: float


def put_thing(
    canvas: Canvas, placement: Placement, plan: Plan, atlas: Atlas, *, snap: int = 1
) -> Box:
    """Paint a thing with everything that belongs to it; returns where.

    snap: see `Recipe`.
    """
    noun, how, size = placement.noun, placement.stance, canvas.size
    sprite = atlas.find(plan.style, placement.emoji)
    assert sprite is not None, "planned with artwork of the style"
    shape = _fit(placement, sprite)
    if snap > 1:
        shape = _snapped(shape, size, snap)
    rows, columns = max(3, round(shape.height * size)), max(3, round(shape.width * size))
    pixels = _pixels(placement, sprite, atlas, columns=columns, rows=rows)
    light = _light_on(plan, noun)
    left = round(shape.x * size - columns / 2)
    top = round(shape.base * size) - rows
    if how in ("ground", "bottom"):
        feet = _feet(placement, sprite)
        _paint_shadow(canvas, shape, left=left, columns=columns, feet=feet)
    elif how == "float" and canvas.zones.is_plain and noun.category not in _WEIGHTLESS:
        y = min(shape.base + 0.03, 0.98)
        _darken(canvas, shape.x, y, rx=shape.width * 0.5, ry=0.03, strength=0.22)
    elif how == "water":
        _darken(canvas, shape.x, shape.base, rx=shape.width * 0.62, ry=0.03, strength=0.30)
    if how == "portrait" and noun.is_head and noun.name not in _WITHOUT_SHOULDERS:
        _paint_shoulders(canvas, noun, pixels, shape, light)
    alpha = pixels[..., 3].copy()
    if how == "water" and noun.name not in _ON_TOP_OF_WATER:
        alpha *= _waterline(rows, columns, size)
    colours = np.clip(pixels[..., :3] * light, 0, 1)
    canvas.paste(colours, alpha, left=left, top=top)
    edges = (left / size, top / size, (left + columns) / size, (top + rows) / size)
    return Box(
        noun=noun.name,
        emoji=placement.emoji,
        colour=placement.thing.colour,
        stance=how,
        corners=(round(edges[0], 3), round(edges[1], 3), round(edges[2], 3), round(edges[3], 3)),
    )


def _fit(placement: Placement, sprite: Sprite) -> _Shape:
    """Keep the proportions and the greatest width; long low things are measured by area."""
    aspect = sprite.image.width / sprite.image.height
    how, height = placement.stance, placement.height
    width = height * aspect
    if width > placement.max_width:
        height *= placement.max_width / width
        width = placement.max_width
    if aspect > 1.35 and how != "portrait":
        growth = min(1.25, placement.max_width / width, math.sqrt(aspect))
        height *= growth
        width *= growth
    base = placement.base
    if how in ("air", "float"):
        base -= (placement.height - height) / 2
    if how == "portrait" and placement.noun.is_head:
        base = 0.95 if placement.noun.name == "ghost" else 0.98 - 0.16 * (height / 0.6)
    x = min(max(placement.x, width / 2 + 0.012), 1 - width / 2 - 0.012)
    return _Shape(x=x, base=base, width=width, height=height)


def _snapped(shape: _Shape, size: int, snap: int) -> _Shape:
    """Height to multiples of 2 `snap` pixels at the same proportions, left and foot to `snap`."""
    rows = max(2 * snap, _nearest(shape.height * size, 2 * snap))
    columns = max(3, round(rows * shape.width / shape.height))
    left = _nearest(shape.x * size - columns / 2, snap)
    return _Shape(
        x=(left + columns / 2) / size,
        base=_nearest(shape.base * size, snap) / size,
        width=columns / size,
        height=rows / size,
    )


def _nearest(pixels: float, step: int) -> int:
    return round(pixels / step) * step


def _pixels(
    placement: Placement, sprite: Sprite, atlas: Atlas, *, columns: int, rows: int
) -> Array:
    """The sprite scaled, flipped and tinted: float32 [rows, columns, 4]."""
    pixels: Array = np.asarray(atlas.scaled(sprite, columns, rows), np.float32) / 255
    if placement.is_flipped:
        pixels = pixels[:, ::-1]
    tint = placement.thing.colour
    return pixels if tint is None else recolour(pixels, tint=tint, main=atlas.main_hue(sprite))


def _feet(placement: Placement, sprite: Sprite) -> tuple[float, float]:
    if placement.is_flipped:
        return 1 - sprite.foot_right, 1 - sprite.foot_left
    return sprite.foot_left, sprite.foot_right


def _light_on(plan: Plan, noun: Noun) -> Array:
    """What the light of place and time multiplies the thing's colours with [3]."""
    kind, light = find_place(plan.place).kind, LIGHTS[plan.time]
    if plan.place in _UNLIT_PLACES:
        factors: Array = np.ones(3, np.float32)
    elif plan.place == "underwater":
        depth = 0.7 if plan.time == "night" else 1
        factors = np.array((0.82, 0.95, 1.0), np.float32) * depth
    elif kind in ("floor", "surface"):
        factors = np.sqrt(np.array(light.room, np.float32))
    else:
        factors = np.array(light.objects, np.float32)
    is_luminous = noun.category == "sky" or noun.name in _LUMINOUS
    return np.sqrt(factors) if is_luminous else factors


def _paint_shadow(
    canvas: Canvas, shape: _Shape, *, left: int, columns: int, feet: tuple[float, float]
) -> None:
    """A soft dark ellipse under the feet."""
    first, last = feet
    x = (left + columns * (first + last) / 2) / canvas.size
    rx = max(columns * (last - first) / 2 / canvas.size * 1.12, shape.width * 0.26)
    ry = max(0.010, rx * 0.20)
    across = ((canvas.x - x) / (rx * 1.25)) ** 2
    down = ((canvas.y - shape.base + 0.004) / (ry * 1.5)) ** 2
    canvas.image *= (1 - 0.48 * np.exp(-(across + down) * 1.3))[..., None]


def _darken(canvas: Canvas, x: float, y: float, *, rx: float, ry: float, strength: float) -> None:
    distance = ((canvas.x - x) / rx) ** 2 + ((canvas.y - y) / ry) ** 2
    canvas.image *= (1 - strength * np.exp(-distance * 1.2))[..., None]


def _waterline(rows: int, columns: int, size: int) -> Array:
    """Factors [rows, columns] that fade the lowest part of a sprite along a wave."""
    up = np.linspace(1, 0, rows)[:, None]
    wave = 0.02 * np.sin(np.arange(columns) / max(2, size / 40))[None]
    factors: Array = 1 - 0.8 * smoothstep(0.10, 0.0, up + wave)
    return factors


def _paint_shoulders(
    canvas: Canvas, noun: Noun, pixels: Array, shape: _Shape, light: Array
) -> None:
    """Shoulders under a head, so that a portrait does not float, with the shadow of its chin."""
    is_person = noun.category == "bust"
    colour = canvas.vary(canvas.pick(*_SHIRTS), 0.03) if is_person else _fur_colour(pixels)
    colour = np.clip(colour * light, 0, 1)
    top = shape.base - shape.height * 0.22
    half_width = shape.width * (0.46 if is_person else 0.5)
    window = canvas.window(shape.x - half_width * 1.1, top, shape.x + half_width * 1.1, 1)
    if window is None:
        return
    across = (canvas.x[:, window[1]] - shape.x) / half_width
    y = canvas.y[window[0]]
    down = np.clip((y - top) / (1.12 - top), 0, 1)
    outline = np.sqrt(np.clip(1 - (1 - np.clip(down * 2.2, 0, 1)) ** 2, 0, 1)) * 0.98
    inside = np.clip((outline - np.abs(across)) * half_width * canvas.size + 0.5, 0, 1)
    shade = 1.04 - 0.22 * np.abs(across) ** 2 - 0.12 * down
    canvas.blend(window, inside * (y > top), np.clip(colour * shade[..., None], 0, 1))
    chin = (across / 0.75) ** 2 + ((y - shape.base) / 0.05) ** 2
    view = canvas.image[window]
    view *= (1 - 0.25 * np.exp(-chin) * inside)[..., None]


def _fur_colour(pixels: Array) -> Array:
    """The median colour along the left and right edges of a head's lower half."""
    rows, columns = pixels.shape[:2]
    ring = pixels[int(rows * 0.4) : int(rows * 0.85)]
    is_solid = ring[..., 3] > 0.8
    reach = max(1, columns // 7)
    is_inner = np.roll(is_solid, reach, 1) & np.roll(is_solid, -reach, 1)
    edge = ring[..., :3][is_solid & ~is_inner]
    return np.median(edge, 0) if len(edge) else rgb(150, 120, 90)
