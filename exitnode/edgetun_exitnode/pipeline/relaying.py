"""What of a request goes from one exit node to another, and how the other one sees its visitor.

The head goes as the visitor's node would pass it to its own cache: with the tunnel's id as `service`, and beside it who the
visitor is (`Relayed`). The fields that tell the origin who asked are written by the last exit node, from that; they are the same as if
the visitor had come there.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.http.message import Peer, Relayed, RequestHead, ResponseHead
from edgetun_exitnode.cache.freshness import Told

MAX_HOPS: Final = 2
"""Exit nodes behind the visitor's. The first may pass on once more, when its own session has just gone; the second may not."""

TOLD: Final = b"edgetun-freshness"
"""The field in which the owner of a key tells another exit node of a stored response: its age and how long it is fresh, in seconds."""

LEAST_FRESH_S: Final = 0.001
"""What is fresh is never told as less: it is written in milliseconds, and 0 says that it never was fresh and is each visitor's alone."""

MAX_TOLD_S: Final = 2.0**31


class RelayedPeer(Peer):
    """A visitor of another exit node. `hops`, `is_fetch` and `only_stored` as in `Relayed`, `sender` is the node that handed the request on."""

    __slots__ = ("hops", "is_fetch", "only_stored", "sender")

    def __init__(self, relayed: Relayed, scheme: bytes, sender: str) -> None:
        super().__init__(relayed.address, relayed.port, scheme, relayed.version, relayed.sni)
        self.hops = relayed.hops
        self.is_fetch = relayed.is_fetch
        self.only_stored = relayed.only_stored
        self.sender = sender


def hops_of(peer: Peer) -> int:
    """How many exit nodes the request has passed before this one."""
    return peer.hops if isinstance(peer, RelayedPeer) else 0


def build_relayed_head(
    head: RequestHead, peer: Peer, tunnel_id: str, *, is_fetch: bool, only_stored: bool = False
) -> RequestHead:
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
        Relayed(hops_of(peer) + 1, peer.address, port, peer.version, peer.sni, is_fetch, only_stored),
    )


def with_told(head: ResponseHead, told: Told | None) -> ResponseHead:
    """The head for another exit node. What an origin wrote into the field is dropped."""
    fields = tuple(field for field in head.fields if field[0] != TOLD)
    if told is not None:
        fresh_s = max(told.fresh_s, LEAST_FRESH_S) if told.fresh_s > 0 else 0.0
        fields = (*fields, (TOLD, b"%.3f %.3f" % (told.age_s, fresh_s)))
    return ResponseHead(head.status, fields)


def take_told(head: ResponseHead) -> tuple[Told | None, ResponseHead]:
    """What the owner says, and the head without it."""
    value = head.get(TOLD)
    if value is None:
        return None, head
    bare = ResponseHead(head.status, tuple(field for field in head.fields if field[0] != TOLD))
    age, _, fresh = value.partition(b" ")
    try:
        told = Told(float(age), float(fresh))
    except ValueError:
        return None, bare
    return (told if 0 <= told.age_s < MAX_TOLD_S and 0 <= told.fresh_s < MAX_TOLD_S else None), bare
