"""What a set of scenes is made of: size, artwork styles, vocabulary, times of day and seed.

A recipe and an index determine one scene, byte for byte, on every machine and with any number of
worker processes. `Recipe()` allows everything; each field narrows the choice.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

MAX_COUNT = 6
DEFAULT_STYLES: Mapping[str, float] = MappingProxyType(
    {"fluent3d": 0.40, "noto": 0.34, "twemoji": 0.14, "fluentflat": 0.12}
)


class RecipeError(ValueError):
    """A recipe that no scene can be drawn from: names the field, the value and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Choices behind a set of scenes; every field has a default that allows everything.

    Attributes:
        size: width and height of the pictures, in pixels.
        styles: weight of each artwork style; weights need not sum to one.
        nouns: the things that may appear, by their name in nouns.txt; None means all.
        places: the backgrounds that may appear; None means all.
        times: the times of day and weathers that may appear; None means all. A place that has
            none of them keeps its own first one (outer space has no sunset).
        max_count: the most things of one kind in a picture, 1 to 6.
        two_objects: whether a picture may show two kinds of things.
        texture: strength of grass, sand, wood and water texture; 1 is full. Less is easier for a
            small image tokenizer.
        seed: scenes of different seeds have nothing to do with each other.

    Raises:
        RecipeError: a field is out of its range.
    """

    size: int = 128
    styles: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_STYLES))
    nouns: tuple[str, ...] | None = None
    places: tuple[str, ...] | None = None
    times: tuple[str, ...] | None = None
    max_count: int = MAX_COUNT
    two_objects: bool = True
    texture: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("nouns", "places", "times"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise RecipeError(f"{name} = {value!r} is one string: write a list of names")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
            if value is not None and not value:
                raise RecipeError(f"{name} is empty: name at least one, or leave it out for all")
        object.__setattr__(self, "styles", dict(self.styles))
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not 16 <= self.size <= 1024:
            raise RecipeError(f"size = {self.size}: use 16 to 1024 pixels")
        if not 1 <= self.max_count <= MAX_COUNT:
            raise RecipeError(f"max_count = {self.max_count}: use 1 to {MAX_COUNT}")
        if not (math.isfinite(self.texture) and 0 <= self.texture <= 2):
            raise RecipeError(f"texture = {self.texture}: use 0 to 2 (1 is full strength)")
        if self.seed < 0:
            raise RecipeError(f"seed = {self.seed}: use 0 or more")
        if not self.styles:
            raise RecipeError("styles is empty: give at least one style a weight")
        for style, weight in self.styles.items():
            if not (math.isfinite(weight) and weight > 0):
                raise RecipeError(f"styles.{style} = {weight}: use a positive weight, or remove it")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Recipe":
        """A recipe from a TOML table with the fields' names as keys.

        Raises:
            RecipeError: a key is unknown or a value is out of its range.
        """
        known = [each.name for each in fields(cls)]
        for key in table:
            if key not in known:
                raise RecipeError(f"{key} is not a field of a recipe: use {', '.join(known)}")
        return cls(**table)

    @classmethod
    def load(cls, path: Path | str, *, table: str | None = None) -> "Recipe":
        """A recipe from a TOML file, or from one of its tables.

        Raises:
            RecipeError: the table is missing or does not describe a recipe.
        """
        with open(path, "rb") as file:
            content: dict[str, Any] = tomllib.load(file)
        if table is None:
            return cls.from_table(content)
        if not isinstance(content.get(table), dict):
            raise RecipeError(f"{path} has no table [{table}]: add one")
        return cls.from_table(content[table])

    def to_table(self) -> dict[str, Any]:
        """The fields as JSON and TOML can hold them: lists for tuples, nothing for None."""
        table = asdict(self)
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in table.items()
            if value is not None
        }
