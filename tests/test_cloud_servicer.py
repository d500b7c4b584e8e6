"""What the cloud refuses, with which status, and that it goes on serving the others."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from grpc import StatusCode

from ciar import wire
from ciar.errors import InvalidInput, Overloaded, SessionLost
from ciar.v1 import collaboration_pb2 as pb
from ciar_cloud.bundle import CloudModel, load_cloud_model
from ciar_cloud.servicer import MAX_IN_FLIGHT, Stream
from tests.cloud_client import (
    F,
    Sketch,
    T,
    V,
    cloud,
    metric,
    request,
    retry_seconds,
    status_of,
    uncertain,
)


def test_a_full_queue_refuses_before_it_computes(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, slots=1, max_queue=1, min_idle_seconds=60) as client:
            holder = await client.session(request(1, num_prefix=1))
            waiting = asyncio.create_task(client.inject(request(2, num_prefix=1)))
            while not client.server.engine.num_waiting:
                await asyncio.sleep(0.01)
            code, error = await status_of(client.inject(request(3, num_prefix=1)))
            assert code is StatusCode.RESOURCE_EXHAUSTED
            assert 0 < retry_seconds(error) <= 30
            sketch = Sketch(9, (1, 2))
            with pytest.raises(Overloaded):
                await client.resume(sketch.resume(request(9)))
            await holder.verify(uncertain(1, [1]))  # open sessions go on
            holder.call.cancel()
            assert len((await waiting).tokens) == 1

    run(scenario())


def test_too_many_sessions_are_refused(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, max_sessions=1) as client:
            link = await client.session(request(1))
            code, error = await status_of(client.inject(request(2)))
            assert code is StatusCode.RESOURCE_EXHAUSTED
            assert retry_seconds(error) > 0
            await link.finish()
            await client.inject(request(2))

    run(scenario())


def test_work_that_waits_past_its_deadline_is_not_computed(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model, slots=1, min_idle_seconds=60) as client:
            link = await client.session(request(1, num_prefix=1))
            code, _ = await status_of(client.inject(request(2, num_prefix=1), timeout=0.2))
            assert code is StatusCode.DEADLINE_EXCEEDED
            for _ in range(100):
                if not client.server.engine.num_waiting and len(client.server.sessions) == 1:
                    break
                await asyncio.sleep(0.01)
            assert len(client.server.sessions) == 1
            assert metric(client, "ciar_cloud_forwards_total") == 1  # the holder's prefix
            await link.verify(uncertain(1, [1]))

    run(scenario())


def image_proto(**changes: Any) -> pb.ImageRequest:
    proto = wire.image_request_to_proto(request(1))
    for name, value in changes.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                setattr(getattr(proto, name), inner, number)
        else:
            setattr(proto, name, value)
    return proto


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"prompt": ""}, StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": " \n"}, StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": "a\x00b"}, StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": "dog " * 2500}, StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"num_prefix": T + 1}, StatusCode.INVALID_ARGUMENT, "num_prefix"),
        ({"protocol_version": 99}, StatusCode.INVALID_ARGUMENT, "protocol_version"),
        ({"sampling": {"top_p": 0.0}}, StatusCode.INVALID_ARGUMENT, "top_p"),
        ({"sampling": {"temperature": float("nan")}}, StatusCode.INVALID_ARGUMENT, "temperature"),
        ({"sampling": {"cfg_scale": 0.5}}, StatusCode.INVALID_ARGUMENT, "cfg_scale"),
        ({"features": 9}, StatusCode.INVALID_ARGUMENT, "features: 9: give one of FEATURE_MODE"),
        ({"features": 3}, StatusCode.FAILED_PRECONDITION, "features: recompute: the cloud"),
        ({"fingerprint": "0123456789abcdef"}, StatusCode.FAILED_PRECONDITION, "0123456789abcdef"),
    ],
)
def test_bad_requests_are_refused_at_both_doors(
    model: CloudModel, changes: dict[str, Any], code: StatusCode, field: str, run: Any
) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            image = image_proto(**changes)
            found, error = await status_of(
                client.stub.PrefixInject(pb.PrefixInjectRequest(image=image))
            )
            assert found is code
            assert field in error.details()
            call = client.stub.VerifyBatch()
            await call.write(pb.VerifyBatchRequest(resume=pb.Resume(image=image)))
            found, error = await status_of(call.read())
            assert found is code
            assert field in error.details()
            assert len(client.server.sessions) == 0
            await client.inject(request(1, num_prefix=1))

    run(scenario())


def span(**values: Any) -> pb.TokenSpan:
    fields: dict[str, Any] = {"position": 1, "tokens": [1], "uncertain": b"\x01"}
    return pb.TokenSpan(**fields | values)


def batch_message(**values: Any) -> pb.VerifyBatchRequest:
    return pb.VerifyBatchRequest(batch=pb.Batch(span=span(**values)))


def features(values: list[float]) -> pb.Tensor:
    data = torch.tensor(values, dtype=torch.float16).numpy().tobytes()
    return pb.Tensor(dtype=pb.DTYPE_FP16, shape=[1, len(values)], data=data)


BAD_MESSAGES = [
    ("no oneof", pb.VerifyBatchRequest()),
    ("a second attach", pb.VerifyBatchRequest(attach=pb.Attach(session_id="x"))),
    ("no tokens", batch_message(tokens=[], uncertain=b"")),
    ("token out of range", batch_message(tokens=[V])),
    ("positions that skip", batch_message(position=2)),
    ("positions past the end", batch_message(position=T)),
    ("mask too short", batch_message(uncertain=b"")),
    ("spare bits set", batch_message(uncertain=b"\xff")),
    ("features missing", batch_message(uncertain=b"\x00")),
    ("features too wide", batch_message(uncertain=b"\x00", features=features([0.0] * (F + 1)))),
    ("NaN features", batch_message(uncertain=b"\x00", features=features([float("nan")] * F))),
    ("finish that does not add up", pb.VerifyBatchRequest(finish=pb.Finish(num_kept=1))),
]


def test_features_that_nobody_wants_are_refused(model: CloudModel, run: Any) -> None:
    """Codes with a batch of an image whose kept tokens are plain."""

    async def scenario() -> None:
        async with cloud(model) as client:
            link = await client.session(replace(request(1, num_prefix=1), features="none"))
            await link.send(batch_message(uncertain=b"\x00", features=features([0.0] * F)))
            with pytest.raises(InvalidInput, match=r"features: \[1, 8\]: leave it out: .*'none'"):
                await link.receive()

    run(scenario())


def test_bad_messages_end_their_stream_and_no_other(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            witness = await client.session(request(3))
            sketch = Sketch(3)
            for _, message in BAD_MESSAGES:
                link = await client.session(request(1, num_prefix=1))
                await link.send(message)
                code, error = await status_of(link.call.read())
                assert code is StatusCode.INVALID_ARGUMENT, (message, error)
                await sketch.go_on(witness, until=len(sketch.tokens) + (len(sketch.tokens) < T))
            await sketch.go_on(witness)
            await witness.finish()
            assert await client.is_free()
            errors = metric(client, "ciar_cloud_errors_total", reason="InvalidInput")
            assert errors == len(BAD_MESSAGES)

    run(scenario())


def test_a_stream_starts_with_attach_or_resume(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            for message in (pb.VerifyBatchRequest(), batch_message(position=0)):
                call = client.stub.VerifyBatch()
                await call.write(message)
                assert (await status_of(call.read()))[0] is StatusCode.INVALID_ARGUMENT
            with pytest.raises(SessionLost):
                await client.open(pb.VerifyBatchRequest(attach=pb.Attach(session_id="guess")))

    run(scenario())


def test_batches_over_the_limit_are_refused(bundle: Path, run: Any) -> None:
    limited = load_cloud_model(str(bundle), max_batch_tokens=2)

    async def scenario() -> None:
        async with cloud(limited) as client:
            assert client.info.max_batch_tokens == 2
            link = await client.session(request(1))
            await link.verify(uncertain(0, [1, 2]))
            await link.send_batch(uncertain(0, [1, 2, 3], epoch=5))
            code, _ = await status_of(link.call.read())
            assert code is StatusCode.INVALID_ARGUMENT

    run(scenario())


def test_get_model_tells_what_is_served(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            answer = await client.stub.GetModel(pb.GetModelRequest(protocol_version=1))
            assert wire.model_info_from_proto(answer) == model.info
            code, _ = await status_of(client.stub.GetModel(pb.GetModelRequest(protocol_version=7)))
            assert code is StatusCode.INVALID_ARGUMENT

    run(scenario())


class Deaf:
    """The context of an edge that attaches, sends one batch again and again, and reads nothing."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.num_read = self.num_written = 0

    async def read(self) -> pb.VerifyBatchRequest:
        await asyncio.sleep(0)
        self.num_read += 1
        if self.num_read == 1:
            return pb.VerifyBatchRequest(attach=pb.Attach(session_id=self.session_id))
        return batch_message(position=0, uncertain=b"\x00", features=features([0.0] * F))

    async def write(self, message: Any) -> None:
        if self.num_written:
            await asyncio.Event().wait()
        self.num_written += 1

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None


def test_verdicts_that_nobody_reads_do_not_pile_up(model: CloudModel, run: Any) -> None:
    async def scenario() -> None:
        async with cloud(model) as client:
            context: Any = Deaf((await client.inject(request(1))).session_id)
            stream = Stream(client.server._servicer, context)
            serving = asyncio.create_task(stream.run())
            for _ in range(60):
                await asyncio.sleep(0.01)
            assert context.num_read == 1 + MAX_IN_FLIGHT + 1  # attach, batches, one that waits
            assert stream._inbox.qsize() < MAX_IN_FLIGHT
            serving.cancel()
            assert await client.is_free()

    run(scenario())
