"""Tended places outdoors: meadow, farm, garden, park, picnic."""

import numpy as np

from ciar_train.scenes.canvas import Canvas, Zones
from ciar_train.scenes.colour import mix, rgb, smoothstep
from ciar_train.scenes.plants import paint_flowers, paint_grassland, paint_tufts
from ciar_train.scenes.terrain import ground_plane, paint_hill


def paint_meadow(canvas: Canvas) -> None:
    """Grass and flowers, a tree now and then."""
    horizon = canvas.uniform(0.44, 0.54)
    paint_grassland(canvas, horizon)
    if canvas.chance(0.3):
        tree = canvas.pick("🌳", "🌲")
        x = canvas.pick(canvas.uniform(0.03, 0.2), canvas.uniform(0.8, 0.97))
        base, height = horizon + canvas.uniform(0.04, 0.1), canvas.uniform(0.2, 0.34)
        canvas.sprite(tree, x, base, height, haze=0.1)
    if canvas.chance(0.7):
        paint_flowers(canvas, canvas.integer(12, 40), horizon + 0.1, 0.99)
    if canvas.chance(0.6):
        paint_tufts(canvas, 26, horizon + 0.12, 1, rgb(78, 150, 54))
    canvas.zones = Zones(ground=(0.72, 0.95), sky=(0.06, horizon))


def paint_farm(canvas: Canvas) -> None:
    """A meadow with a wooden fence, often a red barn and ploughed rows."""
    horizon = canvas.uniform(0.42, 0.5)
    paint_grassland(canvas, horizon)
    if canvas.chance(0.75):
        _paint_barn(canvas, horizon)
    distance, sideways = ground_plane(canvas, horizon + 0.06)
    if canvas.chance(0.5):
        field = smoothstep(horizon + 0.1, horizon + 0.16, canvas.y)
        rows = field * (0.5 + 0.5 * np.sin(sideways * 26)) * np.clip(2.2 / distance, 0, 1)
        canvas.cover(rows * 0.55, canvas.lit(rgb(122, 92, 50)))
    y = horizon + canvas.uniform(0.12, 0.17)
    wood = canvas.lit(rgb(214, 190, 150))
    for k in range(9):
        x = k * 0.125
        canvas.rectangle(x - 0.008, y - 0.075, x + 0.008, y + 0.01, wood)
    for rail in (-0.055, -0.022):
        canvas.rectangle(0, y + rail - 0.007, 1, y + rail + 0.007, wood * 0.95)
    canvas.zones = Zones(ground=(0.76, 0.96), sky=(0.06, horizon))


def _paint_barn(canvas: Canvas, horizon: float) -> None:
    x = canvas.pick(canvas.uniform(0.1, 0.28), canvas.uniform(0.72, 0.9))
    y, s = horizon + 0.07, canvas.uniform(0.09, 0.13)
    red, white = canvas.lit(rgb(176, 48, 40)), canvas.lit(rgb(245, 240, 232))
    canvas.rectangle(x - s, y - s * 1.1, x + s, y, red)
    eaves, knee, ridge = y - s * 1.08, s * 0.6, y - s * 1.8
    roof = [(x - s * 1.12, eaves), (x - knee, ridge), (x + knee, ridge), (x + s * 1.12, eaves)]
    canvas.polygon(roof, canvas.lit(rgb(96, 70, 62)))
    canvas.rectangle(x - s * 0.36, y - s * 0.72, x + s * 0.36, y, white)
    canvas.rectangle(x - s * 0.3, y - s * 0.66, x + s * 0.3, y, red * 0.8)
    lintel = y - s * 0.66
    brace = [(x - s * 0.3, lintel), (x - s * 0.2, lintel), (x + s * 0.3, y), (x + s * 0.2, y)]
    canvas.polygon(brace, white)


def paint_garden(canvas: Canvas) -> None:
    """A picket fence with flowers in front, often a hedge behind."""
    horizon = canvas.uniform(0.44, 0.5)
    paint_grassland(canvas, horizon)
    y = horizon + 0.1
    paint = canvas.lit(canvas.pick(rgb(250, 250, 246), rgb(196, 150, 104), rgb(240, 236, 220)))
    count = canvas.integer(12, 18)
    if canvas.chance(0.5):
        paint_hill(
            canvas,
            y - 0.16,
            0.012,
            rgb(66, 128, 60),
            waves=4,
            texture="mid",
            grain=0.14,
            roughness=0.04,
            depth=0.2,
        )
    for rail in (y - 0.10, y - 0.03):
        canvas.rectangle(0, rail - 0.01, 1, rail + 0.01, paint * 0.9)
    width = 1 / count
    for k in range(count):
        x = (k + 0.5) * width
        left, right = x - width * 0.34, x + width * 0.34
        canvas.rectangle(left, y - 0.13, right, y + 0.015, paint)
        canvas.polygon([(left, y - 0.13), (right, y - 0.13), (x, y - 0.165)], paint)
    for _ in range(canvas.integer(4, 9)):
        foot = canvas.uniform(y + 0.02, y + 0.13)
        flower = canvas.pick("🌷", "🌻", "🌹", "🌼", "🌷")
        x, height = canvas.rng.random(), canvas.uniform(0.09, 0.15)
        canvas.sprite(flower, x, foot + 0.06, height, is_flipped=False)
    paint_flowers(canvas, canvas.integer(8, 30), y + 0.08, 0.99)
    canvas.zones = Zones(ground=(0.76, 0.96), sky=(0.06, horizon - 0.1))


def paint_park(canvas: Canvas) -> None:
    """Trees along a winding path, with a bench or a far skyline in many pictures."""
    horizon = canvas.uniform(0.44, 0.5)
    paint_grassland(canvas, horizon)
    if canvas.chance(0.45):
        _paint_far_skyline(canvas, horizon)
    rows = ((horizon + 0.05, 7, 0.2, 0.25), (horizon + 0.1, 4, 0.34, 0.05))
    for y, count, height, haze in rows:
        for x in np.linspace(0, 1, count) + canvas.rng.normal(0, 0.06, count):
            if haze < 0.1 and abs(x - 0.5) < 0.22:
                continue
            tree = canvas.pick("🌳", "🌳", "🌲")
            base = y + canvas.uniform(0, 0.02)
            canvas.sprite(tree, x, base, height * canvas.uniform(0.85, 1.15), haze=haze)
    _paint_path(canvas, horizon + 0.07)
    if canvas.chance(0.6):
        _paint_bench(canvas, horizon)
    canvas.zones = Zones(ground=(0.74, 0.96), sky=(0.06, horizon - 0.12))


def _paint_far_skyline(canvas: Canvas, horizon: float) -> None:
    for _ in range(9):
        x, width = canvas.uniform(0, 1), canvas.uniform(0.04, 0.09)
        height = canvas.uniform(0.08, 0.26)
        wall = mix(canvas.lit(rgb(120, 135, 160)), canvas.haze, 0.5)
        canvas.rectangle(x, horizon - height, x + width, horizon + 0.04, wall)
    lawn = rgb(110, 172, 72)
    paint_hill(canvas, horizon + 0.05, 0.01, lawn, waves=0.8, depth=0.5)


def _paint_path(canvas: Canvas, top: float) -> None:
    start = canvas.uniform(-0.3, 0.3)
    down = np.clip((canvas.y - top) / (1 - top), 0, 1)
    bends = 0.12 * np.sin(down * 4 + canvas.uniform(0, 6)) * (1 - down)
    middle = 0.5 + start * (1 - down) ** 2 + bends
    aside = np.abs(canvas.x - middle) - (0.012 + 0.26 * down**1.4)
    mask = smoothstep(1.5 / canvas.size, -1.5 / canvas.size, aside) * (canvas.y > top)
    canvas.cover(mask, canvas.lit(rgb(222, 202, 164)) * canvas.grain("fine", 0.04))


def _paint_bench(canvas: Canvas, horizon: float) -> None:
    x = canvas.pick(canvas.uniform(0.12, 0.25), canvas.uniform(0.75, 0.88))
    y, s = horizon + canvas.uniform(0.2, 0.26), canvas.uniform(0.1, 0.13)
    wood, metal = canvas.lit(rgb(150, 96, 54)), canvas.lit(rgb(60, 60, 66))
    for side in (-0.8, 0.8):
        leg = x + side * s
        canvas.rectangle(leg - 0.007, y - s * 0.9, leg + 0.007, y, metal)
    for k, height in enumerate((-0.85, -0.66, -0.4)):
        board, shade = y + height * s, wood * (1 - 0.08 * k)
        canvas.rectangle(x - s, board - 0.011, x + s, board + 0.011, shade, radius=0.004)


def paint_picnic(canvas: Canvas) -> None:
    """A checked blanket on the grass."""
    horizon = canvas.uniform(0.36, 0.42)
    paint_grassland(canvas, horizon)
    distance, sideways = ground_plane(canvas, horizon - 0.2)
    colour = canvas.lit(canvas.pick(rgb(220, 50, 50), rgb(60, 110, 200), rgb(230, 120, 60)))
    checks = 0.5 * (((sideways * 5.2) % 1) < 0.5) + 0.5 * (((distance * 6.5) % 1) < 0.5)
    aside = np.abs(canvas.x - 0.5) - (0.30 + 0.28 * (canvas.y - 0.52))
    outside = np.maximum(aside, np.maximum(0.52 - canvas.y, canvas.y - 1.2))
    blanket = mix(canvas.lit(rgb(252, 250, 246)), colour, checks[..., None])
    mask = np.clip(0.5 - outside * canvas.size, 0, 1)
    canvas.cover(mask, blanket * canvas.grain("fine", 0.02))
    if canvas.chance(0.5):
        paint_flowers(canvas, 10, horizon + 0.08, 0.99)
    canvas.zones = Zones(ground=(0.74, 0.93), sky=(0.06, horizon))
