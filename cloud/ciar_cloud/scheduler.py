"""Which sessions share the next step. Pure bookkeeping: no thread, no model, no clock of its own.

A seat is a session's place in the engine: its state, its slot while it has one, and its works in
order. Seats with work wait in one queue; a step takes the oldest first and each at most once, as
long as their new rows fit the step: by turns of one seat a caller, so that who opens many sessions
keeps nobody waiting. What takes several steps (a prefix) goes to the end of the queue after each,
so that nobody waits for a whole image. Nor for a long catch-up (of a session that is rebuilt): none
feeds more than `max_chunk_rows` a step, if its feed can be divided.

Batches of a seat are taken in the order of their epochs and positions, whatever order they came in;
one that would leave a gap waits `GAP_SECONDS` for what belongs before it.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

from ciar.errors import CiarError, DeadlineExceeded
from ciar.session import NOT_PREFILLED, PrefixWork, SessionState, VerifyWork
from ciar.types import Timings, Verdict, VerifyBatch
from ciar_cloud.backlog import Backlog
from ciar_cloud.slots import SlotPool

GAP_SECONDS = 0.5

Outcome = Verdict | Timings | CiarError | None
"""Of a work: a verdict, what a prefix cost, an error, or None for a batch that was void."""


@dataclass(eq=False, slots=True)
class Job:
    """One work as it waits: a batch to verify, or tokens to draw until `until` are known."""

    seat: "Seat"
    deliver: Callable[[Outcome], None]  # called in the event loop
    accepted: float
    batch: VerifyBatch | None = None
    until: int = 0
    deadline: float = math.inf  # clock time after which nobody wants it
    number: int = 0  # by which its owner knows it
    work: PrefixWork | VerifyWork | None = None  # made when its first step begins
    is_started: bool = False
    queue_seconds: float = 0.0
    stepped: float = 0.0  # clock time at which its last step ended
    compute_seconds: float = 0.0
    num_forwards: int = 0
    num_positions: int = 0

    @property
    def kind(self) -> str:
        return "prefix" if self.batch is None else "verify"

    @property
    def is_void(self) -> bool:
        batch, seat = self.batch, self.seat
        return batch is not None and (batch.epoch < seat.newest_epoch or seat.state.is_void(batch))

    @property
    def leaves_gap(self) -> bool:
        """Whether tokens before its batch are not known yet."""
        return self.batch is not None and self.batch.position > len(self.seat.state.tokens)

    @property
    def num_rows(self) -> int:
        """Rows its next feed adds to the cache, about."""
        state, batch = self.seat.state, self.batch
        is_drawing = batch is None or (isinstance(self.work, VerifyWork) and self.work.draws_on)
        if batch is None or is_drawing:
            start, end = state.num_cached, len(state.tokens)
        else:
            start, end = min(state.num_cached, batch.position), batch.end
        if state.num_cached == NOT_PREFILLED:
            return len(state.condition) + end
        return max(1, end - start)

    @property
    def timings(self) -> Timings:
        return Timings(
            queue_seconds=self.queue_seconds,
            compute_seconds=self.compute_seconds,
            num_forwards=self.num_forwards,
            num_positions=self.num_positions,
        )


@dataclass(eq=False, slots=True)
class Seat:
    """A session's place in the engine. While there is work, `state` is the model thread's.

    caller: whose session it is.
    """

    state: SessionState
    idle_since: float
    caller: str = ""
    slot: int | None = None
    jobs: deque[Job] = field(default_factory=deque)
    is_running: bool = False
    is_closed: bool = False
    newest_epoch: int = 0

    def forget_slot(self) -> None:
        self.state.forget_cache()


@dataclass(eq=False, slots=True)
class Step:
    """jobs: to run together, each with a slot.  started: those of them that never ran before.
    dropped: jobs that will not run, and why.
    """

    jobs: list[Job] = field(default_factory=list)
    started: list[Job] = field(default_factory=list)
    dropped: list[tuple[Job, Outcome]] = field(default_factory=list)


class Scheduler:
    """Not thread-safe: its owner holds a lock."""

    def __init__(
        self,
        slots: SlotPool[Seat],
        *,
        max_queue: int,
        max_step_positions: int,
        max_chunk_rows: int,
    ) -> None:
        self.slots = slots
        self.backlog = Backlog(max_queue=max_queue, num_slots=slots.num_slots)
        self.max_step_positions = max_step_positions
        self.max_chunk_rows = max_chunk_rows
        self._ready: deque[Seat] = deque()  # seats with work that no step is running

    @property
    def num_waiting(self) -> int:
        """Works that no step has taken yet."""
        return self.backlog.num_waiting

    def add(self, job: Job) -> None:
        """Queue a job behind its seat's others, or where it belongs; a closed seat takes none."""
        seat = job.seat
        if seat.is_closed:
            return
        if job.batch is not None:
            seat.newest_epoch = max(seat.newest_epoch, job.batch.epoch)
        seat.jobs.insert(place_of(job), job)
        seat.idle_since = math.inf
        self.backlog.add(seat.caller)
        if len(seat.jobs) == 1:
            self._ready.append(seat)

    def next_step(self, now: float) -> Step:
        """Take the jobs of the next step. Each one must come back through `end_step`."""
        step, left, num_rows = Step(), [], 0
        waiting, self._ready = by_turns(self._ready), deque()
        for seat in waiting:
            job = self._head(seat, now, step)
            if job is None:
                seat.idle_since = now
                continue
            if gap_closes_at(job) > now:
                left.append(seat)
                continue
            rows = min(job.num_rows, self.max_chunk_rows)
            fits = not step.jobs or num_rows + rows <= self.max_step_positions
            if not fits or not self._has_slot(seat, now, job.accepted):
                left.append(seat)
                continue
            num_rows += rows
            if self._start(job, now):
                step.started.append(job)
            step.jobs.append(job)
        self._ready.extend(left)
        return step

    def end_step(self, ended: list[tuple[Job, bool]], now: float) -> None:
        """ended: the jobs of a step, and whether each one is done."""
        for job, is_done in ended:
            seat = job.seat
            seat.is_running = False
            if is_done:
                self.backlog.note_cost(job.compute_seconds)
                if not seat.is_closed:
                    seat.jobs.popleft()
            if seat.is_closed:
                seat.jobs.clear()
                self.slots.release(seat)
            elif seat.jobs:
                self._ready.append(seat)
            else:
                seat.idle_since = now

    def close(self, seat: Seat) -> None:
        """Forget the seat's works and free its slot: now, or when the step it is in has ended."""
        if seat.is_closed:
            return
        seat.is_closed = True
        self.backlog.remove(seat.caller, sum(not job.is_started for job in seat.jobs))
        if seat.is_running:
            return
        if seat.jobs:
            self._ready.remove(seat)
            seat.jobs.clear()
        self.slots.release(seat)

    def waiting(self) -> list[Job]:
        """All jobs of seats that no step is running."""
        return [job for seat in self._ready for job in seat.jobs]

    def wake_at(self) -> float:
        """Clock time at which `next_step` may find more than just now; infinity: not by itself."""
        if not self._ready:
            return math.inf
        heads = [seat.jobs[0] for seat in self._ready]
        deadline = min(job.deadline for job in heads)
        gaps = [gap_closes_at(job) for job in heads if job.leaves_gap]
        slot = math.inf
        if len(gaps) < len(heads):
            waiting = (job.accepted for job in heads if job.seat.slot is None)
            slot = self.slots.next_lease_at(min(waiting, default=math.inf))
        return min(deadline, slot, *gaps)

    def _has_slot(self, seat: Seat, now: float, waiting_since: float) -> bool:
        """Whether it has one, or gets one."""
        if seat.slot is not None:
            return True
        return self.slots.lease(seat, now=now, waiting_since=waiting_since)

    def _start(self, job: Job, now: float) -> bool:
        """Whether it is the job's first step."""
        job.seat.is_running = True
        if job.is_started:
            return False
        job.is_started = True
        job.queue_seconds = now - job.accepted
        self.backlog.remove(job.seat.caller)
        return True

    def _head(self, seat: Seat, now: float, step: Step) -> Job | None:
        """The seat's first job that is still wanted."""
        while seat.jobs:
            job = seat.jobs[0]
            is_late = now >= job.deadline
            if not is_late and not job.is_void:
                return job
            seat.jobs.popleft()
            if not job.is_started:
                self.backlog.remove(seat.caller)
            elif job.batch is not None:  # what it has drawn so far nobody hears of
                seat.state.roll_back(job.batch.position)
            late = DeadlineExceeded("the deadline passed before the work was done")
            step.dropped.append((job, late if is_late else None))
        return None


def place_of(job: Job) -> int:
    """Where a job belongs among those of its seat: a batch before later ones of its epoch that no
    step has begun.
    """
    jobs, batch = job.seat.jobs, job.batch
    index = len(jobs)
    while batch is not None and index and is_later(jobs[index - 1], batch):
        index -= 1
    return index


def is_later(job: Job, batch: VerifyBatch) -> bool:
    other = job.batch
    if job.is_started or other is None:
        return False
    return other.epoch == batch.epoch and other.position > batch.position


def gap_closes_at(job: Job) -> float:
    """Clock time up to which a batch waits for tokens before it; -inf: it need not wait."""
    return job.accepted + GAP_SECONDS if job.leaves_gap else -math.inf


def by_turns(seats: Iterable[Seat]) -> list[Seat]:
    """One of each caller, then another of each, ...; among those of a caller the order stays."""
    queues: dict[str, list[Seat]] = {}
    for seat in seats:
        queues.setdefault(seat.caller, []).append(seat)
    rounds = zip_longest(*queues.values())
    return [seat for turn in rounds for seat in turn if seat is not None]
