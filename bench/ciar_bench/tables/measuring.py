"""Numbers of a cell: quality against the reference and the base, costs, agreement with the base.

What was measured is kept beside the pictures, and measured again only when its inputs changed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ciar.output_file import replace_file
from ciar_bench.methods.costs import COUNTS
from ciar_bench.quality.bootstrap import Estimate, mean_estimate
from ciar_bench.quality.feature_cache import PictureSet
from ciar_bench.quality.folder import PictureFolder
from ciar_bench.quality.report import (
    Instruments,
    check_pairs,
    differences,
    estimates,
    measurements,
    noise_floor,
)
from ciar_bench.tables.cells import digest_of, read_kept, read_record, read_tokens

KEPT, KEPT_FLOOR = "measured.json", "floor.json"

# Of the code that measures. Raise it when the same pictures get other numbers, or more of them.
VERSION = 1

Numbers = dict[str, Estimate]


def measure_cell(
    folder: Path,
    base: Path,
    reference: PictureSet,
    instruments: Instruments,
    *,
    size: int | None = None,
) -> Numbers:
    """Everything about one cell by name; `NAME - base` and `NAME / base` are paired.

    size: pixels to which pictures are brought first, those of the reference.
    """
    pictures, bases = PictureFolder(folder, size=size), PictureFolder(base, size=size)

    def measure() -> Numbers:
        own = measurements(pictures, reference, instruments)
        found = estimates(own)
        if folder != base:
            check_pairs(pictures, bases)
            found |= estimates(differences(own, measurements(bases, reference, instruments)))
        return found | cost_numbers(folder, len(pictures)) | agreement(folder, base, len(pictures))

    return kept(folder / KEPT, measure, [pictures, bases], reference, instruments)


def measure_floor(
    again: Path,
    base: Path,
    reference: PictureSet,
    instruments: Instruments,
    *,
    size: int | None = None,
) -> Numbers:
    """Quality of a further set of the base's pictures, and what differs from the first by chance:
    see `noise_floor`.
    """
    pictures, bases = PictureFolder(again, size=size), PictureFolder(base, size=size)

    def measure() -> Numbers:
        own = estimates(measurements(pictures, reference, instruments))
        floor = noise_floor(bases, pictures, reference, instruments)
        return own | floor | agreement(again, base, len(pictures))

    return kept(again / KEPT_FLOOR, measure, [pictures, bases], reference, instruments)


def cost_numbers(folder: Path, count: int) -> Numbers:
    """Means over pictures: `calls` and `decided` as shares of the image, the rest as counted."""
    records = [read_record(folder, index).image for index in range(count)]
    found = {
        name: mean_estimate(np.array([getattr(image.costs, name) for image in records]))
        for name in COUNTS
    }
    calls = np.array([image.cloud_calls for image in records])
    decided = np.array([image.costs.decided / len(image.tokens) for image in records])
    return found | {"calls": mean_estimate(calls), "decided share": mean_estimate(decided)}


def agreement(folder: Path, base: Path, count: int) -> Numbers:
    """`disagreement`: share of tokens unlike those of the base's picture of that prompt."""
    differs = read_tokens(folder, count) != read_tokens(base, count)  # [count, T]
    return {"disagreement": mean_estimate(differs.mean(1))}


def kept(
    path: Path,
    measure: Callable[[], Numbers],
    folders: Sequence[PictureFolder],
    reference: PictureSet,
    instruments: Instruments,
) -> Numbers:
    """What `measure` gives, from the file if that is of the same pictures, captions and code."""
    inputs = {
        "version": VERSION,
        "sets": [{"tag": one.tag, **one.source()} for one in (*folders, reference)],
        "captions": [[asdict(caption) for caption in one.captions] for one in folders],
        "extractors": [one.fingerprint for one in instruments.extractors],
        "scorers": [one.fingerprint for one in instruments.scorers],
    }
    digest = digest_of(inputs)
    values = read_kept(path)
    if values.get("inputs") == digest:
        return {name: Estimate(**row) for name, row in values["numbers"].items()}
    found = measure()
    numbers = {name: asdict(estimate) for name, estimate in found.items()}
    replace_file(path, json.dumps({"inputs": digest, "numbers": numbers}, indent=1).encode())
    return found
