"""`ciar.models.neighbours` for one image at the edge: places and tables in plain integers."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from ciar.models.neighbours import NeighbourEmbedding
from ciar.models.ngrams import NgramLookup
from ciar.order import Rows
from ciar_edge.matrix import matrix


class PreparedNeighbours:
    """Equal to `NeighbourEmbedding` up to rounding.

    k rows   T image tokens   K neighbours   J tables   w width of a code   D width
    V codebook size
    """

    def __init__(self, module: NeighbourEmbedding) -> None:
        self.count = module.config.count
        self.num_columns = module.mix.in_features  # (K + J) w
        self.outside = module.outside
        self.places: list[list[int]] = module.places.tolist()  # [T][num_places]
        self.codes = module.codes.weight  # [V + 1, w]
        self.mix = matrix(module.mix.weight)  # (K + J) w -> D
        self.positions = module.positions.weight  # [T, D]
        self.lookup = None
        if module.ngrams is not None:
            self.lookup = NgramLookup(module.ngrams)
            self.gates, self.gate_bias = module.gates.weight, module.gates.bias  # [J, D], [J]
            self.recalled = module.recalled.weight  # [V + 1, D]

    def look(self, tokens: Sequence[int], rows: Rows, ranks: Sequence[int]) -> list[list[int]]:
        """Neighbours and followers [k][K + J] around the cells behind those of rows.

        tokens: known ones, by rank.  ranks: of cells, and of what is outside.
        """
        found = []
        for cell, known in zip(rows.cells, rows.known, strict=True):
            around = [
                tokens[rank] if (rank := ranks[place]) < known else self.outside
                for place in self.places[cell + 1]
            ]
            followers = self.lookup.followers(around) if self.lookup else []
            found.append(around[1 : self.count + 1] + followers)
        return found

    def rows(self, ids: list[list[int]], cells: Sequence[int]) -> Tensor:
        """[k, D] for what `look` found."""
        codes = self.codes[list(chain.from_iterable(ids))].view(len(ids), self.num_columns)
        if len(cells) == 1:  # a slice is a view
            return self.mix(codes) + self.positions[cells[0] + 1 : cells[0] + 2]
        return self.mix(codes) + self.positions[[cell + 1 for cell in cells]]

    def recall(self, hidden: Tensor, followers: Sequence[Sequence[int]]) -> Tensor:
        """h [m, D], drawn to their followers [m][J]."""
        if len(hidden) == 1:  # half the time of products of matrices
            gates = torch.addmv(self.gate_bias, self.gates, hidden[0])  # [J]
            return torch.addmv(hidden[0], self.recalled[followers[0]].t(), gates)[None]
        gates = torch.addmm(self.gate_bias, hidden, self.gates.t())  # [m, J]
        rows = self.recalled[list(chain.from_iterable(followers))].view(*gates.shape, -1)
        return torch.baddbmm(hidden[:, None], gates[:, None], rows)[:, 0]
