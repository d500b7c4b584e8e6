"""How a thing stands in a place, and which drawing of it is taken.

A thing has one of six stances: on the `ground`, in the `air`, on the `water`, at the `bottom` of
the sea, `float`ing without a ground, or as a `portrait`, a head or bust at the lower edge.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.nouns import Noun
from ciar_train.scenes.places import find_place
from ciar_train.scenes.plan import Plan, Thing

Stance: TypeAlias = Literal["ground", "air", "water", "bottom", "float", "portrait"]

_OPEN = ("ground", "lake", "city", "floor")
_SINKING = ("crab", "lobster", "seashell", "rock", "anchor")
_WHOLE_BODIES = {("noto", "raccoon"), ("twemoji", "chicken")}  # heads in the other styles only
SKIN_TONES = ("", "\U0001f3fb", "\U0001f3fc", "\U0001f3fd", "\U0001f3fe", "\U0001f3ff")
_SKIN_TONE_WEIGHTS = (0.10, 0.24, 0.2, 0.18, 0.15, 0.13)
_VARIATION = "\ufe0f"  # asks for an emoji's colourful form


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One sprite to be put. Lengths are fractions of the picture's side.

    `base` is the y of its foot, x its middle; `depth` orders from far to near.
    """

    thing: Thing
    noun: Noun
    emoji: str
    x: float
    base: float
    height: float
    max_width: float
    stance: Stance
    depth: int
    is_flipped: bool


def stance(plan: Plan, noun: Noun) -> Stance:
    """How a thing is placed in the plan's place."""
    kind, category = find_place(plan.place).kind, noun.category
    if kind == "plain":
        return "float"
    if kind == "sky":
        return "air"
    if kind == "under":
        return "bottom" if noun.name in _SINKING else "float"
    is_flier = category in ("air", "flyer", "kite", "space") and kind in (*_OPEN, "water")
    if category == "sky" or is_flier:
        return "air"
    if kind == "water":
        return "water"
    is_afloat = category in ("bird", "flower") and noun.is_swimmer
    if kind in ("lake", "city") and (category in ("ship", "personw") or is_afloat):
        return "water"
    is_portrait = (noun.is_head or category == "bust") and noun.name != "skull"
    if is_portrait and kind in _OPEN and (plan.style, noun.name) not in _WHOLE_BODIES:
        return "portrait"
    return "ground"


def choose_emoji(rng: np.random.Generator, atlas: Atlas, style: str, noun: Noun) -> str:
    """One of the noun's drawings; people in one of six tones of skin."""
    emojis = [emoji for emoji in noun.emojis if atlas.has(style, emoji)]
    emoji = emojis[int(rng.integers(len(emojis)))]
    if not noun.has_skin:
        return emoji
    tone = SKIN_TONES[int(rng.choice(6, p=_SKIN_TONE_WEIGHTS))]
    toned = with_skin_tone(emoji, tone)
    return toned if atlas.has(style, toned) else emoji


def with_skin_tone(emoji: str, tone: str) -> str:
    """The emoji with a tone modifier (or "") after its first code point."""
    if not tone:
        return emoji
    plain = emoji[0] + emoji[1:].removeprefix(_VARIATION)
    return plain[0] + tone + plain[1:]
