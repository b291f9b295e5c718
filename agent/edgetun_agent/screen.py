"""The live display of an agent: its public URLs, its sessions and what they run on, the local server, and the last requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgetun_agent.connect import Agent
from edgetun_agent.observe import RecentRequests, SessionView
from edgetun_agent.origin.health import HealthState
from edgetun_agent.serve import Origins
from edgetun_core.terminal.display import DisplayState, OriginRow, RecentRow, SessionRow, UrlRow
from edgetun_core.terminal.live import Rates, show

RECENT_ROWS = 20


class AgentScreen:
    """What is shown, gathered anew for each picture."""

    def __init__(
        self, agent: Agent, origins: Origins, recent: RecentRequests, urls: Callable[[], Sequence[tuple[str, str]]]
    ) -> None:
        self._agent = agent
        self._origins = origins
        self._recent = recent
        self._urls = urls
        self._rates = Rates(self._total())

    def _total(self) -> int:
        return sum(client.counters.requests for client in self._origins.clients)

    def gather(self, warnings: Sequence[str]) -> DisplayState:
        """The state of this moment."""
        total = self._total()
        counters = [client.counters for client in self._origins.clients]
        return DisplayState(
            urls=[UrlRow(url, target) for url, target in self._urls()],
            sessions=session_rows(self._agent),
            origins=origin_rows(self._origins),
            live=sum(view.in_flight for view in self._agent.sessions),
            total=total,
            rates=self._rates.note(total),
            origin_requests=total,
            bytes_in=sum(one.bytes_sent for one in counters),
            bytes_out=sum(one.bytes_received for one in counters),
            recent=recent_rows(self._recent, self._rates),
            warnings=warnings,
            up_s=time.monotonic() - self._rates.started,
        )


def session_rows(agent: Agent) -> list[SessionRow]:
    """A row for each session, and one that says so when there is none."""
    rows = [
        SessionRow(
            view.node,
            view.transport,
            "draining" if view.is_draining else "connected",
            rtt_ms=None if view.rtt_s is None else view.rtt_s * 1000,
            since_s=max(0.0, time.monotonic() - view.since),
            note=path_note(view),
        )
        for view in agent.sessions
    ]
    return rows or [SessionRow("no exit node", "connecting again", "lost")]


def path_note(view: SessionView) -> str:
    """Why a session is not on the best transport, in the words of the display."""
    left = f"{view.changes_in_s or 0.0:.0f} s"
    match view.path:
        case "preferred":
            return ""
        case "fallback":
            return f"QUIC does not get through, next try in {left}"
        case "recovering":
            return f"QUIC answers again, back to it in {left}"


def origin_rows(origins: Origins) -> list[OriginRow]:
    """A row for each local server."""
    rows = []
    for client in origins.clients:
        state = client.health.state
        is_up = None if state is HealthState.UNKNOWN else state is HealthState.UP
        rows.append(OriginRow(client.service, client.url, is_up, client.health.last_error))
    return rows


def recent_rows(recent: RecentRequests, rates: Rates) -> list[RecentRow]:
    """The last requests, oldest first."""
    return [
        RecentRow(
            rates.clock(line.at),
            line.method,
            line.path,
            line.status if line.error is None else line.error.presentation.status,
            line.duration_s * 1e6,
        )
        for line in list(recent.lines)[-RECENT_ROWS:]
    ]


async def run_screen(
    agent: Agent, origins: Origins, recent: RecentRequests, urls: Callable[[], Sequence[tuple[str, str]]]
) -> None:
    """Shows the display until it is cancelled."""
    await show(AgentScreen(agent, origins, recent, urls).gather)
