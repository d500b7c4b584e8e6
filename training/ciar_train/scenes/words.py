"""English in small: plurals, articles and counts. The tables are in wording.toml."""

import re
from functools import cache

from ciar_train.scenes.tables import read_toml

_HEAD = re.compile(
    r"^(?P<head>.*?)(?P<tail>( of | with | on | riding | in | playing | skiing| swimming| surfing"
    r"| running| dancing| snowboarding).*)$"
)
_VOWEL = re.compile(r"^([aeiou]|hour|suv)")
_VOWEL_LETTER_ONLY = re.compile(r"^(one|uni|eu|ufo|use)")  # spelled with a vowel, not spoken so


@cache
def _words(key: str) -> frozenset[str]:
    return frozenset(read_toml("wording.toml")[key])


def is_uncountable(phrase: str) -> bool:
    """Whether there is "some" of it, never two: bread, luggage."""
    return phrase in _words("uncountable")


def is_plural_only(phrase: str) -> bool:
    """Whether the phrase is a plural already: scissors, noodles."""
    return phrase in _words("plural_only")


def plural(phrase: str) -> str:
    """The plural of a noun phrase: its head is what stands before the first preposition."""
    match = _HEAD.match(phrase)
    head, tail = (match["head"], match["tail"]) if match else (phrase, "")
    if tail.startswith(" riding a bicycle"):
        tail = " riding bicycles"
    elif tail.startswith(" on a "):
        tail = " on " + plural(tail.removeprefix(" on a "))
    *before, last = head.split(" ")
    return " ".join([*before, _plural_word(last)]) + tail


def _plural_word(word: str) -> str:
    irregular: dict[str, str] = read_toml("wording.toml")["irregular"]
    if word in irregular:
        return irregular[word]
    if re.search(r"(s|x|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an", by its sound."""
    has_vowel = _VOWEL.match(phrase) and not _VOWEL_LETTER_ONLY.match(phrase)
    return f"{'an' if has_vowel else 'a'} {phrase}"
