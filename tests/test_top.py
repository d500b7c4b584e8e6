"""`ciar-cloud top` over the page of a real cloud."""

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from ciar.errors import CloudUnavailable
from ciar.metrics import read_page, serve_metrics
from ciar_cloud.bundle import CloudModel
from ciar_cloud.top import Look, Window, show
from tests.cloud_client import T, cloud, draw


def samples(**values: float) -> dict[Any, float]:
    return {(f"ciar_cloud_{name}", frozenset()): value for name, value in values.items()}


def buckets(**counts: float) -> dict[Any, float]:
    edges = {"small": "0.1", "large": "1.0", "all": "+Inf"}
    return {
        ("ciar_cloud_step_seconds_bucket", frozenset({("le", edges[name])})): count
        for name, count in counts.items()
    }


def test_it_shows_what_happened_between_two_looks(model: CloudModel, run: Any) -> None:
    async def scenario() -> tuple[str, Window]:
        async with cloud(model) as client:
            port, stop = serve_metrics(client.server.metrics, host="127.0.0.1", port=0)
            url = f"http://127.0.0.1:{port}/metrics"
            first = Look(await asyncio.to_thread(read_page, url), 0.0)
            console = Console(width=100, record=True, file=io.StringIO())
            watching = asyncio.to_thread(show, url, seconds=2.0, count=1, console=console)
            task = asyncio.create_task(watching)
            await asyncio.sleep(0.5)
            await asyncio.gather(*(draw(client, seed, keep=0.5) for seed in range(3)))
            await task
            last = Look(await asyncio.to_thread(read_page, url), 2.0)
            await asyncio.to_thread(stop)
            return console.export_text(), Window(first, last)

    text, window = run(scenario())
    assert text.startswith("ready")
    assert "0 of 8" in text and "errors since start: none" in text
    assert window.rate("images_total") == 1.5
    assert window.count("image_tokens_total") == 3 * T
    assert window.call_rate is not None and 0 < window.call_rate < 1
    assert window.agreement is not None and 0 < window.agreement < 1
    median, tail = (window.quantile("step_seconds", q) for q in (0.5, 0.99))
    assert median is not None and tail is not None and 0 < median <= tail


def test_nothing_happened() -> None:
    window = Window(Look(samples(images_total=7), 0.0), Look(samples(images_total=7), 1.0))
    assert (window.rate("images_total"), window.call_rate, window.agreement) == (0, None, None)
    assert window.quantile("step_seconds", 0.5) is None


def test_a_cloud_that_began_anew_counts_from_zero() -> None:
    window = Window(Look(samples(images_total=90), 0.0), Look(samples(images_total=6), 2.0))
    assert window.rate("images_total") == 3


def test_quantiles_are_linear_within_a_bucket() -> None:
    before, after = buckets(small=10, large=10, all=10), buckets(small=10, large=30, all=30)
    window = Window(Look(before, 0.0), Look(after, 1.0))
    assert window.quantile("step_seconds", 0.5) == pytest.approx(0.55)
    beyond = Window(Look(before, 0.0), Look(buckets(small=10, large=10, all=12), 1.0))
    assert beyond.quantile("step_seconds", 0.5) == 1.0


def test_no_cloud_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CloudUnavailable, match="no metrics at"):
        show("http://127.0.0.1:1/metrics", seconds=0.1, count=1, console=Console())
