"""Whatever bytes and messages come in: a status of ours, no INTERNAL, and nothing left behind.

A few seconds by default; CIAR_FUZZ_SECONDS=600 goes on for so long. Messages are built from the
protocol's own descriptors, so fields that are added are fuzzed, too.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ciar.v1 import collaboration_pb2 as pb
from ciar.wire import SERVICE_NAME, prefix_request_to_proto, resume_to_proto, verify_batch_to_proto
from ciar_cloud.bundle import CloudModel
from tests.cloud_client import SERVING, Client, Sketch, cloud, draw, metric, request, uncertain

SECONDS = float(os.environ.get("CIAR_FUZZ_SECONDS", "0"))
NUM_EXAMPLES = 60  # at a time
PREFIX, VERIFY = (f"/{SERVICE_NAME}/{name}" for name in ("PrefixInject", "VerifyBatch"))
TIMEOUT = 20.0
# INTERNAL, UNKNOWN, CANCELLED and UNAVAILABLE would be defects: nobody is cancelled or goes away.
HARMLESS = frozenset(
    (
        StatusCode.OK,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.ABORTED,
        StatusCode.RESOURCE_EXHAUSTED,
    )
)
BOOLS = st.booleans()
UINTS = st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1), st.just(2**32 - 1))
NUMBERS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: BOOLS,
    FieldDescriptor.TYPE_UINT32: UINTS,
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: st.one_of(st.integers(-3, 20), st.integers(-(2**31), 2**31 - 1)),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_ENUM: st.one_of(st.integers(0, 4), st.integers(-5, 2**31 - 1)),
    FieldDescriptor.TYPE_STRING: st.one_of(st.text(max_size=30), st.just("a dog on a beach")),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=200),
}


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Of a field, for the constructor of its message."""
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = messages(field.message_type)
    else:
        one = NUMBERS[field.type]
    return st.lists(one, max_size=20) if field.is_repeated else one


@st.composite
def messages(draw_one: Any, kind: Descriptor) -> Message:
    """Any message of a kind; of a oneof, whichever field comes last."""
    chosen = (
        draw_one(st.lists(st.sampled_from(list(kind.fields)), unique_by=lambda f: f.name))
        if kind.fields
        else []
    )
    given_values = {field.name: draw_one(values(field)) for field in chosen}
    message: Message = GetMessageClass(kind)(**given_values)
    return message


@st.composite
def changed(draw_one: Any, valid: Message) -> Message:
    """A valid message, one to three of whose fields are anything, at any depth."""
    message = type(valid)()
    message.CopyFrom(valid)
    for _ in range(draw_one(st.integers(1, 3))):
        inner = message
        while True:
            field = draw_one(st.sampled_from(list(inner.DESCRIPTOR.fields)))
            is_deeper = field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated
            if not (is_deeper and inner.HasField(field.name) and draw_one(st.integers(0, 4))):
                break
            inner = getattr(inner, field.name)
        inner.ClearField(field.name)
        inner.MergeFrom(type(inner)(**{field.name: draw_one(values(field))}))
    return message


def spoilt(valid: bytes) -> st.SearchStrategy[bytes]:
    """Cut, or with other bytes in the middle."""
    places = st.integers(0, len(valid))
    return st.builds(
        lambda a, b, noise: valid[: min(a, b)] + noise + valid[max(a, b) :],
        places,
        places,
        st.binary(max_size=8),
    )


def coded(message: st.SearchStrategy[Message]) -> st.SearchStrategy[bytes]:
    return message.map(lambda one: one.SerializeToString())


def openings() -> st.SearchStrategy[bytes]:
    """Of PrefixInject."""
    valid = prefix_request_to_proto(request(1, num_prefix=2))
    return st.one_of(
        st.binary(max_size=300),
        coded(messages(pb.PrefixInjectRequest.DESCRIPTOR)),
        coded(changed(valid)),
        spoilt(valid.SerializeToString()),
    )


def pieces() -> st.SearchStrategy[bytes]:
    """Of a stream: more valid batches than others, so that some get far."""
    sketch = Sketch(1, (3, 4, 5))
    resume = pb.VerifyBatchRequest(resume=resume_to_proto(sketch.resume(request(1)), dtype="fp16"))
    batches = [
        pb.VerifyBatchRequest(batch=verify_batch_to_proto(one, dtype="fp16"))
        for one in (uncertain(3, [1]), uncertain(4, [2, 7], epoch=1), sketch.batch())
    ]
    valid = [resume, *batches]
    return st.one_of(
        st.binary(max_size=300),
        st.sampled_from([one.SerializeToString() for one in valid]),
        coded(messages(pb.VerifyBatchRequest.DESCRIPTOR)),
        st.sampled_from(valid).flatmap(lambda one: coded(changed(one))),
        st.sampled_from(valid).flatmap(lambda one: spoilt(one.SerializeToString())),
    )


def streams() -> st.SearchStrategy[list[bytes]]:
    first = pb.VerifyBatchRequest(
        resume=resume_to_proto(Sketch(1, (3, 4, 5)).resume(request(1)), dtype="fp16")
    ).SerializeToString()
    begins = st.sampled_from([[], [first], [first]])
    return st.tuples(begins, st.lists(pieces(), max_size=5)).map(lambda parts: sum(parts, []))


def inject(channel: grpc.Channel, data: bytes) -> StatusCode:
    method: Any = channel.unary_unary(PREFIX)
    return status(lambda: method(data, timeout=TIMEOUT))


def converse(channel: grpc.Channel, data: list[bytes]) -> StatusCode:
    method: Any = channel.stream_stream(VERIFY)
    return status(lambda: list(method(iter(data), timeout=TIMEOUT)))


def status(call: Callable[[], object]) -> StatusCode:
    """Of gRPC's threaded client: asyncio's has an INTERNAL of its own for writing too long."""
    try:
        call()
    except grpc.RpcError as error:
        code: StatusCode = error.code()
        return code
    return StatusCode.OK


@pytest.mark.parametrize(
    ("strategy", "send"),
    [(openings(), inject), (streams(), converse)],
    ids=["PrefixInject", "VerifyBatch"],
)
def test_nothing_breaks_the_cloud(
    model: CloudModel, run: Any, strategy: st.SearchStrategy[Any], send: Callable[..., Any]
) -> None:
    codes: Counter[StatusCode] = Counter()

    async def check(client: Client, channel: grpc.Channel, data: Any) -> None:
        code = await asyncio.to_thread(send, channel, data)
        codes[code] += 1
        assert code in HARMLESS, code
        assert metric(client, "ciar_cloud_errors_total", reason="EngineError") is None  # INTERNAL
        assert await client.health() == SERVING

    async def scenario() -> tuple[Client, grpc.Channel, Any]:
        serving = cloud(model, lease_seconds=0.2, max_queue=10**6)
        client = await serving.__aenter__()
        return client, grpc.insecure_channel(f"127.0.0.1:{client.port}"), serving

    async def rest(client: Client, channel: grpc.Channel, serving: Any) -> None:
        await asyncio.sleep(0.3)  # leases end
        assert await client.is_free()
        assert await draw(client, 1)
        channel.close()
        await serving.__aexit__(None, None, None)

    client, channel, serving = run(scenario())
    until = time.monotonic() + SECONDS / 2

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not SECONDS,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def fuzz(data: Any) -> None:
        run(check(client, channel, data))

    try:
        fuzz()
        while time.monotonic() < until:
            fuzz()
    finally:
        run(rest(client, channel, serving))
    print(dict(codes))
    assert codes[StatusCode.OK] and codes[StatusCode.INVALID_ARGUMENT]
