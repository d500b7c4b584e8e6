import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode, aio

from ciar.errors import (
    AccessDenied,
    CheckpointError,
    CiarError,
    CloudUnavailable,
    DeadlineExceeded,
    Draining,
    EngineError,
    InvalidInput,
    OutputError,
    Overloaded,
    PairMismatch,
    SessionLost,
)
from ciar.status import (
    DETAILS_KEY,
    RpcStatus,
    error_from_rpc,
    error_from_status,
    status_from_error,
)
from ciar.v1 import collaboration_pb2 as pb
from ciar.v1 import collaboration_pb2_grpc as pb_grpc

ERRORS: list[tuple[CiarError, StatusCode]] = [
    (InvalidInput("tokens[3]", 4097, "give ids below 4096"), StatusCode.INVALID_ARGUMENT),
    (InvalidInput("prompt", "日本" * 200, "give at most 40"), StatusCode.INVALID_ARGUMENT),
    (PairMismatch("edge 0a1b, cloud 2c3d"), StatusCode.FAILED_PRECONDITION),
    (CheckpointError("no config.json in models/x"), StatusCode.FAILED_PRECONDITION),
    (SessionLost("no session s1: resume it"), StatusCode.ABORTED),
    (Overloaded("64 requests wait", retry_seconds=1.25), StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded("no answer in 0.5 s"), StatusCode.DEADLINE_EXCEEDED),
    (CloudUnavailable("gone"), StatusCode.UNAVAILABLE),
    (Draining("shutting down", retry_seconds=0.75), StatusCode.UNAVAILABLE),
    (EngineError("step failed"), StatusCode.INTERNAL),
    (AccessDenied("this cloud wants an API key"), StatusCode.UNAUTHENTICATED),
    (CiarError("something else"), StatusCode.UNKNOWN),
]


def as_rpc_error(status: RpcStatus) -> aio.AioRpcError:
    trailing = aio.Metadata(*status.details)
    return aio.AioRpcError(status.code, aio.Metadata(), trailing, status.message)


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_error_round_trip(error: CiarError, code: StatusCode) -> None:
    status = status_from_error(error)
    assert status.code is code
    assert status.message == str(error)
    result = error_from_rpc(as_rpc_error(status))
    assert type(result) is type(error)
    assert str(result) == str(error)
    assert vars(result) == vars(error)


def test_a_subclass_travels_as_its_parent() -> None:
    class Worse(SessionLost):
        pass

    assert status_from_error(Worse("x")).code is StatusCode.ABORTED
    assert status_from_error(OutputError("x")).code is StatusCode.UNKNOWN


def test_a_long_error_fits_the_headers() -> None:
    status = status_from_error(EngineError("日" * 10_000))
    assert len(status.message.encode()) * 3 + len(status.details[0][1]) < 8192


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.UNAVAILABLE, CloudUnavailable),
        (StatusCode.CANCELLED, CloudUnavailable),
        (StatusCode.UNIMPLEMENTED, CloudUnavailable),
        (StatusCode.UNAUTHENTICATED, AccessDenied),
        (StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (StatusCode.NOT_FOUND, SessionLost),
        (StatusCode.ABORTED, SessionLost),
        (StatusCode.INVALID_ARGUMENT, InvalidInput),
        (StatusCode.FAILED_PRECONDITION, PairMismatch),
        (StatusCode.INTERNAL, EngineError),
        (StatusCode.UNKNOWN, EngineError),
        (StatusCode.DATA_LOSS, EngineError),
    ],
)
@pytest.mark.parametrize("details", [None, b"", b"\xff\xff not a status", "text"])
def test_a_foreign_status_is_read_by_its_code(
    code: StatusCode, kind: type[CiarError], details: str | bytes | None
) -> None:
    error = error_from_status(code, "said by a proxy", details)
    assert type(error) is kind
    assert "said by a proxy" in str(error)
    assert code.name in str(error)


def test_a_message_over_the_limit_is_not_overload() -> None:
    text = "SERVER: Received message larger than max (17000000 vs. 16777216)"
    error = error_from_status(StatusCode.RESOURCE_EXHAUSTED, text)
    assert isinstance(error, InvalidInput)


def test_a_peers_text_cannot_steer_the_terminal() -> None:
    status = status_from_error(EngineError("\x1b[2J\nboom"))
    assert str(error_from_rpc(as_rpc_error(status))) == "?[2J?boom"


def test_status_details_are_the_standard_ones() -> None:
    """What any client that knows google.rpc reads: reason, domain, and when to come back."""
    ((key, data),) = status_from_error(Overloaded("full", retry_seconds=0.25)).details
    assert key == DETAILS_KEY == "grpc-status-details-bin"
    status = Status.FromString(data)
    info, retry = ErrorInfo(), RetryInfo()
    assert (status.code, status.message) == (8, "full")
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, info.domain) == ("OVERLOADED", "ciar")
    assert retry.retry_delay.ToMilliseconds() == 250


Context = aio.ServicerContext[Any, Any]


class FailingServicer(pb_grpc.CollaborationServicer):
    """Answers every call with the status of one error."""

    def __init__(self, error: CiarError) -> None:
        self.error = error

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        await context.abort(*status_from_error(self.error))

    async def PrefixInject(
        self, request: pb.PrefixInjectRequest, context: Context
    ) -> pb.PrefixInjectResponse:
        await context.abort(*status_from_error(self.error))

    async def VerifyBatch(
        self, request_iterator: AsyncIterator[pb.VerifyBatchRequest], context: Context
    ) -> AsyncIterator[pb.VerifyBatchResponse]:
        async for _ in request_iterator:
            yield pb.VerifyBatchResponse(attached=pb.Attached(session_id="s"))
            await context.abort(*status_from_error(self.error))


async def call_unary(stub: "pb_grpc.CollaborationAsyncStub") -> None:
    await stub.GetModel(pb.GetModelRequest(), timeout=10)


async def call_stream(stub: "pb_grpc.CollaborationAsyncStub") -> None:
    stream = stub.VerifyBatch(timeout=10)
    await stream.write(pb.VerifyBatchRequest(attach=pb.Attach(session_id="s")))
    async for response in stream:
        assert response.attached.session_id == "s"


Call = Callable[["pb_grpc.CollaborationAsyncStub"], Awaitable[None]]


async def error_at(port: int, call: Call) -> CiarError:
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await call(pb_grpc.CollaborationStub(channel))
        return error_from_rpc(caught.value)


async def error_over_a_socket(error: CiarError, call: Call) -> CiarError:
    server = aio.server()
    pb_grpc.add_CollaborationServicer_to_server(FailingServicer(error), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        return await error_at(port, call)
    finally:
        await server.stop(None)


@pytest.mark.parametrize("call", [call_unary, call_stream])
@pytest.mark.parametrize(
    "error",
    [*(error for error, _ in ERRORS), EngineError("日" * 400)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_a_socket(run: Callable[..., Any], error: CiarError, call: Call) -> None:
    result = run(error_over_a_socket(error, call))
    assert type(result) is type(error)
    assert str(result) == str(error)
    assert vars(result) == vars(error)


@pytest.mark.parametrize("call", [call_unary, call_stream])
def test_nobody_there(run: Callable[..., Any], call: Call) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        assert type(run(error_at(taken.getsockname()[1], call))) is CloudUnavailable
