"""The event loop of both processes: uvloop's where there is one."""

import asyncio
import sys
from collections.abc import Callable

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def fast_loop() -> LoopFactory:
    """For `asyncio.Runner`."""
    if sys.platform == "win32":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop
