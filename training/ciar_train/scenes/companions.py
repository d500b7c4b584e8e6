"""Which second thing goes with a first one, and in what relation they can be painted."""

from collections.abc import Mapping, Sequence

import numpy as np

from ciar_train.scenes.nouns import Noun

_COMPANIONS = (
    *("land", "head", "bird", "person", "toy", "ball"),
    *("road", "plant", "furn", "building", "flyer", "prop"),
)
_FLIERS = ("flyer", "air")
_BACKDROPS = ("couch", "tree", "pine tree", "palm tree", "christmas tree")
_SHELTERED = ("land", "head", "person", "toy", "ball", "furn", "bust")


def companions(rng: np.random.Generator, first: Noun, place: str, kind: str) -> Sequence[str]:
    """The categories of which a second thing is drawn."""
    by_kind: Mapping[str, Sequence[str]] = {
        "surface": ("food", "object"),
        "under": ("sea",),
        "sky": ("air", "flyer", "space" if place == "space" else "kite"),
        "water": ("ship", "sea", "personw"),
        "plain": (first.category, "food", "object", "land"),
    }
    if first.category in ("land", "person", "head") and rng.random() < 0.3 and kind == "ground":
        return ("ball", "toy", "land")
    return by_kind.get(kind, _COMPANIONS)


def relations(first: Noun, second: Noun, kind: str) -> Sequence[str]:
    """The relations that can be painted; one that is named thrice is drawn thrice as often."""
    if first.category == "building" and second.category not in ("building", "plant", *_FLIERS):
        return ("behind", "and", "next to")
    if "bust" in (first.category, second.category):
        return ("and", "next to")
    is_above = first.category in (*_FLIERS, "kite", "sky")
    has_room_above = kind not in ("sky", "under", "plain", "surface")
    if is_above and has_room_above and second.category not in (*_FLIERS, "kite"):
        return ("above", "above", "and")
    if kind in ("ground", "floor", "lake", "city"):
        if second.category in _FLIERS:
            return ("under", "and")
        if second.category == "building" or second.name in _BACKDROPS:
            in_front = ("in front of", "in front of", "in front of", "and", "next to")
            can_shelter = second.category == "plant" and first.category in _SHELTERED
            return (*in_front, "under", "under", "under") if can_shelter else in_front
    return ("and", "and", "next to", "left of", "right of")
