"""Plants that are painted rather than taken from the atlas: conifers, flowers, grass, meadows."""

import math
from typing import Any

import numpy as np

from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.colour import mix, rgb
from ciar_train.scenes.sky import paint_sky
from ciar_train.scenes.terrain import paint_hill

_PETALS = (
    rgb(255, 240, 90),
    rgb(255, 255, 255),
    rgb(250, 120, 170),
    rgb(240, 70, 60),
    rgb(170, 110, 230),
)


def paint_conifers(
    canvas: Canvas, base: float, height: float, colour: Any, *, haze: float = 0.0
) -> None:
    """A far row of conifers with their feet at y = `base`."""
    x = canvas.x[0]
    y = np.full(canvas.size, base, np.float32)
    for _ in range(26):
        centre = canvas.rng.random() * 1.1 - 0.05
        top = height * canvas.uniform(0.55, 1.1)
        width = top * canvas.uniform(0.22, 0.32)
        rise = np.clip(1 - np.abs(x - centre) / width, 0, 1)
        branches = (rise * 4 % 1) * 0.12
        y = np.minimum(y, base - top * np.clip(rise - branches, 0, 1))
    faded = mix(canvas.lit(colour), canvas.haze, haze)
    mask = canvas.below(y)
    canvas.cover(mask, faded * canvas.grain("fine", 0.05))


def paint_flowers(canvas: Canvas, count: int, top: float, bottom: float) -> None:
    """Small flowers, larger towards the front."""
    for y in np.sort(canvas.rng.uniform(top, bottom, count)):
        radius = (0.006 + 0.012 * (y - canvas.horizon)) * canvas.uniform(0.7, 1.3)
        x = canvas.rng.random()
        colour = canvas.lit(canvas.pick(*_PETALS))
        for k in range(4):
            angle = k * 1.57 + 0.4
            petal_x, petal_y = x + radius * math.cos(angle), y + radius * math.sin(angle)
            canvas.ellipse(petal_x, petal_y, radius * 0.8, radius * 0.8, colour)
        canvas.ellipse(x, y, radius * 0.6, radius * 0.6, canvas.lit(rgb(250, 200, 60)))


def paint_tufts(canvas: Canvas, count: int, top: float, bottom: float, colour: Any) -> None:
    """Tufts of three blades of grass, larger towards the front."""
    for y in np.sort(canvas.rng.uniform(top, bottom, count)):
        x = canvas.rng.random()
        height = (0.02 + 0.05 * (y - canvas.horizon)) * canvas.uniform(0.7, 1.3)
        shade = canvas.lit(canvas.vary(colour, 0.04))
        for k in range(3):
            lean = (k - 1) * height * 0.45
            left, right = x - height * 0.12 + lean * 0.3, x + height * 0.12 + lean * 0.3
            tip = (x + lean, y - height * canvas.uniform(0.7, 1))
            canvas.polygon([(left, y), (right, y), tip], shade)


def paint_grassland(canvas: Canvas, horizon: float) -> None:
    """Sky, two rows of far hills and a near meadow."""
    paint_sky(canvas, horizon)
    green = canvas.pick(rgb(112, 178, 68), rgb(92, 165, 72), rgb(134, 186, 74))
    near = canvas.vary(green, 0.025)
    far, middle = mix(near, rgb(70, 130, 110), 0.35), mix(near, rgb(60, 130, 80), 0.2)
    paint_hill(canvas, horizon - 0.02, 0.04, far, waves=1.1, haze=0.45)
    paint_hill(canvas, horizon + 0.01, 0.03, middle, waves=1.5, haze=0.2)
    paint_hill(canvas, horizon + 0.05, 0.02, near, waves=0.8, darkening=0.72, depth=0.5, grain=0.07)
