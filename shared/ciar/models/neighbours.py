"""Where the next token stands and what stands around it: an input beside the tokens.

A layer that attends once would spend its heads on finding the tokens above the next position, and
rotary embeddings never tell it where in the picture it is. Both can come with the input:

    x_(p-1) = E(token p-1) + P_p + W concat(C(token at the 1st neighbour of p), ..., C(K-th),
                                            C(1st follower of p), ..., C(J-th))

C is one table of codes. Its last row stands for places outside the image, and for followers that
are unknown. Followers: see `ciar.models.ngrams`. They are met again at the end, where the hidden
state says how far it goes along with each:

    h_p  ->  h_p + sum_j g_j(h_p) R(j-th follower of p)

    T image tokens   K neighbours   J tables   w width of a code   D width   V codebook size
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ciar.models.ngrams import MAX_SLOTS, NgramTables

REACH = 4  # rows and columns
CODE_STD = 0.3


@dataclass(frozen=True, kw_only=True)
class NeighbourConfig:
    """All of it is ours; as published, there is none."""

    count: int = 0  # K
    width: int = 64  # w
    ngrams: tuple[int, ...] = ()  # J numbers of tokens in a context, ascending
    ngram_slots: int = 1 << 20  # of each table

    def __post_init__(self) -> None:
        if not 0 <= self.count < len(PLACES):
            raise ValueError(f"count: {self.count}: give 0 to {len(PLACES) - 1} neighbours")
        if self.width < 1:
            raise ValueError(f"width: {self.width}: give a positive number")
        is_ascending = list(self.ngrams) == sorted(set(self.ngrams))
        if not is_ascending or not all(0 < n <= len(PLACES) for n in self.ngrams):
            raise ValueError(
                f"ngrams: {list(self.ngrams)}: give ascending numbers from 1 to {len(PLACES)}"
            )
        if self.ngram_slots.bit_count() != 1 or self.ngram_slots > MAX_SLOTS:
            raise ValueError(
                f"ngram_slots: {self.ngram_slots}: give a power of 2 up to {MAX_SLOTS}"
            )

    @property
    def is_empty(self) -> bool:
        return not self.count and not self.ngrams

    @property
    def num_places(self) -> int:
        """Places around a position that are looked at, the one before it included."""
        return max(self.count + 1, *self.ngrams, 0)


def causal_places() -> list[tuple[int, int]]:
    """(rows, columns) from the next position to known tokens around it.

    First the one just before it, which is the input itself, then the others, the nearest first.
    """
    columns = range(-REACH, REACH + 1)
    found = [(row, column) for row in range(-REACH, 0) for column in columns]
    found += [(0, column) for column in range(-REACH, -1)]
    nearest = sorted(found, key=lambda place: (place[0] ** 2 + place[1] ** 2, *place))
    return [(0, -1), *nearest]


PLACES = causal_places()


def places_around(grid_size: int, count: int) -> list[list[int]]:
    """[T][count]: positions of the `PLACES` around each, T where that is outside the image."""
    outside = grid_size**2
    found = []
    for position in range(outside):
        row, column = divmod(position, grid_size)
        cells = [(row + down, column + right) for down, right in PLACES[:count]]
        is_inside = [r >= 0 and 0 <= c < grid_size for r, c in cells]
        found.append(
            [
                r * grid_size + c if ok else outside
                for (r, c), ok in zip(cells, is_inside, strict=True)
            ]
        )
    return found


class NeighbourEmbedding(nn.Module):
    places: Tensor

    def __init__(
        self, config: NeighbourConfig, *, vocab_size: int, grid_size: int, dim: int
    ) -> None:
        super().__init__()
        self.config = config
        self.grid_size = grid_size
        self.outside = vocab_size  # row of C
        self.codes = nn.Embedding(vocab_size + 1, config.width)
        num_codes = config.count + len(config.ngrams)
        self.mix = nn.Linear(num_codes * config.width, dim, bias=False)
        self.positions = nn.Embedding(grid_size**2, dim)
        self.ngrams = None
        if config.ngrams:
            self.ngrams = NgramTables(
                config.ngrams, num_slots=config.ngram_slots, vocab_size=vocab_size
            )
            self.gates = nn.Linear(dim, len(config.ngrams))
            self.recalled = nn.Embedding(vocab_size + 1, dim, padding_idx=vocab_size)  # R
        self.reset()
        self.register_buffer("places", torch.empty(0), persistent=False)
        self.rebuild_tables("cpu")

    def reset(self) -> None:
        """Random codes that add nothing yet."""
        nn.init.zeros_(self.positions.weight)
        nn.init.normal_(self.codes.weight, std=CODE_STD)
        nn.init.zeros_(self.mix.weight)
        if self.ngrams is not None:
            nn.init.zeros_(self.gates.weight)
            nn.init.zeros_(self.gates.bias)

    def rebuild_tables(self, device: torch.device | str) -> None:
        """The places are not in the weights."""
        with torch.device("cpu"):
            places = torch.tensor(places_around(self.grid_size, self.config.num_places))
        self.places = places.to(device)  # [T, num_places]
        if self.ngrams is not None:
            self.ngrams.rebuild_tables(device)

    def around(self, tokens: Tensor, first: int) -> Tensor:
        """What stands around the position after each of the tokens from `first` on.

        tokens [..., n] -> [..., n - first, num_places] ids, V where nothing is.
        """
        count = tokens.shape[-1]
        outside = tokens.new_full((*tokens.shape[:-1], 1), self.outside)
        known = torch.cat([tokens, outside], dim=-1)
        return known[..., self.places[first + 1 : count + 1].clamp(max=count)]

    def recall(self, hidden: Tensor, followers: Tensor) -> Tensor:
        """Hidden states [..., D] towards their followers [..., J]."""
        pull: Tensor = self.gates(hidden)[..., None, :] @ self.recalled(followers)  # [..., 1, D]
        return hidden + pull[..., 0, :]

    def forward(self, tokens: Tensor, first: int) -> tuple[Tensor, Tensor | None]:
        """For the tokens from `first` on of tokens [..., n]: rows [..., n - first, D].

        And the followers [..., n - first, J] of the positions after them, for `recall`.
        """
        following = torch.arange(first + 1, tokens.shape[-1] + 1, device=self.places.device)
        return self._rows(self.around(tokens, first), following)

    def scattered(self, grids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """For n tokens, each in a picture of its own: rows [n, D] and followers [n, J].

        grids: [n, T] known tokens, V where unknown.  positions: [n] of the tokens, not the last.
        """
        outside = grids.new_full((len(grids), 1), self.outside)
        known = torch.cat([grids, outside], dim=1)
        return self._rows(known.gather(1, self.places[positions + 1]), positions + 1)

    def _rows(self, around: Tensor, following: Tensor) -> tuple[Tensor, Tensor | None]:
        """From what stands around [..., n, num_places] the positions [n]."""
        followers = None
        ids = around[..., 1 : self.config.count + 1]
        if self.ngrams is not None:
            followers = self.ngrams(around)
            ids = torch.cat([ids, followers], dim=-1)  # [..., n, K + J]
        return self.mix(self.codes(ids).flatten(-2)) + self.positions(following), followers
