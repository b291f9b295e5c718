"""How a listener opens the lanes of a QUIC link when packets come late, split, or not as they should."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from edgetun_core.errors import EdgetunError, ProtocolError
from edgetun_core.transport.quic_connection import Ended, Sink
from edgetun_core.transport.quic_driver import BULK_LANES, MAX_EARLY_BYTES, MAX_LANES, REGULAR_LANES, QuicLink, opening
from support.links import Recorder


class Packets:
    """A connection whose events the test chooses."""

    host_cid = b"12345678"
    peer = ("192.0.2.1", 4433)
    rtt_s = None
    is_congested = False
    ended: Ended | None = None

    def __init__(self) -> None:
        self.waiting: list[Callable[[Sink], None]] = []
        self.closed_with: list[tuple[int, str]] = []

    def pump(self, sink: Sink) -> None:
        for tell in self.waiting:
            tell(sink)
        self.waiting.clear()

    def connect(self, addr: Any, now: float) -> None: ...
    def take(self, data: bytes, segment: int, address: Any, now: float) -> None: ...
    def transmit(self, now: float, send: Any) -> None: ...
    def send_stream_data(self, stream_id: int, data: bytes) -> None: ...
    def unsent(self, stream_id: int) -> int:
        return 0

    def has_settled(self) -> bool:
        return True

    def end(self, code: int, reason: str) -> None:
        self.closed_with.append((code, reason))

    def get_timer(self) -> float | None:
        return None

    def handle_timer(self, now: float) -> None: ...
    def let_go(self) -> None: ...


class Socketless:
    is_blocked = False

    def __init__(self) -> None:
        self.user = Recorder()

    def send(self, datagrams: list[bytes], address: Any) -> None: ...
    def when_writable(self, callback: Any) -> None: ...
    def cid_issued(self, link: QuicLink, cid: bytes) -> None: ...
    def cid_retired(self, link: QuicLink, cid: bytes) -> None: ...
    def link_ended(self, link: QuicLink, error: EdgetunError | None) -> None:
        self.error = error

    def handshake_done(self, link: QuicLink, alpn: str | None) -> EdgetunError | None:
        link.open_for(self.user)
        return None


class Listening:
    def __init__(self) -> None:
        self.packets, self.endpoint = Packets(), Socketless()
        self.user = self.endpoint.user
        self.link = QuicLink("fake", self.packets, self.endpoint, None, is_dialler=False)
        self.link.handshake_done("edgetun/1")

    def arrive(self, *frames: tuple[int, bytes]) -> None:
        """One burst of stream frames: (lane, data)."""
        for lane, data in frames:
            self.packets.waiting.append(lambda sink, lane=lane, data=data: sink.stream_data(lane * 4, data))
        self.link.pump()


OPENING = opening(REGULAR_LANES)
LANES = REGULAR_LANES + BULK_LANES
FIRST_FLIGHT = [(0, OPENING), *((lane, bytes((lane,))) for lane in range(1, LANES))]


async def test_the_first_flight_opens_all_lanes_before_the_user_hears_of_the_link() -> None:
    listening = Listening()
    seen: list[int] = []
    listening.user.on_open = lambda link: (setattr(listening.user, "link", link), seen.append(link.lanes))  # type: ignore[assignment, func-returns-value]
    listening.arrive(*FIRST_FLIGHT)
    assert seen == [LANES]
    assert listening.link.bulk_from == 4


async def test_the_dialler_says_how_many_lanes_there_are() -> None:
    listening = Listening()
    lanes = MAX_LANES
    listening.arrive((0, opening(lanes - BULK_LANES)), *((lane, bytes((lane,))) for lane in range(1, lanes)))
    assert listening.link.lanes == MAX_LANES
    assert listening.link.bulk_from == MAX_LANES - BULK_LANES


async def test_a_lane_beyond_those_that_were_announced_ends_the_link() -> None:
    listening = Listening()
    listening.arrive(*FIRST_FLIGHT, (LANES, bytes((LANES,))))
    assert isinstance(listening.endpoint.error, ProtocolError)


async def test_lanes_that_come_before_lane_0_are_kept_and_delivered_in_order() -> None:
    listening = Listening()
    listening.arrive((2, b"\x02early"), (2, b" data"))
    assert listening.user.link is None
    listening.arrive((0, OPENING + b"hello"))
    assert listening.user.received == {0: b"hello", 2: b"early data"}
    assert listening.link.lanes == 1
    listening.arrive((1, b"\x01"), (2, b", late data"))
    assert listening.link.lanes == 3
    assert listening.user.received == {0: b"hello", 2: b"early data, late data"}


async def test_the_opening_may_be_split_anywhere() -> None:
    for cut in range(1, len(OPENING)):
        listening = Listening()
        listening.arrive((0, OPENING[:cut]))
        assert listening.user.link is None
        listening.arrive((0, OPENING[cut:] + b"x"))
        assert listening.user.received == {0: b"x"}


async def test_any_order_of_the_first_flight_opens_all_lanes() -> None:
    for order in itertools.islice(itertools.permutations(FIRST_FLIGHT), 0, None, 997):
        listening = Listening()
        for frame in order:
            listening.arrive(frame)
        assert listening.link.lanes == LANES


@pytest.mark.parametrize(
    "frame",
    [
        (0, b"\x02\x04\x08\x00"),
        (0, b"\x01\x00\x08\x00"),
        (0, b"\x01\x09\x08\x00"),
        (0, bytes((1, 4, MAX_LANES + 1, 0))),
        (3, b"\x02"),
    ],
    ids=[
        "another version",
        "no regular lane",
        "more regular lanes than lanes",
        "too many lanes",
        "a lane's wrong number",
    ],
)
async def test_an_opening_that_is_not_understood_ends_the_link(frame: tuple[int, bytes]) -> None:
    listening = Listening()
    listening.arrive(frame)
    assert isinstance(listening.endpoint.error, ProtocolError)
    assert listening.packets.closed_with
    assert listening.user.link is None


async def test_what_comes_before_lane_0_is_bounded() -> None:
    listening = Listening()
    listening.arrive((1, b"\x01" + bytes(MAX_EARLY_BYTES // 2)))
    assert not listening.packets.closed_with
    listening.arrive((2, b"\x02" + bytes(MAX_EARLY_BYTES // 2)))
    assert isinstance(listening.endpoint.error, ProtocolError)


async def test_a_library_that_trips_ends_one_link_with_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    listening = Listening()
    listening.packets.waiting.append(lambda sink: 1 // 0)  # type: ignore[arg-type, return-value]
    listening.link.pump()
    assert isinstance(listening.endpoint.error, ProtocolError)
    assert "tripped over datagrams of ('192.0.2.1', 4433)" in caplog.text
