"""Several engine processes behind the methods of one `Engine`: a process a device.

A session lives in the engine that has least to do when it opens. When an engine dies, its sessions
move to those that are up; where none is, they wait for its successor.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence

from ciar.errors import CloudUnavailable
from ciar.session import SessionState
from ciar.types import VerifyBatch
from ciar_cloud.engine_link import EngineLink, RemoteJob, RemoteSeat
from ciar_cloud.engine_process import EnginePlan
from ciar_cloud.observer import Observer
from ciar_cloud.scheduler import Outcome


class Fleet:
    """All methods are called from the event loop it was started in.

    max_queue: works that may wait for one engine.
    """

    def __init__(self, plans: Sequence[EnginePlan], *, max_queue: int, observer: Observer) -> None:
        self.died = asyncio.Event()  # set when an engine cannot be started again
        self.links = [
            EngineLink(
                plan,
                max_queue=max_queue,
                observer=observer,
                on_lost=self._move_away,
                on_failed=self.died.set,
            )
            for plan in plans
        ]
        self._numbers = itertools.count(1)
        self._is_stopped = False

    @property
    def is_ready(self) -> bool:
        return any(link.is_up for link in self.links)

    @property
    def num_waiting(self) -> int:
        return sum(link.backlog.num_waiting for link in self.links)

    @property
    def num_slots(self) -> int:
        return sum(link.num_slots for link in self.links)

    @property
    def num_slots_in_use(self) -> int:
        return sum(link.num_slots_in_use for link in self.links)

    @property
    def seconds_stuck(self) -> float:
        return max(link.seconds_stuck for link in self.links)

    async def start(self) -> None:
        """Start all processes. Raises what the first raised that cannot start; none runs then."""
        try:
            await asyncio.gather(*(link.start() for link in self.links))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        self._is_stopped = True
        await asyncio.gather(*(link.stop() for link in self.links))

    def end_stuck(self, seconds: float) -> None:
        """End processes that have had work and no step for so long: others take their places."""
        for link in self.links:
            if link.seconds_stuck >= seconds:
                link.kill()

    def check_room(self, caller: str = "", *, share: float = 1.0) -> None:
        """Raise `Overloaded` when the work of a new session would have to wait behind too many."""
        self._least_loaded().backlog.check_room(caller, share=share)

    def open(self, state: SessionState, *, caller: str = "") -> RemoteSeat:
        """A place for a session, in one of the engines."""
        link = self._least_loaded()
        seat = RemoteSeat(number=next(self._numbers), state=state, caller=caller, link=link)
        link.adopt(seat)
        return seat

    def close(self, seat: RemoteSeat) -> None:
        """Drop the session's works and free its slot."""
        if not seat.is_closed:
            seat.is_closed = True
            seat.link.leave(seat)
            seat.jobs.clear()

    def draw(
        self,
        seat: RemoteSeat,
        until: int,
        deliver: Callable[[Outcome], None],
        *,
        deadline: float = math.inf,
    ) -> None:
        """As `Engine.draw`."""
        assert until > len(seat.state.tokens), "nothing to draw"
        self._submit(self._job(seat, deliver, deadline, until=until))

    def verify(
        self,
        seat: RemoteSeat,
        batch: VerifyBatch,
        deliver: Callable[[Outcome], None],
        *,
        deadline: float = math.inf,
    ) -> None:
        """As `Engine.verify`."""
        self._submit(self._job(seat, deliver, deadline, batch=batch))

    def _job(
        self,
        seat: RemoteSeat,
        deliver: Callable[[Outcome], None],
        deadline: float,
        *,
        batch: VerifyBatch | None = None,
        until: int = 0,
    ) -> RemoteJob:
        return RemoteJob(
            number=next(self._numbers),
            seat=seat,
            deliver=deliver,
            accepted=time.monotonic(),
            deadline=deadline,
            batch=batch,
            until=until,
        )

    def _submit(self, job: RemoteJob) -> None:
        if self._is_stopped or self.died.is_set():
            raise CloudUnavailable("the engine has stopped")
        if not job.seat.is_closed:
            job.seat.link.submit(job)

    def _least_loaded(self) -> EngineLink:
        """Of those that are up, if any is."""

        def load(link: EngineLink) -> tuple[bool, float, int]:
            return (
                not link.is_up,
                len(link.seats) / max(1, link.num_slots),
                link.backlog.num_waiting,
            )

        return min(self.links, key=load)

    def _move_away(self, lost: EngineLink) -> None:
        if self.is_ready:
            for seat in list(lost.seats.values()):
                lost.leave(seat)
                self._least_loaded().adopt(seat)
