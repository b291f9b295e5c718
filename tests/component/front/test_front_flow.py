"""Backpressure, deadlines, bounds on connections, upgrades, drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from edgetun_core.errors import Cancelled, NoSession
from edgetun_core.http.message import ResponseHead
from support.handlers import Asked, ScriptedHandler, hello, wait
from support.visitors import Visitor, until

from .conftest import Connect, StartFront

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


# Backpressure.


async def test_a_slow_reader_pauses_the_answering_side(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port, buffer_bytes=1024)
    visitor.send(GET)
    asked = await handler.request()
    asked.begin(200)
    sent = 0
    while not asked.is_paused:
        asked.client.on_data(b"x" * 16_384, False)
        sent += 16_384
        assert sent < 64 * 1024 * 1024
        await asyncio.sleep(0)
    (connection,) = front.connections
    assert connection.transport.get_write_buffer_size() <= front.limits.write_buffer_bytes + 17_000
    reading = asyncio.create_task(visitor.answer())
    await asked.until(lambda asked: not asked.is_paused)
    asked.client.on_data(b"", True)
    assert len((await reading).body) == sent


async def test_a_slow_handler_pauses_the_visitors_body(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n")
    asked = await handler.request()
    asked.client.pause_request()
    asked.client.pause_request()  # edges, not counters
    for _ in range(50):
        visitor.send(b"x" * 1_000_000)
    await until(lambda: visitor.writer.transport.get_write_buffer_size() > 0)
    await asyncio.sleep(0.1)
    assert len(asked.body) <= 512 * 1024  # at most what one read had under way
    held_up = len(asked.body)
    await asyncio.sleep(0.05)
    assert len(asked.body) == held_up
    asked.client.resume_request()
    await asked.until(lambda asked: asked.ended)
    assert len(asked.body) == 50_000_000
    asked.answer(200, b"done")
    assert (await visitor.answer()).body == b"done"


async def test_a_paused_body_does_not_pause_the_next_request(start_front: StartFront, connect: Connect) -> None:
    def script(asked: Asked) -> None:
        asked.client.pause_request()
        asked.answer(200, b"early")

    front = await start_front(ScriptedHandler(hello, early=script))
    visitor = await connect(front.port)
    visitor.send(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
    assert (await visitor.answer()).body == b"early"
    visitor.send(b"abc", GET)
    assert (await visitor.answer()).body == b"hello /"


async def test_bytes_behind_a_request_in_flight_are_bounded(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(GET)
    asked = await handler.request()
    for _ in range(100):
        visitor.send(GET * 2000)
    await until(lambda: any(c.read_paused for c in front.connections))
    await asyncio.sleep(0.05)
    assert front.held_bytes < 512 * 1024
    asked.answer(200, b"one")
    assert (await visitor.answer()).body == b"one"
    (await handler.request(1)).answer(200, b"two")
    assert (await visitor.answer()).body == b"two"


# Deadlines.


async def test_a_head_in_drips_is_answered_408(start_front: StartFront, connect: Connect) -> None:
    front = await start_front(head_s=0.3)
    visitor = await connect(front.port)

    async def drip() -> None:
        for byte in GET * 100:
            visitor.send(bytes((byte,)))
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    assert (await visitor.answer()).status == 408
    assert await visitor.is_closed()
    dripping.cancel()
    assert front.counters.requests_timed_out == 1


async def test_a_silent_body_is_answered_408_and_its_exchange_reset(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler, body_progress_s=0.2)
    visitor = await connect(front.port)
    visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
    asked = await handler.request()
    assert (await visitor.answer()).status == 408
    assert asked.error is not None
    assert await visitor.is_closed()


async def test_a_body_that_goes_on_is_not_cut_nor_one_that_the_handler_paused(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler, body_progress_s=0.25)
    visitor = await connect(front.port)
    visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
    asked = await handler.request()
    for _ in range(8):
        visitor.send(b"x")
        await asyncio.sleep(0.1)
    asked.client.pause_request()
    await asyncio.sleep(0.6)
    assert asked.error is None
    asked.client.resume_request()
    visitor.send(b"xx")
    await asked.until(lambda asked: asked.ended)
    asked.answer(200, b"ok")
    assert (await visitor.answer()).status == 200


async def test_an_idle_connection_is_closed_without_a_word(start_front: StartFront, connect: Connect) -> None:
    front = await start_front(keep_alive_s=0.2)
    fresh = await connect(front.port)
    used = await connect(front.port)
    await used.ask()
    assert await fresh.is_closed()
    assert await used.is_closed()


async def test_a_slow_answer_is_waited_for(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler, keep_alive_s=0.1, head_s=0.1, body_progress_s=0.1, write_stall_s=0.1)
    visitor = await connect(front.port)
    visitor.send(GET)
    asked = await handler.request()
    await asyncio.sleep(0.5)
    asked.answer(200, b"at last")
    assert (await visitor.answer()).body == b"at last"


async def test_a_visitor_who_takes_nothing_is_dropped(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler, write_stall_s=0.3)
    visitor = await connect(front.port, buffer_bytes=1024)
    visitor.send(GET)
    asked = await handler.request()
    asked.begin(200)
    while not asked.is_paused:
        asked.client.on_data(b"x" * 65_536, False)
        await asyncio.sleep(0)
    await asked.until(lambda asked: isinstance(asked.error, Cancelled))
    await until(lambda: not front.connections)


# Bounds.


async def test_500_idle_and_slow_connections_leave_the_others_served(start_front: StartFront, connect: Connect) -> None:
    front = await start_front()
    crowd = [await Visitor.to(front.port) for _ in range(500)]
    try:
        for visitor in crowd[::2]:
            visitor.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        visitor = await connect(front.port)
        for _ in range(20):
            async with asyncio.timeout(2.0):
                assert (await visitor.ask()).status == 200
        assert front.counters.connections_open == 501
    finally:
        for visitor in crowd:
            visitor.leave()


async def test_when_full_the_longest_idle_connection_makes_room(start_front: StartFront, connect: Connect) -> None:
    front = await start_front(max_connections=3)
    first, second, third = [await connect(front.port) for _ in range(3)]
    await until(lambda: len(front.connections) == 3)
    await asyncio.sleep(0.15)
    await first.ask()
    await third.ask()
    await asyncio.sleep(0.15)
    newcomer = await connect(front.port)
    assert (await newcomer.ask()).status == 200
    assert await second.is_closed()
    assert (await first.ask()).status == 200
    assert front.counters.connections_evicted == 1


async def test_when_full_of_work_the_newcomer_gets_503(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler, max_connections=2)
    for number in range(2):
        (await connect(front.port)).send(GET)
        await handler.request(number)
    await asyncio.sleep(0.15)
    newcomer = await connect(front.port)
    newcomer.send(GET)
    answer = await newcomer.answer()
    assert (answer.status, answer.fields["retry-after"], answer.fields["connection"]) == (503, "1", "close")
    assert await newcomer.is_closed()
    assert front.counters.connections_refused == 1
    assert all(asked.error is None for asked in handler.asked)


async def test_connections_per_address_are_bounded(
    start_front: StartFront, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetun_exitnode.front.addresses.address_key", lambda address: address)
    front = await start_front(max_connections_per_address=2)
    first = await connect(front.port)
    assert (await first.ask()).status == 200
    assert (await (await connect(front.port)).ask()).status == 200
    third = await connect(front.port)
    assert (await third.answer()).status == 503
    await first.close()
    await until(lambda: len(front.connections) == 1)
    assert (await (await connect(front.port)).ask()).status == 200


async def test_unfinished_heads_of_all_connections_together_are_bounded(
    start_front: StartFront, connect: Connect
) -> None:
    front = await start_front(held_bytes=50_000)
    slow = [await connect(front.port) for _ in range(3)]
    for visitor in slow:
        visitor.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: " + b"x" * 20_000)
    await until(lambda: front.counters.connections_refused == 1)
    assert front.held_bytes <= 50_000
    assert (await (await connect(front.port)).ask()).status == 200


# Upgrades.


async def test_an_upgrade_carries_raw_bytes_both_ways_and_half_closes(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(UPGRADE + b"early")
    asked = await handler.request()
    assert asked.head.protocol == b"websocket"
    assert not asked.ended
    asked.client.on_head(ResponseHead(101, ((b"sec-websocket-accept", b"x"),)), False)
    answer = await visitor.head()
    assert (answer.status, answer.fields["upgrade"], answer.fields["connection"]) == (101, "websocket", "upgrade")
    await asked.until(lambda asked: bytes(asked.body) == b"early")
    visitor.send(b"GET / HTTP/1.1\r\n\r\n")
    await asked.until(lambda asked: bytes(asked.body) == b"earlyGET / HTTP/1.1\r\n\r\n")
    asked.client.on_data(b"\x00\xff", False)
    assert await visitor.read(2) == b"\x00\xff"
    visitor.end()
    await asked.until(lambda asked: asked.ended)
    assert asked.error is None
    asked.client.on_data(b"last", True)
    assert await visitor.rest() == b"last"
    await until(lambda: not front.connections)
    assert asked.error is None


async def test_the_origin_may_end_an_upgraded_connection_first(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(lambda asked: asked.client.on_head(ResponseHead(101, ()), False))
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(UPGRADE)
    assert (await visitor.head()).status == 101
    asked = handler.asked[0]
    asked.client.on_data(b"bye", True)
    assert await visitor.rest() == b"bye"
    visitor.send(b"still here")
    await asked.until(lambda asked: bytes(asked.body) == b"still here")
    visitor.end()
    await asked.until(lambda asked: asked.ended)
    await until(lambda: not front.connections)


async def test_an_upgrade_that_was_answered_otherwise_leaves_an_ordinary_connection(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler(wait, now=lambda asked: asked.begin(200, (b"content-length", b"2")))
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(UPGRADE)
    asked = await handler.request(0)
    asked.begin(200, (b"content-length", b"2"))
    assert asked.ended
    asked.client.on_data(b"no", True)
    assert (await visitor.answer()).body == b"no"
    visitor.send(UPGRADE.replace(b"/ws", b"/now"))
    asked = await handler.request(1)
    await asked.until(lambda asked: asked.ended)
    asked.client.on_data(b"ok", True)
    assert (await visitor.answer()).body == b"ok"
    visitor.send(UPGRADE)
    (await handler.request(2)).client.on_reset(NoSession("no agent"))
    assert (await visitor.answer()).status == 503
    visitor.send(GET)
    (await handler.request(3)).answer(200, b"x")
    assert (await visitor.answer()).body == b"x"


async def test_an_upgrade_nobody_asked_for_is_a_broken_origin(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(GET)
    asked = await handler.request()
    asked.client.on_head(ResponseHead(101, ()), False)
    assert (await visitor.answer()).status == 502
    assert asked.error is not None


async def test_a_visitor_who_breaks_off_an_upgraded_connection_resets_it(
    start_front: StartFront, connect: Connect
) -> None:
    handler = ScriptedHandler(lambda asked: asked.client.on_head(ResponseHead(101, ()), False))
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(UPGRADE)
    await visitor.head()
    visitor.break_off()
    await handler.asked[0].until(lambda asked: isinstance(asked.error, Cancelled))
    await until(lambda: not front.connections)


async def test_backpressure_holds_on_upgraded_connections_too(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(lambda asked: asked.client.on_head(ResponseHead(101, ()), False))
    front = await start_front(handler)
    visitor = await connect(front.port, buffer_bytes=1024)
    visitor.send(UPGRADE)
    await visitor.head()
    asked = handler.asked[0]
    while not asked.is_paused:
        asked.client.on_data(b"x" * 65_536, False)
        await asyncio.sleep(0)
    asked.client.pause_request()
    for _ in range(20):
        visitor.send(b"y" * 1_000_000)
    await asyncio.sleep(0.1)
    assert len(asked.body) <= 512 * 1024


# Going away.


async def test_drain_lets_requests_finish_and_closes_the_rest(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    idle = await connect(front.port)
    busy = await connect(front.port)
    streaming = await connect(front.port)
    busy.send(GET)
    waiting = await handler.request(0)
    streaming.send(GET)
    stream = await handler.request(1)
    stream.begin(200)
    assert "connection" not in (await streaming.head()).fields
    await until(lambda: len(front.connections) == 3)
    draining = asyncio.create_task(front.drain(5.0))
    assert await idle.is_closed()
    with contextlib.suppress(ConnectionError):
        refused = socket.create_connection(("127.0.0.1", front.port), timeout=1.0)
        refused.close()
        pytest.fail("still accepting")
    waiting.answer(200, b"done")
    answer = await busy.answer()
    assert (answer.body, answer.fields["connection"]) == (b"done", "close")
    assert await busy.is_closed()
    assert not draining.done()
    stream.client.on_data(b"end", True)
    assert await streaming.rest() == b"3\r\nend\r\n0\r\n\r\n"
    await asyncio.wait_for(draining, 1.0)


async def test_drain_drops_what_is_left_at_its_deadline(start_front: StartFront, connect: Connect) -> None:
    handler = ScriptedHandler(wait)
    front = await start_front(handler)
    visitor = await connect(front.port)
    visitor.send(GET)
    asked = await handler.request()
    await front.drain(0.1)
    assert isinstance(asked.error, Cancelled)
    assert await visitor.is_closed()
    assert not front.connections


async def test_a_handler_that_raises_costs_its_own_connection_only(
    start_front: StartFront, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(asked: Asked) -> None:
        raise RuntimeError("a bug")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    front = await start_front(ScriptedHandler(hello, broken=broken))
    visitor = await connect(front.port)
    visitor.send(b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n")
    other = await connect(front.port)
    assert (await other.ask()).status == 200
    await visitor.rest()
    await until(lambda: len(front.connections) == 1)
