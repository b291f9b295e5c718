"""What a visitor gets for what is sent: answers, framing, keep-alive, pipelining, bodies, interim heads, refusals."""

from __future__ import annotations

import asyncio

import pytest

from edgetun_core.errors import Cancelled, NoSession, UpstreamBroken
from edgetun_core.http.message import ResponseHead
from support.handlers import Asked, ScriptedHandler, echo, hello, wait
from support.visitors import until

from .conftest import Connect, StartFront

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


async def test_requests_are_answered_one_after_another_on_one_connection(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler()
    front = await start_front(handler)
    visitor = await connect(front.port)
    for target in ("/1", "/2", "/1", "/1"):
        answer = await visitor.ask(target, "Accept: text/html")
        assert (answer.status, answer.body) == (200, b"hello " + target.encode())
        assert "date" in answer.fields
        assert "server" not in answer.fields
        assert "connection" not in answer.fields
    assert handler.asked[2].head is handler.asked[3].head  # bytes that come again are kept
    peer = handler.asked[0].peer
    assert (peer.address, peer.scheme, peer.local) == ("127.0.0.1", b"http", ("127.0.0.1", front.port))
    assert front.counters.responses[2] == 4
    assert front.counters.connections_total == 1


async def test_a_request_in_single_bytes_is_the_same_request(start_front: StartFront, connect: Connect) -> None:
    front = await start_front(ScriptedHandler(echo))
    visitor = await connect(front.port)
    visitor.writer.transport.set_write_buffer_limits(0)
    data = (
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nSum: 7\r\n\r\n"
        + GET
    )
    for at in range(len(data)):
        visitor.send(data[at : at + 1])
        await asyncio.sleep(0)
    answer = await visitor.answer()
    assert (answer.body, answer.fields["x-trailer-sum"]) == (b"abcde", "7")
    assert (await visitor.answer()).body == b""


async def test_pipelined_requests_are_answered_in_order(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(hello, slow=wait, echo=echo)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
        b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\n"
        b"\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert (await visitor.answer()).body == b"hello /1"
    slow = await handler.request(1)
    assert len(handler.asked) == 2  # the next one waits for its turn
    slow.answer(200, b"slow")
    assert [(await visitor.answer()).body for _ in range(4)] == [b"slow", b"abc", b"xyz", b"hello /2"]


async def test_a_thousand_pipelined_requests_all_get_answers(start_front: StartFront, connect: Connect) -> None:
    front = await start_front()
    visitor = await connect(front.port)
    visitor.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(1000)))
    for number in range(1000):
        assert (await visitor.answer()).body == b"hello /%d" % number


async def test_a_visitor_who_pipelines_and_never_reads_is_bounded(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(lambda asked: asked.answer(200, b"x" * 50_000))
    front = await start_front(handler, write_buffer_bytes=64 * 1024)
    visitor = await connect(front.port)
    visitor.writer.transport.pause_reading()
    for _ in range(500):
        visitor.send(GET * 100)
    await until(lambda: any(c.read_paused for c in front.connections))
    (connection,) = front.connections
    answered = len(handler.asked)
    await asyncio.sleep(0.1)
    assert len(handler.asked) == answered
    assert connection.transport.get_write_buffer_size() < 64 * 1024 + 51_000
    assert front.held_bytes < 512 * 1024
    visitor.writer.transport.resume_reading()
    for _ in range(answered + 200):
        assert len((await visitor.answer()).body) == 50_000


@pytest.mark.parametrize(
    ("request_bytes", "closes"),
    [
        (GET, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
    ],
)
async def test_who_wants_the_connection_closed_gets_it_closed(
    start_front: StartFront, connect: Connect, request_bytes: bytes, closes: bool
) -> None:
    front = await start_front()
    visitor = await connect(front.port)
    visitor.send(request_bytes)
    answer = await visitor.answer()
    assert answer.status == 200
    if closes:
        assert answer.fields["connection"] == "close"
        assert await visitor.is_closed()
    else:
        visitor.send(request_bytes)
        assert (await visitor.answer()).status == 200


async def test_a_body_of_unknown_length_is_chunked_or_ends_with_the_connection(
    start_front: StartFront, connect: Connect
) -> None:
    def stream(asked: Asked) -> None:
        asked.begin(200)
        asked.client.on_data(b"one", False)
        asked.client.on_data(b"two", False)
        asked.client.on_data(b"", True)

    front = await start_front(ScriptedHandler(stream))
    visitor = await connect(front.port)
    answer = await visitor.ask()
    assert (answer.fields["transfer-encoding"], answer.body) == ("chunked", b"onetwo")
    visitor.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    answer = await visitor.answer()
    assert ("transfer-encoding" in answer.fields, answer.fields["connection"], answer.body) == (
        False,
        "close",
        b"onetwo",
    )


async def test_trailers_are_sent_after_chunks_and_dropped_otherwise(start_front: StartFront, connect: Connect) -> None:
    def stream(asked: Asked) -> None:
        asked.begin(200, *(((b"content-length", b"3"),) if asked.head.target == b"/length" else ()))
        asked.client.on_data(b"abc", False)
        asked.client.on_trailers(((b"x-sum", b"1"),))

    front = await start_front(ScriptedHandler(stream))
    visitor = await connect(front.port)
    answer = await visitor.ask()
    assert (answer.body, answer.trailers) == (b"abc", ((b"x-sum", b"1"),))
    answer = await visitor.ask("/length")
    assert (answer.body, answer.trailers) == (b"abc", ())


async def test_responses_without_a_body(start_front: StartFront, connect: Connect) -> None:
    def script(asked: Asked) -> None:
        status = int(asked.head.target[1:])
        asked.client.on_head(ResponseHead(status, ((b"date", b"x"),)), True)

    front = await start_front(ScriptedHandler(script))
    visitor = await connect(front.port)
    assert (await visitor.ask("/200")).fields == {"date": "x", "content-length": "0"}
    assert (await visitor.ask("/204")).fields == {"date": "x"}
    assert (await visitor.ask("/304")).fields == {"date": "x"}
    assert (await visitor.ask("/200", method="HEAD")).fields == {"date": "x"}


async def test_a_head_request_gets_the_length_and_no_body(start_front: StartFront, connect: Connect) -> None:
    front = await start_front()
    visitor = await connect(front.port)
    for _ in range(2):
        answer = await visitor.ask("/x", method="HEAD")
        assert (answer.fields["content-length"], answer.body) == ("8", b"")
    assert (await visitor.ask("/y")).body == b"hello /y"


@pytest.mark.parametrize("body", [b"abcd", b"ab"])
async def test_a_body_that_contradicts_its_length_breaks_the_connection(
    start_front: StartFront, connect: Connect, body: bytes
) -> None:
    def script(asked: Asked) -> None:
        asked.begin(200, (b"content-length", b"3"))

    handler = ScriptedHandler(script)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(GET)
    assert (await visitor.head()).fields["content-length"] == "3"
    handler.asked[0].client.on_data(body[:2], False)
    handler.asked[0].client.on_data(body[2:], True)
    assert len(await visitor.rest()) < 3
    assert handler.asked[0].error is not None
    assert front.counters.responses_aborted == 1


async def test_the_same_contradiction_within_open_is_a_page(start_front: StartFront, connect: Connect) -> None:
    def script(asked: Asked) -> None:
        asked.begin(200, (b"content-length", b"3"))
        asked.client.on_data(b"abcd", True)
        asked.client.on_data(b"late", True)

    handler = ScriptedHandler(script)
    front = await start_front(handler)
    visitor = await connect(front.port)
    assert (await visitor.ask()).status == 502
    assert handler.asked[0].error is not None


async def test_a_head_alone_is_sent_at_once(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait, now=lambda asked: asked.begin(200, (b"content-type", b"text/event-stream")))
    front = await start_front(handler, sweep_s=60.0)
    visitor = await connect(front.port)
    visitor.send(GET)
    asked = await handler.request()
    asked.begin(200, (b"content-type", b"text/event-stream"))
    assert (await visitor.head()).status == 200
    asked.client.on_data(b"data: 1\n\n", False)
    assert await visitor.read(14) == b"9\r\ndata: 1\n\n\r\n"
    other = await connect(front.port)
    other.send(b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await other.head()).status == 200


async def test_head_and_body_given_together_leave_in_one_write(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(hello, slow=wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(GET)
    await visitor.answer()
    (connection,) = front.connections
    writes: list[bytes] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            writes.append(data)
            transport.write(data)

    transport = connection.transport
    connection.transport = Counting()  # type: ignore[assignment]
    visitor.send(GET)
    await visitor.answer()
    visitor.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
    (await handler.request(2)).answer(200, b"later")
    await visitor.answer()
    assert len(writes) == 2


async def test_interim_heads_come_before_the_final_one_but_not_to_http_1_0(
    start_front: StartFront, connect: Connect
) -> None:
    def script(asked: Asked) -> None:
        asked.client.on_interim(ResponseHead(103, ((b"link", b"</a.css>"),)))
        asked.answer(200, b"x")
        asked.client.on_interim(ResponseHead(103, ()))

    front = await start_front(ScriptedHandler(script))
    visitor = await connect(front.port)
    visitor.send(GET)
    early = await visitor.head()
    assert (early.status, early.fields) == (103, {"link": "</a.css>"})
    assert (await visitor.answer()).status == 200
    visitor.send(b"GET / HTTP/1.0\r\n\r\n")
    assert (await visitor.answer()).status == 200


async def test_100_continue_comes_from_behind_and_once(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    asked = await handler.request()
    assert asked.head.get(b"expect") == b"100-continue"
    asked.client.on_interim(ResponseHead(100, ()))
    asked.client.on_interim(ResponseHead(100, ()))
    assert (await visitor.head()).status == 100
    visitor.send(b"abc")
    await asked.until(lambda asked: asked.ended)
    asked.answer(201, b"made")
    assert (await visitor.answer()).status == 201


async def test_a_final_answer_in_place_of_100_closes_the_connection(start_front: StartFront, connect: Connect) -> None:
    front = await start_front(ScriptedHandler(lambda asked: asked.answer(403, b"no")))
    visitor = await connect(front.port)
    visitor.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    answer = await visitor.answer()
    assert (answer.status, answer.fields["connection"]) == (403, "close")
    assert await visitor.is_closed()


async def test_the_body_of_a_request_that_was_answered_early_is_read_away(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler(lambda asked: asked.answer(200, b"early"))
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
    assert (await visitor.answer()).body == b"early"
    visitor.send(b"x" * 100_000, GET)
    assert (await visitor.answer()).body == b"early"
    assert handler.asked[0].body == b""
    assert len(handler.asked) == 2


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5f5e100\r\n"]
)
async def test_a_huge_body_of_a_request_that_was_answered_early_is_not_read(
    start_front: StartFront, connect: Connect, framing: bytes
) -> None:
    front = await start_front(ScriptedHandler(lambda asked: asked.answer(413, b"too much")))
    visitor = await connect(front.port)
    visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing, b"x" * 300_000)
    answer = await visitor.answer()
    assert (answer.status, answer.body) == (413, b"too much")
    visitor.send(b"x" * 100_000)
    assert await visitor.is_closed()
    await until(lambda: not front.connections)
    assert front.counters.bytes_in < 1_000_000


async def test_a_visitor_who_leaves_cancels_the_request(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    for number, leave in enumerate(("abort", "close", "reset", "body")):
        visitor = await connect(front.port)
        if leave == "body":
            visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        else:
            visitor.send(GET)
        asked = await handler.request(number)
        if leave == "close":
            visitor.writer.close()
        elif leave == "reset":
            visitor.break_off()
        else:
            visitor.leave()
        await asked.until(lambda asked: isinstance(asked.error, Cancelled))
        asked.answer(200, b"too late")
    await until(lambda: not front.connections)


async def test_what_an_old_exchange_still_says_never_reaches_the_next_one(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(GET)
    first = await handler.request(0)
    first.answer(200, b"first")
    await visitor.answer()
    visitor.send(GET)
    second = await handler.request(1)
    first.client.on_data(b"late", True)
    first.answer(200, b"late")
    first.client.on_reset(UpstreamBroken("late"))
    first.client.pause_request()
    second.answer(200, b"second")
    assert (await visitor.answer()).body == b"second"


async def test_a_failure_before_the_head_is_a_page_and_after_it_a_broken_connection(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n")
    (await handler.request(0)).client.on_reset(NoSession("no agent is connected for a.example"))
    answer = await visitor.answer()
    assert (answer.status, answer.fields["content-type"]) == (503, "text/html; charset=utf-8")
    assert b"No agent is connected for a.example." in answer.body
    visitor.send(GET)  # and the connection goes on
    asked = await handler.request(1)
    asked.begin(200)
    asked.client.on_data(b"part", False)
    assert (await visitor.head()).status == 200
    asked.client.on_reset(UpstreamBroken("the origin broke off"))
    assert b"0\r\n\r\n" not in await visitor.rest()
    assert front.counters.responses_aborted == 1


async def test_a_failure_in_the_same_tick_as_the_head_is_still_a_page(
    start_front: StartFront, connect: Connect
) -> None:
    def script(asked: Asked) -> None:
        asked.begin(200)
        asked.client.on_reset(UpstreamBroken("the origin broke off"))

    front = await start_front(ScriptedHandler(script))
    visitor = await connect(front.port)
    assert (await visitor.ask()).status == 502
    answer = await visitor.ask(method="HEAD")
    assert (answer.status, answer.body) == (502, b"")
    assert int(answer.fields["content-length"]) > 0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 1\r\n\r\n", 417),
        (b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 421),
    ],
)
async def test_a_bad_request_is_refused_with_its_status_and_the_connection_closed(
    start_front: StartFront, connect: Connect, data: bytes, status: int
) -> None:
    handler = ScriptedHandler()
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(data)
    answer = await visitor.answer()
    assert (answer.status, answer.fields["connection"]) == (status, "close")
    visitor.send(GET)
    assert await visitor.is_closed()
    assert not handler.asked


async def test_a_smuggled_request_after_a_refused_one_is_never_read(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler()
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET
    )
    assert (await visitor.answer()).status == 400
    assert await visitor.is_closed()
    assert handler.asked == []


async def test_a_broken_chunk_resets_the_exchange_and_is_answered_400(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    asked = await handler.request()
    await asked.until(lambda asked: bytes(asked.body) == b"abc")
    visitor.send(b"0x5\r\nhello\r\n")
    assert (await visitor.answer()).status == 400
    assert asked.error is not None
    assert await visitor.is_closed()
