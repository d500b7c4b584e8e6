"""EAGLE-1 with a chain (Li et al. 2024): drafted by chance, accepted by chance, lossless.

A token drawn from q stands with probability min(1, p / q); else the cloud draws from what p has
more than q. The cloud knows q, as it can run the drafter itself.
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
    draw,
    draw_by_rounds,
    normalized,
    uniform,
)
from ciar_bench.methods.tree import DraftTree, chain


@dataclass(frozen=True, kw_only=True)
class Eagle1:
    """length: tokens drafted a round."""

    length: int = 4
    name = "eagle-1"

    def __post_init__(self) -> None:
        need_positive(length=self.length)

    def draw(self, bench: BenchModel, prompt: str, sampling: SamplingParams) -> DrawnImage:
        accept = accept_by_ratio if sampling.temperature else accept_greedily
        return draw_by_rounds(bench, prompt, sampling, self.propose, accept)

    def propose(
        self, drafter: EagleDrafter, expected: Tensor, depth: int, generator: torch.Generator
    ) -> DraftTree:
        tokens = torch.empty(0, dtype=torch.long)
        proposals: list[Tensor] = []
        for index in range(min(self.length, depth)):
            if index:
                expected = drafter.expand(chain(tokens), index - 1, expected)
            q = drafter.proposals(expected)  # [1, V]
            is_greedy = drafter.sampling.temperature == 0
            token = q.argmax(-1, keepdim=True) if is_greedy else draw(q, generator)  # [1, 1]
            tokens, proposals = torch.cat([tokens, token[0]]), [*proposals, q]
        return chain(tokens, torch.cat(proposals))


def accept_by_ratio(
    p: Tensor, tokens: Tensor, proposals: Tensor | None, generator: torch.Generator
) -> Ruling:
    """One child, drawn from `proposals` [1, V]."""
    assert proposals is not None
    q, token = proposals[0], tokens[0]
    stands = uniform(1, generator)[0] * q[token] < p[token]
    return Ruling(int(stands) - 1, normalized((p - q).relu(), p))
