"""The error tree, with the exit code that a command returns for each.

    CiarError                    1
    ├── MissingExtra             1   a library of an optional extra is not installed
    ├── InvalidInput             2   a field of the user's or the peer's is wrong (a ValueError)
    ├── CloudUnavailable         3   no cloud there, or it is going away
    │   ├── DeadlineExceeded     3   it did not answer in time
    │   └── Overloaded           3   its queue is full; `retry_seconds` says when to come back
    ├── PairMismatch             4   edge and cloud hold different checkpoints
    ├── CheckpointError          5   a model folder is incomplete, damaged or of another kind
    ├── OutputError              6   the picture could not be written
    ├── SessionLost              7   the cloud no longer holds this session: resume it
    ├── EngineError              8   the model step failed
    └── AccessDenied             9   the cloud wants an API key, or does not know the one it got

One table in `status.py` (re-exported by `wire.py`) maps it to gRPC status codes and back.
"""

from typing import Any


class CiarError(Exception):
    """Anything CIAR reports on purpose."""

    exit_code = 1


class InvalidInput(CiarError, ValueError):
    """`field` has a `value` that cannot be used; `remedy` says what to give instead."""

    exit_code = 2

    def __init__(self, field: str, value: Any, remedy: str) -> None:
        self.field = field
        self.value = shorten(value)
        self.remedy = remedy
        super().__init__(f"{field}: {self.value}: {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, for other processes: `__init__` takes no message, and would shorten again."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class MissingExtra(CiarError):
    """A library of an optional extra is not installed; the message names the extra."""


class CloudUnavailable(CiarError):
    """There is no cloud at the address."""

    exit_code = 3


class DeadlineExceeded(CloudUnavailable):
    """The cloud did not answer within the call's deadline."""


class TryLater(CloudUnavailable):
    """The cloud takes no image now. Come back after `retry_seconds`."""

    def __init__(self, message: str, *, retry_seconds: float = 0.5) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(message)


class Overloaded(TryLater):
    """The cloud's queue or slots are full."""


class Draining(TryLater):
    """The cloud is shutting down; another one may be behind the address by then."""


class PairMismatch(CiarError):
    """Edge and cloud hold checkpoints that were not trained for each other."""

    exit_code = 4


class CheckpointError(CiarError, ValueError):
    """A model folder is missing, incomplete, damaged or of another kind."""

    exit_code = 5


class OutputError(CiarError, OSError):
    """The picture could not be written."""

    exit_code = 6


class SessionLost(CiarError):
    """The cloud no longer holds this session (evicted, restarted, another replica): resume it."""

    exit_code = 7


class EngineError(CiarError):
    """A model step failed, or gave what cannot be right; only the sessions in it are lost."""

    exit_code = 8


class AccessDenied(CiarError):
    """The cloud wants an API key, or does not know the one it got."""

    exit_code = 9


def shorten(value: Any, *, max_chars: int = 80) -> str:
    """`repr(value)` cut to a length that fits one line of an error message."""
    text = repr(value)
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."
