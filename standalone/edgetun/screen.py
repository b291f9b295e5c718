"""The live display of a command in the foreground: gathers what `display.render` shows, twice a second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live

from edgetun.display import DisplayState, OriginRow, RecentRow, SessionRow, UrlRow, render
from edgetun_agent.observe import RecentRequests
from edgetun_agent.origin.health import HealthState
from edgetun_agent.serve import Origins
from edgetun_exitnode.node import ExitNode

EVERY_S = 0.5
RATES = 60
RECENT_ROWS = 20


class _Warnings(logging.Handler):
    """Keeps the last warnings for the display, which owns the terminal while it runs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=3)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line in self.lines:
            self.lines.remove(line)
        self.lines.append(line)


class Screen:
    """What is shown, gathered anew for each picture."""

    def __init__(
        self,
        node: ExitNode,
        urls: Callable[[], Sequence[tuple[str, str]]],
        recent: RecentRequests | None,
        origins: Origins | None,
        warnings: _Warnings,
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._node = node
        self._urls = urls
        self._recent = recent
        self._origins = origins
        self._warnings = warnings
        self._notes = notes
        self._started = time.monotonic()
        self._rates: deque[float] = deque(maxlen=RATES)
        self._total = node.context.counters.requests_total
        self._at = self._started
        # A recent request carries monotonic seconds; people read the clock on the wall.
        self._wall_offset = time.time() - time.monotonic()

    def gather(self) -> DisplayState:
        """The state of this moment."""
        now = time.monotonic()
        node, counters = self._node, self._node.context.counters
        total = counters.requests_total
        if now > self._at:
            self._rates.append((total - self._total) / (now - self._at))
        self._total, self._at = total, now
        return DisplayState(
            urls=[UrlRow(url, target) for url, target in self._urls()],
            sessions=self._sessions(),
            origins=self._origin_rows(),
            live=node.exchanges_in_flight,
            total=total,
            rates=tuple(self._rates),
            outcomes=node.cache_outcomes(),
            origin_requests=sum(plan.counters.forwarded for plan in node.router.table.plans.values()),
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
            notes=tuple(self._notes()),
            recent=self._recent_rows(),
            warnings=tuple(self._warnings.lines),
            up_s=now - self._started,
        )

    def _sessions(self) -> list[SessionRow]:
        rows = []
        for session in self._node.acceptor.admitted():
            runner = session.runner
            hello = runner.hello
            rows.append(
                SessionRow(
                    hello.agent_id if hello is not None else "",
                    runner.transport,
                    rtt_ms=None if runner.rtt_s is None else runner.rtt_s * 1000,
                    since_s=max(0.0, time.time() - session.since),
                )
            )
        return rows

    def _origin_rows(self) -> list[OriginRow]:
        if self._origins is None:
            return []
        rows = []
        for client in self._origins.clients:
            state = client.health.state
            is_up = None if state is HealthState.UNKNOWN else state is HealthState.UP
            rows.append(OriginRow(client.service, client.url, is_up, client.health.last_error))
        return rows

    def _recent_rows(self) -> list[RecentRow]:
        if self._recent is None:
            return []
        return [
            RecentRow(
                time.strftime("%H:%M:%S", time.localtime(line.at + self._wall_offset)),
                line.method,
                line.path,
                line.status if line.error is None else line.error.presentation.status,
                line.duration_s * 1e6,
            )
            for line in list(self._recent.lines)[-RECENT_ROWS:]
        ]


async def run_screen(
    node: ExitNode,
    urls: Callable[[], Sequence[tuple[str, str]]],
    recent: RecentRequests | None,
    origins: Origins | None,
    notes: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Shows the display until it is cancelled."""
    warnings = _Warnings()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [warnings]
    console = Console()
    screen = Screen(node, urls, recent, origins, warnings, notes)
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                width, height = console.size
                live.update(render(screen.gather(), width=width, height=height, ascii_only=ascii_only), refresh=True)
                await asyncio.sleep(EVERY_S)
    finally:
        root.handlers = handlers
