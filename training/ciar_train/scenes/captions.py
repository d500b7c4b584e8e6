"""The words under a picture: many captions for one plan, none of which says more than is painted.

A caption may leave things out (the place in 14 % of them, most times of day by daylight), and
takes synonyms, so that words the pictures were not drawn from have a meaning too.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ciar_train.scenes.nouns import Noun, Vocabulary
from ciar_train.scenes.placement import stance
from ciar_train.scenes.places import PLAIN, Place, find_place
from ciar_train.scenes.plan import Plan, Thing
from ciar_train.scenes.tables import read_toml
from ciar_train.scenes.words import is_plural_only, is_uncountable, plural, with_article

_SIZES: Mapping[str, Sequence[str]] = {
    "small": ("small", "tiny", "little"),
    "big": ("big", "large", "huge"),
}
_TINTS: Mapping[str, Sequence[str]] = {"gray": ("gray", "grey"), "purple": ("purple", "violet")}
_MANY = ("several", "many", "a group of", "a bunch of", "some")
_RELATIONS: Mapping[str, str] = {
    "left of": "to the left of",
    "right of": "to the right of",
}
_POSITIONS: Mapping[str, Sequence[str]] = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "center": ("in the center", "in the middle"),
}
_OPENINGS = ("a picture of", "an image of", "a drawing of")
_NAMES = ("santa claus", "santa", "father christmas", "planet earth")  # without an article
_UNIQUE = ("sun", "moon", "full moon", "earth", "tokyo tower", "eiffel tower", "statue of liberty")
_DRIVABLE = ("street", "road", "desert", "snow", "beach", "mountains")
_OPEN_AIR = ("sky", "space")
_MOVERS = ("flyer", "air", "kite", "space", "ship", "sea")
_STARTS_WITH_TINT = re.compile(r"^(red|yellow|green|white|black|blue|pink|brown|golden)\b")
_NAMED_BY_TINT = re.compile(r"^(red|green|black|white)\b")
_HAS_SIZE = re.compile(r"\b(small|big|little|tiny|baby|young|tall|mini)")
_CONTAINER = re.compile(
    r"^(cup|glass|bowl|pot|plate|jar|piece|slice|bottle|ball|bar|bunch|pair|stack|box|loaf|roll"
    r"|bouquet) of"
)


class Captioner:
    """Words plans; the same plan and number give the same caption."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def caption(self, plan: Plan, number: int) -> str:
        """Caption `number` of a plan, 0 and up."""
        rng = np.random.default_rng([plan.caption_seed, number])
        place = find_place(plan.place)
        where = _where(rng, plan, place)
        when = _when(rng, plan, place)
        if plan.things:
            text = self._scene(rng, plan, place, where=where, when=when)
        else:
            text = " ".join([pick(rng, place.titles), when])
        text = self._opened(rng, plan, text)
        text = re.sub(r"\s+", " ", text).strip()
        if rng.random() < 0.12:
            text = text[0].upper() + text[1:] + "."
        return text

    def _scene(
        self, rng: np.random.Generator, plan: Plan, place: Place, *, where: str, when: str
    ) -> str:
        """Things, what they do, where, and when."""
        thing = plan.things[0]
        noun = self._vocabulary[thing.noun]
        words = self._noun_phrase(rng, thing)
        verb = ""
        if len(plan.things) == 2:
            other = self._noun_phrase(rng, plan.things[1])
            words = f"{words} {_RELATIONS.get(plan.relation or '', plan.relation)} {other}"
        else:
            verb = _verb(rng, plan, noun, words)
            where = _where_above(rng, plan, place, noun, where)
        if place.on_water:
            where = _where_by_water(rng, plan, place, noun, where)
        if rng.random() > 0.14:
            words += f" {verb} {where}"
        if thing.position is not None and rng.random() < 0.85:
            words += " " + pick(rng, _POSITIONS[thing.position])
        return f"{words} {when}"

    def _opened(self, rng: np.random.Generator, plan: Plan, text: str) -> str:
        """Some captions begin with what kind of picture it is, or with "there is"."""
        kind = rng.random()
        if kind < 0.10:
            return f"{pick(rng, _OPENINGS)} {text}"
        if kind < 0.17:
            styles = read_toml("wording.toml")["styles"]
            return f"{pick(rng, styles.get(plan.style, _OPENINGS))} {text}"
        if kind < 0.20 and plan.things:
            is_plural = plan.things[0].count > 1 or re.match(r"some \w+s\b", text)
            return f"there {'are' if is_plural else 'is'} {text}"
        return text

    def _noun_phrase(self, rng: np.random.Generator, thing: Thing) -> str:
        """A thing with its count or article, size and colour; a third of the time a synonym."""
        noun = self._vocabulary[thing.noun]
        word = noun.name
        if noun.synonyms and rng.random() < 0.33:
            word = pick(rng, noun.synonyms)
        if thing.colour and _STARTS_WITH_TINT.match(word) and not _NAMED_BY_TINT.match(noun.name):
            word = noun.name
        adjectives = []
        if thing.size and not _HAS_SIZE.search(word):
            adjectives.append(pick(rng, _SIZES[thing.size]))
        if thing.colour:
            adjectives.append(pick(rng, _TINTS.get(thing.colour, (thing.colour,))))
        if thing.count > 1:
            if is_uncountable(word):
                word = noun.name
            several = word if is_plural_only(word) else plural(word)
            return " ".join([_number(rng, thing.count), *adjectives, several])
        return _one(rng, word, adjectives)


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def _where(rng: np.random.Generator, plan: Plan, place: Place) -> str:
    """Where the scene is, in one of the place's phrases."""
    if plan.place == PLAIN:
        assert plan.wall is not None
        colour = with_article(plan.wall)
        return f"on {colour} background" if rng.random() < 0.75 else f"in front of {colour} wall"
    return pick(rng, place.phrases)


def _when(rng: np.random.Generator, plan: Plan, place: Place) -> str:
    """The time of day or weather: often, except by day; nothing where it hardly shows."""
    is_shown = place.untimed == "never" or (
        place.untimed == "unless night" and plan.time == "night"
    )
    words = pick(rng, read_toml("wording.toml")["times"][plan.time]) if is_shown else ""
    return words if rng.random() <= (0.16 if plan.time == "day" else 0.78) else ""


def _verb(rng: np.random.Generator, plan: Plan, noun: Noun, words: str) -> str:
    """What the thing does, in some captions: standing, parked, flying."""
    verbs = read_toml("wording.toml")["verbs"].get(noun.category)
    if not verbs or rng.random() >= 0.22:
        return ""
    if plan.place == PLAIN or noun.is_head or re.search(r"ing\b", words):
        return ""
    verb = pick(rng, verbs)
    how = stance(plan, noun)
    if noun.category in _MOVERS and how not in ("air", "water", "float"):
        return ""
    if noun.category == "bird" and how == "water":
        return "swimming"
    return "parked" if verb == "driving" and plan.place not in _DRIVABLE else verb


def _where_above(rng: np.random.Generator, plan: Plan, place: Place, noun: Noun, where: str) -> str:
    """Over the place rather than in it, for what flies there."""
    if noun.category == "sky":
        return where if plan.place in ("sky", PLAIN) else (place.over_sun or "in the sky")
    if stance(plan, noun) != "air" or plan.place in _OPEN_AIR or rng.random() >= 0.7:
        return where
    first_or_last = 0 if rng.random() < 0.5 else -1
    return place.over[first_or_last] if place.over else where


def _where_by_water(
    rng: np.random.Generator, plan: Plan, place: Place, noun: Noun, where: str
) -> str:
    """On the water for what swims, by it for what stands on the shore."""
    how = stance(plan, noun)
    if how == "air":
        return where
    return pick(rng, place.on_water if how == "water" else place.by_water)


def _number(rng: np.random.Generator, count: int) -> str:
    numbers: Mapping[str, Sequence[str]] = read_toml("wording.toml")["numbers"]
    if count <= 3 or rng.random() < 0.5:
        return pick(rng, numbers[str(count)])
    return pick(rng, _MANY)


def _one(rng: np.random.Generator, word: str, adjectives: Sequence[str]) -> str:
    """A single thing with "a", "the", "some" or nothing before it."""
    phrase = " ".join([*adjectives, word])
    if is_plural_only(word):
        return phrase if _CONTAINER.match(word) else pick(rng, ("some ", "", "")) + phrase
    if is_uncountable(word):
        return pick(rng, ("some ", "")) + phrase
    if word == "someone" or (word in _NAMES and not adjectives):
        return word
    if word in _UNIQUE and not adjectives:
        return f"the {word}"
    return with_article(phrase)
