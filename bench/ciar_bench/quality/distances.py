"""Distances between two sets of features, the reference first.

    n, m pictures of the two sets   D width of a feature

All are computed in float64. `Moments` and `frechet_distance` need no features kept, the others look
at every pair.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2048  # rows of a matrix of pairs at a time
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class Moments:
    """Mean and covariance of features that come a batch at a time (Chan, Golub and LeVeque)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)  # [D]
        self._scatter = torch.zeros(width, width, dtype=torch.float64)  # [D, D]

    def add(self, features: Tensor) -> None:
        """features: [n, D]."""
        features = features.double().cpu()
        if not len(features):
            return
        count, mean = len(features), features.mean(0)
        centred, shift = features - mean, mean - self.mean
        total = self.count + count
        self._scatter += centred.T @ centred
        self._scatter += torch.outer(shift, shift) * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased, [D, D]. Raises `ValueError` below two pictures."""
        if self.count < 2:
            raise ValueError(f"pictures: {self.count}: give at least 2")
        return self._scatter / (self.count - 1)


def frechet_distance(reference: Moments, other: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017).

    By the eigenvalues of A^(1/2) B A^(1/2), which are those of A B, real and not negative. It is
    biased upwards for few pictures: compare at equal counts only.
    """
    a, b = reference.covariance, other.covariance
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    shift = (reference.mean - other.mean).square().sum()
    return float(shift + a.trace() + b.trace() - 2 * cross)


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def precision_recall(
    reference: Tensor, other: Tensor, *, num_neighbours: int = 3
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of features [n, D] and [m, D].

    Precision: share of the others within a reference's distance to its k-th neighbour; recall: the
    same with the sets exchanged.
    """
    a, b = reference.double(), other.double()
    least = min(len(a), len(b))
    if least <= num_neighbours:
        raise ValueError(f"pictures: {least}: give more than {num_neighbours}")
    return PrecisionRecall(
        precision=_covered(b, a, neighbour_radii(a, num_neighbours)),
        recall=_covered(a, b, neighbour_radii(b, num_neighbours)),
    )


def neighbour_radii(features: Tensor, num_neighbours: int) -> Tensor:
    """Distance of each of [n, D] to its k-th nearest other, [n]."""
    found = [
        torch.cdist(rows, features).kthvalue(num_neighbours + 1, dim=1).values
        for rows in torch.split(features, CHUNK)
    ]
    return torch.cat(found)


def _covered(features: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of features [m, D] within the radius [n] of some centre [n, D]."""
    found = [(torch.cdist(rows, centres) <= radii).any(1) for rows in torch.split(features, CHUNK)]
    return float(torch.cat(found).double().mean())


def cmmd(reference: Tensor, other: Tensor, *, sigma: float = CMMD_SIGMA) -> float:
    """1000 MMD^2 with the Gaussian kernel of width sigma (Jayasumana et al. 2024, its V-statistic).

    features: [n, D] and [m, D]; those of CLIP are scaled to length 1 before.
    """
    a, b = reference.double(), other.double()
    pairs = _mean_kernel(a, a, sigma) + _mean_kernel(b, b, sigma) - 2 * _mean_kernel(a, b, sigma)
    return CMMD_SCALE * pairs


def _mean_kernel(a: Tensor, b: Tensor, sigma: float) -> float:
    gamma = 1 / (2 * sigma**2)
    total = 0.0
    for rows in torch.split(a, CHUNK):
        total += float(torch.exp(-gamma * torch.cdist(rows, b).square()).sum())
    return total / (len(a) * len(b))
