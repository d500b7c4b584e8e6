"""What is in a picture, decided before anything is painted.

A plan depends on the recipe, the index and the split alone. Whatever a recipe forbids is left out
here, so that captions, which word the plan, cannot mention it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ciar.errors import InvalidInput
from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.colour import TINTS
from ciar_train.scenes.companions import companions, relations
from ciar_train.scenes.lights import LIGHTS
from ciar_train.scenes.nouns import Noun, Vocabulary, can_draw, home_of, own_times, place_weights
from ciar_train.scenes.places import PLAIN, find_place, place_names
from ciar_train.scenes.places_sky import PLAIN_COLOURS
from ciar_train.scenes.recipe import Recipe
from ciar_train.scenes.words import is_uncountable

Split = Literal["train", "test"]
MAX_ATTEMPTS = 10_000

_HELD_OUT_SHARE = 40  # one (noun, place) pair in so many is kept for the test split
_PLAIN_WEIGHTS = (6, 1.5, 1.5, 1, 1, 1.2, 1.2, 2, 1.5, 1, 1, 0.6)  # of PLAIN_COLOURS
_SETTLED = ("skier", "snowboarder")  # always at home
_NOT_ANYWHERE = ("sea", "ship", "personw", "sky", "rail")  # categories bound to their places


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One kind of thing in a picture: how many, and what the captions may say of it."""

    noun: str
    count: int = 1
    size: Literal["small", "big"] | None = None
    colour: str | None = None
    position: Literal["left", "right", "center"] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One picture: none, one or two kinds of things in a place at a time.

    `relation` is that of two things, "left of" and so on; `wall` the colour of a plain background.
    """

    index: int
    things: tuple[Thing, ...]
    relation: str | None
    place: str
    style: str
    time: str
    wall: str | None
    paint_seed: int
    caption_seed: int


def is_held_out(noun: str, place: str) -> bool:
    """Whether a pair of noun and place belongs to the test split: 1 in 40, by a checksum."""
    return zlib.crc32(f"{noun}|{place}".encode()) % _HELD_OUT_SHARE == 0 and place != PLAIN


def times_in(recipe: Recipe, place: str) -> tuple[str, ...]:
    """The times a place is painted in, repeated by their weight; at least the place's first."""
    times = find_place(place).times
    if recipe.times is None:
        return times
    return tuple(time for time in times if time in recipe.times) or times[:1]


def check_recipe(recipe: Recipe, atlas: Atlas) -> None:
    """Compare the names in a recipe with what there is.

    Raises:
        InvalidInput: a style, place or time is unknown.
    """
    known: Sequence[tuple[str, Sequence[str], Sequence[str]]] = (
        ("styles", tuple(recipe.styles), atlas.styles),
        ("places", recipe.places or (), place_names()),
        ("times", recipe.times or (), tuple(LIGHTS)),
    )
    for field, names, allowed in known:
        for name in names:
            if name not in allowed:
                raise InvalidInput(field, name, f"unknown, use some of {', '.join(allowed)}")


class Planner:
    """Plans by number: the same recipe, split and index give the same plan."""

    def __init__(
        self, recipe: Recipe, vocabulary: Vocabulary, atlas: Atlas, *, split: Split | None
    ) -> None:
        self._recipe = recipe
        self._vocabulary = vocabulary
        self._atlas = atlas
        self._split = split
        allowed = recipe.places or place_names()
        self._places = [find_place(name) for name in place_names() if name in allowed]
        self._names = {place.name for place in self._places}
        self._views = [place.name for place in self._places if place.titles]
        self._grounds = [
            place.name
            for place in self._places
            if place.kind == "ground" and place.name not in ("moon", "railway")
        ]

    def plan(self, index: int) -> Plan:
        """The plan of a picture.

        Raises:
            InvalidInput: the split holds no pair of noun and place of this recipe.
        """
        for attempt in range(MAX_ATTEMPTS):
            plan = self._draft(index, attempt)
            held_out = any(is_held_out(thing.noun, plan.place) for thing in plan.things)
            if self._split is None or (self._split == "test") == held_out:
                return plan
        remedy = "holds no pair of noun and place of this recipe: allow more nouns or places"
        raise InvalidInput("split", self._split, remedy)

    def _draft(self, index: int, attempt: int) -> Plan:
        rng = np.random.default_rng([self._recipe.seed, index] + ([attempt] if attempt else []))
        things: list[Thing] = []
        relation = None
        if rng.random() < 0.07 and self._views:
            place = self._views[int(rng.integers(len(self._views)))]
        else:
            noun = self._vocabulary.draw(rng)
            place = self._place(rng, noun)
            has_two = rng.random() < 0.17 and self._recipe.two_objects
            thing = Thing(noun=noun.name) if has_two else self._single(rng, noun)
            things.append(replace(thing, colour=_tint(rng, noun, self._recipe.tinted)))
            if has_two:
                second, relation = self._second(rng, noun, place)
                things.extend(second)
        style = self._style(rng, [self._vocabulary[thing.noun] for thing in things])
        return Plan(
            index=index,
            things=tuple(things),
            relation=relation,
            place=place,
            style=style,
            time=self._time(rng, place, things),
            wall=_wall(rng) if place == PLAIN else None,
            paint_seed=int(rng.integers(2**31)),
            caption_seed=int(rng.integers(2**31)),
        )

    def _place(self, rng: np.random.Generator, noun: Noun) -> str:
        """A place of the recipe that suits the noun."""
        home = home_of(noun)
        stays_home = home is not None and rng.random() < (1 if noun.name in _SETTLED else 0.38)
        if home is not None and stays_home and home in self._names:
            return home
        if rng.random() < 0.08 and noun.category not in _NOT_ANYWHERE and self._grounds:
            return self._grounds[int(rng.integers(len(self._grounds)))]
        weights = {k: w for k, w in place_weights(noun.category).items() if k in self._names}
        if not weights:
            assert home is not None and home in self._names, "the vocabulary suits the places"
            return home
        is_water_bird = noun.is_swimmer and noun.category == "bird"
        if is_water_bird and rng.random() < 0.4 and "lake" in self._names:
            return "lake"
        w = np.array(list(weights.values()), float)
        return list(weights)[int(rng.choice(len(w), p=w / w.sum()))]

    def _single(self, rng: np.random.Generator, noun: Noun) -> Thing:
        """Number, size and position of the only kind of thing in a picture."""
        count = 1
        how_many = rng.random()
        can_repeat = noun.category not in ("building", "sky") or rng.random() < 0.25
        is_countable = not noun.is_plural and not is_uncountable(noun.name)
        if how_many > 0.70 and can_repeat and is_countable:
            count = 2 if how_many < 0.83 else 3 if how_many < 0.94 else int(rng.integers(4, 7))
        count = min(count, self._recipe.max_count)
        size: Literal["small", "big"] | None = None
        if rng.random() < self._recipe.resized:
            size = "small" if rng.random() < 0.5 else "big"
        position: Literal["left", "right", "center"] | None = None
        if rng.random() < 0.16 and count == 1:
            sides: Sequence[Literal["left", "right", "center"]] = ("left", "right", "center")
            position = sides[int(rng.integers(3))]
        return Thing(noun=noun.name, count=count, size=size, position=position)

    def _second(
        self, rng: np.random.Generator, first: Noun, place: str
    ) -> tuple[list[Thing], str | None]:
        """Another kind of thing and its relation to the first; nothing if none fits."""
        kind = find_place(place).kind
        categories = companions(rng, first, place, kind)
        if not self._vocabulary.has_any(categories):
            return [], None
        for _ in range(20):
            noun = self._vocabulary.draw(rng, categories)
            if noun.name != first.name and not noun.is_plural and not is_uncountable(noun.name):
                break
        if noun.name == first.name or not self._common_styles([first, noun]):
            return [], None
        thing = Thing(noun=noun.name, colour=_tint(rng, noun, self._recipe.tinted * 5 / 6))
        options = relations(first, noun, kind)
        return [thing], options[int(rng.integers(len(options)))]

    def _common_styles(self, nouns: Sequence[Noun]) -> list[str]:
        return [
            style
            for style in self._recipe.styles
            if all(can_draw(self._atlas, style, noun) for noun in nouns)
        ]

    def _style(self, rng: np.random.Generator, nouns: Sequence[Noun]) -> str:
        """A style that has artwork for everything."""
        styles = self._common_styles(nouns)
        weights = np.array([self._recipe.styles[style] for style in styles])
        return styles[int(rng.choice(len(styles), p=weights / weights.sum()))]

    def _time(self, rng: np.random.Generator, place: str, things: Sequence[Thing]) -> str:
        """A time of the place, and of the things that belong to one (no sun at night)."""
        times = times_in(self._recipe, place)
        for thing in things:
            own = own_times(self._vocabulary[thing.noun])
            times = tuple(time for time in own if time in times) or times
        return times[int(rng.integers(len(times)))]


def _tint(rng: np.random.Generator, noun: Noun, probability: float) -> str | None:
    if noun.is_tintable and rng.random() < probability:
        return list(TINTS)[int(rng.integers(len(TINTS)))]
    return None


def _wall(rng: np.random.Generator) -> str:
    weights = np.array(_PLAIN_WEIGHTS)
    return list(PLAIN_COLOURS)[int(rng.choice(len(weights), p=weights / weights.sum()))]
