"""Draws the cells of a table, a picture at a time, in several processes of one thread each."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch

from ciar.picture import Painter
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.quality.folder import Caption
from ciar_bench.tables.cells import Cell, begin, draw_picture, finish, missing
from ciar_train.progress import Progress, say_nothing

PICTURES_PER_TASK = 4


def draw_cells(
    cells: Iterable[Cell],
    root: Path,
    captions: Sequence[Caption],
    *,
    num_workers: int,
    device: str = "cpu",
    progress: Progress = say_nothing,
) -> dict[Cell, Path]:
    """The folders of all cells, drawn as far as they were not; those of equal inputs are one.

    num_workers: 1 draws in this process, with the threads it has. An error of another one surfaces
        when what has begun is drawn.
    """
    folders = {cell: begin(cell, root) for cell in dict.fromkeys(cells)}
    cell_of = {folder: cell for cell, folder in folders.items()}
    tasks = []
    for folder, cell in cell_of.items():
        wanted = cell.captions(captions)
        left = missing(folder, wanted)
        for first in range(0, len(left), PICTURES_PER_TASK):
            picked = {i: wanted[i] for i in left[first : first + PICTURES_PER_TASK]}
            tasks.append((cell, folder, picked, device))
    total, done = sum(len(task[2]) for task in tasks), 0
    if num_workers == 1:
        for task in tasks:
            done += draw_some(*task)
            progress(done, total, "pictures")
    elif tasks:
        pool = ProcessPoolExecutor(
            num_workers, mp_context=get_context("spawn"), initializer=start_worker
        )
        try:
            for future in as_completed([pool.submit(draw_some, *task) for task in tasks]):
                done += future.result()
                progress(done, total, "pictures")
        finally:
            pool.shutdown(cancel_futures=True)
    for folder, cell in cell_of.items():
        finish(folder, cell.captions(captions))
    return folders


def start_worker() -> None:
    torch.set_num_threads(1)


def draw_some(cell: Cell, folder: Path, captions: dict[int, Caption], device: str) -> int:
    bench, painter = load(cell.model, device)
    for index, caption in captions.items():
        draw_picture(cell, folder, index, caption, bench, painter)
    return len(captions)


@lru_cache(maxsize=2)
def load(model: Path, device: str) -> tuple[BenchModel, Painter]:
    return BenchModel.load(model, device=device), Painter.load(model / "vq")
