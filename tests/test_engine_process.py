"""Engine processes: what they draw, that their deaths cost no image, and how they begin and end."""

import asyncio
import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grpc import StatusCode

from ciar.errors import (
    CheckpointError,
    CiarError,
    EngineError,
    InvalidInput,
    Overloaded,
)
from ciar.session import SessionState
from ciar.types import Timings, Verdict
from ciar_cloud import engine_link
from ciar_cloud.bundle import FrontModel, load_front_model
from ciar_cloud.engine_link import EngineLink
from ciar_cloud.engine_process import EngineServer
from ciar_cloud.engine_wire import (
    FrameReader,
    Recorder,
    encode_frame,
    open_frame,
    outcome_from_json,
    outcome_to_json,
    replay,
    state_from_frame,
)
from ciar_cloud.fleet import Fleet
from tests.cloud_client import (
    NOT_SERVING,
    SERVING,
    Client,
    F,
    Sketch,
    T,
    V,
    cloud,
    draw,
    metric,
    request,
    retry_seconds,
    status_of,
    uncertain,
)


@pytest.fixture(scope="module")
def front(bundle: Path) -> FrontModel:
    return load_front_model(str(bundle))


def engine_processes(front: FrontModel, **settings: Any) -> Any:
    return cloud(front, **{"single_process": False} | settings)


def links(client: Client) -> list[EngineLink]:
    fleet = client.server.engine
    assert isinstance(fleet, Fleet)
    return fleet.links


def is_up(link: EngineLink) -> bool:
    return link.is_up


def kill(link: EngineLink, number: int = signal.SIGKILL) -> None:
    assert link.pid is not None
    os.kill(link.pid, number)


async def until(is_true: Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not is_true():
            await asyncio.sleep(0.01)


def test_the_server_loads_no_more_of_the_target_than_prompts_need(
    front: FrontModel, model: Any
) -> None:
    (features,) = model.encoder.encode(["a dog on the beach"])
    assert torch.equal(front.condition_rows(features), model.condition_rows(features))
    assert front.info == model.info
    loaded = {n for n, p in front.transformer.named_parameters() if not p.is_meta}
    assert all(name.startswith("cls_embedding.") for name in loaded)


def test_several_engines_draw_what_one_thread_draws(
    front: FrontModel, model: Any, truth: Callable[[int], list[int]], run: Any
) -> None:
    """Fewer slots than sessions: idle ones are evicted and rebuilt, and the server hears of it."""

    async def scenario() -> None:
        async with cloud(model) as client:
            alone = [await draw(client, seed, keep=0.5, run_on=seed % 3) for seed in range(8)]
        async with engine_processes(
            front, device="cpu,cpu", slots=2, min_idle_seconds=0.0
        ) as client:
            assert client.server.engine.num_slots == 4
            assert await draw(client, 3) == truth(3)
            images = (draw(client, seed, keep=0.5, run_on=seed % 3) for seed in range(8))
            together = await asyncio.gather(*images)
            assert together == alone
            assert await client.is_free()
            await until(lambda: metric(client, "ciar_cloud_evictions_total") != 0)
            await until(lambda: (metric(client, "ciar_cloud_forwards_total") or 0) > T)

    run(scenario())


@pytest.mark.parametrize("single_process", [True, False])
def test_behind_a_difference_the_cloud_draws_on(
    front: FrontModel,
    model: Any,
    truth: Callable[[int], list[int]],
    run: Any,
    single_process: bool,
) -> None:
    """In steps of their own, and what was sent behind the batch is void all the same."""

    async def scenario() -> None:
        right = truth(3)
        wrong = [(token + 1) % V for token in right]
        whole = model if single_process else front
        async with cloud(whole, single_process=single_process) as client:
            link = await client.session(request(3, num_prefix=2))
            await link.send_batch(replace(uncertain(2, [*right[2:4], wrong[4]]), run_on=3))
            await link.send_batch(uncertain(5, right[5:7]))
            verdict = await link.verdict()
            assert (verdict.num_agreed, verdict.drawn) == (2, tuple(right[4:8]))
            assert verdict.timings.num_forwards == 4
            again = await link.verify(uncertain(6, right[6:9], epoch=1))  # it asks about two
            assert (again.position, again.drawn) == (6, (right[9],))
            last = replace(uncertain(T - 2, [wrong[T - 2]], epoch=1), run_on=3)
            known = Sketch(3, tuple(right[: T - 2]))
            other = await client.resume(known.resume(request(3, num_prefix=2)))
            assert (await other.verify(last)).drawn == tuple(right[T - 2 :])

    run(scenario())


def test_sessions_go_to_the_engine_that_has_least_to_do(front: FrontModel, run: Any) -> None:
    async def scenario() -> None:
        async with engine_processes(front, device="cpu,cpu") as client:
            opened = [await client.session(request(seed, num_prefix=1)) for seed in range(6)]
            assert [len(link.seats) for link in links(client)] == [3, 3]
            for link in opened:
                await link.finish()
            assert await client.is_free()

    run(scenario())


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_an_engine_that_is_killed_costs_no_image(front: FrontModel, devices: str, run: Any) -> None:
    """At every third token of four images that draw at the same time; nobody sees an error."""

    async def scenario() -> None:
        async with engine_processes(front, device=devices) as client:
            alone = [await draw(client, seed, keep=0.5) for seed in range(4)]
            sketches = [Sketch(seed, keep=0.5) for seed in range(4)]
            opened = [await client.session(request(seed, num_prefix=2)) for seed in range(4)]
            for sketch, tokens in zip(sketches, alone, strict=True):
                sketch.tokens, sketch.uncertain = tokens[:2], [True, True]
            for number, end in enumerate((5, 8, T)):
                victim = links(client)[number % len(links(client))]
                await until(partial(is_up, victim))
                kill(victim)
                drawn = await asyncio.gather(
                    *(s.go_on(link, until=end) for s, link in zip(sketches, opened, strict=True))
                )
            assert drawn == alone
            for link in opened:
                await link.finish()
            assert await client.is_free()
            assert metric(client, "ciar_cloud_engine_deaths_total") == 3

    run(scenario())


def test_the_works_of_a_killed_engine_are_done_by_another_at_once(
    front: FrontModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    """It hangs first, so that work is in its hands; nobody waits for its successor to load."""

    async def scenario() -> None:
        async with engine_processes(front, device="cpu,cpu") as client:
            link = await client.session(request(1))
            victim = next(one for one in links(client) if one.seats)
            kill(victim, signal.SIGSTOP)
            answer = asyncio.create_task(link.verify(uncertain(0, truth(1)[:2])))
            await until(lambda: bool(victim._jobs))
            kill(victim)
            started = time.monotonic()
            assert (await answer).token == truth(1)[2]
            seconds, is_back = time.monotonic() - started, victim.is_up
            assert not is_back
            assert seconds < 1.0
            await until(lambda: victim.is_up)

    run(scenario())


def test_steps_without_an_outcome_are_told_of_too(monkeypatch: Any) -> None:
    """A long work takes many: an engine that nobody hears of would be taken for one that hangs."""
    ours, theirs = socket.socketpair()
    server = EngineServer(theirs)
    server._engine = SimpleNamespace(num_slots_in_use=0)  # type: ignore[assignment]
    with ours, theirs:
        ours.setblocking(False)
        server.collect()
        server._recorder.step_ended(num_works=1, num_positions=1, seconds=0.1)
        server.collect()
        ((head, _),) = FrameReader().feed(ours.recv(1 << 16))
        assert (head["say"], head["outcomes"]) == ("step", [])
        server._recorder.step_ended(num_works=1, num_positions=1, seconds=0.1)
        server.collect()
        with pytest.raises(BlockingIOError):  # it has just been told
            ours.recv(1 << 16)


def test_an_engine_that_hangs_is_replaced(
    front: FrontModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    async def scenario() -> None:
        async with engine_processes(front, stuck_seconds=0.6) as client:
            link = await client.session(request(1))
            (only,) = links(client)
            kill(only, signal.SIGSTOP)
            answer = asyncio.create_task(link.verify(uncertain(0, truth(1)[:2])))
            async with asyncio.timeout(30):
                while await client.health() == SERVING:
                    await asyncio.sleep(0.02)
                assert (await answer).token == truth(1)[2]
                while (await client.health(), await client.health("")) != (SERVING, SERVING):
                    await asyncio.sleep(0.02)

    run(scenario())


def test_without_an_engine_a_cloud_is_alive_and_not_ready(front: FrontModel, run: Any) -> None:
    """New images wait for its successor, as many as the queue takes."""

    async def scenario() -> None:
        async with engine_processes(front, max_queue=1) as client:
            kill(links(client)[0])
            async with asyncio.timeout(30):
                while await client.health() == SERVING:
                    await asyncio.sleep(0.01)
                assert await client.health() == NOT_SERVING
                assert await client.health("") == SERVING
                waiting = asyncio.create_task(client.inject(request(1, num_prefix=1)))
                await until(lambda: client.server.engine.num_waiting == 1)
                code, error = await status_of(client.inject(request(2, num_prefix=1)))
                assert code is StatusCode.RESOURCE_EXHAUSTED
                assert retry_seconds(error) > 0
                assert len((await waiting).tokens) == 1
                while await client.health() != SERVING:
                    await asyncio.sleep(0.02)

    run(scenario())


def test_a_work_that_engines_die_of_is_given_up(
    front: FrontModel, truth: Callable[[int], list[int]], run: Any, monkeypatch: Any
) -> None:
    """Its outcomes are kept back, and its engine is killed each time it has begun."""
    monkeypatch.setattr(EngineLink, "_take_step", lambda self, head: None)

    async def scenario() -> None:
        async with engine_processes(front) as client:
            link, (only,) = await client.session(request(1)), links(client)
            answer = asyncio.create_task(link.verify(uncertain(0, [1])))
            for _ in range(engine_link.MAX_DEATHS + 1):
                await until(lambda: any(job.is_started for job in only._jobs.values()))
                kill(only)
                await until(lambda: not only.is_up)
            with pytest.raises(CiarError, match="died under this work"):
                await answer
            monkeypatch.undo()
            await until(lambda: only.is_up)
            assert await draw(client, 2) == truth(2)
            assert not client.server.engine.num_waiting

    run(scenario())


def test_an_engine_that_cannot_be_started_again_ends_the_cloud(
    bundle: Path, tmp_path: Path, run: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(engine_link, "MAX_FAILED_STARTS", 2)
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    front = load_front_model(str(folder))

    async def scenario() -> None:
        async with engine_processes(front) as client:
            (folder / "cloud" / "model.safetensors").unlink()
            kill(links(client)[0])
            await asyncio.wait_for(client.server.engine.died.wait(), 30)
            code, _ = await status_of(client.inject(request(1, num_prefix=1)))
            assert code is StatusCode.UNAVAILABLE

    run(scenario())


def test_what_an_engine_cannot_start_with_is_told(bundle: Path, tmp_path: Path, run: Any) -> None:
    front = load_front_model(str(bundle))

    async def start(front: FrontModel, **settings: Any) -> None:
        async with engine_processes(front, **settings):
            pass

    with pytest.raises(InvalidInput, match="device: 'abacus'"):
        run(start(front, device="cpu,abacus"))
    with pytest.raises(InvalidInput, match="kv-budget: '1000 bytes'.*one session takes"):
        run(start(front, kv_budget="1000"))
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    front = load_front_model(str(folder))
    (folder / "cloud" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        run(start(front))


def test_the_queue_is_counted_where_the_works_come_in(front: FrontModel, run: Any) -> None:
    async def scenario() -> None:
        settings = {"slots": 1, "max_queue": 1, "min_idle_seconds": 60}
        async with engine_processes(front, **settings) as client:
            holder = await client.session(request(1, num_prefix=1))
            late = asyncio.create_task(
                status_of(client.inject(request(2, num_prefix=1), timeout=1))
            )
            await until(lambda: client.server.engine.num_waiting == 1)
            code, _ = await status_of(client.inject(request(3, num_prefix=1)))
            assert code is StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(Overloaded):
                await client.resume(Sketch(9, (1, 2)).resume(request(9)))
            await holder.verify(uncertain(1, [1]))  # open sessions go on
            code, _ = await late
            assert code is StatusCode.DEADLINE_EXCEEDED
            await until(lambda: not client.server.engine.num_waiting)
            await holder.finish()
            assert await client.is_free()

    run(scenario())


def test_frames_come_whole_however_they_are_cut() -> None:
    tensors = [torch.randn(3, 2), torch.zeros(0, 8)]
    data = encode_frame({"do": "x", "n": 2**64 - 1}, tensors) + encode_frame({"say": "y"})
    for size in (1, 7, len(data)):
        reader, found = FrameReader(), list[tuple[Any, list[torch.Tensor]]]()
        for first in range(0, len(data), size):
            found += reader.feed(data[first : first + size])
        (one, arrays), (other, none) = found
        assert (one["do"], one["n"], other, none) == ("x", 2**64 - 1, {"say": "y"}, [])
        assert all(torch.equal(a, b) for a, b in zip(arrays, tensors, strict=True))


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("tokens", 99, "give ids below 24"),
        Overloaded("full", retry_seconds=2.5),
        EngineError("the model step failed: out of memory"),
    ],
)
def test_errors_are_the_same_behind_the_socket(error: CiarError) -> None:
    found = outcome_from_json(outcome_to_json(error))
    assert type(found) is type(error)
    assert (str(found), vars(found)) == (str(error), vars(error))


def test_outcomes_and_observations_are_the_same_behind_the_socket() -> None:
    timings = Timings(queue_seconds=0.25, num_forwards=2)
    gaps = (0.25, math.inf)
    verdict = Verdict(epoch=1, position=3, num_agreed=2, token=None, timings=timings, gaps=gaps)
    for outcome in (verdict, timings, None):
        assert outcome_from_json(outcome_to_json(outcome)) == outcome
    recorder, told = Recorder(), Recorder()
    recorder.work_ended(kind="prefix", timings=timings)
    recorder.slot_evicted()
    replay(recorder.take(), told)
    assert told.take()[1] == ("slot_evicted", {})
    assert recorder.take() == []


def test_a_session_crosses_with_all_that_is_known() -> None:
    sizes = {"num_tokens": T, "vocab_size": V, "feature_dim": F}
    state = SessionState(request(2**63, num_prefix=2), torch.randn(5, 16), **sizes)
    sketch = Sketch(3, keep=0.5)
    while len(state.tokens) < T - 4:
        batch = sketch.batch()
        verdict = Verdict(
            epoch=0, position=batch.position, num_agreed=len(batch.tokens), token=None
        )
        sketch.take(batch, verdict)
        state.take(batch, verdict)
    ((head, tensors),) = FrameReader().feed(open_frame(1, state, caller="alice"))
    found = state_from_frame(head, tensors, **sizes)
    assert (found.request, found.tokens) == (state.request, state.tokens)
    assert found.kept == state.kept and state.kept
    assert torch.equal(found.features, state.features)
    assert torch.equal(found.condition, state.condition)
    assert found.answer_to(batch) == state.answer_to(batch) == verdict
