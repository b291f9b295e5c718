"""The agent's client of HTTP/2 origins, against servers of other make, that behave, misbehave, and go away."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from edgetun_agent.origin import h2_connection
from edgetun_agent.origin.h2_client import H2OriginClient
from edgetun_agent.origin.h2_exchange import H2Exchange
from edgetun_agent.origin.health import HealthState
from edgetun_core.errors import Cancelled, Draining, OriginBusy, ProtocolError, UpstreamBroken, UpstreamTimeout
from edgetun_core.http.message import RequestHead
from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import OriginRule
from support.exchanges import PEER, request
from support.h2_origin import H2Origin, H2Stream, Handler, h2_origin
from support.origin_server import ScriptedConnection, Visitor, answering, response, scripted_origin

MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, ENABLE_CONNECT_PROTOCOL = 3, 4, 8


@asynccontextmanager
async def client_of(url: str, **rule: Any) -> AsyncIterator[H2OriginClient]:
    client = H2OriginClient(OriginRule("rpc", url, **{"protocol": "h2c", **rule}), service="team-a/shop")
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def served(
    handler: Handler, settings: dict[int, int] | None = None, **rule: Any
) -> AsyncIterator[tuple[H2OriginClient, H2Origin]]:
    async with h2_origin(handler, settings=settings) as origin, client_of(origin.url, **rule) as client:
        yield client, origin


def start(client: H2OriginClient, head: RequestHead | None = None, end: bool = True) -> tuple[Visitor, H2Exchange]:
    visitor = Visitor()
    sink = client.open(head or request(), PEER, end, visitor)
    return visitor, sink  # type: ignore[return-value]


async def ask(client: H2OriginClient, head: RequestHead | None = None) -> Visitor:
    visitor, _ = start(client, head)
    await visitor.ended()
    return visitor


async def hello(stream: H2Stream) -> None:
    await stream.answer()


async def test_requests_share_one_connection_and_say_what_http2_says() -> None:
    async with served(hello) as (client, origin):
        visitors = [start(client, request(b"/a?b=%d" % number, (b"te", b"trailers")))[0] for number in range(50)]
        for visitor in visitors:
            await visitor.ended()
            assert (visitor.status, visitor.body) == (200, b"hello")
        assert len(origin.connections) == 1
        fields = origin.streams[0].fields
        assert fields[b":method"] == b"GET"
        assert fields[b":scheme"] == b"http"
        assert fields[b":authority"] == b"shop.example.com"
        assert fields[b":path"] == b"/a?b=0"
        assert fields[b"te"] == b"trailers"
        assert b"host" not in fields
        assert client.health.state is HealthState.UP
        assert (client.counters.requests, client.counters.answered, client.connections) == (50, 50, 1)
        assert client.in_flight == 0


async def test_no_more_streams_than_the_origin_takes_and_more_connections_when_they_are_full() -> None:
    most = 0
    running = 0
    go_on = asyncio.Event()

    async def handler(stream: H2Stream) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.wait_for(go_on.wait(), 20)
        await stream.answer()
        running -= 1

    async with served(handler, {MAX_CONCURRENT_STREAMS: 4}, max_connections=2) as (client, origin):
        assert (await asyncio.wait_for(_settled(client, go_on), 20)).status == 200
        go_on.clear()
        visitors = [start(client)[0] for _ in range(20)]
        await origin.until(lambda: running == 8)
        assert len(origin.connections) == 2
        assert client.in_flight == 20
        go_on.set()
        for visitor in visitors:
            await visitor.ended()
            assert visitor.status == 200
        assert most == 8
        assert len(origin.streams) == 21


async def _settled(client: H2OriginClient, go_on: asyncio.Event) -> Visitor:
    """One request, after which the origin's settings are known."""
    go_on.set()
    return await ask(client)


async def test_a_burst_before_the_settings_are_known_is_served_all_the_same() -> None:
    async with served(hello, {MAX_CONCURRENT_STREAMS: 1}, max_connections=1) as (client, origin):
        visitors = [start(client)[0] for _ in range(30)]
        for visitor in visitors:
            await visitor.ended()
            assert visitor.status == 200
        assert len(origin.connections) == 1


async def test_a_body_and_its_trailers_arrive_and_so_do_those_of_the_answer() -> None:
    async def handler(stream: H2Stream) -> None:
        body = await stream.body()
        stream.head(200)
        await stream.data(body)
        stream.end_with((b"x-sum", stream.trailers[b"x-up"] if stream.trailers else b"none"))

    async with served(handler) as (client, _):
        visitor, sink = start(client, request(method=b"POST"), end=False)
        sink.send_data(b"ab", False)
        sink.send_data(b"cd", False)
        sink.send_trailers(((b"x-up", b"7"),))
        await visitor.ended()
        assert visitor.body == b"abcd"
        assert visitor.calls[-1] == ("trailers", ((b"x-sum", b"7"),))


async def test_interim_heads_pass() -> None:
    async def handler(stream: H2Stream) -> None:
        stream.head(103, (b"link", b"</a.css>"))
        await stream.answer()

    async with served(handler) as (client, _):
        visitor = await ask(client)
        assert visitor.calls[0] == ("interim", 103, ((b"link", b"</a.css>"),))
        assert visitor.status == 200


async def test_a_large_body_goes_up_as_fast_as_the_origin_takes_it_and_comes_down_as_the_visitor_does() -> None:
    size = 3 * 1024 * 1024

    async def handler(stream: H2Stream) -> None:
        if stream.fields[b":method"] == b"POST":
            await stream.answer(b"%d" % len(await stream.body()))
        else:
            stream.head(200)
            await stream.data(bytes(size), end=True)

    async with served(handler) as (client, origin):
        origin.takes_data = False
        visitor, sink = start(client, request(b"/", (b"content-length", b"%d" % size), method=b"POST"), end=False)
        await visitor.until(lambda: "resume" in visitor.names())
        sent = 0
        while visitor.names().count("pause") <= visitor.names().count("resume") or sent == 0:
            sink.send_data(bytes(32 * 1024), False)
            sent += 32 * 1024
            assert sent < size
            await asyncio.sleep(0)
        assert sent < 1024 * 1024, "the visitor was paused long before all of it was taken"
        origin.takes_data = True
        connection = origin.connections[0]
        for stream in origin.streams:
            connection.h2.acknowledge_received_data(sum(map(len, stream.received)), stream.number)
        connection.flush()
        await visitor.until(lambda: visitor.names().count("resume") >= visitor.names().count("pause"))
        while sent < size:
            sink.send_data(bytes(32 * 1024), sent + 32 * 1024 == size)
            sent += 32 * 1024
        await visitor.ended()
        assert visitor.body == b"%d" % size

        visitor, sink = start(client)
        await visitor.until(lambda: visitor.body)
        sink.pause_response()
        had = -1
        while had != len(visitor.body):
            had = len(visitor.body)
            await asyncio.sleep(0.3)
        assert had <= 2 * h2_connection.STREAM_WINDOW_BYTES, "a paused reader is not sent more"
        assert (await ask(client, request(b"/", method=b"HEAD"))).status == 200
        sink.resume_response()
        await visitor.ended()
        assert len(visitor.body) == size


async def test_a_visitor_who_leaves_is_told_to_the_origin_as_cancel() -> None:
    async def handler(stream: H2Stream) -> None:
        stream.head(200)
        await stream.data(b"first")
        await stream.until(lambda: stream.reset_code is not None)

    async with served(handler) as (client, origin):
        visitor, sink = start(client)
        await visitor.until(lambda: visitor.body)
        sink.reset(Cancelled("left"))
        await origin.until(lambda: origin.streams[0].reset_code == 8)
        assert client.counters.cancelled == 1
        assert client.in_flight == 0
        assert visitor.names()[-1] == "data"
        assert client.connections == 1


async def test_an_answer_that_comes_before_the_request_ended_is_whole_and_stops_the_request() -> None:
    async def handler(stream: H2Stream) -> None:
        await stream.answer(b"enough", status=413)
        await stream.until(lambda: stream.reset_code is not None)

    async with served(handler) as (client, origin):
        visitor, sink = start(client, request(method=b"POST"), end=False)
        sink.send_data(b"x", False)
        await visitor.ended()
        assert (visitor.status, visitor.body) == (413, b"enough")
        sink.send_data(b"y", True)
        await origin.until(lambda: origin.streams[0].reset_code is not None)


async def test_what_the_origin_refuses_unseen_is_sent_again_with_its_body() -> None:
    async def handler(stream: H2Stream) -> None:
        if len(stream.connection.origin.streams) <= 2:
            stream.reset(7)
            return
        await stream.answer(await stream.body())

    async with served(handler) as (client, origin):
        visitor, sink = start(client, request(method=b"POST"), end=False)
        sink.send_data(b"once", False)
        sink.send_data(b" and again", True)
        await visitor.ended()
        assert visitor.body == b"once and again"
        assert len(origin.streams) == 3
        assert client.counters.repeated == 2


async def test_what_is_refused_for_ever_ends_with_an_error() -> None:
    async def handler(stream: H2Stream) -> None:
        stream.reset(7)

    async with served(handler) as (client, origin):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)
        assert "REFUSED_STREAM" in str(visitor.error)
        assert len(origin.streams) == 4


async def test_a_body_that_is_too_large_to_keep_is_not_sent_twice() -> None:
    async def handler(stream: H2Stream) -> None:
        await stream.until(lambda: sum(map(len, stream.received)) > 64 * 1024)
        stream.reset(7)

    async with served(handler) as (client, origin):
        visitor, sink = start(client, request(method=b"POST"), end=False)
        await origin.until(lambda: origin.streams)
        for _ in range(5):
            sink.send_data(bytes(16 * 1024), False)
        await visitor.ended()
        assert isinstance(visitor.error, UpstreamBroken)
        assert len(origin.streams) == 1


async def test_goaway_finishes_what_is_under_way_and_sends_the_rest_elsewhere() -> None:
    finish = asyncio.Event()

    async def handler(stream: H2Stream) -> None:
        if stream.connection is stream.connection.origin.connections[0]:
            if stream.number == 1:
                stream.head(200)
                await asyncio.wait_for(finish.wait(), 20)
                await stream.data(b"old", end=True)
            else:
                stream.connection.go_away(1)
            return
        await stream.answer(b"new")

    async with served(handler) as (client, origin):
        first, _ = start(client)
        await first.until(lambda: "head" in first.names())
        second = await ask(client)
        third = await ask(client)
        assert (second.body, third.body) == (b"new", b"new")
        assert len(origin.connections) == 2
        assert client.connections == 2
        finish.set()
        await first.ended()
        assert first.body == b"old"
        await origin.until(lambda: client.connections == 1)


async def test_a_connection_that_breaks_under_an_answer_is_told_and_the_next_request_gets_a_new_one() -> None:
    async def handler(stream: H2Stream) -> None:
        if len(stream.connection.origin.connections) == 1:
            stream.head(200)
            await stream.data(b"half")
            stream.connection.writer.transport.abort()
            return
        await stream.answer()

    async with served(handler) as (client, _):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)
        assert (await ask(client)).body == b"hello"


async def test_an_idempotent_request_on_a_kept_connection_that_died_is_sent_once_more() -> None:
    async def handler(stream: H2Stream) -> None:
        if len(stream.connection.origin.streams) == 2:
            stream.connection.writer.transport.abort()
            return
        await stream.answer()

    async with served(handler) as (client, origin):
        assert (await ask(client)).status == 200
        assert (await ask(client)).status == 200
        assert len(origin.streams) == 3
        visitor, sink = start(client, request(method=b"POST"), end=False)
        sink.send_data(b"", True)
        await visitor.ended()
        assert visitor.status == 200


async def test_a_post_on_a_connection_that_died_is_not_sent_twice() -> None:
    async def handler(stream: H2Stream) -> None:
        if stream.fields[b":method"] == b"POST":
            stream.connection.writer.transport.abort()
            return
        await stream.answer()

    async with served(handler) as (client, origin):
        assert (await ask(client)).status == 200
        assert isinstance((await ask(client, request(method=b"POST"))).error, UpstreamBroken)
        assert len(origin.streams) == 2


async def test_deadlines_hold_for_the_head_and_for_silence_and_not_for_grpc_and_event_streams() -> None:
    async def handler(stream: H2Stream) -> None:
        kind = stream.fields[b":path"]
        if kind == b"/head":
            await stream.until(lambda: stream.reset_code is not None)
        elif kind == b"/body":
            stream.head(200)
            await stream.data(b"x")
            await stream.until(lambda: stream.reset_code is not None)
        else:
            await asyncio.sleep(2.5)
            stream.head(200, (b"content-type", stream.fields.get(b"content-type", b"text/event-stream")))
            await stream.data(b"x")
            await asyncio.sleep(1.5)
            await stream.data(b"y", end=True)

    async with served(handler, response_timeout_s=1.5, idle_timeout_s=0.5) as (client, _):
        late = start(client, request(b"/rpc", (b"content-type", b"application/grpc+proto")))[0]
        head = await ask(client, request(b"/head"))
        assert isinstance(head.error, UpstreamTimeout)
        assert head.error.presentation.status == 504
        body = await ask(client, request(b"/body"))
        assert isinstance(body.error, UpstreamTimeout)
        assert body.body == b"x"
        await late.ended()
        assert late.body == b"xy"


async def test_the_visitors_own_silence_is_not_counted_against_the_origin() -> None:
    async def handler(stream: H2Stream) -> None:
        await stream.answer(await stream.body())

    async with served(handler, idle_timeout_s=0.3) as (client, origin):
        visitor, sink = start(client, request(method=b"POST"), end=False)
        await origin.until(lambda: origin.streams)
        await asyncio.sleep(0.5)
        sink.send_data(b"late", False)
        sink.sweep(monotonic(), 10.0, 0.3)  # before the loop has had a turn to send it
        sink.send_data(b"", True)
        await visitor.ended()
        assert "reset" not in visitor.names()
        assert visitor.body == b"late"


async def test_a_dead_origin_is_found_by_ping_and_a_quiet_one_is_not_pestered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h2_connection, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(h2_connection, "PING_AGAIN_S", 0.2)

    async def handler(stream: H2Stream) -> None:
        stream.head(200)
        await stream.until(lambda: stream.reset_code is not None)

    async with served(handler, idle_timeout_s=0.2) as (client, _):
        quiet, sink = start(client, request(b"/", (b"content-type", b"application/grpc")))
        await quiet.until(lambda: "head" in quiet.names())
        await asyncio.sleep(1.0)
        assert quiet.names() == ["head"], "it answers PINGs"
        sink.reset(Cancelled("left"))

    async def deaf(connection: ScriptedConnection) -> None:
        await connection.send(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS, and then nothing
        await connection.closed()

    monkeypatch.setattr(h2_connection, "PONG_WITHIN_S", 0.3)
    monkeypatch.setattr(h2_connection, "PING_AGAIN_S", 300.0)
    async with scripted_origin(deaf) as deaf_origin, client_of(deaf_origin.url, idle_timeout_s=0.2) as client:
        visitor = await ask(client, request(b"/", (b"content-type", b"application/grpc")))
        assert isinstance(visitor.error, UpstreamTimeout)
        assert "PING" in str(visitor.error)


async def test_what_is_not_http2_is_told_with_what_to_do() -> None:
    async with scripted_origin(answering(response())) as origin, client_of(origin.url) as client:
        visitor = await ask(client)
        assert "http1" in str(visitor.error)

    async def mute(connection: ScriptedConnection) -> None:
        await connection.read(24)
        await connection.closed()

    async with scripted_origin(mute) as origin, client_of(origin.url, connect_timeout_s=0.3) as client:
        assert "said nothing in HTTP/2" in str((await ask(client)).error)

    async def leaving(connection: ScriptedConnection) -> None:
        await connection.read(24)
        connection.end()

    async with scripted_origin(leaving) as origin, client_of(origin.url) as client:
        assert "http1" in str((await ask(client)).error)
    async with client_of(origin.url) as client:
        assert "nothing answers" in str((await ask(client)).error)
        assert client.health.state is HealthState.DOWN


def tls_contexts(folder: Path, *alpn: str) -> tuple[ssl.SSLContext, str]:
    ca = DevelopmentCA(folder / "ca")
    identity = ca.identity(["127.0.0.1"])
    (folder / "cert.pem").write_bytes(identity.cert_pem)
    (folder / "key.pem").write_bytes(identity.key_pem)
    (folder / "ca.pem").write_bytes(ca.ca_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context, str(folder / "ca.pem")


@pytest.mark.parametrize("protocol", ["h2", "auto"])
async def test_alpn_chooses_http2_over_tls(tmp_path: Path, protocol: str) -> None:
    context, ca_file = tls_contexts(tmp_path, "h2", "http/1.1")
    async with (
        h2_origin(hello, tls=context) as origin,
        client_of(origin.url, protocol=protocol, tls_ca_file=ca_file) as client,
    ):
        assert (await ask(client)).body == b"hello"
        assert origin.streams[0].fields[b":scheme"] == b"https"


async def test_auto_takes_http1_where_alpn_does_and_h2_says_that_it_cannot(tmp_path: Path) -> None:
    context, ca_file = tls_contexts(tmp_path, "http/1.1")
    async with scripted_origin(answering(response(), response(), response()), tls=context) as origin:
        async with client_of(origin.url, protocol="auto", tls_ca_file=ca_file) as client:
            visitors = [start(client)[0] for _ in range(3)]
            for visitor in visitors:
                await visitor.ended()
                assert visitor.body == b"hello"
            assert (await ask(client)).body == b"hello"
            assert (client.counters.requests, client.counters.answered) == (4, 4)
        async with client_of(origin.url, protocol="h2", tls_ca_file=ca_file) as client:
            assert "auto or http1" in str((await ask(client)).error)


async def test_auto_looks_again_when_the_origin_was_down(tmp_path: Path) -> None:
    old, ca_file = tls_contexts(tmp_path, "http/1.1")
    async with scripted_origin(answering(response()), tls=old) as origin:
        port = int(origin.url.rpartition(":")[2])
        client = H2OriginClient(OriginRule("rpc", origin.url, protocol="auto", tls_ca_file=ca_file))
        assert (await ask(client)).body == b"hello"
    assert (await ask(client)).names() == ["reset"]
    assert client.health.state is HealthState.DOWN
    old.set_alpn_protocols(["h2"])
    async with h2_origin(hello, tls=old, port=port) as two:
        assert (await ask(client)).body == b"hello"
        assert len(two.streams) == 1
        await client.close()


async def test_a_unix_socket_speaks_http2_too(tmp_path: Path) -> None:
    async with h2_origin(hello, unix=str(tmp_path / "s")) as origin, client_of(origin.url) as client:
        assert (await ask(client)).body == b"hello"


def websocket() -> RequestHead:
    head = request(b"/ws", (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="), (b"sec-websocket-version", b"13"))
    head.protocol = b"websocket"
    return head


async def test_a_websocket_goes_as_an_extended_connect_where_the_origin_offers_it() -> None:
    async def handler(stream: H2Stream) -> None:
        assert stream.fields[b":method"] == b"CONNECT"
        assert stream.fields[b":protocol"] == b"websocket"
        assert b"sec-websocket-key" not in stream.fields
        stream.head(200)
        await stream.data(b"hi")
        await stream.until(lambda: stream.received)
        await stream.data(b"".join(stream.received).upper())
        await stream.until(lambda: stream.ended)
        await stream.data(b"", end=True)

    async with served(handler, {ENABLE_CONNECT_PROTOCOL: 1}) as (client, _):
        visitor, sink = start(client, websocket(), end=False)
        sink.send_data(b"frame", False)
        await visitor.until(lambda: visitor.body == b"hiFRAME")
        assert visitor.status == 101
        assert visitor.fields[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        sink.send_data(b"", True)
        await visitor.ended()
        assert client.in_flight == 0


async def test_a_websocket_falls_back_to_http1_where_it_does_not() -> None:
    """The one port speaks both, as Node's and Go's servers do."""
    upgraded = asyncio.Event()

    async def handler(stream: H2Stream) -> None:
        await stream.answer()

    two = H2Origin(handler)

    async def script(connection: ScriptedConnection) -> None:
        first = await connection.read(3)
        if first == b"PRI":
            await two.serve(connection.reader, connection.writer, {}, first)
            return
        await connection.until(b"\r\n\r\n")
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhi"
        )
        upgraded.set()
        await connection.closed()

    async with scripted_origin(script) as origin, client_of(origin.url) as client:
        visitor, sink = start(client, websocket(), end=False)
        await visitor.until(lambda: visitor.body == b"hi")
        assert visitor.status == 101
        assert upgraded.is_set()
        assert (await ask(client)).body == b"hello"
        sink.reset(Cancelled("left"))
        assert client.counters.requests == 2
    assert not two.errors


async def test_lengths_that_do_not_hold_never_reach_the_origin_as_whole() -> None:
    async def handler(stream: H2Stream) -> None:
        await stream.until(lambda: stream.ended or stream.reset_code is not None)

    async with served(handler) as (client, origin):
        for pieces in ((b"too long",), (b"a",)):
            visitor, sink = start(client, request(b"/", (b"content-length", b"3"), method=b"POST"), end=False)
            for piece in pieces:
                sink.send_data(piece, True)
            await visitor.ended()
            assert isinstance(visitor.error, ProtocolError)
        visitor = await ask(client, request(b"/", (b"content-length", b"3"), method=b"POST"))
        assert isinstance(visitor.error, ProtocolError)
        assert not any(stream.ended for stream in origin.streams)


async def test_the_queue_is_bounded_and_so_is_patience() -> None:
    async def handler(stream: H2Stream) -> None:
        await stream.until(lambda: stream.reset_code is not None)

    async with served(handler, {MAX_CONCURRENT_STREAMS: 1}, max_connections=1, response_timeout_s=2.0) as (
        client,
        origin,
    ):
        first, _ = start(client, request(b"/", (b"content-type", b"application/grpc")))
        await origin.until(lambda: origin.streams and client._connections[0].has_settings)
        waiting = [start(client)[0] for _ in range(100)]
        refused, _ = start(client)
        assert isinstance(refused.error, OriginBusy)
        for visitor in waiting:
            await visitor.ended()
            assert isinstance(visitor.error, OriginBusy)
        assert first.names() == []


async def test_close_lets_what_runs_end_and_refuses_what_comes() -> None:
    go_on = asyncio.Event()

    async def handler(stream: H2Stream) -> None:
        await asyncio.wait_for(go_on.wait(), 20)
        await stream.answer()

    async with served(handler) as (client, origin):
        visitor, _ = start(client)
        await origin.until(lambda: origin.streams)
        closing = asyncio.create_task(client.close(20))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait_for(closing, 20)
        assert visitor.status == 200
        assert isinstance((await ask(client)).error, Draining)
        await origin.until(lambda: origin.connections[0].goaways)
