"""Draws scenes to disk in shards, in parallel, and goes on where an interrupted run stopped.

A shard is `images-00000.npy` (uint8 [n, H, W, 3]) and `captions-00000.jsonl` (n lines). Both are
renamed into place when they are whole, the pictures last, so a picture file means a whole shard.
Scene `start + i` is the same whatever the number of workers and wherever a run was interrupted.
"""

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .generator import Atlas, BackgroundBank, Scene, SceneGenerator, Split
from .recipe import Recipe, RecipeError

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class _Shard:
    number: int
    start: int
    count: int


@dataclass(frozen=True, kw_only=True)
class _Job:
    recipe: Recipe
    atlas_path: Path
    out_dir: Path
    backgrounds_path: Path | None
    split: Split | None
    num_captions: int


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
    progress: Progress | None = None,
    shard_size: int = 4096,
    backgrounds_path: Path | str | None = None,
    backgrounds_per: int = 8,
) -> None:
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    bank = Path(backgrounds_path) if backgrounds_path is not None else out / "backgrounds"
    job = _Job(
        recipe=recipe, atlas_path=Path(atlas_path), out_dir=out, backgrounds_path=bank,
        split=split, num_captions=num_captions,
    )
    shards = [
        _Shard(number=k, start=start + first, count=min(shard_size, count - first))
        for k, first in enumerate(range(0, count, shard_size))
    ]
    table = dict(recipe=recipe.to_table(), start=start, split=split, num_captions=num_captions, shard_size=shard_size)
    note = out / "draw.json"
    if note.exists() and json.loads(note.read_text()) != table:
        raise RecipeError(f"{out} holds scenes of another recipe: choose another folder, or empty it")
    note.write_text(json.dumps(table, indent=1))
    todo = [s for s in shards if not _is_complete(out, s)]
    done = count - sum(s.count for s in todo)
    if progress:
        progress(done, count, "scenes")
    if not todo:
        return
    if not Path(f"{bank}.json").exists():
        BackgroundBank.build(SceneGenerator(Atlas(str(atlas_path)), recipe), bank, per=backgrounds_per)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start, initargs=(job,)) as pool:
        futures = {pool.submit(_draw_shard, shard): shard for shard in todo}
        for future in as_completed(futures):
            future.result()
            done += futures[future].count
            if progress:
                progress(done, count, "scenes")


_worker: dict[str, Any] = {}


def _start(job: _Job) -> None:
    bank = BackgroundBank.open(job.backgrounds_path)
    _worker["job"] = job
    _worker["generator"] = SceneGenerator(Atlas(str(job.atlas_path)), job.recipe, split=job.split, backgrounds=bank)


def _is_complete(out: Path, shard: _Shard) -> bool:
    path = out / f"images-{shard.number:05d}.npy"
    return path.exists() and len(np.load(path, mmap_mode="r")) == shard.count


def _draw_shard(shard: _Shard) -> None:
    job, generator = _worker["job"], _worker["generator"]
    size = job.recipe.size
    images = np.empty((shard.count, size, size, 3), np.uint8)
    lines = []
    for row in range(shard.count):
        scene = generator.sample(shard.start + row, num_captions=job.num_captions)
        images[row] = scene.image
        lines.append(json.dumps(dict(captions=scene.captions, nouns=scene.nouns, place=scene.place, time=scene.time, style=scene.style)))
    captions = job.out_dir / f"captions-{shard.number:05d}.jsonl"
    partial = captions.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, captions)
    target = job.out_dir / f"images-{shard.number:05d}.npy"
    partial = target.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.save(file, images)
    os.replace(partial, target)
