"""Steps of a cloud in this process, held back while a test arranges what it wants to see."""

import asyncio
import threading
from typing import Any

from ciar.types import Verdict
from tests.cloud_client import Client, Link, thread_engine, uncertain


class HeldSteps:
    """The next step waits inside the model thread until `go_on`."""

    def __init__(self, client: Client) -> None:
        self._engine = thread_engine(client)
        self._run = self._engine._steps.run
        self._is_reached, self._may_go_on = threading.Event(), threading.Event()
        self._engine._steps.run = self._held  # type: ignore[method-assign]

    def _held(self, running: Any) -> Any:
        self._is_reached.set()
        assert self._may_go_on.wait(60), "nobody let the step go on"
        return self._run(running)

    def go_on(self) -> None:
        self._may_go_on.set()

    async def reached(self) -> None:
        """Wait until a step is held."""
        assert await asyncio.to_thread(self._is_reached.wait, 30)

    async def waiting(self, count: int) -> None:
        """Wait until so many works are in the queue."""
        async with asyncio.timeout(30):
            while self._engine.num_waiting < count:
                await asyncio.sleep(0.01)

    def batch(self, link: Link, position: int, tokens: list[int]) -> "asyncio.Task[Verdict]":
        return asyncio.create_task(link.verify(uncertain(position, tokens)))
