"""Where the next token stands and what stands around it: a draft model's input beside its tokens.

A draft of one layer attends once. To see the tokens above the next position it would spend its
heads on finding them, and rotary embeddings never tell it where in the picture it is. Both come
with the input here:

    x_(p-1) = E(token p-1) + P_p + W concat(C(token at the 1st neighbour of p), ..., C(K-th))

C is one table of codes for all neighbours. Its last row stands for places outside the image.

    T image tokens   K neighbours   w width of a code   D width   V codebook size
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ciar.models.transformer import TransformerConfig

REACH = 4  # rows and columns
CODE_STD = 0.3


@dataclass(frozen=True, kw_only=True)
class NeighbourConfig:
    count: int = 0  # K; 0: none, as published
    width: int = 64  # w

    def __post_init__(self) -> None:
        if not 0 <= self.count <= len(OFFSETS):
            raise ValueError(f"count: {self.count}: give 0 to {len(OFFSETS)} neighbours")
        if self.width < 1:
            raise ValueError(f"width: {self.width}: give a positive number")


def causal_offsets() -> list[tuple[int, int]]:
    """(rows, columns) from the next position to known tokens around it, the nearest first.

    Without the one just before it, which is the input itself.
    """
    columns = range(-REACH, REACH + 1)
    found = [(row, column) for row in range(-REACH, 0) for column in columns]
    found += [(0, column) for column in range(-REACH, -1)]
    return sorted(found, key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, *offset))


OFFSETS = causal_offsets()


def neighbour_places(grid_size: int, count: int) -> list[list[int]]:
    """[T][K]: positions of every position's neighbours, T where that is outside the image."""
    outside = grid_size**2
    places = []
    for position in range(outside):
        row, column = divmod(position, grid_size)
        cells = [(row + down, column + right) for down, right in OFFSETS[:count]]
        is_inside = [r >= 0 and 0 <= c < grid_size for r, c in cells]
        places.append(
            [
                r * grid_size + c if ok else outside
                for (r, c), ok in zip(cells, is_inside, strict=True)
            ]
        )
    return places


class NeighbourEmbedding(nn.Module):
    places: Tensor

    def __init__(self, config: TransformerConfig, neighbours: NeighbourConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.config = neighbours
        self.outside = config.vocab_size  # row of C
        self.codes = nn.Embedding(config.vocab_size + 1, neighbours.width)
        self.mix = nn.Linear(neighbours.count * neighbours.width, config.dim, bias=False)
        self.positions = nn.Embedding(config.num_tokens, config.dim)
        nn.init.zeros_(self.positions.weight)
        nn.init.normal_(self.codes.weight, std=CODE_STD)
        nn.init.zeros_(self.mix.weight)
        self.register_buffer("places", torch.empty(0), persistent=False)
        self.rebuild_tables("cpu")

    def rebuild_tables(self, device: torch.device | str) -> None:
        """The places are not in the weights."""
        with torch.device("cpu"):
            places = torch.tensor(neighbour_places(self.grid_size, self.config.count))
        self.places = places.to(device)  # [T, K]

    def forward(self, tokens: Tensor, first: int) -> Tensor:
        """For the tokens from `first` on of tokens [..., n]: rows [..., n - first, D]."""
        count = tokens.shape[-1]
        outside = tokens.new_full((*tokens.shape[:-1], 1), self.outside)
        known = torch.cat([tokens, outside], dim=-1)
        places = self.places[first + 1 : count + 1].clamp(max=count)  # of the next positions
        codes = self.codes(known[..., places])  # [..., n - first, K, w]
        rows: Tensor = self.mix(codes.flatten(-2)) + self.positions.weight[first + 1 : count + 1]
        return rows
