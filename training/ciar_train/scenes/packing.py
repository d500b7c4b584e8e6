"""An atlas in one small file: `CIARATL1`, the length of the index, the index, WebP sprites.

The index is JSON, `{"size": ..., "styles": {style: {emoji: [offset, length, foot_left,
foot_right]}}}` with feet as fractions of the width; its length is 4 bytes, little-endian.
Unpacking decodes the sprites, so packing what was unpacked loses a little at every turn.
"""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ciar.errors import InvalidInput
from ciar.output_file import replace_file
from ciar_train.scenes.atlas import Atlas

_MAGIC = b"CIARATL1"
_LENGTH = struct.Struct("<I")


class PackWriter:
    """Collects sprites and writes the packed atlas.

    Args:
        size: what the sprites' sides are at most, in pixels, with their margins.
        quality: of the WebP colours, 0 to 100; transparency is kept exactly.
    """

    def __init__(self, *, size: int, quality: int = 88) -> None:
        self._size = size
        self._quality = quality
        self._styles: dict[str, dict[str, list[float]]] = {}
        self._shared: dict[str, list[float]] = {}
        self._blobs: list[bytes] = []
        self._end = 0

    def add(self, style: str, emoji: str, image: Image.Image, *, feet: tuple[float, float]) -> None:
        """Add a sprite; hand-drawn ones, `svg:...`, are the same in every style and stored once."""
        entries = self._styles.setdefault(style, {})
        if emoji.startswith("svg:") and emoji in self._shared:
            entries[emoji] = self._shared[emoji]
            return
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=self._quality, alpha_quality=100, method=5, exact=False)
        blob = buffer.getvalue()
        entry = [self._end, len(blob), round(feet[0], 4), round(feet[1], 4)]
        entries[emoji] = self._shared[emoji] = entry
        self._blobs.append(blob)
        self._end += len(blob)

    def save(self, path: Path) -> None:
        """Write the file, at once."""
        header = json.dumps(
            {"size": self._size, "styles": self._styles}, ensure_ascii=False, separators=(",", ":")
        ).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, b"".join([_MAGIC, _LENGTH.pack(len(header)), header, *self._blobs]))


def pack_atlas(
    folder: Path | str,
    pack_path: Path | str,
    *,
    max_side: int = 192,
    quality: int = 88,
    styles: tuple[str, ...] | None = None,
) -> None:
    """Pack an atlas folder, its sprites at most `max_side` pixels a side."""
    atlas = Atlas(folder)
    writer = PackWriter(size=max_side, quality=quality)
    for style in styles or atlas.styles:
        for emoji in atlas.emojis(style):
            sprite = atlas.get(style, emoji)
            assert sprite is not None
            image = _shrink(sprite.image, max_side / atlas.size, max_side=max_side)
            writer.add(style, emoji, image, feet=(sprite.foot_left, sprite.foot_right))
    writer.save(Path(pack_path))


def unpack_atlas(pack_path: Path | str, folder: Path | str) -> None:
    """Unpack an atlas into a folder, which is made.

    Raises:
        InvalidInput: the file is no packed atlas, or a damaged one.
    """
    header, sprites = _read_pack(Path(pack_path))
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    index: dict[str, dict[str, list[int]]] = {}
    end = 0
    with open(out / "atlas.bin", "wb") as file:
        for style, entries in header["styles"].items():
            index[style] = {}
            for emoji, (offset, size, left, right) in entries.items():
                pixels = _pixels(sprites[offset : offset + size], Path(pack_path))
                height, width = pixels.shape[:2]
                feet = (round(left * width), round(right * width))
                index[style][emoji] = [end, height, width, *feet]
                file.write(pixels.tobytes())
                end += pixels.size
    # The index comes last and at once: it makes the atlas complete.
    replace_file(out / "index.json", json.dumps({"size": header["size"], "styles": index}).encode())


def _read_pack(path: Path) -> tuple[dict[str, Any], memoryview]:
    """The index, and all sprites. Raises `InvalidInput`, also if a sprite is not all there."""
    raw = path.read_bytes()
    if not raw.startswith(_MAGIC):
        raise InvalidInput("atlas", str(path), "is no packed atlas (CIARATL1)")
    start = len(_MAGIC) + _LENGTH.size
    try:
        (length,) = _LENGTH.unpack(raw[len(_MAGIC) : start])
        header: dict[str, Any] = json.loads(raw[start : start + length])
        styles = header["styles"].values()
        ends = (offset + size for style in styles for offset, size, *_ in style.values())
        end = max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
    sprites = memoryview(raw)[start + length :]
    if len(sprites) < end:
        raise _damaged(path)
    return header, sprites


def _pixels(sprite: memoryview, path: Path) -> np.ndarray:
    """uint8 RGBA [height, width, 4]. Raises `InvalidInput`."""
    try:
        return np.asarray(Image.open(io.BytesIO(sprite)).convert("RGBA"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's, for what is no picture
        raise _damaged(path) from error


def _damaged(path: Path) -> InvalidInput:
    return InvalidInput("atlas", str(path), "is cut off or damaged: copy or build it again")


def _shrink(image: Image.Image, scale: float, *, max_side: int) -> Image.Image:
    if max(image.size) <= max_side:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)
