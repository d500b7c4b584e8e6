"""The error tree <-> gRPC status: one table, read in both directions.

A status of ours carries `google.rpc.ErrorInfo` (domain "ciar", reason = the row of the table, the
field, value and remedy of an `InvalidInput`): both sides raise the same error with the same text.
`Overloaded` and `Draining` carry `google.rpc.RetryInfo` too. A status without our ErrorInfo (from a
proxy, or from gRPC itself) is read by its code alone.
"""

from typing import NamedTuple

import google.rpc.error_details_pb2 as error_details
from google.protobuf.message import DecodeError
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
    Overloaded,
    PairMismatch,
    SessionLost,
    TryLater,
)

ERROR_DOMAIN = "ciar"
DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_CHARS = 400  # a status travels in headers, which gRPC limits to 8 KiB
MAX_RETRY_SECONDS = 60.0

_CODES: dict[type[CiarError], tuple[str, StatusCode]] = {
    InvalidInput: ("INVALID_INPUT", StatusCode.INVALID_ARGUMENT),
    PairMismatch: ("PAIR_MISMATCH", StatusCode.FAILED_PRECONDITION),
    CheckpointError: ("CHECKPOINT_ERROR", StatusCode.FAILED_PRECONDITION),
    SessionLost: ("SESSION_LOST", StatusCode.ABORTED),
    Overloaded: ("OVERLOADED", StatusCode.RESOURCE_EXHAUSTED),
    DeadlineExceeded: ("DEADLINE_EXCEEDED", StatusCode.DEADLINE_EXCEEDED),
    Draining: ("DRAINING", StatusCode.UNAVAILABLE),
    CloudUnavailable: ("CLOUD_UNAVAILABLE", StatusCode.UNAVAILABLE),
    EngineError: ("ENGINE_ERROR", StatusCode.INTERNAL),
    AccessDenied: ("ACCESS_DENIED", StatusCode.UNAUTHENTICATED),
    CiarError: ("ERROR", StatusCode.UNKNOWN),
}
_BY_REASON = {reason: kind for kind, (reason, _) in _CODES.items()}
# Statuses that others send. The rest (INTERNAL, UNKNOWN, DATA_LOSS, ...) means a failed step.
_BY_FOREIGN_CODE: dict[StatusCode, type[CiarError]] = {
    StatusCode.INVALID_ARGUMENT: InvalidInput,
    StatusCode.OUT_OF_RANGE: InvalidInput,
    StatusCode.FAILED_PRECONDITION: PairMismatch,
    StatusCode.ABORTED: SessionLost,
    StatusCode.NOT_FOUND: SessionLost,
    StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    StatusCode.UNAVAILABLE: CloudUnavailable,
    StatusCode.CANCELLED: CloudUnavailable,
    StatusCode.UNIMPLEMENTED: CloudUnavailable,
    StatusCode.UNAUTHENTICATED: AccessDenied,
    StatusCode.PERMISSION_DENIED: AccessDenied,
}


class RpcStatus(NamedTuple):
    """The arguments of `ServicerContext.abort`, in order: `await context.abort(*status)`."""

    code: StatusCode
    message: str
    details: tuple[tuple[str, bytes], ...]  # trailing metadata


class _Verbatim(str):
    """A value that the peer has already put into printable form."""

    def __repr__(self) -> str:
        return str(self)


def status_from_error(error: CiarError) -> RpcStatus:
    """The status that tells a peer of `error`. A subclass without a row takes its parent's."""
    kind = next(parent for parent in type(error).__mro__ if parent in _CODES)
    reason, code = _CODES[kind]
    message = str(error)[:MAX_MESSAGE_CHARS]
    info = error_details.ErrorInfo(reason=reason, domain=ERROR_DOMAIN)
    if isinstance(error, InvalidInput):
        info.metadata.update(field=error.field, value=error.value, remedy=error.remedy)
    status = Status(code=code.value[0], message=message)
    status.details.add().Pack(info)
    if isinstance(error, TryLater):
        retry = error_details.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_seconds * 1e9))
        status.details.add().Pack(retry)
    return RpcStatus(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def error_from_rpc(error: aio.AioRpcError) -> CiarError:
    """The error that the peer raised, or for a status that is not ours the nearest to its code."""
    metadata = error.trailing_metadata()
    return error_from_status(
        error.code(), error.details() or "", metadata.get(DETAILS_KEY) if metadata else None
    )


def error_from_status(
    code: StatusCode, message: str, details: str | bytes | None = None
) -> CiarError:
    """details: a serialised google.rpc.Status, if there is one."""
    message = _printable(message)
    info, retry_seconds = _read_details(details)
    if info is None:
        return _foreign_error(code, message)
    kind = _BY_REASON.get(info.reason)
    if kind is InvalidInput:
        value = _Verbatim(_printable(info.metadata["value"]))
        return InvalidInput(
            _printable(info.metadata["field"]), value, _printable(info.metadata["remedy"])
        )
    if kind and issubclass(kind, TryLater):
        return kind(message, retry_seconds=retry_seconds)
    return kind(message) if kind else _foreign_error(code, message)


def _foreign_error(code: StatusCode, message: str) -> CiarError:
    text = f"{code.name}: {message}" if message else code.name
    kind = _BY_FOREIGN_CODE.get(code, EngineError)
    if kind is InvalidInput:
        return InvalidInput("request", _Verbatim(code.name), message or "refused by the cloud")
    if code is StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in message:
        return InvalidInput("request", _Verbatim(code.name), message)
    return kind(text)


def _read_details(details: str | bytes | None) -> tuple[error_details.ErrorInfo | None, float]:
    """Our ErrorInfo if there is one, and seconds to wait; details that cannot be read are none."""
    found: error_details.ErrorInfo | None = None
    retry_seconds = 0.5
    if not isinstance(details, bytes):
        return None, retry_seconds
    info, retry = error_details.ErrorInfo(), error_details.RetryInfo()
    try:
        for detail in Status.FromString(details).details:
            if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
                found = info
            elif detail.Unpack(retry):
                retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    except DecodeError:
        return None, retry_seconds
    return found, min(max(retry_seconds, 0.0), MAX_RETRY_SECONDS)


def _printable(text: str) -> str:
    """A peer's text, fit for a terminal and a log line."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_MESSAGE_CHARS])
