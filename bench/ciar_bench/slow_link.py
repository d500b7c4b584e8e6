"""How slow a link is, and when what enters a slow one leaves it.

    n bytes wait for the line, take 8 n / bandwidth on it, and behind it rtt / 2 and some jitter

Both directions are alike and know nothing of each other. A stream keeps its order: what follows a
lost piece waits until that was sent again, as behind TCP.
"""

import math
import random
from dataclasses import dataclass, fields

from ciar.errors import InvalidInput

SEGMENT_BYTES = 1448  # of TCP in an Ethernet frame: what is lost as a whole
LEAST_RESEND_SECONDS = 0.2  # Linux waits no less for an acknowledgement
MAX_SECONDS = 1.0  # beyond a few, sessions end before their edge has come
MAX_LOSS = 0.5


@dataclass(frozen=True, kw_only=True)
class SlowLink:
    """rtt: seconds there and back.  jitter: most seconds more, each way.
    bandwidth: bits a second each way, 0: no limit.  loss: share of segments lost.
    """

    rtt: float = 0.0
    jitter: float = 0.0
    bandwidth: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rtt", "jitter"):
            if not 0 <= getattr(self, name) <= MAX_SECONDS:
                value = f"{1e3 * getattr(self, name):g}"
                raise InvalidInput(name, value, "give milliseconds from 0 to 1000")
        if not 0 <= self.bandwidth < math.inf:
            value = f"{self.bandwidth / 1e6:g}"
            raise InvalidInput("bandwidth", value, "give Mbit/s above 0, or 0: no limit")
        if not 0 <= self.loss <= MAX_LOSS:
            raise InvalidInput("loss", f"{100 * self.loss:g}", "give percent from 0 to 50")

    @property
    def is_plain(self) -> bool:
        """Nothing is to be added to what carries it."""
        return not any(getattr(self, field.name) for field in fields(self))

    @property
    def resend_seconds(self) -> float:
        """What a loss costs."""
        return max(LEAST_RESEND_SECONDS, self.rtt)

    def __str__(self) -> str:
        parts = [f"RTT {1e3 * self.rtt:g} ms"]
        if self.jitter:
            parts.append(f"jitter {1e3 * self.jitter:g} ms")
        if self.bandwidth:
            parts.append(f"{self.bandwidth / 1e6:g} Mbit/s")
        if self.loss:
            parts.append(f"{100 * self.loss:g} % loss")
        return ", ".join(parts)


class Direction:
    """One way of one connection."""

    def __init__(self, link: SlowLink, dice: random.Random) -> None:
        self._link, self._dice = link, dice
        self._line_is_free = self._last_leaves = -math.inf

    def leaves(self, enters: float, num_bytes: int) -> float:
        """When what enters now is through; call it in order."""
        link = self._link
        self._line_is_free = max(enters, self._line_is_free)
        if link.bandwidth:
            self._line_is_free += 8 * num_bytes / link.bandwidth
        seconds = link.rtt / 2 + self._dice.uniform(0, link.jitter)
        num_segments = math.ceil(num_bytes / SEGMENT_BYTES)
        if self._dice.random() >= (1 - link.loss) ** num_segments:
            seconds += link.resend_seconds
        self._last_leaves = max(self._last_leaves, self._line_is_free + seconds)
        return self._last_leaves
