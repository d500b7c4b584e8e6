"""The drafter: the edge's draft model at work on one image, a token at a time.

    draft() at position p:  known tokens that the cache lacks -> h_p -> c_p -> argmax(view(c_p) +
    G_p)

**The last known token is never cached**: it is the first input of the next draft. So `commit` costs
nothing, a verdict that corrects a draft is just another `commit`, and a rollback forgets tokens
without touching memory.

One layer of one row is bound by memory traffic and by the number of torch calls. `PreparedDraft`
holds the weights as `matrix` lays them out, side by side where they share an input.

    T image tokens   L condition rows   n rows fed   D width   H heads   d = D / H
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
from ciar.sampling import Noise, coupled_draw
from ciar.types import SamplingParams
from ciar_edge.heads import PreparedHeads
from ciar_edge.matrix import Matrix, matrix
from ciar_edge.neighbours import PreparedNeighbours

NOT_PREFILLED = -1


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

    def inputs(self, tokens: Sequence[int], first: int) -> tuple[Tensor, list[int]]:
        """Rows [n - first, D] for the tokens from `first` on of n tokens, as `DraftModel.inputs`.

        And the followers [J] of the next position, for `recall`; empty where there are none.
        """
        x = self.embedding[tokens[first:]]
        if self.neighbours is None or not len(x):
            return x, []
        ids = self.neighbours.look(tokens, first)
        return x + self.neighbours.rows(ids, first), ids[-1][self.neighbours.count :]

    def recall(self, hidden: Tensor, followers: list[int]) -> Tensor:
        """The hidden state [D] that heads see."""
        if self.neighbours is None or not followers:
            return hidden
        return self.neighbours.recall(hidden, followers)

    def hidden(self, x: Tensor, turns: Tensor, memory: Tensor, start: int) -> Tensor:
        """Feed n rows to `memory` from row `start` on; the hidden state of the last one, [D].

        x: [n, D] inputs.  turns: [n, 1, 1, d/2] complex rotations.
        """
        mask = causal_mask(len(x), start + len(x), x)
        for layer, rows in zip(self.layers, memory, strict=True):
            x = x + self._attention(layer, rows, x, turns, start, mask)
            gate, up = layer.w13(layer.ffn_norm(x)).chunk(2, dim=-1)
            x = x + layer.w2(F.silu(gate).mul_(up))
        y: Tensor = self.norm(x[-1])
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
        self, position: int, token: int, hidden: Tensor, code: Tensor, head: HeadOutput
    ) -> None:
        self.position = position
        self.token = token
        self.hidden = hidden  # [D]
        self.code = code  # [R] what the radii are made of
        self.head = head


class Drafter:
    """One image at the edge.

    condition: [L, D] projected condition rows, as they come with the prefix.
    num_drafts: made so far, those among them that were in vain.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: PreparedDraft,
        condition: Tensor,
        sampling: SamplingParams,
        *,
        noise: Noise | None = None,
    ) -> None:
        self.model = model
        self._condition = condition.to(model.embedding)
        self._sampling = sampling
        self._noise = noise or Noise(sampling.seed, vocab_size=model.config.vocab_size)
        self._turns = model.turns(len(condition))
        self._memory = model.memory()
        self._tokens: list[int] = []
        self._num_cached = NOT_PREFILLED
        self._draft: Draft | None = None
        self.num_drafts = 0
        self._ahead: Draft | None = None  # what follows `_draft` if its token stands

    @property
    def position(self) -> int:
        """Of the next token: as many are known."""
        return len(self._tokens)

    @torch.inference_mode()
    def draft(self) -> Draft:
        """The edge's own token at `position`, drawn with the noise that the cloud draws with.

        Commits nothing.
        """
        if self._draft is None:
            self._draft = self._next()
        return self._draft

    @torch.inference_mode()
    def draft_ahead(self) -> Draft | None:
        """What `draft` returns after its token is committed; None behind the last one.

        Commits nothing. If another token is committed, the work was in vain.
        """
        draft = self.draft()
        if self._ahead is None and draft.position + 1 < self.model.config.num_tokens:
            self._tokens.append(draft.token)
            self._ahead = self._next()
            self._tokens.pop()
        return self._ahead

    def commit(self, *tokens: int) -> None:
        """The next tokens are known, whoever decided them."""
        assert self.position + len(tokens) <= self.model.config.num_tokens, "the image is full"
        draft, ahead = self._draft, self._ahead
        self._draft = self._ahead = None
        if ahead is not None:
            assert draft is not None
            if tokens == (draft.token,):
                self._draft = ahead
            else:
                self._num_cached = self.position
        self._tokens += tokens

    def rollback(self, position: int) -> None:
        """Forget all tokens from `position` on."""
        assert 0 <= position <= self.position, "a rollback goes back"
        del self._tokens[position:]
        self._num_cached = min(self._num_cached, position)
        self._draft = self._ahead = None

    @torch.inference_mode()
    def features(self, drafts: Sequence[Draft]) -> Tensor:
        """Interval-feature codes of kept tokens, [n, F] float32, in one call."""
        hidden = torch.stack([draft.hidden for draft in drafts])
        head = HeadOutput.stack(
            [draft.head for draft in drafts],
            lambda: self.model.heads.growth(torch.stack([draft.code for draft in drafts])),
        )
        return self.model.features(torch.cat([hidden, head.lower, head.upper], dim=1))

    def _next(self) -> Draft:
        self.num_drafts += 1
        hidden = self._extend()
        heads = self.model.heads
        centre, code = heads(hidden)
        token = coupled_draw(centre, self.position, self._sampling, self._noise)
        head = HeadOutput(centre, lambda: heads.growth(code[None])[0], token)
        return Draft(self.position, token, hidden, code, head)

    def _extend(self) -> Tensor:
        """Cache every known token, and get the hidden state [D] that predicts the next."""
        model, position = self.model, self.position
        assert position < model.config.num_tokens, "the image is full"
        start = min(self._num_cached, position - 1)
        first = max(start, 0)
        x, followers = model.inputs(self._tokens, first)
        row, end = len(self._condition) + first, len(self._condition) + position
        if start == NOT_PREFILLED:
            row = 0
            x = torch.cat([self._condition, x])
        self._num_cached = position
        hidden = model.hidden(x, self._turns[row:end], self._memory, row)
        return model.recall(hidden, followers)
