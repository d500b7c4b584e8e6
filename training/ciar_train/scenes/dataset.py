"""Draws scenes to disk in shards, in parallel, and goes on where an interrupted run stopped.

A shard is `images-00000.npy` (uint8 [n, size, size, 3]) and `captions-00000.jsonl` (n lines of
captions, nouns, place, time and style). Both are moved into place when they are whole, the
pictures last: a picture file with as many captions means a whole shard. `draw.json` says what the
folder holds.
Scene `start + i` is the same whatever the number of workers and wherever a run was interrupted.
"""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ciar.errors import InvalidInput
from ciar.output_file import replace_file, replacing
from ciar_train.progress import Progress, say_nothing
from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.backgrounds import BackgroundBank
from ciar_train.scenes.generator import Scene, SceneGenerator
from ciar_train.scenes.plan import Split
from ciar_train.scenes.recipe import Recipe

SHARD_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class _Shard:
    number: int
    start: int
    count: int

    def images_path(self, out_dir: Path) -> Path:
        return out_dir / f"images-{self.number:05d}.npy"

    def captions_path(self, out_dir: Path) -> Path:
        return out_dir / f"captions-{self.number:05d}.jsonl"

    def is_complete(self, out_dir: Path) -> bool:
        path = self.images_path(out_dir)
        if not path.exists():
            return False
        found = len(np.load(path, mmap_mode="r"))
        return found >= self.count and found == len(caption_lines(path))


def draw(
    recipe: Recipe,
    atlas_path: Path | str,
    out_dir: Path | str,
    *,
    start: int = 0,
    count: int,
    num_captions: int = 4,
    num_workers: int = 1,
    split: Split | None = None,
    progress: Progress = say_nothing,
    shard_size: int = SHARD_SIZE,
    backgrounds_path: Path | str | None = None,
) -> None:
    """Draw the scenes `start` to `start + count - 1` of a recipe into a folder.

    Args:
        atlas_path: folder of an unpacked atlas.
        out_dir: made if missing. Whole shards that are there already are kept, so that a larger
            `count` adds to them.
        num_captions: captions of every picture.
        num_workers: processes. With more than one the caller's main module must be importable
            without side effects (`if __name__ == "__main__":`).
        split: see `SceneGenerator`.
        progress: called with (scenes done, scenes in all, what is being done).
        shard_size: scenes in a shard.
        backgrounds_path: a bank of painted backgrounds, built if missing; in `out_dir` if None.

    Raises:
        InvalidInput: an argument is out of its range, or the folder holds other scenes.
    """
    _check(
        start=start,
        count=count,
        num_captions=num_captions,
        num_workers=num_workers,
        shard_size=shard_size,
    )
    out = Path(out_dir)
    atlas = Atlas(atlas_path)
    bank = Path(backgrounds_path or out / "backgrounds")
    task = {
        "recipe": recipe.to_table(),
        "atlas": atlas.fingerprint,
        "start": start,
        "split": split,
        "num_captions": num_captions,
        "shard_size": shard_size,
    }
    generator = SceneGenerator(atlas, recipe, split=split)
    _claim(out, task)
    if not BackgroundBank.exists(bank):
        BackgroundBank.build(generator, bank, progress=progress)
    BackgroundBank.open(bank).check(recipe)
    shards = _shards(start, count, size=shard_size)
    todo = [shard for shard in shards if not shard.is_complete(out)]
    done = count - sum(shard.count for shard in todo)
    settings = json.dumps(task | {"atlas_path": str(atlas_path), "backgrounds_path": str(bank)})
    progress(done, count, "scenes")
    for shard in _finished(settings, out, todo, num_workers=num_workers):
        done += shard.count
        progress(done, count, "scenes")


def _shards(start: int, count: int, *, size: int) -> list[_Shard]:
    return [
        _Shard(number=number, start=start + first, count=min(size, count - first))
        for number, first in enumerate(range(0, count, size))
    ]


def _check(**values: int) -> None:
    for name, value in values.items():
        lowest = 0 if name == "start" else 1
        if value < lowest:
            raise InvalidInput(name, value, f"use {lowest} or more")


def _claim(out_dir: Path, task: dict[str, Any]) -> None:
    """Write down what the folder is for, or compare it with what it is for already."""
    out_dir.mkdir(parents=True, exist_ok=True)
    note = out_dir / "draw.json"
    if not note.exists():
        replace_file(note, json.dumps(task, indent=1).encode())
        return
    other = json.loads(note.read_text(encoding="utf-8"))
    for key, value in task.items():
        if other.get(key) != value:
            remedy = f"holds scenes of another {key}: choose another folder, or empty this one"
            raise InvalidInput("out_dir", str(out_dir), remedy)


def _finished(
    settings: str, out_dir: Path, shards: list[_Shard], *, num_workers: int
) -> Iterator[_Shard]:
    """Draw the shards; yields each when it is on disk."""
    if num_workers == 1 or len(shards) <= 1:
        for shard in shards:
            yield _draw_shard(settings, out_dir, shard)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(shards)), mp_context=context) as pool:
        futures = [pool.submit(_draw_shard, settings, out_dir, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@cache
def _open_generator(settings: str) -> SceneGenerator:
    """One generator for each process and task: it keeps the sprites it has scaled."""
    task = json.loads(settings)
    return SceneGenerator(
        Atlas(task["atlas_path"]),
        Recipe.from_table(task["recipe"]),
        split=task["split"],
        backgrounds=BackgroundBank.open(task["backgrounds_path"]),
    )


def _draw_shard(settings: str, out_dir: Path, shard: _Shard) -> _Shard:
    generator = _open_generator(settings)
    num_captions = json.loads(settings)["num_captions"]
    size = generator.recipe.size
    images = np.empty((shard.count, size, size, 3), np.uint8)
    lines = []
    for row in range(shard.count):
        scene = generator.sample(shard.start + row, num_captions=num_captions)
        images[row] = scene.image
        lines.append(json.dumps(_describe(scene), ensure_ascii=False))
    replace_file(shard.captions_path(out_dir), ("\n".join(lines) + "\n").encode())
    with replacing(shard.images_path(out_dir)) as part, part.open("wb") as file:
        np.save(file, images)
    return shard


def captions_beside(images: Path) -> Path:
    """Where the captions of a shard are, from where its pictures are."""
    return images.with_name(images.name.replace("images-", "captions-")).with_suffix(".jsonl")


def caption_lines(images: Path) -> list[str]:
    """Those beside the pictures of a shard: one a picture if it is whole, none without a file."""
    path = captions_beside(images)
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _describe(scene: Scene) -> dict[str, Any]:
    return {
        "captions": scene.captions,
        "nouns": scene.nouns,
        "place": scene.place,
        "time": scene.time,
        "style": scene.style,
    }
