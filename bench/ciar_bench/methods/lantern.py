"""LANTERN (Jang et al. 2025): EAGLE-2 that lets a token stand for its neighbours in the codebook.

The neighbours A of a draft x are the longest run of its nearest codes, at most `neighbours` of
them, whose probability stays within `delta`. x stands with p~(x) = p(x) + p(A), which is p(A) away
from p in total variation. On rejection x and A are taken out of p (ours: not all of the nearest
codes, which may leave nothing; if nothing is left, p stays as it was).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import DrawnImage
from ciar_bench.methods.eagle2 import Eagle2
from ciar_bench.methods.speculative import (
    Accept,
    Ruling,
    draw_by_rounds,
    first_true,
    normalized,
    uniform,
)

CHUNK = 1024  # codes compared with all others at a time


@dataclass(frozen=True, kw_only=True)
class Lantern(Eagle2):
    """neighbours: k.  delta: greatest sum of their probabilities."""

    neighbours: int = 1000
    delta: float = 0.1
    name = "lantern"

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        table = nearest_codes(bench.codebook, self.neighbours)
        accept = (
            relaxed_rule(table, self.delta)
            if sampling.temperature
            else greedy_rule(table, lambda own: torch.full_like(own, self.delta))
        )
        return draw_by_rounds(bench, prompt, sampling, self.propose, accept)


@lru_cache(maxsize=4)
def nearest_codes(codebook: Tensor, count: int) -> Tensor:
    """For each of the codes [V, d] the nearest others in order, [V, count]."""
    count = min(count, len(codebook) - 1)
    if not count:
        return torch.empty(len(codebook), 0, dtype=torch.long)
    found = []
    for rows in torch.split(torch.arange(len(codebook)), CHUNK):
        distance = torch.cdist(codebook[rows], codebook)
        distance[torch.arange(len(rows)), rows] = torch.inf
        found.append(distance.topk(count, largest=False).indices)
    return torch.cat(found)


def relaxed_mass(p: Tensor, token: Tensor, table: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """p(A) of a token, and p [V] without it and A.

    bound: greatest sum of probabilities.
    """
    near = table[token]  # [k]
    own = p[near]
    is_within = own.cumsum(0) <= bound
    rest = p.scatter(0, near, own.masked_fill(is_within, 0)).index_fill(0, token[None], 0)
    return (own * is_within).sum(), rest


def relaxed_rule(table: Tensor, delta: float) -> Accept:
    """table: [V, k] neighbours."""

    def accept(p: Tensor, tokens: Tensor, _: Tensor | None, generator: torch.Generator) -> Ruling:
        bound, chances = torch.tensor(delta).to(p), []
        for token in tokens:
            mass, rest = relaxed_mass(p, token, table, bound)
            chances.append(p[token] + mass)
            p = normalized(rest, p)
        stands = uniform(len(tokens), generator) < torch.stack(chances)
        return Ruling(first_true(stands), p)

    return accept


def greedy_rule(table: Tensor, bound: Callable[[Tensor], Tensor]) -> Accept:
    """At temperature 0 x stands if p~(x) is not below any other code's p.

    table: [V, k] neighbours.  bound: p [c] of drafts to the greatest sums of their neighbours' [c].
    """

    def accept(p: Tensor, tokens: Tensor, _: Tensor | None, __: torch.Generator) -> Ruling:
        own, near = p[tokens], p[table[tokens]]  # [c], [c, k]
        is_within = near.cumsum(1) <= bound(own)[:, None]
        relaxed = own + (near * is_within).sum(1)  # [c]
        values, codes = p.topk(2)
        others = torch.where(tokens == codes[0], values[1], values[0])  # the largest but x's own
        return Ruling(first_true(relaxed >= others), p)

    return accept
