"""How much is waiting, by caller, and when that is too much.

Refused are only works that open sessions: a session that has begun is worth finishing, and what it
can queue is bounded by its stream.
"""

from collections import Counter

from ciar.errors import Overloaded

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0


class Backlog:
    """Works that no step has taken yet. Not thread-safe: its owner holds a lock.

    num_slots: how many works may run at a time.
    """

    def __init__(self, *, max_queue: int, num_slots: int) -> None:
        self.max_queue = max_queue
        self.num_slots = num_slots
        self._waiting: Counter[str] = Counter()
        self._work_seconds = 0.05  # running mean of what one work costs

    @property
    def num_waiting(self) -> int:
        return self._waiting.total()

    def add(self, caller: str) -> None:
        self._waiting[caller] += 1

    def remove(self, caller: str, count: int = 1) -> None:
        self._waiting[caller] -= count
        if not self._waiting[caller]:
            del self._waiting[caller]

    def note_cost(self, seconds: float) -> None:
        """What a work that is done took."""
        self._work_seconds += 0.1 * (seconds - self._work_seconds)

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
        wait = self._work_seconds * self.num_waiting / self.num_slots
        raise Overloaded(text, retry_seconds=min(max(wait, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS))
