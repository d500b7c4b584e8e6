"""The edge's end of a session: what the cloud is known to know, and what it has still to hear.

    tokens 0 .. num_acknowledged-1   known to both sides
    kept                             what the edge decided alone since, in order, next to them

Invariant, but for `optimistic`, which says where its batches start: every one starts at
`num_acknowledged`. So after a missed deadline nothing needs
repair: the edge decides alone and repeats all of it in the next batch, under a higher epoch that
makes what the cloud did with the late one void.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ciar.errors import (
    AccessDenied,
    CloudUnavailable,
    DeadlineExceeded,
    EngineError,
    PairMismatch,
    SessionLost,
)
from ciar.types import ModelInfo, Verdict, VerifyBatch, no_features
from ciar.verifier import Session
from ciar_edge.drafter import Draft, Drafter
from ciar_edge.result import Observer, Origins

# Of the cloud, or of another one that took its place: the image is finished alone. `InvalidInput`
# is not among them: it would be a mistake of this side.
LOST = (CloudUnavailable, SessionLost, EngineError, PairMismatch, AccessDenied)


class Traffic(Protocol):
    uplink_bytes: int
    downlink_bytes: int
    num_resumes: int


@runtime_checkable
class Metered(Protocol):
    """A session that has a wire."""

    traffic: Traffic


@runtime_checkable
class Reporting(Protocol):
    """A session that passes on how the tokens of the image came about."""

    def report(self, origins: Origins) -> None: ...


@dataclass(frozen=True)
class Answer:
    """num_agreed: of the drafts asked about, from the first.

    token: the cloud's own behind them; None if nothing is behind them, or was wanted there.
    """

    num_agreed: int
    token: int | None


class Link:
    """One image's conversation with the cloud.

    sends_features: whether batches bring the features of kept tokens along.
    brings_next: whether verdicts may bring tokens of the cloud along that nobody asked about.
    """

    def __init__(
        self,
        session: Session,
        drafter: Drafter,
        info: ModelInfo,
        *,
        sends_features: bool,
        brings_next: bool,
        observer: Observer,
    ) -> None:
        prefix = session.prefix
        self.max_batch_tokens = min(info.max_batch_tokens, drafter.order.max_batch_tokens)
        self.num_acknowledged = len(prefix.tokens)
        self.epoch = 0
        self.lost = ""  # why the session is gone for good
        self.num_forwards = prefix.num_calls
        self.num_positions = prefix.timings.num_positions
        self.num_round_trips = 0
        self.feature_seconds = self.wait_seconds = 0.0
        self.queue_seconds = prefix.timings.queue_seconds
        self.compute_seconds = prefix.timings.compute_seconds
        self._session, self._drafter, self._observer = session, drafter, observer
        self._sends_features, self._no_features = sends_features, no_features(info.feature_dim)
        self._brings_next = brings_next
        self._kept: list[Draft] = []
        self._bonus: int | None = None  # the cloud's token at `num_acknowledged`, if it is known

    @property
    def traffic(self) -> Traffic | None:
        return self._session.traffic if isinstance(self._session, Metered) else None

    @property
    def num_resumes(self) -> int:
        return self.traffic.num_resumes if self.traffic else 0

    def report(self, origins: Origins) -> None:
        """The image is whole: tell the cloud's end who decided what."""
        if isinstance(self._session, Reporting):
            self._session.report(origins)

    def keep(self, draft: Draft) -> None:
        """The edge decided alone: the cloud hears of it with the next batch."""
        self._kept.append(draft)

    def take_bonus(self, position: int) -> int | None:
        """The cloud's own token at `position`, if the last verdict brought it along.

        Taking it decides the token.
        """
        if self._bonus is None or position != self.num_acknowledged:
            return None
        token, self._bonus = self._bonus, None
        self.num_acknowledged += 1
        return token

    async def ask(
        self, drafts: Sequence[Draft], uncertain: Sequence[bool], *, wants_next: bool = True
    ) -> Answer | None:
        """Have consecutive drafts, next to what was kept, verified; None when the edge must decide
        them alone.

        wants_next: also what follows them, should all of them stand.
        """
        if self.lost:
            return None
        assert len(drafts) <= self.max_batch_tokens, "the caller keeps to the limit"
        try:
            while len(self._kept) + len(drafts) > self.max_batch_tokens:
                await self._verify(self._kept[: self.max_batch_tokens], (), ())
            return await self._verify(self._kept, drafts, uncertain, wants_next=wants_next)
        except DeadlineExceeded:
            self.epoch += 1
        except LOST as error:
            self.lose(error)
        return None

    async def _verify(
        self,
        kept: Sequence[Draft],
        drafts: Sequence[Draft],
        uncertain: Sequence[bool],
        *,
        wants_next: bool = True,
    ) -> Answer:
        flags = [False] * len(kept) + [*uncertain]
        batch = self.batch([*kept, *drafts], flags, wants_next=wants_next)
        started = time.perf_counter()
        try:
            verdict = await self.verify(batch)
        finally:
            self.wait_seconds += time.perf_counter() - started
        num_agreed = verdict.num_agreed - len(kept)
        assert 0 <= num_agreed <= len(drafts), "kept tokens stand, and no others are agreed to"
        self.num_acknowledged += verdict.num_agreed
        self._bonus = verdict.token
        if num_agreed < len(drafts):
            self.epoch += 1
            self.num_acknowledged += 1  # the caller takes the cloud's token
            self._bonus = None
        del self._kept[: len(kept)]
        return Answer(num_agreed, verdict.token)

    async def verify(self, batch: VerifyBatch) -> Verdict:
        """The cloud's verdict, counted. Raises what the session raises."""
        started = time.perf_counter()
        verdict = await self._session.verify(batch)
        self._account(verdict)
        seconds = time.perf_counter() - started
        self._observer.on_call(batch=batch, verdict=verdict, seconds=seconds)
        return verdict

    def batch(
        self,
        drafts: Sequence[Draft],
        uncertain: Sequence[bool],
        *,
        position: int | None = None,
        wants_next: bool = False,
        num_decided: int = 0,
        run_on: int = 0,
    ) -> VerifyBatch:
        """Consecutive drafts, some of them uncertain, as they are sent.

        position: None is the next one to be acknowledged.
        """
        started = time.perf_counter()
        kept = [draft for draft, flag in zip(drafts, uncertain, strict=True) if not flag]
        sends = kept and self._sends_features
        features = self._drafter.features(kept) if sends else self._no_features
        self.feature_seconds += time.perf_counter() - started
        return VerifyBatch(
            position=self.num_acknowledged if position is None else position,
            tokens=tuple(draft.token for draft in drafts),
            uncertain=tuple(uncertain),
            features=features,
            epoch=self.epoch,
            wants_next=wants_next and self._brings_next,
            num_decided=num_decided,
            run_on=run_on if self._brings_next else 0,
        )

    def lose(self, error: Exception) -> None:
        """The session is gone for good: the rest of the image is the edge's."""
        self.lost = str(error) or type(error).__name__

    def _account(self, verdict: Verdict) -> None:
        timings = verdict.timings
        self.num_round_trips += 1
        self.num_forwards += verdict.num_calls
        self.num_positions += timings.num_positions
        self.queue_seconds += timings.queue_seconds
        self.compute_seconds += timings.compute_seconds
