"""From when the fronts' deadlines count: what was not the visitor's turn, or not even read, is not its silence.

The clock stands still but for `pass_by`, so nothing here depends on how busy the machine is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from edgetun_core.http.h2.frames import DATA, END_STREAM, frame
from edgetun_exitnode.front.h3_front import H3Front
from edgetun_exitnode.front.servers import Front
from support.h2_visitor import H2Visitor
from support.h3_client import h3_visitor
from support.handlers import Asked, ScriptedHandler, hello, wait
from support.visitors import until

from .conftest import Connect, StartFront
from .h3_fixtures import StartH3, h3_ca, start_h3

__all__ = ["h3_ca", "start_h3"]

Speak = Callable[[int], Awaitable[H2Visitor]]

LONG_S = 1000.0
"""Beyond every deadline but those that a test sets."""
SWEEP_S = 2 * LONG_S
"""By hand only; a clock that jumps that far has not stood still."""


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float, *fronts: Front | H3Front) -> None:
        """Time goes by, and the fronts sweep."""
        self.now += seconds
        for front in fronts:
            assert front._sweep is not None
            front._sweep.cancel()
            front._tick()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def speak() -> AsyncIterator[Speak]:
    """Connects a visitor who speaks HTTP/2."""
    visitors: list[H2Visitor] = []

    async def to(port: int) -> H2Visitor:
        visitors.append(await H2Visitor.to(port))
        return visitors[-1]

    yield to
    for visitor in visitors:
        visitor.leave()
    await asyncio.sleep(0)


def slow(asked: Asked) -> None:
    asked.client.pause_request()


async def test_a_front_that_stood_still_itself_waits_for_what_is_still_to_be_read(
    start_front: StartFront, connect: Connect, speak: Speak, start_h3: StartH3, clock: Clock
) -> None:
    """The process was paused for a minute: a head and bodies that came meanwhile are in the sockets' buffers."""
    handler = ScriptedHandler(wait)
    front = await start_front(handler, clock=clock, sweep_s=1.0)
    third = await start_h3(handler, clock=clock, sweep_s=1.0)
    halfway, posting = await connect(front.port), await connect(front.port)
    second = await speak(front.port)
    second.ask(1, end=False)
    halfway.send(b"GET / HTTP/1.1\r\nHos")
    await until(lambda: front.held_bytes > 0)
    posting.send(b"POST /posting HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1")
    async with h3_visitor(third.port) as visitor:
        visitor.send(visitor.open("POST", end=False), b"1")
        await until(lambda: len(handler.asked) == 3 and len(third.connections) == 1)
        clock.pass_by(0.0, front, third)
        clock.pass_by(60.0, front, third)
        clock.pass_by(1.0, front, third)
        assert front.counters.requests_timed_out == 0
        assert third.counters.requests_timed_out == 0
        halfway.send(b"t: a\r\n\r\n")
        posting.send(b"2")
        second.send(frame(DATA, END_STREAM, 1, b"2"))
        await until(lambda: len(handler.asked) == 4)
        for asked in handler.asked:
            assert asked.error is None
            asked.answer(200, b"in time")
        assert (await halfway.answer()).body == b"in time"
        assert (await posting.answer()).body == b"in time"
        assert (await second.answer(1)).body == b"in time"


async def test_a_visitor_who_really_is_silent_is_told_so_all_the_same(
    start_front: StartFront, connect: Connect, clock: Clock
) -> None:
    front = await start_front(clock=clock, sweep_s=1.0, head_s=10.0)
    visitor = await connect(front.port)
    visitor.send(b"GET / HTTP/1.1\r\nHos")
    await until(lambda: front.held_bytes > 0)
    for _ in range(12):
        clock.pass_by(1.0, front)
    assert (await visitor.answer()).status == 408


async def test_a_body_that_was_not_taken_has_its_time_from_when_it_is_taken_again(
    start_front: StartFront, connect: Connect, speak: Speak, start_h3: StartH3, clock: Clock
) -> None:
    limits = {"body_progress_s": 30.0, "sweep_s": SWEEP_S, "head_s": 10 * LONG_S, "keep_alive_s": 10 * LONG_S}
    handler = ScriptedHandler(slow)
    front = await start_front(handler, clock=clock, **limits)
    third = await start_h3(handler, clock=clock, **limits)
    first, second = await connect(front.port), await speak(front.port)
    first.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
    await handler.request(0)
    second.ask(1, end=False)
    await handler.request(1)
    async with h3_visitor(third.port) as visitor:
        sid = visitor.open("POST", end=False)
        await handler.request(2)
        clock.pass_by(LONG_S, front, third)
        for asked in handler.asked:
            assert asked.error is None
            asked.client.resume_request()
        clock.pass_by(1.0, front, third)
        assert [asked.error for asked in handler.asked] == [None] * 3
        first.send(b"x")
        second.send(frame(DATA, END_STREAM, 1, b"x"))
        visitor.send(sid, b"x", True)
        for asked in handler.asked:
            await asked.until(lambda asked: asked.ended)
            asked.answer(200, b"taken")
        assert (await first.answer()).body == b"taken"
        assert (await second.answer(1)).body == b"taken"
        assert (await visitor.answer(sid)).body == b"taken"


async def test_after_an_early_answer_the_rest_of_a_body_that_was_not_taken_has_its_time(
    start_front: StartFront, connect: Connect, clock: Clock
) -> None:
    handler = ScriptedHandler(hello, slow=slow)
    front = await start_front(handler, clock=clock, body_progress_s=30.0, sweep_s=SWEEP_S)
    visitor = await connect(front.port)
    visitor.send(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
    asked = await handler.request(0)
    clock.pass_by(LONG_S, front)
    asked.answer(200, b"early")
    clock.pass_by(1.0, front)
    assert (await visitor.answer()).body == b"early"
    visitor.send(b"abc")
    assert (await visitor.ask("/next")).body == b"hello /next"


async def test_a_whole_answer_under_way_is_not_cut_for_a_body_that_nobody_needs_any_more(
    start_front: StartFront, speak: Speak, clock: Clock
) -> None:
    """HTTP/2: the visitor stops sending and reads the answer at its own pace, through a window of 64 KiB."""
    body = bytes(300_000)
    handler = ScriptedHandler(wait)
    front = await start_front(handler, clock=clock, body_progress_s=30.0, sweep_s=SWEEP_S, write_stall_s=10 * LONG_S)
    visitor = await speak(front.port)
    visitor.ask(1, end=False)
    visitor.send(frame(DATA, 0, 1, b"some of it"))
    asked = await handler.request(0)
    await asked.until(lambda asked: bool(asked.body))
    asked.answer(413, body)
    response = visitor.responses.get
    while (got := response(1)) is None or len(got.body) < 65_535:
        assert await visitor.read_some()
    clock.pass_by(40.0, front)
    clock.pass_by(40.0, front)
    visitor.open_windows(1)
    answer = await visitor.answer(1)
    assert (answer.status, len(answer.body), answer.reset) == (413, len(body), None)
    clock.pass_by(40.0, front)
