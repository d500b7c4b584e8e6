"""LANTERN++ (Park et al. 2025): a tree of one shape, drawn by chance, and a bound that scales.

Children are drawn from q without replacement, each from what its elder siblings left. The
neighbours of a draft may have up to (lam - 1) p(x) together, so p~(x) <= lam p(x), and x stands
with min(1, p~ / q). On rejection p keeps what it has more than q, which counts no neighbours. At
temperature 0 x stands as in LANTERN, under this bound.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import DrawnImage
from ciar_bench.methods.eagle_drafter import EagleDrafter
from ciar_bench.methods.lantern import greedy_rule, nearest_codes
from ciar_bench.methods.speculative import (
    Accept,
    Ruling,
    draw,
    draw_by_rounds,
    first_true,
    need_room,
    normalized,
    uniform,
)
from ciar_bench.methods.tree import ROOT, DraftTree


@dataclass(frozen=True, kw_only=True)
class LanternStatic:
    """neighbours: k.  lam: greatest p~ / p.  levels: nodes at each depth."""

    neighbours: int = 10
    lam: float = 5.0
    levels: tuple[int, ...] = (4, 8, 8, 3, 2)
    name = "lantern++"

    def __post_init__(self) -> None:
        if self.lam < 1:
            raise ValueError(f"lam: {self.lam}: give at least 1")
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels: {self.levels}: give positive counts")
        need_room("levels", sum(self.levels))

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        table = nearest_codes(bench.codebook, self.neighbours)
        accept = (
            scaled_rule(table, self.lam)
            if sampling.temperature
            else greedy_rule(table, lambda own: (self.lam - 1) * own)
        )
        return draw_by_rounds(bench, prompt, sampling, self.propose, accept)

    def propose(
        self, drafter: EagleDrafter, expected: Tensor, depth: int, generator: torch.Generator
    ) -> DraftTree:
        tree = DraftTree(
            tokens=torch.empty(0, dtype=torch.long), parents=torch.empty(0, dtype=torch.long)
        )
        level, behind = torch.tensor([ROOT]), expected  # to propose behind, and what predicted it
        for index, width in enumerate(self.levels[:depth]):
            if index:
                expected = drafter.expand(tree, int(level[0]), behind)
            q = drafter.proposals(expected)  # [level, V]
            ranks = shape(len(level), width)  # [width, 2] (parent, draw)
            count = min(int(ranks[:, 1].max()) + 1, q.shape[-1])
            ranks = ranks[ranks[:, 1] < count]
            tokens = draw(q, generator, count=count)[ranks[:, 0], ranks[:, 1]]
            is_possible = q[ranks[:, 0], tokens] > 0
            ranks, tokens = ranks[is_possible], tokens[is_possible]
            first, origin = len(tree), q[ranks[:, 0]]
            tree = DraftTree(
                tokens=torch.cat([tree.tokens, tokens]),
                parents=torch.cat([tree.parents, level[ranks[:, 0]]]),
                proposals=origin if tree.proposals is None else torch.cat([tree.proposals, origin]),
            )
            level, behind = torch.arange(first, len(tree)), expected[:, ranks[:, 0]]
            if not len(level):
                break
        return tree


def shape(num_parents: int, width: int) -> Tensor:
    """Which draw of which parent the nodes of a level are, [width, 2], by parent.

    The smallest products of both ranks, counted from 1: the first parent has the most children.
    """
    pairs = [(i, r) for i in range(num_parents) for r in range(width)]
    best = sorted(pairs, key=lambda pair: ((pair[0] + 1) * (pair[1] + 1), pair))[:width]
    return torch.tensor(sorted(best))


def scaled_rule(table: Tensor, lam: float) -> Accept:
    """table: [V, k] neighbours."""

    def accept(
        p: Tensor, tokens: Tensor, proposals: Tensor | None, generator: torch.Generator
    ) -> Ruling:
        assert proposals is not None
        q, chances = proposals[0], []
        for token in tokens:
            near = table[token]
            own = p[near]
            is_within = own.cumsum(0) <= (lam - 1) * p[token]
            chances.append((p[token] + (own * is_within).sum()) / q[token])
            counted = q.scatter(0, near, q[near].masked_fill(is_within, 0))
            p = normalized((p - counted).relu(), p)
            q = normalized(q.index_fill(0, token[None], 0), q)
        stands = uniform(len(tokens), generator) < torch.stack(chances)
        return Ruling(first_true(stands), p)

    return accept
