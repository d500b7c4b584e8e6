"""Steps of a few fixed shapes, which a GPU can replay: CUDA graphs.

A forward of few rows through dozens of layers is bound by launching its many small kernels. A graph
launches them all at once, but for one set of shapes and buffers. So a step is filled up to the next
of a few shapes: rows behind a session's last are stored where its next step overwrites them, and
sessions that are not there have a slot of their own. On a CPU the same steps run as they are.

    B sessions   k new rows each   N = sum of 2 k, packed   E rows of a slot   D width   H heads
"""

from bisect import bisect_left
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ciar.models.kv_cache import KVCache, Segment
from ciar.models.transformer import Transformer

BATCHES = COUNTS = (1, 2, 4, 8, 16, 32)  # B and k
NUM_SPARE = COUNTS[-1]  # rows of a slot for what fills a step up
WARM_UP = 3


class StaticSteps:
    """One step for each shape that is asked for, made when it first is.

    The cache's last slot is for sessions that are not there.
    """

    def __init__(self, transformer: Transformer, cache: KVCache) -> None:
        self._transformer, self._cache = transformer, cache
        self._steps: dict[tuple[int, int], StaticStep] = {}

    def fits(self, segments: Sequence[Segment]) -> bool:
        """Whether a step is small enough, and plain: prompts may have rows of one branch alone."""
        longest = max(segment.count for segment in segments)
        is_small = len(segments) <= BATCHES[-1] and longest <= COUNTS[-1]
        is_plain = not any(s.is_first_only for s in segments)
        return is_small and is_plain

    def hidden(self, x: Tensor, rope: Tensor, segments: Sequence[Segment]) -> Tensor:
        """As `Transformer.hidden` with the cache's attention: x [N, D], rope [N, d/2, 2] -> [N, D].

        x: segment after segment, sequence after sequence.
        """
        batch = BATCHES[bisect_left(BATCHES, len(segments))]
        count = COUNTS[bisect_left(COUNTS, max(segment.count for segment in segments))]
        step = self._steps.get((batch, count))
        if step is None:
            step = StaticStep(self._transformer, self._cache, batch, count, x, rope)
            self._steps[batch, count] = step
        return step(x, rope, segments)


class StaticStep:
    """Buffers of one shape, and what is launched on them. x, rope: of dtype and device to come."""

    def __init__(
        self,
        transformer: Transformer,
        cache: KVCache,
        batch: int,
        count: int,
        x: Tensor,
        rope: Tensor,
    ) -> None:
        self._transformer, self._cache = transformer, cache
        self._shape = (batch, cache.num_rows, count)
        self._last_slot, self._num_rows = cache.data.shape[2] - 1, cache.data.shape[-2]
        rows = batch * cache.num_rows * count
        self._x = x.new_zeros(rows, x.shape[-1])
        self._rope = rope.new_zeros(rows, *rope.shape[1:])
        device = x.device
        self._slot = torch.zeros(batch, 1, 1, dtype=torch.long, device=device)
        self._column = torch.zeros(batch, 1, count, dtype=torch.long, device=device)
        shape = (batch, cache.num_rows, 1, count, self._num_rows)
        self._mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self._sequence = torch.arange(cache.num_rows, device=device)[None, :, None]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: Tensor | None = None

    def __call__(self, x: Tensor, rope: Tensor, segments: Sequence[Segment]) -> Tensor:
        places = self._load(segments).to(x.device)
        self._x.index_copy_(0, places, x)
        self._rope.index_copy_(0, places, rope)
        return self._run().index_select(0, places)

    def _load(self, segments: Sequence[Segment]) -> Tensor:
        """Where each session's rows go in the cache and what they see; and where in the buffers
        its N packed rows stand: [N].
        """
        batch, num_sequences, count = self._shape
        missing = batch - len(segments)
        slots = [s.slot for s in segments] + [self._last_slot] * missing
        starts = torch.tensor([s.start for s in segments] + [0] * missing)[:, None]
        hidden = torch.tensor([s.num_hidden for s in segments] + [0] * missing)[:, None, None]
        column = (starts + torch.arange(count)).clamp(max=self._num_rows - 1)  # [B, k]
        every = torch.arange(self._num_rows)
        seen = every <= column[..., None]  # [B, k, E]
        for own, s in zip(seen, segments, strict=False):
            if s.sees is not None:
                own[: s.count] = F.pad(s.sees, (0, self._num_rows - s.end))
        mask = seen[:, None].repeat(1, num_sequences, 1, 1)
        mask[:, 1:] &= ((every >= hidden) | (every == column[..., None]))[:, None]
        self._mask.copy_(mask[:, :, None])
        self._slot.copy_(torch.tensor(slots)[:, None, None])
        self._column.copy_(column[:, None])
        return torch.tensor(
            [
                (index * num_sequences + sequence) * count + offset
                for index, s in enumerate(segments)
                for sequence in range(num_sequences)
                for offset in range(s.count)
            ]
        )

    def _run(self) -> Tensor:
        """The step on its buffers; on a GPU it is captured the first time, and replayed."""
        if self._x.device.type != "cuda":
            return self._forward()
        if self._graph is None:
            self._capture()
        assert self._graph is not None and self._out is not None
        self._graph.replay()
        return self._out

    def _capture(self) -> None:
        """Forwards are repeatable: each stores the same rows in the same places."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._out = self._forward()
        self._graph = graph

    def _forward(self) -> Tensor:
        return self._transformer.hidden(self._x, self._rope, self._attend)

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: [B * 2 * k, H, d]."""
        heads, head_dim = q.shape[1:]
        shape = (*self._shape, heads, head_dim)
        places = (self._slot, self._sequence, slice(None), self._column)
        keys, values = self._cache.data[layer].unbind(0)  # [slots, 2, H, E, d]
        keys[places], values[places] = k.view(shape), v.view(shape)
        slots = self._slot[:, 0, 0]
        y = F.scaled_dot_product_attention(
            q.view(shape).transpose(2, 3).flatten(0, 1),  # [B * 2, H, k, d]
            keys.index_select(0, slots).flatten(0, 1),
            values.index_select(0, slots).flatten(0, 1),
            attn_mask=self._mask.flatten(0, 1),
        )
        return y.transpose(1, 2).reshape(-1, heads, head_dim)
