"""An exit node as control sees it: its sessions and load, and what control may ask of it."""

from __future__ import annotations

import logging

from edgetun_core.control_stream import Drain, Move, NodeLoad, Peers, SessionInfo
from edgetun_core.snapshot import Snapshot, SnapshotChange
from edgetun_exitnode.node import ExitNode

log = logging.getLogger("edgetun.exitnode.control")


class LinkedNode:
    """Adapts an `ExitNode` to what `Follower` asks of one."""

    def __init__(self, node: ExitNode) -> None:
        self._node = node

    def apply(self, snapshot: Snapshot, change: SnapshotChange | None = None) -> None:
        self._node.apply(snapshot, change)

    def sessions_told(self) -> dict[str, SessionInfo]:
        """By session id. Draining ones are left out: they take no requests any more."""
        found: dict[str, SessionInfo] = {}
        for admitted in self._node.acceptor.admitted():
            runner, hello = admitted.runner, admitted.runner.hello
            if hello is None or runner.state.value != "open":
                continue
            found[hello.session_id] = SessionInfo(
                session_id=hello.session_id,
                agent_id=hello.agent_id,
                token_id=admitted.token_id,
                transport=runner.transport,
                since=admitted.since,
                rtt_s=round(runner.rtt_s or 0.0, 4),
                services=len(admitted.services),
                tunnels=admitted.services,
                address=runner.peer_address[0],
                software=hello.software,
                weight=hello.served_weight,
                standby=hello.standby,
            )
        return found

    def load_told(self) -> NodeLoad:
        node = self._node
        return NodeLoad(
            sessions=len(node.registry.sessions),
            max_sessions=node.limits.max_sessions,
            connections=sum(len(front.connections) for front in node.all_fronts),
            in_flight=node.exchanges_in_flight,
            is_draining=node.is_draining or node.acceptor.is_draining,
        )

    def ports_told(self) -> dict[str, str]:
        """Tunnels whose port this node cannot listen on, and why."""
        return self._node.streams.unavailable()

    def lost_control(self, since: float | None = None) -> None:
        self._node.acceptor.lost_control(since)

    def found_control(self) -> None:
        self._node.acceptor.found_control()

    def move(self, order: Move) -> None:
        """Drains these sessions: their agents open others elsewhere first, and what is in flight ends here."""
        wanted = set(order.session_ids)
        for admitted in self._node.acceptor.admitted():
            hello = admitted.runner.hello
            if hello is not None and hello.session_id in wanted:
                admitted.runner.drain(order.deadline_s, order.reason or "control moves this session")

    def take_peers(self, message: Peers) -> None:
        """Who holds what, among the other exit nodes."""
        if self._node.mesh is not None:
            self._node.mesh.take(message)

    def control_away(self) -> None:
        if self._node.mesh is not None:
            self._node.mesh.holders.stream_ended()

    def obey_drain(self, order: Drain) -> None:
        """Takes no more sessions and lets the present ones go, or takes sessions again. Visitors are served on."""
        acceptor = self._node.acceptor
        acceptor.is_draining = order.on or self._node.is_draining
        log.info("control says: %s", "take no sessions" if order.on else "take sessions again")
        acceptor.on_change()  # control hears at once that it was heard
        if order.on:
            for admitted in acceptor.admitted():
                admitted.runner.drain(order.deadline_s, order.reason or "control drains this exit node")
