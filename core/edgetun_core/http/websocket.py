"""WebSocket over HTTP/2 and HTTP/3, as the upgrade that origins know (RFC 8441 §5, RFC 9220, RFC 6455 §4).

An extended CONNECT has no `Sec-WebSocket-Key`; an HTTP/1.1 handshake needs one. The front makes it and checks the answer, so
that everything behind it sees one kind of upgrade. Pure: randomness is handed in.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import Final

from edgetun_core.errors import UpstreamBroken
from edgetun_core.http.message import RequestHead, ResponseHead

KEY_BYTES: Final = 16
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OURS: Final = frozenset((b"sec-websocket-key", b"sec-websocket-accept"))


def open_handshake(head: RequestHead, random: bytes) -> tuple[RequestHead, bytes]:
    """The upgrade request for an extended CONNECT, and the key to check the answer with; `random` is `KEY_BYTES` long."""
    key = b64encode(random)
    fields = [field for field in head.fields if field[0] not in _OURS]
    if head.get(b"sec-websocket-version") is None:
        fields.append((b"sec-websocket-version", b"13"))
    fields.append((b"sec-websocket-key", key))
    return head.replace(fields=tuple(fields)), key


def accept_handshake(head: ResponseHead, key: bytes) -> ResponseHead:
    """The 200 that tells the visitor of an origin's 101. Raises UpstreamBroken when the origin did not accept this handshake."""
    expected = b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    if head.get_all(b"sec-websocket-accept") != [expected]:
        raise UpstreamBroken("the origin accepted a WebSocket without the right Sec-WebSocket-Accept (RFC 6455 §4.1)")
    return ResponseHead(200, tuple(field for field in head.fields if field[0] not in _OURS))
