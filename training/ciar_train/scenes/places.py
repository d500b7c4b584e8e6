"""The places of the scenes: what paints them, when, and what they are called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ciar_train.scenes.canvas import Canvas
from ciar_train.scenes.places_country import (
    paint_farm,
    paint_garden,
    paint_meadow,
    paint_park,
    paint_picnic,
)
from ciar_train.scenes.places_rooms import (
    paint_bathroom,
    paint_bedroom,
    paint_kitchen,
    paint_living_room,
)
from ciar_train.scenes.places_sky import paint_moon, paint_open_sky, paint_space
from ciar_train.scenes.places_table import paint_stage, paint_table, paint_tablecloth
from ciar_train.scenes.places_town import (
    paint_city,
    paint_railway,
    paint_road,
    paint_stadium,
    paint_street,
)
from ciar_train.scenes.places_water import (
    paint_beach,
    paint_lake,
    paint_ocean,
    paint_river,
    paint_underwater,
)
from ciar_train.scenes.places_wild import (
    paint_autumn,
    paint_desert,
    paint_forest,
    paint_jungle,
    paint_mountain_meadow,
    paint_savanna,
    paint_snow,
)
from ciar_train.scenes.tables import read_toml

PLAIN = "plain"  # one colour without a place; painted by `paint_plain`, which needs the colour

_PAINTERS: Mapping[str, Callable[[Canvas], None]] = {
    "beach": paint_beach,
    "ocean": paint_ocean,
    "underwater": paint_underwater,
    "snow": paint_snow,
    "forest": paint_forest,
    "autumn": paint_autumn,
    "jungle": paint_jungle,
    "desert": paint_desert,
    "savanna": paint_savanna,
    "meadow": paint_meadow,
    "farm": paint_farm,
    "mountains": paint_mountain_meadow,
    "lake": paint_lake,
    "river": paint_river,
    "garden": paint_garden,
    "park": paint_park,
    "street": paint_street,
    "city": paint_city,
    "road": paint_road,
    "railway": paint_railway,
    "sky": paint_open_sky,
    "space": paint_space,
    "moon": paint_moon,
    "stadium": paint_stadium,
    "living room": paint_living_room,
    "bedroom": paint_bedroom,
    "kitchen": paint_kitchen,
    "bathroom": paint_bathroom,
    "table": paint_table,
    "tablecloth": paint_tablecloth,
    "picnic": paint_picnic,
    "stage": paint_stage,
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A background: an entry of places.toml, whose head explains the fields."""

    name: str
    kind: str
    times: tuple[str, ...]
    phrases: tuple[str, ...]
    titles: tuple[str, ...]
    over: tuple[str, ...] = ()
    over_sun: str | None = None
    on_water: tuple[str, ...] = ()
    by_water: tuple[str, ...] = ()
    untimed: str = "never"

    def paint(self, canvas: Canvas) -> None:
        """Paint an empty place; a plain one is painted by `paint_plain`."""
        _PAINTERS[self.name](canvas)


@cache
def all_places() -> Mapping[str, Place]:
    """Every place by its name, in the order of places.toml."""
    places = {}
    for name, entry in read_toml("places.toml").items():
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        places[name] = Place(name=name, **fields)
    return places


def place_names() -> tuple[str, ...]:
    """The names of all places."""
    return tuple(all_places())


def find_place(name: str) -> Place:
    """A place by its name."""
    return all_places()[name]
