"""Places off the ground: the sky, outer space, the moon, and plain backgrounds."""

import numpy as np

from ciar_train.scenes.canvas import Canvas, Zones
from ciar_train.scenes.colour import Array, rgb, smoothstep
from ciar_train.scenes.sky import paint_clouds, paint_sky, paint_stars
from ciar_train.scenes.terrain import paint_hill

PLAIN_COLOURS: dict[str, Array] = {
    "white": rgb(250, 250, 250),
    "gray": rgb(150, 152, 156),
    "black": rgb(22, 22, 26),
    "red": rgb(214, 52, 48),
    "orange": rgb(245, 146, 52),
    "yellow": rgb(250, 214, 76),
    "green": rgb(84, 170, 92),
    "blue": rgb(62, 122, 210),
    "light blue": rgb(160, 208, 240),
    "purple": rgb(130, 86, 180),
    "pink": rgb(246, 164, 190),
    "brown": rgb(134, 92, 62),
}


def paint_open_sky(canvas: Canvas) -> None:
    """Nothing but sky, with clouds all over."""
    paint_sky(canvas, 1.05, cloud_chance=0)
    canvas.noise("cloud")  # unused: without this draw the known pictures would change
    if canvas.time in ("day", "morning", "sunset", "night") and canvas.chance(0.5):
        paint_clouds(canvas, 1.0)
    else:
        paint_clouds(canvas, 1.2)
    canvas.zones = Zones(ground=None, sky=(0.15, 0.85), floating=(0.2, 0.8))


def paint_space(canvas: Canvas) -> None:
    """Stars, nebulae, and often a planet at the edge."""
    black = canvas.pick(rgb(10, 8, 30), rgb(4, 6, 20), rgb(14, 6, 26))
    _leave_the_earth(canvas, haze=black)
    canvas.image[:] = black
    canvas.horizon = 0.5
    for _ in range(2):
        mask = smoothstep(0.1, 2.2, canvas.noise("soft")) * canvas.uniform(0.25, 0.6)
        nebula = canvas.pick(
            rgb(90, 40, 140), rgb(30, 70, 150), rgb(150, 40, 100), rgb(20, 110, 120)
        )
        canvas.cover(mask, nebula)
    paint_stars(canvas, 1.0, count=int(canvas.uniform(120, 240)))
    if canvas.chance(0.6):
        _paint_planet(canvas)
    canvas.zones = Zones(ground=None, sky=(0.15, 0.85), floating=(0.2, 0.8))


def _leave_the_earth(canvas: Canvas, *, haze: Array) -> None:
    """No time of day, no coloured light."""
    canvas.time = "space"
    canvas.ambient = np.ones(3, np.float32)
    canvas.haze = haze


def _paint_planet(canvas: Canvas) -> None:
    """A banded ball, lit from the upper left."""
    x = canvas.pick(canvas.uniform(0.05, 0.25), canvas.uniform(0.75, 0.95))
    y, radius = canvas.uniform(0.08, 0.9), canvas.uniform(0.08, 0.24)
    colour = canvas.pick(
        rgb(200, 120, 80),
        rgb(90, 140, 200),
        rgb(190, 170, 130),
        rgb(120, 180, 150),
        rgb(180, 110, 160),
    )
    window = canvas.window(x - radius, y - radius, x + radius, y + radius)
    assert window is not None, "the planet stands inside the picture"
    dx = (canvas.x[:, window[1]] - x) / radius
    dy = (canvas.y[window[0]] - y) / radius
    distance = np.sqrt(dx * dx + dy * dy)
    bands = 1 + 0.12 * canvas.noise("water")[window][..., None]
    towards_viewer = np.sqrt(np.clip(1 - distance * distance, 0, 1))
    light = np.clip(0.25 + 0.85 * (-dx * 0.6 - dy * 0.6 + towards_viewer * 0.6), 0.06, 1.1)
    mask = np.clip((1 - distance) * radius * canvas.size + 0.5, 0, 1)
    canvas.blend(window, mask, np.clip(colour * bands * light[..., None], 0, 1))


def paint_moon(canvas: Canvas) -> None:
    """Grey dust with craters under a black sky, the earth often above."""
    _leave_the_earth(canvas, haze=rgb(10, 10, 20))
    canvas.image[:] = rgb(4, 5, 14)
    horizon = canvas.uniform(0.5, 0.58)
    canvas.horizon = horizon
    paint_stars(canvas, horizon, count=130)
    if canvas.chance(0.7):
        x = canvas.pick(canvas.uniform(0.12, 0.3), canvas.uniform(0.7, 0.88))
        base, height = canvas.uniform(0.24, 0.34), canvas.uniform(0.14, 0.22)
        canvas.sprite("🌍", x, base, height, is_flipped=False)
    dust = rgb(176, 176, 182)
    paint_hill(canvas, horizon, 0.03, dust * 0.8, texture="mid", darkening=0.8)
    paint_hill(canvas, horizon + 0.1, 0.02, dust, waves=0.9, texture="mid")
    for _ in range(canvas.integer(6, 14)):
        y = canvas.uniform(horizon + 0.06, 0.98)
        radius = (y - horizon) * canvas.uniform(0.12, 0.3)
        x = canvas.rng.random()
        canvas.ellipse(x, y, radius, radius * 0.36, dust * 0.58)
        canvas.ellipse(x, y + radius * 0.07, radius * 0.9, radius * 0.28, dust * 0.78)
        canvas.ellipse(x, y - radius * 0.02, radius * 0.8, radius * 0.22, dust * 0.66)
    canvas.zones = Zones(ground=(0.74, 0.95), sky=(0.08, horizon - 0.1))


def paint_plain(canvas: Canvas, colour: str) -> None:
    """One colour, a little darker towards the corners."""
    shift = canvas.rng.normal(0, 0.012, 3).astype(np.float32)
    wall = np.clip(PLAIN_COLOURS[colour] + shift, 0, 1)
    canvas.time = "day"
    canvas.ambient = np.ones(3, np.float32)
    canvas.haze = wall
    canvas.horizon = 0.7
    corners = (canvas.x - 0.5) ** 2 + (canvas.y - 0.45) ** 2
    light = 1 + 0.05 * (0.5 - canvas.y) - 0.10 * corners
    canvas.image[:] = np.clip(wall * light[..., None], 0, 1)
    canvas.zones = Zones(ground=(0.80, 0.88), sky=(0.3, 0.6), floating=(0.4, 0.6), is_plain=True)
