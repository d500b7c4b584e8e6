"""`optimistic`: the edge drafts on while the cloud verifies; a difference takes back what followed.

    tokens 0 .. a-1    decided
    a .. n-1           pending: drafted behind an uncertain token that waits for its verdict
    s .. n-1           not sent yet; those before s the cloud knows, or will know of its batches

The cloud's token at a position depends on the seed and on the tokens and features before it, and a
token that turns out to differ takes all behind it back, the router's decisions among them. So with
the same decisions of the router the image is that of `blocking`, whatever is in flight and however
long it takes. How far to draft ahead and when to send changes only the time.
"""

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass

from ciar.errors import DeadlineExceeded
from ciar.router import Router
from ciar.types import Verdict, VerifyBatch
from ciar_edge.decoder import Decoder
from ciar_edge.drafter import Draft, Drafter
from ciar_edge.link import LOST, Link
from ciar_edge.result import Observer, Origin

MIN_WINDOW, MAX_WINDOW = 4, 96  # tokens drafted ahead
CUT = 0.5  # expected differences among tokens not sent, at which they follow what is in flight
MEMORY = 0.8  # of measured times: how much is left after another one


@dataclass(eq=False, slots=True)
class Step:
    """A drafted token. mark: what the router knew before it decided on the token."""

    draft: Draft
    score: float
    is_uncertain: bool
    mark: object
    origin: Origin = Origin.KEPT  # of a token that the edge decides


@dataclass(eq=False, slots=True)
class Flight:
    """A batch on its way."""

    batch: VerifyBatch
    steps: list[Step]
    task: "asyncio.Task[Verdict]"
    sent: float


class Pace:
    """How far it pays to draft ahead, as measured: (r + 1.5 C) / e tokens.

    A verdict takes r + C, C of it the cloud's step; a draft takes e. What is drafted beyond that
    could have waited for the verdict.
    """

    def __init__(self) -> None:
        self._draft = self._trip = self._step = 0.0

    @property
    def window(self) -> int:
        if not self._draft:
            return MIN_WINDOW
        tokens = math.ceil((self._trip + 0.5 * self._step) / self._draft)
        return min(max(tokens, MIN_WINDOW), MAX_WINDOW)

    @property
    def most_flights(self) -> int:
        """Batches that keep the cloud busy: (r + C) / C. More would only wait there."""
        return max(1, round(self._trip / self._step)) if self._step else 1

    def drafted(self, seconds: float) -> None:
        self._draft = follow(self._draft, seconds)

    def answered(self, seconds: float, verdict: Verdict) -> None:
        timings = verdict.timings
        self._trip = follow(self._trip, seconds - timings.queue_seconds)  # not behind other batches
        self._step = follow(self._step, timings.compute_seconds)


def follow(value: float, new: float) -> float:
    return MEMORY * value + (1 - MEMORY) * new if value else new


class OptimisticDecoder(Decoder):
    """An image whose uncertain tokens are verified behind the edge's back.

    Flights are answered in the order of their positions; of the first that differs the others
    behind it are void, and the cloud spends nothing on them.
    """

    _link: Link

    def __init__(
        self, drafter: Drafter, router: Router, link: Link, *, observer: Observer, started: float
    ) -> None:
        super().__init__(drafter, router, link, observer=observer, started=started)
        self._pace = Pace()
        self._pending: deque[Step] = deque()
        self._unsent: list[Step] = []
        self._flights: deque[Flight] = deque()

    async def decode(self) -> None:
        try:
            while not self._is_whole():
                if self._may_draft:
                    self._draft_next()
                    self._send_what_is_due()
                    await asyncio.sleep(0)
                elif self._flights:
                    await self._wait(self._flights[0])
                else:
                    self._send()
        finally:
            self._drop_flights()

    def _is_whole(self) -> bool:
        """After all answers that have come."""
        while self._flights and self._flights[0].task.done():
            self._settle(self._flights.popleft())
        return len(self._tokens) == self._num_tokens

    @property
    def _may_draft(self) -> bool:
        has_room = self._drafter.position < self._num_tokens
        return has_room and len(self._pending) < self._pace.window

    def _draft_next(self) -> None:
        started = time.perf_counter()
        draft = self._drafter.draft()
        mark = self._router.mark()
        score, is_uncertain = self._router.decide(draft.position, draft.head)
        self._drafter.commit(draft.token)
        seconds = time.perf_counter() - started
        self._pace.drafted(seconds)
        if self._flights:
            self._ahead_seconds += seconds
        else:
            self._draft_seconds += seconds
        step = Step(draft, score, is_uncertain, mark)
        if is_uncertain and self._link.lost:
            step.is_uncertain, step.origin = False, Origin.FALLBACK
        self._pending.append(step)
        if not self._link.lost:
            self._unsent.append(step)
        self._decide_sure_ones()

    def _decide_sure_ones(self) -> None:
        """What no open question is in front of."""
        while self._pending and not self._pending[0].is_uncertain:
            step = self._pending.popleft()
            self._decide(step.draft.token, step.origin, step.score)

    # ------------------------------------------------------------------------------ to the cloud

    def _send_what_is_due(self) -> None:
        num_asked = sum(step.is_uncertain for step in self._unsent)
        is_full = len(self._unsent) >= self._link.max_batch_tokens
        is_idle = not self._flights
        has_room = len(self._flights) < self._pace.most_flights
        is_doubtful = has_room and num_asked * self._agreement.doubt >= CUT
        if is_full or (num_asked and (is_idle or is_doubtful)):
            self._send()

    def _send(self) -> None:
        """All up to the last token that is asked for, or a batch full of them."""
        most = self._link.max_batch_tokens
        asked = [number for number, step in enumerate(self._unsent) if step.is_uncertain]
        steps = self._unsent[: most if len(self._unsent) >= most else asked[-1] + 1]
        del self._unsent[: len(steps)]
        batch = self._link.batch(
            [step.draft for step in steps],
            [step.is_uncertain for step in steps],
            position=steps[0].draft.position,
        )
        task = asyncio.create_task(self._link.verify(batch))
        self._flights.append(Flight(batch, steps, task, time.perf_counter()))

    async def _wait(self, flight: Flight) -> None:
        started = time.perf_counter()
        await asyncio.wait([flight.task])
        self._link.wait_seconds += time.perf_counter() - started

    # ---------------------------------------------------------------------------- from the cloud

    def _settle(self, flight: Flight) -> None:
        try:
            verdict = flight.task.result()
        except DeadlineExceeded:
            self._decide_alone(flight)
        except LOST as error:
            self._link.lose(error)
            self._decide_alone(flight)
        else:
            self._pace.answered(time.perf_counter() - flight.sent, verdict)
            self._take(flight, verdict)

    def _take(self, flight: Flight, verdict: Verdict) -> None:
        end = verdict.position + verdict.num_agreed
        is_different = verdict.num_agreed < len(flight.steps)
        num_asked = sum(step.is_uncertain for step in flight.steps)
        num_agreed = sum(step.is_uncertain for step in flight.steps[: verdict.num_agreed])
        self._agreement.learn(num_agreed, num_asked)
        while self._pending and self._pending[0].draft.position < end:
            step = self._pending.popleft()
            origin = Origin.AGREED if step.is_uncertain else step.origin
            self._decide(step.draft.token, origin, step.score)
        if is_different:
            self._correct(verdict)
        self._decide_sure_ones()

    def _correct(self, verdict: Verdict) -> None:
        """The cloud drew another token: what followed the edge's is void."""
        assert verdict.token is not None, "a difference names the cloud's token"
        wrong, *behind = self._pending
        assert wrong.is_uncertain, "kept tokens stand"
        if behind:
            self._router.restore(behind[0].mark)
        self._drop_flights()
        self._pending.clear()
        self._unsent.clear()
        self._link.epoch += 1
        self._drafter.rollback(wrong.draft.position)
        self._drafter.commit(verdict.token)
        self._decide(verdict.token, Origin.CORRECTED, wrong.score)

    def _decide_alone(self, flight: Flight) -> None:
        """Its verdict is late, or will never come: the edge decides what it asked for.

        The cloud hears of it with the next batch; what else is in flight is sent again with it.
        """
        lost = [step for other in self._flights for step in other.steps]
        self._drop_flights()
        self._link.epoch += 1
        self._unsent = [] if self._link.lost else [*flight.steps, *lost, *self._unsent]
        for step in self._pending if self._link.lost else flight.steps:
            if step.is_uncertain:
                step.is_uncertain, step.origin = False, Origin.FALLBACK
        self._decide_sure_ones()

    def _drop_flights(self) -> None:
        for flight in self._flights:
            flight.task.cancel()
            flight.task.add_done_callback(ignore)
        self._flights.clear()


def ignore(task: "asyncio.Task[Verdict]") -> None:
    """Its error, if it has one, is looked at: the loop would report it otherwise."""
    if not task.cancelled():
        task.exception()
