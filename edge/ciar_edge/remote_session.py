"""RemoteSession: one image in the cloud, over as many streams as it takes.

A `VerifyBatch` stream has one task that reads and one that writes. The session remembers what the
cloud knows (`History`), so that after a lost stream it opens another with `resume` and asks again
what was not answered. Verdicts find their batch by (epoch, position); a verdict that nobody waits
for any more is dropped.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from grpc import StatusCode, aio

from ciar import tracing
from ciar.errors import (
    CiarError,
    CloudUnavailable,
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    SessionLost,
)
from ciar.types import ImageRequest, ModelInfo, Prefix, Resume, Verdict, VerifyBatch
from ciar.v1 import collaboration_pb2 as pb
from ciar.wire import (
    ImageCounts,
    error_from_rpc,
    finish_to_proto,
    resume_to_proto,
    verdict_from_proto,
    verify_batch_to_proto,
)
from ciar_edge.connection import Patience, RemoteConfig, Traffic
from ciar_edge.history import History
from ciar_edge.result import Origins

if TYPE_CHECKING:
    from ciar.v1.collaboration_pb2_grpc import CollaborationAsyncStub

    Call = aio.StreamStreamCall[pb.VerifyBatchRequest, pb.VerifyBatchResponse]

Metadata = tuple[tuple[str, str], ...]  # of a call: names and values

_log = logging.getLogger(__name__)

# A stream lost to one of these is worth another try; other errors would only come again.
_MENDABLE = (CloudUnavailable, SessionLost, EngineError)


class _Flight:
    """A batch whose verdict is waited for."""

    def __init__(self, batch: VerifyBatch) -> None:
        self.batch = batch
        self.verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()


class RemoteSession:
    """One image in the cloud.

    traffic: what PrefixInject and its streams carried so far.
    metadata: of each of its streams.
    """

    def __init__(
        self,
        stub: "CollaborationAsyncStub",
        request: ImageRequest,
        prefix: Prefix,
        *,
        info: ModelInfo,
        address: str,
        config: RemoteConfig,
        traffic: Traffic,
        metadata: Metadata = (),
    ) -> None:
        self.prefix = prefix
        self._metadata = metadata
        self.traffic = traffic
        self._stub, self._request, self._info = stub, request, info
        self._address, self._config = address, config
        self._history = History(
            prefix.tokens, num_tokens=info.num_tokens, feature_dim=info.feature_dim
        )
        self._origins: Origins | None = None
        self._num_forwards = prefix.num_calls
        self._epoch = 0  # of the newest batch, or behind a difference the next one's
        self._flights: dict[tuple[int, int], _Flight] = {}  # by epoch and position, oldest first
        self._is_wanted = asyncio.Event()  # there are flights, or the session ends
        self._outbox: asyncio.Queue[pb.VerifyBatchRequest] | None = None  # None: no stream
        self._is_closing = False
        self._trouble: CiarError | None = None  # why the last stream was lost, till it is mended
        self._error: Exception | None = None  # why the session is gone for good
        self._patience = Patience(config, max_seconds=config.resume_seconds)
        self._task = asyncio.create_task(self._serve())

    async def verify(self, batch: VerifyBatch) -> Verdict:
        """Send a batch and wait for its verdict, over a new stream if the old one is lost.

        Raises `DeadlineExceeded` when it is late (the session stays usable) and the error that
        could not be mended when the session is gone for good.
        """
        if self._error is not None:
            raise self._error
        seconds = self._config.deadline_seconds
        key, flight = (batch.epoch, batch.position), _Flight(batch)
        assert key not in self._flights, f"a batch of epoch and position {key} is in flight"
        if self._outbox is not None:
            self._outbox.put_nowait(self._batch_message(batch))
        self._epoch = max(self._epoch, batch.epoch)
        self._flights[key] = flight
        self._is_wanted.set()
        try:
            with tracing.span("verify", epoch=batch.epoch, position=batch.position):
                await asyncio.wait([flight.verdict], timeout=seconds)
            if flight.verdict.done():
                return flight.verdict.result()
            self._history.miss(batch)
            raise DeadlineExceeded(
                f"the cloud at {self._address} did not answer within {seconds:g} s; "
                "allow more with --deadline"
            )
        finally:
            del self._flights[key]
            if not self._flights:
                self._is_wanted.clear()

    def report(self, origins: Origins) -> None:
        """How the tokens came about, as the loop knows: `finish` tells the cloud."""
        self._origins = origins

    async def finish(self, *, image_seconds: float) -> None:
        """Tell the cloud how the tokens came about; it is done then, whether or not it hears it.

        Without a `report` the history tells, which takes what the cloud drew for what was used.
        """
        counts = ImageCounts(
            **asdict(self._origins or self._history.origins()),
            num_round_trips=self.traffic.num_round_trips,
            num_resumes=self.traffic.num_resumes,
            num_forwards=self._num_forwards,
            image_seconds=image_seconds,
        )
        await self._say_last(pb.VerifyBatchRequest(finish=finish_to_proto(counts)))

    async def give_up(self, reason: str) -> None:
        await self._say_last(pb.VerifyBatchRequest(cancel=pb.Cancel(reason=reason)))

    async def close(self) -> None:
        """End the stream and both of its tasks."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _say_last(self, message: pb.VerifyBatchRequest) -> None:
        self._is_closing = True
        if self._outbox is not None:
            self._outbox.put_nowait(message)
            await asyncio.wait([self._task], timeout=self._config.close_seconds)

    # -------------------------------------------------------------------------------- the stream

    async def _serve(self) -> None:
        """Keep a stream up until the session ends. All errors end in `verify`."""
        attach = pb.Attach(session_id=self.prefix.session_id)
        first = pb.VerifyBatchRequest(attach=attach)
        try:
            while not self._is_closing:
                try:
                    await self._converse(first)
                except _MENDABLE as error:
                    _log.info("stream lost: %s", error)
                    self._trouble = error
                    await self._is_wanted.wait()
                    await self._patience.wait(error)
                    first = self._resume_message()
        except Exception as error:
            if self._is_closing:
                _log.info("the last message did not arrive: %s", error)
            self._error = error
            for flight in self._flights.values():
                if not flight.verdict.done():
                    flight.verdict.set_exception(error)

    async def _converse(self, first: pb.VerifyBatchRequest) -> None:
        """One stream from its first message to its end; returns only when the session ends."""
        call = self._stub.VerifyBatch(metadata=(*self._metadata, *tracing.carried()))
        self._outbox = asyncio.Queue()
        self._outbox.put_nowait(first)
        for flight in self._wanted():
            self._outbox.put_nowait(self._batch_message(flight.batch))
        writer = asyncio.create_task(self._write(call, self._outbox))
        try:
            await self._read(call, first=first)
        except aio.AioRpcError as error:
            raise explain(error, self._address) from error
        finally:
            self._outbox = None
            call.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: "Call", outbox: asyncio.Queue[pb.VerifyBatchRequest]) -> None:
        """The one writer. An error here ends the stream, and the reader learns why."""
        while True:
            message = await outbox.get()
            await call.write(message)
            self.traffic.uplink_bytes += message.ByteSize()

    async def _read(self, call: "Call", *, first: pb.VerifyBatchRequest) -> None:
        """The one reader: `attached`, then verdicts until the session ends."""
        try:
            async with asyncio.timeout(self._patience.seconds_left):
                reply = await self._receive(call)
        except TimeoutError:
            raise self._trouble or unreachable(self._address, "it does not answer") from None
        if reply is not None:
            self._check_attached(reply, first)
        while reply is not None and not reply.HasField("finished"):
            if reply.HasField("verdict"):
                with reading_reply(self._address):
                    self._settle(verdict_from_proto(reply.verdict, info=self._info))
            reply = await self._receive(call)
        if not self._is_closing:
            raise CloudUnavailable(f"the cloud at {self._address} closed the stream")

    async def _receive(self, call: "Call") -> pb.VerifyBatchResponse | None:
        """The next message, None behind the last."""
        reply = await call.read()
        if not isinstance(reply, pb.VerifyBatchResponse):
            return None
        self.traffic.downlink_bytes += reply.ByteSize()
        return reply

    def _check_attached(self, reply: pb.VerifyBatchResponse, first: pb.VerifyBatchRequest) -> None:
        num_sent = len(self.prefix.tokens)
        if first.HasField("resume"):
            num_sent = len(first.resume.history.tokens)
            self.traffic.num_resumes += 1
        if not reply.HasField("attached") or reply.attached.num_known != num_sent:
            raise SessionLost(
                f"the cloud at {self._address} holds {reply.attached.num_known} tokens "
                f"of this image, not {num_sent}"
            )

    def _settle(self, verdict: Verdict) -> None:
        """Hand a verdict to its batch; a late one has none any more, and changes nothing."""
        flight = self._flights.get((verdict.epoch, verdict.position))
        if flight is None or flight.verdict.done():
            return
        verdict.check_answers(
            flight.batch,
            num_tokens=self._info.num_tokens,
            looks_at_kept=self._request.looks_at_kept,
        )
        self._history.take(flight.batch, verdict)
        if verdict.num_agreed < len(flight.batch.tokens):
            self._epoch = max(self._epoch, verdict.epoch + 1)
        self._patience.reset()
        self._trouble = None
        self.traffic.num_round_trips += 1
        self._num_forwards += verdict.num_calls
        flight.verdict.set_result(verdict)

    # -------------------------------------------------------------------------------- messages

    def _wanted(self) -> Iterator[_Flight]:
        """Flights that are not void."""
        flights = list(self._flights.values())
        return (f for f in flights if f.batch.epoch >= self._epoch and not f.verdict.done())

    def _batch_message(self, batch: VerifyBatch) -> pb.VerifyBatchRequest:
        dtype = self._config.feature_dtype
        return pb.VerifyBatchRequest(batch=verify_batch_to_proto(batch, dtype=dtype))

    def _resume_message(self) -> pb.VerifyBatchRequest:
        """The session up to the oldest batch in flight, which is sent again behind it."""
        oldest = next(self._wanted(), None)
        resume = Resume(
            request=self._request,
            history=self._history.span(oldest.batch.position if oldest else len(self._history)),
            epoch=self._epoch,
        )
        return pb.VerifyBatchRequest(
            resume=resume_to_proto(resume, dtype=self._config.feature_dtype)
        )


@contextmanager
def reading_reply(address: str) -> Iterator[None]:
    """A reply that cannot be right is a fault of the cloud, `EngineError`, not of the user."""
    try:
        yield
    except InvalidInput as error:
        raise EngineError(
            f"the cloud at {address} sent a reply that cannot be right: {error}"
        ) from error


def explain(error: aio.AioRpcError, address: str) -> CiarError:
    """The error the cloud raised; for one of the way to it, what is at the address and a remedy."""
    found = error_from_rpc(error)
    if error.code() is StatusCode.UNIMPLEMENTED:
        return CloudUnavailable(
            f"{address} does not speak the protocol of a CIAR cloud; check the address, "
            "and that both sides are of the same release"
        )
    if type(found) is DeadlineExceeded:
        return DeadlineExceeded(f"the cloud at {address} did not answer in time ({found})")
    if type(found) is CloudUnavailable:
        return unreachable(address, str(found))
    return found


def unreachable(address: str, reason: str) -> CloudUnavailable:
    return CloudUnavailable(
        f"no cloud at {address} ({reason}); check the address, or start one with `ciar-cloud serve`"
    )
