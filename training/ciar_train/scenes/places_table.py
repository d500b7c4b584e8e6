"""Close-ups and stages: a table, a table with a cloth, a stage."""

import numpy as np

from ciar_train.scenes.canvas import Canvas, Zones
from ciar_train.scenes.colour import Array, mix, rgb
from ciar_train.scenes.interior import board_tone, light_room
from ciar_train.scenes.lights import LIGHTS
from ciar_train.scenes.terrain import ground_plane


def paint_table(canvas: Canvas) -> None:
    """A wooden table top with an out-of-focus room behind."""
    horizon, wood = _paint_room_behind(canvas)
    distance, _ = ground_plane(canvas, horizon - 0.22)
    planks = np.log(distance) * 3.2
    index = np.floor(planks)
    tone = 0.93 + 0.14 * board_tone(index, phase=canvas.uniform(0, 9))
    gaps = 1 - 0.3 * (planks - index < 0.05)
    grain = 1 + 0.07 * canvas.noise("wood")[..., None] + 0.02 * canvas.noise("fine")[..., None]
    _paint_top(canvas, horizon, canvas.lit(wood) * (tone * gaps)[..., None] * grain, wood)


def paint_tablecloth(canvas: Canvas) -> None:
    """The same table with a plain or checked cloth."""
    horizon, wood = _paint_room_behind(canvas)
    cloth = canvas.pick(rgb(250, 250, 248), rgb(240, 236, 226))
    stripe = canvas.pick(rgb(220, 60, 60), rgb(70, 110, 190), rgb(80, 150, 90), None)
    distance, sideways = ground_plane(canvas, horizon - 0.5)
    colours = canvas.lit(cloth) * np.ones_like(canvas.image)
    if stripe is not None:
        checks = 0.45 * (((sideways * 7) % 1) < 0.5) + 0.45 * (((distance * 9) % 1) < 0.5)
        colours = mix(colours, canvas.lit(stripe), checks[..., None])
    _paint_top(canvas, horizon, colours * canvas.grain("fine", 0.012), wood)


def _paint_room_behind(canvas: Canvas) -> tuple[float, Array]:
    """A blurred wall; returns the far edge of the table and the colour of its wood."""
    horizon = canvas.uniform(0.50, 0.58)
    wall = canvas.pick(
        rgb(226, 214, 196),
        rgb(178, 200, 206),
        rgb(208, 190, 180),
        rgb(176, 190, 168),
        rgb(120, 140, 160),
        rgb(90, 84, 90),
    )
    wall = canvas.vary(wall, 0.02)
    light_room(canvas, horizon, wall)
    canvas.image[:] = canvas.lit(wall) * (1.05 - 0.2 * canvas.y)[..., None]
    for _ in range(canvas.integer(4, 10)):
        radius = canvas.uniform(0.05, 0.13)
        x, y = canvas.uniform(0, 1), canvas.uniform(0, horizon)
        colour = np.clip(canvas.lit(canvas.vary(wall, 0.10)) * 1.05, 0, 1)
        canvas.ellipse(x, y, radius, radius, colour, alpha=0.5, softness=radius * 0.7)
    if canvas.chance(0.4):
        x = canvas.uniform(0.05, 0.6)
        window = LIGHTS[canvas.time].jittered_stops(canvas.rng)[-1][1]
        canvas.rectangle(x, 0.05, x + 0.3, horizon - 0.1, window, alpha=0.6, radius=0.02)
    wood = canvas.pick(rgb(176, 120, 72), rgb(140, 92, 56), rgb(206, 160, 110), rgb(110, 74, 50))
    return horizon, canvas.vary(wood, 0.02)


def _paint_top(canvas: Canvas, horizon: float, colours: Array, wood: Array) -> None:
    lit = np.clip(colours * (0.88 + 0.22 * canvas.y)[..., None], 0, 1)
    canvas.cover(canvas.below(horizon), lit)
    edge = canvas.lit(wood * 1.2)
    canvas.rectangle(0, horizon - 0.004, 1, horizon + 0.006, edge, alpha=0.5)
    canvas.zones = Zones(ground=(0.76, 0.92), sky=(0.1, 0.4))


def paint_stage(canvas: Canvas) -> None:
    """Boards in front of a curtain, two beams of light."""
    curtain = canvas.pick(rgb(150, 20, 36), rgb(60, 30, 110), rgb(24, 60, 120))
    curtain = canvas.vary(curtain, 0.02)
    horizon = canvas.uniform(0.66, 0.72)
    canvas.horizon = horizon
    canvas.ambient = np.array((0.95, 0.92, 0.9), np.float32)
    canvas.haze = curtain * 0.4
    phase = canvas.x * 46 + canvas.uniform(0, 6) + 0.6 * np.sin(canvas.x * 9)
    folds = np.sin(phase) * 0.5 + 0.5
    shade = (1.0 - 0.35 * canvas.y)[..., None]
    canvas.image[:] = curtain * (0.35 + 0.65 * folds)[..., None] * shade
    _, sideways = ground_plane(canvas, horizon - 0.3)
    gaps = 1 - 0.25 * ((sideways * 6) % 1 < 0.05)
    boards = rgb(120, 78, 48) * gaps[..., None] * canvas.grain("wood", 0.05)
    canvas.cover(canvas.below(horizon), np.clip(boards, 0, 1))
    for x in (canvas.uniform(0.2, 0.4), canvas.uniform(0.6, 0.8)):
        aside = (canvas.x - x - (0.5 - x) * canvas.y) / (0.06 + 0.24 * canvas.y)
        beam = np.exp(-(aside**2)) * 0.28
        canvas.image += beam[..., None] * rgb(255, 240, 200)
    pool = rgb(255, 236, 190)
    canvas.ellipse(0.5, 0.88, 0.42, 0.09, pool, alpha=0.35, softness=0.12)
    np.clip(canvas.image, 0, 1, out=canvas.image)
    canvas.zones = Zones(ground=(0.82, 0.94), sky=(0.1, 0.4))
