"""Prometheus metrics of the cloud process, `ciar_cloud_...`: base units, bounded labels."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from ciar import __version__
from ciar.errors import InvalidInput
from ciar.types import ModelInfo, Timings

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SESSIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class CloudMetrics:
    """An `Observer` that counts, in a registry of its own."""

    def __init__(self, info: ModelInfo) -> None:
        self.registry = CollectorRegistry()
        self._build_info(info)
        self._requests = self._counter("requests", "Calls that ended", "method")
        self._errors = self._counter("errors", "Calls that ended with an error", "reason")
        self._up = self._counter("uplink_bytes", "Message bytes received from edges")
        self._down = self._counter("downlink_bytes", "Message bytes sent to edges")
        self._forwards = self._counter("forwards", "Forward passes of the target model")
        self._positions = self._counter("positions", "Token positions fed to the target model")
        self._verified = self._counter("verified_tokens", "Uncertain tokens compared", "result")
        self._evictions = self._counter("evictions", "Slots taken from idle sessions")
        self._engine_deaths = self._counter("engine_deaths", "Engine processes that died")
        self._images = self._counter("images", "Images that edges reported as finished")
        self._tokens = self._counter("image_tokens", "Tokens of finished images", "source")
        self._trips = self._counter("image_round_trips", "Round trips of finished images")
        self._resumes = self._counter("image_resumes", "Sessions rebuilt for finished images")
        self._step_seconds = self._histogram("step_seconds", "Seconds of one step", SECONDS)
        self._batch_size = self._histogram("batch_size", "Sessions that shared a step", SESSIONS)
        self._image_seconds = self._histogram("image_seconds", "Seconds at the edge", SECONDS)
        self._queue_seconds = self._histogram(
            "queue_seconds", "Seconds a work waited for its first step", SECONDS, "kind"
        )
        self._work_seconds = self._histogram(
            "work_seconds", "Seconds of the steps of a work", SECONDS, "kind"
        )

    def watch(
        self,
        *,
        queued: Callable[[], float],
        slots: Callable[[], float],
        slots_in_use: Callable[[], float],
        sessions: Callable[[], float],
    ) -> None:
        """Gauges that are read when the page is."""
        self._gauge("queued_works", "Works that no step has taken yet", queued)
        self._gauge("slots", "KV slots", slots)
        self._gauge("slots_in_use", "KV slots that a session holds", slots_in_use)
        self._gauge("sessions", "Open sessions", sessions)

    def step_ended(self, *, num_works: int, num_positions: int, seconds: float) -> None:
        self._forwards.inc()
        self._positions.inc(num_positions)
        self._step_seconds.observe(seconds)
        self._batch_size.observe(num_works)

    def work_ended(self, *, kind: str, timings: Timings) -> None:
        self._queue_seconds.labels(kind).observe(timings.queue_seconds)
        self._work_seconds.labels(kind).observe(timings.compute_seconds)

    def tokens_verified(self, *, num_accepted: int, num_rejected: int) -> None:
        self._verified.labels("accepted").inc(num_accepted)
        self._verified.labels("rejected").inc(num_rejected)

    def slot_evicted(self) -> None:
        self._evictions.inc()

    def engine_died(self) -> None:
        self._engine_deaths.inc()

    def request_ended(self, *, method: str, reason: str) -> None:
        self._requests.labels(method).inc()
        if reason:
            self._errors.labels(reason).inc()

    def bytes_moved(self, *, num_up: int = 0, num_down: int = 0) -> None:
        self._up.inc(num_up)
        self._down.inc(num_down)

    def image_finished(
        self, *, tokens: Mapping[str, int], num_round_trips: int, num_resumes: int, seconds: float
    ) -> None:
        self._images.inc()
        for source, count in tokens.items():
            self._tokens.labels(source).inc(count)
        self._trips.inc(num_round_trips)
        self._resumes.inc(num_resumes)
        self._image_seconds.observe(seconds)

    def _build_info(self, info: ModelInfo) -> None:
        gauge = Gauge(
            "ciar_cloud_build_info",
            "Always 1; the labels say what runs",
            ("version", "model", "fingerprint"),
            registry=self.registry,
        )
        gauge.labels(__version__, info.name, info.fingerprint).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ciar_cloud_{name}_total", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        full_name = f"ciar_cloud_{name}"
        return Histogram(full_name, text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(f"ciar_cloud_{name}", text, registry=self.registry).set_function(read)


def serve_metrics(metrics: CloudMetrics, *, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """`/metrics` over HTTP from a thread; returns the port (0: a free one) and how to stop it."""
    try:
        server, thread = start_http_server(port, host, registry=metrics.registry)
    except OSError as error:
        raise InvalidInput(
            "metrics_port",
            port,
            f"cannot listen there ({error.strerror}); choose another, or 0 for none",
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_address[1]), stop
