"""Features of a set of pictures, computed once and kept beside them.

`features-NAME.npy` lies in the pictures' folder; `features-NAME.json` says what it was computed of:
the extractor's weights and the pictures' names, sizes and times. When that differs from what is
there now, they are computed again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ciar.errors import OutputError
from ciar_bench.quality.features import FeatureExtractor
from ciar_train.progress import Progress, say_nothing


class PictureSet(Protocol):
    """Pictures on disk, in a fixed order.

    folder: where their features are kept.  tag: what tells their feature files from others there.
    """

    folder: Path
    tag: str

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[Tensor]:
        """uint8 [n, 3, H, W], one after another."""
        ...

    def source(self) -> Mapping[str, Any]:
        """What changes when the pictures do, as JSON values."""
        ...


def picture_features(
    pictures: PictureSet, extractor: FeatureExtractor, *, progress: Progress = say_nothing
) -> Tensor:
    """Float32 [n, D]. Raises `InvalidInput` for pictures, `OutputError` for a folder, of no use."""

    def compute() -> np.ndarray:
        rows: list[Tensor] = []
        done = 0
        for batch in pictures.batches():
            rows.append(extractor(batch))
            done += len(batch)
            progress(done, len(pictures), f"features {extractor.name}{pictures.tag}")
        return torch.cat(rows).numpy()

    path = pictures.folder / f"features-{extractor.name}{pictures.tag}.npy"
    source = {"extractor": extractor.fingerprint, **pictures.source()}
    return torch.from_numpy(cached_array(path, source, compute))


def cached_array(
    path: Path, source: Mapping[str, Any], compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The array in `path` (.npy), if it was computed of `source`; else it is computed and kept."""
    note, text = path.with_suffix(".json"), json.dumps(source, indent=1, sort_keys=True)
    if path.exists() and note.exists() and note.read_text() == text:
        found: np.ndarray = np.load(path)
        return found
    array, part = compute(), path.with_suffix(".part")
    try:
        note.unlink(missing_ok=True)  # until the array is whole, it is of nothing
        with part.open("wb") as file:
            np.save(file, array)
        part.replace(path)
        note.write_text(text)
    except OSError as error:
        raise OutputError(f"{path}: features cannot be kept there: {error}") from error
    return array


def files_source(paths: Sequence[Path]) -> dict[str, Any]:
    """How many files, and a hash of their names, sizes and times of change."""
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return {"count": len(paths), "files": digest.hexdigest()}
