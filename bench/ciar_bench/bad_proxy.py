"""A TCP proxy that treats connections badly, by dice: it delays, cuts and swallows."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

READ_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What happens to a connection, and after how many seconds of it (on average).

    max_delay: of each piece that it carries, in seconds.
    swallowed_share: of the connections that end; they carry nothing any more and stay open, so
    that only keepalive finds them. The others are cut.
    """

    max_delay: float = 0.03
    life_seconds: float = 3.0
    swallowed_share: float = 0.1


class BadProxy:
    """Carries to `target`, a HOST:PORT.  counts: what was done, by kind."""

    def __init__(self, target: str, treatment: Treatment, *, seed: int = 0) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._treatment = treatment
        self._dice = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["BadProxy"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(asyncio.CancelledError, OSError):  # the proxy ends; nobody is there
                try:
                    await self._carry(reader, writer)
                finally:
                    await abort(writer)
        finally:
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._host, self._port)
        is_dead = asyncio.Event()
        pipes = [
            asyncio.create_task(self._pipe(reader, there[1], is_dead)),
            asyncio.create_task(self._pipe(there[0], writer, is_dead)),
        ]
        life = self._dice.expovariate(1 / self._treatment.life_seconds)
        is_swallowed = self._dice.random() < self._treatment.swallowed_share
        first = asyncio.FIRST_COMPLETED
        try:
            done, _ = await asyncio.wait(pipes, timeout=life, return_when=first)
            if done:
                return  # one of its ends has closed it
            self.counts["swallowed" if is_swallowed else "cut"] += 1
            is_dead.set()
            if is_swallowed:
                await asyncio.wait(pipes, return_when=first)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await abort(there[1])  # first, as the proxy may end while this does
            await asyncio.gather(*pipes, return_exceptions=True)

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_dead: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                await asyncio.sleep(self._dice.uniform(0, self._treatment.max_delay))
                if not is_dead.is_set():
                    self.counts["delayed"] += 1
                    writer.write(data)
                    await writer.drain()


async def abort(writer: asyncio.StreamWriter) -> None:
    """Close at once, what is buffered is lost; returns when it is closed."""
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()
