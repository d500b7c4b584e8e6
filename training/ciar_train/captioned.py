"""Captioned pictures as people have them: folders, and WebDataset archives.

A folder has `captions.jsonl`, a line `{"file": ..., "prompt": ...}` a picture, or a text file of
the same name beside each picture. An archive (`.tar`) has both as members of one key: all before
the first dot of the name; captions may be `.txt`, or `.json` with a field `caption` or `prompt`.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ciar.errors import InvalidInput

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CAPTION_FIELDS = ("caption", "prompt", "text")
OPEN_ARCHIVES = 8


@dataclass(frozen=True)
class Item:
    """A picture, unread. path: of the file, or of the archive that has it as `member`."""

    caption: str
    path: Path
    member: str = ""

    def read(self, size: int) -> np.ndarray:
        """uint8 RGB [size, size, 3]: the shortest side brought to `size`, the middle of the rest.

        Raises `OSError` for what is no picture.
        """
        data = archive(self.path).extractfile(self.member) if self.member else None
        source = io.BytesIO(data.read()) if data else self.path
        with Image.open(source) as image:
            return squared(image.convert("RGB"), size)


@lru_cache(maxsize=OPEN_ARCHIVES)
def archive(path: Path) -> tarfile.TarFile:
    return tarfile.open(path)


def squared(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, 3]"""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - size) // 2, (height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def items_print(items: Sequence[Item]) -> str:
    """16 hex digits that change with any caption, and with any file's name, size or time."""
    digest, states = hashlib.sha256(), {path: state(path) for path in {i.path for i in items}}
    for item in items:
        known = [item.caption, str(item.path.absolute()), item.member, *states[item.path]]
        digest.update(json.dumps(known).encode())
    return digest.hexdigest()[:16]


def state(path: Path) -> tuple[int, int]:
    """Bytes, and nanoseconds of the last change; zeros for what cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def list_items(sources: Sequence[Path]) -> list[Item]:
    """Every picture that has a caption, in a fixed order. Raises `InvalidInput`."""
    found: list[Item] = []
    for source in sources:
        if source.is_dir():
            archives = sorted(source.glob("*.tar"))
            found += (item for path in archives for item in archive_items(path))
            found += () if archives else folder_items(source)
        elif source.suffix == ".tar" and source.is_file():
            found += archive_items(source)
        else:
            raise InvalidInput("source", str(source), "give a folder of pictures, or a .tar file")
    if not found:
        raise InvalidInput(
            "source",
            ", ".join(map(str, sources)),
            "give pictures with captions: captions.jsonl, or NAME.txt beside NAME.jpg",
        )
    return found


def folder_items(folder: Path) -> Iterator[Item]:
    index = folder / "captions.jsonl"
    if index.exists():
        text = decoded(index.read_bytes(), index)
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                values = json.loads(line)
                caption, path = str(values["prompt"]), folder / values["file"]
            except (ValueError, KeyError, TypeError) as error:
                remedy = f'give an object with "file" and "prompt" ({error!r})'
                raise InvalidInput(f"{index}, line {number}", line, remedy) from error
            if not path.is_file():
                raise InvalidInput(f"{index}, line {number}", str(path), "is not there")
            yield Item(caption, path)
        return
    for path in sorted(folder.rglob("*")):
        beside = path.with_suffix(".txt")
        if path.suffix.lower() in SUFFIXES and beside.exists():
            caption = first_line(decoded(beside.read_bytes(), beside))
            if caption:
                yield Item(caption, path)


def archive_items(path: Path) -> Iterator[Item]:
    """Members with one key, picture and caption, in the archive's order."""
    pictures: dict[str, str] = {}
    captions: dict[str, str] = {}
    try:
        for member in archive(path):
            name = PurePosixPath(member.name)
            suffix = name.suffix.lower()
            key = str(name.parent / name.name.split(".")[0])
            if suffix in SUFFIXES:
                pictures[key] = member.name
            elif suffix in (".txt", ".json") and (data := archive(path).extractfile(member)):
                captions[key] = caption_in(decoded(data.read(), f"{path}, {member.name}"), suffix)
    except InvalidInput:
        raise
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InvalidInput("source", str(path), f"is no readable archive: {error}") from error
    for key, member_name in pictures.items():
        if captions.get(key):
            yield Item(captions[key], path, member_name)


def caption_in(text: str, suffix: str) -> str:
    """Empty where there is none."""
    if suffix == ".txt":
        return first_line(text)
    values = json.loads(text)
    found = (values.get(field) for field in CAPTION_FIELDS) if isinstance(values, dict) else ()
    return first_line(str(next((one for one in found if one), "")))


def decoded(data: bytes, where: str | Path) -> str:
    """Text in UTF-8. Raises `InvalidInput` that says where it is."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(str(where), str(error), "give captions in UTF-8") from None


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
