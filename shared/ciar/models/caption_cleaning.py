"""Prompts as LlamaGen's captions were cleaned before T5 read them in training.

The rules are those of the public training data, applied twice, because one may uncover work for
another. Needs ftfy and beautifulsoup4 (extra `t5`).
"""

import html
import re
import warnings
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote_plus

from ciar.errors import MissingExtra

FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DOMAINS = "com|co|ru|net|org|edu|gov|it"
DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
# CJK strokes, phonetic extensions, enclosed letters, compatibility, extension A, hexagrams, unified
CJK = "".join(
    f"{chr(first)}-{chr(last)}"
    for first, last in (
        (0x31C0, 0x31EF),
        (0x31F0, 0x31FF),
        (0x3200, 0x32FF),
        (0x3300, 0x33FF),
        (0x3400, 0x4DBF),
        (0x4DC0, 0x4DFF),
        (0x4E00, 0x9FFF),
    )
)
MAX_JOINERS = 3  # with more hyphens and underscores than that, all of them are blanks

Rule = tuple[str, str]

BEFORE_MARKUP: tuple[Rule, ...] = (
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|[a-z0-9.\-]+\.(?:{DOMAINS})[\w/-]*\b/?(?!@))", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|[a-z0-9.\-]+\.(?:{DOMAINS})[\w/-]*\b/?(?!@))", ""),
)
MARKS: tuple[Rule, ...] = (
    (r"@\w+\b", ""),
    (rf"[{CJK}]+", ""),
    (rf"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{FILES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
CODES: tuple[Rule, ...] = (
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-z]+\d+[a-z]+\b", ""),
    (r"\b\d+[a-z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
ENDS: tuple[Rule, ...] = (
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str) -> str:
    """Lower case, without markup, links, file names, codes and CJK; may come out empty.

    Raises `MissingExtra`.
    """
    fix_text, without_markup = libraries()
    for _ in range(2):
        text = clean_once(text, fix_text, without_markup)
    return text


def clean_once(
    text: str, fix_text: Callable[[str], str], without_markup: Callable[[str], str]
) -> str:
    text = apply(BEFORE_MARKUP, unquote_plus(text).strip().lower())
    text = apply(MARKS, without_markup(text))
    if len(re.findall("[-_]", text)) > MAX_JOINERS:
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(fix_text(text))).strip()
    return apply(ENDS, apply(CODES, text).strip()).strip()


def apply(rules: tuple[Rule, ...], text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def libraries() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """ftfy's repair of broken characters, and text without HTML."""
    try:
        from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
        from ftfy import fix_text
    except ImportError as error:
        raise MissingExtra(
            f"captions for T5 need {error.name}: install it with pip install 'ciar[t5]'"
        ) from error

    def without_markup(text: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
            return str(BeautifulSoup(text, features="html.parser").text)

    return partial(fix_text), without_markup
