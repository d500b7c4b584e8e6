"""Precision and recall, and the distances to nearest neighbours that they are counted by."""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2048  # rows of a matrix of pairs at a time


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares from 0 to 1."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def neighbour_radii(features: Tensor, num_neighbours: int) -> Tensor:
    """Distance of each of n pictures, features [n, D], to its k-th nearest other, [n]."""
    found = [
        torch.cdist(rows, features).kthvalue(num_neighbours + 1, dim=1).values
        for rows in torch.split(features, CHUNK)
    ]
    return torch.cat(found)
