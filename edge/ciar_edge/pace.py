"""How far ahead of the cloud an optimistic edge drafts, and when it asks.

    r round trip   C step of the cloud   e draft of a token

Pure arithmetic on measured times, with no clock of its own.
"""

import math

from ciar.types import Verdict

MIN_WINDOW, MAX_WINDOW = 4, 96  # tokens drafted ahead
HOPE = 0.1  # least probability that the next draft is of use, for it to be made
CUT = 0.5  # probability of a difference among tokens not sent, at which they are
MAX_RUN_ON = 4  # tokens that the cloud draws on behind a difference
MEMORY = 0.8  # of measured times: how much is left after another one


class Pace:
    """Of one image."""

    def __init__(self) -> None:
        self._draft = self._trip = self._step = 0.0

    @property
    def window(self) -> int:
        """2 (r + 1.5 C) / e tokens: what two verdicts in a row leave time for.

        A verdict takes r + C, and half a step more behind another one. What is drafted beyond that
        could have waited.
        """
        if not self._draft:
            return MIN_WINDOW
        tokens = math.ceil(2 * (self._trip + 0.5 * self._step) / self._draft)
        return min(max(tokens, MIN_WINDOW), MAX_WINDOW)

    @property
    def most_flights(self) -> int:
        """Batches that keep the cloud busy: (r + C) / C. More would only wait there."""
        return max(1, round(min(self._num_steps, MAX_WINDOW)))

    @property
    def _num_steps(self) -> float:
        """(r + C) / C"""
        return self._trip / self._step if self._step else 0.0

    def may_draft(self, num_ahead: int, *, hope: float) -> bool:
        """hope: the probability that all tokens drafted ahead stand."""
        return num_ahead < self.window and hope >= HOPE

    @property
    def run_on(self) -> int:
        """Tokens the cloud had better draw on behind a difference: what a round trip has time for.

        Where the edge was wrong it often is again at once.
        """
        return int(min(max(self._num_steps - 1, 0.0), MAX_RUN_ON))

    def is_due(self, num_flights: int, *, doubt: float, can_draft: bool) -> bool:
        """Whether to ask now: if a difference is likely, or there is nothing else to do.

        A batch that is sent makes the next one wait in the cloud.

        doubt: the probability that the cloud differs in a token that is not sent yet.
        """
        return num_flights < self.most_flights and (doubt >= CUT or not can_draft)

    def drafted(self, seconds: float) -> None:
        self._draft = follow(self._draft, seconds)

    def answered(self, seconds: float, verdict: Verdict) -> None:
        timings = verdict.timings
        step = timings.compute_seconds / max(1, timings.num_forwards)
        others = timings.queue_seconds + timings.compute_seconds - step  # batches, drawing on
        self._trip = follow(self._trip, max(0.0, seconds - others))
        self._step = follow(self._step, step)


def follow(value: float, new: float) -> float:
    return MEMORY * value + (1 - MEMORY) * new if value else new
