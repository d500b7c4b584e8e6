"""Land forms: hills, mountains and the ground that recedes to the horizon."""

from typing import Any

import numpy as np

from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.colour import Array, mix, rgb, smoothstep
from ciar_train.scenes.noise import noise_field


def wavy_line(
    canvas: Canvas, base: float, height: float, *, waves: float = 1.5, roughness: float = 0.0
) -> Array:
    """A line [size] of y around `base`, the sum of three sines with random phases."""
    x = canvas.x[0]
    y = np.full(canvas.size, base, np.float32)
    for k in range(3):
        phase = 2 * np.pi * (waves * (1.7**k) * x + canvas.rng.random())
        y += np.float32(height / (k + 1)) * np.sin(phase).astype(np.float32) * np.float32(0.6)
    if roughness:
        y += roughness * canvas.noise("fine")[0] * 0.4
    return y


def paint_hill(
    canvas: Canvas,
    base: float,
    height: float,
    colour: Any,
    *,
    waves: float = 1.3,
    texture: str = "grass",
    grain: float = 0.06,
    haze: float = 0,
    darkening: float = 0.75,
    depth: float = 0.4,
    roughness: float = 0.0,
) -> Array:
    """Everything below a wavy line, darker downwards until `depth`; returns the line [size]."""
    line = wavy_line(canvas, base, height, waves=waves, roughness=roughness)
    mask = canvas.below(line)
    near = mix(canvas.lit(colour), canvas.haze, haze)
    down = np.clip((canvas.y - line[None]) / depth, 0, 1)[..., None]
    shaded = mix(near * 1.08, near * darkening, down)
    shaded = shaded * (1 + grain * (1 - haze) * canvas.noise(texture)[..., None])
    canvas.cover(mask, np.clip(shaded, 0, 1))
    return line


def _ridge(canvas: Canvas, *, halvings: int = 9, roughness: float = 0.55) -> Array:
    """A jagged line [size] from 0 to 1 by moving midpoints up and down."""
    y = np.array([0.0, 0.0])
    spread = 1.0
    for _ in range(halvings):
        middles = (y[:-1] + y[1:]) / 2 + canvas.rng.normal(0, spread, len(y) - 1) * 0.5
        finer = np.empty(len(y) + len(middles))
        finer[0::2] = y
        finer[1::2] = middles
        y = finer
        spread *= roughness
    y = np.interp(np.linspace(0, 1, canvas.size), np.linspace(0, 1, len(y)), y)
    line: Array = ((y - y.min()) / (np.ptp(y) + 1e-6)).astype(np.float32)
    return line


def paint_mountains(
    canvas: Canvas,
    base: float,
    height: float,
    colour: Any,
    *,
    has_snow: bool = True,
    haze: float = 0.2,
) -> None:
    """A range with its feet at y = `base`, lit from one side, white above a snow line."""
    line = base - height * (0.25 + 0.75 * _ridge(canvas))
    depth = canvas.y - line[None]
    faces = _rock_faces(canvas, depth)
    shade = np.clip(0.5 + faces * 0.45, 0, 1)[..., None]
    rock = canvas.lit(colour)
    painted = mix(rock * 0.62, rock * 1.12, shade)
    if has_snow:
        snow_depth = height * canvas.uniform(0.22, 0.42)
        ragged = depth + 0.018 * faces * (height / 0.3)
        snow_mask = smoothstep(snow_depth * 1.1, snow_depth * 0.7, ragged)
        in_shade, in_light = canvas.lit(rgb(170, 190, 220)), canvas.lit(rgb(252, 253, 255))
        snow = mix(in_shade, in_light, smoothstep(0.35, 0.6, shade))
        painted = mix(painted, snow, snow_mask[..., None])
    mist = haze + 0.25 * np.clip(depth / height, 0, 1)[..., None]
    painted = mix(painted, canvas.haze, mist)
    canvas.cover(canvas.below(line), np.clip(painted, 0, 1))


def _rock_faces(canvas: Canvas, depth: Array) -> Array:
    """Light and shade [size, size] that runs down the slopes: a line of noise, sheared."""
    size = canvas.size
    field = noise_field("mid", size)
    offset = int(canvas.rng.integers(size))
    sheared = (canvas.x + depth * 0.55 * canvas.pick(-1, 1)) * size
    columns = np.clip(sheared.astype(int), -size, 2 * size - 1) + offset
    faces: Array = field[(offset * 7) % (2 * size)][columns % (2 * size)]
    return faces + 0.35 * canvas.noise("mid")


def ground_plane(canvas: Canvas, horizon: float) -> tuple[Array, Array]:
    """Perspective of the plane below the horizon: distance [size, 1] and sideways [size, size].

    The distance is 1 at the lower edge and grows towards the horizon.
    """
    down = np.maximum(canvas.y - horizon, 0.5 / canvas.size) / (1 - horizon)
    distance = (1 / down).astype(np.float32)
    return distance, (canvas.x - 0.5) * distance


def noise_at(canvas: Canvas, kind: str, sideways: Array, distance: Array) -> Array:
    """Noise laid on a plane, from a random place of its field; at full strength always."""
    field = noise_field(kind, canvas.size)
    n = field.shape[0]
    row, column = canvas.rng.integers(n, size=2)
    rows = ((distance * canvas.size).astype(np.int32) + row) % n
    columns = ((sideways * canvas.size).astype(np.int32) + column) % n
    laid: Array = field[rows, columns]
    return laid
