"""Both models over many images in lock step: every call brings one more token of each.

What sessions share in serving is a step; here they share all of it. So nothing is done image by
image, which on a GPU takes longer than the models do.

    B images   L_i condition rows of image i   D width   V codebook size   F feature width
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ciar.models.inter_head import DraftModel
from ciar.models.kv_cache import KVCache, Segment
from ciar.models.transformer import Trunk
from ciar.sampling import guide, scale_at
from ciar.target import TargetModel
from ciar.types import SamplingParams


class LockStep:
    """A trunk with `num_rows` sequences an image, and where they stand.

    hidden: [B, num_rows, D] behind the last token, as heads see it.
    """

    hidden: Tensor

    def __init__(
        self,
        model: Trunk,
        prompts: Sequence[Tensor],
        ropes: Sequence[Tensor],
        *,
        num_hidden: Sequence[int] | None = None,
    ) -> None:
        """prompts: rows [num_rows, L_i, D] an image.  ropes: [num_rows or 1, L_i + T, d/2, 2].

        num_hidden: rows, from the first, that all sequences but the first do not see; none if None.
        """
        self.model = model
        self.num_rows = len(prompts[0])
        self.lengths = [rows.shape[1] for rows in prompts]
        self.num_hidden = num_hidden or [0] * len(prompts)
        weight = model.norm.weight
        self.cache = KVCache(
            model.config,
            num_slots=len(prompts),
            num_rows=self.num_rows,
            device=weight.device,
            dtype=weight.dtype,
            is_padded=True,
        )
        both = [r.expand(self.num_rows, -1, -1, -1) for r in ropes]
        pairs = list(zip(both, self.lengths, strict=True))
        rope = torch.cat([r[:, :n].flatten(0, 1) for r, n in pairs])
        rows = torch.cat([r.flatten(0, 1) for r in prompts])
        hidden = self._through(rows, rope, [(0, n) for n in self.lengths])
        counts = torch.tensor(self.lengths, device=hidden.device).repeat_interleave(self.num_rows)
        self.hidden = hidden[counts.cumsum(0) - 1].view(len(prompts), self.num_rows, -1)
        self._rope = torch.stack([r[:, n:] for r, n in pairs])  # [B, num_rows, T, d/2, 2]

    def feed(self, tokens: Tensor, added: Tensor | None = None) -> None:
        """The last of the known tokens [B, n].  added: [B, D] to its embedding."""
        position = tokens.shape[1] - 1
        x, followers = self.model.inputs(tokens, position)  # [B, 1, D]
        if added is not None:
            x = x + added[:, None].to(x.dtype)
        rows = x.expand(-1, self.num_rows, -1).flatten(0, 1)
        rope = self._rope[:, :, position].flatten(0, 1)
        hidden = self._through(rows, rope, [(n + position, 1) for n in self.lengths])
        hidden = hidden.view(len(tokens), self.num_rows, -1)
        if followers is not None:
            followers = followers.expand(-1, self.num_rows, -1)
        self.hidden = self.model.recall(hidden, followers)

    def _through(self, rows: Tensor, rope: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Packed rows to hidden states.  spans: of every image, the first new row and how many."""
        segments = [
            Segment(slot, start, count, num_hidden=hidden)
            for slot, ((start, count), hidden) in enumerate(
                zip(spans, self.num_hidden, strict=True)
            )
        ]
        return self.model.hidden(rows, rope, self.cache.attend(segments))


class BatchedDraft(LockStep):
    """The draft model."""

    def __init__(self, model: DraftModel, conditions: Sequence[Tensor]) -> None:
        """conditions: projected rows [L_i, D]."""
        ropes = [model.sequence_rope(len(c))[None] for c in conditions]
        super().__init__(model, [c[None].to(model.norm.weight) for c in conditions], ropes)


class BatchedTarget(LockStep):
    """The target with guidance: the conditional and the unconditional sequence of every image."""

    def __init__(self, model: TargetModel, conditions: Sequence[Tensor]) -> None:
        """conditions: text features [L_i, C]."""
        transformer, total = model.transformer, model.config.num_tokens
        dtype = transformer.output.weight.dtype
        lengths = [len(c) for c in conditions]
        super().__init__(
            transformer,
            [transformer.prompt_rows(c.to(dtype)) for c in conditions],
            [
                torch.cat([transformer.prompt_rope(n), transformer.fed_rope(n, 0, total)], dim=1)
                for n in lengths
            ],
            num_hidden=[transformer.num_hidden(n) for n in lengths],
        )
        self._target = model

    def logits(self, position: int, sampling: SamplingParams) -> Tensor:
        """Guided, of every image's token at `position`: [B, V]."""
        cond, uncond = self._target.transformer.output(self.hidden).unbind(1)
        positions = torch.full((len(cond),), position, device=cond.device)
        return guide(cond, uncond, scale_at(positions, sampling.cfg_scale, sampling.cfg_interval))

    def feed_kept(self, tokens: Tensor, features: Tensor) -> None:
        """As `feed`, with the codes [B, F] of the last tokens, zero where the cloud decided."""
        self.feed(tokens, self._target.injection(features.to(self._target.injection.weight)))
