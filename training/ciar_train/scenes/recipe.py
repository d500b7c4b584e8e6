"""What a set of scenes is made of: size, styles of artwork, vocabulary, times of day and seed.

A recipe and an index determine one scene. `Recipe()` allows everything; each field narrows it.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ciar.errors import InvalidInput

MAX_COUNT = 6


def _default_styles() -> dict[str, float]:
    return {"fluent3d": 0.40, "noto": 0.34, "twemoji": 0.14, "fluentflat": 0.12}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The choices behind a set of scenes.

    Attributes:
        size: width and height of the pictures, in pixels.
        styles: weight of each style of artwork; weights need not sum to one.
        nouns: the things that may appear, by their names in nouns.txt; None means all that the
            places suit.
        places: the backgrounds that may appear, by their names in places.toml; None means all.
        times: the times of day and weathers that may appear; None means all. A place that has
            none of them keeps its own first one (a stage has no sunset). Without `snowfall` it
            never snows, not by chance on a day in winter either.
        max_count: the most things of one kind in a picture, 1 to 6.
        two_objects: whether a picture may show two kinds of things.
        texture: strength of the texture of grass, sand, wood and water, 0 to 2. Less than 1 is
            easier for a small image tokenizer.
        num_backgrounds: how many backgrounds of every place, time and style a bank holds, 1 to 64.
        jitter: how much the colours of a background from a bank vary from picture to picture, as a
            share, 0 to 0.2.
        snap: things stand at multiples of this many pixels, and their heights are multiples of
            twice as many. With the side of a token, a thing is made of the same tokens wherever it
            stands, which a small model learns sooner. 1 leaves them where they are.
        tinted: share of the things that can have any colour (a car, a fish) which are recoloured.
        resized: share of the pictures of one kind of thing where it is called small or big, and is.
        mirrored: whether half of the things and of a bank's backgrounds are mirrored.
        seed: scenes of different seeds have nothing to do with each other.

    Raises:
        InvalidInput: a field is out of its range.
    """

    size: int = 128
    styles: Mapping[str, float] = field(default_factory=_default_styles)
    nouns: tuple[str, ...] | None = None
    places: tuple[str, ...] | None = None
    times: tuple[str, ...] | None = None
    max_count: int = MAX_COUNT
    two_objects: bool = True
    texture: float = 1.0
    num_backgrounds: int = 8
    jitter: float = 0.04
    snap: int = 1
    tinted: float = 0.42
    resized: float = 0.2
    mirrored: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("nouns", "places", "times"):
            object.__setattr__(self, name, _checked_names(name, getattr(self, name)))
        object.__setattr__(self, "styles", dict(self.styles))
        _check_range("size", self.size, 16, 1024, kind=int)
        _check_range("max_count", self.max_count, 1, MAX_COUNT, kind=int)
        _check_range("texture", self.texture, 0, 2)
        _check_range("num_backgrounds", self.num_backgrounds, 1, 64, kind=int)
        _check_range("jitter", self.jitter, 0, 0.2)
        _check_range("tinted", self.tinted, 0, 1)
        _check_range("resized", self.resized, 0, 1)
        _check_range("snap", self.snap, 1, self.size // 4, kind=int)
        _check_range("seed", self.seed, 0, 2**63 - 1, kind=int)
        if not isinstance(self.mirrored, bool):
            raise InvalidInput("mirrored", self.mirrored, "use true or false")
        if not self.styles:
            raise InvalidInput("styles", self.styles, "give at least one style a weight")
        for style, weight in self.styles.items():
            if not (isinstance(weight, int | float) and 0 < weight < math.inf):
                raise InvalidInput(f"styles.{style}", weight, "use a positive weight or leave out")

    @property
    def may_snow(self) -> bool:
        return self.times is None or "snowfall" in self.times

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Recipe":
        """A recipe from a table with the fields' names as keys, as TOML gives it.

        Raises:
            InvalidInput: a key is unknown or a value is out of its range.
        """
        known = [each.name for each in fields(cls)]
        for key in table:
            if key not in known:
                raise InvalidInput("recipe", key, f"unknown field, use {', '.join(known)}")
        return cls(**table)

    @classmethod
    def load(cls, path: Path | str, *, table: str | None = None) -> "Recipe":
        """A recipe from a TOML file, or from one table of it.

        Raises:
            InvalidInput: the table is missing or does not describe a recipe.
        """
        with open(path, "rb") as file:
            content: dict[str, Any] = tomllib.load(file)
        if table is None:
            return cls.from_table(content)
        if not isinstance(content.get(table), dict):
            raise InvalidInput("recipe", str(path), f"has no table [{table}]: add one")
        return cls.from_table(content[table])

    def to_table(self) -> dict[str, Any]:
        """The fields as TOML and JSON hold them: lists for tuples, nothing for None."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value is not None
        }


def _checked_names(field_name: str, names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str):
        raise InvalidInput(field_name, names, "is one string, use a list of names")
    checked = tuple(names)
    if not checked:
        raise InvalidInput(field_name, names, "is empty, name at least one or leave it out for all")
    return checked


def _check_range(
    field_name: str, value: float, lowest: float, highest: float, *, kind: type = float
) -> None:
    is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not is_number or not lowest <= value <= highest:
        what = "a whole number" if kind is int else "a number"
        raise InvalidInput(field_name, value, f"use {what} from {lowest} to {highest}")
