"""Interval features made in the cloud: the draft model over the tokens that the cloud knows.

The code of a kept token comes from the prediction that drew it, so from the tokens before it. A
feed of the target brings tokens `p .. p+k-1`; the draft model is fed one token earlier:

    target  x_p     .. x_{p+k-1}     predicts positions p+1 .. p+k
    draft   x_{p-1} .. x_{p+k-2}     predicts positions p   .. p+k-1, the tokens of the feed

So its cache is always right where the target's is: both roll back, are lost and rebuilt together,
and nobody has to keep account of it. A batch costs the rows it costs the target, in one layer, and
the heads for its kept tokens.

    L condition rows   k tokens fed   F feature width   J followers
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.feed import Feed
from ciar.head_output import HeadOutput, reach_of
from ciar.models.inter_head import DraftModel
from ciar.models.kv_cache import KVCache, Segment


class Part(NamedTuple):
    """One feed's share of a pass of the draft model.

    x: [n, D] inputs.  rope: [n, d/2, 2].  followers: [n, J] or None.
    """

    x: Tensor
    rope: Tensor
    followers: Tensor | None
    segment: Segment


class Redraft:
    """A draft model with a sequence of its own beside each slot of a target.

    condition_rows: the target's projection of text features [L, condition_dim], which edges get.
    """

    def __init__(
        self,
        model: DraftModel,
        condition_rows: Callable[[Tensor], Tensor],
        *,
        num_slots: int,
        is_padded: bool | None = None,
    ) -> None:
        weight = model.tok_embeddings.weight
        self.model, self._condition_rows = model, condition_rows
        self.cache = KVCache(
            model.config,
            num_slots=num_slots,
            num_rows=1,
            device=weight.device,
            dtype=weight.dtype,
            is_padded=is_padded,
        )

    def codes(self, feeds: Sequence[Feed]) -> list[Tensor]:
        """Of feeds with `kept`: codes [k, F] each, zero for tokens that the edge did not keep."""
        parts = [self._part(feed) for feed in feeds]
        fed = [part for part in parts if part.segment.count]
        if not fed:
            return [self._nothing(feed) for feed in feeds]
        attend = self.cache.attend([part.segment for part in fed])
        x, rope = torch.cat([part.x for part in fed]), torch.cat([part.rope for part in fed])
        hidden = self.model.hidden(x, rope, attend)
        blocks = torch.split(hidden, [part.segment.count for part in parts])
        wanted = [self._wanted(*one) for one in zip(feeds, parts, blocks, strict=True)]
        rows = self._code_rows(torch.cat(wanted))
        found = []
        for feed, own in zip(feeds, torch.split(rows, [len(w) for w in wanted]), strict=True):
            codes = self._nothing(feed)
            codes[_kept(feed)] = own
            found.append(codes)
        return found

    def _part(self, feed: Feed) -> Part:
        """Up to the last token but one of a feed, from the one before it."""
        assert feed.before is not None, "codes are made from the tokens before"
        model, rows = self.model, feed.num_condition
        tokens = torch.cat([feed.before, feed.tokens])[:-1].to(model.rope.device)
        x, followers = model.inputs(tokens, max(feed.position - 1, 0))
        start = rows + max(feed.position - 1, 0)
        if feed.condition is not None:
            x, start = torch.cat([self._condition_rows(feed.condition).to(x), x]), 0
            if followers is not None:  # nothing precedes the first token
                followers = F.pad(followers, (0, 0, rows, 0), value=model.config.vocab_size)
        rope = model.sequence_rope(rows)[start : start + len(x)]
        return Part(x, rope, followers, Segment(feed.slot, start, len(x)))

    def _wanted(self, feed: Feed, part: Part, hidden: Tensor) -> Tensor:
        """The hidden states [kept, D] that predict the kept tokens of a feed."""
        kept = _kept(feed) - len(feed.tokens) + len(hidden)  # the last row predicts the last token
        assert not len(kept) or int(kept[0]) >= 0, "what predicts the first token is fed with it"
        followers = None if part.followers is None else part.followers[kept]
        return self.model.recall(hidden[kept], followers)

    def _code_rows(self, hidden: Tensor) -> Tensor:
        """[n, D] -> [n, F]."""
        if not len(hidden):
            return hidden.new_zeros(0, self.model.head_config.feature_dim)
        centre, radius = self.model.inter_head(hidden)
        codes: Tensor = self.model.phi(hidden, HeadOutput(centre, reach_of(radius)))
        return codes

    def _nothing(self, feed: Feed) -> Tensor:
        shape = (len(feed.tokens), self.model.head_config.feature_dim)
        return torch.zeros(shape, device=self.model.rope.device)


def _kept(feed: Feed) -> Tensor:
    """Which of the fed tokens are kept: indices, ascending."""
    assert feed.kept is not None, "a feed of a session whose features are made here"
    return feed.kept.nonzero()[:, 0]
