"""The things that can be drawn, and which of them a recipe and an atlas leave.

A thing suits a place when its category is found there or the place is its home; see suits.toml.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ciar.errors import InvalidInput
from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.colour import Array
from ciar_train.scenes.places import place_names
from ciar_train.scenes.recipe import Recipe
from ciar_train.scenes.tables import read_json, read_text, read_toml

_DEFAULT_WEIGHT = 1.5
# How often things of a category are drawn, as a factor. Objects and food are many, and dull.
_CATEGORY_WEIGHTS: Mapping[str, float] = {
    "object": 0.75,
    "food": 0.85,
    "cloth": 0.9,
    "land": 1.3,
    "head": 1.4,
    "bird": 1.2,
    "flyer": 1.3,
    "sea": 1.3,
    "person": 1.1,
    "bust": 1.1,
    "road": 1.1,
    "ship": 1.4,
    "building": 1.0,
    "plant": 1.4,
    "sky": 1.4,
    "space": 1.3,
    "kite": 1.4,
}


@dataclass(frozen=True, kw_only=True)
class Noun:
    """A kind of thing: a line of nouns.txt, whose head explains the columns."""

    name: str
    emojis: tuple[str, ...]
    synonyms: tuple[str, ...]
    category: str
    size: str
    flags: str

    @property
    def is_tintable(self) -> bool:
        return "t" in self.flags

    @property
    def is_head(self) -> bool:
        """Whether the artwork is a head alone: it gets shoulders, and stands at the lower edge."""
        return "h" in self.flags

    @property
    def is_swimmer(self) -> bool:
        return "w" in self.flags

    @property
    def is_plural(self) -> bool:
        """Whether the artwork shows several already: there is never more than one of it."""
        return "p" in self.flags

    @property
    def is_one_sided(self) -> bool:
        """Whether it must not be mirrored, for letters or hands in it."""
        return "n" in self.flags

    @property
    def has_skin(self) -> bool:
        return self.category in ("person", "personw", "bust", "skiing")


@cache
def all_nouns() -> Mapping[str, Noun]:
    """Every noun of nouns.txt by its name, in the order of the file."""
    nouns = {}
    for line in read_text("nouns.txt").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, emojis, synonyms, category, size, flags = line.split("|")
        nouns[name] = Noun(
            name=name,
            emojis=tuple(emojis.split()),
            synonyms=tuple(word for word in synonyms.split(",") if word),
            category=category,
            size=size,
            flags=flags,
        )
    return nouns


def noun_weight(noun: Noun) -> float:
    """How often a noun is drawn.

    weights.json grows with the logarithm of how often the captions of MS-COCO and the prompts of
    PartiPrompts name the noun or a synonym, from 1 (never) to 6 (dog, cat); people ask for what
    people write about.
    """
    frequency = float(read_json("weights.json").get(noun.name, _DEFAULT_WEIGHT))
    return frequency * _CATEGORY_WEIGHTS.get(noun.category, 1)


def place_weights(category: str) -> dict[str, float]:
    """The places where a category is found, with their weights."""
    table = dict(read_toml("suits.toml")["category"][category])
    if "like" in table:
        return place_weights(table.pop("like")) | table
    return table


def home_of(noun: Noun) -> str | None:
    """The place the noun is most at home in, None without a special one."""
    home: str | None = read_toml("suits.toml")["home"].get(noun.name)
    return home


def own_times(noun: Noun) -> tuple[str, ...]:
    """The times of day a noun belongs to, none without special ones."""
    return tuple(read_toml("suits.toml")["times"].get(noun.name, ()))


@dataclass(kw_only=True)
class Vocabulary:
    """The nouns of a recipe, drawn by their weights."""

    nouns: Sequence[Noun]
    _pools: dict[tuple[str, ...], tuple[list[Noun], Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name = {noun.name: noun for noun in self.nouns}

    def __getitem__(self, name: str) -> Noun:
        return self._by_name[name]

    def has_any(self, categories: Sequence[str]) -> bool:
        """Whether there is a noun of these categories."""
        return any(noun.category in categories for noun in self.nouns)

    def draw(self, rng: np.random.Generator, categories: Sequence[str] = ()) -> Noun:
        """A noun of the categories (none named: of all), by one random number."""
        nouns, cumulative = self._pool(tuple(categories))
        return nouns[min(int(np.searchsorted(cumulative, rng.random())), len(nouns) - 1)]

    def _pool(self, categories: tuple[str, ...]) -> tuple[list[Noun], Array]:
        if categories not in self._pools:
            nouns = [n for n in self.nouns if not categories or n.category in categories]
            weights = np.array([noun_weight(noun) for noun in nouns])
            self._pools[categories] = (nouns, np.cumsum(weights / weights.sum()))
        return self._pools[categories]


def choose_nouns(recipe: Recipe, atlas: Atlas) -> Vocabulary:
    """The nouns of a recipe that its styles can draw and its places suit.

    Raises:
        InvalidInput: a noun named in the recipe is unknown, has no artwork in any of the styles,
            or suits none of the places; or no noun is left.
    """
    known = all_nouns()
    for name in recipe.nouns or ():
        if name not in known:
            raise InvalidInput("nouns", name, "not a noun that can be drawn: see nouns.txt")
    places = set(recipe.places or place_names())
    chosen = []
    for noun in known.values():
        if recipe.nouns is not None and noun.name not in recipe.nouns:
            continue
        suited = set(place_weights(noun.category)) | {home_of(noun)}
        is_drawable = any(can_draw(atlas, style, noun) for style in recipe.styles)
        if is_drawable and suited & places:
            chosen.append(noun)
        elif recipe.nouns is not None:
            _refuse(noun, recipe, is_drawable=is_drawable)
    if not chosen:
        raise InvalidInput("places", recipe.places, "no noun is found there: allow more places")
    return Vocabulary(nouns=chosen)


def _refuse(noun: Noun, recipe: Recipe, *, is_drawable: bool) -> None:
    if not is_drawable:
        remedy = f"has no artwork in {', '.join(recipe.styles)}: add a style or leave it out"
    else:
        suited = sorted(place_weights(noun.category))
        remedy = f"is found in none of the places: add one of {', '.join(suited)}"
    raise InvalidInput("nouns", noun.name, remedy)


def can_draw(atlas: Atlas, style: str, noun: Noun) -> bool:
    """Whether a style has artwork for a noun."""
    return any(atlas.has(style, emoji) for emoji in noun.emojis)
