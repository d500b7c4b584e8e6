"""A cell: the pictures of one method for one list of captions, drawn once and kept.

    FOLDER/inputs.json     what it is made of; a cell of other inputs begins anew
    FOLDER/00000.png       a picture, as the quality measures read it
    FOLDER/00000.json      its tokens, costs, origins and scores; last, so the picture is whole
    FOLDER/pictures.jsonl  prompts and seeds, once all are there

Pictures are independent of each other: they are drawn in any order, by several processes, and an
interrupted cell goes on where it stopped.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ciar.checkpoint import CONFIG_FILE, fingerprint, read_config
from ciar.output_file import replace_file
from ciar.picture import Painter, save_picture
from ciar_bench.methods import make_method, parts_of, shortest
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import Costs, DrawnImage
from ciar_bench.quality.folder import INDEX, Caption, index_text, write_index

INPUTS = "inputs.json"

# Of the code that draws. Raise it when a method of the same settings and weights draws other tokens
# or counts other costs: by another rule, or by a default that is none of its settings.
VERSION = 1


@dataclass(frozen=True)
class Cell:
    """method: as `ciar_bench.methods.make_method` takes it, and kept by its shortest spelling.

    model: the bundle it draws with.
    again: counts further sets of the same method, of seeds of their own.
    Raises `InvalidInput` for what is no method.
    """

    method: str
    model: Path
    again: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", shortest(self.method))

    @property
    def inputs(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "method": repr(make_method(self.method)),
            "again": self.again,
            **state_of(self.model, parts_of(self.method)),
        }

    def folder(self, root: Path) -> Path:
        digest = digest_of(self.inputs)
        name = re.sub(r"[^a-z0-9+.-]+", "-", self.method.lower()) + ("-again" * self.again)
        return root / f"{name}-{digest[:8]}"

    def captions(self, captions: Sequence[Caption]) -> list[Caption]:
        """Those of the base, with other seeds in a further set."""
        shift = self.again * len(captions)
        return [replace(caption, seed=caption.seed + shift) for caption in captions]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A drawn picture, read back. seed, prompt: what it was drawn for."""

    prompt: str
    seed: int
    image: DrawnImage


def state_of(model: Path, parts: Iterable[str]) -> dict[str, Any]:
    """What changes when any of these parts of a bundle does, those that are not there left out.

    No fingerprint has the calibration of the edge's scores, which thresholds and budgets come from.
    """
    there = [part for part in parts if (model / part / CONFIG_FILE).exists()]
    found: dict[str, Any] = {"model": {part: fingerprint(model / part) for part in there}}
    if "edge" in there:
        found["calibration"] = digest_of(read_config(model / "edge").get("calibration", {}))
    return found


def digest_of(inputs: dict[str, Any]) -> str:
    """Changes when any of the JSON values does: 64 hex digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def read_kept(path: Path) -> dict[str, Any]:
    """The JSON object in a file that can be made again; empty if it is not there, or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def begin(cell: Cell, root: Path) -> Path:
    """The cell's folder, empty if what was in it has other inputs."""
    folder = cell.folder(root)
    stamp, inputs = folder / INPUTS, cell.inputs
    if read_kept(stamp) != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        replace_file(stamp, json.dumps(inputs, indent=1).encode())
    return folder


def missing(folder: Path, captions: Sequence[Caption]) -> list[int]:
    """Pictures that are not there, or were drawn for another caption."""
    return [i for i, caption in enumerate(captions) if not is_drawn(folder, i, caption)]


def is_drawn(folder: Path, index: int, caption: Caption) -> bool:
    path = folder / f"{index:05d}.json"
    if not path.exists():
        return False
    values = json.loads(path.read_text())
    return (values["prompt"], values["seed"]) == (caption.prompt, caption.seed)


def draw_picture(
    cell: Cell, folder: Path, index: int, caption: Caption, bench: BenchModel, painter: Painter
) -> None:
    sampling = replace(bench.sampling, seed=caption.seed)
    image = make_method(cell.method).draw(bench, caption.prompt, sampling)
    record = folder / f"{index:05d}.json"
    record.unlink(missing_ok=True)  # until the picture is whole, nothing is known of it
    save_picture(folder / f"{index:05d}.png", painter.paint(image.tokens), {})
    values = {
        "prompt": caption.prompt,
        "seed": caption.seed,
        "tokens": image.tokens,
        "costs": asdict(image.costs),
        "origins": image.origins,
        "scores": [None if math.isnan(s) else s for s in image.scores],
    }
    replace_file(record, json.dumps(values).encode())


def finish(folder: Path, captions: Sequence[Caption]) -> None:
    """Write the index, unless it is there and says the same."""
    entries = [(f"{i:05d}.png", caption) for i, caption in enumerate(captions)]
    path = folder / INDEX
    if not path.exists() or path.read_text() != index_text(entries):
        write_index(folder, entries)


def read_record(folder: Path, index: int) -> Record:
    values = json.loads((folder / f"{index:05d}.json").read_text())
    image = DrawnImage(
        tokens=tuple(values["tokens"]),
        costs=Costs(**values["costs"]),
        origins=tuple(values["origins"]),
        scores=tuple(math.nan if s is None else s for s in values["scores"]),
    )
    return Record(prompt=values["prompt"], seed=values["seed"], image=image)


def read_tokens(folder: Path, count: int) -> np.ndarray:
    """[count, T]"""
    return np.array([read_record(folder, index).image.tokens for index in range(count)])
