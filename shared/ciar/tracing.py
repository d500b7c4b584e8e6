"""Spans of OpenTelemetry from edge to cloud, if somebody turned them on; else next to nothing.

An image is one trace: its root and its calls are the edge's, calls and works below them the
cloud's. The W3C `traceparent` travels in the metadata of calls. Spans hold numbers, sizes and names
of errors: no prompt, token, key or session id, and no text of errors, which may quote a prompt.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ciar import __version__
from ciar.errors import InvalidInput

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Metadata = tuple[tuple[str, str], ...]

EXPORT_SECONDS = 3  # a collector that does not answer keeps nobody longer

_tracer: "Tracer | None" = None


def set_up_tracing(endpoint: str, *, service: str) -> None:
    """Send spans to a collector over OTLP/gRPC, such as `http://127.0.0.1:4317`.

    Raises `InvalidInput` if the extra `otel` is not installed, or for another kind of address.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidInput("traces", endpoint, "give a URL, such as http://127.0.0.1:4317")
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise InvalidInput("traces", endpoint, "pip install 'ciar[otel]'") from None
    resource = Resource.create({"service.name": service, "service.version": __version__})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(
        endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_SECONDS
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    use_global_provider()


def use_global_provider() -> None:
    """Make spans with the provider that the application has set up itself."""
    global _tracer
    from opentelemetry import trace

    _tracer = trace.get_tracer("ciar", __version__)


class Span:
    """A span, or nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def set(self, **attributes: Any) -> None:
        """Under `ciar.NAME`."""
        if self._span is not None:
            self._span.set_attributes({f"ciar.{name}": v for name, v in attributes.items()})

    def fail(self, error: BaseException | None) -> None:
        """It ended with this error, whose class alone is told; None: it did not."""
        if self._span is not None and error is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        if self._span is not None:
            self._span.end()


def begin(name: str, **attributes: Any) -> Span:
    """A span below the current one, for whoever begins and ends it in different places."""
    if _tracer is None:
        return Span()
    span = Span(_tracer.start_span(name))
    span.set(**attributes)
    return span


@contextmanager
def span(name: str, *, caller: Iterable[Any] | None = None, **attributes: Any) -> Iterator[Span]:
    """The current span, below the one that was or below that of a caller.

    caller: metadata of the call that it serves.
    """
    if _tracer is None:
        yield Span()
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    is_call = caller is not None
    with _tracer.start_as_current_span(
        name,
        context=extract(dict(caller)) if caller is not None else None,
        kind=SpanKind.SERVER if is_call else SpanKind.INTERNAL,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        found = Span(current)
        found.set(**attributes)
        try:
            yield found
        except BaseException as error:
            found.fail(error)
            raise


def carried() -> Metadata:
    """What the metadata of a call need for its spans to be below the current one."""
    if _tracer is None:
        return ()
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple(carrier.items())
