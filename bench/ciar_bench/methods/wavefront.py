"""Decoding along a wavefront, after ZipAR (He et al. 2024): the cloud alone, rows in parallel.

A row begins as soon as the row above is `window` tokens ahead, and every row takes one token a
forward pass. A token attends to what is known and stands before it in raster order; what is not
known yet is missing from its context, so this is not the base's distribution. The first token of a
row whose predecessor is unknown is predicted from a stand-in, the newest token of the row above:
nobody else attends to that one.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ciar.feed import Feed, Scatter
from ciar.sampling import Noise, coupled_draw
from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import SLOT, BenchModel, prefill
from ciar_bench.methods.costs import DrawnImage, pay_whole_image
from ciar_bench.methods.settings import need_positive


@dataclass(frozen=True, kw_only=True)
class Wavefront:
    """window: tokens that a row waits for the row above; a whole row makes it the base."""

    window: int = 4
    name = "wavefront"

    def __post_init__(self) -> None:
        need_positive(window=self.window)

    @torch.inference_mode()
    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        condition, costs = bench.encode(prompt), bench.meter()
        started = time.perf_counter()
        image = Wave(bench, condition, sampling, self.window)
        image.begin()
        while not image.is_complete:
            image.advance()
        costs.cloud_seconds = time.perf_counter() - started
        pay_whole_image(costs, prompt, num_tokens=bench.num_tokens, vocab_size=bench.vocab_size)
        return DrawnImage(tokens=tuple(image.grid.tolist()), costs=costs)


class Wave:
    """grid: [T] known tokens, V where unknown.

    cached: positions of the image rows in the cache, in the order they came; -1 for stand-ins.
    """

    def __init__(
        self, bench: BenchModel, condition: Tensor, sampling: SamplingParams, window: int
    ) -> None:
        self.bench, self.condition, self.sampling, self.window = bench, condition, sampling, window
        self.noise = Noise(sampling.seed, vocab_size=bench.vocab_size)
        self.side = bench.target.config.grid_size
        self.grid = torch.full((bench.num_tokens,), bench.vocab_size)
        self.cached: list[int] = []
        self.counts = [0] * self.side  # known tokens of each row

    @property
    def is_complete(self) -> bool:
        return self.counts[-1] == self.side

    def begin(self) -> None:
        """The prefill brings token 0."""
        (logits,) = self.bench.target.extend([prefill(self.condition, self.sampling)])
        self._draw(0, logits[-1])

    def advance(self) -> None:
        """One forward pass: every row that may takes its next token."""
        wanted = [row * self.side + self.counts[row] for row in self.ready_rows()]
        fed = sorted({p - 1 for p in wanted} | set(self.finished_unfed()))
        is_known = [int(self.grid[p]) < self.bench.vocab_size for p in fed]
        logits = self._feed(torch.tensor(fed), torch.tensor(is_known))
        self.cached += [p if known else -1 for p, known in zip(fed, is_known, strict=True)]
        for position in wanted:
            self._draw(position, logits[fed.index(position - 1)])

    def ready_rows(self) -> list[int]:
        """Rows that are not complete, and far enough behind the one above."""
        found = []
        for row, count in enumerate(self.counts):
            above = self.counts[row - 1] if row else self.side
            if count < self.side and above >= min(count + self.window, self.side):
                found.append(row)
        return found

    def finished_unfed(self) -> list[int]:
        """Last tokens of complete rows that the cache lacks, as their successor had a stand-in."""
        ends = [(row + 1) * self.side - 1 for row, n in enumerate(self.counts) if n == self.side]
        return [p for p in ends if p not in self.cached and p < self.bench.num_tokens - 1]

    def _feed(self, fed: Tensor, is_known: Tensor) -> Tensor:
        """Logits [n, V] behind the positions fed [n]."""
        grids = self.grid.expand(len(fed), -1).clone()
        for index in (~is_known).nonzero()[:, 0].tolist():
            row = (int(fed[index]) + 1) // self.side - 1  # the row above the one that begins
            newest = row * self.side + self.counts[row] - 1
            grids[index, fed[index]] = self.grid[newest]
        everyone = torch.tensor(self.cached + torch.where(is_known, fed, -1).tolist())
        sees = (everyone >= 0) & (everyone <= fed[:, None])  # [n, cached + n]
        sees[:, len(self.cached) :] |= torch.eye(len(fed), dtype=torch.bool)
        feed = Feed(
            slot=SLOT,
            num_condition=len(self.condition),
            position=len(self.cached),
            tokens=grids.gather(1, fed[:, None])[:, 0],
            cfg_scale=self.sampling.cfg_scale,
            cfg_interval=self.sampling.cfg_interval,
            scatter=Scatter(positions=fed, grids=grids, sees=sees),
        )
        (logits,) = self.bench.target.extend([feed])
        return logits

    def _draw(self, position: int, logits: Tensor) -> None:
        self.grid[position] = coupled_draw(logits, position, self.sampling, self.noise)
        self.counts[position // self.side] += 1
