"""EAGLE-2 (Li et al. 2024): a tree of what is likeliest, grown where the drafter is sure; lossless.

Every node proposes the `top` likeliest tokens behind it; the value of a node is the product of the
probabilities on its path. The `top` best nodes of a level propose the next one, and of all nodes
the `size` best are verified. Children are tried in order, each standing with the probability that
the cloud gives it among what is left: so the token is drawn from p, whatever was proposed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import BenchModel
from ciar_bench.methods.costs import DrawnImage
from ciar_bench.methods.eagle_drafter import EagleDrafter
from ciar_bench.methods.settings import need_positive
from ciar_bench.methods.speculative import (
    Ruling,
    accept_greedily,
    draw_by_rounds,
    first_true,
    need_room,
    normalized,
    uniform,
)
from ciar_bench.methods.tree import ROOT, DraftTree


@dataclass(frozen=True, kw_only=True)
class Eagle2:
    """As ported to LlamaGen by Jang et al. 2025: 58 drafts in at most 5 levels."""

    top: int = 10
    depth: int = 5
    size: int = 58
    name = "eagle-2"

    def __post_init__(self) -> None:
        need_positive(top=self.top, depth=self.depth, size=self.size)
        need_room("size", self.size)
        need_room("top * (depth - 1)", self.top * (self.depth - 1))  # the drafter is fed

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        accept = accept_in_order if sampling.temperature else accept_greedily
        return draw_by_rounds(bench, prompt, sampling, self.propose, accept)

    def propose(
        self, drafter: EagleDrafter, expected: Tensor, depth: int, _: torch.Generator
    ) -> DraftTree:
        """Values are logarithms of probabilities; what cannot be drawn is left out."""
        log_q = drafter.proposals(expected).log()  # [1, V]
        top = min(self.top, log_q.shape[-1])
        values, tokens = (x.flatten() for x in log_q.topk(top))
        parents = torch.full((len(tokens),), ROOT)
        best = values.topk(min(top, len(values))).indices
        fed = DraftTree(tokens=tokens[:0], parents=parents[:0])
        states, row_of = expected[:, :0], torch.full((self.depth * top**2 + top,), ROOT)
        behind = expected.expand(-1, len(best), -1)  # the states that predicted the best nodes
        for _level in range(1, min(self.depth, depth)):
            first = len(fed)
            row_of[best] = torch.arange(first, first + len(best))
            fed = DraftTree(
                tokens=torch.cat([fed.tokens, tokens[best]]),
                parents=torch.cat([fed.parents, rows_of(parents[best], row_of)]),
            )
            reached = drafter.expand(fed, first, behind)  # [2, best, D]
            states = torch.cat([states, reached], dim=1)
            log_q = drafter.proposals(reached).log()
            found, next_tokens = log_q.topk(top)  # [best, top]
            count = len(tokens)
            values = torch.cat([values, (values[best, None] + found).flatten()])
            tokens = torch.cat([tokens, next_tokens.flatten()])
            parents = torch.cat([parents, best.repeat_interleave(top)])
            best = count + values[count:].topk(min(top, found.numel())).indices
            behind = states[:, row_of[parents[best]]]
        return pruned(DraftTree(tokens=tokens, parents=parents), values, self.size)


def rows_of(nodes: Tensor, row_of: Tensor) -> Tensor:
    """Where nodes were fed; ROOT stays."""
    return torch.where(nodes == ROOT, ROOT, row_of[nodes.clamp(min=0)])


def pruned(tree: DraftTree, values: Tensor, size: int) -> DraftTree:
    """The best nodes; a value never grows along a path, so their parents are among them."""
    possible = int(values.isfinite().sum())
    order = values.sort(descending=True, stable=True).indices  # parents before equal children
    kept = order[: min(size, possible)].sort().values
    index_of = torch.full((len(tree),), ROOT)
    index_of[kept] = torch.arange(len(kept))
    return DraftTree(tokens=tree.tokens[kept], parents=rows_of(tree.parents[kept], index_of))


def accept_in_order(
    p: Tensor, tokens: Tensor, _: Tensor | None, generator: torch.Generator
) -> Ruling:
    """Children that were picked, not drawn: each stands with its share of what is left of p."""
    own = p[tokens]  # [c]
    left = 1 - (own.cumsum(0) - own)
    stands = uniform(len(tokens), generator) * left < own
    return Ruling(first_true(stands), normalized(p.index_fill(0, tokens, 0), p))
