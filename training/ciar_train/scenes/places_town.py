"""Built-up places: street, city skyline, road, railway, stadium."""

from collections.abc import Sequence

import numpy as np

from ciar_train.scenes.canvas import Canvas, Zones
from ciar_train.scenes.colour import Array, mix, rgb, smoothstep
from ciar_train.scenes.plants import paint_conifers, paint_grassland
from ciar_train.scenes.sky import paint_sky
from ciar_train.scenes.terrain import ground_plane, paint_hill
from ciar_train.scenes.water import paint_water

_STREET_WALLS = (
    rgb(188, 112, 88),
    rgb(214, 186, 150),
    rgb(150, 160, 176),
    rgb(120, 130, 150),
    rgb(206, 150, 110),
    rgb(170, 180, 170),
)
_CITY_WALLS = (
    rgb(96, 116, 150),
    rgb(130, 150, 176),
    rgb(160, 150, 150),
    rgb(90, 96, 120),
    rgb(150, 170, 190),
)
_SHIRTS = (
    rgb(230, 70, 60),
    rgb(60, 110, 220),
    rgb(250, 220, 80),
    rgb(245, 245, 245),
    rgb(60, 60, 70),
    rgb(80, 180, 90),
)


def _paint_houses(
    canvas: Canvas,
    ground: float,
    heights: tuple[float, float],
    walls: Sequence[Array],
    *,
    haze: float = 0.0,
    has_windows: bool = True,
) -> None:
    """A row of flat-roofed houses from the left edge to the right one."""
    x = -0.05
    while x < 1.02:
        width, height = canvas.uniform(0.10, 0.2), canvas.uniform(*heights)
        wall = mix(canvas.lit(canvas.vary(canvas.pick(*walls), 0.02)), canvas.haze, haze)
        top, right = ground - height, x + width
        canvas.rectangle(x, top, right, ground + 0.02, wall)
        canvas.rectangle(x + width * 0.86, top, right, ground + 0.02, wall * 0.86)
        eaves = wall * 1.12 if wall.max() < 0.85 else wall * 0.9
        canvas.rectangle(x, top, right, top + 0.012, eaves)
        if has_windows:
            _paint_windows(canvas, x, ground, width=width, height=height, wall=wall)
        x += width + (canvas.uniform(0, 0.02) if canvas.chance(0.5) else 0)


def _paint_windows(
    canvas: Canvas, x: float, ground: float, *, width: float, height: float, wall: Array
) -> None:
    """A grid of windows; more of them are lit the darker it is."""
    columns, rows = max(2, int(width / 0.034)), max(2, int(height / 0.055))
    column_width, row_height = width / columns, height / rows
    lit_chance = {"night": 0.5, "sunset": 0.35}.get(canvas.time, 0.06)
    dark = mix(wall * 0.62, canvas.haze, 0.25)
    for i in range(columns):
        for k in range(rows):
            colour = rgb(255, 220, 120) if canvas.chance(lit_chance) else dark
            left = x + (i + 0.25) * column_width
            top = ground - height + 0.012 + (k + 0.25) * row_height
            bottom = top + row_height * 0.55
            if bottom < ground - 0.01:
                canvas.rectangle(left, top, left + column_width * 0.5, bottom, colour)


def paint_street(canvas: Canvas) -> None:
    """Houses, a pavement and a street with a dashed line, lamps and trees."""
    horizon = canvas.uniform(0.56, 0.62)
    paint_sky(canvas, horizon, cloud_chance=0.4)
    if canvas.chance(0.6):
        _paint_houses(canvas, horizon - 0.02, (0.28, 0.5), _STREET_WALLS, haze=0.45)
    _paint_houses(canvas, horizon, (0.2, 0.46), _STREET_WALLS)
    canvas.rectangle(0, horizon, 1, horizon + 0.07, canvas.lit(rgb(190, 188, 184)))
    kerb = canvas.lit(rgb(150, 148, 146))
    canvas.rectangle(0, horizon + 0.066, 1, horizon + 0.08, kerb)
    asphalt = canvas.lit(rgb(86, 88, 94)) * canvas.grain("fine", 0.05)
    canvas.cover(np.clip((canvas.y - horizon - 0.08) * canvas.size, 0, 1), asphalt)
    y, shift = horizon + 0.24, canvas.uniform(0, 0.16)
    for k in range(-1, 7):
        left, top, bottom = k / 6, y - 0.012, y + 0.012
        dash = [
            (left + shift, top),
            (left + 0.09 + shift, top),
            (left + 0.085 + shift, bottom),
            (left - 0.008 + shift, bottom),
        ]
        canvas.polygon(dash, canvas.lit(rgb(245, 225, 120)))
    for _ in range(canvas.integer(0, 3)):
        _paint_street_lamp(canvas, horizon)
    for _ in range(canvas.integer(0, 3)):
        x, height = canvas.uniform(0, 1), canvas.uniform(0.16, 0.24)
        canvas.sprite("🌳", x, horizon + 0.05, height)
    canvas.zones = Zones(ground=(0.76, 0.95), sky=(0.06, 0.3))


def _paint_street_lamp(canvas: Canvas, horizon: float) -> None:
    x = canvas.uniform(0.05, 0.95)
    metal = canvas.lit(rgb(70, 74, 80))
    canvas.rectangle(x - 0.006, horizon - 0.22, x + 0.006, horizon + 0.05, metal)
    canvas.rectangle(x - 0.03, horizon - 0.235, x + 0.03, horizon - 0.215, metal, radius=0.006)
    if canvas.time in ("night", "sunset", "rain"):
        canvas.glow(x, horizon - 0.21, 0.09, rgb(255, 214, 130), alpha=0.7)


def paint_city(canvas: Canvas) -> None:
    """A skyline behind water or a square."""
    horizon = canvas.uniform(0.66, 0.74)
    paint_sky(canvas, horizon)
    _paint_houses(canvas, horizon, (0.3, 0.58), _CITY_WALLS, haze=0.5, has_windows=False)
    _paint_houses(canvas, horizon, (0.2, 0.5), _CITY_WALLS, haze=0.22)
    _paint_houses(canvas, horizon + 0.02, (0.1, 0.32), _CITY_WALLS)
    sky = (0.06, 0.34)
    if canvas.chance(0.5):
        canvas.sun_position = None
        paint_water(canvas, horizon + 0.02, rgb(40, 80, 120), rgb(60, 100, 140))
        water = (horizon + 0.1, 0.95)
        canvas.zones = Zones(ground=(0.84, 0.96), sky=sky, water=water)
        return
    canvas.rectangle(0, horizon + 0.02, 1, 1.01, canvas.lit(rgb(128, 128, 132)))
    paving = canvas.lit(rgb(120, 120, 124)) * canvas.grain("fine", 0.1)
    canvas.cover(np.clip((canvas.y - horizon - 0.02) * canvas.size, 0, 1) * 0.5, paving)
    canvas.zones = Zones(ground=(0.82, 0.96), sky=sky)


def paint_road(canvas: Canvas) -> None:
    """A road to the horizon, through meadows, desert or snow."""
    horizon = canvas.uniform(0.46, 0.54)
    land = canvas.pick("grass", "grass", "desert", "snow")
    if land == "desert":
        paint_sky(canvas, horizon, cloud_chance=0.3)
        far, near = rgb(210, 150, 100), rgb(226, 178, 112)
        paint_hill(canvas, horizon - 0.01, 0.03, far, waves=1, haze=0.35)
        paint_hill(canvas, horizon + 0.02, 0.01, near, waves=1, texture="fine", grain=0.04)
    elif land == "snow":
        paint_sky(canvas, horizon)
        paint_conifers(canvas, horizon + 0.03, 0.09, rgb(54, 88, 84), haze=0.25)
        snow = rgb(242, 246, 252)
        paint_hill(
            canvas, horizon + 0.02, 0.01, snow, waves=1, texture="soft", grain=0.02, darkening=0.9
        )
    else:
        paint_grassland(canvas, horizon)
    _paint_carriageway(canvas, horizon + 0.035)
    if land == "grass":
        for _ in range(canvas.integer(2, 7)):
            tree = canvas.pick("🌳", "🌲")
            x = canvas.pick(canvas.uniform(0, 0.28), canvas.uniform(0.72, 1))
            base, height = horizon + canvas.uniform(0.03, 0.1), canvas.uniform(0.1, 0.28)
            canvas.sprite(tree, x, base, height, haze=0.12)
    canvas.zones = Zones(ground=(0.72, 0.95), sky=(0.06, horizon))


def _paint_carriageway(canvas: Canvas, top: float) -> None:
    """Asphalt in perspective with white edges and a dashed yellow line."""
    vanishing = 0.5 + canvas.uniform(-0.12, 0.12)
    size = canvas.size
    down = np.clip((canvas.y - top) / (1 - top), 0, 1)
    middle = vanishing + (0.5 - vanishing) * down
    half_width = 0.012 + 0.50 * down
    is_ground = canvas.y > top
    mask = np.clip((half_width - np.abs(canvas.x - middle)) * size + 0.5, 0, 1) * is_ground
    canvas.cover(mask, canvas.lit(rgb(88, 90, 96)) * canvas.grain("fine", 0.045))
    for side in (-1, 1):
        aside = np.abs(canvas.x - middle - side * half_width * 0.9)
        edge = np.clip((half_width * 0.025 + 0.5 / size - aside) * size + 0.5, 0, 1)
        canvas.cover(edge * is_ground, canvas.lit(rgb(240, 240, 236)))
    distance = 1 / np.maximum(down, 0.01)
    is_dash = (distance * 1.1 + canvas.uniform(0, 1)) % 1 < 0.5
    aside = np.abs(canvas.x - middle)
    line = np.clip((half_width * 0.028 + 0.4 / size - aside) * size + 0.5, 0, 1)
    canvas.cover(line * is_ground * is_dash, canvas.lit(rgb(250, 214, 80)))


def paint_railway(canvas: Canvas) -> None:
    """A track across a meadow, seen from the side."""
    horizon = canvas.uniform(0.46, 0.52)
    paint_grassland(canvas, horizon)
    if canvas.chance(0.4):
        paint_conifers(canvas, horizon + 0.05, 0.08, rgb(50, 100, 66), haze=0.2)
    y = canvas.uniform(0.74, 0.8)
    ballast = canvas.lit(rgb(150, 138, 124)) * canvas.grain("fine", 0.12)
    canvas.cover(smoothstep(0.10, 0.085, np.abs(canvas.y - y)), ballast)
    for k in range(13):
        x, top, bottom = (k + 0.2) / 12, y - 0.055, y + 0.065
        sleeper = [(x - 0.02, top), (x + 0.012, top), (x, bottom), (x - 0.038, bottom)]
        canvas.polygon(sleeper, canvas.lit(rgb(104, 72, 48)))
    for rail in (y - 0.03, y + 0.04):
        canvas.rectangle(0, rail - 0.007, 1, rail + 0.007, canvas.lit(rgb(150, 154, 160)))
        canvas.rectangle(0, rail + 0.004, 1, rail + 0.008, canvas.lit(rgb(90, 92, 96)))
    canvas.zones = Zones(ground=(y, y + 0.02), sky=(0.06, horizon))


def paint_stadium(canvas: Canvas) -> None:
    """A striped lawn in front of a stand full of spectators."""
    horizon = canvas.uniform(0.44, 0.5)
    paint_sky(canvas, horizon, cloud_chance=0.3)
    stand = canvas.lit(rgb(150, 156, 168))
    canvas.rectangle(0, horizon - 0.18, 1, horizon + 0.03, stand)
    _paint_crowd(canvas, horizon)
    canvas.rectangle(0, horizon - 0.02, 1, horizon + 0.03, canvas.lit(rgb(70, 90, 150)))
    distance, _ = ground_plane(canvas, horizon + 0.02)
    stripes = np.log(np.maximum(distance, 1)) * 3.2 + canvas.uniform(0, 1)
    grass = canvas.lit(rgb(84, 160, 66))
    lawn = np.where((stripes % 1 < 0.5)[..., None], grass, grass * 0.88)
    mask = np.clip((canvas.y - horizon - 0.03) * canvas.size, 0, 1)
    canvas.cover(mask, lawn * canvas.grain("grass", 0.05))
    white = canvas.lit(rgb(245, 248, 245))
    y = horizon + canvas.uniform(0.09, 0.13)
    canvas.rectangle(0, y - 0.004, 1, y + 0.004, white)
    slant = canvas.uniform(-0.6, 0.6)
    if canvas.chance(0.6):
        top, bottom = 0.5 + slant * 0.3, 0.5 + slant * 1.4
        line = [(top, y), (0.508 + slant * 0.3, y), (0.53 + slant * 1.4, 1), (bottom, 1)]
        canvas.polygon(line, white)
    canvas.zones = Zones(ground=(0.72, 0.95), sky=(0.06, horizon - 0.2))


def _paint_crowd(canvas: Canvas, horizon: float) -> None:
    """Five hundred spectators, each a dot in the colour of a shirt."""
    size, n = canvas.size, 500
    xs, ys = canvas.rng.random(n), horizon - 0.17 + 0.15 * canvas.rng.random(n)
    shirts = np.stack(_SHIRTS) * canvas.ambient
    rows, columns = (ys * size).astype(int), (xs * size).astype(int)
    choice = canvas.rng.integers(len(_SHIRTS), size=n)
    dot = max(1, size // 90)
    for dy in range(dot):
        for dx in range(dot):
            row = np.clip(rows + dy, 0, size - 1)
            canvas.image[row, np.clip(columns + dx, 0, size - 1)] = shirts[choice]
