"""Times of day and weathers: the colours of the sky, its clouds, and the light on things."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ciar_train.scenes.colour import Array, rgb

Colour: TypeAlias = tuple[float, float, float]
Stops: TypeAlias = Sequence[tuple[float, Array]]  # place from 0, the top, to 1; colour there


@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """How one time of day or weather looks. Colours are 0 to 1.

    Attributes:
        stops: the sky's colours from the zenith (0) to the horizon (1).
        landscape, objects, room: what the light multiplies the colours of each with.
        sun: the colour of sun or moon; `sun_chance` is that of the sun being painted.
        cloud_top, cloud_low: the lit and the shaded side of clouds.
        cloud_chance: that of clouds; `cloud_cover` is the least noise that is a cloud, None is
            random.
    """

    stops: Stops
    landscape: Colour
    objects: Colour
    room: Colour
    sun: Array
    cloud_top: Array
    cloud_low: Array
    cloud_chance: float
    cloud_cover: float | None = None
    sun_chance: float | None = None

    def jittered_stops(self, rng: np.random.Generator) -> Stops:
        """The sky's colours, all shifted by one small random amount. Draws three numbers."""
        shift = rng.normal(0, 0.018, 3).astype(np.float32)
        return [(place, np.clip(colour + shift, 0, 1)) for place, colour in self.stops]


LIGHTS: dict[str, Light] = {
    "day": Light(
        stops=[(0, rgb(58, 138, 224)), (0.6, rgb(132, 194, 245)), (1, rgb(208, 234, 250))],
        landscape=(1, 1, 1),
        objects=(1, 1, 1),
        room=(1, 1, 1),
        sun=rgb(255, 250, 224),
        cloud_top=rgb(255, 255, 255),
        cloud_low=rgb(190, 206, 226),
        cloud_chance=0.55,
        sun_chance=0.45,
    ),
    "morning": Light(
        stops=[(0, rgb(112, 158, 220)), (0.55, rgb(236, 196, 190)), (1, rgb(255, 228, 176))],
        landscape=(1.0, 0.92, 0.86),
        objects=(1.0, 0.95, 0.90),
        room=(1, 0.97, 0.92),
        sun=rgb(255, 240, 196),
        cloud_top=rgb(255, 236, 222),
        cloud_low=rgb(222, 176, 180),
        cloud_chance=0.6,
        sun_chance=0.7,
    ),
    "sunset": Light(
        stops=[
            (0, rgb(50, 46, 108)),
            (0.45, rgb(186, 82, 112)),
            (0.75, rgb(248, 138, 78)),
            (1, rgb(255, 208, 120)),
        ],
        landscape=(0.92, 0.70, 0.62),
        objects=(0.98, 0.80, 0.72),
        room=(1, 0.88, 0.78),
        sun=rgb(255, 226, 150),
        cloud_top=rgb(255, 190, 150),
        cloud_low=rgb(150, 78, 110),
        cloud_chance=0.65,
        sun_chance=0.85,
    ),
    "night": Light(
        stops=[(0, rgb(5, 9, 30)), (0.6, rgb(16, 28, 70)), (1, rgb(42, 60, 110))],
        landscape=(0.33, 0.40, 0.60),
        objects=(0.60, 0.65, 0.84),
        room=(0.62, 0.58, 0.60),
        sun=rgb(240, 242, 230),
        cloud_top=rgb(60, 72, 112),
        cloud_low=rgb(24, 32, 64),
        cloud_chance=0.3,
        cloud_cover=0.5,
    ),
    "cloudy": Light(
        stops=[(0, rgb(138, 150, 164)), (1, rgb(206, 211, 215))],
        landscape=(0.84, 0.86, 0.88),
        objects=(0.92, 0.93, 0.94),
        room=(0.93, 0.94, 0.95),
        sun=rgb(235, 235, 230),
        cloud_top=rgb(226, 229, 232),
        cloud_low=rgb(158, 166, 176),
        cloud_chance=1,
        cloud_cover=-0.5,
    ),
    "rain": Light(
        stops=[(0, rgb(86, 96, 110)), (1, rgb(150, 158, 166))],
        landscape=(0.66, 0.70, 0.76),
        objects=(0.80, 0.83, 0.87),
        room=(0.86, 0.88, 0.90),
        sun=rgb(200, 200, 200),
        cloud_top=rgb(140, 148, 158),
        cloud_low=rgb(74, 82, 96),
        cloud_chance=1,
        cloud_cover=-0.9,
    ),
    "snowfall": Light(
        stops=[(0, rgb(158, 170, 186)), (1, rgb(220, 226, 233))],
        landscape=(0.90, 0.93, 0.98),
        objects=(0.95, 0.97, 1.0),
        room=(0.97, 0.98, 1),
        sun=rgb(230, 230, 230),
        cloud_top=rgb(228, 232, 238),
        cloud_low=rgb(186, 194, 206),
        cloud_chance=0.8,
        cloud_cover=-0.4,
    ),
    "fog": Light(
        stops=[(0, rgb(188, 195, 201)), (1, rgb(222, 225, 226))],
        landscape=(0.90, 0.92, 0.94),
        objects=(0.95, 0.96, 0.97),
        room=(0.95, 0.95, 0.95),
        sun=rgb(235, 235, 232),
        cloud_top=rgb(235, 236, 237),
        cloud_low=rgb(205, 208, 211),
        cloud_chance=0.2,
    ),
}
SUNNY = ("day", "morning", "sunset")
