"""Which sessions share the next step. Pure bookkeeping: no thread, no model, no clock of its own.

A seat is a session's place in the engine: its state, its slot while it has one, and its works in
order. Seats with work wait in one queue; a step takes the oldest first and each at most once, as
long as their new rows fit the step: by turns of one seat a caller, so that who opens many sessions
keeps nobody waiting. What takes several steps (a prefix) goes to the end of the queue after each,
so that nobody waits for a whole image.

Refused when too much is waiting are only works that open sessions: a session that has begun is
worth finishing, and what it can queue is bounded by its stream.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

from ciar.errors import CiarError, DeadlineExceeded, Overloaded
from ciar.session import NOT_PREFILLED, PrefixWork, SessionState, VerifyWork
from ciar.types import Timings, Verdict, VerifyBatch
from ciar_cloud.slots import SlotPool

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0

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
    work: PrefixWork | VerifyWork | None = None  # made when its first step begins
    is_started: bool = False
    queue_seconds: float = 0.0
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
    def num_rows(self) -> int:
        """Rows its next feed adds to the cache, about."""
        state, batch = self.seat.state, self.batch
        end = len(state.tokens) if batch is None else batch.end
        if state.num_cached == NOT_PREFILLED:
            return len(state.condition) + end
        start = state.num_cached if batch is None else min(state.num_cached, batch.position)
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
    """jobs: to run together, each with a slot.  dropped: jobs that will not run, and why."""

    jobs: list[Job] = field(default_factory=list)
    dropped: list[tuple[Job, Outcome]] = field(default_factory=list)


class Scheduler:
    """Not thread-safe: its owner holds a lock."""

    def __init__(self, slots: SlotPool[Seat], *, max_queue: int, max_step_positions: int) -> None:
        self.slots = slots
        self.max_queue = max_queue
        self.max_step_positions = max_step_positions
        self._waiting: Counter[str] = Counter()  # works that no step has taken yet, by caller
        self._ready: deque[Seat] = deque()  # seats with work that no step is running
        self._work_seconds = 0.05  # running mean of what one work costs

    @property
    def num_waiting(self) -> int:
        """Works that no step has taken yet."""
        return self._waiting.total()

    def check_room(self, caller: str = "", *, share: float = 1.0) -> None:
        """Raise `Overloaded` when a work that opens a session would wait behind too many.

        share: of the queue, that works of the same caller may take.
        """
        if self.num_waiting >= self.max_queue:
            text = f"{self.num_waiting} works are waiting, the queue is full"
        elif share < 1 and self._waiting[caller] >= max(1, share * self.max_queue):
            text = f"{self._waiting[caller]} works of this key are waiting, its share of the queue"
        else:
            return
        wait = self._work_seconds * self.num_waiting / self.slots.num_slots
        raise Overloaded(text, retry_seconds=min(max(wait, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS))

    def add(self, job: Job) -> None:
        """Queue a job behind its seat's others; a closed seat takes none."""
        seat = job.seat
        if seat.is_closed:
            return
        if job.batch is not None:
            seat.newest_epoch = max(seat.newest_epoch, job.batch.epoch)
        seat.jobs.append(job)
        seat.idle_since = math.inf
        self._waiting[seat.caller] += 1
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
            rows = job.num_rows
            fits = not step.jobs or num_rows + rows <= self.max_step_positions
            if not fits or (seat.slot is None and not self.slots.lease(seat, now=now)):
                left.append(seat)
                continue
            num_rows += rows
            self._start(job, now)
            step.jobs.append(job)
        self._ready.extend(left)
        return step

    def end_step(self, ended: list[tuple[Job, bool]], now: float) -> None:
        """ended: the jobs of a step, and whether each one is done."""
        for job, is_done in ended:
            seat = job.seat
            seat.is_running = False
            if is_done:
                self._work_seconds += 0.1 * (job.compute_seconds - self._work_seconds)
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
        self._forget_waiting(seat, sum(not job.is_started for job in seat.jobs))
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
        deadline = min(seat.jobs[0].deadline for seat in self._ready)
        return min(self.slots.next_lease_at(), deadline)

    def _start(self, job: Job, now: float) -> None:
        job.seat.is_running = True
        if not job.is_started:
            job.is_started = True
            job.queue_seconds = now - job.accepted
            self._forget_waiting(job.seat, 1)

    def _forget_waiting(self, seat: Seat, count: int) -> None:
        self._waiting[seat.caller] -= count
        if not self._waiting[seat.caller]:
            del self._waiting[seat.caller]

    def _head(self, seat: Seat, now: float, step: Step) -> Job | None:
        """The seat's first job that is still wanted."""
        while seat.jobs:
            job = seat.jobs[0]
            is_late = now >= job.deadline
            if not is_late and not job.is_void:
                return job
            seat.jobs.popleft()
            if not job.is_started:
                self._forget_waiting(seat, 1)
            late = DeadlineExceeded("the deadline passed before the work was done")
            step.dropped.append((job, late if is_late else None))
        return None


def by_turns(seats: Iterable[Seat]) -> list[Seat]:
    """One of each caller, then another of each, ...; among those of a caller the order stays."""
    queues: dict[str, list[Seat]] = {}
    for seat in seats:
        queues.setdefault(seat.caller, []).append(seat)
    rounds = zip_longest(*queues.values())
    return [seat for turn in rounds for seat in turn if seat is not None]
