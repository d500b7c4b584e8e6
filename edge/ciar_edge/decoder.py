"""One image on its way, wave by wave: whom the router trusts decides.

A wave is a token in raster order, and one token each of several rows along a wavefront
(`ciar.order`). Every token is decided once, in this order. What was kept after the last verdict is
never sent. A verdict that agrees brings the cloud's token at the next position along: if that one
is uncertain too, it needs no call. While the cloud answers, the edge drafts on, in case its tokens
stand: that changes no token, only when the work is done. Both are left out while the cloud hardly
ever agrees.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ciar.router import Router
from ciar.verifier import Session
from ciar_edge.agreement import Agreement
from ciar_edge.drafter import Draft, Drafter
from ciar_edge.link import Answer, Link
from ciar_edge.result import ImageResult, Observer, Origin, origins_of

_TOKENS_PER_TICK = 4  # drafted without letting other tasks of the event loop run
_SEND_SECONDS = 0.002  # until a batch is on the wire, which drafting in between would delay


@dataclass(frozen=True, eq=False, slots=True)
class Routed:
    """A draft, and who is to decide."""

    draft: Draft
    score: float
    is_uncertain: bool


class Decoder:
    """What is decided so far of an image. link: None when there is no cloud."""

    def __init__(
        self,
        drafter: Drafter,
        router: Router,
        link: Link | None,
        *,
        observer: Observer,
        started: float,
    ) -> None:
        self._drafter, self._router, self._link = drafter, router, link
        self._observer = observer
        self._agreement = Agreement()
        self._order, self._num_tokens = drafter.order, drafter.model.config.num_tokens
        self._next_tick = self._num_told = 0
        self._tokens: list[int] = []
        self._origins: list[Origin] = []
        self._scores: list[float] = []
        self._gaps: dict[int, float] = {}
        self._num_late = 0
        self._unknown_words: tuple[str, ...] = ()
        self._started = started
        self._prefix_seconds = self._draft_seconds = self._ahead_seconds = 0.0
        if link is None:
            observer.on_start(num_tokens=self._num_tokens, num_prefix=0)

    def take_prefix(self, session: Session) -> None:
        prefix = session.prefix
        self._prefix_seconds = time.perf_counter() - self._started
        self._unknown_words = prefix.unknown_words
        self._observer.on_start(num_tokens=self._num_tokens, num_prefix=len(prefix.tokens))
        for token in prefix.tokens:
            self._decide(token, Origin.PREFIX)
        self._drafter.commit(*prefix.tokens)

    async def decode(self) -> None:
        """`blocking`, and `offline` without a link."""
        while len(self._tokens) < self._num_tokens:
            wave = self._routed_wave()
            while wave:
                if self._link and wave[0].is_uncertain:
                    await self._resolve(wave, self._link)
                else:
                    self._keep(wave.pop(0))
            await self._tick()

    def _routed_wave(self) -> list[Routed]:
        """The next tokens, without one that the last verdict brought along: that is decided."""
        wave: list[Routed] = []
        started = time.perf_counter()
        for draft in self._drafter.draft_wave():
            one = Routed(draft, *self._router.decide(draft.cell, draft.head))
            self._draft_seconds += self._drafted(started)
            token = self._bonus(one)
            if token is None:
                wave.append(one)
            else:
                self._router.refund()
                is_same = token == draft.token
                self._commit(one, token, Origin.AGREED if is_same else Origin.CORRECTED)
            started = time.perf_counter()
        return wave

    def _bonus(self, one: Routed) -> int | None:
        """The cloud's token, if the last verdict brought it along and it would be asked for."""
        if self._link is None or not one.is_uncertain:
            return None
        return self._link.take_bonus(one.draft.position)

    def _keep(self, one: Routed) -> None:
        if self._link:
            self._link.keep(one.draft)
        self._commit(one, one.draft.token, Origin.KEPT)

    async def _resolve(self, wave: list[Routed], link: Link) -> None:
        """Ask for the uncertain tokens of a wave, and take out of it what is decided then.

        As many as fit into a batch; a difference ends what one answer decides.
        """
        within = wave[: link.max_batch_tokens]
        count = 1 + max(index for index, one in enumerate(within) if one.is_uncertain)
        asked = wave[:count]
        answer = await self._ask(asked, link, wants_next=count == len(wave))
        num_agreed = count if answer is None else answer.num_agreed
        for one in asked[:num_agreed]:
            if answer is None:
                link.keep(one.draft)
            agreed = Origin.FALLBACK if answer is None else Origin.AGREED
            self._commit(one, one.draft.token, agreed if one.is_uncertain else Origin.KEPT)
        if answer is not None:
            flags = [one.is_uncertain for one in asked]
            self._agreement.learn(sum(flags[:num_agreed]), sum(flags))
            if num_agreed < count:
                assert answer.token is not None, "a difference names the cloud's token"
                self._commit(asked[num_agreed], answer.token, Origin.CORRECTED)
        del wave[: min(num_agreed + 1, count)]

    async def _ask(self, asked: Sequence[Routed], link: Link, *, wants_next: bool) -> Answer | None:
        """Ask the cloud; both sides prepare for drafts that stand, if that is likely."""
        is_likely = self._agreement.is_likely
        drafts, flags = [one.draft for one in asked], [one.is_uncertain for one in asked]
        asking = asyncio.create_task(link.ask(drafts, flags, wants_next=wants_next and is_likely))
        try:
            await asyncio.wait([asking], timeout=_SEND_SECONDS)
            if is_likely and not asking.done():
                self._draft_one_more()
            return await asking
        finally:
            asking.cancel()

    def _draft_one_more(self) -> None:
        """The wave that follows if the drafts of this one stand, while the cloud answers."""
        started = time.perf_counter()
        for draft in self._drafter.draft_ahead():
            self._router.prepare(draft.cell, draft.head)
            self._ahead_seconds += self._drafted(started)
            started = time.perf_counter()

    def _drafted(self, started: float) -> float:
        """Tell of the drafts made since; the seconds since, which those of a wave share."""
        seconds = time.perf_counter() - started
        new = self._drafter.drafted[self._num_told :]
        self._num_told += len(new)
        for cell in new:
            self._observer.on_draft(position=cell, seconds=seconds / len(new))
        return seconds

    def _commit(self, one: Routed, token: int, origin: Origin) -> None:
        self._drafter.commit(token)
        self._decide(token, origin, one.score)

    def _decide(self, token: int, origin: Origin, score: float = math.nan) -> None:
        cell = self._order.cells[len(self._tokens)]
        self._tokens.append(token)
        self._origins.append(origin)
        self._scores.append(score)
        self._observer.on_token(position=cell, token=token, origin=origin, score=score)

    async def _tick(self) -> None:
        """Let keepalive, cancellation and other images have their turn."""
        if self._drafter.position >= self._next_tick:
            self._next_tick = self._drafter.position + _TOKENS_PER_TICK
            await asyncio.sleep(0)

    def result(self) -> ImageResult:
        link = self._link
        traffic = link.traffic if link else None
        if link:
            link.report(origins_of(self._origins))
        gaps = [self._gaps.get(position, math.nan) for position in range(self._num_tokens)]
        result = ImageResult(
            tokens=self._order.to_raster(self._tokens),
            origins=self._order.to_raster(self._origins),
            scores=self._order.to_raster(self._scores),
            gaps=self._order.to_raster(gaps),
            late=self._num_late,
            unknown_words=self._unknown_words,
            lost=link.lost if link else "",
            epochs=link.epoch if link else 0,
            cloud_forwards=link.num_forwards if link else 0,
            cloud_positions=link.num_positions if link else 0,
            drafts=self._drafter.num_drafts,
            round_trips=link.num_round_trips if link else 0,
            resumes=link.num_resumes if link else 0,
            uplink_bytes=traffic.uplink_bytes if traffic else 0,
            downlink_bytes=traffic.downlink_bytes if traffic else 0,
            seconds=time.perf_counter() - self._started,
            prefix_seconds=self._prefix_seconds,
            draft_seconds=self._draft_seconds + (link.feature_seconds if link else 0.0),
            ahead_seconds=self._ahead_seconds,
            wait_seconds=link.wait_seconds if link else 0.0,
            cloud_queue_seconds=link.queue_seconds if link else 0.0,
            cloud_compute_seconds=link.compute_seconds if link else 0.0,
        )
        self._observer.on_finish(result)
        return result
