"""Ctrl-C and SIGTERM end the edge in good order, whenever they come.

A signal's exception can get lost: C code that is importing a module may swallow it. So the signal
is noted as well, and a coroutine that is about to start ends at once when one was.
"""

import asyncio
import signal
from collections.abc import Coroutine
from types import FrameType, TracebackType
from typing import Any, TypeVar

from ciar.event_loop import fast_loop

T = TypeVar("T")
EXIT_TERMINATED = 143
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ending:
    """While it is entered, both signals raise: KeyboardInterrupt, and SystemExit with 143."""

    def __init__(self) -> None:
        self._came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Ending":
        self._before = {number: signal.signal(number, self._end) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """To its end on a loop of its own; a signal cancels it, so that it can clean up first."""
        try:
            with asyncio.Runner(loop_factory=fast_loop()) as runner:
                return runner.run(self._until_it_ends(coroutine))
        finally:
            for number in SIGNALS:  # the loop had handlers of its own
                signal.signal(number, self._end)

    async def _until_it_ends(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(coroutine)

        def end(number: int) -> None:
            self._came = number
            task.cancel()

        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        if self._came is not None:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if self._came is None:
                raise
        raise self._error()

    def _end(self, number: int, _: FrameType | None) -> None:
        self._came = number
        raise self._error()

    def _error(self) -> BaseException:
        return KeyboardInterrupt() if self._came == signal.SIGINT else SystemExit(EXIT_TERMINATED)
