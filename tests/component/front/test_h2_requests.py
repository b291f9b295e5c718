"""HTTP/2 on the fronts: how it begins, what passes both ways, who waits for whom, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from edgetun_core.errors import Cancelled, NoSession
from edgetun_core.http.h2 import PREFACE, Code
from edgetun_core.http.h2.frames import (
    DATA,
    END_STREAM,
    PING,
    build_priority_update,
    build_rst_stream,
    frame,
)
from edgetun_core.http.message import ResponseHead
from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontContext
from edgetun_exitnode.front.servers import serve_https
from edgetun_exitnode.front.tls import TlsFront
from support.h2_frames import GET, headers, settings
from support.h2_visitor import H2Visitor
from support.handlers import Asked, ScriptedHandler, echo, hello, wait
from support.visitors import until

from .conftest import QUICK, Connect, StartFront

Speak = Callable[..., Awaitable[H2Visitor]]


@pytest.fixture
async def speak() -> AsyncIterator[Speak]:
    """Connects a visitor who speaks HTTP/2."""
    visitors: list[H2Visitor] = []

    async def to(port: int, **options: object) -> H2Visitor:
        visitor = await H2Visitor.to(port, **options)  # type: ignore[arg-type]
        visitors.append(visitor)
        return visitor

    yield to
    for visitor in visitors:
        visitor.leave()
    await asyncio.sleep(0)


# TLS.


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def tls_front(ca: DevelopmentCA, tmp_path: Path) -> AsyncIterator[TlsFront]:
    cert_pem, key_pem = ca.issue(["shop.example", "www.shop.example"])
    pair = tmp_path / "cert.pem", tmp_path / "key.pem"
    pair[0].write_bytes(cert_pem)
    pair[1].write_bytes(key_pem)
    front = await serve_https(FrontContext(ScriptedHandler(), QUICK), "127.0.0.1", 0, CertificateStore([pair]))
    assert isinstance(front, TlsFront)
    yield front
    await front.drain(0.0)
    assert front.counters.connections_open == 0


def client(ca: DevelopmentCA, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca.ca_pem.decode())
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def at(host: bytes, path: bytes = b"/") -> tuple[tuple[bytes, bytes], ...]:
    return ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", host), (b":path", path))


async def test_http2_is_agreed_by_alpn_and_comes_before_http_1(tls_front, ca, speak):
    visitor = await speak(tls_front.port, tls=client(ca, "http/1.1", "h2"), server_name="shop.example")
    chosen = visitor.writer.get_extra_info("ssl_object").selected_alpn_protocol()
    assert chosen == "h2"
    visitor.send(headers(1, *at(b"shop.example", b"/x")))
    response = await visitor.answer(1)
    assert (response.status, response.body) == (200, b"hello /x")
    assert response.fields[b"date"].endswith(b"GMT")
    peer = tls_front.context.handler.asked[0].peer
    assert (peer.version, peer.scheme, peer.sni) == (b"2", b"https", "shop.example")
    assert tls_front.counters.h2_connections == 1


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)], ids=["no ALPN", "http/1.1"])
async def test_over_tls_http2_is_spoken_by_agreement_only(tls_front, ca, connect: Connect, protocols):
    visitor = await connect(tls_front.port, tls=client(ca, *protocols), server_name="shop.example")
    visitor.send(PREFACE)
    assert (await visitor.answer()).status == 505


async def test_other_hosts_are_served_if_the_certificate_covers_them_and_421_if_not(tls_front, ca, speak):
    visitor = await speak(tls_front.port, tls=client(ca, "h2"), server_name="shop.example")
    visitor.send(
        headers(1, *at(b"www.shop.example")), headers(3, *at(b"bank.example")), headers(5, *at(b"shop.example"))
    )
    assert [(await visitor.answer(stream)).status for stream in (1, 3, 5)] == [200, 421, 200]


async def test_a_scheme_that_is_not_the_connections_is_misdirected(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port)
    visitor.send(headers(1, *at(b"localhost")))
    assert (await visitor.answer(1)).status == 421


# Prior knowledge.


async def test_a_preface_on_the_plain_port_begins_http2_however_it_is_cut(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port, greet=False)
    for byte in PREFACE:
        visitor.send(bytes((byte,)))
        await asyncio.sleep(0.001)
    visitor.send(settings())
    assert (await visitor.fetch(1, path=b"/a")).body == b"hello /a"
    assert front.counters.connections_total == 1


async def test_http1_and_http2_share_a_port(start_front: StartFront, speak: Speak, connect: Connect):
    front = await start_front()
    one, two = await connect(front.port), await speak(front.port)
    assert (await one.ask("/1")).body == b"hello /1"
    assert (await two.fetch(1, path=b"/2")).body == b"hello /2"


# What passes.


async def test_many_requests_in_one_read_are_answered_in_one_write(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port)
    await visitor.roundtrip()
    (connection,) = front.connections
    writes: list[int] = []

    class Spy:
        def __init__(self, transport):
            self.transport = transport

        def write(self, data):
            writes.append(len(data))
            self.transport.write(data)

        def __getattr__(self, name):
            return getattr(self.transport, name)

    connection.transport = Spy(connection.transport)  # type: ignore[assignment]
    visitor.send(b"".join(headers(stream, *GET) for stream in range(1, 21, 2)))
    for stream in range(1, 21, 2):
        assert (await visitor.answer(stream)).body == b"hello /"
    assert len(writes) == 1


async def test_answers_that_come_later_in_one_tick_leave_in_one_write_too(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    for stream in (1, 3, 5):
        visitor.ask(stream)
    await handler.request(2)
    before = len(visitor.frames)
    for asked in handler.asked:
        asked.answer(200, b"later")
    (connection,) = front.connections
    assert connection.is_woken
    for stream in (1, 3, 5):
        assert (await visitor.answer(stream)).body == b"later"
    assert len(visitor.frames) > before


async def test_a_body_with_trailers_goes_up_and_down(start_front: StartFront, speak: Speak):
    front = await start_front(ScriptedHandler(echo))
    visitor = await speak(front.port)
    visitor.ask(1, end=False)
    visitor.send(frame(DATA, 0, 1, b"one "), frame(DATA, 0, 1, b"two"), headers(1, (b"check", b"sum")))
    response = await visitor.answer(1)
    assert response.body == b"one two"
    assert response.fields[b"x-trailer-check"] == b"sum"


async def test_interim_heads_come_before_the_head(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.ask(1, (b"expect", b"100-continue"), end=False)
    asked = await handler.request()
    asked.client.on_interim(ResponseHead(100, ()))
    asked.client.on_interim(ResponseHead(100, ()))
    asked.client.on_interim(ResponseHead(103, ((b"link", b"</a.css>"),)))
    await visitor.until(lambda: len(visitor.response(1).heads) == 2)
    visitor.send(frame(DATA, END_STREAM, 1, b"x"))
    await asked.until(lambda asked: asked.ended)
    asked.answer(200, b"done")
    response = await visitor.answer(1)
    assert [dict(head)[b":status"] for head in response.heads] == [b"100", b"103", b"200"]


async def test_an_event_streams_head_and_each_event_arrive_at_once(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.ask(1)
    asked = await handler.request()
    asked.begin(200, (b"content-type", b"text/event-stream"))
    await visitor.until(lambda: bool(visitor.response(1).heads))
    for number in range(3):
        asked.client.on_data(b"data: %d\n\n" % number, False)
        await visitor.until(lambda: visitor.response(1).body.endswith(b"data: %d\n\n" % number))  # noqa: B023
    asked.client.on_data(b"", True)
    assert (await visitor.answer(1)).ended


@pytest.mark.parametrize("status", [204, 304])
async def test_a_response_without_content_ends_with_its_head(start_front: StartFront, speak: Speak, status):
    front = await start_front(ScriptedHandler(lambda asked: asked.answer(status, length=False)))
    visitor = await speak(front.port)
    response = await visitor.fetch(1)
    assert (response.status, response.body) == (status, b"")
    assert not any(one.kind == DATA for one in visitor.frames)


async def test_head_gets_the_length_and_no_body(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port)
    visitor.send(
        headers(1, (b":method", b"HEAD"), *GET[1:]),
        headers(3, (b":method", b"HEAD"), *GET[1:3], (b":path", b"/" + b"a" * 9000)),
    )
    response = await visitor.answer(1)
    assert (response.fields[b"content-length"], response.body) == (b"7", b"")
    response = await visitor.answer(3)
    assert (response.status, response.body) == (414, b"")


async def test_an_error_before_the_head_is_a_page_and_after_it_a_reset(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.ask(1)
    visitor.ask(3)
    one, two = await handler.request(0), await handler.request(1)
    one.client.on_reset(NoSession("nobody is there"))
    response = await visitor.answer(1)
    assert (response.status, b"nobody is there" in response.body) == (503, True)
    two.begin(200)
    two.client.on_data(b"half", False)
    await visitor.until(lambda: visitor.response(3).body == b"half")
    two.client.on_reset(NoSession("gone"))
    assert (await visitor.answer(3)).reset == Code.INTERNAL_ERROR
    assert front.counters.responses_aborted == 1


@pytest.mark.parametrize("body", [b"short", b"much too long"])
async def test_a_body_of_another_length_than_announced_is_broken_off(start_front: StartFront, speak: Speak, body):
    def script(asked: Asked) -> None:
        asked.begin(200, (b"content-length", b"9"))
        asked.client.on_data(body[:3], False)
        asked.client.on_data(body[3:], True)

    front = await start_front(ScriptedHandler(script))
    visitor = await speak(front.port)
    response = await visitor.fetch(1)
    assert response.reset == Code.INTERNAL_ERROR
    assert not response.ended


# Who leaves.


async def test_a_reset_cancels_its_exchange_and_no_other(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.ask(1)
    visitor.ask(3)
    one, two = await handler.request(0), await handler.request(1)
    visitor.send(build_rst_stream(1, Code.CANCEL))
    await one.until(lambda asked: asked.error is not None)
    assert isinstance(one.error, Cancelled)
    one.answer(200, b"too late")
    two.answer(200, b"served")
    assert (await visitor.answer(3)).body == b"served"
    assert not visitor.response(1).heads
    assert front.counters.h2_streams_reset == 1


async def test_leaving_cancels_every_exchange(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    for stream in (1, 3, 5):
        visitor.ask(stream)
    await handler.request(2)
    visitor.leave()
    for asked in handler.asked:
        await asked.until(lambda asked: isinstance(asked.error, Cancelled))
    await until(lambda: not front.connections)


# Who waits.


async def test_a_slow_reader_pauses_the_answering_side_on_its_stream_alone(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(hello, slow=wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.ask(1, path=b"/slow")
    asked = await handler.request()
    asked.begin(200)
    sent = 0
    while not asked.is_paused:
        asked.client.on_data(b"x" * 16_384, False)
        sent += 16_384
        assert sent < 2_000_000
    visitor.open_windows()
    assert (await visitor.fetch(3)).body == b"hello /"
    assert asked.is_paused
    visitor.open_windows(1)
    await visitor.until(lambda: not asked.is_paused)
    asked.client.on_data(b"", True)
    assert len((await visitor.answer(1)).body) == sent


async def test_a_slow_handler_holds_back_the_visitors_windows(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.ask(1, end=False)
    asked = await handler.request()
    asked.client.pause_request()
    window = front.limits.h2.stream_window_bytes
    for _ in range(window // 16_384):
        visitor.send(frame(DATA, 0, 1, b"x" * 16_384))
    await visitor.roundtrip()
    assert len(asked.body) == window
    assert not any(one.kind == 0x8 and one.stream_id == 1 for one in visitor.frames)
    assert front.held_bytes == window
    asked.client.resume_request()
    await visitor.until(lambda: any(one.kind == 0x8 and one.stream_id == 1 for one in visitor.frames))
    assert front.held_bytes == 0
    visitor.send(frame(DATA, END_STREAM, 1, b"end"))
    await asked.until(lambda asked: asked.ended)
    asked.answer(200, b"ok")
    assert (await visitor.answer(1)).status == 200


async def test_urgent_responses_overtake(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.send(settings((0x4, 1 << 24)))
    visitor.ask(1, (b"priority", b"u=6"))
    visitor.ask(3, (b"priority", b"u=1"))
    visitor.ask(5, (b"priority", b"u=6"))
    visitor.send(build_priority_update(5, b"u=0"))
    await visitor.roundtrip()
    await handler.request(2)
    for asked in handler.asked:
        asked.answer(200, b"x" * 60_000)
    await visitor.roundtrip()
    visitor.open_windows()
    for stream in (1, 3, 5):
        assert len((await visitor.answer(stream)).body) == 60_000
    ends = [one.stream_id for one in visitor.frames if one.kind == DATA and one.flags & END_STREAM]
    assert ends == [5, 3, 1]


# WebSocket (RFC 8441).

CONNECT = ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:], (b"sec-websocket-version", b"13"))


def accept_of(asked: Asked) -> bytes:
    key = asked.head.get(b"sec-websocket-key")
    assert key is not None
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


async def test_a_websocket_is_an_upgrade_to_the_origin_and_raw_bytes_both_ways(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.send(headers(1, *CONNECT, end=False))
    asked = await handler.request()
    assert (asked.head.method, asked.head.protocol, asked.ended) == (b"GET", b"websocket", False)
    fields = ((b"sec-websocket-accept", accept_of(asked)), (b"sec-websocket-protocol", b"chat"))
    asked.client.on_head(ResponseHead(101, fields), False)
    await visitor.until(lambda: bool(visitor.response(1).heads))
    assert visitor.response(1).fields[b"sec-websocket-protocol"] == b"chat"
    assert visitor.response(1).status == 200
    assert b"sec-websocket-accept" not in visitor.response(1).fields
    visitor.send(frame(DATA, 0, 1, b"\x81\x85up"))
    await asked.until(lambda asked: bytes(asked.body) == b"\x81\x85up")
    asked.client.on_data(b"\x81\x04down", False)
    await visitor.until(lambda: visitor.response(1).body == b"\x81\x04down")
    asked.client.on_data(b"", True)
    await visitor.until(lambda: visitor.response(1).ended)
    visitor.send(frame(DATA, END_STREAM, 1, b"bye"))
    await asked.until(lambda asked: asked.ended)
    assert bytes(asked.body).endswith(b"bye")


async def test_a_websocket_that_is_refused_gets_the_origins_answer(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(lambda asked: asked.answer(403, b"no"))
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.send(headers(1, *CONNECT, end=False))
    response = await visitor.answer(1)
    assert (response.status, response.body) == (403, b"no")


async def test_an_origin_that_does_not_know_websocket_is_not_believed(start_front: StartFront, speak: Speak):
    def script(asked: Asked) -> None:
        asked.client.on_head(ResponseHead(101, ((b"sec-websocket-accept", b"x"),)), False)

    handler = ScriptedHandler(script)
    front = await start_front(handler)
    visitor = await speak(front.port)
    visitor.send(headers(1, *CONNECT, end=False))
    assert (await visitor.answer(1)).status == 502
    assert handler.asked[0].error is not None


# How it ends.


async def test_a_drain_takes_two_steps_and_cuts_nothing(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(
        handler, sweep_s=5.0
    )  # the visitor's answer to PING brings the second step, not the clock
    visitor = await speak(front.port)
    visitor.ask(1)
    asked = await handler.request()
    await visitor.roundtrip()
    visitor.is_polite = False
    draining = asyncio.create_task(front.drain(10.0))
    await visitor.until(lambda: bool(visitor.goaways))
    assert visitor.goaways[0].payload == b"\x7f\xff\xff\xff" + bytes(4)
    visitor.ask(3)  # it crosses the first GOAWAY
    late = await handler.request(1)
    (ping,) = [one for one in visitor.frames if one.kind == PING and not one.flags & 1]
    visitor.send(frame(PING, 1, 0, ping.payload))
    await visitor.until(lambda: len(visitor.goaways) == 2)
    visitor.ask(99)
    asked.answer(200, b"one")
    late.answer(200, b"two")
    assert (await visitor.answer(1)).body == b"one"
    assert (await visitor.answer(3)).body == b"two"
    await draining
    last = await visitor.goaway()
    assert (int.from_bytes(last.payload[:4], "big"), last.code) == (3, Code.NO_ERROR)
    assert len(handler.asked) == 2


async def test_a_drain_does_not_wait_for_idle_connections(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port)
    assert (await visitor.fetch(1)).status == 200
    await visitor.roundtrip()
    async with asyncio.timeout(10):
        await front.drain(9.0)
    assert (await visitor.goaway()).code == Code.NO_ERROR


async def test_a_connection_without_requests_ends_with_goaway(start_front: StartFront, speak: Speak):
    front = await start_front(keep_alive_s=0.2)
    visitor = await speak(front.port)
    assert (await visitor.fetch(1)).status == 200
    assert (await visitor.goaway()).code == Code.NO_ERROR


async def test_an_idle_connection_makes_room_for_a_new_one(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(hello, wait=wait)
    front = await start_front(handler, max_connections=2)
    idle, busy = await speak(front.port), await speak(front.port)
    assert (await idle.fetch(1)).status == 200
    busy.ask(1, path=b"/wait")
    asked = await handler.request(1)
    await asyncio.sleep(0.15)
    late = await speak(front.port)
    assert (await late.fetch(1)).status == 200

    while await idle.read_some():
        pass
    asked.answer(200, b"kept")
    assert (await busy.answer(1)).body == b"kept"
    assert front.counters.connections_evicted == 1


async def test_an_upload_that_goes_on_is_not_cut_and_a_paused_one_neither(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler, body_progress_s=1.0, head_s=1.0)
    visitor = await speak(front.port)
    visitor.ask(1, end=False)
    asked = await handler.request()
    await visitor.roundtrip()
    piece = frame(DATA, 0, 1, b"x" * 20)
    for byte in piece:
        visitor.send(bytes((byte,)))
        await asyncio.sleep(0.05)
    asked.client.pause_request()
    await asyncio.sleep(1.3)
    asked.client.resume_request()
    visitor.send(frame(DATA, END_STREAM, 1))
    await asked.until(lambda asked: asked.ended)
    assert asked.error is None
    asked.answer(200, b"ok")
    assert (await visitor.answer(1)).status == 200


async def test_frames_of_the_transport_are_counted(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port)
    await visitor.fetch(1)
    visitor.send(frame(PING, 0, 0, b"short"))
    await visitor.goaway()
    await until(lambda: not front.connections)
    assert front.counters.h2_connections_broken == 1
    assert front.counters.responses[2] == 1
    assert front.counters.bytes_in > 100
    assert front.counters.bytes_out > 100
