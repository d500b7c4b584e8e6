"""How a cloud ends, in processes of their own: asked once, asked twice, killed."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ciar.errors import CiarError
from ciar.types import ImageRequest, SamplingParams
from ciar.wire import SERVICE_NAME
from ciar_edge.connection import RemoteConfig
from ciar_edge.remote import RemoteVerifier
from tests.cloud_client import NOT_SERVING, SERVING, T, uncertain
from tests.test_cloud_cli import serving
from tests.tiny import PROMPT

MODES = ("--single-process", "--engine-process")
QUICK = RemoteConfig(resume_seconds=1)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


async def health(address: str, service: str) -> int:
    async with aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)  # type: ignore[attr-defined]
        return int(answer.status)


def image(seed: int) -> ImageRequest:
    return ImageRequest(prompt=PROMPT, sampling=SamplingParams(seed=seed, cfg_scale=2.0))


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_asked_to_stop_a_cloud_finishes_its_images(
    bundle: Path, truth: Callable[[int], list[int]], mode: str, run: Any
) -> None:
    """Readiness ends at once, liveness stays, new images are refused, the open one is drawn."""
    own = truth(3)
    with serving(bundle, mode) as (process, line):
        address = line.split()[3]

        async def scenario() -> None:
            cloud = RemoteVerifier(address, config=QUICK)
            async with cloud as verifier, verifier.open(image(3)) as session:
                await session.verify(uncertain(0, own[:1]))
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(30):
                    while await health(address, SERVICE_NAME) == SERVING:
                        await asyncio.sleep(0.02)
                assert await health(address, "") == SERVING
                with pytest.raises(CiarError, match="shutting down"):
                    async with verifier.open(image(4)):
                        pass
                for position in range(2, T, 2):
                    verdict = await session.verify(uncertain(position, own[position:][:1]))
                    assert verdict.num_agreed == 1
                assert process.poll() is None

        run(scenario())
        assert process.wait(10) == 0


async def cut_off(address: str, end: Callable[[], Awaitable[None]]) -> None:
    """An image in the middle of which the cloud ends, which the edge hears of."""
    async with RemoteVerifier(address, config=QUICK) as verifier:
        with pytest.raises(CiarError):
            async with verifier.open(image(3)) as session:
                await session.verify(uncertain(0, [1]))
                await end()
                await session.verify(uncertain(2, [1], epoch=1))


def test_asked_twice_a_cloud_stops_at_once(bundle: Path, mode: str, run: Any) -> None:
    with serving(bundle, mode, "--drain-seconds", "60") as (process, line):
        address = line.split()[3]

        async def end() -> None:
            process.send_signal(signal.SIGTERM)
            while await health(address, SERVICE_NAME) != NOT_SERVING:
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            await asyncio.to_thread(process.wait, 10)
            assert time.monotonic() - started < 4

        run(cut_off(address, end))
        assert process.returncode == 0


def test_grace_ends(bundle: Path, mode: str, run: Any) -> None:
    with serving(bundle, mode, "--drain-seconds", "0.3") as (process, line):

        async def end() -> None:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 10)

        run(cut_off(line.split()[3], end))
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_engine_processes_do_not_outlive_their_server(bundle: Path, number: int) -> None:
    options = ("--engine-process", "--device", "cpu,cpu", "--slots", "2")
    with serving(bundle, *options) as (process, _):
        engines = children(process.pid)
        assert len(engines) == 2
        process.send_signal(number)
        process.wait(10)
        deadline = time.monotonic() + 5
        while any(map(is_running, engines)):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_ctrl_c_in_a_terminal_reaches_engines_too_and_they_leave_it_to_the_server(
    bundle: Path, truth: Callable[[int], list[int]], run: Any
) -> None:
    """The signal goes to all processes of the group; the open image is drawn all the same."""
    own = truth(5)
    with serving(bundle, "--engine-process") as (process, line):
        address = line.split()[3]

        async def scenario() -> None:
            cloud = RemoteVerifier(address, config=QUICK)
            async with cloud as verifier, verifier.open(image(5)) as session:
                await session.verify(uncertain(0, own[:1]))
                for pid in (*children(process.pid), process.pid):
                    os.kill(pid, signal.SIGINT)
                await asyncio.sleep(0.2)
                verdict = await session.verify(uncertain(2, own[2:4]))
                assert (verdict.num_agreed, verdict.token) == (2, own[4])

        run(scenario())
        assert process.wait(10) == 0


def test_a_cloud_that_has_no_engine_left_ends_with_its_exit_code(
    bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    with serving(folder, "--engine-process") as (process, _):
        (engine,) = children(process.pid)
        (folder / "cloud" / "model.safetensors").write_bytes(b"damaged")
        os.kill(engine, signal.SIGKILL)
        assert process.wait(60) == 8
