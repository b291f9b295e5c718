"""Serves what another exit node hands on: a visitor's request goes into its tunnel's pipeline here, a call is answered.

Hot path of the holder's end. What is worked out of a head is kept on it (`head.view`) until the next snapshot, so the second request
with an equal head costs a comparison. Only sessions that showed a certificate of the fleet's CA get here, so what they say of
visitors is believed; nothing else sets `head.relayed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgetun_core.errors import EdgetunError, NoSession, ProtocolError
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.http.stream import STREAMS
from edgetun_exitnode.mesh.calls import Answering
from edgetun_exitnode.pipeline.forwarded import LoopDetected
from edgetun_exitnode.pipeline.relaying import MAX_HOPS, RelayedPeer
from edgetun_exitnode.pipeline.router import RouteTable, normal_path


class Tunnels(Protocol):
    """The tunnels of this node."""

    @property
    def table(self) -> RouteTable:
        """The present one."""


class _View:
    """As the router's, it knows the table by its stamp alone."""

    __slots__ = ("open", "peer", "sender", "stamp")

    def __init__(self, stamp: object, handler: Handler, peer: RelayedPeer) -> None:
        self.stamp = stamp
        self.open = handler.open
        self.peer = peer
        self.sender = peer.sender


Answer = Callable[[str, bytes, str, bytes], bytes]
"""Answers a call: who asks, path, tunnel, body. Raises `EdgetunError`."""


class Serving:
    """The handler of one session with another exit node, `sender`."""

    __slots__ = ("_calls", "_tunnels", "sender")

    def __init__(self, tunnels: Tunnels, answer: Answer, sender: str) -> None:
        self._tunnels = tunnels
        self._calls = Answering(lambda path, tunnel, body: answer(self.sender, path, tunnel, body))
        self.sender = sender

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        view = head.view
        if view.__class__ is not _View or view.stamp is not self._tunnels.table.stamp or view.sender != self.sender:
            if not head.service:
                return self._calls.open(head, peer, end, client)
            try:
                view = self._look(head)
            except EdgetunError as error:
                client.on_reset(error)
                return CLOSED
            head.view = view
        return view.open(head, view.peer, end, client)

    def _look(self, head: RequestHead) -> _View:
        relayed = head.relayed
        if relayed is None:
            raise ProtocolError("an exit node's request says nothing of its visitor")
        if relayed.hops > MAX_HOPS and not relayed.only_stored:
            raise LoopDetected(f"the request passed {relayed.hops} exit nodes")
        table = self._tunnels.table
        plan = table.plans.get(head.service)
        if plan is not None and plan.stream is not None and head.protocol in STREAMS:
            return _View(table.stamp, plan.stream, RelayedPeer(relayed, head.scheme, self.sender))
        route = plan.choose(normal_path(head.target)) if plan is not None else None
        if route is None:
            # The other one has a newer snapshot, or an older one; another holder may know the tunnel.
            raise NoSession(f"this exit node does not serve {head.service}")
        peer = RelayedPeer(relayed, head.scheme, self.sender)
        return _View(table.stamp, route.relayed_for(head, peer), peer)
