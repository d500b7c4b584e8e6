"""Prometheus metrics of a process: named alike, in a registry of their own, on a page over HTTP.

Base units, bounded labels. Only who counts imports this; `ciar` itself does without Prometheus.
"""

from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)
from prometheus_client.parser import text_string_to_metric_families

from ciar import __version__
from ciar.errors import CloudUnavailable, InvalidInput
from ciar.output_file import output_error, replace_file

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
MAX_PAGE_BYTES = 16 * 2**20
PAGE_SECONDS = 5.0  # to wait for a page

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""


class Metrics:
    """Metrics whose names start with `prefix_`, in `registry`."""

    def __init__(self, prefix: str, **build: str) -> None:
        """build: labels of the gauge that says what runs."""
        self.prefix = prefix
        self.registry = CollectorRegistry()
        text, labels = "Always 1; the labels say what runs", {"version": __version__, **build}
        info = Gauge(f"{prefix}_build_info", text, labels, registry=self.registry)
        info.labels(**labels).set(1)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{self.prefix}_{name}_total", text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        full_name = f"{self.prefix}_{name}"
        return Histogram(full_name, text, labels, buckets=buckets, registry=self.registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """One that is read when the page is."""
        Gauge(f"{self.prefix}_{name}", text, registry=self.registry).set_function(read)

    def write(self, path: Path) -> None:
        """The page as a file, whole or not at all, for node_exporter's textfile collector.

        Raises `OutputError`.
        """
        try:
            replace_file(path, generate_latest(self.registry))
        except OSError as error:
            raise output_error(path, error, field="metrics_file") from error


def serve_metrics(metrics: Metrics, *, host: str, port: int) -> tuple[int, Callable[[], None]]:
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


def read_page(url: str) -> Samples:
    """All samples of a page, not by way of a proxy. Raises `CloudUnavailable`."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=PAGE_SECONDS) as answer:
            page = answer.read(MAX_PAGE_BYTES).decode()
        families = list(text_string_to_metric_families(page))
    except (OSError, HTTPException, ValueError) as error:
        raise CloudUnavailable(f"no metrics at {url} ({error})") from None
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum of the samples of that name that have these labels."""
    wanted = set(labels.items())
    return sum(
        value for (found, having), value in samples.items() if found == name and wanted <= having
    )


def by_label(samples: Samples, name: str, label: str) -> Mapping[str, float]:
    """Sums of the samples of that name by the values of one label."""
    found: dict[str, float] = {}
    for (other, having), value in samples.items():
        if other == name:
            key = dict(having).get(label, "")
            found[key] = found.get(key, 0.0) + value
    return found
