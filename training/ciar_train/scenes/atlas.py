"""The artwork: sprites cut out of emoji, in several styles, as raw pixels on disk.

An atlas is a folder of `atlas.bin` (RGBA rows, sprite after sprite, mapped into memory) and
`index.json` (`{"size": ..., "styles": {style: {emoji: [offset, height, width, foot_left,
foot_right]}}}`). The feet are the columns between which a sprite touches the ground.
For transport it is packed into one file of compressed sprites; see `packing.py`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ciar.errors import InvalidInput
from ciar_train.scenes.colour import MainHue, main_hue

MAX_CACHED = 4000  # scaled sprites, about 40 KB each at 128 px

# In these the picture is a bare head or a bust, although the other styles show the whole animal.
_HEADS_ONLY = {("twemoji", emoji) for emoji in "🦓🦌🦍🦏🦧🦅🦔"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sprite:
    """A piece of artwork; the feet are fractions of its width."""

    style: str
    emoji: str
    image: Image.Image
    foot_left: float
    foot_right: float


class Atlas:
    """The sprites of an atlas folder; `fingerprint` tells it from others.

    Raises:
        InvalidInput: the folder holds no atlas.
    """

    def __init__(self, path: Path | str) -> None:
        folder = Path(path)
        if not (folder / "index.json").is_file() or not (folder / "atlas.bin").is_file():
            raise InvalidInput("atlas", str(folder), "holds no atlas: unpack or build one there")
        content = (folder / "index.json").read_bytes()
        index = json.loads(content)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.size: int = index["size"]
        self._entries: dict[str, dict[str, tuple[int, int, int, int, int]]] = index["styles"]
        self._pixels = np.memmap(folder / "atlas.bin", np.uint8, "r")
        self._scaled: dict[tuple[str, str, int, int], Image.Image] = {}
        self._hues: dict[tuple[str, str], MainHue] = {}

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles of artwork in this atlas."""
        return tuple(self._entries)

    def emojis(self, style: str) -> tuple[str, ...]:
        """The sprites of a style."""
        return tuple(self._entries[style])

    def has(self, style: str, emoji: str) -> bool:
        """Whether a style has artwork of a thing that shows all of it."""
        return emoji in self._entries.get(style, ()) and (style, emoji) not in _HEADS_ONLY

    def find(self, style: str, emoji: str) -> Sprite | None:
        """A sprite in the style, or else in the most complete one."""
        return self.get(style, emoji) or self.get("noto", emoji)

    def get(self, style: str, emoji: str) -> Sprite | None:
        """A sprite in exactly this style, None without one."""
        entry = self._entries.get(style, {}).get(emoji)
        if entry is None:
            return None
        offset, height, width, left, right = entry
        pixels = bytes(self._pixels[offset : offset + height * width * 4])
        image = Image.frombuffer("RGBA", (width, height), pixels, "raw", "RGBA", 0, 1)
        return Sprite(
            style=style,
            emoji=emoji,
            image=image,
            foot_left=left / width,
            foot_right=right / width,
        )

    def scaled(self, sprite: Sprite, width: int, height: int) -> Image.Image:
        """The sprite at a size in pixels; kept for the next time."""
        key = (sprite.style, sprite.emoji, width, height)
        image = self._scaled.get(key)
        if image is None:
            image = _resize(sprite.image, width, height)
            if len(self._scaled) < MAX_CACHED:
                self._scaled[key] = image
        return image

    def main_hue(self, sprite: Sprite) -> MainHue:
        """The hue that a tint replaces."""
        key = (sprite.style, sprite.emoji)
        if key not in self._hues:
            small = np.asarray(sprite.image.resize((48, 48)), np.float32) / 255
            self._hues[key] = main_hue(small)
        return self._hues[key]


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    if width < image.width:
        return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image.resize((width, height), Image.Resampling.BICUBIC)
