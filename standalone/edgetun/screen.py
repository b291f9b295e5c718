"""The live display of a command in the foreground: what it shows of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgetun_agent.observe import RecentRequests
from edgetun_agent.screen import origin_rows, recent_rows
from edgetun_agent.serve import Origins
from edgetun_core.terminal.display import DisplayState, SessionRow, UrlRow
from edgetun_core.terminal.live import Rates, show
from edgetun_exitnode.node import ExitNode


class Screen:
    """What is shown, gathered anew for each picture."""

    def __init__(
        self,
        node: ExitNode,
        urls: Callable[[], Sequence[tuple[str, str]]],
        recent: RecentRequests | None,
        origins: Origins | None,
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._node = node
        self._urls = urls
        self._recent = recent
        self._origins = origins
        self._notes = notes
        self._rates = Rates(node.context.counters.requests_total)

    def gather(self, warnings: Sequence[str]) -> DisplayState:
        """The state of this moment."""
        node, counters = self._node, self._node.context.counters
        total = counters.requests_total
        return DisplayState(
            urls=[UrlRow(url, target) for url, target in self._urls()],
            sessions=self._sessions(),
            origins=origin_rows(self._origins) if self._origins is not None else (),
            live=node.exchanges_in_flight,
            total=total,
            rates=self._rates.note(total),
            outcomes=node.cache_outcomes(),
            origin_requests=sum(plan.counters.forwarded for plan in node.router.table.plans.values()),
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
            notes=tuple(self._notes()),
            recent=recent_rows(self._recent, self._rates) if self._recent is not None else (),
            warnings=warnings,
            up_s=time.monotonic() - self._rates.started,
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


async def run_screen(
    node: ExitNode,
    urls: Callable[[], Sequence[tuple[str, str]]],
    recent: RecentRequests | None,
    origins: Origins | None,
    notes: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Shows the display until it is cancelled."""
    await show(Screen(node, urls, recent, origins, notes).gather)
