"""The load: what it measures, on a real cloud with an engine process."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from ciar_bench.cli import app
from ciar_bench.load import Burst, Cell, Crowd, LoadPlan
from ciar_bench.load_cli import load_markdown
from ciar_bench.probe import HealthWatch
from tests.conftest import Run


def burst(*image_seconds: float, errors: int = 0, seconds: float = 1.0) -> Burst:
    return Burst(seconds=seconds, image_seconds=list(image_seconds), errors=["x"] * errors)


def crowd(**changes: object) -> Crowd:
    values = {
        "num_edges": 4,
        "burst": burst(1.0, 1.0, 1.0, 1.9),
        "alone": [burst(1.0), burst(1.0)],
        "health_seconds": [0.1] * 99 + [0.9],
        "num_unwell": 0,
        "left": {"sessions": 0.0},
    }
    return Crowd(**values | changes)  # type: ignore[arg-type]


def test_a_cloud_under_many_edges_is_measured(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "load.md"
    arguments = ["load", "--model", str(bundle), "--edges", "1", "--edges", "3", "--rounds", "1"]
    arguments += ["--crowd", "5", "--crowd-images", "2", "--seed", "7", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    text = out.read_text()
    assert done.stdout.startswith(text[:100])
    assert "seeds from 7 on" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| 1 |", "| 3 |"))]
    assert [row[0] for row in rows] == ["| 1", "| 3", "| 1", "| 3"]
    assert all(float(number) > 0 for row in rows[:2] for number in (row[1], row[2], row[4]))
    assert float(rows[1][7]) > float(rows[0][7]) == 1.0  # sessions a step
    assert all(float(row[1]) >= float(row[3].rstrip(" |")) > 0 for row in rows[2:])
    assert "| images, errors | 0 errors | 10, 0 |" in text
    assert "| left behind | 0 | sessions 0, slots_in_use 0, queued_works 0 |" in text


def test_what_is_asked_of_a_cloud() -> None:
    assert crowd().faults == []
    assert crowd().slowest_over_median == 1.9 and crowd().throughput_over_alone == 4.0
    assert "1 errors" in crowd(burst=burst(1.0, 1.0, 1.0, errors=1)).faults
    assert "twice the median" in crowd(burst=burst(1.0, 1.0, 1.0, 2.1)).faults[0]
    assert "under 3 times" in crowd(burst=burst(1.0, 1.0, 1.0, seconds=1.1)).faults[0]
    assert "a second or more" in crowd(health_seconds=[1.5] * 100).faults[0]
    assert crowd(num_unwell=2).faults == ["2 health checks said it is not well"]
    assert "left behind" in crowd(left={"sessions": 1.0}).faults[0]


def test_ratios_are_of_the_same_round() -> None:
    fast, slow = burst(1.0, 1.0), burst(1.0, 1.0, seconds=2.0)
    cell = Cell(num_edges=2, ciar=[fast, slow, fast], base=[slow, slow, slow])
    assert cell.ratio(lambda one: one.images_per_second) == pytest.approx((2.0, 1.0, 2.0))


def test_images_that_fail_are_told_and_never_a_good_result() -> None:
    none = Burst(seconds=1.0, errors=["CloudUnavailable('gone')"])
    failed = Cell(num_edges=8, ciar=[none], base=[none])
    assert failed.faults == ["2 errors with 8 edges"]
    assert all(math.isnan(part) for part in failed.ratio(lambda one: one.images_per_second))
    lost = crowd(burst=none, alone=[none, none], health_seconds=[])
    assert lost.faults[0] == "3 errors" and len(lost.faults) == 4
    text = load_markdown([failed], lost, LoadPlan(edges=(8,)), model="tiny")
    assert "| images, errors | 0 errors | 0, 3 |" in text


class SlowHealth(health_pb2_grpc.HealthServicer):
    """Takes half a second, and then answers for the process only."""

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        await asyncio.sleep(0.5)
        if request.service:
            await context.abort(StatusCode.UNAVAILABLE, "not yet")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def test_health_is_asked_ten_times_a_second_however_slow_its_answers(run: Run[Any]) -> None:
    async def watch() -> HealthWatch:
        server = aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(SlowHealth(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with HealthWatch(f"127.0.0.1:{port}") as health:
            await asyncio.sleep(1.05)
        await server.stop(None)
        return health

    health = run(watch())
    assert len(health.seconds) >= 20  # of two names; a question behind each answer makes four
    assert min(health.seconds) >= 0.49
    assert health.num_unwell == len(health.seconds) // 2
