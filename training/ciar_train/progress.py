"""How long steps tell how far they are."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]  # done, total, what


def say_nothing(done: int, total: int, what: str) -> None:
    """The `Progress` of those who do not want to know."""
