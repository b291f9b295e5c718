"""What is known of one origin, whichever protocol it speaks: counts, health, the requests of late. Base of its clients."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from edgetun_agent.observe import OriginCounters, RecentRequests, RequestLine
from edgetun_agent.origin.health import HealthState, OriginHealth
from edgetun_core.errors import Cancelled, EdgetunError
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.snapshot import OriginRule


class OriginRecord:
    """One origin as displays, metrics and health checks see it; subclasses send the requests."""

    def __init__(
        self,
        rule: OriginRule,
        *,
        service: str = "",
        recent: RecentRequests | None = None,
        on_health: Callable[[OriginRecord], None] | None = None,
        record: OriginRecord | None = None,
    ) -> None:
        """`record`: another one of the same origin, whose counts and health this one shares."""
        self.rule = rule
        self.service = service
        self.url = rule.url
        self.recent = recent
        self.counters: OriginCounters = OriginCounters() if record is None else record.counters
        self.health: OriginHealth = OriginHealth() if record is None else record.health
        self._on_health = on_health

    @property
    def in_flight(self) -> int:
        """Exchanges under way, those that wait for a connection included."""
        raise NotImplementedError

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        raise NotImplementedError

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Starts an exchange; see the rules in `edgetun_core.http.exchange`."""
        raise NotImplementedError

    def probe(self, path: str, client: ResponseSink) -> RequestSink:
        """A GET for a health check: like `open`, but not counted."""
        raise NotImplementedError

    async def reach(self) -> None:
        """Finds out whether the origin takes connections; raises `UpstreamUnreachable` or `UpstreamTimeout`."""
        raise NotImplementedError

    async def close(self, deadline_s: float = 0.0) -> None:
        """Ends everything; exchanges under way may end by themselves within `deadline_s`, then they are reset."""
        raise NotImplementedError

    def ended(
        self, head: RequestHead, status: int, started: float, bytes_received: int, error: EdgetunError | None
    ) -> None:
        """Counts a finished exchange, and shows it. Hot path."""
        counters = self.counters
        counters.bytes_received += bytes_received
        if error is None:
            counters.answered += 1
            counters.statuses[status // 100] += 1
            if self.health.state is not HealthState.UP and not self.rule.health_path:
                self.saw_answer()
        elif isinstance(error, Cancelled):
            counters.cancelled += 1
        else:
            label = error.presentation.label
            counters.errors[label] = counters.errors.get(label, 0) + 1
            self.health.failed(str(error), monotonic())
        if self.recent is not None:
            self.show(head, status, started, bytes_received, error)

    def show(
        self, head: RequestHead, status: int, started: float, bytes_received: int, error: EdgetunError | None
    ) -> None:
        """Adds a finished exchange to the requests of late."""
        if self.recent is not None:
            now = monotonic()
            self.recent.add(RequestLine(now, self.service, head, status, now - started, bytes_received, error))

    def saw_answer(self) -> None:
        """The origin is there."""
        if self.health.answered(monotonic()) and self._on_health is not None:
            self._on_health(self)

    def saw_unreachable(self, error: EdgetunError) -> None:
        """The origin is not there, or not well."""
        if self.health.unreachable(str(error), monotonic()) and self._on_health is not None:
            self._on_health(self)
