"""What control asks of exit nodes by itself. Pure.

- A region that its pool wants empty lets its agents go as soon as that is written, before its pods do.
- An agent that holds no session where it is placed (it fell back on another region while its own was away) is brought home.
- Sessions are spread over a region's exit nodes, so that those that came later take their share.

An agent itself moves when a renewal tells it of another place (`/v1/watch`): that needs no order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from edgetun_core.fleet_identity import ExitNodeName

HOME_AFTER_S: Final = 30.0
"""How long an agent is away before it is brought home, so that one that is on its way there by itself is left alone."""
HOME_AFTER_MOST_S: Final = 3600.0
"""An agent that does not come home when it is told (it cannot reach the region, say) is told ever more rarely."""
TOO_MANY: Final = 1.5
TOO_MANY_BY: Final = 10
"""A node gives sessions away when it has this many times the mean of its region, and this many more."""
SPREAD_AFTER_S: Final = 15.0
MOST_MOVES: Final = 32
"""Of one node in one look: agents connect anew, and shall not do so all at once."""

Region = tuple[str, str]
"""Pool and region."""


class NodeSeen(NamedTuple):
    """An exit node. `told_to_drain`: what it was last told over its stream, None when nothing."""

    name: ExitNodeName
    session_ids: tuple[str, ...] = ()
    is_draining: bool = False
    told_to_drain: bool | None = None

    @property
    def region(self) -> Region:
        return self.name.pool, self.name.region


class SessionSeen(NamedTuple):
    """A session and its exit node."""

    node: ExitNodeName
    session_id: str


class AgentSeen(NamedTuple):
    """An agent. `placed` holds names of regions (`pool/region`), `all_nodes` what its resource shows, of other replicas too."""

    key: str
    placed: frozenset[str]
    sessions: tuple[SessionSeen, ...]
    all_nodes: frozenset[str] = frozenset()


class Moving(NamedTuple):
    """Sessions that one node shall let go."""

    node: ExitNodeName
    session_ids: tuple[str, ...]
    reason: str


def decide_drains(nodes: Iterable[NodeSeen], is_closed: Callable[[str, str], bool]) -> list[tuple[ExitNodeName, bool]]:
    """Whom to tell that it shall take no more sessions (True), or that it shall take them again (False).

    A node that says of itself that it drains, and was told nothing over this stream, may have been told by another replica
    of control before its region was opened again: it is told once.
    """
    found = []
    for node in nodes:
        if is_closed(*node.region):
            if node.told_to_drain is not True:
                found.append((node.name, True))
        elif node.told_to_drain is True or (node.told_to_drain is None and node.is_draining):
            found.append((node.name, False))
    return found


class Homecoming:
    """Who is away from where it is placed, and since when."""

    def __init__(self) -> None:
        self._due: dict[str, tuple[float, float]] = {}
        """Per agent: when it is told (next), and how long it is waited for after that."""

    def decide(self, agents: Iterable[AgentSeen], has_room: Callable[[str, str], bool], now: float) -> list[Moving]:
        """The sessions to let go: one of each agent that has been away for long enough, while its place has room."""
        away: dict[str, tuple[float, float]] = {}
        found = []
        for agent in agents:
            session = _away_session(agent)
            if session is None:
                continue
            home = next(name for name in agent.placed if name.partition("/")[0] == session.node.pool)
            pool, _, region = home.partition("/")
            if not has_room(pool, region):
                continue
            due, patience_s = self._due.get(agent.key, (now + HOME_AFTER_S, HOME_AFTER_S))
            if now >= due:
                found.append(Moving(session.node, (session.session_id,), f"control places this agent on {home}"))
                patience_s = min(HOME_AFTER_MOST_S, patience_s * 2)
                due = now + patience_s
            away[agent.key] = (due, patience_s)
        self._due = away
        return found


def _away_session(agent: AgentSeen) -> SessionSeen | None:
    """A session to give up: of a pool in which the agent is placed somewhere, and holds nothing there."""
    where = {f"{one.node.pool}/{one.node.region}" for one in agent.sessions}
    shown = {node.rpartition("-")[0].rpartition("-")[0] for node in agent.all_nodes}
    for home in sorted(agent.placed):
        pool, _, region = home.partition("/")
        if home in where or pod_stem(pool, region) in shown:
            continue
        for session in agent.sessions:
            if session.node.pool == pool:
                return session
    return None


def pod_stem(pool: str, region: str) -> str:
    """What the names of a region's pods begin with, before two parts that Kubernetes adds."""
    return f"edgetun-exit-{pool}-{region}"


class Spreading:
    """Which nodes have held too many sessions, and since when."""

    def __init__(self) -> None:
        self._since: dict[ExitNodeName, float] = {}

    def decide(self, nodes: Iterable[NodeSeen], told: Mapping[Region, tuple[int, int]], now: float) -> list[Moving]:
        """The sessions that nodes with too many give to the others of their region.

        `told`: nodes and sessions of a region as the pool's status has them, with those of other replicas; a little old, so
        a node must have had too many for `SPREAD_AFTER_S`.
        """
        by_region: dict[Region, list[NodeSeen]] = {}
        for node in nodes:
            if not node.is_draining:
                by_region.setdefault(node.region, []).append(node)
        since: dict[ExitNodeName, float] = {}
        found = []
        for region, here in by_region.items():
            count_told, sessions_told = told.get(region, (0, 0))
            fair = max(sessions_told, sum(len(node.session_ids) for node in here)) / max(count_told, len(here))
            for node in here:
                count = len(node.session_ids)
                if count <= fair * TOO_MANY or count <= fair + TOO_MANY_BY:
                    continue
                since[node.name] = self._since.get(node.name, now)
                if now - since[node.name] >= SPREAD_AFTER_S:
                    surplus = min(MOST_MOVES, math.floor(count - fair))
                    found.append(Moving(node.name, node.session_ids[:surplus], _SPREAD))
        self._since = since
        return found


_SPREAD: Final = "sessions are spread over the region's exit nodes"
