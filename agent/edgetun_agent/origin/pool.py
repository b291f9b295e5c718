"""Which connection serves which request: idle connections last in, first out, and a bounded queue for when all are busy.

Pure bookkeeping: the client does the dialling and writing. `Conn` is anything with `idle_since` and `idle_until`.

Bounds: at most `max_connections` are open or being opened, `max_waiting` requests queue for one (the next is refused),
and `MAX_STREAMS` connections that became endless streams (upgrades, event streams) live beside them: those would
otherwise fill a pool with tabs that are merely open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

MAX_STREAMS = 10_000
SURELY_ALIVE_S = 2.0
"""A request that must not be sent twice takes no connection that idled longer: servers close theirs after 5 s and later."""


class Idling(Protocol):
    """What the pool reads of a connection."""

    idle_since: float
    idle_until: float


Conn = TypeVar("Conn", bound=Idling)
Waiter = TypeVar("Waiter", bound=Hashable)


class Pool(Generic[Conn, Waiter]):
    """The connections of one origin."""

    __slots__ = ("busy_streams", "idle", "max_connections", "max_waiting", "open", "opening", "reopening", "waiting")

    def __init__(self, max_connections: int, max_waiting: int) -> None:
        self.max_connections = max_connections
        self.max_waiting = max_waiting
        self.idle: list[Conn] = []
        self.open: set[Conn] = set()
        self.busy_streams: set[Conn] = set()
        self.opening = 0
        """Connections being opened for whoever waits longest."""
        self.reopening = 0
        """Connections being opened for one request each, whose first connection turned out to be dead."""
        self.waiting: OrderedDict[Waiter, float] = OrderedDict()
        """Waiter -> its deadline, the oldest first."""

    @property
    def in_flight(self) -> int:
        """Exchanges that are served or wait to be."""
        return len(self.open) - len(self.idle) + len(self.busy_streams) + len(self.waiting)

    @property
    def is_empty(self) -> bool:
        """Nothing here has a deadline to watch."""
        return not (self.open or self.busy_streams or self.waiting)

    def take(self, now: float, may_repeat: bool) -> Conn | None:
        """The connection that was used last, if it is good for this request."""
        if not self.idle:
            return None
        conn = self.idle[-1]
        if not may_repeat and now - conn.idle_since > SURELY_ALIVE_S:
            return None
        return self.idle.pop()

    def enqueue(self, waiter: Waiter, deadline: float) -> bool:
        """Puts a request in the queue; False when the queue is full."""
        if len(self.waiting) - self.opening >= self.max_waiting:
            return False  # those for whom a connection is being opened do not count
        self.waiting[waiter] = deadline
        return True

    def forget(self, waiter: Waiter) -> None:
        """Takes a request out of the queue, wherever it stands."""
        self.waiting.pop(waiter, None)

    def next_waiter(self) -> Waiter | None:
        """Takes the oldest request out of the queue."""
        return self.waiting.popitem(last=False)[0] if self.waiting else None

    def dials_wanted(self) -> int:
        """How many connections to start opening now."""
        room = self.max_connections - len(self.open) - self.opening - self.reopening
        return max(0, min(len(self.waiting) - self.opening, room))

    def stalest(self) -> Conn | None:
        """The idle connection to give up when a new one is needed and there is no room; None when there is room or none."""
        if self.idle and len(self.open) + self.opening + self.reopening >= self.max_connections:
            return self.idle[0]
        return None

    def add(self, conn: Conn) -> None:
        """A connection was opened; it is busy until `give_back`."""
        self.open.add(conn)

    def give_back(self, conn: Conn, now: float, keep_s: float) -> Waiter | None:
        """A connection is free again: returns the request it serves next, or keeps it as idle."""
        if self.waiting:
            return self.waiting.popitem(last=False)[0]
        conn.idle_since = now
        conn.idle_until = now + keep_s
        self.idle.append(conn)
        return None

    def lend(self, conn: Conn) -> bool:
        """Moves a connection that became a stream out of the count; False when there are too many of those."""
        if len(self.busy_streams) >= MAX_STREAMS:
            return False
        self.open.discard(conn)
        self.busy_streams.add(conn)
        return True

    def remove(self, conn: Conn) -> None:
        """A connection is gone. Idempotent."""
        self.open.discard(conn)
        self.busy_streams.discard(conn)
        if conn in self.idle:
            self.idle.remove(conn)

    def expired(self, now: float) -> list[Waiter]:
        """Takes out the requests that waited past their deadlines. All wait equally long, so the oldest come first."""
        gone: list[Waiter] = []
        while self.waiting:
            waiter, deadline = next(iter(self.waiting.items()))
            if deadline > now:
                break
            del self.waiting[waiter]
            gone.append(waiter)
        return gone
