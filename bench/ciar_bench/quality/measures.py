"""Measures of a set of pictures as functions of which pictures are drawn, to be resampled.

    m reference pictures   n pictures   D width of a feature   k pictures drawn

What every draw needs is computed once: all that is of the reference alone (`Reference`), and all
distances between pairs (8 (m + n) n bytes). The reference stays as it is, so intervals are over
generated pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.errors import InvalidInput
from ciar_bench.quality.bootstrap import Measurement, Statistic, half_samples, mean_of
from ciar_bench.quality.distances import PrecisionRecall, neighbour_radii

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
NUM_NEIGHBOURS = 3
MOST_FOR_MEDIAN = 2048  # pictures of the reference
LEAST_PICTURES = 2 * (NUM_NEIGHBOURS + 1)  # a half must have as many neighbours


@dataclass(frozen=True, eq=False)
class Scores:
    """A number a picture, for those that have one.

    pictures: their indices, [s].  values: float64, [s].
    """

    pictures: np.ndarray
    values: np.ndarray


def measure_scores(scores: Mapping[str, Scores], *, seed: int = 0) -> dict[str, Measurement]:
    """Means over the pictures that have the score; scores that too few have are left out."""
    return {
        name: mean_of(found.values, seed=seed)
        for name, found in scores.items()
        if len(found.values) >= 2
    }


class Reference:
    """Features [m, D] of real pictures, and what can be said of them before others are known.

    label: of the extractor.
    """

    def __init__(self, features: Tensor, label: str) -> None:
        if len(features) < LEAST_PICTURES:
            raise InvalidInput("pictures", len(features), f"give at least {LEAST_PICTURES}")
        self.features, self.label = features.double(), label

    @cached_property
    def mean(self) -> Tensor:
        """[D]"""
        return self.features.mean(0)

    @cached_property
    def covariance(self) -> Tensor:
        """Unbiased, [D, D]."""
        return self.features.T.cov()

    @cached_property
    def root(self) -> Tensor:
        """The matrix root [D, D] of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root

    @cached_property
    def radii(self) -> Tensor:
        """To the nearest neighbours that count, [m]."""
        return neighbour_radii(self.features, NUM_NEIGHBOURS)

    @cached_property
    def unit(self) -> Tensor:
        """[m, D] of length 1."""
        return F.normalize(self.features)

    @cached_property
    def gamma(self) -> float:
        """1 / (2 sigma^2), with CMMD's sigma for CLIP, else the median distance."""
        is_usual = is_clip(self.label)
        sigma = CMMD_SIGMA if is_usual else float(torch.pdist(self.unit[:MOST_FOR_MEDIAN]).median())
        return 1 / (2 * sigma**2)

    @cached_property
    def mean_kernel(self) -> float:
        return float(torch.exp(-self.gamma * torch.cdist(self.unit, self.unit).square()).mean())


def measure_distances(
    reference: Reference, features: Tensor, *, seed: int = 0
) -> dict[str, Measurement]:
    """Frechet distance, CMMD, precision, recall and F1 of features [n, D]."""
    if len(features) < LEAST_PICTURES:
        raise InvalidInput("pictures", len(features), f"give at least {LEAST_PICTURES}")
    features, label = features.double(), reference.label
    neighbours = _Neighbours(reference, features)
    statistics: dict[str, Statistic] = {
        frechet_name(label): _frechet(reference, features),
        cmmd_name(label): _cmmd(reference, features),
        f"precision-{label}": lambda i: neighbours(i).precision,
        f"recall-{label}": lambda i: neighbours(i).recall,
        f"F1-{label}": lambda i: neighbours(i).f1,
    }
    return {
        name: half_samples(statistic, len(features), seed=seed)
        for name, statistic in statistics.items()
    }


def frechet_name(label: str) -> str:
    """FID is that of Inception alone."""
    return "FID" if label == "Inception" else f"FD-{label}"


def cmmd_name(label: str) -> str:
    """CMMD is that of CLIP alone."""
    return label.replace("CLIP", "CMMD", 1) if is_clip(label) else f"CMMD-like-{label}"


def is_clip(label: str) -> bool:
    return label.startswith("CLIP")


def _frechet(reference: Reference, features: Tensor) -> Statistic:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017).

    With the centred draw X [k, D] and the reference's covariance A = R R, tr (A B)^(1/2) is the sum
    of the singular values of X R over sqrt(k - 1): the square roots of the eigenvalues of the
    smaller of its two Gram matrices. So there is no D x D matrix where fewer pictures than D are
    drawn. It is biased upwards for few pictures: compare at equal counts only.
    """
    trace = reference.covariance.trace()
    projected = (features - reference.mean) @ reference.root  # [n, D]

    def distance(picked: np.ndarray) -> float:
        rows, drawn = projected[picked], features[picked]
        rows = rows - rows.mean(0)  # [k, D]
        gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
        freedom = len(picked) - 1
        cross = (torch.linalg.eigvalsh(gram).clamp(min=0) / freedom).sqrt().sum()
        shift = (drawn.mean(0) - reference.mean).square().sum()
        return float(shift + trace + drawn.var(0).sum() - 2 * cross)

    return distance


def _cmmd(reference: Reference, features: Tensor) -> Statistic:
    """1000 MMD^2 with a Gaussian kernel (Jayasumana et al. 2024, its V-statistic), all features
    scaled to length 1.
    """
    unit, gamma = F.normalize(features), reference.gamma
    inner = torch.exp(-gamma * torch.cdist(unit, unit).square())  # [n, n]
    across = torch.exp(-gamma * torch.cdist(reference.unit, unit).square()).mean(0)  # [n]

    def distance(picked: np.ndarray) -> float:
        own = float(inner[picked][:, picked].mean())
        return CMMD_SCALE * (reference.mean_kernel + own - 2 * float(across[picked].mean()))

    return distance


class _Neighbours:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of the drawn pictures, which are
    resampled together.

    Precision: share of them within a reference's distance to its k-th neighbour; recall: the same
    with the sets exchanged.
    """

    def __init__(self, reference: Reference, features: Tensor) -> None:
        self._own = torch.cdist(features, features)  # [n, n]
        self._across = torch.cdist(reference.features, features)  # [m, n]
        is_near = self._across <= reference.radii[:, None]
        self._is_precise = is_near.any(0).double()  # [n]

    def __call__(self, picked: np.ndarray) -> PrecisionRecall:
        own = self._own[picked][:, picked]
        radii = own.kthvalue(NUM_NEIGHBOURS + 1, dim=1).values  # [k]
        return PrecisionRecall(
            precision=float(self._is_precise[picked].mean()),
            recall=float((self._across[:, picked] <= radii).any(1).double().mean()),
        )
