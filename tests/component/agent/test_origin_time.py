"""From when the deadlines of origins count: what the visitor owes, or what was not read yet, is not the origin's silence."""

from __future__ import annotations

import asyncio
import time

import pytest

from edgetun_agent.origin import h2_connection, sweeper
from edgetun_agent.origin.client import OriginClient
from edgetun_agent.origin.connection import OriginConnection
from edgetun_agent.origin.exchange import OriginExchange
from edgetun_agent.origin.h2_client import H2OriginClient
from edgetun_agent.origin.h2_exchange import H2Exchange
from edgetun_core.http.exchange import RequestSink
from edgetun_core.snapshot import OriginRule
from support.exchanges import PEER, request
from support.h2_origin import H2Stream, h2_origin
from support.origin_server import ScriptedConnection, Visitor, scripted_origin

POST = request(b"/up", method=b"POST")
LONG_S = 1000.0
"""Beyond every deadline; handed to sweeps as the time."""


def start(client: OriginClient | H2OriginClient) -> tuple[Visitor, RequestSink]:
    visitor = Visitor()
    return visitor, client.open(POST, PEER, False, visitor)


async def test_an_origin_that_answers_while_the_visitor_still_sends_is_not_blamed_for_the_visitors_pause() -> None:
    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not (got := await connection.until(b"\r\n")).startswith(b"0"):
            await connection.send(got + await connection.read(int(got, 16) + 2))
        await connection.send(b"0\r\n\r\n")
        await connection.closed()

    async with scripted_origin(script) as origin:
        client = OriginClient(OriginRule("web", origin.url))
        visitor, sink = start(client)
        sink.send_data(b"first ", False)
        await visitor.until(lambda: visitor.body == b"first ")
        [connection] = client._pool.open
        connection.sweep(time.monotonic() + LONG_S, 60.0, 60.0)
        sink.send_data(b"second", True)
        await visitor.ended()
        assert (visitor.status, visitor.body, "reset" in visitor.names()) == (200, b"first second", False)
        await client.close()


async def test_an_http2_origin_that_answers_meanwhile_neither() -> None:
    async def handler(stream: H2Stream) -> None:
        stream.head(200)
        await stream.until(lambda: b"".join(stream.received) == b"first ")
        await stream.data(b"first ")
        await stream.body()
        await stream.data(b"second", end=True)

    async with h2_origin(handler) as origin:
        client = H2OriginClient(OriginRule("rpc", origin.url, protocol="h2c"))
        visitor, sink = start(client)
        assert isinstance(sink, H2Exchange)
        sink.send_data(b"first ", False)
        await visitor.until(lambda: visitor.body == b"first ")
        sink.sweep(time.monotonic(), 60.0, 60.0)
        sink.sweep(time.monotonic() + LONG_S, 60.0, 60.0)
        sink.send_data(b"second", True)
        await visitor.ended()
        assert (visitor.status, visitor.body, "reset" in visitor.names()) == (200, b"first second", False)
        await client.close()


class Wire(asyncio.Transport):
    """A connection to somebody who says nothing."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def close(self) -> None:
        pass


async def test_an_http2_origin_has_its_time_for_a_first_word_from_when_it_could_say_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not from before TLS, which has a deadline of its own."""
    now = 5000.0
    monkeypatch.setattr(h2_connection, "monotonic", lambda: now)
    connection = h2_connection.H2OriginConnection(
        H2OriginClient(OriginRule("rpc", "http://127.0.0.1:1", protocol="h2c"))
    )
    now += 9.5  # as long as the handshake took
    connection.connection_made(Wire())
    connection.sweep(now + 9.5, (10.0, 60.0, 60.0), 60.0)
    assert connection.failure is None
    connection.sweep(now + 10.5, (10.0, 60.0, 60.0), 60.0)
    assert "said nothing in HTTP/2 for 10 s" in str(connection.failure)


async def test_a_sweep_that_is_late_itself_lets_what_came_be_read_before_anybody_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 5000.0
    monkeypatch.setattr(sweeper, "monotonic", lambda: now)
    swept: list[float] = []

    def sweep(at: float) -> bool:
        swept.append(at)
        return True

    watching = sweeper.Sweeper(OriginRule("web", "http://127.0.0.1:1"), sweep)
    watching.watch()
    now += sweeper.SLOWEST_SWEEP_S
    watching._look()
    assert swept == [now]
    now += 60.0  # a laptop that slept
    watching._look()
    assert len(swept) == 1
    now += sweeper.SLOWEST_SWEEP_S
    watching._look()
    assert swept[1:] == [now]
    for _ in range(10):  # one that never has the time
        now += 60.0
        watching._look()
    assert len(swept) == 7
    watching.stop()


class SlowWire(Wire):
    """A connection whose other end takes what is written as slowly as the test says."""

    unwritten = 0

    def get_write_buffer_size(self) -> int:
        return self.unwritten

    def abort(self) -> None:
        pass


async def test_an_origin_that_takes_a_body_slowly_is_not_blamed_for_taking_nothing() -> None:
    """The transport tells of progress only below its low-water mark; an upload may be minutes in getting there."""
    client = OriginClient(OriginRule("web", "http://127.0.0.1:1"))
    visitor = Visitor()
    connection, wire = OriginConnection(client), SlowWire()
    connection.connection_made(wire)
    exchange = OriginExchange(client, POST, visitor)
    connection.begin(exchange, b"POST /up HTTP/1.1\r\n\r\n")
    wire.unwritten = 256 * 1024
    connection.pause_writing()
    at = connection.since
    for unwritten in (255, 180, 90, 70):
        at += 50.0
        wire.unwritten = unwritten * 1024
        connection.sweep(at, 10.0, 60.0)
        assert connection.exchange is exchange
    connection.sweep(at + 61.0, 10.0, 60.0)
    assert connection.exchange is None
    assert "took nothing of the request's body for 60 s" in str(visitor.error)
    await client.close()
