"""Captions as LlamaGen cleans them: pairs made with the public code."""

import sys

import pytest

from ciar.errors import MissingExtra
from ciar.models.caption_cleaning import clean_caption

PAIRS = (
    (
        "A blue Porsche 356 parked in front of a yellow brick wall.",
        "a blue porsche 356 parked in front of a yellow brick wall.",
    ),
    ("a-b-c-d-e-f under_score", "a b c d e f under score"),
    ("hello,world.again", "hello, world. again"),
    ("<b>bold</b> text &lt;x&gt; free download page 12", "bold text"),
    (
        '"  Photo of a CAT, visit https://example.com/x?y=1 now!! #hashtag @user "',
        "photo of a cat, visit ?y=1 now!! hashtag",
    ),
    (
        "3x4 grid 1920x1080 image.png 123456 #12 jc6640 漢字 <person> &amp; &quot;hi&quot;",
        'grid person "hi"',
    ),
    ("'quoted whole'", "quoted whole"),
    ("-lead and trail-", "lead and trail"),
    ('" "', ""),
    (" ", ""),
    ("café naïve Ünïcode", "café naïve ünïcode"),
)


@pytest.mark.parametrize(("text", "expected"), PAIRS)
def test_pairs_of_the_public_code(text: str, expected: str) -> None:
    assert clean_caption(text) == expected


@pytest.mark.parametrize(("text", "expected"), PAIRS)
def test_what_is_clean_stays(text: str, expected: str) -> None:
    assert clean_caption(expected) == expected.strip("-")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog on a beach", "a dog on a beach"),
        ("A+dog%20on a beach", "a dog on a beach"),
        ("www.shop.com/item best price", "best price"),
        ("mail me@home.org today", "mail me today"),
        ("server 192.168.0.1 room", "server room"),
        ("well-known state-of-the-art", "well known state of the art"),
        ("“smart” quotes", '"smart" quotes'),
        ("first ... last", "first last"),
        ("1 : 2", "1: 2"),
        ("free shipping worldwide free shipping", ""),
        (".hidden", ""),
        ("a \ufb01ne day", "a fine day"),
    ],
)
def test_other_captions(text: str, expected: str) -> None:
    assert clean_caption(text) == expected


def test_without_its_libraries_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(MissingExtra, match=r"ciar\[t5\]"):
        clean_caption("a dog")
