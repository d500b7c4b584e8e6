"""How the edge reaches a cloud: the address, how long to wait, how often to try, what it cost.

Knows no gRPC; `ciar_edge.remote` and `remote_session` do the calls.
"""

import asyncio
import random
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ciar.errors import CiarError, InvalidInput, TryLater
from ciar.packing import PACKED_DTYPES, PackedDtype

_LOOPBACK = ("127.", "localhost:", "[::1]:")
_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 20_000, 5_000


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """How long to wait, how often to try again, and how features travel.

    deadline_seconds: of one `verify`, the mending of a lost stream included.
    resume_seconds, max_resumes: what may be spent on mending between two verdicts.
    """

    feature_dtype: PackedDtype = "int8"
    deadline_seconds: float = 10.0
    connect_seconds: float = 5.0
    prefix_seconds: float = 60.0
    resume_seconds: float = 10.0
    max_resumes: int = 16
    first_backoff_seconds: float = 0.05
    max_backoff_seconds: float = 1.0
    close_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.feature_dtype not in PACKED_DTYPES:
            remedy = f"give one of {', '.join(PACKED_DTYPES)}"
            raise InvalidInput("feature_dtype", self.feature_dtype, remedy)
        for name in (f.name for f in fields(self) if f.name.endswith("_seconds")):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidInput(
                    name, getattr(self, name), "give a finite number of seconds above 0"
                )
        if self.max_resumes < 0:
            raise InvalidInput("max_resumes", self.max_resumes, "give 0 (never) or a count")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the edge shows who it is, and knows the cloud by.

    api_key: sent with every call.  is_encrypted: TLS.  tls_ca: PEM authority of the cloud's
    certificate; None: those of the system.  tls_cert, tls_key: PEM, the edge's own (mutual TLS).
    may_leak: send a key to another machine without TLS.
    """

    api_key: str = field(default="", repr=False)
    is_encrypted: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    may_leak: bool = False

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            given = "tls-cert" if self.tls_cert else "tls-key"
            raise InvalidInput(given, str(self.tls_cert or self.tls_key), "give cert and key")
        if not self.is_encrypted and (self.tls_ca or self.tls_cert):
            given = "tls-ca" if self.tls_ca else "tls-cert"
            raise InvalidInput(given, str(self.tls_ca or self.tls_cert), "give --tls too")
        if not (self.api_key.isascii() and self.api_key.isprintable()) or " " in self.api_key:
            raise InvalidInput("api-key", "...", "give one line of printable ASCII")

    def check(self, address: str) -> None:
        """Raise `InvalidInput` where the key would travel in the open."""
        is_local = address.startswith((*_LOOPBACK, "unix:"))
        if self.api_key and not (self.is_encrypted or is_local or self.may_leak):
            raise InvalidInput(
                "cloud", address, "give --tls: the API key would travel unencrypted (or --insecure)"
            )

    def pem(self, name: str) -> bytes | None:
        """The bytes of `tls_ca`, `tls_cert` or `tls_key`; None: not given."""
        path: Path | None = getattr(self, name)
        try:
            return None if path is None else path.read_bytes()
        except OSError as error:
            remedy = f"cannot be read: {error.strerror}"
            raise InvalidInput(name.replace("_", "-"), str(path), remedy) from None


def read_api_key(path: Path) -> str:
    """The key that a file holds in its one line."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("api-key-file", str(path), f"cannot be read: {error}") from None


@dataclass(kw_only=True)
class Traffic:
    """What went over the wire: serialised messages without framing. A verdict is a round trip."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    num_round_trips: int = 0
    num_resumes: int = 0

    def add(self, other: "Traffic") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Patience:
    """Exponential backoff with jitter, limited in attempts and in total time."""

    def __init__(self, config: RemoteConfig, *, max_seconds: float) -> None:
        self._config = config
        self._max_seconds = max_seconds
        self.reset()

    def reset(self) -> None:
        """It works again: the next trouble is a new one."""
        self._num_waits = 0
        self._started: float | None = None

    @property
    def seconds_left(self) -> float:
        if self._started is None:
            return self._max_seconds
        return self._started + self._max_seconds - time.monotonic()

    async def wait(self, error: CiarError) -> None:
        """Sleep until it may be tried again, for `TryLater` as long as the cloud asks for.

        Raises `error` when there were enough attempts, or when the time is over before that.
        """
        config = self._config
        if self._started is None:
            self._started = time.monotonic()
        backoff = min(
            config.first_backoff_seconds * 2.0**self._num_waits, config.max_backoff_seconds
        )
        seconds = backoff * random.uniform(0.5, 1.0)
        if isinstance(error, TryLater):
            seconds += error.retry_seconds
        if self._num_waits >= config.max_resumes or seconds >= self.seconds_left:
            raise error
        self._num_waits += 1
        await asyncio.sleep(seconds)


def check_address(address: str) -> str:
    """`HOST:PORT`, or what gRPC resolves itself (`unix:PATH`, `dns:///NAME`).

    Raises `InvalidInput` (field `cloud`).
    """
    remedy = "give HOST:PORT, such as 127.0.0.1:50051"
    if address.startswith(("unix:", "dns:///")):
        return address
    host, _, port = address.rpartition(":")
    is_bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not host or is_bare_ipv6 or any(c in "/ \t\n@" or not c.isprintable() for c in host):
        raise InvalidInput("cloud", address, remedy)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise InvalidInput("cloud", address, f"{remedy}: the port is a number from 1 to 65535")
    return address


def channel_options(address: str, *, message_limit_bytes: int) -> list[tuple[str, int]]:
    """gRPC channel arguments: message limits, keepalive, and quick reconnects for a resume."""
    options = [
        ("grpc.max_send_message_length", message_limit_bytes),
        ("grpc.max_receive_message_length", message_limit_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2_000),  # the time one attempt to connect may take
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    if address.startswith(_LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))
    return options
