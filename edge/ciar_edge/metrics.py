"""Prometheus metrics of an edge, `ciar_edge_...`: an observer of its images that counts.

An application that draws many images serves them (`ciar.metrics.serve_metrics`); `ciar-edge
generate` writes those of its one image to a file.
"""

from ciar.metrics import SECONDS, Metrics
from ciar.types import Verdict, VerifyBatch
from ciar_edge.result import ImageResult, Origin

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)


class EdgeMetrics(Metrics):
    """An `Observer`. Hand the same one to all images of a process, also of several threads."""

    def __init__(self) -> None:
        super().__init__("ciar_edge")
        self._started = self.counter("images_started", "Images that were begun")
        self._images = self.counter("images", "Images that were finished")
        self._errors = self.counter("errors", "Images that failed", "reason")
        self._tokens = self.counter("tokens", "Tokens of finished images", "origin")
        self._calls = self.counter("cloud_calls", "Forward passes of the cloud, finished images")
        self._trips = self.counter("round_trips", "Answered batches of finished images")
        self._resumes = self.counter("resumes", "Sessions rebuilt on another stream")
        self._lost = self.counter("lost_clouds", "Images that lost their cloud for good")
        self._up = self.counter("uplink_bytes", "Message bytes sent to clouds")
        self._down = self.counter("downlink_bytes", "Message bytes received from clouds")
        self._parts = self.counter("part_seconds", "Seconds of finished images by part", "part")
        self._image_seconds = self.histogram("image_seconds", "Seconds of an image", SECONDS)
        self._call_seconds = self.histogram(
            "verify_seconds", "Seconds from a batch to its verdict", SECONDS
        )
        self._share = self.histogram("cloud_call_share", "Cloud calls a token of an image", SHARES)
        for origin in Origin:  # from 0, so that rate() sees the first ones
            self._tokens.labels(origin.value)

    def on_start(self, *, num_tokens: int, num_prefix: int) -> None:
        self._started.inc()

    def on_draft(self, *, position: int, seconds: float) -> None:
        pass

    def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None:
        pass

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        self._call_seconds.observe(seconds)

    def on_finish(self, result: ImageResult) -> None:
        self._images.inc()
        for origin, count in result.counts.items():
            self._tokens.labels(origin.value).inc(count)
        self._calls.inc(result.cloud_forwards)
        self._trips.inc(result.round_trips)
        self._resumes.inc(result.resumes)
        self._lost.inc(bool(result.lost))
        self._up.inc(result.uplink_bytes)
        self._down.inc(result.downlink_bytes)
        parts = {
            "prefix": result.prefix_seconds,
            "draft": result.draft_seconds,
            "wait": result.wait_seconds,
        }
        for part, seconds in parts.items():
            self._parts.labels(part).inc(seconds)
        self._image_seconds.observe(result.seconds)
        self._share.observe(result.cloud_calls)

    def image_failed(self, error: Exception) -> None:
        """Whoever drew the image says so: the loop tells its observer of finished ones alone."""
        self._errors.labels(type(error).__name__).inc()
