"""An HTTP/3 connection by hand: who is paused and resumed, what is kept, and that nothing is left when it ends."""

from __future__ import annotations

import asyncio

from edgetun_core.http.h3_frames import H3_REQUEST_CANCELLED, encode_frame
from edgetun_core.http.qpack import encode_section
from edgetun_exitnode.front.context import FrontLimits
from edgetun_exitnode.front.h3 import MAX_QUEUED_BYTES
from support.h3_client import request_headers
from support.h3_stub import StubFront
from support.handlers import ScriptedHandler, echo, wait

GET = encode_frame(1, encode_section(request_headers()))


async def test_a_stream_that_was_paused_for_others_goes_on_when_they_are_cancelled() -> None:
    handler = ScriptedHandler(wait)
    front = StubFront(handler, FrontLimits(write_buffer_bytes=2 * MAX_QUEUED_BYTES))
    connection, quic = front.connection()
    quic.keeps = quic.is_held_back = True
    for sid in (0, 4):
        connection.stream_data(sid, GET, True)
    greedy, modest = handler.asked
    for asked in handler.asked:
        asked.begin(200)
        front.run_later()
    greedy.client.on_data(bytes(MAX_QUEUED_BYTES + 200_000), False)
    modest.client.on_data(bytes(100), False)
    modest.client.on_data(bytes(10_000), False)
    assert greedy.is_paused
    assert modest.is_paused
    quic.unsent_of[4] = 0
    connection.stop_sending(0, H3_REQUEST_CANCELLED)
    assert greedy.error is not None
    connection.transmit()
    quic.unsent_of.clear()
    connection.transmit()
    assert not modest.is_paused
    connection.give_up("the end")


async def test_a_request_answered_at_once_is_not_kept_and_one_in_flight_is() -> None:
    handler = ScriptedHandler(wait, now=lambda asked: asked.answer(200, b"x"))
    front = StubFront(handler)
    connection, quic = front.connection()
    block = encode_frame(1, encode_section(request_headers("GET", "/now")))
    for number in range(50):
        connection.stream_data(4 * number, block, True)
    assert not connection.streams
    assert len(quic.ended_streams) == 50
    assert front.counters.http3_requests == 50
    connection.stream_data(400, GET, True)
    assert list(connection.streams) == [400]
    handler.asked[-1].answer(200, b"later")
    assert not connection.streams


async def test_a_pause_in_the_middle_of_a_body_keeps_the_rest_in_order_with_its_trailers() -> None:
    handler = ScriptedHandler(echo)
    front = StubFront(handler)
    connection, quic = front.connection()
    post = encode_frame(1, encode_section(request_headers("POST")))
    connection.stream_data(0, post + encode_frame(0, b"one"), False)
    asked = handler.asked[0]
    asked.client.pause_request()
    connection.stream_data(0, encode_frame(0, b"two") + encode_frame(0, b"three"), False)
    connection.stream_data(0, encode_frame(1, encode_section([(b"x-sum", b"3")])), True)
    assert bytes(asked.body) == b"one"
    assert front.held_bytes == 8
    asked.client.resume_request()
    front.run_later()
    assert bytes(asked.body) == b"onetwothree"
    assert asked.trailers == ((b"x-sum", b"3"),)
    assert front.held_bytes == 0
    assert quic.ended_streams == {0}
    assert not connection.streams


async def test_the_end_of_a_connection_cancels_everything_once() -> None:
    handler = ScriptedHandler(wait)
    front = StubFront(handler)
    connection, quic = front.connection()
    for number in range(3):
        connection.stream_data(4 * number, GET, True)
    connection.give_up("the edge went away")
    connection.give_up("again")
    await asyncio.sleep(0)
    assert all(asked.error is not None for asked in handler.asked)
    assert front.gone == [connection]
    assert quic.closed is not None
    handler.asked[0].answer(200, b"too late")  # ignored
