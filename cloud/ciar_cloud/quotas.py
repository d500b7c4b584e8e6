"""What a caller may have open and begin, by its key's limits. For one event loop."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ciar.errors import Overloaded
from ciar_cloud.keys import Caller

MINUTE = 60.0


@dataclass(slots=True)
class Bucket:
    """A token bucket: so many images may begin at once, and no more than that a minute."""

    left: float
    updated: float


class Quotas:
    """Sessions and image rates of callers, by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}

    def check(self, caller: Caller) -> None:
        """Raise `Overloaded` where `begin` would."""
        most = caller.limits.max_sessions
        if most and self._sessions[caller.name] >= most:
            raise Overloaded(f"this key has {most} sessions open, its limit", retry_seconds=1.0)
        rate = caller.limits.images_per_minute
        if rate and (left := self._bucket(caller).left) < 1:
            raise Overloaded(
                f"this key began {rate} images within a minute, its limit",
                retry_seconds=(1 - left) * MINUTE / rate,
            )

    def begin(self, caller: Caller) -> None:
        """A session of the caller begins; `end` must follow."""
        self.check(caller)
        if caller.limits.images_per_minute:
            self._bucket(caller).left -= 1
        self._sessions[caller.name] += 1

    def end(self, caller: Caller) -> None:
        self._sessions[caller.name] -= 1
        if not self._sessions[caller.name]:
            del self._sessions[caller.name]

    def _bucket(self, caller: Caller) -> Bucket:
        """As full as it is by now."""
        now, rate = self._clock(), caller.limits.images_per_minute
        bucket = self._buckets.setdefault(caller.name, Bucket(rate, now))
        bucket.left = min(rate, bucket.left + (now - bucket.updated) * rate / MINUTE)
        bucket.updated = now
        return bucket
