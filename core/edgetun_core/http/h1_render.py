"""Writes request and response heads for HTTP/1.1 (RFC 9112 §3, §4). Renderings are kept on the heads, which are shared.

Hot path: for a head that was rendered before, a join of few parts. Heads are trusted here: whoever made them validated them.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, Literal

from edgetun_core.http.h1_syntax import HOP_BY_HOP
from edgetun_core.http.message import Field, RequestHead, ResponseHead

BodyFraming = Literal["none", "length", "chunked"]

_STATUS_LINES: Final[dict[int, bytes]] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_WITH_CONTENT: Final = frozenset((b"POST", b"PUT", b"PATCH"))


def _lines(fields: Iterable[Field]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def render_request(head: RequestHead, *, authority: bytes, body: BodyFraming) -> bytes:
    """A request head for an origin. `authority` goes into Host; `"length"` needs `content-length` among the head's fields."""
    if body == "chunked":
        # A length beside a transfer coding must not be sent (RFC 9112 §6.2).
        lines = _lines(field for field in head.fields if field[0] != b"content-length")
        framing = b"transfer-encoding: chunked\r\n"
    else:
        cached = head.h1
        if cached is None:
            cached = head.h1 = _lines(head.fields)
        lines = cached
        framing = b""
        if body == "none" and head.method in _WITH_CONTENT and head.get(b"content-length") is None:
            framing = b"content-length: 0\r\n"  # RFC 9110 §8.6
    if head.protocol is not None:
        framing += b"connection: upgrade\r\nupgrade: %b\r\n" % head.protocol
    elif head.get(b"te") is not None:
        framing += b"connection: te\r\n"  # RFC 9110 §10.1.4
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n" % (head.method, head.target, authority, lines, framing)


class PreparedResponse:
    """What a front needs to know of a response head, worked out once; lives in `ResponseHead.h1`.

    `content_length` is -1 when there is none. `base` is the status line and the fields, without the empty line.
    `variants` holds renderings by `variant()`; each ends in the empty line when the head has its own `date`, and before it
    when not, so that the front can add the date of the second.
    """

    __slots__ = ("base", "content_length", "has_alt_svc", "has_date", "variants", "without_body")

    def __init__(self, head: ResponseHead) -> None:
        status = head.status
        self.content_length = -1
        self.has_date = False
        self.has_alt_svc = False
        self.without_body = status < 200 or status in (204, 304)
        fields: list[Field] = []
        lengths = head.get_all(b"content-length")
        # Framing is ours: a length that is not one number, or stands where none may (RFC 9110 §8.6), is not written,
        # whoever made the head.
        if len(lengths) == 1 and lengths[0].isdigit() and status >= 200 and status != 204:
            self.content_length = int(lengths[0])
        for field in head.fields:
            name = field[0]
            if name in HOP_BY_HOP or (name == b"content-length" and self.content_length < 0):
                continue
            if name == b"date":
                self.has_date = True
            elif name == b"alt-svc":
                self.has_alt_svc = True
            fields.append(field)
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        self.base = line + _lines(fields)
        self.variants: list[bytes | None] = [None] * 16

    def variant(self, index: int) -> bytes:
        """Renders by index, a sum of: 1 chunked, 2 the connection closes, 4 the visitor speaks HTTP/1.0, 8 no content."""
        rendered = self.variants[index]
        if rendered is None:
            added = b""
            if index & 1:
                added += b"transfer-encoding: chunked\r\n"
            if index & 8:
                added += b"content-length: 0\r\n"
            if index & 2:
                added += b"connection: close\r\n"
            elif index & 4:
                added += b"connection: keep-alive\r\n"
            rendered = self.base + added + (b"\r\n" if self.has_date else b"")
            self.variants[index] = rendered
        return rendered


def prepare_response(head: ResponseHead) -> PreparedResponse:
    """The head's prepared form, made on first use."""
    prepared = head.h1
    if prepared is None:
        prepared = head.h1 = PreparedResponse(head)
    assert isinstance(prepared, PreparedResponse)
    return prepared


def render_response(
    head: ResponseHead, *, chunked: bool, keep_alive: bool, http_minor: int, upgrade: bytes | None = None
) -> bytes:
    """A whole response head for a visitor, empty line included. `upgrade` names the protocol of a 101."""
    prepared = prepare_response(head)
    if head.status < 200:
        # Interim heads and 101 say nothing about the connection's end or the body's framing (RFC 9112 §6.1).
        if upgrade is not None:
            return b"%bconnection: upgrade\r\nupgrade: %b\r\n\r\n" % (prepared.base, upgrade)
        return prepared.base + b"\r\n"
    rendered = prepared.variant((1 if chunked else 0) | (0 if keep_alive else 2) | (0 if http_minor else 4))
    return rendered if prepared.has_date else rendered + b"\r\n"
