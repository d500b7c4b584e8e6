"""The drafter of EAGLE at work on one image: it continues the target's hidden states.

Rows of known tokens hold the target's hidden states, those of drafts the drafter's own. The latter
lie behind the former and are overwritten when the next tokens are known.

    L condition rows   n known tokens   k drafts   D width   V codebook size
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ciar.models.eagle import EagleModel
from ciar.models.kv_cache import KVCache, Segment
from ciar.sampling import guide
from ciar.types import SamplingParams
from ciar_bench.methods.bench_model import NUM_SPARE, sampling_view
from ciar_bench.methods.tree import DraftTree, scattered

ROWS = 2  # conditional and unconditional


class EagleDrafter:
    """rows: [2, L, D] projected condition, as the target's."""

    def __init__(self, model: EagleModel, rows: Tensor, sampling: SamplingParams) -> None:
        self.model, self.sampling = model, sampling
        self.num_condition = rows.shape[1]
        self.known: list[int] = []
        weight = model.output.weight
        self.cache = KVCache(
            model.config,
            num_slots=1,
            num_rows=ROWS,
            num_spare=NUM_SPARE,
            device=weight.device,
            dtype=weight.dtype,
        )
        rope = model.prompt_rope(self.num_condition)
        self._run(model.fused_condition(rows.to(weight)), rope, start=0)

    def advance(self, tokens: Sequence[int], features: Tensor) -> Tensor:
        """More tokens [m] are known, with the hidden states [2, m, D] that predicted them.

        Returns [2, 1, D], what the drafter expects behind the last.
        """
        first = len(self.known)
        self.known += tokens
        x, followers = self.model.inputs(torch.tensor(self.known), first)
        y = self._run(
            self.model.fused(x.expand(ROWS, -1, -1), features.to(x)),
            self.model.fed_rope(self.num_condition, first, len(tokens)),
            start=self.num_condition + first,
        )
        return self.model.recall(y, followers)[:, -1:]

    def expand(self, tree: DraftTree, first: int, features: Tensor) -> Tensor:
        """Feed the nodes from `first` on with the states that predicted them; the others are fed.

        features: [2, k - first, D].  Returns as many, expected behind the nodes.
        """
        model, num_known = self.model, len(self.known)
        scatter = scattered(
            self.known,
            tree,
            num_tokens=model.config.num_tokens,
            vocab_size=model.config.vocab_size,
            num_cached=num_known + first,
            first=first,
        )
        x, followers = model.scattered_inputs(scatter.grids, scatter.positions)
        sees = torch.nn.functional.pad(scatter.sees, (self.num_condition, 0), value=True)
        y = self._run(
            model.fused(x.expand(ROWS, -1, -1), features),
            model.scattered_rope(self.num_condition, scatter.positions),
            start=self.num_condition + num_known + first,
            sees=sees,
        )
        return model.recall(y, followers)

    def proposals(self, features: Tensor) -> Tensor:
        """Hidden states [2, k, D] to the distributions [k, V] that tokens are drafted from."""
        cond, uncond = self.model.output(features)
        return sampling_view(guide(cond, uncond, self.sampling.cfg_scale), self.sampling)

    def _run(self, x: Tensor, rope: Tensor, *, start: int, sees: Tensor | None = None) -> Tensor:
        """Inputs [2, k, D] to hidden states [2, k, D], kept from row `start` on.

        rope: [2 or 1, k, d/2, 2].
        """
        segment = Segment(
            slot=0,
            start=start,
            count=x.shape[1],
            sees=sees,
            num_hidden=self.model.num_hidden(self.num_condition),
        )
        rope = rope.expand(ROWS, -1, -1, -1).flatten(0, 1)
        y = self.model.hidden(x.flatten(0, 1), rope, self.cache.attend([segment]))
        return y.view_as(x)
