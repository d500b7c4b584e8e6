"""The sky: its colours, sun, moon, stars and clouds, from the light of the time of day."""

import numpy as np

from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.colour import mix, rgb, smoothstep
from ciar_train.scenes.lights import LIGHTS, SUNNY


def paint_sky(
    canvas: Canvas,
    horizon: float,
    *,
    cloud_chance: float | None = None,
    has_sun: bool | None = None,
) -> None:
    """Fill the picture with sky down to y = `horizon`; None leaves a choice to the time of day."""
    canvas.horizon = horizon
    canvas.sun_position = None
    down = np.clip(canvas.y[:, 0] / horizon, 0, 1)
    places = [place for place, _ in canvas.stops]
    channels = [np.interp(down, places, [c[k] for _, c in canvas.stops]) for k in range(3)]
    canvas.image[:] = np.stack(channels, -1).astype(np.float32)[:, None]
    has_sun = has_sun if canvas.has_sun else False
    light = LIGHTS[canvas.time]
    if light.sun_chance is not None and (
        has_sun if has_sun is not None else canvas.chance(light.sun_chance)
    ):
        _paint_sun(canvas)
    if canvas.time == "night":
        paint_stars(canvas, horizon)
        if canvas.chance(0.7) and has_sun is not False:
            _paint_moon(canvas)
    if canvas.chance(light.cloud_chance if cloud_chance is None else cloud_chance):
        paint_clouds(canvas, horizon)


def _paint_sun(canvas: Canvas) -> None:
    is_day = canvas.time == "day"
    x = canvas.uniform(0.1, 0.9)
    y = canvas.uniform(0.08, 0.22) if is_day else canvas.horizon - canvas.uniform(0.02, 0.14)
    radius = canvas.uniform(0.035, 0.06) if is_day else canvas.uniform(0.04, 0.075)
    canvas.glow(x, y, radius * 5, canvas.sun_colour, alpha=0.38 if is_day else 0.55)
    canvas.glow(x, y, radius * 2, canvas.sun_colour, alpha=0.5)
    colour = np.clip(canvas.sun_colour * 1.05, 0, 1)
    canvas.ellipse(x, y, radius, radius, colour, softness=2.0 / canvas.size)
    canvas.sun_position = (x, y)


def _paint_moon(canvas: Canvas) -> None:
    x, y = canvas.uniform(0.1, 0.9), canvas.uniform(0.08, 0.24)
    radius = canvas.uniform(0.045, 0.08)
    canvas.glow(x, y, radius * 3.2, rgb(150, 170, 215), alpha=0.45)
    canvas.sun_position = (x, y)
    if canvas.chance(0.5):
        canvas.ellipse(x, y, radius, radius, canvas.sun_colour)
        return
    reach = radius * 1.2  # a crescent: one disc less another
    window = canvas.window(x - reach, y - reach, x + reach, y + reach)
    assert window is not None, "the moon stands inside the picture"
    dx, dy = canvas.x[:, window[1]] - x, canvas.y[window[0]] - y
    disc = np.hypot(dx, dy) - radius
    bite = np.hypot(dx - radius * 0.5, dy + radius * 0.15) - radius * 0.92
    mask = np.clip(0.5 - disc * canvas.size, 0, 1) * np.clip(0.5 + bite * canvas.size, 0, 1)
    canvas.blend(window, mask, canvas.sun_colour)


def paint_stars(canvas: Canvas, bottom: float, *, count: int | None = None) -> None:
    """Stars down to y = `bottom`, the brightest of them with a halo."""
    size = canvas.size
    n = count or int(canvas.uniform(60, 140))
    xs = canvas.rng.random(n)
    ys = canvas.rng.random(n) ** 1.2 * bottom
    brightness = canvas.rng.random(n) ** 2 * 0.8 + 0.2
    columns = np.minimum((xs * size).astype(int), size - 1)
    rows = np.minimum((ys * size).astype(int), size - 1)
    colours = (brightness[:, None] * np.array([1, 0.98, 0.92])).astype(np.float32)
    np.maximum.at(canvas.image, (rows, columns), colours)
    core, halo = 1.1 / size, 3 / size
    for k in np.argsort(-brightness)[: n // 14]:
        canvas.ellipse(xs[k], ys[k], core, core, rgb(255, 252, 235), alpha=0.9)
        canvas.ellipse(xs[k], ys[k], halo, halo, rgb(180, 200, 255), alpha=0.25, softness=halo)


def paint_clouds(canvas: Canvas, horizon: float) -> None:
    """Clouds above y = `horizon`: heaps of discs, or a veil of noise."""
    if canvas.time in SUNNY and canvas.chance(0.5):
        for _ in range(canvas.integer(2, 5)):
            _paint_heap(canvas, horizon)
        return
    light = LIGHTS[canvas.time]
    noise = canvas.noise("cloud")
    random_cover = canvas.uniform(0.2, 0.8)
    cover = random_cover if light.cloud_cover is None else light.cloud_cover
    fade = np.clip(1.15 - canvas.y / horizon, 0, 1) ** 0.5
    mask = smoothstep(cover, cover + 1.1, noise) * fade * 0.92
    slope = noise - np.roll(noise, -max(1, canvas.size // 32), 0)
    shade = np.clip(slope * 0.9 + 0.5, 0, 1)[..., None]
    canvas.cover(mask, mix(light.cloud_low, light.cloud_top, shade))


def _paint_heap(canvas: Canvas, horizon: float) -> None:
    """One cumulus cloud: discs in a row, each with a shaded one below."""
    light = LIGHTS[canvas.time]
    x, y = canvas.uniform(-0.05, 1.05), canvas.uniform(0.04, max(0.08, horizon * 0.72))
    width = canvas.uniform(0.07, 0.17)
    n = canvas.integer(4, 8)
    offsets = np.linspace(-1, 1, n) + canvas.rng.normal(0, 0.08, n)
    sizes = width * (0.28 + 0.30 * (1 - np.abs(offsets)) + canvas.rng.random(n) * 0.10)
    for colour, shift, scale in ((light.cloud_low, 0.012, 1.0), (light.cloud_top, -0.008, 0.94)):
        for offset, radius in zip(offsets, sizes, strict=True):
            canvas.ellipse(
                x + offset * width,
                y - radius * 0.35 + shift,
                radius * scale,
                radius * 0.78 * scale,
                colour,
                alpha=0.85,
                softness=0.014,
            )
