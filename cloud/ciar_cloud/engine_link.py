"""The server's end of an engine process: starts it, hands it works, and survives its death.

What the process knows of a session is known here, too: verdicts are applied to a `SessionState` of
the server's own. So an engine that dies costs time and no image: its sessions are opened again, in
another engine or in its successor, and the works that were not answered are sent again. A work
under which engines die over and over is given up. Lives in the event loop.
"""

import asyncio
import logging
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from ciar.errors import CiarError, CloudUnavailable, EngineError
from ciar.session import SessionState
from ciar.types import Timings, Verdict, VerifyBatch
from ciar_cloud.backlog import Backlog
from ciar_cloud.engine_process import EnginePlan
from ciar_cloud.engine_wire import (
    FrameReader,
    Head,
    encode_frame,
    error_from_json,
    open_frame,
    outcome_from_json,
    replay,
    verify_frame,
)
from ciar_cloud.observer import Observer
from ciar_cloud.scheduler import Outcome

log = logging.getLogger(__name__)

MAX_DEATHS = 2  # of engines under one work, before it is given up
MAX_FAILED_STARTS = 3  # in a row
FIRST_DELAY, MAX_DELAY = 0.1, 5.0  # seconds between failed starts
STOP_SECONDS = 2.0  # for a process to end by itself


@dataclass(eq=False, slots=True)
class RemoteJob:
    """One work of a session, as in `scheduler.Job`, until its outcome comes."""

    number: int
    seat: "RemoteSeat"
    deliver: Callable[[Outcome], None]
    accepted: float
    deadline: float
    batch: VerifyBatch | None = None
    until: int = 0
    is_started: bool = False
    num_deaths: int = 0

    def frame(self) -> bytes:
        times = {"accepted": self.accepted, "deadline": self.deadline}
        head = {"seat": self.seat.number, "job": self.number, **times}
        if self.batch is not None:
            return verify_frame(head, self.batch)
        return encode_frame({"do": "draw", "until": self.until, **head})


@dataclass(eq=False, slots=True)
class RemoteSeat:
    """A session's place in an engine process.

    state: what is known, works under way not counted.
    """

    number: int
    state: SessionState
    caller: str
    link: "EngineLink"
    jobs: dict[int, RemoteJob] = field(default_factory=dict)
    is_closed: bool = False


class EngineLink:
    """One engine process, and its successors.

    on_lost: called when the process has died, with the seats that it had; they stay here unless
    they are moved.  on_failed: called when none can be started any more.
    """

    def __init__(
        self,
        plan: EnginePlan,
        *,
        max_queue: int,
        observer: Observer,
        on_lost: Callable[["EngineLink"], None],
        on_failed: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.backlog = Backlog(max_queue=max_queue, num_slots=1)
        self.seats: dict[int, RemoteSeat] = {}
        self.is_up = False
        self.num_slots = 0
        self.num_slots_in_use = 0
        self._observer = observer
        self._on_lost, self._on_failed = on_lost, on_failed
        self._jobs: dict[int, RemoteJob] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: _Wire | None = None
        self._ready: asyncio.Future[None] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._progress = 0.0  # clock time of the last sign of a step; of the first work, after rest
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def seconds_stuck(self) -> float:
        """How long there has been work and no sign of a step."""
        return time.monotonic() - self._progress if self._jobs and self.is_up else 0.0

    async def start(self) -> None:
        """Start the process and wait until its model is loaded and warm. Raises what it raised."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                self.plan.command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        _, self._wire = await loop.create_unix_connection(lambda: _Wire(self), sock=ours)
        await self._ready

    async def stop(self) -> None:
        """End the process. Works that wait fail with `CloudUnavailable`."""
        self._is_stopping = True
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        if self._wire is not None:
            self._wire.close()
        if self._process is not None:
            await asyncio.to_thread(end_process, self._process)
        for job in list(self._jobs.values()):
            self._end(job, CloudUnavailable("the engine has stopped"))

    def kill(self) -> None:
        """End a process that hangs; another one follows."""
        if self._process is not None:
            self._process.kill()

    # ----------------------------------------------------------------------------- seats and works

    def adopt(self, seat: RemoteSeat) -> None:
        """Take over a session, with the works that it waits for."""
        seat.link = self
        self.seats[seat.number] = seat
        for job in seat.jobs.values():
            self._jobs[job.number] = job
            self.backlog.add(seat.caller)
        if self.is_up:
            self._open(seat)

    def leave(self, seat: RemoteSeat) -> None:
        """Forget a session and its works."""
        del self.seats[seat.number]
        for job in seat.jobs.values():
            del self._jobs[job.number]
            if not job.is_started:
                self.backlog.remove(seat.caller)
        if self.is_up:
            self._send(encode_frame({"do": "close", "seat": seat.number}))

    def submit(self, job: RemoteJob) -> None:
        if not self._jobs:
            self._progress = time.monotonic()
        job.seat.jobs[job.number] = self._jobs[job.number] = job
        self.backlog.add(job.seat.caller)
        if self.is_up:
            self._send(job.frame())

    def _open(self, seat: RemoteSeat) -> None:
        self._send(open_frame(seat.number, seat.state, caller=seat.caller))
        for job in seat.jobs.values():
            self._send(job.frame())

    def _send(self, frame: bytes) -> None:
        assert self._wire is not None, "the process is up"
        self._wire.send(frame)

    # -------------------------------------------------------------------------- what it answers

    def take(self, head: Head, tensors: list[Tensor]) -> None:
        """A frame came."""
        kind = head["say"]
        if kind == "step":
            self._take_step(head)
        elif kind == "started":
            self._progress = time.monotonic()
            for number in head["jobs"]:
                self._start(self._jobs.get(number))
        elif kind == "log":
            logging.getLogger(head["name"]).log(
                head["level"], "%s: %s", self.plan.device, head["text"], extra=head["extra"]
            )
        elif kind == "ready" and self._ready and not self._ready.done():
            self._come_up(head["slots"])
            self._ready.set_result(None)
        elif kind == "failed" and self._ready and not self._ready.done():
            self._ready.set_exception(error_from_json(head["error"]))

    def _come_up(self, num_slots: int) -> None:
        self.num_slots = self.backlog.num_slots = num_slots
        self.is_up, self._progress = True, time.monotonic()
        for seat in self.seats.values():
            self._open(seat)

    def _take_step(self, head: Head) -> None:
        self._progress = time.monotonic()
        self.num_slots_in_use = head["in_use"]
        for number, value, tokens in head["outcomes"]:
            job = self._jobs.get(number)
            if job is not None:
                self._end(job, outcome_from_json(value), tokens)
        replay(head["events"], self._observer)

    def _start(self, job: RemoteJob | None) -> None:
        if job is not None and not job.is_started:
            job.is_started = True
            self.backlog.remove(job.seat.caller)

    def _end(self, job: RemoteJob, outcome: Outcome, tokens: list[int] | None = None) -> None:
        """A work is done: what it says is known now."""
        self._start(job)
        del self._jobs[job.number], job.seat.jobs[job.number]
        if isinstance(outcome, Verdict):
            assert job.batch is not None, "a verdict is about a batch"
            job.seat.state.take(job.batch, outcome)
        elif isinstance(outcome, Timings):
            job.seat.state.tokens += tokens or []
            self.backlog.note_cost(outcome.compute_seconds)
        job.deliver(outcome)

    # ------------------------------------------------------------------------- when it dies

    def lost(self) -> None:
        """The socket closed: the process is dead, or will be."""
        was_up, self.is_up, self.num_slots_in_use = self.is_up, False, 0
        if self._is_stopping:
            return
        if self._process is not None:
            self._process.kill()
        if not was_up:
            if self._ready is not None and not self._ready.done():
                self._ready.set_exception(EngineError("its process ended before it was ready"))
            return  # who waits for it decides
        self._observer.engine_died()
        for job in list(self._jobs.values()):
            self._survive(job)
        self._restart = asyncio.create_task(self._start_again())
        self._on_lost(self)

    def _survive(self, job: RemoteJob) -> None:
        """A work goes back to those that wait, unless it may be what engines die of."""
        if not job.is_started:
            return
        job.num_deaths += 1
        if job.num_deaths > MAX_DEATHS:
            self._end(job, EngineError(f"{job.num_deaths} engine processes died under this work"))
            return
        job.is_started = False
        self.backlog.add(job.seat.caller)

    async def _start_again(self) -> None:
        assert self._process is not None, "it was started"
        status = await asyncio.to_thread(self._process.wait)
        log.error(
            "the engine on %s ended (%s); %d sessions wait",
            self.plan.device,
            status,
            len(self.seats),
        )
        for number in range(MAX_FAILED_STARTS):
            try:
                await self.start()
            except (CiarError, OSError) as error:
                log.error("the engine on %s: %s", self.plan.device, error)
                await asyncio.to_thread(end_process, self._process)
                await asyncio.sleep(min(FIRST_DELAY * 2**number, MAX_DELAY))
            else:
                log.warning("the engine on %s serves again", self.plan.device)
                return
        self._on_failed()


class _Wire(asyncio.Protocol):
    """The socket of one process."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._frames: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio

    def data_received(self, data: bytes) -> None:
        for head, tensors in self._reader.feed(data):
            self._link.take(head, tensors)

    def connection_lost(self, error: Exception | None) -> None:
        self._link.lost()

    def send(self, frame: bytes) -> None:
        """Frames of one turn of the event loop go together: the engine sees them in one step."""
        if not self._frames:
            asyncio.get_running_loop().call_soon(self._flush)
        self._frames.append(frame)

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def end_process(process: subprocess.Popen[bytes]) -> None:
    """It ends when its socket closes; and if not, it is killed."""
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
