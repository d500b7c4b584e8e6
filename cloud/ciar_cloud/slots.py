"""KV slots as leases: a fixed number, handed to whoever has work, taken back from whoever is idle.

A session without a slot loses nothing but time: its state rebuilds the cache in another slot. Only
idle holders can lose theirs, least recently used first, and only after `min_idle_seconds`: sessions
that ask every few milliseconds would otherwise take each other's slots in turns, each time for a
rebuild. Whoever has waited for PATIENCE_SECONDS takes that of any idle holder, so that images share
too few slots by turns of about that long, and none waits for others to be finished.
"""

import math
from typing import Generic, Protocol, TypeVar

from ciar.errors import InvalidInput


class Holder(Protocol):
    """Who may hold a slot."""

    slot: int | None
    idle_since: float  # clock time since which it has no work; infinity while it has some

    def forget_slot(self) -> None:
        """The slot was given to another one."""
        ...


H = TypeVar("H", bound=Holder)

PATIENCE_SECONDS = 3.0  # less is more rebuilding, more is longer waits


class SlotPool(Generic[H]):
    """`num_slots` slots, 0..num_slots-1. Not thread-safe: its owner holds a lock."""

    def __init__(self, num_slots: int, *, min_idle_seconds: float = 0.25) -> None:
        if num_slots < 1:
            raise InvalidInput("slots", num_slots, "give at least 1")
        self.num_slots = num_slots
        self.min_idle_seconds = min_idle_seconds
        self.num_evictions = 0
        self._free = list(range(num_slots - 1, -1, -1))
        self._holders: dict[int, H] = {}

    @property
    def num_in_use(self) -> int:
        return len(self._holders)

    def lease(self, holder: H, *, now: float, waiting_since: float = math.inf) -> bool:
        """Give `holder` a slot, if need be that of an idle one; false when none can be had now.

        waiting_since: when its work came.
        """
        assert holder.slot is None, "holds a slot already"
        if not self._free:
            victim = min(self._holders.values(), key=lambda h: h.idle_since)
            if self._idle_enough_at(victim.idle_since, waiting_since) > now:
                return False
            self.release(victim)
            victim.forget_slot()
            self.num_evictions += 1
        slot = self._free.pop()
        self._holders[slot] = holder
        holder.slot = slot
        return True

    def release(self, holder: H) -> None:
        """Take the slot back; a holder without one is left alone."""
        if holder.slot is None:
            return
        owner = self._holders.pop(holder.slot)
        assert owner is holder, "two holders of one slot"
        self._free.append(holder.slot)
        holder.slot = None

    def next_lease_at(self, waiting_since: float = math.inf) -> float:
        """When `lease` may succeed: -inf with a free slot, inf while all holders work."""
        if self._free:
            return -math.inf
        idle_since = min(h.idle_since for h in self._holders.values())
        return self._idle_enough_at(idle_since, waiting_since)

    def _idle_enough_at(self, idle_since: float, waiting_since: float) -> float:
        is_tired_at = waiting_since + PATIENCE_SECONDS
        return min(idle_since + self.min_idle_seconds, max(idle_since, is_tired_at))
