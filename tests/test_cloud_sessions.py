"""Who owns a session and its slot, and what frees them."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from grpc import aio

from ciar.errors import SessionLost
from ciar.v1 import collaboration_pb2 as pb
from ciar_cloud.bundle import CloudModel, load_cloud_model
from tests.cloud_client import (
    Client,
    Link,
    cloud,
    request,
    thread_engine,
    uncertain,
)
from tests.tiny import write_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CloudModel:
    return load_cloud_model(str(write_bundle(tmp_path_factory.mktemp("bundle"))))


def test_whatever_ends_a_stream_frees_its_slot(model: CloudModel, run: Any) -> None:
    async def cancel(link: Link) -> None:
        link.call.cancel()

    async def say_cancel(link: Link) -> None:
        await link.send(pb.VerifyBatchRequest(cancel=pb.Cancel(reason="enough")))

    async def close_side(link: Link) -> None:
        await link.call.done_writing()

    async def scenario() -> None:
        async with cloud(model, slots=1) as client:
            for end in (cancel, say_cancel, close_side, Link.finish):
                link = await client.session(request(1, num_prefix=3))
                await link.verify(uncertain(3, [1]))
                assert client.server.engine.num_slots_in_use == 1
                await end(link)
                assert await client.is_free(), end

    run(scenario())


def test_a_finished_session_is_free_before_the_edge_hears_of_it(
    model: CloudModel, run: Any
) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(request(1, num_prefix=3))
            async with asyncio.timeout(30):  # the prefix is told before its step has quite ended
                while thread_engine(client)._current:
                    await asyncio.sleep(0.01)
            await link.finish()
            assert client.server.engine.num_slots_in_use == 0

    run(scenario())


def test_a_channel_that_closes_frees_the_slot(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, slots=1) as client:
            async with aio.insecure_channel(f"127.0.0.1:{client.port}") as channel:
                link = await Client(client.server, client.port, channel).session(request(1))
                await link.verify(uncertain(0, [1]))
            assert await client.is_free()

    run(scenario())


CLIENT = """
import sys, grpc
from ciar.v1 import collaboration_pb2 as pb, collaboration_pb2_grpc as pb_grpc
stub = pb_grpc.CollaborationStub(grpc.insecure_channel(sys.argv[1]))
first = pb.VerifyBatchRequest(attach=pb.Attach(session_id=sys.argv[2]))
def requests():
    yield first
    sys.stdin.read()
for answer in stub.VerifyBatch(requests()):
    print("attached", flush=True)
"""


def test_a_killed_edge_frees_the_slot(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, slots=1) as client:
            prefix = await client.inject(request(1, num_prefix=3))
            address = f"127.0.0.1:{client.port}"
            with subprocess.Popen(  # not asyncio's, for which see `tests.test_stages.edge`
                [sys.executable, "-c", CLIENT, address, prefix.session_id],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdout is not None
                async with asyncio.timeout(60):
                    assert await asyncio.to_thread(process.stdout.readline) == b"attached\n"
                process.kill()
            assert await client.is_free()

    run(scenario())


def test_a_lease_that_nobody_takes_runs_out(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, lease_seconds=0.05) as client:
            prefix = await client.inject(request(1, num_prefix=1))
            assert prefix.lease_seconds == 0.05
            assert await client.is_free()
            with pytest.raises(SessionLost):
                await client.attach(prefix)

    run(scenario())


def test_a_session_belongs_to_one_stream(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, lease_seconds=0.2) as client:
            prefix = await client.inject(request(1, num_prefix=1))
            link = await client.attach(prefix)
            with pytest.raises(SessionLost):
                await client.attach(prefix)
            await asyncio.sleep(0.3)  # the lease is over, the stream is not
            assert (await link.verify(uncertain(1, [1]))).position == 1

    run(scenario())


def test_a_prefix_call_that_is_given_up_leaves_nothing(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, slots=1, min_idle_seconds=60) as client:
            holder = await client.session(request(1, num_prefix=1))
            waiting = asyncio.create_task(client.inject(request(2, num_prefix=1)))
            while not client.server.engine.num_waiting:
                await asyncio.sleep(0.01)
            waiting.cancel()
            while client.server.engine.num_waiting:
                await asyncio.sleep(0.01)
            assert len(client.server.sessions) == 1
            holder.call.cancel()
            assert await client.is_free()

    run(scenario())
