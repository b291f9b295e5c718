"""The agent's origin client against origins that behave, misbehave, and are not there; real sockets on loopback."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from edgetun_agent.observe import RecentRequests
from edgetun_agent.origin import connection as connection_module
from edgetun_agent.origin.client import OriginClient
from edgetun_agent.origin.connect import OriginDialler
from edgetun_agent.origin.health import HealthState
from edgetun_core.errors import (
    Cancelled,
    Draining,
    EdgetunError,
    LimitExceeded,
    OriginBusy,
    ProtocolError,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from edgetun_core.http.exchange import RequestSink
from edgetun_core.http.message import RequestHead
from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import OriginRule
from support.exchanges import PEER, Recorder, request
from support.origin_server import (
    DEADLINE_S,
    Script,
    ScriptedConnection,
    ScriptedOrigin,
    Visitor,
    answering,
    response,
    scripted_origin,
)


@asynccontextmanager
async def client_of(url: str, **rule: Any) -> AsyncIterator[OriginClient]:
    recent = RecentRequests()
    client = OriginClient(OriginRule(name="web", url=url, **rule), service="team-a/shop", recent=recent)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def served(script: Script, **rule: Any) -> AsyncIterator[tuple[OriginClient, ScriptedOrigin]]:
    async with scripted_origin(script) as origin, client_of(origin.url, **rule) as client:
        yield client, origin


async def ask(client: OriginClient, head: RequestHead | None = None) -> Visitor:
    visitor = Visitor()
    client.open(head or request(), PEER, True, visitor)
    await visitor.ended()
    return visitor


def upload(client: OriginClient, head: RequestHead) -> tuple[Visitor, RequestSink]:
    visitor = Visitor()
    return visitor, client.open(head, PEER, False, visitor)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for lives on sockets
            await asyncio.sleep(0.005)


POST = request(b"/up", method=b"POST")


def sized(size: int) -> RequestHead:
    return request(b"/up", (b"content-length", b"%d" % size), method=b"POST")


# ---- requests and plain responses


async def test_a_request_reaches_the_origin_with_its_fields_and_its_answer_comes_back() -> None:
    seen: list[bytes] = []

    async def script(connection: ScriptedConnection) -> None:
        seen.append(await connection.request())
        await connection.send(response(b"hello", b"Content-Type: text/plain", b"Connection: keep-alive"))
        await connection.closed()

    async with served(script) as (client, _):
        visitor = await ask(client, request(b"/a?b=1", (b"accept", b"*/*"), host=b"shop.example.com:8443"))
    assert seen == [b"GET /a?b=1 HTTP/1.1\r\nhost: shop.example.com:8443\r\naccept: */*\r\n\r\n"]
    assert visitor.status == 200
    assert visitor.fields == {b"content-length": b"5", b"content-type": b"text/plain"}
    assert visitor.body == b"hello"


@pytest.mark.parametrize(
    ("choice", "sent"), [("preserve", b"shop.example.com"), ("origin", None), ("a.test", b"a.test")]
)
async def test_the_host_field_is_the_one_chosen(choice: str, sent: bytes | None) -> None:
    seen: list[bytes] = []

    async def script(connection: ScriptedConnection) -> None:
        seen.append(await connection.request())
        await connection.send(response())

    async with scripted_origin(script) as origin, client_of(origin.url, host_header=choice) as client:
        await ask(client)
        wanted = sent or origin.url.removeprefix("http://").encode()
    assert b"\r\nhost: %b\r\n" % wanted in seen[0]


async def test_the_path_of_the_url_goes_before_every_target() -> None:
    seen: list[bytes] = []

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            seen.append(head.split(b"\r\n")[0])
            await connection.send(response())

    async with scripted_origin(script) as origin, client_of(origin.url + "/base/") as client:
        await ask(client, request(b"/a?b"))
        await ask(client, request(b"*", method=b"OPTIONS"))
    assert seen == [b"GET /base/a?b HTTP/1.1", b"OPTIONS * HTTP/1.1"]


async def test_a_kept_connection_serves_the_next_request() -> None:
    async with served(answering(response(b"one"), response(b"two"))) as (client, origin):
        assert (await ask(client)).body == b"one"
        assert (await ask(client)).body == b"two"
        assert origin.connections == 1


async def test_one_head_serves_requests_with_and_without_a_body() -> None:
    head = request(b"/x", method=b"PUT")

    async def script(connection: ScriptedConnection) -> None:
        for _ in range(2):
            got = await connection.request()
            if b"chunked" in got:
                await connection.until(b"0\r\n\r\n")
            await connection.send(response(b"chunked" if b"chunked" in got else b"bare"))

    async with served(script) as (client, _):
        visitor, sink = upload(client, head)
        sink.send_data(b"body", True)
        await visitor.ended()
        assert visitor.body == b"chunked"
        assert (await ask(client, head)).body == b"bare"


@pytest.mark.parametrize("said", [b"Connection: close", b"Keep-Alive: timeout=1"])
async def test_an_origin_that_will_not_keep_the_connection_gets_a_new_one(said: bytes) -> None:
    async with served(answering(response(b"x", said))) as (client, origin):
        await ask(client)
        await ask(client)
        assert origin.connections == 2


async def test_the_answer_to_head_has_no_body_and_keeps_its_length() -> None:
    async with served(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", response(b"got"))) as (
        client,
        origin,
    ):
        visitor = await ask(client, request(method=b"HEAD"))
        assert visitor.fields[b"content-length"] == b"1000"
        assert visitor.names() == ["head"]
        assert (await ask(client)).body == b"got"
        assert origin.connections == 1


async def test_the_same_block_answers_head_and_get_each_in_its_own_way() -> None:
    block = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            await connection.send(block if head.startswith(b"HEAD") else block + b"hello")

    async with served(script) as (client, origin):
        for method in (b"GET", b"HEAD", b"GET", b"HEAD"):
            visitor = await ask(client, request(method=method))
            assert visitor.body == (b"hello" if method == b"GET" else b"")
        assert origin.connections == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_statuses_without_content_end_at_the_head(status: bytes) -> None:
    async with served(answering(b"HTTP/1.1 %b\r\netag: x\r\n\r\n" % status, response(b"next"))) as (client, origin):
        assert (await ask(client)).names() == ["head"]
        assert (await ask(client)).body == b"next"
        assert origin.connections == 1


async def test_a_response_may_come_in_any_pieces() -> None:
    whole = response(b"hello world", b"x-a: b")

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        for at in range(len(whole)):
            await connection.send(whole[at : at + 1])
            await asyncio.sleep(0)
        await connection.closed()

    async with served(script) as (client, _):
        visitor = await ask(client)
        assert (visitor.status, visitor.body) == (200, b"hello world")


async def test_pieces_of_a_body_are_passed_on_as_they_come() -> None:
    step = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none")
        await step.wait()
        await connection.send(b"two")
        await connection.closed()

    async with served(script) as (client, _):
        visitor = Visitor()
        client.open(request(), PEER, True, visitor)
        await visitor.until(lambda: visitor.body == b"one")
        step.set()
        await visitor.ended()
        assert visitor.body == b"onetwo"


async def test_chunks_are_decoded_and_trailers_passed_on() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3;x=y\r\ntwo\r\n0\r\nx-sum: 6\r\n\r\n"
    async with served(answering(chunked, response(b"next"))) as (client, origin):
        visitor = await ask(client)
        assert visitor.body == b"onetwo"
        assert visitor.calls[-1] == ("trailers", ((b"x-sum", b"6"),))
        assert (await ask(client)).body == b"next"
        assert origin.connections == 1


async def test_the_last_chunk_without_trailers_ends_the_data() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await asyncio.sleep(0.02)
        await connection.send(b"0\r\n\r\n")
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n")
        await connection.closed()

    async with served(script) as (client, _):
        first = await ask(client)
        assert first.calls[1:] == [("data", b"one", False), ("data", b"", True)]
        second = await ask(client)
        assert second.calls[1:] == [("data", b"two", True)]


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    async with served(script) as (client, origin):
        for _ in range(2):
            visitor = await ask(client)
            assert visitor.body == b"all of it"
            assert not any(name == "reset" for name in visitor.names())
        assert origin.connections == 2


async def test_interim_responses_are_passed_on() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n"
    async with served(answering(hints + hints + response(b"x"))) as (client, _):
        visitor = await ask(client)
        assert visitor.names() == ["interim", "interim", "head", "data"]
        assert visitor.calls[0] == ("interim", 103, ((b"link", b"</a.css>; rel=preload"),))


# ---- request bodies


async def test_a_body_with_length_is_sent_as_it_is() -> None:
    async def script(connection: ScriptedConnection) -> None:
        head = await connection.request()
        assert b"content-length: 10\r\n" in head
        assert b"transfer-encoding" not in head
        await connection.send(response(await connection.read(10)))
        await connection.closed()

    async with served(script) as (client, _):
        visitor, sink = upload(client, sized(10))
        sink.send_data(b"01234", False)
        sink.send_data(b"56789", True)
        await visitor.ended()
        assert visitor.body == b"0123456789"


async def test_a_body_without_length_is_sent_in_chunks_with_its_trailers() -> None:
    seen: list[bytes] = []

    async def script(connection: ScriptedConnection) -> None:
        head = await connection.request()
        assert b"transfer-encoding: chunked\r\n" in head
        seen.append(await connection.until(b"\r\n\r\n"))
        await connection.send(response())
        await connection.closed()

    async with served(script) as (client, _):
        visitor, sink = upload(client, POST)
        await visitor.until(lambda: "resume" in visitor.names())
        sink.send_data(b"one", False)
        sink.send_data(b"x" * 20000, False)
        sink.send_trailers(((b"x-sum", b"6"),))
        await visitor.ended()
    assert seen == [b"3\r\none\r\n4e20\r\n" + b"x" * 20000 + b"\r\n0\r\nx-sum: 6\r\n\r\n"]


async def test_a_small_body_leaves_with_its_head_in_one_write() -> None:
    joins = isinstance(
        asyncio.get_running_loop(), uvloop.Loop
    )  # asyncio's own loop sends each write of a tick by itself

    async def script(connection: ScriptedConnection) -> None:
        for _ in range(2):
            got = await connection.reader.read(65536)
            while not joins and not got.endswith(b"0\r\n\r\n"):
                got += await connection.reader.read(65536)
            assert got.endswith(b"5\r\nsmall\r\n0\r\n\r\n")
            await connection.send(response())
        await connection.closed()

    async with served(script) as (client, _):
        for _ in range(2):
            visitor, sink = upload(client, POST)
            sink.send_data(b"small", True)
            await visitor.ended()
            assert visitor.status == 200


async def test_a_body_is_held_by_flow_until_the_origin_says_continue() -> None:
    async def script(connection: ScriptedConnection) -> None:
        assert b"expect: 100-continue" in await connection.request()
        await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await connection.send(response(await connection.read(4)))
        await connection.closed()

    async with served(script) as (client, _):
        head = request(b"/", (b"content-length", b"4"), (b"expect", b"100-continue"), method=b"POST")
        visitor, sink = upload(client, head)
        await visitor.until(lambda: "interim" in visitor.names())
        sink.send_data(b"body", True)
        await visitor.ended()
        assert visitor.body == b"body"


async def test_an_early_answer_is_passed_on_and_the_rest_of_the_request_is_dropped() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(response(b"too big", status=b"413 Content Too Large"))
        await connection.closed()

    async with served(script) as (client, _origin):
        visitor, sink = upload(client, sized(1000))
        await visitor.ended()
        assert (visitor.status, visitor.body) == (413, b"too big")
        sink.send_data(b"x" * 1000, True)
        await eventually(lambda: client.connections == 0)  # half of a request stands on it: not to be used again


@pytest.mark.parametrize("body", [b"123", b"12345"], ids=["short", "long"])
async def test_a_body_that_is_not_as_long_as_announced_never_mixes_with_the_next_request(body: bytes) -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.closed()

    async with served(script) as (client, _):
        visitor, sink = upload(client, sized(4))
        sink.send_data(body, True)
        await visitor.ended()
        assert isinstance(visitor.error, ProtocolError)
        assert client.connections == 0


@pytest.mark.parametrize(
    ("head", "end"),
    [
        (sized(4), True),
        (request(b"/", (b"content-length", b"1"), (b"content-length", b"2"), method=b"POST"), False),
        (request(b"/", (b"content-length", b"+1"), method=b"POST"), False),
        (request(b"/", method=b"CONNECT"), False),
    ],
)
async def test_requests_that_could_be_framed_in_two_ways_are_refused(head: RequestHead, end: bool) -> None:
    async with client_of("http://127.0.0.1:1") as client:
        visitor = Visitor()
        client.open(head, PEER, end, visitor)
        assert isinstance(visitor.error, ProtocolError)


# ---- upgrades


def websocket() -> RequestHead:
    return RequestHead(b"GET", b"https", b"shop.example.com", b"/ws", ((b"sec-websocket-key", b"x"),), b"websocket")


SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: y\r\n\r\n"
)


async def test_an_upgrade_carries_raw_bytes_both_ways_and_each_side_ends_by_itself() -> None:
    async def script(connection: ScriptedConnection) -> None:
        head = await connection.request()
        assert b"upgrade: websocket\r\n" in head
        assert b"connection: upgrade\r\n" in head
        await connection.send(SWITCH + b"first")
        assert await connection.rest() == b"from the visitor"
        await connection.send(b"last words")

    async with served(script) as (client, _):
        visitor, sink = upload(client, websocket())
        sink.send_data(b"from ", False)  # held until the origin agrees
        await visitor.until(lambda: visitor.body == b"first")
        assert visitor.status == 101
        sink.send_data(b"the visitor", False)
        sink.send_data(b"", True)
        await visitor.ended()
        assert visitor.body == b"firstlast words"
        await eventually(lambda: client.connections == 0)


async def test_the_origin_may_end_its_side_of_an_upgrade_first() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(SWITCH + b"bye")
        connection.end()
        assert await connection.rest() == b"and more"

    async with served(script) as (client, _origin):
        visitor, sink = upload(client, websocket())
        await visitor.ended()
        assert visitor.calls[-1] == ("data", b"", True)
        sink.send_data(b"and more", True)
        await eventually(lambda: client.connections == 0)


async def test_a_refused_upgrade_is_an_ordinary_response() -> None:
    async with served(answering(response(b"no", status=b"403 Forbidden"))) as (client, origin):
        visitor, _sink = upload(client, websocket())
        await visitor.ended()
        assert (visitor.status, visitor.body) == (403, b"no")
        await ask(client)
        assert origin.connections == 1


async def test_upgraded_connections_do_not_use_up_the_pool() -> None:
    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            await connection.send(SWITCH if b"upgrade" in head else response(b"x"))

    async with served(script, max_connections=1) as (client, _):
        for _ in range(3):
            visitor, _ = upload(client, websocket())
            await visitor.until(lambda visitor=visitor: "head" in visitor.names())
        assert (await ask(client)).body == b"x"
        assert client.connections == 4


async def test_a_switch_that_nobody_asked_for_is_an_error() -> None:
    async with served(answering(SWITCH)) as (client, _):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)


# ---- the origin misbehaves


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.0\r\n", "not HTTP/1.1: it begins with b'SSH-2.0"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS; write https://"),
        (b"HTTP/2 200\r\n\r\n", "not"),
        (b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", "speaks HTTP/2 alone; set the origin's protocol to h2c"),
        (b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", "LF without CR"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "no colon"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", "several different content lengths"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "chunk"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70000, "more than 64 KiB"),
        (b"HTTP/1.1 103 E\r\n\r\n" * 40, "interim"),
    ],
    ids=["banner", "tls", "http2", "h2c", "bare-lf", "no-colon", "lengths", "chunks", "huge", "interim"],
)
async def test_an_invalid_response_is_a_502_that_says_what_was_wrong(answer: bytes, says: str) -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(answer)
        await connection.closed()

    async with served(script) as (client, origin):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)
        assert visitor.error.presentation.status == 502
        assert origin.url in str(visitor.error)
        assert says in str(visitor.error)
        assert client.connections == 0


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "closed the connection before it answered"),
        (b"HTTP/1.1 200 OK\r\ncont", "before it answered"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n1234", "after 4 of 10 bytes"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12", "in the middle of its answer"),
    ],
    ids=["nothing", "head", "length", "chunks"],
)
async def test_a_response_that_breaks_off_is_reset(answer: bytes, says: str) -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(answer)

    async with served(script) as (client, _):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)
        assert says in str(visitor.error)


async def test_a_body_until_close_that_is_reset_is_not_taken_for_whole() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        connection.reset()

    async with served(script) as (client, _):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)


@pytest.mark.parametrize(
    ("whole", "body"),
    [
        (response(b"one"), b"one"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n", b"one"),
    ],
    ids=["length", "none", "chunked"],
)
@pytest.mark.parametrize("cut", [0, 10], ids=["one read", "two reads"])
async def test_bytes_after_a_response_never_become_the_next_answer(whole: bytes, body: bytes, cut: int) -> None:
    async def script(connection: ScriptedConnection) -> None:
        while await connection.request():
            if cut:
                await connection.send(whole[:-1])
                await asyncio.sleep(0.02)
                await connection.send(whole[-1:] + response(b"poison"))
            else:
                await connection.send(whole + response(b"poison"))

    async with served(script) as (client, origin):
        assert (await ask(client)).body == body
        assert (await ask(client)).body == body  # from a new connection, whose first answer that is
        assert origin.connections == 2


async def test_bytes_on_an_idle_connection_close_it() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(response(b"one"))
        await asyncio.sleep(0.02)
        await connection.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await connection.closed()

    async with served(script) as (client, _):
        await ask(client)
        await eventually(lambda: client.connections == 0)


# ---- kept connections that died


def dies_after_first(delay: asyncio.Event | None = None) -> Script:
    """The first connection answers once and then closes when the second request comes."""

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(response(b"%d" % connection.number))
        if connection.number == 0:
            await connection.request()
            return
        await connection.request()
        await connection.send(response(b"again"))

    return script


async def test_a_get_on_a_connection_that_was_already_dead_is_sent_once_more() -> None:
    async with served(dies_after_first()) as (client, origin):
        assert (await ask(client)).body == b"0"
        assert (await ask(client)).body == b"1"
        assert client.counters.repeated == 1
        assert origin.connections == 2


async def test_a_request_that_may_not_be_repeated_is_not() -> None:
    async with served(dies_after_first()) as (client, origin):
        await ask(client)
        visitor = await ask(client, POST)
        assert isinstance(visitor.error, UpstreamBroken)
        assert origin.connections == 1


async def test_a_request_with_a_body_is_not_repeated() -> None:
    async with served(dies_after_first()) as (client, origin):
        await ask(client)
        visitor, sink = upload(client, request(b"/", (b"content-length", b"3"), method=b"PUT"))
        sink.send_data(b"abc", True)
        await visitor.ended()
        assert isinstance(visitor.error, UpstreamBroken)
        assert origin.connections == 1


async def test_a_get_is_repeated_once_and_no_more() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        if connection.number == 0:
            await connection.send(response(b"0"))
            await connection.request()

    async with served(script) as (client, origin):
        await ask(client)
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)
        assert origin.connections == 2


async def test_a_post_takes_no_connection_that_idled_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetun_agent.origin.pool.SURELY_ALIVE_S", 0.0)
    async with served(answering(response(b"x")), max_connections=1) as (client, origin):
        await ask(client)
        await asyncio.sleep(0.01)
        await ask(client, POST)
        assert origin.connections == 2


# ---- time


async def test_an_origin_that_does_not_answer_is_a_504() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.closed()

    async with served(script, response_timeout_s=0.1) as (client, _origin):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamTimeout)
        assert visitor.error.presentation.status == 504
        assert "did not answer within 0.1 s" in str(visitor.error)
        assert client.connections == 0


async def test_the_response_timeout_counts_from_the_end_of_the_request() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.read(4)
        await asyncio.sleep(0.12)
        await connection.send(response())
        await connection.closed()

    async with served(script, response_timeout_s=0.2) as (client, _):
        visitor, sink = upload(client, sized(4))
        for byte in (b"1", b"2", b"3"):
            await asyncio.sleep(0.15)
            sink.send_data(byte, False)
        sink.send_data(b"4", True)
        await visitor.ended()
        assert visitor.status == 200


async def test_an_origin_that_falls_silent_within_a_body_is_given_up() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n1234")
        await connection.closed()

    async with served(script, idle_timeout_s=0.1) as (client, _):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamTimeout)
        assert "fell silent" in str(visitor.error)


@pytest.mark.parametrize("kind", ["events", "upgrade", "slow visitor"])
async def test_silence_is_allowed_where_it_belongs(kind: str) -> None:
    async def script(connection: ScriptedConnection) -> None:
        head = await connection.request()
        if kind == "upgrade":
            assert b"upgrade" in head
            await connection.send(SWITCH)
        elif kind == "events":
            await connection.send(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
        else:
            await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
        await connection.send(b"1\r\nx\r\n")
        await connection.closed()

    async with served(script, idle_timeout_s=0.1, response_timeout_s=0.1) as (client, _):
        visitor = Visitor()
        if kind == "upgrade":
            sink = client.open(websocket(), PEER, False, visitor)
        else:
            sink = client.open(request(), PEER, True, visitor)
        if kind == "slow visitor":
            sink.pause_response()
        else:
            await visitor.until(lambda: visitor.body)
        await asyncio.sleep(0.3)
        assert not visitor.over
        sink.resume_response()
        if kind == "slow visitor":
            await visitor.ended()
            assert visitor.body == b"1\r\nx\r\n"


async def test_an_origin_that_stops_reading_the_request_is_given_up() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await asyncio.sleep(DEADLINE_S)

    async with served(script, idle_timeout_s=0.1) as (client, _):
        visitor, sink = upload(client, POST)
        await visitor.until(lambda: "resume" in visitor.names())
        while visitor.names().count("pause") < 2:
            sink.send_data(b"x" * 65536, False)
            await asyncio.sleep(0)
        await visitor.ended()
        assert isinstance(visitor.error, UpstreamTimeout)
        assert "took nothing" in str(visitor.error)


async def test_idle_connections_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "KEEP_IDLE_S", 0.05)
    async with served(answering(response()), response_timeout_s=0.1) as (client, _):
        await ask(client)
        assert client.connections == 1
        await eventually(lambda: client.connections == 0)


# ---- flow


async def test_a_slow_visitor_pauses_the_origin() -> None:
    sent = 0

    async def script(connection: ScriptedConnection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(1024):
            await connection.send(b"x" * 65536)
            sent += 65536

    async with served(script) as (client, _):
        visitor = Visitor()
        sink = client.open(request(), PEER, True, visitor)
        await visitor.until(lambda: visitor.body)
        sink.pause_response()
        previous = -1
        async with asyncio.timeout(DEADLINE_S):
            while sent != previous:
                previous = sent
                await asyncio.sleep(0.1)
        assert sent < 32 * 1024 * 1024, "the origin went on as if somebody read"
        received = len(visitor.body)
        await asyncio.sleep(0.05)
        assert len(visitor.body) == received
        sink.resume_response()
        await visitor.ended()
        assert len(visitor.body) == 64 * 1024 * 1024


async def test_a_slow_origin_pauses_the_visitor_and_wakes_it_again() -> None:
    go = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await go.wait()
        taken = 0
        while taken < 64 * 1024 * 1024:
            piece = await connection.reader.read(1024 * 1024)
            if piece.endswith(b"0\r\n\r\n"):
                break
            taken += len(piece)
        await connection.send(response())

    async with served(script) as (client, _):
        visitor, sink = upload(client, POST)
        await visitor.until(lambda: "resume" in visitor.names())
        sent = 0
        while visitor.calls[-1] != ("pause",):
            sink.send_data(b"x" * 65536, False)
            sent += 65536
            await asyncio.sleep(0)
        assert sent < 32 * 1024 * 1024
        go.set()
        await visitor.until(lambda: visitor.calls[-1] == ("resume",))
        sink.send_data(b"", True)
        await visitor.ended()
        assert visitor.status == 200


async def test_what_comes_before_a_connection_is_held_and_bounded() -> None:
    async with client_of("http://127.0.0.1:1") as client:
        visitor, sink = upload(client, POST)
        assert visitor.names() == ["pause"]
        for _ in range(20):
            sink.send_data(b"x" * 65536, False)
        assert isinstance(visitor.error, LimitExceeded)


# ---- the visitor leaves


@pytest.mark.parametrize("when", ["before the head", "in the body"])
async def test_the_origin_sees_the_visitor_leave(when: str) -> None:
    seen = asyncio.Event()
    asked = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        asked.set()
        if when == "in the body":
            await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n1234")
        try:
            await connection.closed()
        finally:
            seen.set()

    async with served(script) as (client, _):
        visitor = Visitor()
        sink = client.open(request(), PEER, True, visitor)
        await asked.wait()
        if when == "in the body":
            await visitor.until(lambda: visitor.body)
        before = visitor.names()
        sink.reset(Cancelled("gone"))
        sink.reset(Cancelled("gone"))
        async with asyncio.timeout(DEADLINE_S):
            await seen.wait()
        assert visitor.names() == before
        assert client.counters.cancelled == 1
        assert client.in_flight == 0


async def test_a_visitor_may_leave_while_it_waits_and_within_a_callback() -> None:
    class Leaves(Visitor):
        sink: RequestSink

        def on_head(self, head: Any, end: bool) -> None:
            super().on_head(head, end)
            self.sink.reset(Cancelled("seen enough"))

    async with served(answering(response(b"hello"))) as (client, _):
        waiting = Visitor()
        client.open(request(), PEER, True, waiting).reset(Cancelled("at once"))
        leaves = Leaves()
        leaves.sink = client.open(request(), PEER, True, leaves)
        await leaves.until(lambda: leaves.names())
        assert leaves.names() == ["head"]
        assert waiting.names() == []
        assert (await ask(client)).body == b"hello"


# ---- how many at once


async def test_requests_beyond_the_connections_wait_their_turn_and_beyond_the_queue_get_503() -> None:
    go = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            await go.wait()
            await connection.send(response(head.split()[1]))

    async with served(script, max_connections=2) as (client, origin):
        visitors = [Visitor() for _ in range(22)]
        for number, visitor in enumerate(visitors):
            client.open(request(b"/%d" % number), PEER, True, visitor)
        await eventually(lambda: origin.connections == 2)
        more = [Visitor() for _ in range(20)]
        for visitor in more:
            client.open(request(), PEER, True, visitor)
        refused = [visitor for visitor in more if visitor.over]
        assert refused
        assert all(isinstance(visitor.error, OriginBusy) for visitor in refused)
        assert refused[0].error.presentation.status == 503
        go.set()
        for number, visitor in enumerate(visitors):
            await visitor.ended()
            assert visitor.body == b"/%d" % number
        assert origin.connections == 2


async def test_a_request_does_not_wait_for_a_connection_for_ever() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n1")
        await connection.closed()

    async with served(script, max_connections=1, response_timeout_s=0.1) as (client, _):
        holds = Visitor()
        client.open(request(), PEER, True, holds)
        await holds.until(lambda: holds.body)
        visitor = await ask(client)
        assert isinstance(visitor.error, OriginBusy)
        assert "stayed busy" in str(visitor.error)


async def test_those_who_wait_get_a_new_connection_when_the_old_one_is_not_kept() -> None:
    async with served(answering(response(b"x", b"connection: close")), max_connections=1) as (client, origin):
        visitors = [Visitor() for _ in range(5)]
        for visitor in visitors:
            client.open(request(), PEER, True, visitor)
        for visitor in visitors:
            await visitor.ended()
            assert visitor.body == b"x"
        assert origin.connections == 5


# ---- reaching the origin


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_origin_that_is_down_is_named_with_what_to_do(host: str) -> None:
    url = f"http://{host}:{closed_port()}"
    async with client_of(url) as client:
        visitors = [Visitor() for _ in range(200)]
        for visitor in visitors:
            client.open(request(), PEER, True, visitor)
        for visitor in visitors:
            await visitor.ended()
            assert isinstance(visitor.error, UpstreamUnreachable)
            assert str(visitor.error) == (
                f"nothing answers at {url} (connection refused); start the server or give another --origin"
            )
        assert client.health.state is HealthState.DOWN
        assert client.in_flight == 0


async def test_an_origin_that_comes_back_is_used_again_and_shown_up() -> None:
    port = closed_port()
    async with client_of(f"http://127.0.0.1:{port}") as client:
        assert isinstance((await ask(client)).error, UpstreamUnreachable)
        async with scripted_origin(answering(response(b"back")), port=port):
            assert (await ask(client)).body == b"back"
            assert client.health.state is HealthState.UP
            assert "nothing answers" in client.health.last_error


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_localhost_is_found_on_either_address(host: str) -> None:
    async with scripted_origin(answering(response(b"x", b"connection: close")), host=host) as origin:
        url = f"http://localhost:{origin.url.rpartition(':')[2]}"
        async with client_of(url) as client:
            began = time.monotonic()
            assert (await ask(client)).body == b"x"
            assert (await ask(client)).body == b"x"
            assert time.monotonic() - began < 2


async def test_an_origin_that_does_not_accept_is_a_504() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        async with client_of(f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout_s=0.2) as client:
            visitor = await ask(client)
        for filler in fillers:
            filler.close()
    assert isinstance(visitor.error, UpstreamTimeout)
    assert "did not accept a connection within 0.2 s" in str(visitor.error)


async def test_a_server_that_hangs_up_on_every_connection_does_not_leave_requests_waiting() -> None:
    async def script(connection: ScriptedConnection) -> None:
        return

    async with served(script) as (client, _):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)


@pytest.mark.parametrize("says", [b"", b"220 mail.example.com ESMTP\r\n"], ids=["hangs up", "speaks first"])
async def test_a_connection_that_is_dead_before_it_can_be_used_is_no_connection(
    says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = OriginDialler.connect

    async def late(self: OriginDialler, factory: Any) -> Any:
        made = await connect(self, factory)
        await eventually(made.transport.is_closing)
        return made

    async def script(connection: ScriptedConnection) -> None:
        await connection.send(says)
        if says:
            await connection.closed()

    monkeypatch.setattr(OriginDialler, "connect", late)
    async with served(script) as (client, _):
        visitor = await ask(client)
        assert isinstance(visitor.error, UpstreamBroken)
        assert "did not wait for a request" in str(visitor.error)
        assert client.in_flight == 0


async def test_a_server_that_speaks_first_is_not_http() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.send(b"220 mail.example.com ESMTP\r\n")
        await connection.closed()

    async with served(script) as (client, _):
        assert isinstance((await ask(client)).error, UpstreamBroken)


async def test_a_unix_socket_is_an_origin(tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    async with client_of(f"unix://{path}") as client:
        visitor = await ask(client)
        assert "does not exist; start the server" in str(visitor.error)
        async with scripted_origin(answering(response(b"local")), unix=path):
            assert (await ask(client)).body == b"local"
            visitor, sink = upload(client, sized(3))
            sink.send_data(b"abc", True)
            await visitor.ended()


# ---- TLS


def server_tls(authority: DevelopmentCA, *names: str) -> ssl.SSLContext:
    return authority.identity(names).ssl_context(())


async def test_https_with_an_own_ca(authority: DevelopmentCA) -> None:
    tls = server_tls(authority, "127.0.0.1")
    async with (
        scripted_origin(answering(response(b"secret")), tls=tls) as origin,
        client_of(origin.url, tls_ca_file=str(authority.certificate_file)) as client,
    ):
        assert (await ask(client)).body == b"secret"
        assert (await ask(client)).body == b"secret"
        assert origin.connections == 1
        visitor, sink = upload(client, sized(100_000))
        sink.send_data(b"x" * 100_000, True)
        await visitor.until(lambda: visitor.names())


async def test_https_that_nobody_vouches_for_is_refused_unless_asked(authority: DevelopmentCA) -> None:
    tls = server_tls(authority, "127.0.0.1")
    async with scripted_origin(answering(response(b"secret")), tls=tls) as origin:
        async with client_of(origin.url) as client:
            visitor = await ask(client)
            assert isinstance(visitor.error, UpstreamUnreachable)
            assert "certificate" in str(visitor.error)
            assert "not trusted" in str(visitor.error)
            assert "tls.caFile" in str(visitor.error)
        async with client_of(origin.url, tls_verify=False) as client:
            assert (await ask(client)).body == b"secret"


async def test_the_name_in_the_certificate_may_be_given(authority: DevelopmentCA) -> None:
    tls = server_tls(authority, "shop.internal")
    ca_file = str(authority.certificate_file)
    async with scripted_origin(answering(response(b"secret")), tls=tls) as origin:
        async with client_of(origin.url, tls_ca_file=ca_file) as client:
            assert isinstance((await ask(client)).error, UpstreamUnreachable)
        async with client_of(origin.url, tls_ca_file=ca_file, tls_server_name="shop.internal") as client:
            assert (await ask(client)).body == b"secret"


async def test_https_to_a_plain_server_and_a_ca_file_that_is_not_there_are_explained() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.reader.read(1000)
        await connection.send(response(b"what?", status=b"400 Bad Request"))

    async with served(script) as (_, origin):
        async with client_of(origin.url.replace("http:", "https:"), tls_verify=False) as client:
            assert "http://" in str((await ask(client)).error)
        async with client_of(origin.url.replace("http:", "https:"), tls_ca_file="/nowhere.pem") as client:
            assert "/nowhere.pem" in str((await ask(client)).error)


async def test_an_upgrade_over_tls_ends_with_the_visitor(
    authority: DevelopmentCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "LINGER_S", 0.1)

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(SWITCH)
        assert await connection.read(2) == b"hi"
        await connection.closed()

    tls = server_tls(authority, "127.0.0.1")
    async with (
        scripted_origin(script, tls=tls) as origin,
        client_of(origin.url, tls_verify=False, response_timeout_s=0.2) as client,
    ):
        visitor, sink = upload(client, websocket())
        sink.send_data(b"hi", True)
        await visitor.ended()
        await eventually(lambda: client.connections == 0)


# ---- what is counted and shown, and the end


async def test_requests_are_counted_and_the_last_are_kept_without_query_values() -> None:
    async with served(answering(response(b"12345", status=b"404 Not Found"))) as (client, _):
        await ask(client, request(b"/a?token=secret&x"))
        counters = client.counters
        assert (counters.requests, counters.answered, counters.statuses[4]) == (1, 1, 1)
        assert (counters.bytes_received, counters.connects) == (5, 1)
        assert client.recent is not None
        [line] = client.recent.lines
        assert (line.method, line.path, line.status, line.bytes_received) == ("GET", "/a?token=…&x", 404, 5)
        assert line.service == "team-a/shop"
        assert 0 <= line.duration_s < 5


async def test_errors_are_counted_by_kind() -> None:
    async with client_of(f"http://127.0.0.1:{closed_port()}") as client:
        await ask(client)
        await ask(client)
        assert client.counters.errors == {"origin_unreachable": 2}


async def test_closing_lets_exchanges_end_within_the_deadline_and_resets_the_rest() -> None:
    async def script(connection: ScriptedConnection) -> None:
        head = await connection.request()
        if b"/slow" in head:
            await asyncio.sleep(0.1)
            await connection.send(response(b"done"))
        await connection.closed()

    async with served(script) as (client, origin):
        slow, stuck = Visitor(), Visitor()
        client.open(request(b"/slow"), PEER, True, slow)
        client.open(request(b"/stuck"), PEER, True, stuck)
        await eventually(lambda: origin.connections == 2)
        await client.close(0.5)
        assert slow.body == b"done"
        assert isinstance(stuck.error, Draining)
        late = Visitor()
        client.open(request(), PEER, True, late)
        assert isinstance(late.error, Draining)


async def test_a_recorder_is_enough_for_an_answer_within_open() -> None:
    recorder = Recorder()
    async with client_of("http://127.0.0.1:1", max_connections=1) as client:
        await client.close()
        client.open(request(), PEER, True, recorder)
    assert isinstance(recorder.calls[0][1], EdgetunError)
