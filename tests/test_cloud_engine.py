"""Failures inside a step reach only those who caused them; what is done between steps."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpc import StatusCode

from ciar.errors import CiarError, CloudUnavailable
from ciar.sampling import random_bits
from ciar.target import Target
from ciar.types import (
    Verdict,
    VerifyBatch,
)
from ciar_cloud.bundle import CloudModel, load_cloud_model
from ciar_cloud.engine import NOISE_AHEAD
from ciar_cloud.solo import draw_alone
from tests.cloud_client import (
    NOT_SERVING,
    SERVING,
    Client,
    F,
    Sketch,
    cloud,
    draw,
    request,
    status_of,
    thread_engine,
    uncertain,
)
from tests.tiny import PROMPT


def test_a_failed_step_fails_its_works_alone(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    """The slots are taken away under a step, then given back: others and newcomers go on."""

    async def scenario() -> None:
        async with cloud(model) as client:
            victim, witness = await client.session(request(1)), await client.session(request(2))
            sketch = Sketch(2)
            await sketch.go_on(witness, until=4)
            cache = thread_engine(client)._target.cache
            whole, cache.data = cache.data, cache.data[:1]
            with pytest.raises(CiarError, match="step failed"):
                await victim.verify(uncertain(0, [1]))
            cache.data = whole
            assert await sketch.go_on(witness) == truth(2)
            assert await draw(client, 5) == truth(5)

    run(scenario())


def test_logits_that_are_no_numbers_fail_their_session_alone(bundle: Path, run: Any) -> None:
    """One damaged embedding row: who feeds that token fails, who shares the step does not."""
    damaged = load_cloud_model(str(bundle))
    weight = damaged.target.transformer.tok_embeddings.weight
    weight[0] = torch.nan
    (text,) = damaged.encoder.encode([PROMPT])
    # An image whose own tokens are all undamaged, so that it can be drawn.
    weight_ok = load_cloud_model(str(bundle))
    target = Target(weight_ok.target, num_slots=1)
    images = ((seed, draw_alone(target, request(seed), text).tokens) for seed in range(50))
    seed, own = next((seed, tokens) for seed, tokens in images if 0 not in tokens)

    async def scenario() -> None:
        async with cloud(damaged) as client:
            victim = await client.session(request(seed))
            witness = await client.session(request(seed))
            both = await asyncio.gather(
                victim.verify(
                    VerifyBatch(
                        position=0,
                        tokens=(0,),
                        uncertain=(False,),
                        features=torch.zeros(1, F),
                    )
                ),
                witness.verify(uncertain(0, list(own[:2]))),
                return_exceptions=True,
            )
            assert isinstance(both[0], CiarError)
            assert "not finite" in str(both[0])
            assert isinstance(both[1], Verdict)
            assert both[1].token == own[2]

    run(scenario())


def test_a_model_thread_that_dies_leaves_nobody_waiting(model: CloudModel, run: Any) -> None:
    """A defect outside the forward pass ends it: who waits is told, and so is the server."""

    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(request(1))
            thread_engine(client)._steps.run = None  # type: ignore[method-assign, assignment]
            with pytest.raises(CloudUnavailable):
                await link.verify(uncertain(0, [1]))
            await asyncio.wait_for(client.server.engine.died.wait(), 5)
            code, _ = await status_of(client.inject(request(2, num_prefix=1)))
            assert code is StatusCode.UNAVAILABLE
            assert len(client.server.sessions) == 0

    run(scenario())


def test_a_step_that_does_not_end_is_a_death_until_it_does(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    """Work that waits and no step: neither alive nor ready. Rest is no death."""
    go_on = threading.Event()

    async def scenario() -> None:
        async with cloud(model, stuck_seconds=0.6) as client:
            await asyncio.sleep(1.2)
            assert await client.health("") == await client.health() == SERVING
            link = await client.session(request(1))
            run_step = thread_engine(client)._steps.run

            def waiting(running: Any) -> Any:
                go_on.wait(20)
                return run_step(running)

            thread_engine(client)._steps.run = waiting  # type: ignore[method-assign]
            answer = asyncio.create_task(link.verify(uncertain(0, [1])))
            await until(lambda: client.server.engine.seconds_stuck > 0.6)
            await until_health(client, NOT_SERVING)
            assert await client.health() == NOT_SERVING
            go_on.set()
            assert (await answer).token == truth(1)[0] or (await answer).num_agreed == 1
            await until_health(client, SERVING)
            assert await client.health() == SERVING

    run(scenario())


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.02)


async def until_health(client: Client, wanted: int) -> None:
    async with asyncio.timeout(30):
        while await client.health("") != wanted:
            await asyncio.sleep(0.05)


def test_noise_of_the_next_positions_is_drawn_while_nobody_waits(
    model: CloudModel, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def counting(seed: int, position: int, vocab_size: int) -> np.ndarray:
        drawn.append(position)
        return random_bits(seed, position, vocab_size)

    monkeypatch.setattr("ciar.sampling.random_bits", counting)

    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(request(1))
            verdict = await link.verify(uncertain(0, [1]))
            first = verdict.num_agreed + 1
            ahead = list(range(first, min(first + NOISE_AHEAD, model.info.num_tokens)))
            async with asyncio.timeout(30):
                while drawn[-1] != ahead[-1]:
                    await asyncio.sleep(0.01)
            assert drawn[-len(ahead) :] == ahead
            drawn.clear()
            again = await link.verify(replace(uncertain(first, [0]), epoch=1))
            needed = range(first, first + again.num_agreed + 1)
            assert not set(needed) & set(drawn)

    run(scenario())
