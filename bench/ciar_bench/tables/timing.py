"""Latency of methods in one run: each draws every prompt in turn, in one process of one thread.

A ratio is that of one prompt's images, drawn one right after another; the median is over prompts,
and the interval that of the median. Edge and cloud share the machine and take turns; a link is
added from what was counted (`Costs.latency`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ciar.output_file import replace_file
from ciar_bench.machine import describe_machine
from ciar_bench.methods import make_method
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import Costs
from ciar_bench.quality.bootstrap import Estimate, bootstrap
from ciar_bench.quality.folder import Caption
from ciar_bench.tables.cells import Cell, digest_of, read_kept
from ciar_train.progress import Progress, say_nothing

NUM_PROMPTS = 16
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Timings:
    """machine: it was measured on.  costs: of every method's images, prompt by prompt."""

    machine: str
    costs: dict[str, list[Costs]]

    @property
    def num_prompts(self) -> int:
        return len(self.costs[BASE])

    def speedup(self, method: str, *, rtt: float = 0.0, bandwidth: float = math.inf) -> Estimate:
        """Latency of the base over that of the method, on a link as in `Costs.latency`."""
        base, own = (
            np.array([costs.latency(rtt=rtt, bandwidth=bandwidth) for costs in self.costs[name]])
            for name in (BASE, method)
        )
        return median_estimate(base / own)

    def edge_milliseconds(self, method: str, *, num_tokens: int) -> Estimate:
        """Time of the edge a token of the image."""
        seconds = np.array([own.edge_seconds for own in self.costs[method]])
        return median_estimate(1000 * seconds / num_tokens)


def median_estimate(values: np.ndarray) -> Estimate:
    """The median over prompts [P], with the interval of the median."""
    return bootstrap(lambda picked: float(np.median(values[picked])), len(values)).estimate()


def measure_timings(
    cells: Sequence[Cell],
    captions: Sequence[Caption],
    root: Path,
    *,
    num_prompts: int = NUM_PROMPTS,
    device: str = "cpu",
    progress: Progress = say_nothing,
) -> Timings:
    """Of all cells and the base, by the first prompts, measured together; kept in `root`.

    All cells are of one model.
    """
    assert len({cell.model for cell in cells}) == 1, "one model at a time"
    prompts = [caption.prompt for caption in captions[:num_prompts]]
    inputs = {"cells": [cell.inputs for cell in cells], "prompts": prompts, "device": device}
    path = root / f"timings-{digest_of(inputs)[:12]}.json"
    kept = read_kept(path)
    if not kept:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        found = time_all(cells, captions[:num_prompts], device=device, progress=progress)
        torch.set_num_threads(threads)
        values = {name: [asdict(costs) for costs in rows] for name, rows in found.items()}
        kept = {"machine": describe_machine(), "costs": values}
        root.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(kept).encode())
    costs = {name: [Costs(**row) for row in rows] for name, rows in kept["costs"].items()}
    return Timings(machine=kept["machine"], costs=costs)


def time_all(
    cells: Sequence[Cell], captions: Sequence[Caption], *, device: str, progress: Progress
) -> dict[str, list[Costs]]:
    bench = BenchModel.load(cells[0].model, device=device)
    names = list(dict.fromkeys([BASE, *(cell.method for cell in cells)]))
    found: dict[str, list[Costs]] = {name: [] for name in names}
    for number, caption in enumerate([captions[0], *captions]):  # the first warms up
        for name in names:
            sampling = replace(bench.sampling, seed=caption.seed)
            image = make_method(name).draw(bench, caption.prompt, sampling)
            if number:
                found[name].append(image.costs)
        progress(number, len(captions), "timed prompts")
    return found
