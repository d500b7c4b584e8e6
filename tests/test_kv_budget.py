"""KV memory in bytes: how many sessions fit, what is refused, and that nobody loses a token."""

import asyncio
from typing import Any

import pytest

from ciar.errors import InvalidInput
from ciar.target import Target
from ciar_cloud.bundle import CloudModel
from ciar_cloud.config import ServeConfig
from ciar_cloud.kv_budget import choose_slots, read_bytes
from tests.cloud_client import cloud, draw, metric


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", 0), ("0", 0), ("1000", 1000), ("2GiB", 2 << 30), ("500MB", 500_000_000), ("1.5Ki", 1536)],
)
def test_budgets_are_bytes(text: str, wanted: int) -> None:
    assert read_bytes(text) == wanted


@pytest.mark.parametrize("text", ["-1", "much", "2TiB", "1e9", "GiB"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="kv-budget"):
        ServeConfig(kv_budget=text)


@pytest.mark.parametrize("has_static_steps", [False, True])
def test_as_many_slots_as_fit_the_budget(model: CloudModel, has_static_steps: bool) -> None:
    """What is allocated in the end is within it, and one more slot would not be."""

    def allocated(slots: int) -> int:
        target = Target(model.target, num_slots=slots, has_static_steps=has_static_steps)
        return target.cache.num_bytes

    for budget in (allocated(1), allocated(3), allocated(4) - 1, allocated(40)):
        slots = choose_slots(
            model.target, slots=0, kv_budget=budget, has_static_steps=has_static_steps
        )
        assert allocated(slots) <= budget < allocated(slots + 1)
    with pytest.raises(InvalidInput, match=f"one session takes {allocated(1)} bytes"):
        choose_slots(
            model.target,
            slots=0,
            kv_budget=allocated(1) - 1,
            has_static_steps=has_static_steps,
        )


def test_slots_and_budget_bound_each_other(model: CloudModel) -> None:
    one = Target(model.target, num_slots=1).cache.num_bytes
    assert choose_slots(model.target, slots=2, kv_budget=5 * one) == 2
    assert choose_slots(model.target, slots=9, kv_budget=5 * one) == 5
    assert choose_slots(model.target, slots=9, kv_budget=0) == 9
    assert choose_slots(model.target, slots=0, kv_budget=0) >= 1


@pytest.mark.parametrize("single_process", [True, False])
def test_a_third_of_the_memory_needed_costs_no_token(
    model: CloudModel, single_process: bool, run: Any
) -> None:
    one = Target(model.target, num_slots=1).cache.num_bytes

    async def scenario() -> None:
        async with cloud(model) as client:
            alone = [await draw(client, seed, keep=0.5) for seed in range(9)]
        budget = {"slots": 0, "kv_budget": str(3 * one), "min_idle_seconds": 0.0}
        async with cloud(model, single_process=single_process, **budget) as client:
            assert client.server.engine.num_slots == 3
            together = await asyncio.gather(*(draw(client, seed, keep=0.5) for seed in range(9)))
            assert together == alone
            assert await client.is_free()
            async with asyncio.timeout(30):
                while not metric(client, "ciar_cloud_evictions_total"):
                    await asyncio.sleep(0.02)

    run(scenario())
