"""Prompts to measure with: seeded, in the words the size was trained on, never picked by hand."""

import numpy as np

from ciar_train.scenes.nouns import all_nouns, place_weights
from ciar_train.scenes.places import find_place, place_names
from ciar_train.scenes.words import with_article
from ciar_train.sizes import Size


def seeded_prompts(size: Size, count: int, *, seed: int = 0) -> list[str]:
    """`count` prompts "a NOUN in a PLACE" from the size's nouns and the places that suit them."""
    recipe = size.data.scene_recipe()
    nouns = recipe.nouns or tuple(all_nouns())
    allowed = set(recipe.places or place_names())
    return [prompt(np.random.default_rng([seed, index]), nouns, allowed) for index in range(count)]


def prompt(rng: np.random.Generator, nouns: tuple[str, ...], allowed: set[str]) -> str:
    noun = all_nouns()[nouns[int(rng.integers(len(nouns)))]]
    weights = {
        place: weight
        for place, weight in place_weights(noun.category).items()
        if place in allowed and find_place(place).phrases
    }
    if not weights:
        return with_article(noun.name)
    shares = np.array(list(weights.values())) / sum(weights.values())
    phrases = find_place(list(weights)[int(rng.choice(len(shares), p=shares))]).phrases
    return f"{with_article(noun.name)} {phrases[int(rng.integers(len(phrases)))]}"
