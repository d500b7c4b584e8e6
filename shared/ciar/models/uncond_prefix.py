"""The unconditional branch of a prompt: the same for all prompts of a length, so computed once.

Every prefill feeds the conditional rows of its prompt, and the last unconditional one, whose logits
are wanted; the keys and values of those before it are copied to the slot.

    L condition rows   H heads   d = D / H
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.models.kv_cache import KVCache, Segment, sequence_masks
from ciar.models.transformer import Transformer

MAX_LENGTHS = 16  # that are kept, the last used ones


class UncondPrefix:
    """Keys and values of L - 1 rows by L, of the cache's second sequence."""

    def __init__(self, transformer: Transformer, cache: KVCache) -> None:
        self._transformer = transformer
        self._cache = cache
        self._rows: OrderedDict[int, Tensor] = OrderedDict()
        self.num_computed = 0

    def copy_to(self, slot: int, num_condition: int) -> None:
        """Store them in a slot that is prefilled with `num_condition` rows."""
        rows = self._rows.get(num_condition)
        if rows is None:
            rows = self._rows[num_condition] = self._compute(num_condition)
            if len(self._rows) > MAX_LENGTHS:
                self._rows.popitem(last=False)
        self._rows.move_to_end(num_condition)
        self._cache.data[:, :, slot, 1, :, : num_condition - 1] = rows

    def _compute(self, num_condition: int) -> Tensor:
        """[num_layers, 2, H, L - 1, d]"""
        self.num_computed += 1
        transformer, data = self._transformer, self._cache.data
        count = num_condition - 1
        nothing = torch.zeros(num_condition, transformer.config.condition_dim)
        x = transformer.prompt_rows(nothing.to(data))[1, :count]
        rope = transformer.prompt_rope(num_condition)[-1, :count]
        segment = Segment(
            slot=0, start=0, count=count, num_hidden=transformer.num_hidden(num_condition)
        )
        mask = sequence_masks(segment, num_rows=2)[1, 0].to(data.device)  # [L - 1, L - 1]
        kept = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (row.transpose(0, 1)[None] for row in (q, k, v))  # [1, H, L - 1, d]
            kept.append(torch.cat([k, v]))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return y[0].transpose(0, 1)

        transformer.hidden(x, rope, attend)
        return torch.stack(kept)
