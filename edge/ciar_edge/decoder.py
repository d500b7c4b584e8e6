"""One image on its way, token by token: whom the router trusts decides, and in `exact` the cloud.

Every token is decided once, in raster order. What was kept after the last verdict is never sent. A
verdict that agrees brings the cloud's token at the next position along: if that one is uncertain
too, it needs no call. While the cloud answers, the edge drafts on, in case its token stands: that
changes no token, only when the work is done. Both are left out while the cloud hardly ever agrees.
"""

import asyncio
import math
import time

from ciar.router import Router
from ciar.verifier import Session
from ciar_edge.agreement import Agreement
from ciar_edge.config import DecodeConfig
from ciar_edge.drafter import Draft, Drafter
from ciar_edge.link import Answer, Link
from ciar_edge.result import ImageResult, Observer, Origin, origins_of

_TOKENS_PER_TICK = 4  # drafted without letting other tasks of the event loop run
_SEND_SECONDS = 0.002  # until a batch is on the wire, which drafting in between would delay


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
        self._num_tokens = drafter.model.config.num_tokens
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
            started = time.perf_counter()
            draft = self._drafter.draft()
            score, is_uncertain = self._router.decide(draft.position, draft.head)
            self._draft_seconds += self._drafted(draft, started)
            token, origin = draft.token, Origin.KEPT
            if self._link and is_uncertain:
                token, origin = await self._resolve(draft, self._link)
            elif self._link:
                self._link.keep(draft)
            self._drafter.commit(token)
            self._decide(token, origin, score)
            await self._tick()

    async def _resolve(self, draft: Draft, link: Link) -> tuple[int, Origin]:
        """Who decides an uncertain token, and how."""
        token = link.take_bonus(draft.position)
        if token is not None:
            self._router.refund()
        else:
            answer = await self._ask(draft, link)
            if answer is None:
                link.keep(draft)
                return draft.token, Origin.FALLBACK
            self._agreement.learn(answer.num_agreed, 1)
            if answer.num_agreed or answer.token is None:
                return draft.token, Origin.AGREED
            token = answer.token
        return token, Origin.AGREED if token == draft.token else Origin.CORRECTED

    async def _ask(self, draft: Draft, link: Link) -> Answer | None:
        """Ask the cloud; both sides prepare for a draft that stands, if that is likely."""
        is_likely = self._agreement.is_likely
        asking = asyncio.create_task(link.ask([draft], wants_next=is_likely))
        try:
            await asyncio.wait([asking], timeout=_SEND_SECONDS)
            if is_likely and not asking.done():
                self._draft_one_more()
            return await asking
        finally:
            asking.cancel()

    def _draft_one_more(self) -> None:
        """What follows if the draft stands, while the cloud answers."""
        started = time.perf_counter()
        ahead = self._drafter.draft_ahead()
        if ahead is not None:
            self._router.prepare(ahead.position, ahead.head)
            self._ahead_seconds += self._drafted(ahead, started)

    async def decode_exactly(self, config: DecodeConfig) -> None:
        """`exact`: the base's own image, unless verifications are missed."""
        assert self._link
        most = min(config.max_draft, self._link.max_batch_tokens)
        while len(self._tokens) < self._num_tokens:
            drafts = await self._draft_run(min(most, self._agreement.run_length))
            answer = await self._link.ask(drafts)
            if answer is None:
                for draft in drafts:
                    self._link.keep(draft)
                    self._decide(draft.token, Origin.FALLBACK)
                continue
            self._agreement.learn(answer.num_agreed, len(drafts))
            for draft in drafts[: answer.num_agreed]:
                self._decide(draft.token, Origin.AGREED)
            self._drafter.rollback(len(self._tokens))
            if answer.token is not None:
                is_corrected = answer.num_agreed < len(drafts)
                self._link.take_bonus(len(self._tokens))
                self._decide(answer.token, Origin.CORRECTED if is_corrected else Origin.DRAWN)
                self._drafter.commit(answer.token)

    async def _draft_run(self, count: int) -> list[Draft]:
        """The edge's own next tokens, each drafted on the ones before."""
        drafts = []
        for _ in range(min(count, self._num_tokens - len(self._tokens))):
            started = time.perf_counter()
            draft = self._drafter.draft()
            self._draft_seconds += self._drafted(draft, started)
            self._drafter.commit(draft.token)
            drafts.append(draft)
            await self._tick()
        return drafts

    def _drafted(self, draft: Draft, started: float) -> float:
        """Tell of a draft; the seconds that it took."""
        seconds = time.perf_counter() - started
        self._observer.on_draft(position=draft.position, seconds=seconds)
        return seconds

    def _decide(self, token: int, origin: Origin, score: float = math.nan) -> None:
        position = len(self._tokens)
        self._tokens.append(token)
        self._origins.append(origin)
        self._scores.append(score)
        self._observer.on_token(position=position, token=token, origin=origin, score=score)

    async def _tick(self) -> None:
        """Let keepalive, cancellation and other images have their turn."""
        if self._drafter.position % _TOKENS_PER_TICK == 0:
            await asyncio.sleep(0)

    def result(self) -> ImageResult:
        link = self._link
        traffic = link.traffic if link else None
        if link:
            link.report(origins_of(self._origins))
        result = ImageResult(
            tokens=tuple(self._tokens),
            origins=tuple(self._origins),
            scores=tuple(self._scores),
            gaps=tuple(self._gaps.get(p, math.nan) for p in range(self._num_tokens)),
            late=self._num_late,
            unknown_words=self._unknown_words,
            lost=link.lost if link else "",
            epochs=link.epoch if link else 0,
            cloud_forwards=link.num_forwards if link else 0,
            cloud_positions=link.num_positions if link else 0,
            drafts=self._drafter.num_drafts,
            round_trips=link.num_round_trips if link else 0,
            resumes=traffic.num_resumes if traffic else 0,
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
