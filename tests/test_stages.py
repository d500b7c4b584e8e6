"""Whoever goes away frees session, slot and tasks at once, at whatever stage the work is: prefill,
queue, step, answer. And messages that come twice, late or out of order harm nobody.
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from ciar import wire
from ciar.errors import InvalidInput
from ciar.types import Verdict
from ciar.v1 import collaboration_pb2 as pb
from ciar_cloud.bundle import CloudModel
from tests.cloud_client import Client, Link, Sketch, T, V, cloud, request, uncertain
from tests.held_steps import HeldSteps

WAYS = ("cancel", "channel", "deadline", "kill")
STAGES = ("prefill", "queue", "step", "answer")
NUM_ANSWERS = 12

# An edge as a process of its own: PrefixInject, or a stream that sends batches and reads nothing.
EDGE = """
import sys, time, grpc
from ciar import wire
from ciar.v1 import collaboration_pb2 as pb, collaboration_pb2_grpc as pb_grpc
from tests.cloud_client import request, uncertain
address, stage, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3]) or None
channel = grpc.insecure_channel(address)
stub = pb_grpc.CollaborationStub(channel)
num_prefix = 16 if stage == "prefill" else 0
print("ready", flush=True)
sys.stdin.readline()  # its deadline counts from here
image = wire.prefix_request_to_proto(request(1, num_prefix=num_prefix))
try:
    answer = stub.PrefixInject(image, timeout=seconds)
    session_id = answer.session_id
    def requests():
        yield pb.VerifyBatchRequest(attach=pb.Attach(session_id=session_id))
        for epoch in range(12 if stage == "answer" else 1):
            batch = wire.verify_batch_to_proto(uncertain(0, [1], epoch=epoch), dtype="fp16")
            yield pb.VerifyBatchRequest(batch=batch)
            time.sleep(0.02)
        sys.stdin.read()
    call = stub.VerifyBatch(requests(), timeout=seconds)
    print("sent", flush=True)
    call.code()
except grpc.RpcError as error:
    print(error.code(), flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def edge(client: Client, stage: str, *, seconds: float = 0.0) -> AsyncIterator[Any]:
    """Such a process, which begins once it is sent a line.

    By `subprocess`, which does not run the fork handlers of gRPC in the child: uvloop does, and
    where gRPC is at work the child may die of them.
    """
    process: Any = subprocess.Popen(
        [sys.executable, "-c", EDGE, f"127.0.0.1:{client.port}", stage, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        bufsize=0,
    )
    with process:
        try:
            async with asyncio.timeout(60):  # imports torch
                assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
            yield process
        finally:
            process.kill()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.01)


def own_tasks() -> set[Any]:
    """Of the event loop, but for those in which the server waits for calls."""
    return {task for task in asyncio.all_tasks() if "AioServer._request" not in repr(task)}


async def is_back_to(client: Client, num_sessions: int, num_slots: int, tasks: set[Any]) -> None:
    """Sessions, slots, works and tasks as they were before."""
    engine = client.server.engine
    await until(lambda: len(client.server.sessions) == num_sessions)
    await until(lambda: engine.num_slots_in_use == num_slots and not engine.num_waiting)
    await until(lambda: own_tasks() <= tasks)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", ["deadline", "kill"])
def test_an_edge_process_that_goes_away_frees_all_it_had(
    model: CloudModel, stage: str, way: str, run: Any
) -> None:
    """The step that it shares is held; for `queue`, that of another session."""

    async def scenario() -> None:
        async with cloud(model, slots=2, lease_seconds=60) as client:
            other = await client.session(request(2, num_prefix=1))
            await other.verify(uncertain(1, [1]))
            await asyncio.sleep(0.05)
            tasks = own_tasks()
            hold: HeldSteps | None = None
            async with edge(client, stage, seconds=4 if way == "deadline" else 0) as process:
                if stage != "answer":
                    hold = HeldSteps(client)
                if hold is not None and stage == "queue":
                    await other.send_batch(uncertain(1, [2], epoch=1))
                    await hold.reached()
                process.stdin.write(b"\n")
                if hold is None:  # answer
                    await until(lambda: client.server.engine.num_slots_in_use == 2)
                elif stage == "queue":
                    await hold.waiting(1)
                else:
                    await hold.reached()
                await until(lambda: len(client.server.sessions) == 2)
                if way == "kill":
                    process.send_signal(signal.SIGKILL)
                await until(lambda: len(client.server.sessions) == 1)
                if hold is not None:
                    hold.go_on()
                await is_back_to(client, 1, 1, tasks)
            if stage == "queue":
                await other.receive()
            await other.finish()
            assert await client.is_free()

    run(scenario())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", ["cancel", "channel"])
def test_a_call_that_ends_frees_all_it_had(
    model: CloudModel, stage: str, way: str, run: Any
) -> None:
    async def scenario() -> None:
        async with cloud(model, slots=2) as client:
            other = await client.session(request(2, num_prefix=1))
            await other.verify(uncertain(1, [1]))
            await asyncio.sleep(0.05)
            tasks = own_tasks()
            async with aio.insecure_channel(f"127.0.0.1:{client.port}") as channel:
                mine = Client(client.server, client.port, channel)
                end = await begin(client, mine, other, stage)
                await (channel.close() if way == "channel" else end())
            await is_back_to(client, 1, 1, tasks)
            if stage == "queue":
                await other.receive()
            await other.finish()
            assert await client.is_free()

    async def begin(
        client: Client, mine: Client, other: Link, stage: str
    ) -> Callable[[], Awaitable[None]]:
        """Bring a call to its stage; returns how to cancel it. A held step goes on soon."""
        if stage == "prefill":
            hold = HeldSteps(client)
            call = mine.stub.PrefixInject(
                wire.prefix_request_to_proto(request(1, num_prefix=T)), timeout=20
            )
            await hold.reached()
            return ender(call, hold)
        link = await mine.session(request(1))
        if stage == "answer":
            for epoch in range(NUM_ANSWERS):  # nobody reads the verdicts
                await link.send_batch(uncertain(0, [1], epoch=epoch))
            await until(lambda: client.server.engine.num_slots_in_use == 2)
            return ender(link.call, None)
        hold = HeldSteps(client)
        if stage == "queue":
            await other.send_batch(uncertain(1, [2], epoch=1))
            await hold.reached()
            await link.send_batch(uncertain(0, [1]))
            await hold.waiting(1)
        else:
            await link.send_batch(uncertain(0, [1]))
            await hold.reached()
        return ender(link.call, hold)

    def ender(call: Any, hold: HeldSteps | None) -> Callable[[], Awaitable[None]]:
        if hold is not None:
            asyncio.get_running_loop().call_later(0.1, hold.go_on)

        async def end() -> None:
            call.cancel()

        return end

    run(scenario())


@pytest.mark.parametrize("single_process", [True, False])
def test_batches_that_come_twice_get_the_same_verdict(
    model: CloudModel, truth: Callable[[int], list[int]], single_process: bool, run: Any
) -> None:
    """At once, later, and behind others that stand upon them: what is known does not change."""
    own = truth(2)

    async def scenario() -> None:
        async with cloud(model, single_process=single_process) as client:
            link = await client.session(request(2))
            first, second = uncertain(0, own[:3]), uncertain(3, own[3:5])
            one = await link.verify(first)
            assert agrees(await link.verify(first), one)
            other = await link.verify(second)
            assert (other.num_agreed, other.token) == (2, own[5])
            for batch, verdict in ((first, one), (second, other), (first, one)):
                assert agrees(await link.verify(batch), verdict)
            last = await link.verify(uncertain(6, own[6:8]))
            assert (last.num_agreed, last.token) == (2, own[8])
            await link.send(pb.VerifyBatchRequest(attach=pb.Attach(session_id="another")))
            with pytest.raises(InvalidInput):
                await link.receive()

    run(scenario())


def agrees(found: Verdict, wanted: Verdict) -> bool:
    return (found.epoch, found.position, found.num_agreed, found.token) == (
        wanted.epoch,
        wanted.position,
        wanted.num_agreed,
        wanted.token,
    )


def test_the_same_place_with_other_tokens_is_another_batch(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    own = truth(2)

    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(request(2))
            await link.verify(uncertain(0, own[:2]))
            verdict = await link.verify(uncertain(0, [own[0], (own[1] + 1) % V]))
            assert (verdict.num_agreed, verdict.token) == (1, own[1])

    run(scenario())


@pytest.mark.parametrize("single_process", [True, False])
def test_batches_out_of_order_are_taken_in_order(
    model: CloudModel, truth: Callable[[int], list[int]], single_process: bool, run: Any
) -> None:
    own = truth(2)

    async def scenario() -> None:
        async with cloud(model, single_process=single_process) as client:
            link = await client.session(request(2))
            for position in (4, 2, 0, 6):
                await link.send_batch(uncertain(position, own[position : position + 2]))
                await asyncio.sleep(0.02)  # so that each meets a resting engine
            found = [(await link.receive()).verdict for _ in range(4)]
            assert sorted(v.position for v in found) == [0, 2, 4, 6]
            assert all(v.num_agreed == 2 for v in found)
            assert await Sketch(2, tuple(own[:9])).go_on(link) == own

    run(scenario())


def test_late_batches_of_older_epochs_are_void(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    own = truth(2)

    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(request(2))
            await link.verify(uncertain(0, own[:2], epoch=3))
            await link.send_batch(uncertain(1, [(own[1] + 1) % V], epoch=2))
            verdict = await link.verify(uncertain(3, own[3:4], epoch=3))
            assert (verdict.epoch, verdict.position, verdict.num_agreed) == (3, 3, 1)

    run(scenario())
