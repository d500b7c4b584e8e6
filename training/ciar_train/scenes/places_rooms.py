"""Rooms: living room, bedroom, kitchen, bathroom."""

import numpy as np

from ciar_train.scenes.canvas import Canvas, Zones
from ciar_train.scenes.colour import Array, rgb
from ciar_train.scenes.interior import (
    light_room,
    paint_floor,
    paint_lampshade,
    paint_picture,
    paint_tiles,
    paint_wall,
    paint_window,
    tiled_floor,
    wooden_floor,
)

_SOFA_WIDTH = 0.42


def paint_living_room(canvas: Canvas) -> None:
    """A sofa under a window, a carpet, often a picture, a plant and a lamp."""
    horizon = canvas.uniform(0.60, 0.66)
    wall = canvas.pick(
        rgb(236, 224, 204),
        rgb(204, 220, 224),
        rgb(226, 210, 214),
        rgb(212, 222, 200),
        rgb(240, 232, 220),
        rgb(150, 178, 190),
    )
    paint_wall(canvas, horizon, canvas.vary(wall, 0.015))
    paint_floor(canvas, horizon, wooden_floor(canvas, horizon))
    window_x = canvas.pick(canvas.uniform(0.06, 0.14), canvas.uniform(0.62, 0.70))
    paint_window(canvas, window_x, canvas.uniform(0.12, 0.16), 0.25, 0.26)
    picture_x = 0.55 if window_x < 0.3 else 0.1
    if canvas.chance(0.8):
        x, y = picture_x + canvas.uniform(0, 0.08), canvas.uniform(0.14, 0.2)
        paint_picture(canvas, x, y, canvas.uniform(0.14, 0.22), canvas.uniform(0.12, 0.17))
    left = _paint_sofa(canvas, horizon + 0.04)
    if canvas.chance(0.6):
        x = canvas.pick(canvas.uniform(0.04, 0.12), canvas.uniform(0.88, 0.96))
        canvas.sprite("🪴", x, horizon + 0.06, canvas.uniform(0.18, 0.26))
    if canvas.chance(0.6):
        x = left + _SOFA_WIDTH + 0.1 if left < 0.35 else left - 0.1
        _paint_floor_lamp(canvas, x, horizon + 0.04)
    _paint_carpet(canvas, horizon + 0.25)
    canvas.zones = Zones(ground=(0.82, 0.96), sky=(0.1, 0.4))


def _paint_sofa(canvas: Canvas, y: float) -> float:
    """A sofa with its feet at y; returns its left edge."""
    colour = canvas.pick(
        rgb(80, 130, 150),
        rgb(176, 90, 80),
        rgb(120, 140, 110),
        rgb(196, 170, 140),
        rgb(110, 110, 130),
        rgb(210, 160, 70),
    )
    cloth = canvas.vary(colour, 0.03)
    left, width, lit = canvas.uniform(0.2, 0.5), _SOFA_WIDTH, canvas.lit
    right, middle = left + width, left + width / 2
    shadow = lit(rgb(70, 50, 40))
    canvas.ellipse(middle, y + 0.02, width * 0.6, 0.025, shadow, alpha=0.35, softness=0.03)
    canvas.rectangle(left, y - 0.22, right, y - 0.02, lit(cloth * 0.92), radius=0.03)
    arm = lit(cloth * 1.04)
    canvas.rectangle(left - 0.03, y - 0.15, left + 0.05, y, arm, radius=0.025)
    canvas.rectangle(right - 0.05, y - 0.15, right + 0.03, y, arm, radius=0.025)
    seat = lit(cloth * 1.1)
    canvas.rectangle(left + 0.04, y - 0.12, middle - 0.004, y - 0.02, seat, radius=0.015)
    canvas.rectangle(middle + 0.004, y - 0.12, right - 0.04, y - 0.02, seat, radius=0.015)
    if canvas.chance(0.7):
        cushion = lit(canvas.pick(rgb(240, 190, 80), rgb(240, 240, 230), rgb(200, 80, 90)))
        canvas.rectangle(left + 0.07, y - 0.17, left + 0.16, y - 0.08, cushion, radius=0.02)
    return left


def _paint_floor_lamp(canvas: Canvas, x: float, y: float) -> None:
    canvas.rectangle(x - 0.006, y - 0.3, x + 0.006, y + 0.02, canvas.lit(rgb(80, 70, 60)))
    top, bottom = y - 0.4, y - 0.29
    shade = [(x - 0.03, top), (x + 0.03, top), (x + 0.06, bottom), (x - 0.06, bottom)]
    paint_lampshade(canvas, shade, rgb(250, 232, 190), night=1.5)
    if canvas.time in ("night", "sunset"):
        canvas.glow(x, y - 0.32, 0.25, rgb(255, 210, 130), alpha=0.55)


def _paint_carpet(canvas: Canvas, y: float) -> None:
    colour = canvas.pick(
        rgb(190, 70, 70), rgb(90, 120, 170), rgb(230, 220, 200), rgb(120, 150, 120)
    )
    wool = canvas.vary(colour, 0.03)
    canvas.ellipse(0.5, y, 0.42, 0.11, canvas.lit(wool))
    canvas.ellipse(0.5, y, 0.36, 0.09, canvas.lit(wool * 1.12))
    canvas.ellipse(0.5, y, 0.33, 0.08, canvas.lit(wool))


def paint_bedroom(canvas: Canvas) -> None:
    """A bed seen from its foot, a bedside table with a lamp, a rug."""
    horizon = canvas.uniform(0.58, 0.64)
    wall = canvas.pick(
        rgb(196, 212, 232),
        rgb(236, 214, 220),
        rgb(232, 226, 208),
        rgb(206, 224, 210),
        rgb(214, 206, 232),
    )
    wall = canvas.vary(wall, 0.015)
    is_wooden = canvas.pick(True, False)
    paint_wall(canvas, horizon, wall)
    if is_wooden:
        floor = wooden_floor(canvas, horizon)
    else:
        floor = canvas.lit(rgb(196, 180, 168)) * canvas.grain("fine", 0.05)
    paint_floor(canvas, horizon, floor)
    paint_window(canvas, 0.08 if canvas.chance(0.5) else 0.68, 0.12, 0.22, 0.26)
    _paint_bed(canvas, horizon + 0.10)
    rug = canvas.pick(rgb(240, 236, 226), rgb(200, 120, 130), rgb(120, 150, 190))
    canvas.ellipse(0.5, horizon + 0.30, 0.36, 0.07, canvas.lit(canvas.vary(rug, 0.03)))
    canvas.zones = Zones(ground=(0.84, 0.96), sky=(0.1, 0.4))


def _paint_bed(canvas: Canvas, y: float) -> None:
    colour = canvas.pick(
        rgb(100, 140, 200),
        rgb(210, 110, 120),
        rgb(130, 180, 140),
        rgb(240, 200, 120),
        rgb(170, 140, 200),
    )
    blanket = canvas.lit(canvas.vary(colour, 0.03))
    left, width, wood = canvas.uniform(0.28, 0.42), 0.46, rgb(150, 100, 62)
    right, lit = left + width, canvas.lit
    canvas.rectangle(left - 0.02, y - 0.34, right + 0.02, y - 0.06, lit(wood), radius=0.02)
    canvas.rectangle(left, y - 0.12, right, y + 0.08, blanket, radius=0.02)
    first, second = lit(rgb(252, 252, 250)), lit(rgb(246, 246, 244))
    pillow_end, pillow_start = left + width * 0.47, left + width * 0.53
    canvas.rectangle(left + 0.02, y - 0.19, pillow_end, y - 0.09, first, radius=0.03)
    canvas.rectangle(pillow_start, y - 0.19, right - 0.02, y - 0.09, second, radius=0.03)
    sheet = lit(rgb(250, 250, 250))
    canvas.rectangle(left - 0.005, y - 0.08, right + 0.005, y - 0.035, sheet, radius=0.01)
    canvas.rectangle(left - 0.01, y + 0.06, right + 0.01, y + 0.10, lit(wood * 0.85))
    _paint_bedside_table(canvas, left - 0.14 if left > 0.33 else right + 0.04, y, wood)


def _paint_bedside_table(canvas: Canvas, x: float, y: float, wood: Array) -> None:
    canvas.rectangle(x, y - 0.12, x + 0.1, y + 0.06, canvas.lit(wood * 1.05), radius=0.006)
    canvas.ellipse(x + 0.05, y - 0.04, 0.008, 0.008, canvas.lit(rgb(240, 210, 130)))
    top, bottom = y - 0.25, y - 0.17
    shade = [(x + 0.03, top), (x + 0.07, top), (x + 0.09, bottom), (x + 0.01, bottom)]
    paint_lampshade(canvas, shade, rgb(255, 236, 190), night=1.6)
    stem = canvas.lit(rgb(110, 80, 60))
    canvas.rectangle(x + 0.045, y - 0.17, x + 0.055, y - 0.12, stem)
    if canvas.time == "night":
        canvas.glow(x + 0.05, y - 0.2, 0.2, rgb(255, 210, 130), alpha=0.6)


def paint_kitchen(canvas: Canvas) -> None:
    """A counter in front of a tiled wall, cupboards at the sides."""
    horizon = canvas.uniform(0.60, 0.66)
    wall = canvas.pick(
        rgb(240, 240, 236), rgb(206, 226, 230), rgb(244, 232, 206), rgb(214, 230, 210)
    )
    light_room(canvas, horizon, wall)
    paint_tiles(canvas, wall)
    paint_window(canvas, canvas.pick(0.36, 0.1, 0.62), 0.1, 0.26, 0.24)
    cupboard = canvas.pick(
        rgb(250, 250, 246), rgb(120, 150, 160), rgb(196, 148, 100), rgb(150, 176, 150)
    )
    cupboard = canvas.vary(cupboard, 0.02)
    for x in (0.0, 0.74):
        if not canvas.chance(0.5):
            _paint_cupboard(canvas, x, cupboard)
    top = canvas.pick(rgb(196, 150, 104), rgb(90, 92, 100), rgb(222, 220, 214))
    top = canvas.vary(top, 0.02)
    shade = (1.05 - 0.12 * (canvas.y - horizon))[..., None]
    grain = 1 + 0.03 * canvas.noise("wood")[..., None] + 0.03 * canvas.noise("fine")[..., None]
    mask = np.clip((canvas.y - horizon) * canvas.size, 0, 1)
    canvas.cover(mask, np.clip(canvas.lit(top) * shade * grain, 0, 1))
    canvas.rectangle(0, 0.95, 1, 0.965, canvas.lit(top * 0.7))
    canvas.rectangle(0, 0.965, 1, 1.01, canvas.lit(cupboard * 0.9))
    canvas.zones = Zones(ground=(0.78, 0.92), sky=(0.1, 0.4))


def _paint_cupboard(canvas: Canvas, x: float, colour: Array) -> None:
    """Two doors with their knobs side by side."""
    for k, knob in enumerate((0.1, 0.026)):
        left = x + k * 0.13
        canvas.rectangle(left, -0.02, left + 0.126, 0.26, canvas.lit(colour * 0.97), radius=0.004)
        panel = canvas.lit(colour)
        canvas.rectangle(left + 0.015, 0.0, left + 0.111, 0.24, panel, radius=0.004)
        canvas.ellipse(left + knob, 0.2, 0.007, 0.007, canvas.lit(rgb(110, 100, 90)))


def paint_bathroom(canvas: Canvas) -> None:
    """Tiles, a mirror and a towel."""
    horizon = canvas.uniform(0.60, 0.66)
    wall = canvas.pick(
        rgb(206, 230, 236), rgb(236, 240, 240), rgb(214, 232, 214), rgb(240, 220, 214)
    )
    paint_wall(canvas, horizon, wall)
    paint_floor(canvas, horizon, tiled_floor(canvas, horizon))
    n = canvas.integer(8, 12)
    is_joint = ((canvas.x * n) % 1 < 0.06) | ((canvas.y * n) % 1 < 0.06)
    is_wall_joint = (canvas.y < horizon - 0.02) & is_joint
    canvas.image *= np.where(is_wall_joint, 0.9, 1).astype(np.float32)[..., None]
    _paint_mirror(canvas, canvas.uniform(0.12, 0.6))
    x = canvas.pick(0.78, 0.05)
    canvas.rectangle(x - 0.01, 0.3, x + 0.17, 0.312, canvas.lit(rgb(170, 170, 174)))
    towel = canvas.pick(rgb(240, 120, 110), rgb(100, 160, 200), rgb(250, 220, 120))
    towel = canvas.lit(canvas.vary(towel, 0.03))
    canvas.rectangle(x, 0.3, x + 0.14, 0.5, towel, radius=0.006)
    canvas.zones = Zones(ground=(0.78, 0.95), sky=(0.1, 0.4))


def _paint_mirror(canvas: Canvas, x: float) -> None:
    canvas.rectangle(x, 0.1, x + 0.24, 0.4, canvas.lit(rgb(160, 170, 176)), radius=0.02)
    glass = canvas.lit(rgb(206, 228, 238))
    canvas.rectangle(x + 0.012, 0.112, x + 0.228, 0.388, glass, radius=0.015)
    gleam = [(x + 0.03, 0.34), (x + 0.14, 0.13), (x + 0.18, 0.13), (x + 0.07, 0.34)]
    canvas.polygon(gleam, rgb(255, 255, 255), alpha=0.4)
