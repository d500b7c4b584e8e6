"""A folder of generated pictures: `00000.png`, ... beside `pictures.jsonl`, a line a picture:

    {"file": "00000.png", "prompt": "a cat at sea", "seed": 0, "nouns": ["cat"], "place": "ocean"}

`nouns` and `place` are what a probe should find, so `place` is left out where the prompt does not
say it. Without `pictures.jsonl` all images of the folder count, and nothing is known of them.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ciar.errors import InvalidInput
from ciar_bench.quality.feature_cache import files_source
from ciar_bench.quality.features import read_pictures

INDEX = "pictures.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a picture was drawn for.

    nouns: the kinds of things in it.  place: where they are, if the prompt says so.
    """

    prompt: str
    seed: int
    nouns: tuple[str, ...] = ()
    place: str | None = None


class PictureFolder:
    """Its pictures in the order of their index, or of their names.

    captions: one a picture, or none at all.
    size: pixels to which they are brought when read, H and W.
    """

    def __init__(self, folder: Path, *, size: int | None = None) -> None:
        if not folder.is_dir():
            raise InvalidInput("folder", str(folder), "give a folder of pictures")
        self.folder, self.size = folder, size
        self.tag = f"-{size}" if size else ""
        self.captions: tuple[Caption, ...] = ()
        if (folder / INDEX).exists():
            entries = read_index(folder)
            self.paths = [path for path, _ in entries]
            self.captions = tuple(caption for _, caption in entries)
        else:
            self.paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if len(self.paths) < 2:
            raise InvalidInput("folder", str(folder), "give a folder of at least 2 pictures")

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self) -> Iterator[Tensor]:
        """uint8 [n, 3, H, W], one after another."""
        return read_pictures(self.paths, size=self.size)

    def source(self) -> dict[str, Any]:
        """What changes when the pictures do."""
        return files_source(self.paths)


def read_index(folder: Path) -> list[tuple[Path, Caption]]:
    """All of `pictures.jsonl`. Raises `InvalidInput`, naming the line."""
    entries = []
    for number, line in enumerate((folder / INDEX).read_text().splitlines(), start=1):
        where = f"{folder / INDEX}, line {number}"
        try:
            values = json.loads(line)
            path = folder / values["file"]
            caption = Caption(
                prompt=str(values["prompt"]),
                seed=int(values["seed"]),
                nouns=tuple(values.get("nouns", ())),
                place=values.get("place"),
            )
        except (ValueError, KeyError, TypeError) as error:
            remedy = f'give an object with "file", "prompt" and "seed" ({error!r})'
            raise InvalidInput(where, line, remedy) from error
        if not path.is_file():
            raise InvalidInput(where, values["file"], "is not there: draw it again")
        entries.append((path, caption))
    return entries


def write_index(folder: Path, entries: Iterable[tuple[str, Caption]]) -> None:
    """Write `pictures.jsonl` of file names and captions."""
    (folder / INDEX).write_text(index_text(entries))


def index_text(entries: Iterable[tuple[str, Caption]]) -> str:
    """What `pictures.jsonl` says of file names and captions."""
    lines = []
    for file, caption in entries:
        values = {k: v for k, v in asdict(caption).items() if v not in (None, ())}
        lines.append(json.dumps({"file": file} | values, ensure_ascii=False))
    return "\n".join(lines) + "\n"
