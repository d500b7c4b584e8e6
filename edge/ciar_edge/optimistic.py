"""`optimistic`: the edge drafts on while the cloud verifies; a difference takes back what followed.

`exact` is that with every token uncertain.

    tokens 0 .. a-1    decided
    a .. n-1           pending: drafted behind a token that waits for its verdict
    s .. n-1           not sent yet; those before s the cloud knows, or will know of its batches

The cloud's token at a position depends on the seed and on the tokens and features before it, and a
token that turns out to differ takes all behind it back, the router's decisions among them. So with
the same decisions of the router the image is that of `blocking`, whatever is in flight and however
long it takes. How far to draft ahead and when to send changes only the time.

The prefix, which is the cloud's, is drafted too: the cloud confirms its own draws in a few batches
instead of making them one by one.

Late verification: every kept token passes through the cloud anyway. If the cloud looks at them,
they wait for its verdict as well, though nobody asks for their sake until the image ends.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ciar.errors import DeadlineExceeded
from ciar.router import Mark, Router
from ciar.types import Verdict, VerifyBatch
from ciar_edge.decoder import Decoder
from ciar_edge.doubt import Doubt
from ciar_edge.drafter import Draft, Drafter
from ciar_edge.link import LOST, Link
from ciar_edge.pace import Pace
from ciar_edge.result import Observer, Origin

TURNS = 4  # of the event loop between two drafts: a batch leaves, and an answer is seen, in as many
NOTHING: tuple[int, tuple[int, ...]] = (0, ())


@dataclass(eq=False, slots=True)
class Step:
    """A drafted token.

    mark: what the router knew before it decided on the token.
    is_open: whether a verdict has to be waited for; an uncertain one is, unless it came to nothing.
    rank: of its score.  doubt: the probability that the cloud differs; 0 if the edge decides.
    origin: of a token that the edge decides.
    """

    draft: Draft
    score: float
    is_uncertain: bool
    is_open: bool
    mark: Mark
    rank: float
    doubt: float
    origin: Origin = Origin.KEPT


@dataclass(eq=False, slots=True)
class Flight:
    """A batch on its way.  num_resumes: times the session had been rebuilt when it was sent."""

    batch: VerifyBatch
    steps: list[Step]
    task: "asyncio.Task[Verdict]"
    sent: float
    num_resumes: int


class OptimisticDecoder(Decoder):
    """An image whose uncertain tokens are verified behind the edge's back.

    Flights are answered in the order of their positions; of the first that differs the others
    behind it are void, and the cloud spends nothing on them.

    num_prefix: tokens the cloud decides, and no router.  asks_all: it decides all of them.
    looks_at_kept: whether the cloud verifies kept tokens, too.
    """

    _link: Link

    def __init__(
        self,
        drafter: Drafter,
        router: Router,
        link: Link,
        *,
        doubt: Doubt,
        num_prefix: int,
        asks_all: bool,
        looks_at_kept: bool,
        observer: Observer,
        started: float,
    ) -> None:
        super().__init__(drafter, router, link, observer=observer, started=started)
        self._doubt, self._pace, self._num_prefix = doubt, Pace(), num_prefix
        self._asks_all, self._looks_at_kept = asks_all, looks_at_kept
        self._pending: deque[Step] = deque()
        self._unsent: list[Step] = []
        self._flights: deque[Flight] = deque()
        self._next: tuple[int, tuple[int, ...]] = NOTHING  # a position, the cloud's tokens from it

    async def decode(self) -> None:
        try:
            while not self._is_whole():
                can_draft = self._may_draft
                if self._is_due(can_draft=can_draft):
                    self._send()
                elif can_draft:
                    self._draft_next()
                else:
                    await self._wait(self._flights[0])
                for _ in range(TURNS if self._flights else 1):
                    await asyncio.sleep(0)
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
        hope = 1 - doubt_of(self._pending)
        return has_room and self._pace.may_draft(self._num_ahead, hope=hope)

    @property
    def _num_ahead(self) -> int:
        """Tokens from the first uncertain one on."""
        for number, step in enumerate(self._pending):
            if step.is_uncertain:
                return len(self._pending) - number
        return 0

    def _draft_next(self) -> None:
        started, num_drafts = time.perf_counter(), self._drafter.num_drafts
        draft = self._drafter.draft()
        step = self._step(draft)
        self._drafter.commit(draft.token)
        seconds = self._drafted(started)
        if num_made := self._drafter.num_drafts - num_drafts:  # of a wave at once
            self._pace.drafted(seconds / num_made)
        if self._flights:
            self._ahead_seconds += seconds
        else:
            self._draft_seconds += seconds
        if self._link.lost:
            decide_here(step)
        self._pending.append(step)
        if not self._link.lost:
            self._unsent.append(step)
        self._take_next()
        self._decide_sure_ones()

    def _step(self, draft: Draft) -> Step:
        mark = self._router.mark()
        is_prefix = draft.position < self._num_prefix
        if is_prefix or self._asks_all:
            score, is_uncertain = self._router.glance(draft.cell, draft.head), True
        else:
            score, is_uncertain = self._router.decide(draft.cell, draft.head)
        rank = self._doubt.rank(score)
        return Step(
            draft,
            score=math.nan if is_prefix else score,
            is_uncertain=is_uncertain,
            is_open=is_uncertain or self._looks_at_kept,
            mark=mark,
            rank=rank,
            doubt=self._doubt.of(rank) if is_uncertain else 0.0,
        )

    def _decide_sure_ones(self) -> None:
        """What no open question is in front of."""
        while self._pending and not self._pending[0].is_open:
            step = self._pending.popleft()
            self._decide(step.draft.token, step.origin, step.score)

    # ------------------------------------------------------------------------------ to the cloud

    def _is_due(self, *, can_draft: bool) -> bool:
        num_flights, doubt = len(self._flights), doubt_of(self._unsent)
        is_due = self._pace.is_due(num_flights, doubt=doubt, can_draft=can_draft)
        return is_due and self._num_asking > 0

    @property
    def _num_asking(self) -> int:
        """Tokens not sent, up to the last one to ask for: in the end that is any open one."""
        is_last = self._drafter.position == self._num_tokens
        asking = (
            1 + number
            for number, step in enumerate(self._unsent)
            if step.is_uncertain or (step.is_open and is_last)
        )
        return max(asking, default=0)

    def _send(self) -> None:
        """All up to the last token that is asked for, or a batch full of them."""
        steps = self._unsent[: min(self._num_asking, self._link.max_batch_tokens)]
        num_decided = sum(not step.is_open for step in steps) if self._looks_at_kept else 0
        del self._unsent[: len(steps)]
        batch = self._link.batch(
            [step.draft for step in steps],
            [step.is_uncertain for step in steps],
            position=steps[0].draft.position,
            wants_next=True,
            num_decided=num_decided,
            run_on=self._pace.run_on,
        )
        task = asyncio.create_task(self._link.verify(batch))
        now, num_resumes = time.perf_counter(), self._link.num_resumes
        self._flights.append(Flight(batch, steps, task, now, num_resumes))

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
            if self._link.num_resumes == flight.num_resumes:  # else it waited for another stream
                self._pace.answered(time.perf_counter() - flight.sent, verdict)
            self._take(flight, verdict)

    def _take(self, flight: Flight, verdict: Verdict) -> None:
        end = verdict.position + verdict.num_agreed
        self._gaps.update(zip(range(verdict.position, end), verdict.gaps, strict=False))
        while self._pending and self._pending[0].draft.position < end:
            self._confirm()
        if verdict.num_agreed < len(flight.steps):
            assert verdict.token is not None, "a difference names the cloud's token"
            assert self._pending[0].draft.position == end, "what is decided stands"
            self._correct(verdict.token)
            self._next = end + 1, verdict.run_on
        elif verdict.token is not None:
            self._next = end, (verdict.token,)
            self._take_next()
        self._decide_sure_ones()

    def _take_next(self) -> None:
        """A verdict brought tokens of the cloud along: where they follow one another, what is
        uncertain needs no asking for.
        """
        (position, tokens), step = self._next, next(iter(self._unsent), None)
        if not tokens or step is None:
            return
        self._next = NOTHING
        if step.draft.position != position or not step.is_uncertain:
            return
        if step.draft.token == tokens[0]:
            del self._unsent[0]
            self._confirm()
        else:
            self._correct(tokens[0])
        self._next = position + 1, tokens[1:]

    def _confirm(self) -> None:
        """The first pending token stands."""
        step = self._pending.popleft()
        if step.is_uncertain:
            self._doubt.learn(step.rank, differs=False)
            step.origin = Origin.AGREED
        self._decide(step.draft.token, step.origin, step.score)

    def _correct(self, token: int) -> None:
        """The cloud drew another token than the first pending one: what followed that is void."""
        wrong, *behind = self._pending
        assert wrong.is_open, "what is decided stands"
        if wrong.is_uncertain:
            self._doubt.learn(wrong.rank, differs=True)
        else:
            self._num_late += 1
        if self._looks_at_kept:
            self._gaps[wrong.draft.position] = 0.0
        if behind:
            self._router.restore(behind[0].mark)
        self._drop_flights()
        self._pending.clear()
        self._unsent.clear()
        self._link.epoch += 1
        self._drafter.rollback(wrong.draft.position)
        self._drafter.commit(token)
        self._decide(token, Origin.CORRECTED, wrong.score)

    def _decide_alone(self, flight: Flight) -> None:
        """Its verdict is late, or will never come: the edge decides what it asked for.

        The cloud hears of it with the next batch; what else is in flight is sent again with it.
        """
        lost = [step for other in self._flights for step in other.steps]
        self._drop_flights()
        self._link.epoch += 1
        self._unsent = [] if self._link.lost else [*flight.steps, *lost, *self._unsent]
        for step in self._pending if self._link.lost else flight.steps:
            decide_here(step)
        self._decide_sure_ones()

    def _drop_flights(self) -> None:
        for flight in self._flights:
            flight.task.cancel()
            flight.task.add_done_callback(ignore)
        self._flights.clear()
        self._next = NOTHING


def decide_here(step: Step) -> None:
    """No verdict is to be had: the edge's token stands."""
    if step.is_uncertain:
        step.origin = Origin.FALLBACK
    step.is_uncertain = step.is_open = False
    step.doubt = 0.0


def doubt_of(steps: Iterable[Step]) -> float:
    """The probability that the cloud differs in one of them."""
    return 1 - math.prod(1 - step.doubt for step in steps)


def ignore(task: "asyncio.Task[Verdict]") -> None:
    """Its error, if it has one, is looked at: the loop would report it otherwise."""
    if not task.cancelled():
        task.exception()
