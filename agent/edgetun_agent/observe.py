"""What the agent counts and what its display is told. Hot path: adding to plain ints, appending to one bounded ring.

Metrics read the counters when they are scraped; nothing is pushed. The ring is only filled when somebody looks at it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from edgetun_agent.udp_memory import PathState
from edgetun_core.errors import EdgetunError
from edgetun_core.http.message import RequestHead

RECENT = 200


class OriginCounters:
    """Of one origin, since the agent started. Plain ints."""

    __slots__ = (
        "answered",
        "bytes_received",
        "bytes_sent",
        "cancelled",
        "connects",
        "errors",
        "repeated",
        "requests",
        "statuses",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.answered = 0
        self.cancelled = 0
        self.statuses = [0, 0, 0, 0, 0, 0]
        """By class; index 5 is 5xx, index 1 counts accepted upgrades (101)."""
        self.errors: dict[str, int] = {}
        """By the error's metric label: at most one entry per kind of error."""
        self.bytes_received = 0
        """Of response bodies."""
        self.bytes_sent = 0
        """Of request bodies."""
        self.connects = 0
        self.repeated = 0


class AgentCounters:
    """Of the agent's sessions, since it started. Plain ints."""

    __slots__ = ("connect_failures", "fallbacks", "probes", "reconnects", "returns", "sessions_opened")

    def __init__(self) -> None:
        self.sessions_opened = 0
        self.reconnects = 0
        self.connect_failures = 0
        self.fallbacks = 0
        """Sessions that opened on TLS although QUIC was tried."""
        self.returns = 0
        """Sessions that went back to QUIC."""
        self.probes = {True: 0, False: 0}
        """Of QUIC while it was in doubt, by whether they were answered."""


class RequestLine(NamedTuple):
    """One finished exchange, for the display and for log lines."""

    at: float
    """Monotonic seconds of its end."""
    service: str
    head: RequestHead
    status: int
    duration_s: float
    bytes_received: int
    error: EdgetunError | None

    @property
    def method(self) -> str:
        """The method, printable."""
        return self.head.method.decode("ascii", "replace")

    @property
    def path(self) -> str:
        """The path, with the names of query parameters but not their values: those hold what people keep to themselves."""
        path, mark, query = self.head.target.decode("ascii", "replace").partition("?")
        if not mark:
            return path
        return (
            path + "?" + "&".join(part.partition("=")[0] + ("=…" if "=" in part else "") for part in query.split("&"))
        )


class RecentRequests:
    """The last exchanges, oldest first; one more pushes the oldest out."""

    __slots__ = ("lines", "seen")

    def __init__(self, capacity: int = RECENT) -> None:
        self.lines: deque[RequestLine] = deque(maxlen=capacity)
        self.seen = 0
        """How many there were in all."""

    def add(self, line: RequestLine) -> None:
        """Takes a finished exchange."""
        self.lines.append(line)
        self.seen += 1


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session as people see it."""

    node: str
    endpoint: str
    transport: str
    rtt_s: float | None
    in_flight: int
    is_draining: bool
    since: float
    """Monotonic seconds when it opened."""
    keep_alive_s: float = 0.0
    """How long its path is left silent."""
    udp_buffer_bytes: int = 0
    """What the kernel gives its UDP socket for receiving; 0 on TCP."""
    path: PathState = "preferred"
    """How its transport stands to the best one."""
    changes_in_s: float | None = None
    """When QUIC is tried, or gone back to, at the earliest; None on the best transport."""


class AgentListener(Protocol):
    """What a display or a log is told as it happens. Called on the event loop; must return at once."""

    def on_sessions_changed(self, sessions: list[SessionView]) -> None:
        """A session opened, closed, or began to drain."""

    def on_trouble(self, message: str) -> None:
        """Something a person should know and perhaps mend; said once per change, not per attempt."""

    def on_origin_changed(self, service: str, url: str, is_up: bool, error: str) -> None:
        """An origin became reachable, or stopped being so."""


class SilentListener:
    """An `AgentListener` that does nothing; a base for those that care for some of it."""

    def on_sessions_changed(self, sessions: list[SessionView]) -> None:
        pass

    def on_trouble(self, message: str) -> None:
        pass

    def on_origin_changed(self, service: str, url: str, is_up: bool, error: str) -> None:
        pass
