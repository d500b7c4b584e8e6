"""Steps that fail, by injection: who fails with them, who is tried again, what is divided."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ciar.errors import CiarError, CloudUnavailable
from ciar.feed import Feed
from ciar.target import Target
from ciar_cloud.bundle import CloudModel
from tests.cloud_client import Client, Sketch, cloud, draw, request, thread_engine, uncertain
from tests.held_steps import HeldSteps

Extend = Callable[[Sequence[Feed]], list[Tensor]]


class SmallMemory:
    """A device that runs out of memory above so many rows a step, until somebody frees it."""

    def __init__(self, client: Client, *, max_rows: int, error: Callable[[], Exception]) -> None:
        target: Target = thread_engine(client)._target
        self._extend: Extend = target.extend
        self._max_rows, self._error = max_rows, error
        self.num_failures = 0
        self.num_rows: list[int] = []
        target.extend = self  # type: ignore[method-assign]

    def __call__(self, feeds: Sequence[Feed]) -> list[Tensor]:
        num_rows = sum(feed.num_new_rows for feed in feeds)
        if num_rows > self._max_rows:
            self.num_failures += 1
            raise self._error()
        self.num_rows.append(num_rows)
        return self._extend(feeds)


ERRORS: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"
    ),
    MemoryError,
]


@pytest.mark.parametrize("error", ERRORS)
def test_a_step_too_large_for_memory_is_divided(
    model: CloudModel, error: Callable[[], Exception], run: Any
) -> None:
    """Steps of four images, and the catch-up of each when it is resumed: all get their tokens."""

    async def scenario() -> None:
        async with cloud(model) as client:
            alone = [await draw(client, seed, keep=0.5) for seed in range(4)]
            memory = SmallMemory(client, max_rows=9, error=error)
            for seed in range(4):
                sketch = Sketch(seed, tuple(alone[seed][:2]), keep=0.5)
                link = await client.session(request(seed, num_prefix=2))
                assert await sketch.go_on(link, until=12) == alone[seed][: len(sketch.tokens)]
                again = await client.resume(sketch.resume(request(seed, num_prefix=2)))
                assert await sketch.go_on(again) == alone[seed]
                await again.finish()
                await link.finish()
            assert memory.num_failures
            assert max(memory.num_rows) <= 9
            assert await client.is_free()

    run(scenario())


def test_a_work_that_no_memory_suffices_for_fails_alone(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            witness = await client.session(request(2, num_prefix=1))
            link = await client.session(request(1, num_prefix=1))
            SmallMemory(client, max_rows=3, error=ERRORS[0])
            with pytest.raises(CiarError, match="step failed: CUDA out of memory"):
                await link.verify(uncertain(1, truth(1)[1:9]))
            verdict = await witness.verify(uncertain(1, truth(2)[1:2]))
            assert (verdict.num_agreed, verdict.token) == (1, truth(2)[2])

    run(scenario())


def test_whose_feed_breaks_a_step_fails_alone(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    """Four works in one step, one of them makes every step fail that it is part of."""

    async def scenario() -> None:
        async with cloud(model) as client:
            links = [await client.session(request(seed, num_prefix=1)) for seed in range(4)]
            target: Target = thread_engine(client)._target
            extend = target.extend
            slot = 2  # of the third

            def breaking(feeds: Sequence[Feed]) -> list[Tensor]:
                if any(feed.slot == slot for feed in feeds):
                    raise ValueError("a defect")
                return extend(feeds)

            target.extend = breaking  # type: ignore[method-assign]
            hold = HeldSteps(client)
            first = hold.batch(links[0], 1, truth(0)[1:2])
            await hold.reached()
            others = [hold.batch(link, 1, truth(s)[1:2]) for s, link in enumerate(links) if s]
            await hold.waiting(3)
            hold.go_on()
            assert (await first).token == truth(0)[2]
            assert (await others[0]).token == truth(1)[2]
            with pytest.raises(CiarError, match="a defect"):
                await others[1]
            assert (await others[2]).token == truth(3)[2]
            sizes = client.server.metrics.registry.get_sample_value
            assert sizes("ciar_cloud_batch_size_bucket", {"le": "3.0"}) == 2 + 4

    run(scenario())


def test_a_device_that_is_lost_ends_the_engine(model: CloudModel, run: Any) -> None:
    """Every later step would fail: in a process of its own, a new one takes over."""

    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(request(1, num_prefix=1))

            def lost(feeds: Sequence[Feed]) -> list[Tensor]:
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")

            thread_engine(client)._target.extend = lost  # type: ignore[method-assign]
            with pytest.raises(CloudUnavailable):
                await link.verify(uncertain(1, [1]))
            assert client.server.engine.died.is_set()

    run(scenario())
