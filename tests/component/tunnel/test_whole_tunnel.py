"""What a visitor may rely on, whatever carries the session: the same promises over every engine."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from edgetun_core.http.h2.frames import DATA, frame
from edgetun_core.snapshot import CacheRule, CollapseRule, HeaderRules, LimitRule
from support.h2_frames import headers
from support.h2_visitor import H2Visitor
from support.origin_server import Script, ScriptedConnection, response, scripted_origin
from support.visitors import Visitor, until
from support.whole import HOST, IN_PROCESS, Whole, snapshot, whole

ENGINES = ["tls", "qh3", "aioquic", IN_PROCESS]


class Open(Protocol):
    def __call__(self, script: Script, **route: object) -> AbstractAsyncContextManager[Whole]: ...


@pytest.fixture(params=ENGINES)
def tunnel(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens a tunnel over one engine to an origin that follows a script."""

    @asynccontextmanager
    async def open_tunnel(script: Script, **route: object) -> AsyncIterator[Whole]:
        async with (
            scripted_origin(script) as origin,
            whole(tmp_path, request.param, snapshot(origin.url, **route)) as stands,
        ):
            yield stands

    return open_tunnel


async def test_a_request_reaches_the_origin_and_its_answer_the_visitor(tunnel: Open) -> None:
    heads: list[bytes] = []

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            heads.append(head)
            await connection.send(response(b"hello", b"X-Answer: yes", b"Connection: keep-alive"))

    async with tunnel(script) as stands:
        visitor = await stands.visitor()
        answer = await visitor.ask("/a?b=c", "X-Forwarded-For: 10.9.9.9", "X-Question: 1", host=HOST)
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.fields["x-answer"] == "yes"
        assert "connection" not in answer.fields
        again = await visitor.ask("/a?b=c", host=HOST)
        assert again.body == b"hello"
        await visitor.close()
    lines = heads[0].lower().split(b"\r\n")
    assert heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"host: " + HOST.encode() in lines
    assert b"x-question: 1" in lines
    assert b"x-forwarded-for: 127.0.0.1" in lines
    assert b"10.9.9.9" not in heads[0]
    assert b"via: 1.1 edgetun" in lines


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_large_body_goes_up_and_comes_back_whole(tunnel: Open, chunked: bool) -> None:
    body = bytes(range(256)) * 8192  # 2 MiB

    async def script(connection: ScriptedConnection) -> None:
        head = (await connection.request()).lower()
        if b"transfer-encoding: chunked" in head:
            got = b""
            while size := int(await connection.until(b"\r\n"), 16):
                got += (await connection.read(size + 2))[:-2]
            await connection.read(2)
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in range(0, len(got), 65536):
                piece = got[start : start + 65536]
                await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await connection.send(b"0\r\nX-Sum: done\r\n\r\n")
        else:
            await connection.send(response(await connection.read(len(body))))
        await connection.rest()

    async with tunnel(script) as stands:
        visitor = await stands.visitor()
        visitor.timeout_s = 30.0
        how = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        visitor.send(b"POST /up HTTP/1.1\r\nHost: shop.test\r\nTE: trailers\r\n%b\r\n\r\n" % how)
        if chunked:
            for start in range(0, len(body), 100_000):
                piece = body[start : start + 100_000]
                visitor.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            visitor.send(b"0\r\n\r\n")
        else:
            visitor.send(body)
        answer = await visitor.answer(b"POST")
        assert answer.status == 200
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
        if chunked:
            assert answer.trailers == ((b"x-sum", b"done"),)
        await visitor.close()


async def test_an_event_stream_arrives_event_by_event(tunnel: Open) -> None:
    go_on = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go_on.wait()
        await connection.send(b"data: 2\n\n")
        await connection.rest()

    async with tunnel(script, cache=CacheRule(mode="override", ttl_s=1.0), collapse=CollapseRule()) as stands:
        visitor = await stands.visitor()
        visitor.timeout_s = 1.0
        visitor.send(b"GET /events HTTP/1.1\r\nHost: shop.test\r\nAccept: text/event-stream\r\n\r\n")
        assert (await visitor.head()).fields["content-type"] == "text/event-stream"
        assert await visitor.read(14) == b"9\r\ndata: 1\n\n\r\n"
        go_on.set()
        assert await visitor.read(14) == b"9\r\ndata: 2\n\n\r\n"
        visitor.leave()


async def test_a_web_socket_carries_bytes_both_ways_until_a_side_ends(tunnel: Open) -> None:
    async def script(connection: ScriptedConnection) -> None:
        head = (await connection.request()).lower()
        assert b"upgrade: websocket" in head
        assert b"connection: upgrade" in head
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi"
        )
        assert await connection.read(5) == b"\x81\x83abc"
        await connection.send(b"\x88\x00")

    async with tunnel(script) as stands:
        visitor = await stands.visitor()
        visitor.send(b"GET /ws HTTP/1.1\r\nHost: shop.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        head = await visitor.head()
        assert head.status == 101
        assert head.fields["upgrade"] == "websocket"
        assert await visitor.read(4) == b"\x81\x02hi"
        visitor.send(b"\x81\x83abc")
        assert await visitor.rest() == b"\x88\x00"
        await visitor.close()


async def test_interim_heads_come_before_the_final_one(tunnel: Open) -> None:
    async def script(connection: ScriptedConnection) -> None:
        head = (await connection.request()).lower()
        assert b"expect: 100-continue" in head
        await connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        assert await connection.read(4) == b"body"
        await connection.send(response(b"ok"))
        await connection.rest()

    async with tunnel(script) as stands:
        visitor = await stands.visitor()
        visitor.send(b"PUT / HTTP/1.1\r\nHost: shop.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert (await visitor.head()).fields == {"link": "</a.css>"}
        assert (await visitor.head()).status == 100
        visitor.send(b"body")
        assert (await visitor.answer(b"PUT")).body == b"ok"
        await visitor.close()


async def test_a_visitor_who_leaves_cancels_the_request_at_the_origin(tunnel: Open) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        asked.set()
        await connection.closed()
        cancelled.set()

    async with tunnel(script) as stands:
        visitor = await stands.visitor()
        visitor.send(b"GET /slow HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        await asyncio.wait_for(asked.wait(), 5)
        visitor.leave()
        await asyncio.wait_for(cancelled.wait(), 5)
        await until(lambda: stands.node.exchanges_in_flight == 0)


async def test_an_origin_that_is_down_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        async with whole(tmp_path, "qh3", snapshot(url)) as stands:
            visitor = await stands.visitor()
            page = await visitor.ask("/", "Accept: text/html", host=HOST)
            assert page.status == 502
            assert page.fields["content-type"].startswith("text/html")
            assert url.encode() in page.body
            assert b"refused" in page.body
            problem = await visitor.ask("/", "Accept: application/json", host=HOST)
            assert problem.fields["content-type"] == "application/problem+json"
            assert b'"reason": "OriginUnreachable"' in problem.body
            await visitor.close()


async def test_an_origin_that_is_silent_is_given_up_with_504(tunnel: Open) -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.closed()

    async with tunnel(script, response_timeout_s=0.3) as stands:
        visitor = await stands.visitor()
        assert (await visitor.ask("/", host=HOST)).status == 504
        await visitor.close()


async def test_an_origin_that_breaks_off_after_the_head_breaks_the_answer_off(tunnel: Open) -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    async with tunnel(script) as stands:
        visitor = await stands.visitor()
        visitor.send(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        assert (await visitor.head()).status == 200
        assert await visitor.rest() in (b"half", b"")
        await visitor.close()


async def test_an_origin_that_does_not_speak_http_gives_502(tunnel: Open) -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await connection.rest()

    async with tunnel(script) as stands:
        visitor = await stands.visitor()
        answer = await visitor.ask("/", "Accept: application/json", host=HOST)
        assert answer.status == 502
        assert b'"reason": "OriginBroken"' in answer.body
        await visitor.close()


async def test_a_thousand_at_once_are_one_request(tunnel: Open) -> None:
    asked = 0
    answer_now = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        nonlocal asked
        while await connection.request():
            asked += 1
            await answer_now.wait()
            await connection.send(response(b"one for all"))

    async with tunnel(script, cache=CacheRule(mode="override", ttl_s=1.0), collapse=CollapseRule()) as stands:
        visitors = await asyncio.gather(*(stands.visitor() for _ in range(1000)))
        for visitor in visitors:
            visitor.timeout_s = 30.0
            visitor.send(b"GET /page HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        stats = stands.node.cache_stats["team/shop"]
        await until(lambda: stats.misses + stats.collapsed == 1000, 20.0)
        visitors[0].leave()  # whoever led, the others still get their answer
        answer_now.set()
        answers = await asyncio.gather(*(visitor.answer() for visitor in visitors[1:]))
        assert {answer.body for answer in answers} == {b"one for all"}
        assert asked == 1
        for visitor in visitors[1:]:
            visitor.leave()


async def test_policies_of_the_route_hold_on_the_way(tunnel: Open) -> None:
    heads: list[bytes] = []

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            heads.append(head.lower())
            await connection.send(response(b"ok", b"Server: secret/1.0"))

    route = {
        "request_headers": HeaderRules(set=(("x-edge", "1"),)),
        "response_headers": HeaderRules(remove=("server",), add=(("x-frame-options", "DENY"),)),
        "limits": LimitRule(requests_per_second=0.001, burst=2, max_request_body_bytes=10),
    }
    async with tunnel(script, **route) as stands:
        visitor = await stands.visitor()
        first = await visitor.ask("/", host=HOST)
        assert "server" not in first.fields
        assert first.fields["x-frame-options"] == "DENY"
        visitor.send(b"POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 11\r\n\r\nhello world")
        assert (await visitor.answer(b"POST")).status == 413
        await visitor.close()
        visitor = await stands.visitor()
        limited = await visitor.ask("/", host=HOST)
        assert limited.status == 429
        assert int(limited.fields["retry-after"]) > 1
        await visitor.close()
    assert len(heads) == 1
    assert b"x-edge: 1" in heads[0]


async def test_a_slow_visitor_holds_the_origin_back_and_memory_stays_bounded(tunnel: Open) -> None:
    sent = 0
    total = 64 * 1024 * 1024

    async def script(connection: ScriptedConnection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = bytes(65536)
        while sent < total:
            await connection.send(piece)
            sent += len(piece)

    async with tunnel(script) as stands:
        visitor = await Visitor.to(stands.port, buffer_bytes=4096)
        visitor.send(b"GET /big HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        await visitor.head()
        last = -1
        while sent != last:  # until the origin could send nothing more for a while
            last = sent
            await asyncio.sleep(0.5)
        # What is under way: kernel buffers of three sockets (up to some 6 MiB each), credit and buffers of ours.
        assert sent < 32 * 1024 * 1024
        visitor.leave()
        await until(lambda: stands.node.exchanges_in_flight == 0)


async def test_a_slow_upload_taker_holds_the_visitor_back(tunnel: Open) -> None:
    release = asyncio.Event()

    async def stubborn(connection: ScriptedConnection) -> None:
        await connection.request()
        connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await release.wait()

    async with tunnel(stubborn) as stands:
        visitor = await stands.visitor()
        visitor.send(b"POST /up HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 100000000\r\n\r\n")
        sent = 0
        is_held_back = False
        while sent < 100_000_000 and not is_held_back:
            visitor.send(bytes(65536))
            try:
                async with asyncio.timeout(1.0):
                    await visitor.writer.drain()
                sent += 65536
            except TimeoutError:
                is_held_back = True
        assert sent < 32 * 1024 * 1024
        visitor.leave()
        release.set()


async def test_http2_visitors_share_the_tunnel_websockets_included(tunnel: Open) -> None:
    heads: list[bytes] = []

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            heads.append(head)
            if b"upgrade: websocket" not in head.lower():
                await connection.send(response(b"hello"))
                continue
            key = next(line.split()[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
            accept = b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            await connection.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            await connection.send(b"back " + await connection.read(4))
            return

    async with tunnel(script) as stands:
        visitor = await H2Visitor.to(stands.port)
        target = ((b":scheme", b"http"), (b":authority", HOST.encode()), (b":path", b"/"))
        visitor.send(headers(1, (b":method", b"GET"), *target, (b"cookie", b"a=1"), (b"cookie", b"b=2")))
        assert (await visitor.answer(1)).body == b"hello"
        visitor.send(headers(3, (b":method", b"CONNECT"), (b":protocol", b"websocket"), *target, end=False))
        visitor.send(frame(DATA, 0, 3, b"ping"))
        await visitor.until(lambda: visitor.response(3).body == b"back ping")
        assert visitor.response(3).status == 200
        visitor.leave()
    assert b"cookie: a=1; b=2\r\n" in heads[0].lower()
    assert b"via: 2 edgetun" in heads[0].lower()
