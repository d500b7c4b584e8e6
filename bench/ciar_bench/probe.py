"""Asks a cloud how it is, again and again, while something else is measured."""

import asyncio
from typing import Self

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ciar.wire import SERVICE_NAME

PERIOD_SECONDS = 0.1
TIMEOUT_SECONDS = 30.0


class HealthWatch:
    """Alive and ready, each ten times a second, however long answers take.

    seconds: of all answers, from when the question was due.  num_unwell: answers other than
    SERVING, and questions that failed.
    """

    def __init__(self, address: str) -> None:
        self._channel = aio.insecure_channel(address)
        self._asked: list[asyncio.Task[None]] = []
        self._asking: asyncio.Task[None] | None = None
        self.seconds: list[float] = []
        self.num_unwell = 0

    async def __aenter__(self) -> Self:
        self._asking = asyncio.create_task(self._ask_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for the answers that are due."""
        if self._asking:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        try:
            await asyncio.gather(*self._asked)
        finally:
            await self._channel.close()

    async def _ask_on(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            for name in ("", SERVICE_NAME):
                self._asked.append(asyncio.create_task(self._ask(name, due)))
            due += PERIOD_SECONDS
            await asyncio.sleep(max(0.0, due - clock()))

    async def _ask(self, service: str, due: float) -> None:
        stub = health_pb2_grpc.HealthStub(self._channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = await stub.Check(request, timeout=TIMEOUT_SECONDS)  # type: ignore[attr-defined]
            is_well = answer.status == health_pb2.HealthCheckResponse.SERVING
        except aio.AioRpcError:
            is_well = False
        self.seconds.append(asyncio.get_running_loop().time() - due)
        self.num_unwell += not is_well
