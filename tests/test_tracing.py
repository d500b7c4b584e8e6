"""Traces as a collector gets them: over OTLP, from an edge process and a cloud process."""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from ciar import tracing
from ciar.errors import InvalidInput
from tests.test_edge_cli import edge, report
from tests.test_logs import logging_cloud

PROMPT = "a dog on the zebra"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans by the service that sent them."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = defaultdict(list)

    def Export(self, request: Any, context: Any) -> Any:
        for part in request.resource_spans:
            names = {a.key: a.value.string_value for a in part.resource.attributes}
            for scope in part.scope_spans:
                self.spans[names["service.name"]] += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    found = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_service: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add_service(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield found, f"http://127.0.0.1:{port}"
    server.stop(None)


def numbers(span: Span) -> dict[str, int]:
    return {a.key.removeprefix("ciar."): a.value.int_value for a in span.attributes}


def texts(span: Span) -> dict[str, str]:
    return {a.key: a.value.string_value for a in span.attributes}


def test_an_image_is_one_trace_through_both_processes(
    bundle: Path, tmp_path: Path, collector: tuple[Collector, str]
) -> None:
    found, url = collector
    with logging_cloud(bundle, "--traces", url) as (cloud, ended):
        options = ("--cloud", cloud, "--budget", "1", "--prefix-rate", "0.2", "--traces", url)
        drawn = report(PROMPT, *options, folder=tmp_path, CIAR_MODEL=str(bundle))
        ended()
    ours, theirs = found.spans["ciar-edge"], found.spans["ciar-cloud"]
    (root,) = [span for span in ours if not span.parent_span_id]
    assert root.name == "image"
    assert numbers(root)["cloud_forwards"] == drawn["cloud_forwards"]
    everything = [s for s in ours + theirs if s.name != "GetModel"]
    assert {span.trace_id for span in everything} == {root.trace_id}
    (inject,) = [span for span in ours if span.name == "PrefixInject"]
    assert inject.parent_span_id == root.span_id
    (served,) = [span for span in theirs if span.name == "PrefixInject"]
    assert served.parent_span_id == inject.span_id and served.kind == Span.SPAN_KIND_SERVER
    (stream,) = [span for span in theirs if span.name == "VerifyBatch"]
    assert stream.parent_span_id == root.span_id
    waits = {numbers(s)["position"]: s for s in ours if s.name == "verify"}
    works = {numbers(s)["position"]: s for s in theirs if s.name == "verify"}
    assert waits.keys() == works.keys() and len(works) == drawn["round_trips"] > 0
    for position, work in works.items():
        assert work.parent_span_id == stream.span_id
        wait = waits[position]
        assert wait.parent_span_id == root.span_id
        assert wait.start_time_unix_nano < work.start_time_unix_nano
        assert work.end_time_unix_nano < wait.end_time_unix_nano
        assert numbers(work)["num_forwards"] >= 1
    assert not any("zebra" in text for span in ours + theirs for text in texts(span).values())


def test_errors_are_told_by_their_class_alone(
    bundle: Path, tmp_path: Path, collector: tuple[Collector, str]
) -> None:
    found, url = collector
    with logging_cloud(bundle, "--traces", url) as (cloud, ended):
        options = ("--model", bundle, "--cloud", cloud, "--traces", url)
        done = edge("zebra \x07" * 300, *options, folder=tmp_path)
        ended()
    assert done.returncode != 0
    (served,) = [s for s in found.spans["ciar-cloud"] if s.name == "PrefixInject"]
    assert served.status.code == Status.STATUS_CODE_ERROR and not served.status.message
    assert texts(served)["error.type"] == "InvalidInput" and not served.events
    (root,) = [s for s in found.spans["ciar-edge"] if s.name == "image"]
    assert texts(root)["error.type"] == "InvalidInput" and not root.events


def test_a_collector_that_is_gone_costs_no_image(bundle: Path, tmp_path: Path) -> None:
    nowhere = ("--traces", "http://127.0.0.1:1")
    with logging_cloud(bundle, *nowhere) as (cloud, ended):
        done = edge(PROMPT, "--model", bundle, "--cloud", cloud, *nowhere, folder=tmp_path)
        ended()
    assert done.returncode == 0, done.stderr


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidInput, match="traces"):
        tracing.set_up_tracing("127.0.0.1:4317", service="x")


def test_without_tracing_nothing_is_carried() -> None:
    with tracing.span("image") as span:
        span.set(position=1)
        assert tracing.carried() == ()
    tracing.begin("verify", position=1).end()
