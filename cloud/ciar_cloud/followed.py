"""What a running cloud reads from files, and reads again when they change."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from ciar.errors import InvalidInput

log = logging.getLogger(__name__)

T = TypeVar("T")


class Followed(Generic[T]):
    """A value read from files. Files that turn wrong are logged, once, and change nothing.

    read: raises `InvalidInput`, which the constructor lets through.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._stamps = [stamp_of(path) for path in paths]
        self.value = read()

    def refresh(self) -> bool:
        """Look at the files; whether there is a new value."""
        stamps = [stamp_of(path) for path in self._paths]
        if stamps == self._stamps:
            return False
        self._stamps = stamps  # before they are read: what changes meanwhile is read next time
        try:
            self.value = self._read()
        except InvalidInput as error:
            log.error("what was read before stays: %s", error)
            return False
        log.info("read again: %s", ", ".join(map(str, self._paths)))
        return True


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Changes with the file; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
