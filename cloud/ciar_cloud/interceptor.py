"""What happens to calls before a method gets them: keys are asked for, and bytes become messages.

Nobody without a key gets to a method, health apart: probes and load balancers have none. Bytes that
are no message of the protocol are told to the method, which refuses them as it does other input;
gRPC by itself would take them for a fault of the cloud, and write a traceback for each.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_health.v1 import health

from ciar import wire
from ciar.errors import AccessDenied, InvalidInput
from ciar_cloud.keys import ANYONE, Caller, KeyRing
from ciar_cloud.observer import METHODS, OTHER, Observer

HEALTH = f"/{health.SERVICE_NAME}/"
OWN = f"/{wire.SERVICE_NAME}/"
HEADER, SCHEME = "authorization", "Bearer "

Metadata = Any  # pairs of a name and a value, or None
Handler = Any  # grpc.RpcMethodHandler, whose types the stubs leave open
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


@dataclass(frozen=True)
class Unreadable:
    """In place of a message."""

    num_bytes: int


def check_readable(message: object) -> None:
    """Raises `InvalidInput`."""
    if isinstance(message, Unreadable):
        remedy = "give one of the protocol (docs/protocol.md)"
        raise InvalidInput("message", f"{message.num_bytes} bytes that are none", remedy)


class ReadingInterceptor(aio.ServerInterceptor):
    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OWN):
            return handler
        return handler._replace(request_deserializer=tolerant(handler.request_deserializer))


def tolerant(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    def read_or_say(data: bytes) -> object:
        try:
            return read(data)
        except DecodeError:
            return Unreadable(len(data))

    return read_or_say


class KeyInterceptor(aio.ServerInterceptor):
    def __init__(self, keys: KeyRing, observer: Observer) -> None:
        self._keys = keys
        self._observer = observer

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        method = handler_call_details.method
        if method.startswith(HEALTH):
            return await continuation(handler_call_details)
        try:
            caller_of(handler_call_details.invocation_metadata, self._keys)
        except AccessDenied as error:
            # Whoever has no key names no metric: the label would be theirs to choose.
            own = method.removeprefix(OWN) if method.startswith(OWN) else ""
            name = own if own in METHODS else OTHER
            self._observer.request_ended(method=name, reason=type(error).__name__)
            return refusal(error)
        return await continuation(handler_call_details)


def caller_of(metadata: Metadata, keys: KeyRing | None) -> Caller:
    """Who makes the call. Raises `AccessDenied`."""
    if keys is None:
        return ANYONE
    value = dict(metadata or ()).get(HEADER)
    if not isinstance(value, str) or not value.startswith(SCHEME):
        raise AccessDenied("this cloud wants an API key: give one with --api-key-file")
    caller = keys.find(value.removeprefix(SCHEME))
    if caller is None:
        raise AccessDenied("this cloud does not know the API key that it got")
    return caller


def refusal(error: AccessDenied) -> Handler:
    """Ends a call of any kind before a message of it is read."""

    async def refuse(_: object, context: aio.ServicerContext[Any, Any]) -> None:
        await context.abort(*wire.status_from_error(error))

    return grpc.stream_stream_rpc_method_handler(refuse)
