"""A visitor's connection without a socket: whatever way the bytes come in pieces, the same answers go out; and no bytes raise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetun_core.http.h1 import H1Limits, parse_request, prepare_response, render_response
from edgetun_core.http.message import ResponseHead
from edgetun_exitnode.front.context import FrontContext
from edgetun_exitnode.front.deadlines import check_deadline
from edgetun_exitnode.front.h1 import H1Connection
from edgetun_exitnode.front.servers import Front
from support.handlers import Asked, ScriptedHandler, echo, hello


class FakeTransport:
    """Keeps what is written; `high` bytes and more pause the protocol until `drain`."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.calls: list[str] = []
        self.is_closed = False
        self.is_reading = True

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "written after the close"
        self.written += data

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("192.0.2.1", 4711)


class _Socket:
    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.2", 80)


async def talk(pieces: list[bytes], handler: ScriptedHandler) -> FakeTransport:
    """Feeds the pieces, with a loop tick between them, and ends with a visitor who leaves."""
    front = Front(FrontContext(handler, clock=lambda: 1.0), [_Socket()])  # type: ignore[list-item]
    front.date_line = b"date: now\r\n\r\n"
    transport = FakeTransport()
    connection = H1Connection(front)
    connection.connection_made(transport)  # type: ignore[arg-type]
    for piece in pieces:
        if transport.is_closed:
            break
        connection.data_received(piece)
        await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    connection.eof_received()
    connection.connection_lost(None)
    assert front.held_bytes == 0
    assert not front.connections
    return transport


def run(pieces: list[bytes], make: Callable[[], ScriptedHandler]) -> tuple[bytes, list[Any]]:
    handler = make()
    with asyncio.Runner() as runner:
        transport = runner.run(talk(pieces, handler))
    asked = [(a.head.key(), bytes(a.body), a.trailers, a.ended) for a in handler.asked]
    return bytes(transport.written), asked


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts})
    return [piece for a, b in zip([0, *at], [*at, len(data)], strict=True) if (piece := data[a:b])]


CONVERSATION = (
    b"GET /1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;e=1\r\nabc\r\n2\r\nde\r\n0\r\nSum: 1\r\n\r\n"
    b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    b"\r\nHEAD /1 HTTP/1.1\r\nHost: a\r\n\r\n"
    b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"
    b"GET /1 HTTP/1.1\r\nHost: a\r\nBad Field: x\r\n\r\n"
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
)


def stream(asked: Asked) -> None:
    asked.begin(200)
    asked.client.on_data(b"one", False)
    asked.client.on_trailers(((b"t", b"1"),))


def conversation_handler() -> ScriptedHandler:
    return ScriptedHandler(hello, echo=echo, stream=stream, early=lambda asked: asked.answer(200, b"early"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=30))
def test_any_split_of_a_conversation_gives_the_same_answers(cuts: list[int]) -> None:
    written, asked = run(split(CONVERSATION, cuts), conversation_handler)
    whole, asked_whole = run([CONVERSATION], conversation_handler)
    assert written == whole
    # How much of a body that was answered early still reached nobody differs; who was asked what does not.
    assert [a[0] for a in asked] == [a[0] for a in asked_whole]
    assert b"/smuggled" not in b"".join(a[0][3] for a in asked)
    assert whole.count(b"HTTP/1.1 200 OK") == 7
    assert whole.count(b"HTTP/1.1 400 ") == 1


FRAGMENTS = [
    *(b"GET / HTTP/1.1\r\n", b"POST /echo HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n", b"Host: a\r\n", b"\r\n", b"\n", b"\r"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"hello", b"0\r\n\r\n"),
    *(
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"5\r\nhello\r\n",
        b"\x00",
        b"X: y",
    ),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=8)), max_size=25))
def test_no_bytes_raise_or_leave_anything_behind(pieces: list[bytes]) -> None:
    def script(asked: Asked) -> None:
        if asked.head.protocol is not None:
            asked.client.on_head(ResponseHead(101, ()), False)
        else:
            echo(asked)

    run([piece for piece in pieces if piece], lambda: ScriptedHandler(hello, echo=script, **{"": script}))


async def test_after_a_last_response_it_half_closes_and_reads_on_for_a_moment() -> None:
    """Closing with unread bytes would make the kernel reset the connection, and the response be lost (RFC 9112 §9.6)."""
    now = 1.0
    front = Front(FrontContext(ScriptedHandler(), clock=lambda: now), [_Socket()])  # type: ignore[list-item]
    transport = FakeTransport()
    connection = H1Connection(front)
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.data_received(b"nonsense\r\n\r\n")
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert (transport.calls, transport.is_closed) == (["eof"], False)
    before = len(transport.written)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert len(transport.written) == before
    check_deadline(connection, now + front.limits.linger_s / 2)
    assert not transport.is_closed
    check_deadline(connection, now + front.limits.linger_s)
    assert transport.is_closed


@pytest.mark.parametrize(
    "fields",
    [
        ((b"content-length", b"5"), (b"content-length", b"6")),
        ((b"content-length", b"5x"),),
        ((b"content-length", b"-5"),),
        ((b"transfer-encoding", b"chunked"), (b"connection", b"keep-alive"), (b"upgrade", b"h2c")),
    ],
)
def test_framing_in_a_head_that_means_nothing_is_not_written(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    head = ResponseHead(200, (*fields, (b"a", b"b")))
    assert prepare_response(head).content_length == -1
    rendered = render_response(head, chunked=True, keep_alive=True, http_minor=1)
    assert rendered == b"HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n"


def test_what_every_request_here_is() -> None:
    """The conversation's first request is a simple one: the fast path is part of what is split."""
    assert parse_request(CONVERSATION[: CONVERSATION.index(b"\r\n\r\n") + 4], b"http", H1Limits()).is_simple
