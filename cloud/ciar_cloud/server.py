"""The process: engine, sessions and services wired together, listening, and leaving in good order.

A step that does not end, or work that no step takes, for `stuck_seconds`: neither alive nor ready;
an engine process that hangs so is ended, and another one takes its place. No engine: not ready.

Going away: readiness turns NOT_SERVING first, sessions that are open may finish, new ones are
refused, then the server stops. Liveness (service name "") stays SERVING until then, so that nobody
kills a cloud that is finishing images.
"""

import asyncio
import logging
import math
import signal
from collections.abc import Callable

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ciar.errors import EngineError, InvalidInput
from ciar.metrics import serve_metrics
from ciar.v1 import collaboration_pb2_grpc as pb_grpc
from ciar.wire import MESSAGE_LIMIT_BYTES, SERVICE_NAME
from ciar_cloud.bundle import FrontModel
from ciar_cloud.config import ServeConfig
from ciar_cloud.credentials import TlsFiles, server_credentials
from ciar_cloud.engines import make_engine
from ciar_cloud.interceptor import KeyInterceptor, ReadingInterceptor
from ciar_cloud.keys import KeyRing
from ciar_cloud.metrics import CloudMetrics
from ciar_cloud.servicer import Servicer
from ciar_cloud.sessions import SessionRegistry
from ciar_cloud.text import PromptEncoder

log = logging.getLogger(__name__)

STOP_SECONDS = 0.5  # for answers on their way when the server stops
WATCH_SECONDS = 0.5  # between looks at the engine

OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
    # Finds edges whose network vanished without a word.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # How often edges may ping; of the two names in use this is the one that gRPC reads.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


class CloudServer:
    """A cloud that can be started, drained and stopped once, all in one event loop."""

    def __init__(self, model: FrontModel, config: ServeConfig) -> None:
        self.config = config
        self.metrics = CloudMetrics(model.info, slow_step_seconds=config.slow_step_seconds)
        self.engine = make_engine(model, config, self.metrics)
        self._keys = KeyRing(config.keys) if config.keys else None
        self.sessions = SessionRegistry(
            self.engine, max_sessions=config.max_sessions, lease_seconds=config.lease_seconds
        )
        self._prompts = PromptEncoder(model.encoder, model.condition_rows)
        self._servicer = Servicer(
            info=model.info,
            engine=self.engine,
            sessions=self.sessions,
            prompts=self._prompts,
            observer=self.metrics,
            keys=self._keys,
        )
        self._health = health.aio.HealthServicer()
        self._is_draining = False
        self._is_stuck = False
        self._has_engine = True
        self._watch: asyncio.Task[None] | None = None
        self._stop_metrics: Callable[[], None] | None = None
        self._server: aio.Server | None = None
        self._probes: aio.Server | None = None
        self.metrics.watch(
            is_ready=lambda: self._is_ready,
            queued=lambda: self.engine.num_waiting,
            queue_limit=lambda: config.max_queue,
            slots=lambda: self.engine.num_slots,
            slots_in_use=lambda: self.engine.num_slots_in_use,
            sessions=lambda: len(self.sessions),
        )

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises `InvalidInput` if it cannot be had."""
        config = self.config
        interceptors: list[aio.ServerInterceptor] = [ReadingInterceptor()]
        if self._keys:
            interceptors.insert(0, KeyInterceptor(self._keys, self.metrics))
        server = self._server = aio.server(options=OPTIONS, interceptors=interceptors)
        pb_grpc.add_CollaborationServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"{host}:{config.port}"
        try:
            if config.tls_cert is None or config.tls_key is None:
                port = server.add_insecure_port(address)
            else:
                files = TlsFiles(
                    cert=config.tls_cert, key=config.tls_key, client_ca=config.tls_client_ca
                )
                port = server.add_secure_port(address, server_credentials(files))
        except RuntimeError:
            raise InvalidInput(
                "port",
                address,
                "cannot listen there; choose another, or 0 for a free one",
            ) from None
        if config.metrics_port:
            _, self._stop_metrics = serve_metrics(
                self.metrics, host=config.metrics_host, port=config.metrics_port
            )
        if config.health_port:
            self._probes = await self._serve_probes(host)
        await self.engine.start()
        await server.start()
        await self._say_health()
        self._watch = asyncio.create_task(self._watch_engine())
        return port

    async def _serve_probes(self, host: str) -> aio.Server:
        """Health alone, on a port of its own."""
        server = aio.server(options=OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = self.config.health_port
        try:
            server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            remedy = "cannot listen there; choose another, or 0 for none"
            raise InvalidInput("health_port", port, remedy) from None
        await server.start()
        return server

    @property
    def _is_ready(self) -> bool:
        return self._has_engine and not (self._is_stuck or self._is_draining)

    async def _say_health(self) -> None:
        kind = health_pb2.HealthCheckResponse
        for service, is_well in (("", not self._is_stuck), (SERVICE_NAME, self._is_ready)):
            await self._health.set(service, kind.SERVING if is_well else kind.NOT_SERVING)

    async def _watch_engine(self) -> None:
        """A heartbeat: what health says follows the steps of the model."""
        most = self.config.stuck_seconds or math.inf
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            is_stuck = self.engine.seconds_stuck >= most
            has_engine = self.engine.is_ready
            if is_stuck != self._is_stuck:
                log.error("no step for %g s" if is_stuck else "steps go on after %g s", most)
            if (is_stuck, has_engine) != (self._is_stuck, self._has_engine):
                self._is_stuck, self._has_engine = is_stuck, has_engine
                await self._say_health()
            self.engine.end_stuck(most)

    async def drain(self) -> None:
        """Turn not ready, and let open sessions finish within `drain_seconds`."""
        self._is_draining = True
        await self._say_health()
        await self.sessions.drain(grace_seconds=self.config.drain_seconds)

    async def stop(self) -> None:
        """Stop at once: calls that still run are cancelled, every thread ends."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(STOP_SECONDS)
        if self._probes is not None:
            await self._probes.stop(None)
        await self.engine.stop()
        self._prompts.close()
        if self._stop_metrics is not None:
            await asyncio.to_thread(self._stop_metrics)


async def run_server(server: CloudServer, on_ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT, drain, stop; a second signal stops at once.

    Raises `EngineError` if the engine dies.
    """
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, None)
    try:
        on_ready(await server.start())
        died = asyncio.create_task(server.engine.died.wait())
        first = asyncio.create_task(signals.get())
        await asyncio.wait({first, died}, return_when=asyncio.FIRST_COMPLETED)
        if not died.done():
            drained = asyncio.create_task(server.drain())
            second = asyncio.create_task(signals.get())
            await asyncio.wait({drained, second, died}, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            raise EngineError("the engine died; the log says why")
    finally:
        await server.stop()
