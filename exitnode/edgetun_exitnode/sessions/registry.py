"""Which sessions serve which tunnel, and the visitors who wait for one.

One `ServicePool` per tunnel. A session that drains or dies is out at once; a new login with the same session id replaces
the old session, so a laptop that was black-holed owns its hostname again as soon as it is back.

Several agents may serve one tunnel: requests go to the least busy of them for its weight, and to one on standby only while there
is no other, here or (pipeline/forward.py) at another exit node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from edgetun_exitnode.pipeline.forward import MAX_WAITING, Remote, Session

FORGET_S = 30.0
"""How long after the last session was lost visitors still wait for the next one: the agent's longest backoff."""


PICKS_PER_CHOICE = 32


class Cancellable(Protocol):
    """What a scheduler returns."""

    def cancel(self) -> None: ...


Schedule = Callable[[float, Callable[[], None]], Cancellable]


class _Waiter:
    __slots__ = ("callback", "deadline")

    def __init__(self, callback: Callable[[], None], deadline: float) -> None:
        self.callback = callback
        self.deadline = deadline


class _Member:
    """What a session is worth to its pool."""

    __slots__ = ("is_standby", "turn", "weight")

    def __init__(self, weight: int, is_standby: bool, turn: float) -> None:
        self.weight = weight
        self.is_standby = is_standby
        self.turn = turn
        """What it has had, for its weight: among equally busy ones the least has its turn."""


class ServicePool:
    """The sessions of one tunnel. Times are the monotonic clock's seconds."""

    __slots__ = (
        "_burst",
        "_clock",
        "_current",
        "_lost_at",
        "_members",
        "_schedule",
        "_timer",
        "_waiters",
        "is_on_standby",
        "remote",
        "sessions",
        "share",
    )

    def __init__(self, clock: Callable[[], float], schedule: Schedule, remote: Remote | None = None) -> None:
        self.remote = remote
        self.sessions: list[Session] = []
        self.share = 0
        """The summed weight of the sessions that are not on standby; where all are, theirs, negative. 0 without a session."""
        self.is_on_standby = False
        """Whether there are sessions, and all of them are on standby."""
        self._members: dict[Session, _Member] = {}
        self._current: Session | None = None
        self._burst = 0
        self._clock = clock
        self._schedule = schedule
        self._lost_at = clock()
        self._waiters: dict[_Waiter, None] = {}
        self._timer: Cancellable | None = None

    def pick(self, avoid: Session | None) -> Session | None:
        """The session with the fewest exchanges in flight for its weight, in turn among equals; `avoid` only when there is no other.

        The choice stands for `PICKS_PER_CHOICE` exchanges: what goes down one session within a loop tick leaves in one write.
        """
        current = self._current
        if self._burst and current is not avoid:
            self._burst -= 1
            return current
        if not self.sessions:
            return None
        chosen = self._current = self._choose(avoid)
        self._burst = PICKS_PER_CHOICE - 1
        return chosen

    def _choose(self, avoid: Session | None) -> Session | None:
        sessions = self.sessions
        if len(sessions) == 1:
            return sessions[0]
        best: Session | None = None
        least = (True, 0.0, 0.0)
        for session in sessions:
            if session is avoid:
                continue
            member = self._members[session]
            load = (member.is_standby, session.in_flight / member.weight, member.turn)
            if best is None or load < least:
                best, least = session, load
        if best is None:
            return sessions[0] if sessions else None
        member = self._members[best]
        member.turn += PICKS_PER_CHOICE / member.weight
        return best

    def wait(self, callback: Callable[[], None], grace_s: float, is_hopeful: bool) -> Callable[[], None] | None:
        """See `SessionPool.wait`. `callback` runs once: when a session is up, or when the grace is over."""
        now = self._clock()
        if (now - self._lost_at > FORGET_S and not is_hopeful) or len(self._waiters) >= MAX_WAITING:
            return None
        waiter = _Waiter(callback, now + grace_s)
        self._waiters[waiter] = None
        if self._timer is None:
            self._timer = self._schedule(grace_s, self._sweep)
        return lambda: self._forget(waiter)

    def _forget(self, waiter: _Waiter) -> None:
        self._waiters.pop(waiter, None)

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock()
        overdue = [waiter for waiter in self._waiters if waiter.deadline <= now]
        for waiter in overdue:
            self._waiters.pop(waiter, None)
        if self._waiters:
            soonest = min(waiter.deadline for waiter in self._waiters)
            self._timer = self._schedule(max(0.01, soonest - now), self._sweep)
        for waiter in overdue:
            waiter.callback()

    def add(self, session: Session, weight: int = 1, is_standby: bool = False) -> None:
        if session not in self._members:
            self.sessions.append(session)
            # As far as the others: a newcomer has no claim to what went by before it came.
            turn = min((member.turn for member in self._members.values()), default=0.0)
            self._members[session] = _Member(weight, is_standby, turn)
            self._changed()
        self.wake()

    def wake(self) -> None:
        """Those who wait look again: a session is up, here or at another exit node, or there is none to wait for."""
        waiters, self._waiters = self._waiters, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in waiters:
            waiter.callback()

    def remove(self, session: Session) -> None:
        if self._members.pop(session, None) is not None:
            self.sessions.remove(session)
            if self._current is session:
                self._current = None
            self._changed()
            if not self.sessions:
                self._lost_at = self._clock()

    def _changed(self) -> None:
        self._burst = 0
        members = self._members.values()
        share = sum(member.weight for member in members if not member.is_standby)
        self.share = share or -sum(member.weight for member in members)
        self.is_on_standby = self.share < 0

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def answers_itself(self) -> bool:
        """Whether what comes here goes to a session of this node: not without one, nor where another node has better than standbys."""
        if not self.is_on_standby:
            return bool(self.sessions)
        return self.remote is None or not self.remote.has_primary


class SessionRegistry:
    """Every pool of this node. Pools are kept while a tunnel is configured or a session serves it."""

    def __init__(
        self, clock: Callable[[], float], schedule: Schedule, is_configured: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._clock = clock
        self._schedule = schedule
        self._is_configured = is_configured
        self._pools: dict[str, ServicePool] = {}
        self._remote_of: Callable[[str], Remote | None] = lambda _: None
        self._services: dict[Session, tuple[str, ...]] = {}

    def pool(self, service: str) -> ServicePool:
        """The pool of a tunnel (`"namespace/name"`), made on first use."""
        pool = self._pools.get(service)
        if pool is None:
            pool = self._pools[service] = ServicePool(self._clock, self._schedule, self._remote_of(service))
        return pool

    def use_mesh(self, remote_of: Callable[[str], Remote]) -> None:
        """Other exit nodes are there for what this one holds no session of."""
        self._remote_of = remote_of
        for service, pool in self._pools.items():
            pool.remote = remote_of(service)

    def wake(self, service: str) -> None:
        """Those who wait for a session of the tunnel look again."""
        pool = self._pools.get(service)
        if pool is not None:
            pool.wake()

    def share(self, service: str) -> int:
        """See `ServicePool.share`; 0: this node holds no session of the tunnel."""
        pool = self._pools.get(service)
        return pool.share if pool is not None else 0

    def shares(self) -> dict[str, int]:
        """The tunnels that this node holds a session of."""
        return {service: pool.share for service, pool in self._pools.items() if pool.sessions}

    def answers_itself(self, service: str) -> bool:
        """See `ServicePool.answers_itself`."""
        pool = self._pools.get(service)
        return pool is not None and pool.answers_itself

    def add(self, session: Session, services: Iterable[str], *, weight: int = 1, is_standby: bool = False) -> None:
        """A session is up for these tunnels. Waiting visitors go on at once."""
        self._services[session] = tuple(services)
        for service in self._services[session]:
            self.pool(service).add(session, weight, is_standby)

    def remove(self, session: Session) -> None:
        """A session drains or is gone: no new exchange goes to it. Idempotent."""
        for service in self._services.pop(session, ()):
            pool = self.pool(service)
            pool.remove(session)
            if not pool.sessions and not self._is_configured(service):
                del self._pools[service]

    def forget(self, services: Iterable[str]) -> None:
        """These tunnels are no longer configured: their pools go, now or with the last session that serves them."""
        for service in services:
            pool = self._pools.get(service)
            if pool is not None and not pool.sessions:
                del self._pools[service]

    @property
    def services(self) -> list[str]:
        """Every tunnel that has a pool."""
        return list(self._pools)

    @property
    def sessions(self) -> list[Session]:
        return list(self._services)

    def services_of(self, session: Session) -> tuple[str, ...]:
        return self._services.get(session, ())
