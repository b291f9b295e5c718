"""Attacks on HTTP/2 servers, one test each, over real sockets. Each shows the bound, and that others are served meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from edgetun_core.http.h2 import PREFACE, Code, H2Limits
from edgetun_core.http.h2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PRIORITY,
    build_priority_update,
    build_rst_stream,
    build_window_update,
    frame,
)
from support.h2_frames import GET, block, headers, settings
from support.h2_visitor import H2Visitor
from support.handlers import Asked, ScriptedHandler, hello, wait
from support.visitors import until

from .conftest import StartFront

Speak = Callable[..., Awaitable[H2Visitor]]
CALM = Code.ENHANCE_YOUR_CALM
SLOW = H2Limits(control_per_s=0, reset_per_s=0)
"""Without what time gives back, so that no test depends on the machine's speed."""


@pytest.fixture
async def speak() -> AsyncIterator[Speak]:
    visitors: list[H2Visitor] = []

    async def to(port: int, **options: object) -> H2Visitor:
        visitor = await H2Visitor.to(port, **options)  # type: ignore[arg-type]
        visitors.append(visitor)
        return visitor

    yield to
    for visitor in visitors:
        visitor.leave()
    await asyncio.sleep(0)


async def others_are_served(speak: Speak, port: int) -> None:
    assert (await (await speak(port)).fetch(1)).body == b"hello /"


# Streams begun for nothing.


async def test_rapid_reset(start_front: StartFront, speak: Speak):
    """CVE-2023-44487: requests cancelled at once cost the server work and never count as concurrent."""
    handler = ScriptedHandler(hello, slow=wait)
    front = await start_front(handler, h2=SLOW)
    visitor = await speak(front.port)
    for number in range(2_000):
        stream = 2 * number + 1
        visitor.send(headers(stream, *GET[:3], (b":path", b"/slow")), build_rst_stream(stream, Code.CANCEL))
    assert (await visitor.goaway()).code == CALM
    assert len(handler.asked) == SLOW.reset_burst + 1
    assert all(asked.error is not None for asked in handler.asked)
    await others_are_served(speak, front.port)


@pytest.mark.parametrize(
    "provoke",
    [lambda stream: build_window_update(stream, 0), lambda stream: frame(DATA, END_STREAM, stream, b"x")],
    ids=["WINDOW_UPDATE of 0", "DATA after END_STREAM"],
)
async def test_made_you_reset(start_front: StartFront, speak: Speak, provoke: Callable[[int], bytes]):
    """CVE-2025-8671: the same, by frames that make the server send the reset."""
    handler = ScriptedHandler(hello, slow=wait)
    front = await start_front(handler, h2=SLOW)
    visitor = await speak(front.port)
    for number in range(2_000):
        stream = 2 * number + 1
        visitor.send(headers(stream, *GET[:3], (b":path", b"/slow")), provoke(stream))
    assert (await visitor.goaway()).code == CALM
    assert len(handler.asked) == SLOW.reset_burst + 1
    assert all(asked.error is not None for asked in handler.asked)
    await others_are_served(speak, front.port)


async def test_malformed_requests_without_end(start_front: StartFront, speak: Speak):
    front = await start_front(h2=SLOW)
    visitor = await speak(front.port)
    for number in range(1_000):
        visitor.send(headers(2 * number + 1, *GET, (b"connection", b"x")))
    assert (await visitor.goaway()).code == CALM
    assert front.counters.requests_malformed == SLOW.reset_burst + 1


async def test_too_many_streams(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler, h2=SLOW)
    visitor = await speak(front.port)
    for number in range(1_000):
        visitor.send(headers(2 * number + 1, *GET))
    assert (await visitor.goaway()).code == CALM
    assert len(handler.asked) == 100
    assert sum(response.reset == Code.REFUSED_STREAM for response in visitor.responses.values()) == SLOW.reset_burst + 1


async def test_answered_requests_earn_resets(start_front: StartFront, speak: Speak):
    """A browser that cancels much and also gets much is no attack."""
    front = await start_front(ScriptedHandler(hello, slow=wait), h2=H2Limits(reset_burst=10, reset_per_s=0))
    visitor = await speak(front.port)
    for number in range(100):
        stream = 4 * number + 1
        visitor.send(headers(stream, *GET[:3], (b":path", b"/slow")), build_rst_stream(stream, Code.CANCEL))
        assert (await visitor.fetch(stream + 2)).status == 200


# Header blocks.


@pytest.mark.parametrize("size", [0, 1, 16_000], ids=["empty", "of one byte", "large"])
async def test_continuation_flood(start_front: StartFront, speak: Speak, size: int):
    """CVE-2024-27316 and its kin: a header block that never ends."""
    front = await start_front()
    visitor = await speak(front.port)
    visitor.send(frame(HEADERS, END_STREAM, 1, block(*GET)))
    piece = frame(CONTINUATION, 0, 1, b"\x00\x01x" + b"\x7f" * max(0, size - 3) if size > 1 else b"\x00" * size)
    for _ in range(1_000):
        visitor.send(piece)
    assert (await visitor.goaway()).code == CALM
    await others_are_served(speak, front.port)


async def test_hpack_bomb(start_front: StartFront, speak: Speak):
    """A large table entry, and blocks of thousands of one-byte references to it."""
    handler = ScriptedHandler()
    front = await start_front(handler)
    visitor = await speak(front.port)
    bomb = block(*GET) + b"\x40\x01x\x7f\x81\x1e" + b"y" * 3_968
    assert len(bomb) < 16_384
    visitor.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, bomb))
    assert (await visitor.answer(1)).status == 200
    visitor.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, block(*GET) + b"\xbe" * 16_000))
    assert (await visitor.goaway()).code == CALM
    assert len(handler.asked) == 1
    await others_are_served(speak, front.port)


async def test_a_bomb_below_the_hard_bound_is_refused_and_the_connection_goes_on(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port)
    visitor.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(*GET) + b"\x40\x01x\x7f\x81\x1e" + b"y" * 3_968))
    await visitor.answer(1)
    visitor.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, block(*GET) + b"\xbe" * 20))
    assert (await visitor.answer(3)).status == 431
    assert (await visitor.fetch(5)).status == 200


async def test_a_huge_header_list(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port)
    visitor.send(headers(1, *GET, *((b"x-%d" % number, b"y") for number in range(200))))
    visitor.send(headers(3, *GET, *((b"x-%d" % number, b"y" * 1_000) for number in range(15))))
    assert (await visitor.answer(1)).status == 431
    assert (await visitor.answer(3)).status == 200
    payload = block(*GET, *((b"x-%d" % number, b"y" * 1_000) for number in range(40)))
    visitor.send(frame(HEADERS, END_STREAM, 5, payload[:16_000]), frame(CONTINUATION, 0, 5, payload[16_000:32_000]))
    visitor.send(frame(CONTINUATION, END_HEADERS, 5, payload[32_000:]))
    assert (await visitor.answer(5)).status == 431
    assert (await visitor.fetch(7)).status == 200


async def test_table_size_updates_without_end(start_front: StartFront, speak: Speak):
    front = await start_front()
    visitor = await speak(front.port)
    visitor.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x20" * 16_000 + block(*GET)))
    assert (await visitor.goaway()).code == Code.COMPRESSION_ERROR


# Frames that carry nothing.

FLOODS = {
    "SETTINGS (CVE-2019-9515)": settings(),
    "SETTINGS that change every window": settings((0x4, 65_535)) + settings((0x4, 65_536)),
    "PING (CVE-2019-9512)": frame(PING, 0, 0, b"12345678"),
    "PING answers": frame(PING, 1, 0, b"12345678"),
    "empty DATA (CVE-2019-9518)": frame(DATA, 0, 1),
    "DATA of padding": frame(DATA, 0x8, 1, b"\x00"),
    "PRIORITY (CVE-2019-9513)": frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
    "PRIORITY_UPDATE": build_priority_update(1, b"u=1"),
    "PRIORITY_UPDATE for streams to come": build_priority_update(99_999, b"u=1"),
    "WINDOW_UPDATE on the connection": build_window_update(0, 1),
    "WINDOW_UPDATE on a stream": build_window_update(1, 1),
    "unknown frames": frame(0xEE, 0, 0, b""),
    "GOAWAY": frame(0x7, 0, 0, bytes(8)),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_flood(start_front: StartFront, speak: Speak, flood: bytes):
    front = await start_front(ScriptedHandler(hello, slow=wait), h2=SLOW)
    visitor = await speak(front.port)
    visitor.ask(1, path=b"/slow", end=False)
    for _ in range(60):
        visitor.send(flood * 100)
        await asyncio.sleep(0)
    assert (await visitor.goaway()).code == CALM
    await others_are_served(speak, front.port)


async def test_a_flood_whose_answers_are_not_read_is_bounded_too(start_front: StartFront, speak: Speak):
    """CVE-2019-9512, -9515: answers pile up for a peer that does not read them."""
    front = await start_front(h2=SLOW)
    visitor = await speak(front.port)
    await visitor.roundtrip()
    (connection,) = front.connections
    highest = 0
    for _ in range(60):
        visitor.send((frame(PING, 0, 0, b"12345678") + settings()) * 100)
        await asyncio.sleep(0)
        if connection.transport is not None and not connection.transport.is_closing():
            highest = max(highest, connection.transport.get_write_buffer_size())
    assert (await visitor.goaway()).code == CALM
    assert highest < 128 * 1024


async def test_window_updates_are_no_flood_as_long_as_they_answer_data(start_front: StartFront, speak: Speak):
    def script(asked: Asked) -> None:
        asked.answer(200, b"x" * 2_000_000)

    front = await start_front(ScriptedHandler(script), h2=H2Limits(control_burst=20, control_per_s=0))
    visitor = await speak(front.port)
    visitor.ask(1)
    response, updated = visitor.response(1), 0
    while not response.ended:
        assert await visitor.read_some()
        if len(response.body) - updated >= 16_384:
            visitor.send(*(build_window_update(stream, len(response.body) - updated) for stream in (0, 1)))
            updated = len(response.body)
    assert len(response.body) == 2_000_000


# Who takes nothing, and who sends nothing.


async def test_zero_window_stall(start_front: StartFront, speak: Speak):
    """CVE-2019-9517 in its plainest form: a window that stays closed while responses wait."""
    handler = ScriptedHandler(lambda asked: asked.answer(200, b"x" * 100_000))
    front = await start_front(handler, write_stall_s=0.3)
    visitor = await speak(front.port, greet=False)
    visitor.send(PREFACE + settings((0x4, 0)))
    visitor.ask(1)
    visitor.ask(3)
    for stream in (1, 3):
        assert (await visitor.answer(stream)).reset == Code.CANCEL
    assert front.queued_bytes == 0


async def test_zero_window_stall_of_a_response_under_way_cancels_it(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(wait)
    front = await start_front(handler, write_stall_s=0.3)
    visitor = await speak(front.port, greet=False)
    visitor.send(PREFACE + settings((0x4, 0)))
    visitor.ask(1)
    asked = await handler.request()
    asked.begin(200)
    asked.client.on_data(b"x" * 1_000, False)
    assert (await visitor.answer(1)).reset == Code.CANCEL
    assert asked.error is not None


async def test_a_window_that_opens_by_single_bytes_costs_the_attackers_budget(start_front: StartFront, speak: Speak):
    """CVE-2019-9511, data dribble: frames of one byte each."""
    front = await start_front(
        ScriptedHandler(lambda asked: asked.answer(200, b"x" * 1_000_000)),
        h2=H2Limits(control_burst=200, control_per_s=0),
    )
    visitor = await speak(front.port, greet=False)
    visitor.send(PREFACE + settings((0x4, 0)))
    for stream in range(1, 41, 2):
        visitor.ask(stream)
    visitor.open_windows()
    reading = asyncio.create_task(visitor.goaway())  # what was not read yet is lost when a write fails
    for _ in range(3_000):
        visitor.send(b"".join(build_window_update(stream, 1) for stream in range(1, 41, 2)))
        await asyncio.sleep(0)
        if reading.done():
            break
    goaway = await reading
    assert goaway.code == CALM
    assert sum(len(response.body) for response in visitor.responses.values()) < 60_000


class Pusher(Asked):
    """Writes whenever it may, without end."""

    def push(self) -> None:
        while not self.is_paused and self.error is None:
            self.client.on_data(b"x" * 16_384, False)

    def resume_response(self) -> None:
        super().resume_response()
        asyncio.get_running_loop().call_soon(self.push)


class Endless:
    def open(self, head, peer, end, client):
        pusher = Pusher(head, peer, end, client)
        pusher.begin(200)
        asyncio.get_running_loop().call_soon(pusher.push)
        return pusher


async def test_slow_reading_behind_large_windows(start_front: StartFront, speak: Speak):
    """CVE-2019-9517, internal data buffering: windows open, the socket unread. What is held stays within the bounds."""
    front = await start_front(Endless(), write_stall_s=0.5)
    visitor = await speak(front.port, greet=False)
    visitor.send(PREFACE + settings((0x4, 0x7FFFFFFF)))
    await visitor.roundtrip()
    visitor.open_windows(size=0x7FFF0000)
    visitor.writer.transport.pause_reading()
    for number in range(100):
        visitor.ask(2 * number + 1)
    highest = 0
    async with asyncio.timeout(20):
        while front.connections:
            (connection,) = front.connections
            highest = max(highest, front.queued_bytes + connection.transport.get_write_buffer_size())
            await asyncio.sleep(0.01)
    limits = front.limits
    assert highest > limits.h2.connection_queue_bytes // 2
    assert highest <= limits.h2.connection_queue_bytes + 100 * 16_384 + 2 * limits.write_buffer_bytes
    assert front.queued_bytes == 0


async def test_when_a_front_holds_too_much_visitors_who_take_nothing_are_dropped(
    start_front: StartFront, speak: Speak, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgetun_exitnode.front.h2.SLOW_GRACE_S", 0.2)
    handler = ScriptedHandler(hello, big=lambda asked: asked.answer(200, b"x" * 400_000))
    front = await start_front(handler, queued_bytes=1_000_000)
    stalled = [await speak(front.port) for _ in range(4)]
    for visitor in stalled:
        visitor.ask(1, path=b"/big")
    await until(lambda: front.counters.connections_evicted >= 2, 15.0)
    assert front.queued_bytes <= 1_000_000
    await others_are_served(speak, front.port)


async def test_bodies_for_a_server_that_does_not_take_them_are_bounded_for_all_connections(
    start_front: StartFront, speak: Speak
):
    handler = ScriptedHandler(hello, hold=lambda asked: asked.client.pause_request())
    front = await start_front(handler, held_bytes=500_000)
    visitors = [await speak(front.port) for _ in range(8)]
    for visitor in visitors:
        visitor.ask(1, path=b"/hold", end=False)
        for _ in range(10):
            visitor.send(frame(DATA, 0, 1, b"x" * 16_000))
        await visitor.roundtrip()
    assert front.held_bytes <= 500_000 + 16_000 * 8
    assert any(visitor.response(1).reset == CALM for visitor in visitors)
    await others_are_served(speak, front.port)


@pytest.mark.parametrize(
    "sent", [PREFACE[:20], PREFACE, PREFACE + settings()[:5]], ids=["preface", "settings", "a part"]
)
async def test_slow_preface(start_front: StartFront, speak: Speak, sent: bytes):
    front = await start_front(head_s=0.3)
    visitor = await speak(front.port, greet=False)
    visitor.send(sent)
    assert (await visitor.goaway()).code == Code.PROTOCOL_ERROR
    await until(lambda: not front.connections)


async def test_settings_that_are_never_acknowledged(start_front: StartFront, speak: Speak):
    front = await start_front(head_s=0.3)
    visitor = await speak(front.port)
    visitor.is_polite = False
    assert (await visitor.goaway()).code == Code.SETTINGS_TIMEOUT


async def test_slow_headers(start_front: StartFront, speak: Speak):
    """Slowloris: a header block in drips, behind frames that are whole."""
    front = await start_front(head_s=0.4)
    visitor = await speak(front.port)
    await visitor.roundtrip()
    visitor.send(frame(HEADERS, END_STREAM, 1, block(*GET)[:5]))

    async def drip() -> None:
        for byte in block(*GET)[5:15]:
            visitor.send(frame(CONTINUATION, 0, 1, bytes((byte,))))
            await asyncio.sleep(0.1)

    dripping = asyncio.create_task(drip())
    assert (await visitor.goaway()).code == Code.PROTOCOL_ERROR
    dripping.cancel()


async def test_slow_body(start_front: StartFront, speak: Speak):
    handler = ScriptedHandler(hello, slow=wait)
    front = await start_front(handler, body_progress_s=0.3)
    visitor = await speak(front.port)
    visitor.ask(1, path=b"/slow", end=False)
    visitor.send(frame(DATA, 0, 1, b"x"))
    asked = await handler.request()
    response = await visitor.answer(1)
    assert response.status == 408
    assert asked.error is not None
    assert front.counters.requests_timed_out == 1
    assert (await visitor.fetch(3)).status == 200


async def test_heads_without_a_reader(start_front: StartFront, speak: Speak):
    """HEAD requests on end by a visitor who reads no answer: no window bounds heads, the transport must."""
    fields = (b"x-large", b"y" * 8_000)
    handler = ScriptedHandler(lambda asked: asked.answer(200, b"", fields))
    front = await start_front(handler, write_stall_s=0.5)
    visitor = await speak(front.port)
    await visitor.roundtrip()
    (connection,) = front.connections
    highest = 0
    for number in range(3_000):
        visitor.send(headers(2 * number + 1, (b":method", b"HEAD"), *GET[1:]))
        if number % 20 == 0:
            await asyncio.sleep(0)
            if not connection.transport.is_closing():
                highest = max(highest, connection.transport.get_write_buffer_size())
    assert highest <= front.limits.write_buffer_bytes + 64 * 1024 + 101 * 8_200
    await others_are_served_after(speak, front.port)


async def others_are_served_after(speak: Speak, port: int) -> None:
    assert (await (await speak(port)).fetch(1)).status == 200
