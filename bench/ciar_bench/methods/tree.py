"""A tree of drafted tokens behind the known ones.

k nodes, parents before their children   n known tokens   T image tokens   V codebook size
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ciar.feed import Scatter

ROOT = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class DraftTree:
    """tokens, parents: [k]; a parent is an index of a node, or ROOT, the last known token.

    proposals: [k, V] what each node was drawn from, if it was drawn; else None.
    """

    tokens: Tensor
    parents: Tensor
    proposals: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def children(self, node: int) -> Tensor:
        """Indices of the nodes right behind a node, in the order they were proposed."""
        return (self.parents == node).nonzero()[:, 0]


def chain(tokens: Tensor, proposals: Tensor | None = None) -> DraftTree:
    return DraftTree(tokens=tokens, parents=torch.arange(len(tokens)) - 1, proposals=proposals)


def ancestry(parents: Tensor) -> Tensor:
    """[k, k] bool: the j-th node is on the path to the i-th, itself included."""
    count = len(parents)
    found = torch.eye(count, dtype=torch.bool)
    for node, parent in enumerate(parents.tolist()):
        if parent != ROOT:
            found[node] |= found[parent]
    return found


def scattered(
    known: Sequence[int],
    tree: DraftTree,
    *,
    num_tokens: int,
    vocab_size: int,
    num_cached: int,
    first: int = 0,
) -> Scatter:
    """How the nodes from `first` on enter a model that has cached so many image rows.

    All cached ones but the last `first`, which are the nodes before, are of known tokens.
    """
    paths = ancestry(tree.parents)  # [k, k]
    positions = len(known) + paths.sum(1) - 1  # [k]
    grids = torch.full((len(tree), num_tokens), vocab_size)
    grids[:, : len(known)] = torch.tensor(known)
    nodes, ancestors = paths.nonzero(as_tuple=True)
    grids[nodes, positions[ancestors]] = tree.tokens[ancestors]
    before = torch.ones(len(tree) - first, num_cached - first, dtype=torch.bool)
    return Scatter(
        positions=positions[first:],
        grids=grids[first:],
        sees=torch.cat([before, paths[first:]], dim=1),
    )
