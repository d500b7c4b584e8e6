"""The drafter: the edge's draft model at work on one image, a wave at a time.

    draft() at position p:  known tokens that the cache lacks -> h_p -> c_p -> argmax(view(c_p) +
    G_p)

Positions are ranks of the order in which tokens are drawn (`ciar.order`). In raster order a wave is
one token; else its tokens are drafted in one pass, and none depends on another one of them.

**Tokens are cached when what follows them is drafted**. So `commit` costs nothing, a verdict that
corrects a draft is just another `commit`, and a rollback forgets tokens without touching memory.

One layer of one row is bound by memory traffic and by the number of torch calls. `PreparedDraft`
holds the weights as `matrix` lays them out, side by side where they share an input.

    T image tokens   L condition rows   n rows fed   m wanted   D width   H heads   d = D / H
    V codebook   F feature width   R radius width
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.head_output import HeadOutput
from ciar.models.inter_head import DraftModel
from ciar.models.kv_cache import causal_mask
from ciar.models.packed import PackedNorm
from ciar.models.transformer import Block
from ciar.order import CONDITION, Order, Rows, order_of
from ciar.sampling import Noise, coupled_draw
from ciar.types import SamplingParams
from ciar_edge.heads import PreparedHeads
from ciar_edge.matrix import Matrix, matrix
from ciar_edge.neighbours import PreparedNeighbours

NOT_PREFILLED = -1
_KEPT_DRAFTS = 64  # behind `position`: where a wave has several, a rollback leaves the others


class PreparedLayer(NamedTuple):
    """One block."""

    attention_norm: PackedNorm
    wqkv: Matrix  # D -> 3 D
    normed: Callable[[Tensor], Tensor] | None  # queries and keys [n, 2 H, d]; None: as they are
    wo: Matrix
    ffn_norm: PackedNorm
    w13: Matrix  # D -> 2 ffn_dim
    w2: Matrix


class PreparedDraft:
    """A draft model's weights laid out for drafting.

    Shared by images. Equal to `DraftModel` up to rounding, which is bfloat16's for int8 weights.
    """

    @torch.inference_mode()
    def __init__(self, model: DraftModel) -> None:
        self.model = model
        self.config = model.config
        self.feature_dim = model.head_config.feature_dim
        self.embedding = model.tok_embeddings.weight
        self.neighbours = PreparedNeighbours(model.neighbours) if model.neighbours else None
        self.layers = [_prepare_layer(block) for block in model.layers]  # type: ignore[arg-type]
        self.norm = PackedNorm(model.norm)
        self.heads = PreparedHeads(model.inter_head)
        self.phi = matrix(model.phi.mix.weight, model.phi.mix.bias)  # D + 2 V -> F

    def inputs(
        self, tokens: Sequence[int], rows: Rows, order: Order
    ) -> tuple[Tensor, list[list[int]]]:
        """Rows [n, D] for the known tokens, by rank, that `rows` hold, as `DraftModel.inputs`.

        And what followed each of them elsewhere [n][J], for `recall`; nothing without tables.
        """
        x = self.embedding[[tokens[rank] for rank in rows.holds]]
        if self.neighbours is None or not len(x):
            return x, []
        ids = self.neighbours.look(tokens, rows, order.ranks)
        x = x + self.neighbours.rows(ids, rows.cells)
        has_tables = self.neighbours.lookup is not None
        return x, [row[self.neighbours.count :] for row in ids] if has_tables else []

    def recall(self, hidden: Tensor, followers: Sequence[list[int]]) -> Tensor:
        """The hidden states [m, D] that heads see."""
        if self.neighbours is None or not followers:
            return hidden
        return self.neighbours.recall(hidden, followers)

    def hidden(
        self,
        x: Tensor,
        turns: Tensor,
        memory: Tensor,
        start: int,
        mask: Tensor | None,
        wanted: Sequence[int],
    ) -> Tensor:
        """Feed n rows to `memory` from row `start` on; the hidden states of those wanted, [m, D].

        x: [n, D] inputs.  turns: [n, 1, 1, d/2] complex rotations.  mask: [n, start + n], as
        attention takes it.
        """
        for layer, rows in zip(self.layers, memory, strict=True):
            x = x + self._attention(layer, rows, x, turns, start, mask)
            gate, up = layer.w13(layer.ffn_norm(x)).chunk(2, dim=-1)
            x = x + layer.w2(F.silu(gate).mul_(up))
        y: Tensor = self.norm(x[wanted] if len(wanted) < len(x) else x)
        return y

    def _attention(
        self,
        layer: PreparedLayer,
        rows: Tensor,
        x: Tensor,
        turns: Tensor,
        start: int,
        mask: Tensor | None,
    ) -> Tensor:
        count, end = len(x), start + len(x)
        qkv = layer.wqkv(layer.attention_norm(x)).float()
        qkv = qkv.view(count, 3, self.config.num_heads, -1)
        if layer.normed is not None:
            heads = 2 * self.config.num_heads
            qkv[:, :2] = layer.normed(qkv[:, :2].flatten(1, 2)).view(count, 2, heads // 2, -1)
        pairs = torch.unflatten(qkv[:, :2], -1, (-1, 2))  # [n, 2, H, d/2, 2], of qkv's memory
        torch.view_as_complex(pairs).mul_(turns)
        rows[:, :, start:end] = qkv[:, 1:].permute(1, 2, 0, 3)
        keys, values = rows[:, None, :, :end]  # [1, H, end, d]
        q = qkv[:, 0].transpose(0, 1)[None]  # [1, H, n, d]
        z = F.scaled_dot_product_attention(q, keys, values, mask)
        return layer.wo(z.transpose(1, 2).reshape(count, -1))

    def features(self, rows: Tensor) -> Tensor:
        """concat(h, p^l, p^u) [n, D + 2 V] -> codes [n, F]."""
        return F.gelu(self.phi(rows))

    def turns(self, num_condition: int) -> Tensor:
        """Complex rotations [L + T, 1, 1, d/2] of a whole sequence."""
        return torch.view_as_complex(self.model.sequence_rope(num_condition))[:, None, None]

    def memory(self) -> Tensor:
        """Keys and values of one image: [num_layers, 2, H, max_rows, d]."""
        c = self.config
        return torch.zeros(
            len(self.layers), 2, c.num_heads, c.max_rows, c.head_dim, device=self.embedding.device
        )


def _prepare_layer(block: Block) -> PreparedLayer:
    ffn = block.feed_forward
    return PreparedLayer(
        attention_norm=PackedNorm(block.attention_norm),
        wqkv=matrix(block.attention.wqkv.weight),
        normed=block.attention.normed if block.attention.has_head_norms else None,
        wo=matrix(block.attention.wo.weight),
        ffn_norm=PackedNorm(block.ffn_norm),
        w13=matrix(torch.cat([ffn.w1.weight, ffn.w3.weight])),
        w2=matrix(ffn.w2.weight),
    )


class Draft:
    """A drafted token, and the prediction it was drawn from."""

    def __init__(
        self,
        position: int,
        cell: int,
        token: int,
        hidden: Tensor,
        code: Tensor,
        head: HeadOutput,
    ) -> None:
        self.position = position
        self.cell = cell  # in the picture, in raster order
        self.token = token
        self.hidden = hidden  # [D]
        self.code = code  # [R] what the radii are made of
        self.head = head


class Drafter:
    """One image at the edge.

    condition: [L, D] projected condition rows, as they come with the prefix.
    order: of the tokens; None: raster.
    drafted: cells of the drafts made so far, in turn, those among them that were in vain.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: PreparedDraft,
        condition: Tensor,
        sampling: SamplingParams,
        *,
        noise: Noise | None = None,
        order: Order | None = None,
    ) -> None:
        self.model = model
        self.order = order or order_of(model.config.grid_size)
        self._condition = condition.to(model.embedding)
        self._sampling = sampling
        self._noise = noise or Noise(sampling.seed, vocab_size=model.config.vocab_size)
        self._turns = model.turns(len(condition))
        self._memory = model.memory()
        self._tokens: list[int] = []
        self._num_cached = NOT_PREFILLED
        self._drafts: dict[int, Draft] = {}  # by position, where nothing before has changed
        self._num_kept = 1 if self.order.is_raster else _KEPT_DRAFTS
        self.drafted: list[int] = []

    @property
    def num_drafts(self) -> int:
        """Made so far."""
        return len(self.drafted)

    @property
    def position(self) -> int:
        """Of the next token: as many are known."""
        return len(self._tokens)

    def draft(self) -> Draft:
        """The edge's own token at `position`, drawn with the noise that the cloud draws with.

        Commits nothing.
        """
        return self.draft_wave()[0]

    def draft_wave(self) -> list[Draft]:
        """The tokens from `position` on that depend on known ones alone. Commits nothing."""
        wave = self.order.wave(self.position)
        if wave.start not in self._drafts:
            self._draft(wave)
        return [self._drafts[position] for position in wave]

    def draft_ahead(self) -> list[Draft]:
        """What `draft_wave` returns after its tokens are committed; nothing behind the last wave.

        Commits nothing. If other tokens are committed, the work was in vain.
        """
        wave = self.draft_wave()
        end = self.position + len(wave)
        if end == self.model.config.num_tokens:
            return []
        ahead = self.order.wave(end)
        if end not in self._drafts:
            self._tokens += [draft.token for draft in wave]
            self._draft(ahead)
            del self._tokens[-len(wave) :]
        return [self._drafts[position] for position in ahead]

    def commit(self, *tokens: int) -> None:
        """The next tokens are known, whoever decided them."""
        assert self.position + len(tokens) <= self.model.config.num_tokens, "the image is full"
        for token in tokens:
            draft = self._drafts.get(self.position)
            if draft is not None and draft.token != token:
                self._forget(self.position)
            self._drafts.pop(self.position - self._num_kept, None)
            self._tokens.append(token)

    def rollback(self, position: int) -> None:
        """Forget all tokens from `position` on."""
        assert 0 <= position <= self.position, "a rollback goes back"
        del self._tokens[position:]
        if position < self.model.config.num_tokens:
            self._forget(position)

    def _forget(self, position: int) -> None:
        """What was made of the token there: not the other drafts of its wave."""
        self._num_cached = min(self._num_cached, position)
        end = self.order.wave(position).stop
        self._drafts = {at: draft for at, draft in self._drafts.items() if at < end}

    @torch.inference_mode()
    def features(self, drafts: Sequence[Draft]) -> Tensor:
        """Interval-feature codes of kept tokens, [n, F] float32, in one call."""
        hidden = torch.stack([draft.hidden for draft in drafts])
        head = HeadOutput.stack(
            [draft.head for draft in drafts],
            lambda: self.model.heads.reach(torch.stack([draft.code for draft in drafts])),
        )
        return self.model.features(torch.cat([hidden, head.lower, head.upper], dim=1))

    @torch.inference_mode()
    def _draft(self, wave: range) -> None:
        hidden = self._extend(wave)  # [m, D]
        centres, codes = self.model.heads(hidden)
        cells = [self.order.cells[position] for position in wave]
        tokens = [
            coupled_draw(centres[row], cell, self._sampling, self._noise)
            for row, cell in enumerate(cells)
        ]
        outputs = self.model.heads.outputs(centres, codes, tokens)
        for row, position in enumerate(wave):
            parts = (cells[row], tokens[row], hidden[row], codes[row], outputs[row])
            self._drafts[position] = Draft(position, *parts)
        self.drafted += cells

    def _extend(self, wave: range) -> Tensor:
        """Cache what the wave depends on, and get the hidden states [m, D] that predict it."""
        model, order = self.model, self.order
        assert wave, "the image is full"
        least, end = order.span(wave)
        start = min(self._num_cached, least)
        rows = order.rows(max(start, 0), end, wave)
        x, followers = model.inputs(self._tokens, rows, order)
        first = len(self._condition) + rows.start
        outputs = rows.outputs
        if start == NOT_PREFILLED:
            outputs = [first + index for index in outputs]
            x, first = torch.cat([self._condition, x]), 0
        turns, mask = self._turns_of(rows, first, len(x)), self._mask(rows, first, x)
        self._num_cached = end
        hidden = model.hidden(x, turns, self._memory, first, mask, outputs)
        if CONDITION in rows.outputs:  # nothing precedes the first token
            return hidden
        return model.recall(
            hidden, [followers[index] for index in rows.outputs] if followers else []
        )

    def _turns_of(self, rows: Rows, first: int, count: int) -> Tensor:
        """Rotations of the rows from `first` on that are fed: of `rows`, and of a prompt before."""
        if self.order.is_raster:
            return self._turns[first : first + count]
        num_condition = len(self._condition)
        image = [num_condition + cell for cell in rows.cells]
        return self._turns[[*range(count - len(image)), *image]]

    def _mask(self, rows: Rows, first: int, x: Tensor) -> Tensor | None:
        """[n, first + n], as attention takes it; None when nothing is hidden."""
        if self.order.is_raster:
            return causal_mask(len(x), first + len(x), x)
        num_condition = len(self._condition)
        sees = F.pad(self.order.sees(rows), (num_condition, 0), value=True)
        prompt = torch.ones(len(x) - len(sees), first + len(x), dtype=torch.bool).tril()
        return torch.cat([prompt, sees])
