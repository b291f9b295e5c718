"""The head as it goes down a tunnel: who asked, by which way, and which of the agent's origins is meant.

Whatever a visitor claims about itself in `Forwarded`, `X-Forwarded-*` or `X-Real-IP` is dropped: the exit node is the
first hop that can know. `Via` grows by one (RFC 9110 §7.6.3); `CDN-Loop` (RFC 8586) carries the tunnel's id, so that a
tunnel whose origin is its own public address is told so instead of turning in circles.
"""

from __future__ import annotations

import re

from edgetun_core.errors import Presentation, UpstreamError
from edgetun_core.http.message import Field, Peer, RequestHead

CLAIMS = frozenset(
    (
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-forwarded-server",
        b"x-forwarded-prefix",
        b"x-forwarded-scheme",
        b"x-forwarded-ssl",
        b"x-real-ip",
    )
)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")


class LoopDetected(UpstreamError):
    """The request came down this tunnel already (RFC 5842 §7.2: 508)."""

    presentation = Presentation(508, 0x06, "LoopDetected", "loop")


def build_forwarded_head(head: RequestHead, peer: Peer, tunnel_id: str, service: str, strip: bytes) -> RequestHead:
    """The head for the agent. `strip` is a path prefix to take off, or empty.

    Raises LoopDetected when the request has passed this tunnel before.
    """
    mark = b'edgetun; tunnel="%s"' % tunnel_id.encode()
    fields: list[Field] = []
    for field in head.fields:
        name = field[0]
        # CGI and WSGI origins cannot tell `x_forwarded_for` from `x-forwarded-for`, so neither may a visitor write.
        if name in CLAIMS or (b"_" in name and name.replace(b"_", b"-") in CLAIMS):
            continue
        if name == b"cdn-loop" and mark in field[1]:
            raise LoopDetected(
                f"tunnel {tunnel_id}: the request came back to the tunnel that sent it; "
                "the local server forwards to its own public address, point it elsewhere"
            )
        fields.append(field)
    address = peer.address.encode()
    node = b'"[%s]"' % address if b":" in address else address
    host = head.authority if _TOKEN.match(head.authority) else b'"%s"' % head.authority
    fields.append((b"forwarded", b"for=%s;host=%s;proto=%s" % (node, host, head.scheme)))
    fields.append((b"x-forwarded-for", address))
    fields.append((b"x-forwarded-host", head.authority))
    fields.append((b"x-forwarded-proto", head.scheme))
    fields.append((b"via", peer.version + b" edgetun"))
    fields.append((b"cdn-loop", mark))
    target = head.target
    if strip and target.startswith(strip):
        fields.append((b"x-forwarded-prefix", strip))
        target = target[len(strip) :]
        if not target.startswith(b"/"):
            target = b"/" + target
    return head.replace(target=target, fields=tuple(fields), service=service)
