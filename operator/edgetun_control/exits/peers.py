"""What exit nodes are told of each other: who holds sessions of which tunnel, and where a holder is reached. Sans-I/O.

Two sources: the nodes that follow this replica tell their sessions themselves; those of the nodes that follow other replicas stand
in the status of `Agent` resources, which each replica watches anyway. `flush` makes of all that changed since the last one the one
message that every node of a pool gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from edgetun_core.control_stream import PeerChange, Peers
from edgetun_core.control_stream.messages import MOST_TUNNELS_PER_MESSAGE
from edgetun_core.enrollment import Endpoint
from edgetun_core.fleet_identity import ExitNodeName

AWAY_S: Final = 10.0
"""How long a node whose stream ended is still told of: it comes back here, or follows another replica."""
_NONE: Final[dict[str, int]] = {}


@dataclass(slots=True)
class _Node:
    name: ExitNodeName
    relay: Endpoint | None = None
    is_draining: bool = False
    is_here: bool = False
    left_at: float = 0.0
    sessions: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)
    """Tunnels, and the session's share of each (`SessionInfo.share`)."""
    weights: dict[str, _Weights] = field(default_factory=dict)
    elsewhere: dict[str, tuple[Endpoint, int, frozenset[str]]] = field(default_factory=dict)
    """By agent, as the status of its resource has it: only for nodes that do not follow this replica."""
    told: _Told | None = None


@dataclass(frozen=True, slots=True)
class _Told:
    relay: Endpoint
    is_draining: bool
    shares: dict[str, int]
    """By tunnel, as in `PeerChange.shares`."""


@dataclass(slots=True)
class _Weights:
    """Of the sessions of one tunnel at one node."""

    primary: int = 0
    standby: int = 0

    def add(self, share: int) -> None:
        if share < 0:
            self.standby -= share
        else:
            self.primary += share

    def take(self, share: int) -> None:
        if share < 0:
            self.standby += share
        else:
            self.primary -= share

    @property
    def share(self) -> int:
        return self.primary or -self.standby


class PeerBook:
    """Every exit node that can be relayed to, by pool."""

    def __init__(self) -> None:
        self._nodes: dict[ExitNodeName, _Node] = {}
        self._dirty: dict[ExitNodeName, None] = {}
        self._shown: dict[str, tuple[ExitNodeName, ...]] = {}

    @property
    def is_dirty(self) -> bool:
        """Whether `flush` may have something to tell."""
        return bool(self._dirty)

    # ---- from nodes that follow here

    def came(self, name: ExitNodeName, relay: Endpoint | None, is_draining: bool) -> None:
        """A node opened its stream."""
        node = self._node(name)
        node.relay, node.is_draining, node.is_here = relay, is_draining, True

    def left(self, name: ExitNodeName, now: float) -> None:
        """Its stream ended. `expire` forgets it, unless it comes back."""
        node = self._nodes.get(name)
        if node is not None:
            node.is_here = False
            node.left_at = now

    def reset(self, name: ExitNodeName) -> None:
        """It tells its sessions all anew."""
        node = self._node(name)
        node.sessions.clear()
        node.weights.clear()

    def loaded(self, name: ExitNodeName, is_draining: bool) -> None:
        """It told how busy it is."""
        node = self._nodes.get(name)
        if node is not None and node.is_draining != is_draining:
            node.is_draining = is_draining
            self._dirty[name] = None

    def opened(self, name: ExitNodeName, session_id: str, tunnels: tuple[str, ...], share: int = 1) -> None:
        """A session stands, for these tunnels, of each of which it has this share."""
        self.closed(name, session_id)
        node = self._node(name)
        node.sessions[session_id] = tunnels, share
        for tunnel in tunnels:
            node.weights.setdefault(tunnel, _Weights()).add(share)

    def closed(self, name: ExitNodeName, session_id: str) -> None:
        """A session is over."""
        node = self._nodes.get(name)
        session = node.sessions.pop(session_id, None) if node is not None else None
        if node is None or session is None:
            return
        tunnels, share = session
        for tunnel in tunnels:
            weights = node.weights[tunnel]
            weights.take(share)
            if not weights.share:
                del node.weights[tunnel]
        self._dirty[name] = None

    def expire(self, now: float) -> None:
        """Forgets those who left and did not come back."""
        for name, node in list(self._nodes.items()):
            if not node.is_here and (node.sessions or not node.elsewhere) and now - node.left_at > AWAY_S:
                node.sessions.clear()
                node.weights.clear()
                self._dirty[name] = None

    # ---- from Agent resources

    def shown(self, agent: str, holders: dict[ExitNodeName, tuple[Endpoint, int]], tunnels: frozenset[str]) -> None:
        """An agent's status names these nodes, with the share of its sessions there; none: it has no session, or is gone."""
        before = self._shown.pop(agent, ())
        if holders:
            self._shown[agent] = tuple(holders)
        for name in before:
            known = self._nodes.get(name)
            if known is not None and name not in holders and known.elsewhere.pop(agent, None) is not None:
                self._dirty[name] = None
        for name, (relay, share) in holders.items():
            found = self._nodes.get(name)
            if found is None or found.elsewhere.get(agent) != (relay, share, tunnels):
                self._node(name).elsewhere[agent] = relay, share, tunnels

    # ---- to nodes

    def everything(self, pool: str) -> list[Peers]:
        """What a node that has just come is told."""
        changes = [
            change
            for name, node in self._nodes.items()
            if name.pool == pool and node.told is not None
            for change in _changes(name, None, node.told)
        ]
        parts = list(_parts(changes)) or [()]
        last = len(parts) - 1
        return [Peers(reset=not index, changed=part, is_complete=index == last) for index, part in enumerate(parts)]

    def flush(self) -> dict[str, list[Peers]]:
        """By pool, what every node that was told before must hear now."""
        found: dict[str, tuple[list[PeerChange], list[str]]] = {}
        for name in self._dirty:
            node = self._nodes.get(name)
            if node is None:
                continue
            before, now = node.told, self._present(node)
            if now is None and not node.is_here and not node.elsewhere and not node.sessions:
                del self._nodes[name]
            if before == now:
                continue
            node.told = now
            changed, gone = found.setdefault(name.pool, ([], []))
            if now is None:
                gone.append(str(name))
            else:
                changed.extend(_changes(name, before, now))
        self._dirty.clear()
        told: dict[str, list[Peers]] = {}
        for pool, (changed, gone) in found.items():
            parts = list(_parts(changed)) or [()]
            told[pool] = [
                Peers(changed=part, gone=tuple(gone) if not index else ()) for index, part in enumerate(parts)
            ]
        return told

    def _node(self, name: ExitNodeName) -> _Node:
        self._dirty[name] = None
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Node(name)
        return node

    def _present(self, node: _Node) -> _Told | None:
        if node.is_here or node.sessions:
            if node.relay is None:
                return None
            shares = {tunnel: weights.share for tunnel, weights in node.weights.items()}
            return _Told(node.relay, node.is_draining, shares)
        if not node.elsewhere:
            return None
        relay = next(iter(node.elsewhere.values()))[0]
        found: dict[str, _Weights] = {}
        for _, share, tunnels in node.elsewhere.values():
            for tunnel in tunnels:
                found.setdefault(tunnel, _Weights()).add(share)
        return _Told(relay, False, {tunnel: weights.share for tunnel, weights in found.items()})


def _changes(name: ExitNodeName, before: _Told | None, now: _Told) -> Iterator[PeerChange]:
    """One for a node, or several when its tunnels are many."""
    was, shares = before.shares if before is not None else _NONE, now.shares
    opened = sorted(tunnel for tunnel, share in shares.items() if was.get(tunnel) != share)
    closed = sorted(was.keys() - shares.keys())
    relay = now.relay if before is None or before.relay != now.relay else None
    while True:
        some, opened = opened[:MOST_TUNNELS_PER_MESSAGE], opened[MOST_TUNNELS_PER_MESSAGE:]
        gone, closed = closed[:MOST_TUNNELS_PER_MESSAGE], closed[MOST_TUNNELS_PER_MESSAGE:]
        weighed = {tunnel: shares[tunnel] for tunnel in some if shares[tunnel] != 1}
        yield PeerChange(str(name), relay, tuple(some), tuple(gone), now.is_draining, weighed)
        if not opened and not closed:
            return


def _parts(changes: list[PeerChange]) -> Iterator[tuple[PeerChange, ...]]:
    part: list[PeerChange] = []
    size = 0
    for change in changes:
        cost = 5 + len(change.opened) + len(change.closed)
        if part and size + cost > MOST_TUNNELS_PER_MESSAGE:
            yield tuple(part)
            part, size = [], 0
        part.append(change)
        size += cost
    if part:
        yield tuple(part)
