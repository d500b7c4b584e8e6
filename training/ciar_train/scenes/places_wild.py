"""Wild places: snow, forest, autumn forest, jungle, desert, savanna, mountains."""

import math

import numpy as np

from ciar_train.scenes.canvas import Canvas, Zones
from ciar_train.scenes.colour import Array, mix, rgb, smoothstep
from ciar_train.scenes.plants import paint_conifers, paint_flowers, paint_tufts
from ciar_train.scenes.sky import paint_sky
from ciar_train.scenes.terrain import paint_hill, paint_mountains

_NO_LIGHT = np.ones(3, np.float32)
_AUTUMN_LIGHT = np.array([1.55, 0.82, 0.5], np.float32)  # turns green leaves orange


def paint_snow(canvas: Canvas) -> None:
    """A snowy field with conifers; snow falls in some of the pictures."""
    horizon = canvas.uniform(0.42, 0.5)
    paint_sky(canvas, horizon)
    if canvas.chance(0.55):
        height = canvas.uniform(0.15, 0.28)
        paint_mountains(canvas, horizon + 0.03, height, rgb(110, 122, 145), haze=0.3)
    if canvas.chance(0.7):
        height = canvas.uniform(0.07, 0.14)
        paint_conifers(canvas, horizon + 0.04, height, rgb(50, 88, 80), haze=0.25)
    white = rgb(244, 248, 255)
    paint_hill(
        canvas,
        horizon + 0.03,
        0.03,
        white * 0.95,
        waves=1.1,
        texture="soft",
        grain=0.015,
        darkening=0.9,
    )
    paint_hill(
        canvas,
        horizon + 0.12,
        0.03,
        white,
        waves=0.8,
        texture="soft",
        grain=0.02,
        darkening=0.88,
        depth=0.5,
    )
    for _ in range(canvas.integer(0, 4)):
        y = horizon + canvas.uniform(0.06, 0.16)
        x = canvas.pick(canvas.uniform(0, 0.2), canvas.uniform(0.8, 1))
        height = canvas.uniform(0.14, 0.3)
        canvas.sprite("🌲", x, y + 0.04, height, haze=0.1)
        foot = canvas.lit(white)
        canvas.ellipse(x, y + 0.042, height * 0.3, 0.012, foot, alpha=0.8, softness=0.015)
    is_calm = canvas.time in ("cloudy", "night", "day")
    canvas.is_snowing = (is_calm and canvas.chance(0.35)) or canvas.time == "snowfall"
    canvas.zones = Zones(ground=(0.72, 0.95), sky=(0.06, horizon))


def paint_forest(canvas: Canvas) -> None:
    """Three rows of trees with a clearing in front."""
    _paint_woods(canvas, is_autumn=False)


def paint_autumn(canvas: Canvas) -> None:
    """A forest with orange leaves, on the trees and on the ground."""
    _paint_woods(canvas, is_autumn=True)


def _paint_woods(canvas: Canvas, *, is_autumn: bool) -> None:
    horizon = canvas.uniform(0.46, 0.54)
    paint_sky(canvas, horizon, cloud_chance=0.2, has_sun=False)
    leaves = rgb(196, 112, 40) if is_autumn else rgb(60, 120, 60)
    paint_hill(
        canvas,
        horizon - 0.12,
        0.04,
        mix(leaves, canvas.haze, 0.3),
        waves=2.2,
        texture="mid",
        grain=0.12,
        haze=0.3,
        roughness=0.05,
    )
    floor = canvas.vary(rgb(170, 120, 60) if is_autumn else rgb(92, 142, 62), 0.02)
    paint_hill(canvas, horizon, 0.015, floor, waves=0.9, texture="mid", grain=0.08, darkening=0.7)
    trees = ("🌳", "🌲") if canvas.chance(0.6) else ("🌲",)
    if is_autumn:
        trees = ("🌳",)
    _paint_trees(canvas, horizon, trees=trees, light=_AUTUMN_LIGHT if is_autumn else _NO_LIGHT)
    if is_autumn:
        _paint_fallen_leaves(canvas, horizon)
    elif canvas.chance(0.5):
        paint_tufts(canvas, 24, horizon + 0.16, 1, rgb(70, 130, 50))
    canvas.zones = Zones(ground=(0.74, 0.96), sky=(0.06, 0.4))


def _paint_fallen_leaves(canvas: Canvas, horizon: float) -> None:
    for _ in range(40):
        x, y = canvas.uniform(0, 1), canvas.uniform(horizon + 0.15, 1)
        rx, ry = canvas.uniform(0.006, 0.014), canvas.uniform(0.004, 0.008)
        leaf = canvas.pick(rgb(220, 110, 30), rgb(200, 60, 30), rgb(240, 180, 60))
        canvas.ellipse(x, y, rx, ry, canvas.lit(leaf))


def _paint_trees(canvas: Canvas, horizon: float, *, trees: tuple[str, ...], light: Array) -> None:
    """Rows from far to near: (y below the horizon, height, number, haze)."""
    rows = ((0.02, 0.34, 9, 0.42), (0.06, 0.46, 7, 0.2), (0.13, 0.62, 4, 0))
    for below, height, count, haze in rows:
        y = horizon + below
        for x in np.linspace(-0.02, 1.02, count) + canvas.rng.normal(0, 0.04, count):
            if haze == 0 and abs(x - 0.5) < 0.27:
                continue
            shade = canvas.ambient * light * canvas.uniform(0.85, 1.02)
            tree = canvas.pick(*trees)
            base = y + canvas.uniform(0, 0.03)
            top = height * canvas.uniform(0.8, 1.15)
            canvas.sprite(tree, x, base, top, ambient=shade, haze=haze)


def paint_jungle(canvas: Canvas) -> None:
    """Palms and large leaves that frame a dim clearing."""
    horizon = 0.5
    paint_sky(canvas, horizon, cloud_chance=0, has_sun=False)
    canvas.image *= 0.85
    paint_hill(
        canvas,
        0.18,
        0.06,
        rgb(40, 110, 60),
        waves=2.5,
        texture="mid",
        grain=0.15,
        haze=0.35,
        roughness=0.08,
    )
    floor = rgb(52, 112, 48)
    paint_hill(canvas, 0.5, 0.03, floor, waves=1, texture="mid", grain=0.1, darkening=0.6)
    for _ in range(7):
        tree = canvas.pick("🌴", "🌳", "🌴")
        x, base = canvas.uniform(-0.02, 1.02), horizon + canvas.uniform(0, 0.08)
        canvas.sprite(tree, x, base, canvas.uniform(0.35, 0.5), haze=0.2)
    for x in (canvas.uniform(-0.02, 0.1), canvas.uniform(0.9, 1.02)):
        canvas.sprite("🌴", x, horizon + 0.2, canvas.uniform(0.6, 0.75))
    for _ in range(16):
        _paint_leaf(canvas)
    paint_tufts(canvas, 26, 0.66, 1, rgb(46, 120, 44))
    canvas.zones = Zones(ground=(0.76, 0.96), sky=(0.06, 0.4))


def _paint_leaf(canvas: Canvas) -> None:
    """A pointed leaf at the left or right edge, with a dark midrib."""
    x = canvas.pick(canvas.uniform(-0.05, 0.25), canvas.uniform(0.75, 1.05))
    y = canvas.uniform(0.62, 1.05)
    length, angle = canvas.uniform(0.12, 0.24), canvas.uniform(-2.6, -0.5)
    colour = canvas.lit(canvas.vary(rgb(38, 125, 55), 0.05))
    along, across = math.cos(angle), math.sin(angle)

    def point(forward: float, aside: float) -> tuple[float, float]:
        dx, dy = forward * along - aside * across, forward * across + aside * along
        return x + length * dx, y + length * dy

    tip = (x + length * along, y + length * across)
    canvas.polygon([(x, y), point(0.5, 0.22), tip, point(0.5, -0.22)], colour)
    canvas.polygon([(x, y), tip, point(0.5, 0.02)], colour * 0.7)


def paint_desert(canvas: Canvas) -> None:
    """Three dunes with shaded sides, a cactus or two."""
    horizon = canvas.uniform(0.42, 0.52)
    paint_sky(canvas, horizon, cloud_chance=0.25)
    sand = canvas.pick(rgb(236, 190, 118), rgb(226, 170, 100), rgb(240, 204, 140))
    sand = canvas.vary(sand, 0.02)
    if canvas.chance(0.3):
        height = canvas.uniform(0.08, 0.16)
        rock = rgb(190, 120, 84)
        paint_mountains(canvas, horizon + 0.02, height, rock, has_snow=False, haze=0.3)
    for below, height, haze in ((0.0, 0.05, 0.35), (0.07, 0.05, 0.15), (0.17, 0.04, 0.0)):
        line = paint_hill(
            canvas,
            horizon + below,
            height,
            sand,
            waves=1.0,
            texture="fine",
            grain=0.03,
            haze=haze,
            darkening=0.82,
        )
        slope = np.clip(np.gradient(line) * canvas.size * 1.6, -1, 1)[None]
        fade = np.exp(-np.clip(canvas.y - line[None], 0, 1) / 0.09)
        shade = slope * fade * canvas.below(line)
        factor = 1 - 0.22 * np.clip(shade, 0, 1) + 0.06 * np.clip(-shade, 0, 1)
        canvas.image *= factor[..., None]
    ripples = 0.02 * canvas.noise("water") * smoothstep(horizon + 0.15, 1, canvas.y)
    canvas.image *= (1 + ripples)[..., None]
    for _ in range(canvas.integer(0, 3)):
        x = canvas.pick(canvas.uniform(0.03, 0.25), canvas.uniform(0.75, 0.97))
        base, height = horizon + canvas.uniform(0.06, 0.16), canvas.uniform(0.1, 0.26)
        canvas.sprite("🌵", x, base, height, haze=0.05)
    canvas.zones = Zones(ground=(0.74, 0.95), sky=(0.06, horizon))


def paint_savanna(canvas: Canvas) -> None:
    """Dry grass with flat-topped acacias."""
    horizon = canvas.uniform(0.46, 0.54)
    paint_sky(canvas, horizon, cloud_chance=0.3)
    paint_hill(canvas, horizon - 0.02, 0.02, rgb(150, 140, 90), waves=1, haze=0.45)
    dry = rgb(214, 178, 92)
    paint_hill(canvas, horizon + 0.01, 0.012, dry, waves=1, grain=0.07, darkening=0.8)
    for _ in range(canvas.integer(2, 5)):
        _paint_acacia(canvas, horizon)
    paint_tufts(canvas, 44, horizon + 0.06, 1, rgb(196, 156, 70))
    canvas.zones = Zones(ground=(0.72, 0.95), sky=(0.06, horizon))


def _paint_acacia(canvas: Canvas, horizon: float) -> None:
    x, y = canvas.uniform(0, 1), horizon + canvas.uniform(0.0, 0.06)
    scale = 0.5 + 6 * (y - horizon)
    height = 0.09 + scale * 0.09
    left, right = x - 0.006 * scale - 0.004, x + 0.006 * scale + 0.004
    trunk = [(left, y), (right, y), (x + 0.004, y - height), (x - 0.004, y - height)]
    canvas.polygon(trunk, canvas.lit(rgb(80, 58, 40)))
    for _ in range(5):
        crown_x = x + canvas.uniform(-0.09, 0.09) * (scale + 0.3)
        crown_y = y - height - canvas.uniform(-0.01, 0.02)
        rx, ry = 0.06 * (scale + 0.4), 0.018 * (scale + 0.5)
        green = canvas.lit(canvas.vary(rgb(96, 120, 50), 0.03))
        canvas.ellipse(crown_x, crown_y, rx, ry, green, softness=0.012)


def paint_mountain_meadow(canvas: Canvas) -> None:
    """A snowy range behind a meadow."""
    horizon = canvas.uniform(0.54, 0.62)
    paint_sky(canvas, horizon)
    height, rock = canvas.uniform(0.3, 0.42), canvas.vary(rgb(112, 118, 140), 0.03)
    paint_mountains(canvas, horizon + 0.02, height, rock, haze=0.28)
    if canvas.chance(0.6):
        height, rock = canvas.uniform(0.14, 0.22), canvas.vary(rgb(86, 98, 110), 0.03)
        paint_mountains(canvas, horizon + 0.03, height, rock, has_snow=False, haze=0.2)
    if canvas.chance(0.6):
        height = canvas.uniform(0.05, 0.1)
        paint_conifers(canvas, horizon + 0.04, height, rgb(46, 92, 64), haze=0.15)
    green = canvas.vary(rgb(104, 160, 70), 0.03)
    paint_hill(canvas, horizon + 0.03, 0.02, green, waves=1.1, darkening=0.7)
    if canvas.chance(0.4):
        paint_flowers(canvas, 14, horizon + 0.1, 0.99)
    canvas.zones = Zones(ground=(0.76, 0.95), sky=(0.06, horizon - 0.25))
