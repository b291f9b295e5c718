"""Whose bytes a QUIC library gets next: by priority, little at a time, and past those that take nothing (RFC 9218 §10)."""

from __future__ import annotations

from collections import deque
from typing import Any, cast

from edgetun_exitnode.front.h3_output import HAND_BYTES, STREAM_HAND_BYTES, Output, Writer
from support.h3_stub import StubQuic


class Stream:
    def __init__(self, sid: int, urgency: int = 3, incremental: bool = False) -> None:
        self.sid = sid
        self.urgency = urgency
        self.incremental = incremental
        self.queue: deque[memoryview] | None = None
        self.queued = 0
        self.queue_ends = False


class Place:
    """An output over a library whose network takes what the test lets it."""

    def __init__(self) -> None:
        self.quic = StubQuic()
        self.quic.keeps = True
        self.quic.is_held_back = True
        self.output = Output(cast("Any", self.quic))

    def write(self, stream: Stream, size: int, is_end: bool = False) -> None:
        self.output.write(stream, bytes(size), is_end)

    def drain(self, *sids: int) -> list[int]:
        """The network takes all that the library holds (of these streams); returns whose bytes came after, in order."""
        for sid in sids or tuple(self.quic.unsent_of):
            self.quic.unsent_of[sid] = 0
        self.quic.order.clear()
        self.output.settle()
        fed: list[Writer] = []
        self.output.feed(fed)
        return [sid for sid, size in self.quic.order if size]


def test_what_has_room_goes_at_once_and_the_rest_waits() -> None:
    place, stream = Place(), Stream(0)
    place.write(stream, 1000, True)
    assert place.quic.ended_streams == {0}
    assert not place.output.waiting
    other = Stream(4)
    place.write(other, HAND_BYTES)
    assert other.queued == HAND_BYTES
    assert place.output.queued_bytes == HAND_BYTES
    assert 4 not in place.quic.sent


def test_the_more_urgent_goes_first_and_alone() -> None:
    place = Place()
    slow, fast = Stream(0, urgency=6), Stream(4, urgency=1)
    place.write(slow, 3 * HAND_BYTES, True)
    place.write(fast, 3 * HAND_BYTES, True)
    turns: list[int] = []
    while place.output.waiting:
        turns += place.drain()
    assert turns.index(0) > max(at for at, sid in enumerate(turns) if sid == 4 and at < turns.index(0))
    assert 4 not in turns[turns.index(0) + 1 :]
    assert len(place.quic.sent[0]) == len(place.quic.sent[4]) == 3 * HAND_BYTES
    assert place.quic.ended_streams == {0, 4}


def test_equals_go_one_after_the_other_unless_they_are_incremental() -> None:
    place = Place()
    streams = [Stream(sid) for sid in (8, 0, 4)]
    for stream in streams:
        place.write(stream, 2 * HAND_BYTES)
    turns: list[int] = []
    while place.output.waiting:
        turns += place.drain()
    assert turns == sorted(turns)

    place = Place()
    streams = [Stream(sid, incremental=True) for sid in (0, 4, 8)]
    for stream in streams:
        place.write(stream, 2 * HAND_BYTES)
    assert place.drain()[:6] == [0, 4, 8, 0, 4, 8]


def test_no_more_than_a_little_is_ahead_of_the_network() -> None:
    place = Place()
    for sid in range(0, 400, 4):
        place.write(Stream(sid, incremental=True), 200_000)
    for _ in range(5):
        place.drain(0)
        assert place.quic.unsent_bytes() <= HAND_BYTES
        assert max(place.quic.unsent_of.values()) <= STREAM_HAND_BYTES


def test_a_stream_that_its_visitor_holds_up_holds_up_nobody() -> None:
    place = Place()
    stuck, other = Stream(0, urgency=0), Stream(4, urgency=5)
    place.write(stuck, 4 * HAND_BYTES)
    place.write(other, 4 * HAND_BYTES)
    place.quic.is_held_back = False  # there is room in the network, and yet nothing of stream 0 leaves
    got = 0
    for _ in range(20):
        place.drain(4)
        got = len(place.quic.sent[4])
    assert len(place.quic.sent[0]) <= STREAM_HAND_BYTES
    assert got == 4 * HAND_BYTES


def test_a_full_connection_window_is_kept_for_the_urgent() -> None:
    """Nothing is congested, and everything waits for the connection's window: the less urgent stream gets next to nothing."""
    place = Place()
    urgent, other = Stream(0, urgency=0), Stream(4, urgency=5)
    place.write(urgent, 8 * HAND_BYTES)
    place.write(other, 8 * HAND_BYTES)
    place.quic.is_held_back = False
    for _ in range(10):
        place.quic.unsent_of[0] = max(0, place.quic.unsent_of[0] - 10_000)  # the window opens a little, for stream 0
        place.quic.unsent_of[4] = max(0, place.quic.unsent_of[4] - 1200)
        place.output.settle()
        place.output.feed([])
    assert len(place.quic.sent[4]) <= 20 * 1200 < len(place.quic.sent[0])


def test_an_end_alone_and_a_dropped_stream() -> None:
    place, first, second = Place(), Stream(0), Stream(4)
    place.write(first, 2 * HAND_BYTES)
    place.write(second, 5000)
    place.write(second, 0, True)
    place.output.drop(first)
    assert place.output.queued_bytes == 5000
    assert not place.quic.sent
    while place.output.waiting:
        place.drain()
    assert place.quic.ended_streams == {4}
    assert place.output.queued_bytes == 0
