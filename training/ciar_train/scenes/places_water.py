"""Places by and in the water: beach, ocean, under water, lake, river."""

import math

import numpy as np

from ciar_train.scenes.canvas import Canvas, Zones
from ciar_train.scenes.colour import Array, mix, rgb, smoothstep
from ciar_train.scenes.plants import paint_conifers, paint_grassland
from ciar_train.scenes.sky import paint_sky
from ciar_train.scenes.terrain import paint_hill, paint_mountains, wavy_line
from ciar_train.scenes.water import paint_water


def paint_beach(canvas: Canvas) -> None:
    """Sea, a line of foam, sand, and now and then a palm tree."""
    horizon = canvas.uniform(0.36, 0.46)
    paint_sky(canvas, horizon)
    shore = wavy_line(canvas, canvas.uniform(0.57, 0.64), 0.03, waves=0.6)
    if canvas.chance(0.35):
        paint_hill(canvas, horizon, 0.03, rgb(90, 140, 100), waves=1.2, haze=0.45, depth=0.1)
    near = canvas.pick(rgb(52, 176, 200), rgb(40, 150, 190), rgb(60, 190, 190))
    paint_water(canvas, horizon, near, rgb(22, 98, 168), shore=shore + 0.02)
    sand = canvas.pick(rgb(240, 214, 158), rgb(232, 204, 150), rgb(246, 226, 180))
    sand = canvas.lit(canvas.vary(sand, 0.015))
    down = np.clip((canvas.y - shore[None]) / 0.4, 0, 1)[..., None]
    grain = 1 + 0.035 * canvas.noise("fine")[..., None] + 0.03 * canvas.noise("mid")[..., None]
    wet_to_dry = mix(sand * 0.93, sand, smoothstep(0.0, 0.3, down)) * grain
    canvas.cover(canvas.below(shore + 0.012), np.clip(wet_to_dry, 0, 1))
    edge = shore + 0.012 * canvas.noise("fine")[0] * 0.5
    foam = np.exp(-(((canvas.y - edge[None] - 0.008) / 0.011) ** 2))
    canvas.cover(foam * 0.85, canvas.lit(rgb(255, 255, 255)))
    if canvas.chance(0.35):
        x = canvas.pick(canvas.uniform(0.02, 0.14), canvas.uniform(0.86, 0.98))
        canvas.sprite("🌴", x, canvas.uniform(0.66, 0.8), canvas.uniform(0.42, 0.6))
    canvas.zones = Zones(ground=(0.70, 0.96), sky=(0.06, horizon), water=(horizon + 0.08, 0.56))


def paint_ocean(canvas: Canvas) -> None:
    """The open sea, with far land now and then."""
    horizon = canvas.uniform(0.38, 0.5)
    paint_sky(canvas, horizon)
    if canvas.chance(0.25):
        land = rgb(80, 120, 110)
        paint_hill(canvas, horizon + 0.005, 0.035, land, waves=1.6, haze=0.5, depth=0.1)
    near = canvas.pick(rgb(18, 92, 150), rgb(20, 110, 160), rgb(30, 120, 150))
    paint_water(canvas, horizon, near, rgb(30, 110, 175), waves=0.16)
    canvas.zones = Zones(ground=None, sky=(0.06, horizon - 0.05), water=(horizon + 0.16, 0.93))


def paint_underwater(canvas: Canvas) -> None:
    """Shafts of light, a sandy bottom with weeds and corals, bubbles."""
    top, bottom = canvas.pick(
        (rgb(70, 195, 225), rgb(8, 50, 110)),
        (rgb(90, 215, 210), rgb(6, 70, 100)),
        (rgb(50, 150, 230), rgb(8, 30, 90)),
    )
    if canvas.time == "night":
        top, bottom = top * 0.35, bottom * 0.45
    canvas.image[:] = mix(top, bottom, (canvas.y**0.9)[..., None])
    canvas.horizon = 0.3
    for _ in range(canvas.integer(4, 8)):
        _paint_shaft(canvas)
    sea_bed = wavy_line(canvas, canvas.uniform(0.82, 0.88), 0.025, waves=1.2)
    sand = mix(rgb(226, 206, 150), bottom, 0.45)
    if canvas.time == "night":
        sand = sand * 0.5
    canvas.cover(canvas.below(sea_bed), sand * canvas.grain("fine", 0.05))
    for _ in range(canvas.integer(3, 8)):
        _paint_weed(canvas, bottom)
    if canvas.chance(0.6):
        x, height = canvas.uniform(0.05, 0.95), canvas.uniform(0.1, 0.18)
        canvas.sprite("🪸", x, 0.93, height, ambient=(0.7, 0.85, 0.95))
    for _ in range(canvas.integer(5, 20)):
        radius = canvas.uniform(0.005, 0.016)
        x, y = canvas.uniform(0, 1), canvas.uniform(0.05, 0.85)
        canvas.ellipse(x, y, radius, radius, rgb(220, 245, 255), alpha=0.45)
        gleam, shift = radius * 0.35, radius * 0.3
        canvas.ellipse(x - shift, y - shift, gleam, gleam, rgb(255, 255, 255), alpha=0.8)
    np.clip(canvas.image, 0, 1, out=canvas.image)
    canvas.zones = Zones(
        ground=(0.86, 0.97), sky=(0.1, 0.8), water=(0.35, 0.85), floating=(0.15, 0.85)
    )


def _paint_shaft(canvas: Canvas) -> None:
    x, width = canvas.uniform(-0.1, 1.1), canvas.uniform(0.02, 0.07)
    slant = canvas.uniform(-0.35, 0.35)
    aside = (canvas.x - x - slant * canvas.y) / (width * (1 + canvas.y))
    fade = np.clip(1 - canvas.y * 1.1, 0, 1)
    mask = np.exp(-(aside**2)) * fade * canvas.uniform(0.15, 0.3)
    canvas.image += mask[..., None] * rgb(210, 245, 255)


def _paint_weed(canvas: Canvas, water: Array) -> None:
    x, height = canvas.uniform(0, 1), canvas.uniform(0.08, 0.26)
    colour = canvas.pick(rgb(40, 140, 80), rgb(60, 160, 70), rgb(150, 60, 110), rgb(230, 110, 90))
    width, phase = canvas.uniform(0.008, 0.018), canvas.uniform(0, 6)

    def edge(t: float, side: int) -> tuple[float, float]:
        sway = 0.03 * math.sin(phase + 5 * t) * t
        return x + sway + side * width * (1 - t), 0.9 - height * t

    up, down = np.linspace(0, 1, 14), np.linspace(1, 0, 14)
    outline = [edge(t, -1) for t in up] + [edge(t, 1) for t in down]
    canvas.polygon(outline, mix(colour, water, 0.25))


def paint_lake(canvas: Canvas) -> None:
    """Still water that mirrors mountains and conifers, with a grassy shore in front."""
    horizon = canvas.uniform(0.42, 0.5)
    paint_sky(canvas, horizon)
    if canvas.chance(0.6):
        height = canvas.uniform(0.16, 0.28)
        paint_mountains(canvas, horizon + 0.005, height, rgb(112, 122, 140), haze=0.32)
    trees = canvas.uniform(0.05, 0.1)
    paint_conifers(canvas, horizon + 0.008, trees, rgb(44, 92, 70), haze=0.15)
    row = int(horizon * canvas.size)
    mirrored = canvas.image[:row][::-1].copy()
    shore = wavy_line(canvas, canvas.uniform(0.80, 0.86), 0.03, waves=0.7)
    paint_water(canvas, horizon, rgb(40, 116, 140), rgb(70, 140, 160), waves=0.07)
    rows = min(len(mirrored), canvas.size - row)
    share = np.linspace(0.55, 0.12, rows).astype(np.float32)[:, None, None]
    surface = canvas.image[row : row + rows]
    canvas.image[row : row + rows] = mix(surface, mirrored[:rows], share)
    grass = canvas.lit(canvas.vary(rgb(116, 160, 72), 0.02))
    canvas.cover(canvas.below(shore), grass * canvas.grain("grass", 0.07))
    canvas.zones = Zones(
        ground=(0.86, 0.97), sky=(0.06, horizon - 0.15), water=(horizon + 0.14, 0.80)
    )


def paint_river(canvas: Canvas) -> None:
    """A river that winds towards the viewer through a meadow."""
    horizon = canvas.uniform(0.42, 0.5)
    paint_grassland(canvas, horizon)
    bends = 0.16 * np.sin(canvas.y * 9 + canvas.uniform(0, 6)) * (1.2 - canvas.y)
    middle = 0.5 + bends + canvas.uniform(-0.05, 0.05)
    width = 0.025 + 0.38 * np.clip(canvas.y - horizon - 0.03, 0, 1) ** 1.25
    aside = np.abs(canvas.x - middle) - width
    is_ground = canvas.y > horizon + 0.04
    mask = smoothstep(1.5 / canvas.size, -1.5 / canvas.size, aside) * is_ground
    bank = smoothstep(0.012, 0, aside) * is_ground * 0.5
    canvas.cover(bank, canvas.lit(rgb(180, 160, 110)))
    water = canvas.lit(rgb(64, 150, 200)) * canvas.grain("water", 0.09)
    canvas.cover(mask, np.clip(mix(water, canvas.haze, 0.2), 0, 1))
    for _ in range(canvas.integer(1, 5)):
        tree = canvas.pick("🌳", "🌲")
        x = canvas.pick(canvas.uniform(0, 0.22), canvas.uniform(0.78, 1))
        base, height = horizon + canvas.uniform(0.05, 0.13), canvas.uniform(0.16, 0.3)
        canvas.sprite(tree, x, base, height, haze=0.1)
    canvas.zones = Zones(ground=(0.78, 0.96), sky=(0.06, horizon), water=(horizon + 0.3, 0.93))
