"""The surface of seas, lakes and rivers, with waves in perspective and the glint of the sun."""

from typing import Any

import numpy as np

from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.colour import Array, mix, rgb, smoothstep
from ciar_train.scenes.terrain import ground_plane, noise_at


def paint_water(
    canvas: Canvas,
    horizon: float,
    near: Any,
    far: Any,
    *,
    shore: Array | None = None,
    waves: float = 0.10,
) -> None:
    """Water from y = `horizon` down to the line `shore` [size], or to the lower edge."""
    mask = canvas.below(horizon)
    if shore is not None:
        mask = mask * (1 - canvas.below(shore))
    down = np.clip((canvas.y - horizon) / (1 - horizon), 0, 1)[..., None] ** 0.7
    colour = mix(mix(canvas.lit(far), canvas.haze, 0.35), canvas.lit(near), down)
    distance, sideways = ground_plane(canvas, horizon)
    wave = noise_at(canvas, "water", sideways * 0.5 + 3, np.minimum(distance, 40) * 0.22)
    wave = wave * np.clip(1.5 / np.minimum(distance, 7), 0.25, 1)
    colour = colour * (1 + waves * wave[..., None])
    crests = smoothstep(1.2, 2.2, wave)[..., None] * 0.35
    brightness = 0.5 if canvas.time in ("night", "rain") else 1
    colour = mix(colour, mix(canvas.haze, rgb(255, 255, 255), 0.4), crests * brightness)
    if canvas.sun_position is not None:
        aside = (canvas.x - canvas.sun_position[0]) / (0.05 + 0.10 * down[..., 0])
        strength = 0.4 if canvas.time == "day" else 0.75
        glint = np.exp(-(aside**2)) * smoothstep(0.1, 1.4, wave + 0.4) * strength
        colour = mix(colour, canvas.sun_colour, np.clip(glint, 0, 1)[..., None])
    canvas.cover(mask, np.clip(colour, 0, 1))
