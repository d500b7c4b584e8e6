"""The settings of `ciar-cloud serve`: flag > CIAR_CLOUD_... in the environment > default."""

import ipaddress
from dataclasses import dataclass, fields
from pathlib import Path

from ciar.checkpoint import DEFAULT_MODEL
from ciar.errors import InvalidInput
from ciar.logs import check_log
from ciar_cloud.bundle import check_dtype
from ciar_cloud.kv_budget import read_bytes

MAX_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Counts and seconds; 0 slots, threads or batch tokens: chosen from machine and model."""

    model: str = DEFAULT_MODEL
    host: str = "127.0.0.1"
    port: int = 50051  # 0: a free one
    insecure: bool = False  # listen beyond this machine without TLS, or without asking for keys
    tls_cert: Path | None = None  # PEM, with the chain behind it
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # whose clients may connect: mutual TLS
    keys: Path | None = None  # API keys (`keys.py`); None: anybody may call
    slots: int = 0
    kv_budget: str = ""  # bytes of KV memory on each device, such as 2GiB; empty: no bound of bytes
    min_idle_seconds: float = 0.25  # how long a session without work keeps its slot
    max_queue: int = 64
    max_sessions: int = 256
    max_step_positions: int = 512
    max_chunk_rows: int = 64  # of one session in one step, when it has more to catch up
    max_batch_tokens: int = 0
    threads: int = 0
    device: str = "cpu"  # or several, with commas between: an engine process each
    single_process: bool = False  # the model in a thread of the server, not in a process of its own
    dtype: str = "float32"
    recompute_features: bool | None = None  # with the bundle's draft model; None: if it is there
    cuda_graphs: bool = False  # replay steps of fixed shapes
    lease_seconds: float = 5.0
    stuck_seconds: float = 30.0  # work without a step for so long: not alive
    drain_seconds: float = 30.0
    slow_step_seconds: float = 1.0  # steps that take so long are logged and counted; 0: none
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464  # 0: none
    health_port: int = 0  # health alone, without TLS, for probes that know none; 0: none
    log_level: str = "info"
    log_format: str = "text"  # or json
    traces: str = ""  # OTLP collector of OpenTelemetry; empty: no traces
    ready_file: Path | None = None
    exit_with_parent: bool = False

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port", "health_port"):
            if not 0 <= getattr(self, name) <= MAX_PORT:
                raise InvalidInput(name, getattr(self, name), f"give a port from 0 to {MAX_PORT}")
        for name in ("slots", "threads", "max_batch_tokens"):
            if getattr(self, name) < 0:
                raise InvalidInput(name, getattr(self, name), "give 0 (automatic) or a count")
        for name in ("max_queue", "max_sessions", "max_step_positions", "max_chunk_rows"):
            if getattr(self, name) < 1:
                raise InvalidInput(name, getattr(self, name), "give at least 1")
        for name in (f.name for f in fields(self) if f.name.endswith("_seconds")):
            if not 0 <= getattr(self, name) <= 86400:
                raise InvalidInput(name, getattr(self, name), "give 0 to 86400 seconds")
        check_dtype(self.dtype)
        check_log(self.log_level, self.log_format)
        read_bytes(self.kv_budget)
        if not all(self.devices):
            raise InvalidInput("device", self.device, "give cpu, cuda:0,cuda:1, ...")
        if self.single_process and len(self.devices) > 1:
            remedy = "give one device, or leave out --single-process"
            raise InvalidInput("device", self.device, remedy)
        self._check_access()

    @property
    def devices(self) -> list[str]:
        return [device.strip() for device in self.device.split(",")]

    def _check_access(self) -> None:
        has_tls = self.tls_cert is not None
        if (self.tls_cert is None) != (self.tls_key is None):
            given = "tls-cert" if self.tls_cert else "tls-key"
            raise InvalidInput(given, str(self.tls_cert or self.tls_key), "give cert and key")
        if self.tls_client_ca is not None and not has_tls:
            remedy = "give --tls-cert and --tls-key too"
            raise InvalidInput("tls-client-ca", str(self.tls_client_ca), remedy)
        is_closed = has_tls and (self.keys is not None or self.tls_client_ca is not None)
        if not (is_closed or self.insecure or is_loopback(self.host)):
            raise InvalidInput(
                "host",
                self.host,
                "beyond this machine give --tls-cert, --tls-key and --keys (or --tls-client-ca), "
                "or add --insecure",
            )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
