"""Links over QUIC, whichever library does the packets: lanes, water marks, timers, closing.

A lane is a client-initiated bidirectional stream, stream id = 4 x lane (RFC 9000 §2.1): lanes 0-3 regular, 4-7 bulk, or 0-15 and 16-19
over a path that loses packets. The dialler opens all with its first flight (small frames in one packet), so that either side may write on
any lane at once: lane 0 with `opening` (version, number of regular lanes, number of lanes, 0), every other with one byte, its number.
Nothing comes before the data in the other direction. The listener counts a lane when its first byte is there; a stream
that is none of the announced lanes, or one that ends, ends the link.

Hot path (see also quic_peer.py). `_lane_estimate` makes asking the library for its unsent bytes rare.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final, Protocol, cast

from edgetun_core.errors import EdgetunError, ProtocolError
from edgetun_core.transport.link import HIGH_WATER_BYTES, LOW_WATER_BYTES, DatagramUser, LinkUser, PathUser
from edgetun_core.transport.loss_meter import LossMeter
from edgetun_core.transport.quic_connection import SAFE_DATAGRAM_BYTES, Connection
from edgetun_core.transport.quic_peer import QuicPeer, Socket
from edgetun_core.transport.quic_runs import Runs
from edgetun_core.transport.quic_twice import Twice
from edgetun_core.transport.udp import Address

VERSION: Final = 1
REGULAR_LANES: Final = 4
LOSSY_REGULAR_LANES: Final = 16
"""Over a path that loses packets: what waits behind a lost one is a sixteenth. Where none is lost, few lanes cost less per exchange."""
BULK_LANES: Final = 4
MAX_LANES: Final = LOSSY_REGULAR_LANES + BULK_LANES
"""What a listener takes."""

MAX_WAITING_DATAGRAMS: Final = 1024
"""Datagrams that wait for the congestion window; the oldest is dropped for the newest."""
_PACKET_OVERHEAD_BYTES: Final = 40
MAX_EARLY_BYTES: Final = 256 * 1024
"""What the listener keeps of lanes whose first packet, or lane 0's, is still on its way; more ends the link."""


OPENING_BYTES: Final = 4


def opening(regular_lanes: int) -> bytes:
    """What lane 0 begins with."""
    return bytes((VERSION, regular_lanes, regular_lanes + BULK_LANES, 0))


class Endpoint(Socket, Protocol):
    """What a link asks of its socket side beyond sending."""

    def handshake_done(self, link: QuicLink, alpn: str | None) -> EdgetunError | None:
        """The handshake is through; an error refuses the link."""
        ...

    def cid_issued(self, link: QuicLink, cid: bytes) -> None: ...
    def cid_retired(self, link: QuicLink, cid: bytes) -> None: ...
    def link_ended(self, link: QuicLink, error: EdgetunError | None) -> None:
        """The link will neither send nor receive any more."""


class QuicLink(QuicPeer[Endpoint, Connection]):
    """One QUIC connection as a link; see `Link` for the contract."""

    __slots__ = (
        "_announced",
        "_datagrams",
        "_early",
        "_lane_estimate",
        "_lanes",
        "_meter",
        "_opened_lanes",
        "_paused",
        "_ready",
        "_regular",
        "_runs",
        "_twice",
        "_user",
        "is_dialler",
        "is_open",
    )

    transport = "quic"

    def __init__(
        self,
        engine: str,
        quic: Connection,
        endpoint: Endpoint,
        user: LinkUser | None,
        *,
        is_dialler: bool,
        is_lossy: bool = False,
    ) -> None:
        """`is_lossy`: over a path that loses packets, as both sides know."""
        super().__init__(engine, quic, endpoint)
        self.is_dialler = is_dialler
        self.is_open = False
        """`on_open` was called."""
        self._runs = Runs(quic)
        self._twice = Twice(endpoint.send) if is_lossy else None
        self._user = user
        self._lanes = 0
        self._regular = LOSSY_REGULAR_LANES if is_lossy else REGULAR_LANES
        self._announced = MAX_LANES
        """How many lanes there are; the listener knows when lane 0 is there."""
        # Sets of lanes are bits: there are few lanes, and a link that rests is to be small.
        self._opened_lanes = 0
        self._ready = 0
        self._paused = 0
        self._early: dict[int, bytes] = {}
        self._lane_estimate: dict[int, int] = {}
        self._datagrams: deque[bytes] | None = None
        """Made when there are any."""
        self._meter = LossMeter() if hasattr(user, "on_path") else None

    # --- the link

    @property
    def cid(self) -> bytes:
        """This end's own connection id, the first."""
        return self._quic.host_cid

    @property
    def address(self) -> Address:
        """The peer's, as the socket knows it."""
        return self._quic.peer

    @property
    def lanes(self) -> int:
        return self._lanes

    @property
    def is_resumed(self) -> bool:
        """Whether the handshake went by a ticket of an earlier one."""
        return self._quic.is_resumed

    @property
    def bulk_from(self) -> int:
        return min(self._regular, self._lanes)

    def unsent_bytes(self, lane: int) -> int:
        """How much of a lane waits to be sent for the first time."""
        return 0 if self._ended else self._quic.unsent(lane * 4) + self._runs.bytes_of(lane)

    def write(self, lane: int, data: bytes) -> None:
        if self._closing is not None or self._ended:
            return
        if lane < self._regular:
            self._quic.send_stream_data(lane * 4, data)
        else:
            self._runs.put(lane, data)
        estimate = self._lane_estimate.get(lane, 0) + len(data)
        if estimate > HIGH_WATER_BYTES and not self._paused >> lane & 1:
            estimate = self.unsent_bytes(lane)
            if estimate > HIGH_WATER_BYTES:
                self._paused |= 1 << lane
                self._lane_estimate[lane] = estimate
                self._schedule()
                assert self._user is not None
                self._user.on_lane_paused(lane)
                return
        self._lane_estimate[lane] = estimate
        if not self._scheduled:
            self._schedule()

    @property
    def max_datagram_bytes(self) -> int:
        """See `DatagramLink`."""
        return SAFE_DATAGRAM_BYTES if self._quic.takes_datagrams else 0

    def write_datagrams(self, datagrams: list[bytes]) -> int:
        """See `DatagramLink`."""
        if self._closing is not None or self._ended:
            return 0
        waiting = self._datagrams
        if waiting is None:
            waiting = self._datagrams = deque()
        waiting.extend(datagrams)
        lost = len(waiting) - MAX_WAITING_DATAGRAMS
        for _ in range(lost):
            waiting.popleft()
        self._schedule()
        return max(lost, 0)

    def _feed_datagrams(self, waiting: deque[bytes]) -> None:
        """Hands over what the congestion window takes; the rest waits here, where it can be dropped."""
        quic = self._quic
        room = quic.room_bytes
        while waiting and room > 0:
            data = waiting.popleft()
            room -= len(data) + _PACKET_OVERHEAD_BYTES
            quic.send_datagram_frame(data)

    # --- called by the endpoint

    def start(self, address: Address) -> None:
        """The dialler's first flight."""
        self._quic.connect(address, time.monotonic())
        self.transmit()

    # --- the connection's own (QuicPeer)

    def _deliver(self) -> None:
        self._quic.pump(self)
        if self._early and self._opened_lanes & 1:
            self._open_lanes()

    def _send_all(self) -> None:
        quic = self._quic
        runs = self._runs
        send = self._endpoint.send if self._twice is None else self._send_twice
        if self._datagrams:
            self._feed_datagrams(self._datagrams)
        runs.feed()
        quic.transmit(time.monotonic(), send)
        while runs.waiting and not self._endpoint.is_blocked and runs.feed():
            quic.transmit(time.monotonic(), send)

    def _send_twice(self, datagrams: list[bytes], address: Address) -> None:
        assert self._twice is not None
        self._twice.consider(datagrams, address, self._quic.room_bytes, self.rtt_s)
        self._endpoint.send(datagrams, address)

    def _after_send(self) -> None:
        if self._paused:
            self._resume_lanes()
        if self._meter is not None and self.is_open:
            sent, lost = self._quic.losses
            verdict = self._meter.observe(sent, lost, self.rtt_s or 0.0, time.monotonic())
            if verdict is not None:
                cast("PathUser", self._user).on_path(is_lossy=verdict == "lossy")

    def _has_more(self) -> bool:
        return bool(self._runs.waiting)

    def _resume_lanes(self) -> None:
        for lane in lanes_of(self._paused):
            unsent = self.unsent_bytes(lane)
            if unsent < LOW_WATER_BYTES:
                self._paused &= ~(1 << lane)
                self._lane_estimate[lane] = unsent
                if self._closing is None and not self._ended:
                    assert self._user is not None
                    self._user.on_lane_resumed(lane)

    # --- called by the connection (Sink)

    def handshake_done(self, alpn: str | None) -> None:
        if self.is_established:
            return
        self.is_established = True
        refusal = self._endpoint.handshake_done(self, alpn)
        if refusal is not None:
            self.fail(refusal)
        elif self.is_dialler:
            quic = self._quic
            self._announced = lanes = self._regular + BULK_LANES
            quic.send_stream_data(0, opening(self._regular))
            for lane in range(1, lanes):
                quic.send_stream_data(lane * 4, bytes((lane,)))
            self._lanes = lanes
            self._ready = (1 << lanes) - 1
            self._open()

    def open_for(self, user: LinkUser) -> None:
        """The listener's side knows for whom the link is."""
        self._user = user

    def _open(self) -> None:
        self.is_open = True
        assert self._user is not None
        self._user.on_open(self)

    def stream_data(self, stream_id: int, data: bytes) -> None:
        lane = stream_id >> 2
        if self._ended:
            return
        if self._ready >> lane & 1 and not stream_id & 3:
            assert self._user is not None
            self._user.on_data(lane, data)
        elif stream_id & 3 or lane >= self._announced or self.is_dialler:
            self.fail(ProtocolError(f"stream {stream_id} is no lane"))
        elif data:
            self._early_data(lane, data)

    def _early_data(self, lane: int, data: bytes) -> None:
        """Takes the first bytes off a lane, and keeps what comes after them until lane 0 is there (packets get lost)."""
        data = self._early.get(lane, b"") + data
        self._early[lane] = data
        if sum(map(len, self._early.values())) > MAX_EARLY_BYTES:
            self.fail(ProtocolError("too much data before lane 0 was open"))
            return
        if not self._opened_lanes >> lane & 1:
            size = 1 if lane else OPENING_BYTES
            if len(data) < size:
                return
            if data[0] != (lane or VERSION) or (lane == 0 and not 0 < data[1] <= data[2] <= MAX_LANES):
                self.fail(ProtocolError(f"the peer opens lane {lane} in a way that is not known here"))
                return
            if lane == 0:
                self._regular, self._announced = data[1], data[2]
            self._early[lane] = data[size:]
            self._opened_lanes |= 1 << lane
            while self._opened_lanes >> self._lanes & 1:
                self._lanes += 1

    def _open_lanes(self) -> None:
        """Lane 0 is there: opens the link, and delivers what came early; at the end of a burst, so that all lanes count."""
        if not self.is_open:
            self._open()
        for lane in lanes_of(self._opened_lanes & ~self._ready):
            self._ready |= 1 << lane
            held = self._early.pop(lane, b"")
            if held and not self._ended:
                assert self._user is not None
                self._user.on_data(lane, held)
        if not self._early:
            self._early = {}  # an emptied dict keeps its size

    def datagram(self, data: bytes) -> None:
        """See `DatagramUser`."""
        if not self._ended and self.is_open and hasattr(self._user, "on_datagram"):
            cast("DatagramUser", self._user).on_datagram(data)

    def stream_ended(self, stream_id: int) -> None:
        if not self._ended and self._closing is None:
            self.fail(ProtocolError(f"the peer ended stream {stream_id}, a lane lives as long as its link"))

    def cid_issued(self, cid: bytes) -> None:
        self._endpoint.cid_issued(self, cid)

    def cid_retired(self, cid: bytes) -> None:
        self._endpoint.cid_retired(self, cid)

    def _ended_with(self, error: EdgetunError | None) -> None:
        if self._twice is not None:
            self._twice.stop()
        self._endpoint.link_ended(self, error)
        if self.is_open:
            assert self._user is not None
            # Not from within the user's own call to `abort` or `write`.
            self._loop.call_soon(self._user.on_closed, error)


def lanes_of(bits: int) -> list[int]:
    """The lanes of a set of bits, in order."""
    return [lane for lane in range(bits.bit_length()) if bits >> lane & 1]
