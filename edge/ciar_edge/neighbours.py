"""`ciar.models.neighbours` for one image at the edge: places and tables in plain integers."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from ciar.models.neighbours import NeighbourEmbedding
from ciar.models.ngrams import NgramLookup
from ciar_edge.matrix import matrix


class PreparedNeighbours:
    """Equal to `NeighbourEmbedding` up to rounding.

    n tokens   T image tokens   K neighbours   J tables   w width of a code   D width
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

    def look(self, tokens: Sequence[int], first: int) -> list[list[int]]:
        """Neighbours and followers [n - first][K + J] for the tokens from `first` on of n."""
        count, found = len(tokens), []
        for places in self.places[first + 1 : count + 1]:
            around = [tokens[place] if place < count else self.outside for place in places]
            followers = self.lookup.followers(around) if self.lookup else []
            found.append(around[1 : self.count + 1] + followers)
        return found

    def rows(self, ids: list[list[int]], first: int) -> Tensor:
        """[n - first, D] for what `look` found."""
        codes = self.codes[list(chain.from_iterable(ids))].view(len(ids), self.num_columns)
        return self.mix(codes) + self.positions[first + 1 : first + 1 + len(ids)]

    def recall(self, hidden: Tensor, followers: list[int]) -> Tensor:
        """h [D], drawn to its followers [J]."""
        gates = torch.addmv(self.gate_bias, self.gates, hidden)  # [J]
        return torch.addmv(hidden, self.recalled[followers].t(), gates)
