"""What a decoded image consists of, token by token, and what it cost.

cloud calls = cloud forward passes / T     (a prefix token is one, so is a verified batch, and so
                                            is a token drawn on behind a difference)
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ciar.types import Verdict, VerifyBatch


class Origin(StrEnum):
    """Who decided a token. The six counts sum to T."""

    PREFIX = "prefix"  # drawn by the cloud before the edge began
    KEPT = "kept"  # certain: the edge alone
    AGREED = "agreed"  # uncertain, and the cloud drew the same
    CORRECTED = "corrected"  # uncertain, and the cloud drew another
    DRAWN = "drawn"  # the cloud's, with no draft to compare; of images that were not finished
    FALLBACK = "fallback"  # uncertain, decided by the edge for want of an answer


CLOUD_DECIDED = frozenset((Origin.PREFIX, Origin.AGREED, Origin.CORRECTED, Origin.DRAWN))


@dataclass(frozen=True, kw_only=True)
class Origins:
    """How many tokens of an image came about in each way; all but `num_corrected` sum to T."""

    num_prefix: int
    num_kept: int
    num_agreed: int
    num_drawn: int
    num_corrected: int  # those of num_drawn that replaced a token of the edge
    num_fallback: int


def origins_of(decided: Sequence[Origin]) -> Origins:
    """Counts as the protocol has them: a corrected token is one that the cloud drew."""
    found = Counter(decided)
    return Origins(
        num_prefix=found[Origin.PREFIX],
        num_kept=found[Origin.KEPT],
        num_agreed=found[Origin.AGREED],
        num_drawn=found[Origin.DRAWN] + found[Origin.CORRECTED],
        num_corrected=found[Origin.CORRECTED],
        num_fallback=found[Origin.FALLBACK],
    )


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """A whole image.

    origins, scores, gaps: one per token; a score is NaN where no router looked, and a gap (how far
        the token falls short of what the cloud would have drawn, in nats) where the cloud did not
        look: everywhere but with `max_gap`.
    late: kept tokens that the cloud's verdict took back.
    lost: why the cloud was lost in mid-image; empty when it was not.
    cloud_forwards: forward passes in the cloud, those of answers that came too late left out.
    cloud_positions: fed in these.  drafts: made by the edge, those in vain among them.
    round_trips: answered batches.  resumes: sessions rebuilt on another stream.
    uplink_bytes, downlink_bytes: of the session, 0 when there is no wire.
    seconds: prompt in to last token known.  prefix_seconds: of these, until the prefix was there.
    draft_seconds: in the edge model, router and features, while nothing was waited for.
    wait_seconds: from batches to verdicts, of `blocking`; else with nothing to do but wait.
    ahead_seconds: drafting while an answer was on its way, of `blocking` within `wait_seconds`.
    cloud_queue_seconds, cloud_compute_seconds: as the cloud saw them, prefix included.
    """

    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    scores: tuple[float, ...]
    gaps: tuple[float, ...] = ()
    late: int = 0
    unknown_words: tuple[str, ...] = ()
    lost: str = ""
    epochs: int = 0
    cloud_forwards: int = 0
    cloud_positions: int = 0
    drafts: int = 0
    round_trips: int = 0
    resumes: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    seconds: float = 0.0
    prefix_seconds: float = 0.0
    draft_seconds: float = 0.0
    wait_seconds: float = 0.0
    ahead_seconds: float = 0.0
    cloud_queue_seconds: float = 0.0
    cloud_compute_seconds: float = 0.0

    @property
    def counts(self) -> dict[Origin, int]:
        """Tokens by origin, zeros included."""
        found = Counter(self.origins)
        return {origin: found[origin] for origin in Origin}

    @property
    def loss(self) -> float:
        """The share of the tokens that the edge kept which the cloud would not have drawn.

        Those that it took back among them. NaN if it did not look, or none was kept.
        """
        pairs = zip(self.gaps, self.origins, strict=False)  # no gaps: nobody looked
        gaps = [gap for gap, origin in pairs if origin is Origin.KEPT and not math.isnan(gap)]
        num_kept = len(gaps) + self.late
        return (sum(gap > 0 for gap in gaps) + self.late) / num_kept if num_kept else math.nan

    @property
    def prefix_tokens(self) -> int:
        return self.counts[Origin.PREFIX]

    @property
    def fallbacks(self) -> int:
        return self.counts[Origin.FALLBACK]

    @property
    def cloud_decided(self) -> int:
        """Tokens that the cloud drew or confirmed, prefix included."""
        return sum(origin in CLOUD_DECIDED for origin in self.origins)

    @property
    def cloud_calls(self) -> float:
        return self.cloud_forwards / len(self.tokens)


class Observer(Protocol):
    """Told what happens while it happens. Called between two tokens: be quick."""

    def on_start(self, *, num_tokens: int, num_prefix: int) -> None: ...

    def on_draft(self, *, position: int, seconds: float) -> None: ...

    def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None: ...

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None: ...

    def on_finish(self, result: ImageResult) -> None: ...


class Observers:
    """Several, told one after the other."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_start(self, *, num_tokens: int, num_prefix: int) -> None:
        for one in self._observers:
            one.on_start(num_tokens=num_tokens, num_prefix=num_prefix)

    def on_draft(self, *, position: int, seconds: float) -> None:
        for one in self._observers:
            one.on_draft(position=position, seconds=seconds)

    def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None:
        for one in self._observers:
            one.on_token(position=position, token=token, origin=origin, score=score)

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        for one in self._observers:
            one.on_call(batch=batch, verdict=verdict, seconds=seconds)

    def on_finish(self, result: ImageResult) -> None:
        for one in self._observers:
            one.on_finish(result)


class Silent:
    """An observer that does nothing."""

    def on_start(self, *, num_tokens: int, num_prefix: int) -> None:
        pass

    def on_draft(self, *, position: int, seconds: float) -> None:
        pass

    def on_token(self, *, position: int, token: int, origin: Origin, score: float) -> None:
        pass

    def on_call(self, *, batch: VerifyBatch, verdict: Verdict, seconds: float) -> None:
        pass

    def on_finish(self, result: ImageResult) -> None:
        pass
