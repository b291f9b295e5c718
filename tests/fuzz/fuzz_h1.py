"""Hostile bytes for everything that reads HTTP/1.1: heads of requests and responses, chunked bodies. Only H1Error may come out,
and what was read must be read the same when it is written again."""

from __future__ import annotations

from edgetun_core.http.h1 import (
    ChunkedDecoder,
    H1Error,
    H1Limits,
    parse_request,
    parse_response,
    render_request,
    render_response,
)
from edgetun_core.http.message import Fields

_LIMITS = H1Limits()


def fuzz(data: bytes) -> None:
    """Reads the bytes as each kind of message, whole and as the inner part of a valid one."""
    for block in (data, data + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n"):
        _request(block)
    for block in (data, b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"):
        _response(block)
    _chunked(data)


def _request(block: bytes) -> None:
    try:
        parsed = parse_request(block, b"http", _LIMITS)
    except H1Error:
        return
    head = parsed.head
    _check(head.fields)
    assert b" " not in head.target
    assert head.get(b"host") is None
    if not head.authority:
        return
    body = "none" if parsed.body_length == 0 else "length" if parsed.body_length > 0 else "chunked"
    again = parse_request(render_request(head, authority=head.authority, body=body), b"http", _LIMITS)  # type: ignore[arg-type]
    assert again.head.target == head.target
    assert again.body_length == parsed.body_length
    assert again.head.protocol == head.protocol


def _response(block: bytes) -> None:
    for method in (b"GET", b"HEAD"):
        try:
            parsed = parse_response(block, method)
        except H1Error:
            continue
        _check(parsed.head.fields)
        if parsed.head.status < 200:
            continue
        chunked = parsed.body_length == -1
        rendered = render_response(parsed.head, chunked=chunked, keep_alive=True, http_minor=1)
        assert parse_response(rendered, method).body_length == parsed.body_length


def _check(fields: Fields) -> None:
    for name, value in fields:
        assert name == name.lower()
        assert name not in (b"connection", b"transfer-encoding", b"upgrade", b"keep-alive")
        assert not set(name + value) & set(b"\r\n\x00")


def _chunked(data: bytes) -> None:
    outcomes = []
    for size in (1, 7, max(1, len(data))):
        decoder = ChunkedDecoder()
        body = b""
        try:
            for at in range(0, len(data), size):
                body += b"".join(decoder.feed(data[at : at + size]))
        except H1Error:
            outcomes.append(None)
            continue
        outcomes.append((body, decoder.done, decoder.trailers, decoder.rest))
    assert outcomes[0] == outcomes[1] == outcomes[2]
