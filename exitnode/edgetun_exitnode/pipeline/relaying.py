"""What of a request goes from one exit node to another, and how the other one sees its visitor.

The head goes as the visitor's node would pass it to its own cache: with the tunnel's id as `service`, and beside it who the
visitor is (`Relayed`). The fields that tell the origin who asked are written by the last exit node, from that; they are the same as if
the visitor had come there.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.http.message import Peer, Relayed, RequestHead

MAX_HOPS: Final = 2
"""Exit nodes behind the visitor's. The first may pass on once more, when its own session has just gone; the second may not."""


class RelayedPeer(Peer):
    """A visitor of another exit node. `hops` as in `Relayed`, `sender` is the node that handed the request on."""

    __slots__ = ("hops", "sender")

    def __init__(self, relayed: Relayed, scheme: bytes, sender: str) -> None:
        super().__init__(relayed.address, relayed.port, scheme, relayed.version, relayed.sni)
        self.hops = relayed.hops
        self.sender = sender


def hops_of(peer: Peer) -> int:
    """How many exit nodes the request has passed before this one."""
    return peer.hops if isinstance(peer, RelayedPeer) else 0


def build_relayed_head(head: RequestHead, peer: Peer, tunnel_id: str) -> RequestHead:
    """The head for another exit node."""
    # The port would make every connection's head another one; only what is no HTTP asks for it.
    port = peer.port if head.protocol is not None else 0
    return RequestHead(
        head.method,
        head.scheme,
        head.authority,
        head.target,
        head.fields,
        head.protocol,
        tunnel_id,
        Relayed(hops_of(peer) + 1, peer.address, port, peer.version, peer.sni),
    )
