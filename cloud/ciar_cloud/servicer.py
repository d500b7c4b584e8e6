"""The Collaboration service: messages to values, values to engine and sessions, errors to statuses.

A VerifyBatch stream has one task that reads and one that writes. The reader hands each batch to the
engine as it comes; verdicts and whatever ends the stream meet in one inbox, which the writer (the
handler itself) empties in order.
"""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import Message
from grpc import aio

from ciar import tracing, wire
from ciar.errors import CiarError, EngineError, InvalidInput, PairMismatch
from ciar.logs import about, digest, fields
from ciar.session import SessionState
from ciar.types import ImageRequest, ModelInfo, Prefix, Timings, Verdict, VerifyBatch
from ciar.v1 import collaboration_pb2 as pb
from ciar.v1 import collaboration_pb2_grpc as pb_grpc
from ciar_cloud.engines import AnyEngine
from ciar_cloud.interceptor import caller_of, check_readable
from ciar_cloud.keys import Caller, KeyRing
from ciar_cloud.observer import Observer
from ciar_cloud.scheduler import Outcome
from ciar_cloud.sessions import OpenSession, SessionRegistry
from ciar_cloud.text import EncodedPrompt, PromptEncoder

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64  # batches of one stream without a written answer; a faster edge waits
REQUEST_HEADER = "x-request-id"  # of a proxy, or of an edge's owner; else the cloud makes one up

T = TypeVar("T")
Context = aio.ServicerContext[Any, Any]


class _End:
    """The edge said all it has to say."""


Event = Verdict | CiarError | wire.ImageCounts | _End


class Servicer(pb_grpc.CollaborationServicer):
    """Thin: what a message means is decided in `wire`, `sessions`, `session` and `engine`."""

    def __init__(
        self,
        *,
        info: ModelInfo,
        engine: AnyEngine,
        sessions: SessionRegistry,
        prompts: PromptEncoder,
        observer: Observer,
        keys: KeyRing | None = None,
    ) -> None:
        self.info = info
        self.engine = engine
        self.sessions = sessions
        self.observer = observer
        self._prompts = prompts
        self._keys = keys

    def caller(self, context: Context) -> Caller:
        """Whose call it is. Raises `AccessDenied`."""
        return caller_of(context.invocation_metadata(), self._keys)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return await self._guard("GetModel", context, self._get_model(request))

    async def PrefixInject(
        self, request: pb.PrefixInjectRequest, context: Context
    ) -> pb.PrefixInjectResponse:
        return await self._guard("PrefixInject", context, self._inject_prefix(request, context))

    async def VerifyBatch(  # type: ignore[override]  # a coroutine that writes, not a generator
        self, request_iterator: object, context: Context
    ) -> None:
        await self._guard("VerifyBatch", context, Stream(self, context).run())

    async def _guard(self, method: str, context: Context, handler: Awaitable[T]) -> T:
        """Run a handler; what it raises becomes the status of the call."""
        metadata = {str(k): v for k, v in context.invocation_metadata() or ()}
        started = time.monotonic()
        with about(**call_ids(metadata)), tracing.span(method, caller=metadata.items()) as span:
            try:
                answer = await handler
            except CiarError as error:
                failure = error
            except Exception as error:  # a defect of ours: this call fails, the server goes on
                log.exception("%s failed", method)
                failure = EngineError(f"internal error: {type(error).__name__}")
            else:
                self._note_end(method, "", started)
                return answer
            span.fail(failure)
            self._note_end(method, type(failure).__name__, started)
        await self._abort(context, failure)

    def _note_end(self, method: str, reason: str, started: float) -> None:
        self.observer.request_ended(method=method, reason=reason)
        level = logging.DEBUG if method == "GetModel" and not reason else logging.INFO
        seconds = time.monotonic() - started
        extra = fields(method=method, seconds=seconds, **({"error": reason} if reason else {}))
        log.log(level, "call ended", extra=extra)

    async def _abort(self, context: Context, error: CiarError) -> NoReturn:
        await context.abort(*wire.status_from_error(error))

    async def _get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        check_readable(request)
        wire.check_protocol_version(request.protocol_version)
        return wire.model_info_to_proto(self.info)

    async def _inject_prefix(
        self, request: pb.PrefixInjectRequest, context: Context
    ) -> pb.PrefixInjectResponse:
        check_readable(request)
        self.observer.bytes_moved(num_up=request.ByteSize())
        image, dtype = wire.prefix_request_from_proto(request, info=self.info)
        session, prompt = await self.open_session(image, self.caller(context))
        try:
            log.debug("session opened", extra={"session": digest(session.id)})
            timings = Timings()
            if image.num_prefix:
                timings = await self._draw(session, image.num_prefix, deadline_of(context))
            prefix = Prefix(
                session_id=session.id,
                tokens=tuple(session.seat.state.tokens),
                condition=prompt.rows,
                lease_seconds=self.sessions.lease_seconds,
                unknown_words=prompt.unknown_words,
                timings=timings,
            )
            answer = wire.prefix_to_proto(prefix, condition_dtype=dtype)
        except BaseException:  # a call that was cancelled leaves no session behind
            self.sessions.close(session)
            raise
        self.observer.bytes_moved(num_down=answer.ByteSize())
        self.sessions.grant(session)
        return answer

    async def open_session(
        self,
        image: ImageRequest,
        caller: Caller,
        *,
        prepare: Callable[[SessionState], None] | None = None,
    ) -> tuple[OpenSession, EncodedPrompt]:
        """Check the request and open its session, after `prepare(state)`: close it in the end."""
        info = self.info
        if image.fingerprint and image.fingerprint != info.fingerprint:
            raise PairMismatch(
                f"the edge was trained for target {image.fingerprint}, this cloud serves "
                f"{info.name} {info.fingerprint}: use the edge and cloud folders of one model"
            )
        info.check_features(image.features)
        self.sessions.check_room(caller)
        prompt = await self._prompts.encode(image.prompt)
        state = SessionState(
            image,
            prompt.features,
            num_tokens=info.num_tokens,
            vocab_size=info.vocab_size,
            feature_dim=info.feature_dim,
        )
        if prepare:
            prepare(state)
        return self.sessions.open(state, caller), prompt

    async def _draw(self, session: OpenSession, until: int, deadline: float) -> Timings:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def deliver(outcome: Outcome) -> None:
            if not done.done():
                done.set_result(outcome)

        self.engine.draw(session.seat, until, deliver, deadline=deadline)
        outcome = await done
        if isinstance(outcome, CiarError):
            raise outcome
        assert isinstance(outcome, Timings), "the outcome of a prefix is what it cost"
        return outcome


class Stream:
    """One VerifyBatch stream: it owns a session from its first message to its end."""

    def __init__(self, servicer: Servicer, context: Context) -> None:
        self._servicer = servicer
        self._info = servicer.info
        self._observer = servicer.observer
        self._sessions = servicer.sessions
        self._context = context
        self._deadline = deadline_of(context)
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._num_in_flight = 0
        self._has_room = asyncio.Event()

    async def run(self) -> None:
        session = await self._open()
        if session is None:
            return
        with about(session=digest(session.id)):
            await self._serve(session)

    async def _serve(self, session: OpenSession) -> None:
        reader: asyncio.Task[None] | None = None
        try:
            known = len(session.seat.state.tokens)
            attached = pb.Attached(session_id=session.id, num_known=known)
            await self._write(pb.VerifyBatchResponse(attached=attached))
            reader = asyncio.create_task(self._read(session))
            await self._answer(session)
        finally:
            self._sessions.close(session)
            if reader is not None:
                reader.cancel()

    async def _open(self) -> OpenSession | None:
        """The session that the first message names or brings; None when the edge says nothing."""
        message = await self._next()
        if message is None:
            return None
        caller = self._servicer.caller(self._context)
        kind = message.WhichOneof("message")
        if kind == "attach":
            return self._sessions.attach(message.attach.session_id, caller)
        if kind != "resume":
            raise InvalidInput("message", kind, "a stream starts with attach or resume")
        resume = wire.resume_from_proto(message.resume, info=self._info)

        def prepare(state: SessionState) -> None:
            state.restore(resume.history)
            state.epoch = resume.epoch

        session, _ = await self._servicer.open_session(resume.request, caller, prepare=prepare)
        return session

    async def _read(self, session: OpenSession) -> None:
        """Batches to the engine; what ends the stream to the inbox."""
        try:
            self._inbox.put_nowait(await self._read_batches(session))
        except CiarError as error:
            self._inbox.put_nowait(error)
        except Exception as error:  # handed on, so that the writer ends the stream with it
            log.exception("reading a stream failed")
            self._inbox.put_nowait(EngineError(f"internal error: {type(error).__name__}"))

    async def _read_batches(self, session: OpenSession) -> Event:
        verify, seat, info = self._servicer.engine.verify, session.seat, self._info
        mode = seat.state.request.features
        while (message := await self._next()) is not None:
            kind = message.WhichOneof("message")
            if kind == "batch":
                batch = wire.verify_batch_from_proto(message.batch, info=info, mode=mode)
                while self._num_in_flight >= MAX_IN_FLIGHT:
                    self._has_room.clear()
                    await self._has_room.wait()
                self._num_in_flight += 1
                verify(seat, batch, partial(self._take, begin_work(batch)), deadline=self._deadline)
            elif kind == "finish":
                return wire.finish_from_proto(message.finish, info=info)
            elif kind == "cancel":
                return _End()
            elif kind == "attach" and message.attach.session_id == session.id:
                continue  # it came twice
            else:
                raise InvalidInput("message", kind, "an open stream takes batch, finish or cancel")
        while self._num_in_flight:  # the edge closed its side and still listens
            self._has_room.clear()
            await self._has_room.wait()
        return _End()

    def _take(self, span: tracing.Span, outcome: Outcome) -> None:
        """In the event loop: the engine is done with a batch."""
        end_work(span, outcome)
        if outcome is None:
            self._land()
        else:
            assert not isinstance(outcome, Timings), "the outcome of a batch is a verdict"
            self._inbox.put_nowait(outcome)

    def _land(self) -> None:
        """A batch has been answered, or is void: there is room for another one."""
        self._num_in_flight -= 1
        self._has_room.set()

    async def _answer(self, session: OpenSession) -> None:
        while True:
            event = await self._inbox.get()
            if isinstance(event, Verdict):
                await self._write(pb.VerifyBatchResponse(verdict=wire.verdict_to_proto(event)))
                self._land()
            elif isinstance(event, CiarError):
                raise event
            elif isinstance(event, wire.ImageCounts):
                self._sessions.close(session)
                self._report(event)
                await self._write(pb.VerifyBatchResponse(finished=pb.Finished()))
                return
            else:
                return

    def _report(self, counts: wire.ImageCounts) -> None:
        tokens = {
            "prefix": counts.num_prefix,
            "kept": counts.num_kept,
            "agreed": counts.num_agreed,
            "drawn": counts.num_drawn,
            "fallback": counts.num_fallback,
        }
        seconds = counts.image_seconds
        trips, resumes = counts.num_round_trips, counts.num_resumes
        forwards = counts.num_forwards
        extra = fields(
            seconds=seconds, **tokens, forwards=forwards, round_trips=trips, resumes=resumes
        )
        log.info("image finished", extra=extra)
        self._observer.image_finished(
            tokens=tokens,
            num_forwards=forwards,
            num_round_trips=trips,
            num_resumes=resumes,
            seconds=seconds,
        )

    async def _next(self) -> pb.VerifyBatchRequest | None:
        message = await self._context.read()
        if message is aio.EOF:
            return None
        check_readable(message)
        assert isinstance(message, pb.VerifyBatchRequest)
        self._observer.bytes_moved(num_up=message.ByteSize())
        return message

    async def _write(self, message: Message) -> None:
        self._observer.bytes_moved(num_down=message.ByteSize())
        await self._context.write(message)


def call_ids(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What names a call in the log. Binary values name nothing."""
    found = {
        "request": metadata.get(REQUEST_HEADER) or secrets.token_hex(8),
        "image": metadata.get(wire.IMAGE_HEADER, ""),
    }
    return {name: value for name, value in found.items() if isinstance(value, str)}


def begin_work(batch: VerifyBatch) -> tracing.Span:
    return tracing.begin(
        "verify",
        epoch=batch.epoch,
        position=batch.position,
        num_tokens=len(batch.tokens),
        num_uncertain=sum(batch.uncertain),
    )


def end_work(span: tracing.Span, outcome: Outcome) -> None:
    if isinstance(outcome, Verdict):
        timings = outcome.timings
        span.set(
            num_agreed=outcome.num_agreed,
            queue_seconds=timings.queue_seconds,
            compute_seconds=timings.compute_seconds,
            num_forwards=timings.num_forwards,
            num_positions=timings.num_positions,
        )
    elif outcome is None:
        span.set(is_void=True)
    elif isinstance(outcome, CiarError):
        span.fail(outcome)
    span.end()


def deadline_of(context: Context) -> float:
    """Clock time at which the call's deadline passes; infinity without one."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + float(remaining)
