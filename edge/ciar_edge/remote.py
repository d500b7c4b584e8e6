"""RemoteVerifier: the cloud over gRPC.

Invariant: it equals `ciar.local.LocalVerifier` token for token, also when the cloud dies in the
middle of an image and another one takes the address over.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio

from ciar import tracing
from ciar.errors import CiarError, CloudUnavailable, TryLater
from ciar.logs import about, digest
from ciar.types import ImageRequest, ModelInfo, Prefix
from ciar.v1 import collaboration_pb2 as pb
from ciar.v1.collaboration_pb2_grpc import CollaborationStub
from ciar.wire import (
    IMAGE_HEADER,
    MESSAGE_LIMIT_BYTES,
    PROTOCOL_VERSION,
    model_info_from_proto,
    prefix_from_proto,
    prefix_request_to_proto,
)
from ciar_edge.connection import (
    Access,
    Patience,
    RemoteConfig,
    Traffic,
    channel_options,
    check_address,
)
from ciar_edge.remote_session import Metadata, RemoteSession, explain, reading_reply

if TYPE_CHECKING:
    from ciar.v1.collaboration_pb2_grpc import CollaborationAsyncStub

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

NUM_IMAGE_BYTES = 12  # random ones, of the name by which proxies keep an image's calls together


class RemoteVerifier:
    """The cloud at an address. Use it as a context manager, on the loop that it is entered on.

    traffic: of all calls and finished sessions so far.
    """

    def __init__(
        self, address: str, *, config: RemoteConfig | None = None, access: Access | None = None
    ) -> None:
        self.address = check_address(address)
        self.config = config or RemoteConfig()
        self.access = access or Access()
        self.access.check(address)
        self.traffic = Traffic()
        self._channel: aio.Channel | None = None
        self._info: ModelInfo | None = None

    async def __aenter__(self) -> Self:
        options = channel_options(self.address, message_limit_bytes=MESSAGE_LIMIT_BYTES)
        if self.access.is_encrypted:
            credentials = tls_credentials(self.access)
            self._channel = aio.secure_channel(self.address, credentials, options=options)
        else:
            self._channel = aio.insecure_channel(self.address, options=options)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._channel is not None
        await self._channel.close()
        self._channel = None

    async def info(self) -> ModelInfo:
        """What the cloud serves; asked once. Raises `CloudUnavailable` when no cloud is there."""
        if self._info is None:
            request = pb.GetModelRequest(protocol_version=PROTOCOL_VERSION)
            method = self._stub.GetModel
            reply = await self._unary(
                method, request, self.config.connect_seconds, self.traffic, self._metadata
            )
            with reading_reply(self.address):
                self._info = model_info_from_proto(reply)
        return self._info

    @asynccontextmanager
    async def open(self, request: ImageRequest) -> AsyncIterator[RemoteSession]:
        """PrefixInject, then a stream that takes the session over.

        A context that ends without an exception reports the counts of the image to the cloud; any
        other gives the image up. Raises `PairMismatch` when the cloud holds another checkpoint.
        """
        started = time.monotonic()
        info = await self.info()
        traffic = Traffic()
        prefix, image = await self._inject(request, info, traffic)
        with about(image=image, session=digest(prefix.session_id)):  # what its tasks log, too
            log.info("session opened")
            session = RemoteSession(
                self._stub,
                request,
                prefix,
                info=info,
                address=self.address,
                config=self.config,
                traffic=traffic,
                metadata=(*self._metadata, (IMAGE_HEADER, image)),
            )
        try:
            await asyncio.sleep(0)  # the stream begins: the session is not left to its lease
            yield session
        except BaseException as error:
            await session.give_up(type(error).__name__)
            raise
        else:
            await session.finish(image_seconds=time.monotonic() - started)
        finally:
            await session.close()
            self.traffic.add(session.traffic)

    async def _inject(
        self, request: ImageRequest, info: ModelInfo, traffic: Traffic
    ) -> tuple[Prefix, str]:
        """PrefixInject, and the name it gave the image: another one each time, so that a proxy may
        choose another replica.

        Tried again while the cloud is full or drains, as often as it asks for within the time, and
        when it is lost meanwhile.
        """
        message, seconds = prefix_request_to_proto(request), self.config.prefix_seconds
        full = Patience(self.config, max_seconds=seconds)
        lost = Patience(self.config, max_seconds=self.config.resume_seconds)
        while True:
            image = secrets.token_hex(NUM_IMAGE_BYTES)
            try:
                with about(image=image), tracing.span("PrefixInject", image=image):
                    metadata = (*self._metadata, (IMAGE_HEADER, image), *tracing.carried())
                    method = self._stub.PrefixInject
                    reply = await self._unary(method, message, seconds, traffic, metadata)
                    break
            except (TryLater, CloudUnavailable) as error:
                await self._wait(full if isinstance(error, TryLater) else lost, error)
        with reading_reply(self.address):
            return prefix_from_proto(reply, info=info), image

    async def _wait(self, patience: Patience, error: CiarError) -> None:
        log.info("an image waits for its cloud: %s", error)
        await patience.wait(error)

    async def _unary(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        seconds: float,
        traffic: Traffic,
        metadata: Metadata,
    ) -> Reply:
        traffic.uplink_bytes += request.ByteSize()
        try:
            reply = await method(request, timeout=seconds, metadata=metadata)
        except aio.AioRpcError as error:
            raise explain(error, self.address) from error
        traffic.downlink_bytes += reply.ByteSize()
        return reply

    @property
    def _metadata(self) -> Metadata:
        """Of every call."""
        key = self.access.api_key
        return (("authorization", f"Bearer {key}"),) if key else ()

    @property
    def _stub(self) -> "CollaborationAsyncStub":
        assert self._channel is not None, "use `async with RemoteVerifier(...)`"
        return CollaborationStub(self._channel)


def tls_credentials(access: Access) -> grpc.ChannelCredentials:
    """Raises `InvalidInput` if a file cannot be read."""
    return grpc.ssl_channel_credentials(
        root_certificates=access.pem("tls_ca"),
        private_key=access.pem("tls_key"),
        certificate_chain=access.pem("tls_cert"),
    )
