"""Counts the n-grams of token grids into the tables of `ciar.models.ngrams`.

The pictures must not be those a model then trains on: it would find each one's own next token there
and trust the tables more than held-out pictures allow.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ciar.models.neighbours import NeighbourEmbedding
from ciar.models.ngrams import NgramTables

CHUNK = 4096  # pictures
RECALLED = "neighbours.recalled.weight"
ENTRIES = "neighbours.ngrams.entries"


@dataclass(frozen=True, kw_only=True, eq=False)
class NgramSource:
    """What tables are filled from: pictures to count, or what was counted before.

    tokens: ids [N, T].  entries: [J, R], of tables of the same contexts and size.
    """

    tokens: np.ndarray | None = None
    entries: Tensor | None = None

    def fill(self, neighbours: NeighbourEmbedding) -> None:
        """Fill the tables of a model, if it has any."""
        if self.tokens is not None:
            count_ngrams(neighbours, self.tokens)
        elif neighbours.ngrams is not None and self.entries is not None:
            neighbours.ngrams.entries.copy_(self.entries)


@torch.inference_mode()
def count_ngrams(neighbours: NeighbourEmbedding, tokens: np.ndarray) -> None:
    """Fill the tables from token ids [N, T], if the model has any."""
    tables = neighbours.ngrams
    if tables is None:
        return
    contexts = [place_contexts(neighbours, tables, part) for part in chunks(tokens)]
    following = tokens[:, 1:].astype(np.int64).reshape(-1)
    for number in range(len(tables.orders)):
        slots, tags = (
            np.concatenate([c[kind][..., number].reshape(-1) for c in contexts]) for kind in (0, 1)
        )
        entries = commonest(slots, tags, following, tables)
        tables.entries[number] = torch.from_numpy(entries.view(np.int16)).to(tables.entries.device)


@torch.no_grad()
def recall_as(neighbours: NeighbourEmbedding, output: nn.Linear) -> None:
    """Begin with followers drawing to their own rows of an output head, if there are tables."""
    if neighbours.ngrams is None:
        return
    neighbours.recalled.weight[: len(output.weight)] = output.weight


def chunks(tokens: np.ndarray) -> list[torch.Tensor]:
    parts = range(0, len(tokens), CHUNK)
    return [torch.from_numpy(tokens[first : first + CHUNK].astype(np.int64)) for first in parts]


def place_contexts(
    neighbours: NeighbourEmbedding, tables: NgramTables, tokens: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Slots and tags [N, T - 1, J] of the contexts of every position but the first."""
    tokens = tokens[:, :-1].to(tables.entries.device)
    slots, tags = tables.places(neighbours.around(tokens, 0))
    return slots.cpu().numpy().astype(np.int32), tags.cpu().numpy().astype(np.int32)


def commonest(
    slots: np.ndarray, tags: np.ndarray, following: np.ndarray, tables: NgramTables
) -> np.ndarray:
    """One table, uint16 [R]: of each slot the most frequent (follower, tag)."""
    entries = following * tables.num_tags + tags
    pairs, counts = np.unique(slots.astype(np.int64) << 16 | entries, return_counts=True)
    last = np.argsort(counts, kind="stable")  # the most frequent is written last
    table = np.full(tables.num_slots, -1, np.int16).view(np.uint16)
    table[pairs[last] >> 16] = (pairs[last] & 0xFFFF).astype(np.uint16)
    return table
