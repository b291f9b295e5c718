"""HTTP/3 attacks, each test named for one: what it costs is bounded, and the connection that does it ends."""

from __future__ import annotations

import asyncio

import pytest

from edgetun_core.errors import Cancelled
from edgetun_core.http.h3_frames import (
    H3_EXCESSIVE_LOAD,
    H3_NO_ERROR,
    HEADERS,
    PRIORITY_UPDATE_REQUEST,
    encode_frame,
    encode_varint,
)
from edgetun_exitnode.front.h3 import ALLOWANCE, MAX_HELD_BYTES
from support.h3_client import h3_visitor, request_headers
from support.handlers import Asked, ScriptedHandler, wait
from support.visitors import until

from .h3_fixtures import StartH3, h3_ca, start_h3

__all__ = ["h3_ca", "start_h3"]


async def test_rapid_reset(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler)
    async with h3_visitor(front.port) as visitor:
        for _ in range(ALLOWANCE):
            if visitor.ended is not None:
                break
            await visitor.until(lambda: len(visitor._quic._streams) < 90 or visitor.ended)
            visitor.cancel(visitor.open())
            await asyncio.sleep(0)
        assert await visitor.close_code() == H3_EXCESSIVE_LOAD
    assert len(handler.asked) < ALLOWANCE
    for asked in handler.asked:
        await asked.until(lambda it: isinstance(it.error, Cancelled))


async def test_a_visitor_who_cancels_now_and_then_is_none(start_h3: StartH3) -> None:
    front = await start_h3(ScriptedHandler(wait, fine=lambda asked: asked.answer(200, b"ok")))
    async with h3_visitor(front.port) as visitor:
        for _ in range(60):
            visitor.cancel(visitor.open())
            assert (await visitor.ask("/fine")).status == 200
        assert visitor.ended is None


async def test_priority_update_flood(start_h3: StartH3) -> None:
    front = await start_h3()
    async with h3_visitor(front.port, raw=True) as visitor:
        update = encode_frame(PRIORITY_UPDATE_REQUEST, encode_varint(0) + b"u=1")
        visitor.control(update * 3000)
        assert await visitor.close_code() == H3_EXCESSIVE_LOAD


async def test_unknown_frame_flood(start_h3: StartH3) -> None:
    front = await start_h3(ScriptedHandler(wait))
    async with h3_visitor(front.port, raw=True) as visitor:
        visitor.control()
        visitor.raw(0, visitor.headers_frame(request_headers("POST")) + b"\x21\x00" * 3000)
        assert await visitor.close_code() == H3_EXCESSIVE_LOAD


async def test_empty_data_flood(start_h3: StartH3) -> None:
    front = await start_h3(ScriptedHandler(wait))
    async with h3_visitor(front.port, raw=True) as visitor:
        visitor.control()
        visitor.raw(0, visitor.headers_frame(request_headers("POST")) + b"\x00\x00" * 3000)
        assert await visitor.close_code() == H3_EXCESSIVE_LOAD


async def test_unknown_stream_flood(start_h3: StartH3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetun_exitnode.front.h3.ALLOWANCE", 50)
    front = await start_h3()
    async with h3_visitor(front.port, raw=True) as visitor:
        visitor.control()
        for _ in range(90):
            visitor.uni(0x21, b"x", True)
        assert await visitor.close_code() == H3_EXCESSIVE_LOAD


async def test_stream_cancellation_flood_on_the_decoder_stream(start_h3: StartH3) -> None:
    front = await start_h3()
    async with h3_visitor(front.port, raw=True) as visitor:
        visitor.control()
        visitor.uni(3, b"\x41" * 5000)
        assert await visitor.close_code() == H3_EXCESSIVE_LOAD


async def test_qpack_bomb(start_h3: StartH3) -> None:
    """One byte of a block stands for a field of eighty; the decoder stops at the announced size."""
    handler = ScriptedHandler()
    front = await start_h3(handler)
    longest = b"\xff\x16"  # static table, 85: a content-security-policy
    async with h3_visitor(front.port, raw=True) as visitor:
        visitor.control()
        block = visitor.block(request_headers()) + longest * 15_000
        answer = await visitor.answer(visitor.raw(0, encode_frame(HEADERS, block), True))
        assert answer.status == 431
        assert (await visitor.answer(visitor.raw(4, visitor.headers_frame(request_headers()), True))).status == 200
    assert len(handler.asked) == 1


async def test_slow_head(start_h3: StartH3) -> None:
    front = await start_h3(head_s=0.3)
    async with h3_visitor(front.port, raw=True) as visitor:
        visitor.control()
        head = visitor.headers_frame(request_headers())
        sid = visitor.raw(0, head[:10])
        answer = await visitor.answer(sid)
        assert answer.status == 408
        await visitor.until(lambda: sid in visitor.stops)
    assert front.counters.requests_timed_out == 1


async def test_slow_body(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler, body_progress_s=0.3)
    async with h3_visitor(front.port) as visitor:
        sid = visitor.open("POST", end=False)
        visitor.send(sid, b"a")
        answer = await visitor.answer(sid)
        assert answer.status == 408
    asked = handler.asked[0]
    await asked.until(lambda it: it.error is not None)
    assert front.counters.requests_timed_out == 1


async def test_many_unfinished_heads(start_h3: StartH3) -> None:
    front = await start_h3()
    async with h3_visitor(front.port, raw=True) as visitor:
        visitor.control()
        part = b"\x01" + encode_varint(32_000) + bytes(31_000)
        for number in range(20):
            visitor.raw(4 * number, part)
        assert await visitor.close_code() == H3_EXCESSIVE_LOAD
    await until(lambda: not front.connections, 10)
    assert front.held_bytes == 0


async def test_unfinished_heads_of_all_connections_together(start_h3: StartH3) -> None:
    front = await start_h3(held_bytes=100_000)
    part = b"\x01" + encode_varint(32_000) + bytes(30_000)
    async with h3_visitor(front.port, raw=True) as first, h3_visitor(front.port, raw=True) as second:
        first.control()
        for number in range(3):
            first.raw(4 * number, part)
        await until(lambda: front.held_bytes > 85_000, 10)
        second.control()
        second.raw(0, part)
        assert await second.close_code() == H3_EXCESSIVE_LOAD
        assert first.ended is None
    assert MAX_HELD_BYTES > 100_000


async def test_zero_window_stall(start_h3: StartH3) -> None:
    """A visitor asks and takes nothing: its requests are cancelled, its connection goes on."""
    handler = ScriptedHandler(wait)
    front = await start_h3(handler, write_stall_s=0.5)
    async with h3_visitor(front.port, max_stream_data=2000) as visitor:
        visitor._quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
        sid = visitor.open()
        asked = await handler.request()
        asked.begin(200, (b"content-length", b"1000000"))
        asked.client.on_data(bytes(600_000), False)
        assert asked.is_paused
        await asked.until(lambda it: isinstance(it.error, Cancelled), 15)
        assert sid in visitor.answers
        other = visitor.open("GET", "/other")
        (await handler.request(1)).answer(200, b"small")
        assert (await visitor.answer(other)).body == b"small"


async def test_a_stalled_stream_does_not_hold_up_the_others(start_h3: StartH3) -> None:
    def big(asked: Asked) -> None:
        asked.answer(200, bytes(500_000))

    front = await start_h3(ScriptedHandler(big, small=lambda asked: asked.answer(200, bytes(1500))))
    async with h3_visitor(front.port, max_stream_data=2000) as visitor:
        visitor._quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
        stalled = [visitor.open("GET", f"/{number}") for number in range(3)]
        for sid in stalled:
            await visitor.head(sid)
        assert len((await visitor.ask("/small")).body) == 1500
        assert not any(visitor.answers[sid].complete for sid in stalled)


async def test_settings_and_goaway_of_a_visitor_do_no_harm(start_h3: StartH3) -> None:
    front = await start_h3()
    async with h3_visitor(front.port, raw=True) as visitor:
        visitor.control(encode_frame(7, b"\x00"), settings=encode_frame(4, encode_varint(6) + encode_varint(1)))
        # A limit of one byte for our field sections is advice (RFC 9114 §4.2.2).
        assert (await visitor.answer(visitor.raw(0, visitor.headers_frame(request_headers()), True))).status == 200
        await front.drain(5.0)
        assert await visitor.close_code() == H3_NO_ERROR
