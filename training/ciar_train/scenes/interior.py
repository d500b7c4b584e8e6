"""What rooms are made of: wall and floor, window, picture, lamp."""

from typing import Any

import numpy as np

from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.colour import Array, rgb
from ciar_train.scenes.lights import LIGHTS
from ciar_train.scenes.terrain import ground_plane, noise_at


def board_tone(index: Array, *, phase: float = 4.0) -> Array:
    """A number from 0 to 1 for each floor board or plank: the usual hash by a large sine."""
    tone: Array = (np.sin(index * 12.9898 + phase) * 43758.5453) % 1
    return tone


def light_room(canvas: Canvas, horizon: float, wall: Array) -> None:
    """Set the light of the room at its time of day; distance fades into the wall."""
    canvas.horizon = horizon
    canvas.ambient = np.array(LIGHTS[canvas.time].room, np.float32)
    canvas.haze = wall


def paint_wall(canvas: Canvas, horizon: float, wall: Array) -> None:
    """A wall with stripes, dots or neither."""
    light_room(canvas, horizon, wall)
    canvas.haze = wall * canvas.ambient
    shade = (1.04 - 0.10 * canvas.y)[..., None]
    canvas.image[:] = canvas.lit(wall) * shade * canvas.grain("soft", 0.008)
    pattern = canvas.rng.random()
    if pattern < 0.25:
        stripes = np.sin(canvas.x * 2 * np.pi * canvas.integer(9, 18)) > 0
        canvas.image *= (1 - 0.05 * stripes)[..., None]
    elif pattern < 0.4:
        n = canvas.integer(8, 14)
        column = np.floor(canvas.x * n)
        row = (canvas.y * n + 0.5 * (column % 2)) % 1
        distance = np.hypot((canvas.x * n) % 1 - 0.5, row - 0.5)
        canvas.image *= (1 - 0.07 * (distance < 0.16))[..., None]


def paint_floor(canvas: Canvas, horizon: float, floor: Array) -> None:
    """A floor of colours that broadcast to the picture, with the skirting board."""
    mask = canvas.below(horizon)
    canvas.cover(mask, np.clip(floor * (0.86 + 0.2 * canvas.y)[..., None], 0, 1))
    skirting = canvas.lit(rgb(246, 244, 240))
    canvas.rectangle(0, horizon - 0.022, 1, horizon + 0.006, skirting)


def wooden_floor(canvas: Canvas, horizon: float) -> Array:
    """Boards that run towards the horizon: colours [size, size, 3]."""
    distance, sideways = ground_plane(canvas, horizon - 0.28)
    wood = canvas.pick(rgb(186, 134, 86), rgb(160, 108, 66), rgb(206, 162, 112))
    wood = canvas.lit(canvas.vary(wood, 0.02))
    boards = sideways * 5.5
    index = np.floor(boards)
    tone = 0.92 + 0.16 * board_tone(index)
    along = np.minimum(distance, 9) * 0.5
    grain = noise_at(canvas, "grass", sideways * 2 + 9, along)
    colours = wood * tone[..., None] * (1 + 0.05 * grain[..., None])
    gaps: Array = colours * (1 - 0.25 * (boards - index < 0.04))[..., None]
    return gaps


def tiled_floor(canvas: Canvas, horizon: float) -> Array:
    """A chequerboard of tiles: colours [size, size, 3]."""
    distance, sideways = ground_plane(canvas, horizon - 0.28)
    tile = canvas.lit(canvas.pick(rgb(226, 228, 230), rgb(214, 206, 194)))
    is_dark = (np.floor(sideways * 6) + np.floor(distance * 6)) % 2
    tiles: Array = tile * (1 - 0.32 * is_dark)[..., None]
    return tiles


def paint_window(canvas: Canvas, x: float, y: float, width: float, height: float) -> None:
    """A window onto the time of day, often with curtains."""
    light = LIGHTS[canvas.time]
    stops = light.jittered_stops(canvas.rng)
    frame = rgb(250, 248, 244) * canvas.ambient
    paint = np.clip(frame, 0, 1)
    right, bottom = x + width, y + height
    canvas.rectangle(x - 0.012, y - 0.012, right + 0.012, bottom + 0.012, paint)
    window = canvas.window(x, y, right, bottom)
    assert window is not None, "the window stands inside the picture"
    down = (canvas.y[window[0]][:, 0] - y) / height
    places = [place for place, _ in stops]
    channels = [np.interp(down, places, [c[k] for _, c in stops]) for k in range(3)]
    canvas.image[window] = np.stack(channels, -1)[:, None].astype(np.float32)
    if canvas.time == "night":
        for _ in range(8):
            star_x = canvas.uniform(x + 0.01, right - 0.01)
            star_y = canvas.uniform(y + 0.01, y + height * 0.8)
            size = 1 / canvas.size
            canvas.ellipse(star_x, star_y, size, size, rgb(255, 255, 230), alpha=0.8)
    lawn = canvas.window(x, y + height * canvas.uniform(0.65, 0.8), right, bottom)
    if lawn is not None:
        landscape = np.array(light.landscape, np.float32)
        canvas.image[lawn] = np.clip(rgb(104, 168, 84) * landscape, 0, 1)
    middle, cross = x + width / 2, y + height / 2
    canvas.rectangle(middle - 0.006, y, middle + 0.006, bottom, paint)
    canvas.rectangle(x, cross - 0.006, right, cross + 0.006, paint)
    sill = np.clip(frame * 0.95, 0, 1)
    canvas.rectangle(x - 0.025, bottom + 0.01, right + 0.025, bottom + 0.03, sill)
    if canvas.chance(0.6):
        _paint_curtains(canvas, x, y, right, bottom)


def _paint_curtains(canvas: Canvas, x: float, y: float, right: float, bottom: float) -> None:
    colour = canvas.pick(
        rgb(200, 90, 80), rgb(90, 130, 180), rgb(230, 200, 140), rgb(130, 170, 130)
    )
    cloth = canvas.lit(canvas.vary(colour, 0.03))
    for left in (x - 0.04, right - 0.03):
        canvas.rectangle(left, y - 0.03, left + 0.07, bottom + 0.05, cloth, radius=0.008)
        for fold in (0.02, 0.045):
            dark = cloth * 0.85
            canvas.rectangle(left + fold, y - 0.02, left + fold + 0.006, bottom + 0.05, dark)
    rod = canvas.lit(rgb(120, 90, 60))
    canvas.rectangle(x - 0.06, y - 0.04, right + 0.06, y - 0.025, rod)


def paint_picture(canvas: Canvas, x: float, y: float, width: float, height: float) -> None:
    """A framed landscape on the wall."""
    frame = canvas.pick(rgb(120, 84, 50), rgb(40, 40, 44), rgb(214, 180, 110))
    canvas.rectangle(x, y, x + width, y + height, canvas.lit(frame))
    left, top, right, bottom = x + 0.014, y + 0.014, x + width - 0.014, y + height - 0.014
    sky = canvas.pick(rgb(150, 190, 220), rgb(230, 190, 150), rgb(240, 236, 226))
    canvas.rectangle(left, top, right, bottom, canvas.lit(canvas.vary(sky, 0.05)))
    hills = [
        (left, bottom),
        (x + width * 0.4, y + height * 0.45),
        (x + width * 0.65, y + height * 0.7),
        (x + width * 0.8, y + height * 0.55),
        (right, bottom),
    ]
    canvas.polygon(hills, canvas.lit(canvas.vary(rgb(90, 140, 100), 0.06)))


def paint_lampshade(
    canvas: Canvas, outline: list[tuple[float, float]], colour: Any, *, night: float
) -> None:
    """A lampshade, `night` times as bright after dark."""
    brightness = night if canvas.time == "night" else 1
    canvas.polygon(outline, np.clip(canvas.lit(colour) * brightness, 0, 1))


def paint_tiles(canvas: Canvas, wall: Array) -> None:
    """A wall of small square tiles, each a little lighter or darker."""
    canvas.image[:] = canvas.lit(wall)
    n = canvas.integer(9, 14)
    columns, rows = canvas.x * n, canvas.y * n
    is_joint = (columns % 1 < 0.07) | (rows % 1 < 0.07)
    canvas.image *= (1 - 0.08 * is_joint)[..., None]
    tone = (np.sin(np.floor(columns) * 12.98 + np.floor(rows) * 78.2) * 43758.5) % 1
    canvas.image *= (1 + 0.04 * (tone - 0.5))[..., None]
