"""Asks a cloud how it is, again and again, while something else is measured."""

import asyncio
import time
from typing import Self

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ciar.wire import SERVICE_NAME

PAUSE_SECONDS = 0.1  # between an answer and the next question
TIMEOUT_SECONDS = 30.0


class HealthWatch:
    """Alive and ready, each ten times a second.

    seconds: of all answers.  num_unwell: answers other than SERVING.
    """

    def __init__(self, address: str) -> None:
        self._channel = aio.insecure_channel(address)
        self._tasks: list[asyncio.Task[None]] = []
        self.seconds: list[float] = []
        self.num_unwell = 0

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._ask(name)) for name in ("", SERVICE_NAME)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Raises what a question failed with."""
        failed = [task for task in self._tasks if task.done()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()
        for task in failed:
            task.result()

    async def _ask(self, service: str) -> None:
        stub = health_pb2_grpc.HealthStub(self._channel)
        request = health_pb2.HealthCheckRequest(service=service)
        while True:
            started = time.monotonic()
            answer = await stub.Check(request, timeout=TIMEOUT_SECONDS)  # type: ignore[attr-defined]
            self.seconds.append(time.monotonic() - started)
            self.num_unwell += answer.status != health_pb2.HealthCheckResponse.SERVING
            await asyncio.sleep(PAUSE_SECONDS)
