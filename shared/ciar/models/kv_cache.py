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
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.models.transformer import Attend, TransformerConfig


@dataclass(frozen=True)
class Segment:
    """A session's share of a packed step.

    `count` new rows for each of its sequences, stored from row `start` on.

    sees: [count, start + count] bool, which rows each new one attends to; None: all up to itself.
    num_hidden: rows, from the first, that all sequences but the first do not see.
    is_first_only: of the first sequence alone.
    """

    slot: int
    start: int
    count: int
    sees: Tensor | None = None
    num_hidden: int = 0
    is_first_only: bool = False

    def num_sequences(self, num_rows: int) -> int:
        """Of the `num_rows` that a slot has."""
        return 1 if self.is_first_only else num_rows

    @property
    def end(self) -> int:
        return self.start + self.count


class KVCache:
    """[num_layers, 2, num_slots, num_rows, H, max_rows + num_spare, d].

    num_spare: rows for tokens that may be dropped again, beyond those of a whole image.
    is_padded: all segments of a step attend in one padded call, as is fastest on a GPU, where many
    small kernels cost more than padding, and for many segments anywhere. Otherwise each attends on
    its own over exactly its rows, so neighbours in the step cannot change its result by a bit.
    None: as suits the device.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        num_slots: int,
        num_rows: int,
        num_spare: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        is_padded: bool | None = None,
    ) -> None:
        self.num_rows = num_rows
        self.is_padded = torch.device(device).type == "cuda" if is_padded is None else is_padded
        block = (num_rows, config.num_heads, config.max_rows + num_spare, config.head_dim)
        shape = (config.num_layers, 2, num_slots, *block)
        self.data = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes

    def attend(self, segments: Sequence[Segment]) -> Attend:
        """Attention for one packed step.

        q, k, v are [N, H, d], segment after segment, sequence after sequence.
        """
        if len(segments) > 1 and self.is_padded:
            return partial(self._attend_padded, layout=PackedLayout(segments, self))
        masks = [row_mask(s, self.num_rows, self.data) for s in segments]
        if len(segments) == 1:
            return partial(self._attend_one, segment=segments[0], mask=masks[0])
        return partial(self._attend_each, segments=segments, masks=masks)

    def keep(self, slot: int, start: int, rows: Tensor) -> None:
        """Move rows [n] of a slot, ascending, to `start` and what follows; those there are lost."""
        block = self.data[:, :, slot]  # [num_layers, 2, num_rows, H, max_rows, d]
        block[..., start : start + len(rows), :] = block[..., rows.to(block.device), :]

    def _attend_each(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        segments: Sequence[Segment],
        masks: Sequence[Tensor | None],
    ) -> Tensor:
        sizes = [s.num_sequences(self.num_rows) * s.count for s in segments]
        shares = (torch.split(x, sizes) for x in (q, k, v))
        parts = zip(segments, masks, *shares, strict=True)
        return torch.cat(
            [self._attend_one(layer, *x, segment=segment, mask=mask) for segment, mask, *x in parts]
        )

    def _attend_padded(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, layout: "PackedLayout"
    ) -> Tensor:
        heads, head_dim = q.shape[1:]
        keys, values = self.data[layer].unbind(0)  # [num_slots, num_rows, H, max_rows, d]
        keys[layout.slot, layout.row, :, layout.column] = k
        values[layout.slot, layout.row, :, layout.column] = v
        shape = (layout.num_segments, self.num_rows, layout.max_count, heads, head_dim)
        padded = q.new_zeros(shape)
        padded[layout.segment, layout.row, layout.offset] = q
        y = F.scaled_dot_product_attention(
            padded.transpose(2, 3).flatten(0, 1),  # [segments * num_rows, H, max_count, d]
            keys[layout.slots, :, :, : layout.max_end].flatten(0, 1),
            values[layout.slots, :, :, : layout.max_end].flatten(0, 1),
            attn_mask=layout.mask,
        )
        y = y.transpose(1, 2).reshape(shape)
        return y[layout.segment, layout.row, layout.offset]

    def _attend_one(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        segment: Segment,
        mask: Tensor | None,
    ) -> Tensor:
        count, end = segment.count, segment.end
        heads, head_dim = q.shape[1:]
        num_rows = segment.num_sequences(self.num_rows)
        shape = (num_rows, count, heads, head_dim)
        block = self.data[layer, :, segment.slot, :num_rows]
        keys, values = block.unbind(0)  # [num_rows, H, max_rows, d]
        keys[:, :, segment.start : end] = k.reshape(shape).transpose(1, 2)
        values[:, :, segment.start : end] = v.reshape(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q.reshape(shape).transpose(1, 2),
            keys[:, :, :end],
            values[:, :, :end],
            attn_mask=mask,
        )  # [num_rows, H, count, d]
        return y.transpose(1, 2).reshape(-1, heads, head_dim)


class PackedLayout:
    """Where each of the N packed rows belongs: computed once a step, used by every layer.

    mask: [segments * num_rows, 1, max_count, max_end] true where a row may look; what rows of
    padding see does not matter.
    """

    def __init__(self, segments: Sequence[Segment], cache: KVCache) -> None:
        device, num_rows = cache.data.device, cache.num_rows
        self.num_segments = len(segments)
        self.max_count = max(s.count for s in segments)
        self.max_end = max(s.end for s in segments)
        rows = [
            (index, s.slot, row, offset, s.start + offset)
            for index, s in enumerate(segments)
            for row in range(s.num_sequences(num_rows))
            for offset in range(s.count)
        ]
        table = torch.tensor(rows, device=device).t()  # [5, N]
        self.segment, self.slot, self.row, self.offset, self.column = table
        slots = [s.slot for s in segments]
        is_range = slots == list(range(len(slots)))  # then keys and values need no copy
        self.slots = slice(0, len(slots)) if is_range else torch.tensor(slots, device=device)
        starts = torch.tensor([s.start for s in segments], device=device)
        last_seen = starts[:, None] + torch.arange(self.max_count, device=device)  # [segments, C]
        columns = torch.arange(self.max_end, device=device)
        mask = columns <= last_seen[..., None]  # [segments, max_count, max_end]
        for index, s in enumerate(segments):
            if s.sees is not None:
                mask[index, : s.count, : s.end] = s.sees.to(device)
        masks = mask.repeat_interleave(num_rows, dim=0)[:, None]
        for index, s in enumerate(segments):
            if s.num_hidden:
                own = sequence_masks(s, num_rows).to(device)
                masks[index * num_rows : (index + 1) * num_rows, :, : s.count, : s.end] = own
        self.mask = masks


def row_mask(segment: Segment, num_rows: int, like: Tensor) -> Tensor | None:
    """What its new rows attend to, as attention takes it; None when nothing is hidden."""
    if segment.num_hidden and not segment.is_first_only:
        return sequence_masks(segment, num_rows).to(like.device)
    if segment.sees is not None:
        return segment.sees.to(like.device)
    return causal_mask(segment.count, segment.end, like)


def sequence_masks(segment: Segment, num_rows: int) -> Tensor:
    """[num_rows, 1, count, end] bool. A hidden row sees itself, lest it sees nothing at all."""
    columns = torch.arange(segment.end)
    own = segment.start + torch.arange(segment.count)[:, None]
    mask = columns <= own if segment.sees is None else segment.sees.cpu()  # [count, end]
    masks = mask.repeat(num_rows, 1, 1, 1)  # [num_rows, 1, count, end]
    masks[1:] &= (columns >= segment.num_hidden) | (columns == own)
    return masks


def causal_mask(count: int, end: int, like: Tensor) -> Tensor | None:
    """What to add to scores [count, end] so that the i-th of the last `count` rows looks back only.

    None when nothing is hidden. Of the dtype and device of `like`.
    """
    if count == 1:
        return None
    hidden = torch.full((count, end), -torch.inf, dtype=like.dtype, device=like.device)
    return hidden.triu(end - count + 1)
