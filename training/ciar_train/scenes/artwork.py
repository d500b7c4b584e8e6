"""Fetches the emoji artwork of four open styles and makes the atlas from it.

    fluent3d, fluentflat   Microsoft Fluent Emoji   MIT
    noto                   Google Noto Emoji        Apache-2.0
    twemoji                Twitter Twemoji          CC-BY 4.0 (recoloured, cropped, composited)

What has no emoji is drawn by hand, in objects/*.svg.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path

from PIL import Image

from ciar.errors import InvalidInput
from ciar_train.progress import Progress, say_nothing
from ciar_train.scenes.glyphs import (
    GlyphSet,
    IconSet,
    WebpSet,
    cut_water,
    feet_of,
    render_svg,
    trim,
)
from ciar_train.scenes.nouns import all_nouns
from ciar_train.scenes.packing import PackWriter
from ciar_train.scenes.placement import SKIN_TONES, with_skin_tone
from ciar_train.scenes.registry import DEFAULT_REGISTRY, Package, fetch_package, find_registry

SPRITE_SIZE = 224  # pixels a side, before the margins are cut off
PACK_NAME = "atlas.pak"

_OBJECT_PREFIX = "svg:"
_BOATS = ("⛵", "🚤", "🛶", "🚢", "🛳️", "⛴️")
# What the places are furnished with, beside the nouns.
_SCENERY = ("🌲", "🌳", "🌴", "🌵", "🪴", "🌷", "🌼", "🌹", "🌻", "🪸", "🌍")


@dataclass(frozen=True, kw_only=True)
class _Source:
    package: Package
    open: Callable[[Path], GlyphSet]
    has_water: bool = True  # whether its boats are drawn with a slab of water


_SOURCES: Mapping[str, _Source] = {
    "fluent3d": _Source(
        package=Package(
            name="@lobehub/fluent-emoji-3d",
            version="1.1.0",
            integrity="sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaec"
            "gl5wRBv60lUAG3h7g==",
        ),
        open=WebpSet,
    ),
    "noto": _Source(
        package=Package(
            name="@iconify-json/noto",
            version="1.2.9",
            integrity="sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI"
            "3rcKF0mqHYeZVAuaw==",
        ),
        open=IconSet,
        has_water=False,
    ),
    "twemoji": _Source(
        package=Package(
            name="@iconify-json/twemoji",
            version="1.2.5",
            integrity="sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9y"
            "NLlj41WU6/mvgALsw==",
        ),
        open=IconSet,
    ),
    "fluentflat": _Source(
        package=Package(
            name="@iconify-json/fluent-emoji-flat",
            version="1.2.6",
            integrity="sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWq"
            "QYvuaSYM1M4fRXlUw==",
        ),
        open=IconSet,
    ),
}


def build_artwork(
    folder: Path | str,
    *,
    npm_registry: str = DEFAULT_REGISTRY,
    progress: Progress = say_nothing,
    styles: tuple[str, ...] = tuple(_SOURCES),
) -> Path:
    """Fetch the artwork and make `atlas.pak` of it; about 22 MB to fetch, a minute or two to draw.

    Args:
        folder: made if missing; gets the packages (in `packages/`) and the packed atlas.
        npm_registry: where the packages are fetched from, unless npm is set up for another one.
        progress: called with (done, total, what).
        styles: the styles to put into the atlas.

    Returns:
        The path of the packed atlas, for `unpack_atlas`.

    Raises:
        ArtworkError: a package could not be fetched or is not the pinned one.
        InvalidInput: a style is unknown.
    """
    for style in styles:
        if style not in _SOURCES:
            raise InvalidInput("styles", style, f"use some of {', '.join(_SOURCES)}")
    out = Path(folder)
    registry = find_registry(npm_registry)
    sets: dict[str, GlyphSet] = {}
    for number, style in enumerate(styles):
        progress(number, len(styles), "packages")
        source = _SOURCES[style]
        path = fetch_package(source.package, out / "packages", registry=registry)
        sets[style] = source.open(path)
    progress(len(styles), len(styles), "packages")
    emojis = tuple(_emojis())
    writer = PackWriter(size=SPRITE_SIZE)
    for number, (style, emoji) in enumerate((s, e) for s in styles for e in emojis):
        image = _sprite(sets[style], style, emoji)
        if image is not None:
            writer.add(style, emoji, image, feet=feet_of(image))
        if number % 50 == 0:
            progress(number, len(styles) * len(emojis), "sprites")
    pack_path = out / PACK_NAME
    writer.save(pack_path)
    progress(len(styles) * len(emojis), len(styles) * len(emojis), "sprites")
    return pack_path


def _emojis() -> Iterator[str]:
    """Every emoji of the nouns and the scenery, people in all tones of skin."""
    toned = {
        with_skin_tone(emoji, tone): None
        for noun in all_nouns().values()
        for emoji in noun.emojis
        for tone in (SKIN_TONES if noun.has_skin else ("",))
    }
    return iter(dict.fromkeys(chain(toned, _SCENERY)))


def _sprite(glyphs: GlyphSet, style: str, emoji: str) -> Image.Image | None:
    """The artwork of an emoji without margins, None if the style has none."""
    if emoji.startswith(_OBJECT_PREFIX):
        name = f"{emoji.removeprefix(_OBJECT_PREFIX)}.svg"
        svg = files(__package__).joinpath("objects", name).read_text(encoding="utf-8")
        image: Image.Image | None = render_svg(svg, width=SPRITE_SIZE, height=SPRITE_SIZE)
    else:
        image = glyphs.draw(emoji, SPRITE_SIZE)
    if image is not None and emoji in _BOATS and _SOURCES[style].has_water:
        image = cut_water(image)
    return None if image is None else trim(image)
