"""Weather in front of the things: fog, rain, falling snow."""

import numpy as np
from PIL import Image, ImageDraw

from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.colour import rgb, smoothstep


def paint_fog(canvas: Canvas) -> None:
    """A veil, thicker towards the horizon."""
    thickness = 0.30 + 0.35 * smoothstep(1.0, 0.3, canvas.y)
    drifts = np.clip(1 + 0.25 * canvas.noise("soft"), 0.5, 1.3)
    canvas.cover(thickness * drifts * 0.8, rgb(222, 225, 227))


def paint_rain(canvas: Canvas) -> None:
    """Slanting streaks."""
    scale = 2 * canvas.size  # drawn at twice the size
    xs = canvas.rng.random(130) * 1.1 - 0.05
    ys = canvas.rng.random(130) * 1.1 - 0.1
    streaks = Image.new("L", (scale, scale))
    drawing = ImageDraw.Draw(streaks)
    for x, y in zip(xs, ys, strict=True):
        length = 0.05 * canvas.rng.uniform(0.6, 1.5)
        drawing.line(
            [(x * scale, y * scale), ((x - length * 0.25) * scale, (y + length) * scale)],
            fill=int(canvas.rng.uniform(70, 170)),
            width=max(1, canvas.size // 128),
        )
    mask = np.asarray(streaks.reduce(2), np.float32) / 255
    canvas.cover(mask * 0.75, rgb(220, 228, 238))


def paint_snowfall(canvas: Canvas) -> None:
    """Soft flakes."""
    for _ in range(canvas.integer(40, 90)):
        radius = canvas.rng.uniform(0.004, 0.011)
        x, y = canvas.rng.random(), canvas.rng.random()
        alpha = canvas.uniform(0.6, 1)
        canvas.ellipse(x, y, radius, radius, rgb(255, 255, 255), alpha=alpha, softness=radius * 0.8)
