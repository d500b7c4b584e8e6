"""What the cloud draws over real sockets, and how it leaves."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.request import urlopen

import pytest
from grpc import StatusCode

from ciar import wire
from ciar.metrics import serve_metrics
from ciar_cloud.bundle import CloudModel
from tests.cloud_client import (
    NOT_SERVING,
    SERVING,
    Sketch,
    StreamEnded,
    T,
    V,
    cloud,
    draw,
    request,
    status_of,
    thread_engine,
    uncertain,
)
from tests.tiny import PROMPT


def test_everything_verified_is_the_clouds_own_image(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    async def scenario() -> None:
        async with cloud(model, slots=1) as client:
            for seed in range(3):
                assert await draw(client, seed) == truth(seed)
            assert await client.is_free()

    run(scenario())


def test_a_whole_image_as_prefix_is_the_clouds_own_image(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            prefix = await client.inject(request(4, num_prefix=T))
            assert list(prefix.tokens) == truth(4)
            assert prefix.timings.num_forwards == T
            assert prefix.condition.shape == (len(model.encoder.encode([PROMPT])[0]), 32)

    run(scenario())


@pytest.mark.parametrize("slots", [8, 3, 1])
def test_eight_at_once_draw_what_each_draws_alone(model: CloudModel, slots: int, run: Any) -> None:
    """With fewer slots than sessions, idle ones are evicted and rebuilt in mid-image."""

    async def scenario() -> None:
        async with cloud(model) as client:
            alone = [await draw(client, seed, keep=0.5) for seed in range(8)]
        async with cloud(model, slots=slots, min_idle_seconds=0.0) as client:
            together = await asyncio.gather(*(draw(client, seed, keep=0.5) for seed in range(8)))
            evictions = thread_engine(client)._scheduler.slots.num_evictions
            assert await client.is_free()
        assert together == alone
        assert (evictions > 0) == (slots < 8)

    run(scenario())


@pytest.mark.parametrize("keep", [0.0, 0.6])
@pytest.mark.parametrize("cut", [0, 2, 9])
def test_a_session_resumed_on_another_server_goes_on_identically(
    model: CloudModel, keep: float, cut: int, run: Any
) -> None:
    image = request(6)

    async def scenario() -> None:
        async with cloud(model) as first, cloud(model) as second:
            whole = await Sketch(6, keep=keep).go_on(await first.session(image))
            sketch = Sketch(6, keep=keep)
            await sketch.go_on(await first.session(image), until=cut)
            link = await second.resume(sketch.resume(image))
            assert link.num_known == len(sketch.tokens)
            assert await sketch.go_on(link) == whole

    run(scenario())


def test_batches_behind_a_difference_get_no_answer(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    own = truth(2)
    wrong = [(own[0] + 1) % V]

    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(request(2))
            await link.send_batch(uncertain(0, wrong))
            await link.send_batch(uncertain(1, own[1:3]))  # drafted before the answer came
            first = wire.verdict_from_proto((await link.receive()).verdict, info=client.info)
            assert (first.num_agreed, first.token) == (0, own[0])
            second = await link.verify(uncertain(1, own[1:3], epoch=1))
            assert (second.epoch, second.num_agreed, second.token) == (1, 2, own[3])

    run(scenario())


def test_batches_in_flight_are_answered_in_order(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    own = truth(2)

    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(request(2))
            for position in range(T):
                await link.send_batch(uncertain(position, own[position : position + 1]))
            await link.call.done_writing()
            answers = [(await link.receive()).verdict for _ in range(T)]
            assert [a.position for a in answers] == list(range(T))
            assert all(a.num_agreed == 1 for a in answers)
            with pytest.raises(StreamEnded, match="OK"):
                await link.receive()

    run(scenario())


def test_readiness_ends_before_liveness_and_open_images_finish(
    model: CloudModel, truth: Callable[[int], list[int]], run: Any
) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            assert await client.health() == SERVING
            prefix = await client.inject(request(1, num_prefix=1))
            draining = asyncio.create_task(client.server.drain())
            while await client.health() == SERVING:
                await asyncio.sleep(0.01)
            assert await client.health() == NOT_SERVING
            assert await client.health("") == SERVING
            code, _ = await status_of(client.inject(request(2)))
            assert code is StatusCode.UNAVAILABLE
            link = await client.attach(prefix)
            assert await Sketch(1, prefix.tokens).go_on(link) == truth(1)
            assert not draining.done()
            await link.finish()
            await asyncio.wait_for(draining, 5)

    run(scenario())


def test_draining_waits_no_longer_than_its_grace(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, drain_seconds=0.1) as client:
            link = await client.session(request(1))
            await asyncio.wait_for(client.server.drain(), 5)
            await client.server.stop()
            code = await asyncio.wait_for(link.call.code(), 5)
            assert code in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)

    run(scenario())


NAMES = """requests_total errors_total uplink_bytes_total downlink_bytes_total forwards_total
positions_total verified_tokens_total evictions_total images_total image_tokens_total
image_calls_total image_round_trips_total image_resumes_total step_seconds_bucket batch_size_bucket
image_seconds_bucket queue_seconds_bucket work_seconds_bucket queued_works slots slots_in_use
sessions build_info"""


def test_the_metrics_page_tells_what_happened(model: CloudModel, run: Any) -> None:
    async def scenario() -> str:
        async with cloud(model) as client:
            await draw(client, 1)
            await status_of(client.inject(replace(request(1), prompt="")))
            port, stop = serve_metrics(client.server.metrics, host="127.0.0.1", port=0)
            url = f"http://127.0.0.1:{port}/metrics"
            page = await asyncio.to_thread(lambda: urlopen(url, timeout=20).read().decode())
            await asyncio.to_thread(stop)
            return str(page)

    page = run(scenario())
    samples = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in page.splitlines()}
    names = {key.partition("{")[0] for key in samples}
    assert {f"ciar_cloud_{name}" for name in NAMES.split()} - names == set()
    assert samples['ciar_cloud_errors_total{reason="InvalidInput"}'] == "1.0"
    assert samples['ciar_cloud_image_tokens_total{source="kept"}'] == "2.0"
    assert samples["ciar_cloud_images_total"] == "1.0"
    assert samples["ciar_cloud_slots"] == "8.0"
    assert samples["ciar_cloud_slots_in_use"] == "0.0"
    verified = sum(
        float(samples[f'ciar_cloud_verified_tokens_total{{result="{result}"}}'])
        for result in ("accepted", "rejected")
    )
    assert 0 < verified < T
    assert float(samples["ciar_cloud_uplink_bytes_total"]) > 100
