"""Open sessions by id, and who owns them.

PrefixInject opens a session under a short lease; the stream that attaches within it owns the
session from then on and frees it when it ends, however it ends. A lease that runs out frees it too.
Lives in the event loop.
"""

import asyncio
import secrets
from dataclasses import dataclass

from ciar.errors import CloudUnavailable, Overloaded, SessionLost
from ciar.session import SessionState
from ciar_cloud.engine import Engine
from ciar_cloud.scheduler import Seat


@dataclass(eq=False, slots=True)
class OpenSession:
    id: str
    seat: Seat
    lease: asyncio.TimerHandle | None = None  # None while a call or a stream owns the session


class SessionRegistry:
    """At most `max_sessions` at a time; ids cannot be guessed."""

    def __init__(self, engine: Engine, *, max_sessions: int, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._engine = engine
        self._max_sessions = max_sessions
        self._sessions: dict[str, OpenSession] = {}
        self._is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._sessions)

    def check_room(self) -> None:
        """Raise what `open` would, before work is spent on a request."""
        if self._is_draining:
            raise CloudUnavailable("the cloud is shutting down")
        if len(self._sessions) >= self._max_sessions:
            raise Overloaded(f"{self._max_sessions} sessions are open", retry_seconds=1.0)
        self._engine.check_room()

    def open(self, state: SessionState) -> OpenSession:
        """A session that the caller owns: it must `grant` or `close` it."""
        self.check_room()
        session = OpenSession(id=secrets.token_urlsafe(18), seat=self._engine.open(state))
        self._sessions[session.id] = session
        self._is_empty.clear()
        return session

    def grant(self, session: OpenSession) -> None:
        """Leave the session to the stream that attaches in time."""
        loop = asyncio.get_running_loop()
        session.lease = loop.call_later(self.lease_seconds, self.close, session)

    def attach(self, session_id: str) -> OpenSession:
        """Take a granted session over. Raises `SessionLost`."""
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionLost("no such session: its lease ran out, or the cloud was restarted")
        if session.lease is None:
            raise SessionLost("the session belongs to another stream")
        session.lease.cancel()
        session.lease = None
        return session

    def close(self, session: OpenSession) -> None:
        """Free the session and its slot; closing twice is harmless."""
        if session.lease is not None:
            session.lease.cancel()
        if self._sessions.pop(session.id, None) is not None:
            self._engine.close(session.seat)
        if not self._sessions:
            self._is_empty.set()

    async def drain(self, *, grace_seconds: float) -> None:
        """Take no new session, and wait for the open ones to end, `grace_seconds` at most."""
        self._is_draining = True
        try:
            await asyncio.wait_for(self._is_empty.wait(), grace_seconds)
        except TimeoutError:
            for session in list(self._sessions.values()):
                self.close(session)
