"""Answering an exchange at the edge, without going further: refusals, redirects, errors as pages."""

from __future__ import annotations

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, ResponseHead


def answer(client: ResponseSink, status: int, fields: Fields, body: bytes = b"") -> RequestSink:
    """Gives a complete response at once; `content-length` is added."""
    head = ResponseHead(status, (*fields, (b"content-length", str(len(body)).encode())))
    client.on_head(head, not body)
    if body:
        client.on_data(body, True)
    return CLOSED


def refuse(client: ResponseSink, error: EdgetunError) -> RequestSink:
    """Ends the exchange with an error; the front turns it into a page (RFC 9457 problem or HTML)."""
    client.on_reset(error)
    return CLOSED
