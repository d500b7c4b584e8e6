"""Drafting and verifying in rounds, as all methods after EAGLE do: propose a tree, walk down it.

    round:  the edge proposes a tree behind the known tokens     (`Propose`)
            the cloud predicts behind every node in one pass, and walks down while a child is
            accepted (`Accept`); where none is, it draws a token itself
            its hidden states at the accepted tokens go back to the drafter

A tree ends before the last token of the image, which nothing follows. So every round brings between
one token and its depth plus one, and `forwards` is 1 + rounds, the prefill being the 1.

    k nodes   V codebook size   D width
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ciar.feed import Feed
from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import NUM_SPARE, SLOT, BenchModel, prefill, sampling_view
from ciar_bench.methods.costs import Costs, DrawnImage, id_bytes, number_bytes
from ciar_bench.methods.eagle_drafter import ROWS, EagleDrafter
from ciar_bench.methods.tree import ROOT, DraftTree, chain, scattered


class Ruling(NamedTuple):
    """child: which one stands, -1 for none.  rest: [V] what to draw from if none does."""

    child: int
    rest: Tensor


Accept = Callable[[Tensor, Tensor, Tensor | None, torch.Generator], Ruling]
"""(p [V], tokens [c] of the children, what they were drawn from [c, V], randomness)."""

Propose = Callable[[EagleDrafter, Tensor, int, torch.Generator], DraftTree]
"""(drafter, what it expects next [2, 1, D], greatest depth, randomness)."""


def need_room(what: str, num_nodes: int) -> None:
    """Raises `ValueError` for more nodes than caches have rows for beside an image's."""
    if num_nodes > NUM_SPARE:
        raise ValueError(f"{what}: {num_nodes}: give at most {NUM_SPARE} nodes")


@torch.inference_mode()
def draw_by_rounds(
    bench: BenchModel, prompt: str, sampling: SamplingParams, propose: Propose, accept: Accept
) -> DrawnImage:
    """One image; draws are keyed by the seed, but not coupled to the base's."""
    condition, model, costs = bench.encode(prompt), bench.eagle, bench.meter()
    generator = torch.Generator().manual_seed(sampling.seed)
    started = time.perf_counter()
    cloud = Rounds(bench, condition, sampling, accept, generator)
    newest, features = cloud.prefill()
    costs.cloud_seconds += time.perf_counter() - started
    drafter = EagleDrafter(model, cloud.condition_rows(), sampling)
    while len(cloud.tokens) < bench.num_tokens:
        expected = drafter.advance(newest, features)
        depth = bench.num_tokens - 1 - len(cloud.tokens)
        tree = (
            propose(drafter, expected, depth, generator) if depth else chain(torch.empty(0).long())
        )
        asked = time.perf_counter()
        newest, features = cloud.verify(tree)
        costs.cloud_seconds += time.perf_counter() - asked
        pay_round(costs, bench, tree, len(newest))
    costs.edge_seconds = time.perf_counter() - started - costs.cloud_seconds
    costs.decided = bench.num_tokens
    costs.round_trips += 1
    costs.uplink_bytes += len(prompt.encode())
    rows = ROWS * (len(condition) + 1)  # of the condition, and the hidden state of token 0
    costs.downlink_bytes += number_bytes(rows * bench.dim) + id_bytes(1, bench.vocab_size)
    return DrawnImage(tokens=tuple(cloud.tokens), costs=costs)


def pay_round(costs: Costs, bench: BenchModel, tree: DraftTree, num_new: int) -> None:
    """Up: ids and parents. Down: the path, the cloud's own token, hidden states of all of them."""
    costs.round_trips += 1
    costs.uplink_bytes += id_bytes(len(tree), bench.vocab_size) + id_bytes(len(tree), len(tree) + 1)
    costs.downlink_bytes += id_bytes(num_new - 1, len(tree)) + id_bytes(1, bench.vocab_size)
    costs.downlink_bytes += number_bytes(ROWS * num_new * bench.dim)


class Rounds:
    """The cloud's end of an image."""

    def __init__(
        self,
        bench: BenchModel,
        condition: Tensor,
        sampling: SamplingParams,
        accept: Accept,
        generator: torch.Generator,
    ) -> None:
        self.bench, self.condition, self.sampling = bench, condition, sampling
        self.accept, self.generator = accept, generator
        self.tokens: list[int] = []

    def condition_rows(self) -> Tensor:
        """[2, L, D], conditional and unconditional."""
        target = self.bench.target
        return target.model.transformer.prompt_rows(self.condition.to(target.cache.data))

    def prefill(self) -> tuple[list[int], Tensor]:
        """Token 0, and the hidden state [2, 1, D] that predicted it."""
        (output,) = self.bench.target.outputs([prefill(self.condition, self.sampling)])
        self.tokens = [self._draw(sampling_view(output.logits[-1], self.sampling))]
        return self.tokens[:], output.hidden[:, -1:]

    def verify(self, tree: DraftTree) -> tuple[list[int], Tensor]:
        """One forward pass: new tokens [m], and the hidden states [2, m, D] that predicted them."""
        (output,) = self.bench.target.outputs([self._feed(tree)])
        p = sampling_view(output.logits, self.sampling)  # [1 + k, V], the last known token's first
        path, last = self._walk(tree, p)
        rows = torch.tensor([0, *(1 + node for node in path)])
        start = len(self.condition) + len(self.tokens) - 1
        self.bench.target.cache.keep(SLOT, start, start + rows)
        new = [*tree.tokens[path].tolist(), last]
        self.tokens += new
        return new, output.hidden[:, rows]

    def _feed(self, tree: DraftTree) -> Feed:
        """The last known token and all nodes behind it."""
        known = self.tokens[:-1]
        whole = DraftTree(
            tokens=torch.cat([torch.tensor(self.tokens[-1:]), tree.tokens]),
            parents=torch.cat([torch.tensor([ROOT]), tree.parents + 1]),
        )
        scatter = scattered(
            known,
            whole,
            num_tokens=self.bench.num_tokens,
            vocab_size=self.bench.vocab_size,
            num_cached=len(known),
        )
        return Feed(
            slot=SLOT,
            num_condition=len(self.condition),
            position=len(known),
            tokens=whole.tokens,
            cfg_scale=self.sampling.cfg_scale,
            cfg_interval=self.sampling.cfg_interval,
            scatter=scatter,
        )

    def _walk(self, tree: DraftTree, p: Tensor) -> tuple[list[int], int]:
        """The nodes that stand, and the cloud's own token behind them."""
        path: list[int] = []
        node = ROOT
        while True:
            children = tree.children(node)
            if not len(children):
                return path, self._draw(p[node + 1])
            proposals = None if tree.proposals is None else tree.proposals[children]
            ruling = self.accept(p[node + 1], tree.tokens[children], proposals, self.generator)
            if ruling.child < 0:
                return path, self._draw(ruling.rest)
            node = int(children[ruling.child])
            path.append(node)

    def _draw(self, p: Tensor) -> int:
        return int(p.argmax() if self.sampling.temperature == 0 else draw(p, self.generator))


def accept_greedily(p: Tensor, tokens: Tensor, _: Tensor | None, __: torch.Generator) -> Ruling:
    """At temperature 0 the likeliest token stands, and no other."""
    return Ruling(first_true(tokens == p.argmax()), p)


def normalized(rest: Tensor, fallback: Tensor) -> Tensor:
    """[V] scaled to sum 1; the fallback where nothing is left."""
    total = rest.sum()
    return torch.where(total > 0, rest / total, fallback)


def draw(p: Tensor, generator: torch.Generator, *, count: int = 1) -> Tensor:
    """`count` draws without replacement from [..., V], given up to scale: [..., count].

    With fewer possible values than draws the last ones are impossible.
    """
    noise = -torch.empty_like(p).exponential_(generator=generator).log()
    keys = p.log() + noise  # Gumbel-top-k
    return keys.topk(count, dim=-1).indices


def uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator)


def first_true(flags: Tensor) -> int:
    """Index of the first true one, -1 without any."""
    found: list[int] = flags.nonzero()[:1, 0].tolist()
    return found[0] if found else -1
