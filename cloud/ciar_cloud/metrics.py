"""Prometheus metrics of the cloud process, `ciar_cloud_...`."""

from collections.abc import Callable, Mapping

from ciar.metrics import SECONDS, Metrics
from ciar.types import ModelInfo, Timings
from ciar_cloud.observer import METHODS

SESSIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SOURCES = ("prefix", "kept", "agreed", "drawn", "fallback")


class CloudMetrics(Metrics):
    """An `Observer` that counts.

    slow_step_seconds: from which a step counts as slow; 0: none does.
    """

    def __init__(self, info: ModelInfo, *, slow_step_seconds: float = 0.0) -> None:
        super().__init__("ciar_cloud", model=info.name, fingerprint=info.fingerprint)
        self._slow_step_seconds = slow_step_seconds
        self._requests = self.counter("requests", "Calls that ended", "method")
        self._errors = self.counter("errors", "Calls that ended with an error", "reason")
        self._up = self.counter("uplink_bytes", "Message bytes received from edges")
        self._down = self.counter("downlink_bytes", "Message bytes sent to edges")
        self._forwards = self.counter("forwards", "Forward passes of the target model")
        self._positions = self.counter("positions", "Token positions fed to the target model")
        self._verified = self.counter("verified_tokens", "Uncertain tokens compared", "result")
        self._evictions = self.counter("evictions", "Slots taken from idle sessions")
        self._engine_deaths = self.counter("engine_deaths", "Engine processes that died")
        self._slow_steps = self.counter("slow_steps", "Steps of at least --slow-step-seconds")
        self._images = self.counter("images", "Images that edges reported as finished")
        self._tokens = self.counter("image_tokens", "Tokens of finished images", "source")
        self._calls = self.counter("image_calls", "Forward passes of the target for these")
        self._trips = self.counter("image_round_trips", "Round trips of finished images")
        self._resumes = self.counter("image_resumes", "Sessions rebuilt for finished images")
        self._step_seconds = self.histogram("step_seconds", "Seconds of one step", SECONDS)
        self._batch_size = self.histogram("batch_size", "Sessions that shared a step", SESSIONS)
        self._image_seconds = self.histogram("image_seconds", "Seconds at the edge", SECONDS)
        self._queue_seconds = self.histogram(
            "queue_seconds", "Seconds a work waited for its first step", SECONDS, "kind"
        )
        self._work_seconds = self.histogram(
            "work_seconds", "Seconds of the steps of a work", SECONDS, "kind"
        )
        # A series that begins with its first event hides that event from rate(): these begin at 0.
        for counter, values in (
            (self._requests, METHODS),
            (self._verified, ("accepted", "rejected")),
            (self._tokens, SOURCES),
        ):
            for value in values:
                counter.labels(value)

    def watch(
        self,
        *,
        is_ready: Callable[[], float],
        queued: Callable[[], float],
        queue_limit: Callable[[], float],
        slots: Callable[[], float],
        slots_in_use: Callable[[], float],
        sessions: Callable[[], float],
    ) -> None:
        """Gauges that are read when the page is."""
        self.gauge("ready", "Whether new images are taken: 1 or 0", is_ready)
        self.gauge("queued_works", "Works that no step has taken yet", queued)
        self.gauge("queue_limit", "Waiting works at which new images are refused", queue_limit)
        self.gauge("slots", "KV slots", slots)
        self.gauge("slots_in_use", "KV slots that a session holds", slots_in_use)
        self.gauge("sessions", "Open sessions", sessions)

    def step_ended(self, *, num_works: int, num_positions: int, seconds: float) -> None:
        self._forwards.inc()
        self._positions.inc(num_positions)
        self._step_seconds.observe(seconds)
        self._batch_size.observe(num_works)
        if 0 < self._slow_step_seconds <= seconds:
            self._slow_steps.inc()

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
        self,
        *,
        tokens: Mapping[str, int],
        num_forwards: int,
        num_round_trips: int,
        num_resumes: int,
        seconds: float,
    ) -> None:
        self._images.inc()
        for source, count in tokens.items():
            self._tokens.labels(source).inc(count)
        self._calls.inc(num_forwards)
        self._trips.inc(num_round_trips)
        self._resumes.inc(num_resumes)
        self._image_seconds.observe(seconds)
