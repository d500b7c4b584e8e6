"""Quality of a folder of pictures: against a reference, and against another method's pictures.

`measure_folder` gives values with their intervals, `compare` differences and ratios at the same
seeds and captions, `noise_floor` what differs between two sets that differ in their seeds alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ciar.errors import InvalidInput
from ciar_bench.quality.bootstrap import Estimate, Measurement
from ciar_bench.quality.feature_cache import PictureSet, picture_features
from ciar_bench.quality.features import FeatureExtractor
from ciar_bench.quality.folder import Caption
from ciar_bench.quality.measures import (
    Reference,
    Scores,
    measure_distances,
    measure_scores,
)
from ciar_train.progress import Progress, say_nothing


class CaptionedSet(PictureSet, Protocol):
    """Pictures, and what each was drawn for. captions: one a picture, or none at all."""

    captions: tuple[Caption, ...]


class PictureScorer(Protocol):
    """Numbers a picture, from features of its own and the caption. fingerprint: of its weights."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def extractor(self) -> FeatureExtractor: ...

    def score(self, features: Tensor, captions: Sequence[Caption]) -> dict[str, Scores]:
        """Of features [n, D]."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Instruments:
    """What to measure with: distances in the features of each extractor, and scores."""

    extractors: Sequence[FeatureExtractor] = ()
    scorers: Sequence[PictureScorer] = ()
    progress: Progress = field(default=say_nothing)
    _known: dict[str, Reference] = field(default_factory=dict)

    def known(self, reference: PictureSet, extractor: FeatureExtractor) -> Reference:
        """Features of real pictures, prepared once."""
        key = json.dumps([extractor.fingerprint, extractor.name, dict(reference.source())])
        if key not in self._known:
            features = picture_features(reference, extractor, progress=self.progress)
            self._known[key] = Reference(features, extractor.label)
        return self._known[key]


def measure_folder(
    folder: CaptionedSet, reference: PictureSet, instruments: Instruments
) -> dict[str, Estimate]:
    """Every measure by its name. Scores are left out where the folder has no captions."""
    return estimates(measurements(folder, reference, instruments))


def compare(
    folder: CaptionedSet, base: CaptionedSet, reference: PictureSet, instruments: Instruments
) -> dict[str, Estimate]:
    """`NAME - base` and `NAME / base` of every measure, picture by picture with the same draws.

    Raises `InvalidInput` unless both have the same prompts and seeds in the same order.
    """
    check_pairs(folder, base)
    own = measurements(folder, reference, instruments)
    others = measurements(base, reference, instruments)
    return estimates(differences(own, others))


def noise_floor(
    base: CaptionedSet, again: CaptionedSet, reference: PictureSet, instruments: Instruments
) -> dict[str, Estimate]:
    """`NAME - base` and `NAME / base` of base pictures of other seeds, and their distances from one
    another, `NAME to base`.

    Where picture i of both has the same prompt they are compared picture by picture, as methods
    are: what the prompts do cancels. Else each set has draws of its own.

    Raises `InvalidInput` if the sets share a pair of prompt and seed.
    """
    shared = {key(caption) for caption in base.captions} & {key(c) for c in again.captions}
    if shared:
        raise InvalidInput("floor", str(again.folder), "give pictures of other seeds than the base")
    others = measurements(base, reference, instruments)
    is_paired = [c.prompt for c in base.captions] == [c.prompt for c in again.captions]
    own = measurements(again, reference, instruments, seed=0 if is_paired else 1)
    between = measurements(again, base, Instruments(extractors=instruments.extractors))
    named = {f"{name} to base": found for name, found in between.items()}
    return estimates(differences(own, others) | named)


def measurements(
    folder: CaptionedSet, reference: PictureSet, instruments: Instruments, *, seed: int = 0
) -> dict[str, Measurement]:
    """Every measure with its replicates. Features that are kept in the folders are read."""
    progress = instruments.progress
    found: dict[str, Measurement] = {}
    for extractor in instruments.extractors:
        features = picture_features(folder, extractor, progress=progress)
        found |= measure_distances(instruments.known(reference, extractor), features, seed=seed)
    for scorer in instruments.scorers if folder.captions else ():
        features = picture_features(folder, scorer.extractor, progress=progress)
        found |= measure_scores(scorer.score(features, folder.captions), seed=seed)
    return found


def differences(
    own: Mapping[str, Measurement], others: Mapping[str, Measurement]
) -> dict[str, Measurement]:
    """`NAME - base` and `NAME / base` of what both have."""
    found = {}
    for name in own.keys() & others.keys():
        found[f"{name} - base"] = own[name].minus(others[name])
        found[f"{name} / base"] = own[name].over(others[name])
    return {name: found[name] for name in sorted(found)}


def estimates(found: Mapping[str, Measurement]) -> dict[str, Estimate]:
    return {name: measurement.estimate() for name, measurement in found.items()}


def key(caption: Caption) -> tuple[str, int]:
    """What must be the same in a pair."""
    return caption.prompt, caption.seed


def check_pairs(folder: CaptionedSet, base: CaptionedSet) -> None:
    """Raise `InvalidInput` unless picture i of both was drawn for the same prompt and seed."""
    own, others = [key(c) for c in folder.captions], [key(c) for c in base.captions]
    if not own or own != others:
        differing = [a for a, b in zip(own, others, strict=False) if a != b]
        first = differing[0] if differing else f"{len(own)} and {len(others)} of them"
        raise InvalidInput("pairs", first, f"draw the prompts and seeds of {base.folder}, in order")


def markdown(found: Mapping[str, Estimate], title: str) -> str:
    """A table: name, value, interval."""
    lines = [f"## {title}", "", "| what | value | 95% interval |", "| --- | --- | --- |"]
    lines += [f"| {n} | {e.value:.4g} | {e.low:.4g} to {e.high:.4g} |" for n, e in found.items()]
    return "\n".join(lines) + "\n"
