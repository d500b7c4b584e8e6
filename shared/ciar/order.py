"""The order in which the tokens of an image are drawn: raster, or along a wavefront.

    wave(row, column) = column + c row

A row begins once the row above is `c` tokens ahead (after ZipAR, He et al. 2024); c tokens or more
to a row make every wave one token, and that is raster order. Tokens are drawn wave by wave, and
within a wave row by row:

    rank   place in this order, 0..T-1: what sessions, batches and verdicts count in
    cell   place in the picture, 0..T-1, in raster order: what noise and neighbours go by

A token depends on what stands before its cell in raster order *and* is of an earlier wave: never on
another one of its own. So the same ranks with the same tokens give the same next tokens, whoever
holds them and in however many steps they were fed.

A token is predicted by the row of the cell before it. The first of a row would need the last of the
row above, which is not there yet: a stand-in takes its place, the newest token of the row above,
which nothing else looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.errors import InvalidInput

CONDITION = -1  # predicts the first token of an image

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """k rows fed to a model: known tokens in order from rank `start` on, then stand-ins.

    cells: [k] where in the picture each row stands.
    holds: [k] rank of the token that it holds.
    known: [k] how many tokens are known to it.
    outputs: of the rows that predict the wanted tokens; CONDITION for the last row of the prompt.
    """

    start: int
    num_tokens: int
    cells: Sequence[int]
    holds: Sequence[int]
    known: Sequence[int]
    outputs: Sequence[int]

    @property
    def end(self) -> int:
        """Rank behind the last of the known tokens that are fed."""
        return self.start + self.num_tokens


class Order:
    """Of one size of image.

    wavefront: c; 0 is a whole row.  grid_size: tokens a side.  Raises `InvalidInput`.
    """

    def __init__(self, grid_size: int, wavefront: int = 0) -> None:
        check_wavefront(wavefront, grid_size=grid_size)
        self.grid_size, self.num_tokens = grid_size, grid_size**2
        self.ahead = wavefront or grid_size
        waves = [cell % grid_size + self.ahead * (cell // grid_size) for cell in self._every]
        self.cells = sorted(self._every, key=lambda cell: (waves[cell], cell))
        self.ranks = [0] * self.num_tokens + [self.num_tokens]  # by cell; outside: never known
        for rank, cell in enumerate(self.cells):
            self.ranks[cell] = rank
        ends = {waves[cell]: rank + 1 for rank, cell in enumerate(self.cells)}
        self._ends = [ends[waves[cell]] for cell in self.cells]
        starts = {end: rank for rank, end in reversed(list(enumerate(self._ends)))}
        self._starts = [starts[end] for end in self._ends]
        self._sources = [self._source(rank) for rank in self._every]
        self._columns = ids(self.cells)

    @property
    def _every(self) -> range:
        return range(self.num_tokens)

    @property
    def is_raster(self) -> bool:
        return self.ahead == self.grid_size

    @property
    def max_batch_tokens(self) -> int:
        """Of a batch that leaves room for its stand-ins behind the tokens in a slot: at the end of
        an image there is room for one, and its last two rows have more tokens than that.
        """
        return self.num_tokens if self.is_raster else 2 * self.grid_size - 2

    def wave(self, rank: int) -> range:
        """Ranks of the tokens of a wave, from `rank` on."""
        return range(rank, self._ends[rank])

    def to_raster(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """Values by rank, one of each token, as values by cell."""
        return tuple(values[self.ranks[cell]] for cell in self._every)

    def _source(self, rank: int) -> int | None:
        """Of the token in the cell before, whose row predicts that of `rank`; None: a stand-in's
        does.
        """
        cell = self.cells[rank]
        before = self.ranks[cell - 1] if cell else CONDITION
        return before if before < self._starts[rank] else None

    def span(self, wanted: range) -> tuple[int, int]:
        """What has to be fed to predict the tokens of ranks `wanted`, of one or more waves.

        The rank of the first row that predicts one of them, and the rank behind the last token that
        any of them depends on.
        """
        if not wanted:
            return wanted.start - 1, wanted.start - 1
        sources = [self._sources[rank] for rank in wanted]
        end = max(
            self._starts[rank] if source is None else source + 1
            for rank, source in zip(wanted, sources, strict=True)
        )
        return min((source for source in sources if source is not None), default=end), end

    def rows(self, start: int, end: int, wanted: range) -> Rows:
        """The known tokens from rank `start` to `end`, and the stand-ins that `wanted` takes."""
        count, outputs = end - start, []
        cells, holds = self.cells[start:end], [*range(start, end)]
        known = [*range(start + 1, end + 1)]
        for rank in wanted:
            source = self._sources[rank]
            if source is None:
                cell = self.cells[rank]
                outputs.append(len(cells))
                cells.append(cell - 1)
                holds.append(self.ranks[cell - self.grid_size + self.ahead - 1])
                known.append(self._starts[rank])
            else:
                outputs.append(max(source - start, CONDITION))
        return Rows(
            start=start, num_tokens=count, cells=cells, holds=holds, known=known, outputs=outputs
        )

    def sees(self, rows: Rows) -> Tensor:
        """[k, start + k] bool: which of the cached rows and of those fed each one looks at."""
        is_known = torch.arange(rows.end) < ids(rows.known)[:, None]
        seen = is_known & (self._columns[: rows.end] <= ids(rows.cells)[:, None])  # [k, end]
        count = len(rows.cells)
        num_stand_ins = count - rows.num_tokens
        own = torch.eye(count, dtype=torch.bool)[:, rows.num_tokens :]
        return F.pad(seen, (0, num_stand_ins)) | F.pad(own, (rows.end, 0))

    def grids(self, rows: Rows, tokens: Sequence[int], *, unknown: int) -> Tensor:
        """[k, T] by cell: what is known to each row, a stand-in's own token in its cell.

        tokens: by rank, as many as are known.  unknown: what stands for the others.
        """
        values = ids([*tokens[: self.num_tokens], unknown])
        ranks = ids(self.ranks[:-1]).expand(len(rows.cells), -1)  # [k, T]
        is_known = ranks < ids(rows.known)[:, None]
        grids = values[torch.where(is_known, ranks, len(values) - 1)]
        return grids.scatter(1, ids(rows.cells)[:, None], values[ids(rows.holds)][:, None])


def ids(values: Sequence[int]) -> Tensor:
    """int64, of nothing too."""
    return torch.tensor(values, dtype=torch.long)


@lru_cache(maxsize=16)
def order_of(grid_size: int, wavefront: int = 0) -> Order:
    """The one order of these: it is the same for all images."""
    return Order(grid_size, wavefront)


def check_wavefront(wavefront: int, *, grid_size: int) -> None:
    """Raise `InvalidInput` unless a row can begin so many tokens behind the one above."""
    if not 0 <= wavefront <= grid_size:
        remedy = f"give 1 to {grid_size - 1} tokens, or 0 for raster order"
        raise InvalidInput("wavefront", wavefront, remedy)
