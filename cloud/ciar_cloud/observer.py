"""What engine and servicer tell the outside about their work.

They know no Prometheus; `metrics.py` implements this. Called from the model thread and from the
event loop: must be quick and must not raise.
"""

from collections.abc import Mapping
from typing import Protocol

from ciar.types import Timings

METHODS = ("GetModel", "PrefixInject", "VerifyBatch")
OTHER = "other"  # whatever else a caller without a key asks for


class Observer(Protocol):
    def step_ended(self, *, num_works: int, num_positions: int, seconds: float) -> None:
        """One forward pass over `num_works` sessions."""
        ...

    def work_ended(self, *, kind: str, timings: Timings) -> None:
        """kind: `prefix` or `verify`."""
        ...

    def tokens_verified(self, *, num_accepted: int, num_rejected: int) -> None:
        """Uncertain tokens of one batch that were compared with the cloud's own."""
        ...

    def slot_evicted(self) -> None:
        """An idle session lost its slot to another one."""
        ...

    def engine_died(self) -> None:
        """An engine process ended, and another one follows."""
        ...

    def request_ended(self, *, method: str, reason: str) -> None:
        """reason: empty, or the class of the error that ended the call, such as `Overloaded`."""
        ...

    def bytes_moved(self, *, num_up: int = 0, num_down: int = 0) -> None:
        """Message bytes from edges and to them."""
        ...

    def image_finished(
        self,
        *,
        tokens: Mapping[str, int],
        num_forwards: int,
        num_round_trips: int,
        num_resumes: int,
        seconds: float,
    ) -> None:
        """What an edge reports with its last message. tokens: counts by who decided them."""
        ...
