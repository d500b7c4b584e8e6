"""The engine: one thread, one operation. A step is one `Target.extend` over a feed a session.

    owner --submit--> scheduler (locked) --next_step--> model thread --outcomes--> owner

The owner is the event loop of the server; in an engine process it is the model thread itself, which
reads its works from a socket (`Bell`) between steps. Sessions come and go between steps, too
(continuous batching). What a session gets does not depend on who shares its steps: noise comes from
(seed, position), and every feed attends to its own slot alone. While there is nothing to do, the
thread draws the noise that the sessions it served will need next, then it sleeps. What becomes of a
step that fails: see `steps`.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from ciar.errors import CiarError, CloudUnavailable
from ciar.logs import fields
from ciar.sampling import Noise
from ciar.session import PrefixWork, SessionState, VerifyWork
from ciar.target import Target
from ciar.types import Verdict, VerifyBatch
from ciar_cloud.observer import Observer
from ciar_cloud.scheduler import Job, Outcome, Scheduler, Seat
from ciar_cloud.steps import Running, StepRunner, Work
from ciar_cloud.warm_up import warm_up

log = logging.getLogger(__name__)

NOISE_AHEAD = 8  # positions of a session
MAX_AHEAD = 256  # rows still to be drawn, over all sessions; the oldest are given up

Post = Callable[..., object]
"""Has a function called, with arguments, where the engine's owner lives."""


class Bell:
    """Where the model thread waits for work, and the lock on all that it shares with the owner."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())

    def __enter__(self) -> None:
        self._condition.acquire()

    def __exit__(self, *_: object) -> None:
        self._condition.release()

    def collect(self) -> None:
        """Take works that have come: here their owner has brought them."""

    def wait(self, seconds: float | None) -> None:
        self._condition.wait(seconds)

    def notify(self) -> None:
        self._condition.notify()


class Engine:
    """Owns the target's slots. All methods are called by its owner.

    on_start: told the works that a step takes for the first time, in the model thread.
    slow_step_seconds: steps that take so long are logged; 0: none.
    """

    is_ready = True

    def __init__(
        self,
        target: Target,
        scheduler: Scheduler,
        observer: Observer,
        *,
        on_start: Callable[[list[Job]], None] = lambda jobs: None,
        bell: Bell | None = None,
        slow_step_seconds: float = 0.0,
    ) -> None:
        self._target = target
        self._scheduler = scheduler
        self._steps = StepRunner(target, max_chunk_rows=scheduler.max_chunk_rows)
        self._observer = observer
        self._on_start = on_start
        self._wake = bell or Bell()
        self._slow_step_seconds = slow_step_seconds or math.inf
        self._is_running = False
        self._is_stopping = False
        self._current: list[Job] = []
        self._step_ended = 0.0  # clock time; of the first submission, after a rest
        self._ahead: deque[tuple[Noise, int]] = deque(maxlen=MAX_AHEAD)
        self.died = asyncio.Event()  # set when the model thread ended by itself
        self._thread = threading.Thread(target=self._run, name="ciar-model", daemon=True)
        self._post: Post = lambda call, *arguments: call(*arguments)

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    @property
    def num_slots(self) -> int:
        return self._scheduler.slots.num_slots

    @property
    def num_slots_in_use(self) -> int:
        return self._scheduler.slots.num_in_use

    @property
    def seconds_stuck(self) -> float:
        """How long there has been work and no step has ended; 0 while there is none."""
        with self._wake:
            has_work = bool(self._current) or self._scheduler.num_waiting > 0
            return time.monotonic() - self._step_ended if has_work else 0.0

    async def start(self) -> None:
        """Warm up, then start the model thread; outcomes go to the running event loop."""
        await asyncio.to_thread(self.warm_up)
        self._post, self._is_running = asyncio.get_running_loop().call_soon_threadsafe, True
        self._thread.start()

    def warm_up(self) -> None:
        """Run a few steps before the first work comes."""
        warm_up(self._target)

    def end_stuck(self, seconds: float) -> None:
        """A thread cannot be ended: whoever watches health ends the process."""

    def run_here(self, post: Post) -> None:
        """Be the model thread. Returns when it ends by itself."""
        self._post, self._is_running = post, True
        self._run()

    async def stop(self) -> None:
        """End the model thread after its step. Works that wait fail with `CloudUnavailable`."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        while self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 1.0)

    def check_room(self, caller: str = "", *, share: float = 1.0) -> None:
        """Raise `Overloaded` when the work of a new session would have to wait behind too many."""
        with self._wake:
            self._scheduler.backlog.check_room(caller, share=share)

    def open(self, state: SessionState, *, caller: str = "") -> Seat:
        """A place for a session; it gets a slot with its first work."""
        return Seat(state=state, idle_since=time.monotonic(), caller=caller)

    def close(self, seat: Seat) -> None:
        """Drop the session's works and free its slot, at once or when its step has ended."""
        with self._wake:
            self._scheduler.close(seat)
            self._wake.notify()

    def draw(
        self,
        seat: Seat,
        until: int,
        deliver: Callable[[Outcome], None],
        *,
        deadline: float = math.inf,
    ) -> None:
        """Draw tokens until `until` are known, more than there are; delivers the `Timings`."""
        assert until > len(seat.state.tokens), "nothing to draw"
        now = time.monotonic()
        self.submit(Job(seat=seat, deliver=deliver, accepted=now, until=until, deadline=deadline))

    def verify(
        self,
        seat: Seat,
        batch: VerifyBatch,
        deliver: Callable[[Outcome], None],
        *,
        deadline: float = math.inf,
    ) -> None:
        """Verify a batch after the seat's earlier ones; delivers the `Verdict`, or None if void."""
        now = time.monotonic()
        self.submit(Job(seat=seat, deliver=deliver, accepted=now, batch=batch, deadline=deadline))

    def submit(self, job: Job) -> None:
        """Queue a work. Raises `CloudUnavailable` when the thread has ended."""
        with self._wake:
            if self._is_stopping or not self._is_running:
                raise CloudUnavailable("the engine has stopped")
            if not self._current and not self._scheduler.num_waiting:
                self._step_ended = time.monotonic()
            self._scheduler.add(job)
            self._wake.notify()

    # ------------------------------------------------------------------------------ model thread

    @torch.inference_mode()
    def _run(self) -> None:
        has_died = False
        try:
            while jobs := self._next_jobs():
                self._run_step(jobs)
        except Exception:
            log.exception("the model thread died")
            has_died = True
        finally:
            self._is_running = False
            self._abandon()
            if has_died:
                self._post(self.died.set)

    def _next_jobs(self) -> list[Job]:
        """Wait until there is a step to run; empty to stop."""
        while True:
            with self._wake:
                jobs = self._poll(can_sleep=not self._ahead)
                self._current = jobs or []
            if jobs is not None:
                return jobs
            noise, position = self._ahead.popleft()
            noise.prepare(position)

    def _poll(self, *, can_sleep: bool) -> list[Job] | None:
        """The jobs of the next step, empty to stop; None if there are none and it may not sleep."""
        slots = self._scheduler.slots
        while not self._is_stopping:
            self._wake.collect()
            now, num_evictions = time.monotonic(), slots.num_evictions
            step = self._scheduler.next_step(now)
            for _ in range(slots.num_evictions - num_evictions):
                self._observer.slot_evicted()
            if step.dropped:
                self._deliver(list(step.dropped))
            if step.started:
                self._on_start(step.started)
            if step.jobs:
                return step.jobs
            if not can_sleep:
                return None
            wake_at = self._scheduler.wake_at()
            self._wake.wait(None if wake_at == math.inf else max(0.0, wake_at - now))
        return []

    def _run_step(self, jobs: list[Job]) -> None:
        started = time.monotonic()
        running, outcomes = self._begin(jobs)
        results = self._steps.run(running) if running else []
        ended = time.monotonic()
        seconds = ended - started
        for (job, work, feed), result in zip(running, results, strict=True):
            if job.num_forwards:
                job.queue_seconds += started - job.stepped
            job.stepped = ended
            job.num_forwards += 1
            job.num_positions += feed.num_new_rows
            job.compute_seconds += seconds
            if isinstance(result, CiarError):
                outcomes.append((job, result))
            elif result:
                outcomes.append((job, success(job, work)))
        self._deliver(outcomes)
        done = {id(job) for job, _ in outcomes}
        with self._wake:
            self._current, self._step_ended = [], time.monotonic()
            self._scheduler.end_step([(job, id(job) in done) for job in jobs], self._step_ended)
        self._report(running, outcomes, seconds)

    def _report(
        self, running: list[Running], outcomes: list[tuple[Job, Outcome]], seconds: float
    ) -> None:
        """What can wait until the outcomes are on their way: counting, and noise to draw ahead."""
        if running:
            num_positions = sum(feed.num_new_rows for _, _, feed in running)
            self._observer.step_ended(
                num_works=len(running), num_positions=num_positions, seconds=seconds
            )
            if seconds >= self._slow_step_seconds:
                self._log_slow(running, num_positions, seconds)
        for job, outcome in outcomes:
            if isinstance(outcome, CiarError):
                continue
            self._observer.work_ended(kind=job.kind, timings=job.timings)
            if isinstance(outcome, Verdict):
                assert job.batch, "a verdict is about a batch"
                num_agreed = outcome.num_agreed
                self._observer.tokens_verified(
                    num_accepted=sum(job.batch.uncertain[:num_agreed]),
                    num_rejected=int(num_agreed < len(job.batch.tokens)),
                )
            self._look_ahead(job.seat.state)

    def _log_slow(self, running: list[Running], num_positions: int, seconds: float) -> None:
        extra = fields(
            seconds=seconds,
            sessions=len(running),
            prefixes=sum(job.kind == "prefix" for job, _, _ in running),
            positions=num_positions,
            most_positions=max(feed.num_new_rows for _, _, feed in running),
            waiting=self._scheduler.num_waiting,
        )
        log.warning("slow step", extra=extra)

    def _begin(self, jobs: list[Job]) -> tuple[list[Running], list[tuple[Job, Outcome]]]:
        """The works of a step with their feeds; jobs that turn out to be wrong end here."""
        running: list[Running] = []
        outcomes: list[tuple[Job, Outcome]] = []
        for job in jobs:
            known = job.batch and job.seat.state.answer_to(job.batch)
            if known:  # the batch has come twice
                outcomes.append((job, replace(known, timings=job.timings)))
                continue
            try:
                work = job.work = job.work or new_work(job)
                running.append(self._steps.feed(job, work))
            except CiarError as error:
                outcomes.append((job, error))
        return running, outcomes

    def _look_ahead(self, state: SessionState) -> None:
        """Have noise drawn for the positions that the session's next batch will ask about."""
        first, cells = len(state.tokens), state.order.cells
        state.noise.forget(cells[:first])
        if state.request.sampling.temperature:
            self._ahead.extend((state.noise, cell) for cell in cells[first : first + NOISE_AHEAD])

    def _deliver(self, outcomes: list[tuple[Job, Outcome]]) -> None:
        if outcomes:
            self._post(hand_out, outcomes)

    def _abandon(self) -> None:
        """The thread ends: nobody shall wait for it."""
        with self._wake:
            self._is_stopping = True
            seats = {id(job.seat): job.seat for job in [*self._current, *self._scheduler.waiting()]}
            jobs = [job for seat in seats.values() for job in seat.jobs]
        self._deliver([(job, CloudUnavailable("the engine has stopped")) for job in jobs])


def new_work(job: Job) -> Work:
    """The work of a job whose first step begins: here, not earlier, a batch rolls back."""
    state = job.seat.state
    return PrefixWork(state, job.until) if job.batch is None else VerifyWork(state, job.batch)


def success(job: Job, work: Work) -> Outcome:
    """The outcome of a work that is done."""
    if isinstance(work, PrefixWork):
        return job.timings
    return replace(work.verdict, timings=job.timings)


def hand_out(outcomes: list[tuple[Job, Outcome]]) -> None:
    """Where the owner lives: every outcome to who asked for it."""
    for job, outcome in outcomes:
        job.deliver(outcome)
