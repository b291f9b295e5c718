"""WebSocket over HTTP/3 (RFC 9220), and priorities (RFC 9218), by aioquic's client."""

from __future__ import annotations

import base64
import hashlib

from edgetun_core.errors import Cancelled
from edgetun_core.http.message import ResponseHead
from support.h3_client import h3_visitor
from support.handlers import Asked, ScriptedHandler, hello

from .h3_fixtures import StartH3, h3_ca, start_h3

__all__ = ["h3_ca", "start_h3"]

CONNECT = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"https"),
    (b":authority", b"shop.example"),
    (b":path", b"/chat"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-protocol", b"chat"),
    (b"origin", b"https://shop.example"),
]


def accept(asked: Asked) -> None:
    """As an origin on HTTP/1.1 does: 101 with the right key, then every byte comes back."""
    key = asked.head.get(b"sec-websocket-key")
    assert key is not None
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    fields = ((b"sec-websocket-accept", base64.b64encode(digest)), (b"sec-websocket-protocol", b"chat"))
    asked.client.on_head(ResponseHead(101, fields), False)

    def echo(asked: Asked) -> None:
        if asked.error is None and (asked.body or asked.ended):
            data = bytes(asked.body)
            asked.body.clear()
            asked.client.on_data(data, asked.ended)

    asked.on_body = echo


async def test_a_websocket_is_an_upgrade_for_the_origin_and_raw_bytes_for_both(start_h3: StartH3) -> None:
    handler = ScriptedHandler(accept)
    front = await start_h3(handler)
    async with h3_visitor(front.port) as visitor:
        sid = visitor.next_stream()
        visitor.h3.send_headers(sid, CONNECT)
        visitor.transmit()
        answer = await visitor.head(sid)
        assert answer.status == 200
        assert answer.fields["sec-websocket-protocol"] == "chat"
        assert "sec-websocket-accept" not in answer.fields
        for piece in (b"hello", b"x" * 100_000):
            before = len(visitor.answers[sid].body)
            visitor.send(sid, piece)
            whole = before + len(piece)
            await visitor.until(lambda size=whole: len(visitor.answers[sid].body) == size)
        assert not visitor.answers[sid].complete
        visitor.send(sid, b"", True)
        await visitor.answer(sid)
    asked = handler.asked[0]
    assert (asked.head.method, asked.head.protocol, asked.head.target) == (b"GET", b"websocket", b"/chat")
    assert asked.head.get(b"origin") == b"https://shop.example"
    assert asked.ended


async def test_a_websocket_that_is_refused_is_an_ordinary_answer(start_h3: StartH3) -> None:
    handler = ScriptedHandler(lambda asked: asked.answer(403, b"no"))
    front = await start_h3(handler)
    async with h3_visitor(front.port) as visitor:
        sid = visitor.next_stream()
        visitor.h3.send_headers(sid, CONNECT)
        visitor.transmit()
        answer = await visitor.answer(sid)
        assert (answer.status, answer.body) == (403, b"no")
        assert (await visitor.ask("/")).status == 403


async def test_an_origin_that_accepts_with_the_wrong_key_is_not_believed(start_h3: StartH3) -> None:
    def wrong(asked: Asked) -> None:
        asked.client.on_head(ResponseHead(101, ((b"sec-websocket-accept", b"nonsense"),)), False)

    front = await start_h3(ScriptedHandler(wrong))
    async with h3_visitor(front.port) as visitor:
        sid = visitor.next_stream()
        visitor.h3.send_headers(sid, CONNECT)
        visitor.transmit()
        assert (await visitor.answer(sid)).status == 502


async def test_a_visitor_who_leaves_a_websocket_is_told_to_the_origin(start_h3: StartH3) -> None:
    handler = ScriptedHandler(accept)
    front = await start_h3(handler)
    async with h3_visitor(front.port) as visitor:
        sid = visitor.next_stream()
        visitor.h3.send_headers(sid, CONNECT)
        visitor.transmit()
        await visitor.head(sid)
        visitor.cancel(sid)
        await (await handler.request()).until(lambda it: isinstance(it.error, Cancelled))


async def test_the_urgent_response_overtakes(start_h3: StartH3) -> None:
    size = 1_500_000

    def big(asked: Asked) -> None:
        asked.answer(200, bytes(size))

    front = await start_h3(ScriptedHandler(hello, big=big))
    async with h3_visitor(front.port, max_data=100_000) as visitor:  # so that the rest waits at the front
        first = visitor.open("GET", "/big", ("priority", "u=6"))
        await visitor.head(first)
        second = visitor.open("GET", "/big", ("priority", "u=1"))
        await visitor.answer(second)
        assert not visitor.answers[first].complete
        await visitor.answer(first)
