"""The exit nodes that follow this replica of control: what each is sent, and what each tells of itself.

A coordinator without sockets: streams attach with a function that takes their next message, and feed what they receive in here.
All nodes of a pool's region share one `History`, so that a change is compared and encoded once for all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from edgetun_control.exits.peers import AWAY_S, PeerBook
from edgetun_core.control_stream import (
    Ack,
    Changes,
    Drain,
    Feed,
    History,
    Move,
    NodeHello,
    NodeLoad,
    Presence,
    Resync,
    SessionInfo,
    Unknown,
    encode,
)
from edgetun_core.control_stream.messages import FromNode
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import ProtocolError
from edgetun_core.fleet_identity import ExitNodeName
from edgetun_core.snapshot import Snapshot

log = logging.getLogger("edgetun.control.exits")

TELL_PEERS_S: Final = 0.1

RegionKey = tuple[str, str]
"""Pool and region."""


class Snapshots(Protocol):
    """Where the fleet gets what a region obeys."""

    def region_snapshot(self, pool: str, region: str) -> Snapshot:
        """The present one."""
        ...

    def region_change(self, pool: str, region: str, since: int) -> tuple[Snapshot, Changes] | None:
        """The present one without tunnels, and at least those that are others than in the one of version `since`.

        None when that is not known.
        """
        ...


@dataclass(slots=True, eq=False)
class FollowingNode:
    """One exit node's stream, as long as it stands."""

    name: ExitNodeName
    hello: NodeHello
    feed: Feed
    send: Callable[[bytes], None]
    close: Callable[[str], None]
    load: NodeLoad = field(default_factory=NodeLoad)
    sessions: dict[str, SessionInfo] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    """Tunnels whose port it cannot listen on, and why."""
    waiting_since: float = 0.0
    """When the change under way was sent; 0 while none is."""
    told_to_drain: bool | None = None
    """What it was last told over this stream; None: nothing."""


class FleetListener(Protocol):
    """Who hears of nodes and sessions. Called on the event loop; quick."""

    def node_changed(self, node: FollowingNode) -> None:
        """It came, or its load changed."""

    def node_left(self, node: FollowingNode) -> None:
        """Its stream ended; its sessions are listed still."""

    def session_opened(self, node: FollowingNode, session: SessionInfo) -> None:
        """A session is new, or its transport or round trip changed."""

    def session_closed(self, node: FollowingNode, session: SessionInfo) -> None:
        """It is over, or its node told all anew without it."""


class SilentFleetListener:
    """Hears and does nothing."""

    def node_changed(self, node: FollowingNode) -> None: ...
    def node_left(self, node: FollowingNode) -> None: ...
    def session_opened(self, node: FollowingNode, session: SessionInfo) -> None: ...
    def session_closed(self, node: FollowingNode, session: SessionInfo) -> None: ...


class Fleet:
    """Every exit node on this replica."""

    def __init__(self, snapshots: Snapshots, clock: Callable[[], float], listener: FleetListener | None = None) -> None:
        self.listener: FleetListener = listener if listener is not None else SilentFleetListener()
        self._snapshots = snapshots
        self._clock = clock
        self._histories: dict[RegionKey, History] = {}
        self._nodes: dict[ExitNodeName, FollowingNode] = {}
        self.on_nodes_changed: Callable[[], None] = lambda: None
        """Called when a node has come or gone, or takes sessions no longer or again."""
        self.on_ports_told: Callable[[FollowingNode], None] = lambda _: None
        """Called when a node has said which ports it cannot have."""
        self.on_node_left: Callable[[FollowingNode], None] = lambda _: None
        """Called beside the listener's `node_left`."""
        self.peers = PeerBook()
        """What nodes are told of each other; what changes in `TELL_PEERS_S` is told in one message."""
        self._telling: asyncio.TimerHandle | None = None
        self.messages_sent = 0
        self.bytes_sent = 0

    @property
    def nodes(self) -> Mapping[ExitNodeName, FollowingNode]:
        return self._nodes

    def __iter__(self) -> Iterator[FollowingNode]:
        return iter(tuple(self._nodes.values()))

    # ---- from the publisher

    def published(self, _: object = None) -> None:
        """Something changed: every region that is followed is brought up to date."""
        for (pool, region), history in self._histories.items():
            if self._put(history, pool, region):
                for node in self:
                    if (node.name.pool, node.name.region) == (pool, region):
                        self._send(node, node.feed.published())

    def shown(self, agent: str, holders: dict[ExitNodeName, tuple[Endpoint, int]], tunnels: frozenset[str]) -> None:
        """An agent's status names these exit nodes, which may follow other replicas; see `PeerBook.shown`."""
        self.peers.shown(agent, holders, tunnels)
        self._tell_soon()

    def _tell_soon(self, wait_s: float = TELL_PEERS_S) -> None:
        if self.peers.is_dirty and self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(wait_s, self.tell_peers)

    def tell_peers(self) -> None:
        """Tells every node what changed about the others since it was last done."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self.peers.expire(self._clock())
        for pool, messages in self.peers.flush().items():
            encoded = [encode(message) for message in messages]
            for node in self:
                if node.name.pool == pool and node.hello.relay is not None:
                    for message in encoded:
                        self._send(node, message, is_change=False)

    def _put(self, history: History, pool: str, region: str) -> bool:
        known = self._snapshots.region_change(pool, region, history.told_version) if history.digest else None
        if known is not None:
            return history.change(*known)
        return history.put(self._snapshots.region_snapshot(pool, region))

    # ---- from streams

    def attach(
        self, name: ExitNodeName, hello: NodeHello, send: Callable[[bytes], None], close: Callable[[str], None]
    ) -> FollowingNode:
        """A node opened its stream. Raises `ProtocolError` when its hello is not of whom its certificate names."""
        if (hello.pool, hello.region, hello.node) != tuple(name):
            raise ProtocolError(f"exit node {name} says that it is {hello.pool}/{hello.region}/{hello.node}")
        before = self._nodes.get(name)
        if before is not None:
            # The node knows better: the old stream is dead, and nobody has noticed yet.
            self.detach(before)
            before.close("the node opened another stream")
        key = hello.pool, hello.region
        history = self._histories.get(key)
        if history is None:
            history = self._histories[key] = History()
        self._put(history, *key)
        node = FollowingNode(name, hello, Feed(history), send, close, hello.load)
        self._nodes[name] = node
        self.peers.came(name, hello.relay, hello.load.is_draining)
        if hello.relay is not None:
            # Before the snapshot: with that the node is ready, and its first visitor may need another node.
            for message in self.peers.everything(name.pool):
                self._send(node, encode(message), is_change=False)
        self._send(node, node.feed.opened(hello))
        self._tell_soon()
        self.listener.node_changed(node)
        self.on_nodes_changed()
        return node

    def detach(self, node: FollowingNode) -> None:
        """Its stream ended. Idempotent."""
        if self._nodes.get(node.name) is node:
            del self._nodes[node.name]
            key = node.name.pool, node.name.region
            if not any((other.name.pool, other.name.region) == key for other in self):
                self._histories.pop(key, None)
            self.peers.left(node.name, self._clock())
            asyncio.get_running_loop().call_later(AWAY_S + 0.1, self.tell_peers)
            self.listener.node_left(node)
            self.on_node_left(node)
            self.on_nodes_changed()

    def received(self, node: FollowingNode, message: FromNode | Unknown) -> None:
        """A message came. Raises `ProtocolError` for one that has no place here."""
        match message:
            case Ack():
                node.waiting_since = 0.0
                self._send(node, node.feed.acknowledged(message))
            case Resync(reason):
                log.info("exit node %s asks for the whole snapshot: %s", node.name, reason)
                self._send(node, node.feed.lost(message))
            case Presence():
                self._take_presence(node, message)
                self._tell_soon()
            case Unknown(kind):
                log.debug("exit node %s said %s, which this version knows nothing of", node.name, kind)
            case NodeHello():
                raise ProtocolError("a second hello")

    def order(self, node: FollowingNode, order: Move | Drain) -> None:
        """Tells a node to let sessions go."""
        if isinstance(order, Drain):
            node.told_to_drain = order.on
        self._send(node, encode(order), is_change=False)

    def is_late(self, node: FollowingNode, patience_s: float) -> bool:
        """Whether a node has left a change unacknowledged for too long."""
        return bool(node.waiting_since) and self._clock() - node.waiting_since > patience_s

    def _take_presence(self, node: FollowingNode, presence: Presence) -> None:
        if presence.reset:
            # The rest of a long list follows in messages of its own; what is not in it is over.
            self.peers.reset(node.name)
            for session in node.sessions.values():
                self.listener.session_closed(node, session)
            node.sessions.clear()
        for session in presence.opened:
            node.sessions[session.session_id] = session
            self.peers.opened(node.name, session.session_id, session.tunnels, session.share)
            self.listener.session_opened(node, session)
        for session_id in presence.closed:
            gone = node.sessions.pop(session_id, None)
            self.peers.closed(node.name, session_id)
            if gone is not None:
                self.listener.session_closed(node, gone)
        if presence.ports is not None:
            node.ports = presence.ports
            self.on_ports_told(node)
        if presence.load is not None:
            has_turned = presence.load.is_draining != node.load.is_draining
            node.load = presence.load
            self.peers.loaded(node.name, presence.load.is_draining)
            self.listener.node_changed(node)
            if has_turned:
                self.on_nodes_changed()

    def _send(self, node: FollowingNode, message: bytes | None, *, is_change: bool = True) -> None:
        if message is None:
            return
        if is_change:
            node.waiting_since = self._clock()
        self.messages_sent += 1
        self.bytes_sent += len(message)
        node.send(message)
