"""KV memory as a table of fixed slots, and attention over it.

Every image of a checkpoint has the same length, so a slot is one fixed block for a whole sequence:
no paging. A slot holds `num_rows` sequences of one session side by side (guidance: conditional,
unconditional).

**The last known token is never in the cache**: it is the first input of the next extend. A slot
that has been fed the condition (L rows) and n image tokens holds L + n rows and can be rolled back
by feeding from an earlier position: rows beyond the fed ones are overwritten before they are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.models.transformer import Attend, TransformerConfig


@dataclass(frozen=True)
class Segment:
    """A session's share of a packed step.

    `count` new rows for each of its sequences, stored from row `start` on.
    """

    slot: int
    start: int
    count: int


class KVCache:
    """[num_layers, 2, num_slots, num_rows, H, max_rows, d]."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        num_slots: int,
        num_rows: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.num_rows = num_rows
        block = (num_rows, config.num_heads, config.max_rows, config.head_dim)
        shape = (config.num_layers, 2, num_slots, *block)
        self.data = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes

    def attend(self, segments: Sequence[Segment]) -> Attend:
        """Attention for one packed step.

        q, k, v are [N, H, d], segment after segment, sequence after sequence. Each segment attends
        on its own over exactly its rows, so neighbours in the step cannot change its result.
        """
        sizes = [self.num_rows * s.count for s in segments]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if len(segments) == 1:
                return self._attend_one(layer, segments[0], q, k, v)
            shares = (torch.split(x, sizes) for x in (q, k, v))
            parts = zip(segments, *shares, strict=True)
            return torch.cat([self._attend_one(layer, *part) for part in parts])

        return attend

    def _attend_one(self, layer: int, segment: Segment, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, end = segment.count, segment.start + segment.count
        heads, head_dim = q.shape[1:]
        shape = (self.num_rows, count, heads, head_dim)
        keys, values = self.data[layer, :, segment.slot].unbind(0)  # [num_rows, H, max_rows, d]
        keys[:, :, segment.start : end] = k.reshape(shape).transpose(1, 2)
        values[:, :, segment.start : end] = v.reshape(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q.reshape(shape).transpose(1, 2),
            keys[:, :, :end],
            values[:, :, :end],
            attn_mask=causal_mask(count, end, q.device),
        )  # [num_rows, H, count, d]
        return y.transpose(1, 2).reshape(-1, heads, head_dim)


def causal_mask(count: int, end: int, device: torch.device) -> Tensor | None:
    """[count, end] true where the i-th of the last `count` rows may look.

    None when nothing is hidden.
    """
    if count == 1:
        return None
    return torch.ones(count, end, dtype=torch.bool, device=device).tril(end - count)
