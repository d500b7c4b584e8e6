"""Open sessions by id, and who owns them.

PrefixInject opens a session under a short lease; the stream that attaches within it owns the
session from then on and frees it when it ends, however it ends. A lease that runs out frees it too.
Lives in the event loop.
"""

import asyncio
import secrets
from dataclasses import dataclass

from ciar.errors import Draining, Overloaded, SessionLost
from ciar.session import SessionState
from ciar_cloud.engines import AnyEngine, Place
from ciar_cloud.keys import ANYONE, Caller
from ciar_cloud.quotas import Quotas


@dataclass(eq=False, slots=True)
class OpenSession:
    id: str
    seat: Place
    caller: Caller
    lease: asyncio.TimerHandle | None = None  # None while a call or a stream owns the session


class SessionRegistry:
    """At most `max_sessions` at a time, and of a caller what its key allows.

    Ids cannot be guessed, and are of use to who opened the session alone.
    """

    def __init__(self, engine: AnyEngine, *, max_sessions: int, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._engine = engine
        self._max_sessions = max_sessions
        self._sessions: dict[str, OpenSession] = {}
        self._quotas = Quotas()
        self._is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._sessions)

    def check_room(self, caller: Caller = ANYONE) -> None:
        """Raise what `open` would, before work is spent on a request."""
        if self._is_draining:
            raise Draining("the cloud is shutting down", retry_seconds=1.0)
        if len(self._sessions) >= self._max_sessions:
            raise Overloaded(f"{self._max_sessions} sessions are open", retry_seconds=1.0)
        self._quotas.check(caller)
        self._engine.check_room(caller.name, share=caller.limits.queue_share)

    def open(self, state: SessionState, caller: Caller = ANYONE) -> OpenSession:
        """A session for who calls this: `grant` or `close` must follow."""
        self.check_room(caller)
        self._quotas.begin(caller)
        seat = self._engine.open(state, caller=caller.name)
        session = OpenSession(id=secrets.token_urlsafe(18), seat=seat, caller=caller)
        self._sessions[session.id] = session
        self._is_empty.clear()
        return session

    def grant(self, session: OpenSession) -> None:
        """Leave the session to the stream that attaches in time."""
        loop = asyncio.get_running_loop()
        session.lease = loop.call_later(self.lease_seconds, self.close, session)

    def attach(self, session_id: str, caller: Caller = ANYONE) -> OpenSession:
        """Take a granted session over. Raises `SessionLost`.

        Another's session is none: nobody learns whether an id is in use.
        """
        session = self._sessions.get(session_id)
        if session is None or session.caller.name != caller.name:
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
            self._quotas.end(session.caller)
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
