"""Links over QUIC, whichever library does the packets: lanes, water marks, timers, closing.

A lane is a client-initiated bidirectional stream, stream id = 4 x lane (RFC 9000 §2.1): lanes 0-3 regular, 4-7 bulk. The
dialler opens all eight with its first flight (eight small frames in one packet), so that either side may write on any lane at
once: lane 0 with `OPENING` (version, number of regular lanes, number of lanes, 0), every other with one byte, its number.
Nothing comes before the data in the other direction. The listener counts a lane when its first byte is there; a stream
that is none of the announced lanes, or one that ends, ends the link.

Hot path: receives of one burst are handed to the library at once, their events delivered, and one transmit per link and
loop tick follows in `call_soon` after the writes they cause. `_lane_estimate` makes asking the library for its unsent bytes rare.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from edgetun_core.errors import EdgetunError, ProtocolError, SessionLost, error_from_code
from edgetun_core.transport.link import HIGH_WATER_BYTES, LOW_WATER_BYTES, LinkUser
from edgetun_core.transport.quic_connection import IDLE_TIMEOUT_S, Connection, Ended
from edgetun_core.transport.quic_runs import Runs
from edgetun_core.transport.udp import Address, plain_address

log = logging.getLogger("edgetun.transport")

# Both libraries log every close of a peer as a warning; what matters of it reaches `on_closed`.
logging.getLogger("quic").setLevel(logging.ERROR)

VERSION: Final = 1
REGULAR_LANES: Final = 4
LANES: Final = 8
OPENING: Final = bytes((VERSION, REGULAR_LANES, LANES, 0))

CLOSE_TIMEOUT_S: Final = 1.0
MAX_EARLY_BYTES: Final = 256 * 1024
"""What the listener keeps of lanes whose first packet, or lane 0's, is still on its way; more ends the link."""


class Endpoint(Protocol):
    """The socket side of a link: the dialler's own socket, or the listener's shared one."""

    @property
    def is_blocked(self) -> bool: ...
    def send(self, datagrams: list[bytes], address: Address) -> None: ...
    def when_writable(self, callback: Callable[[], None]) -> None: ...
    def handshake_done(self, link: QuicLink, alpn: str | None) -> EdgetunError | None:
        """The handshake is through; an error refuses the link."""
        ...

    def cid_issued(self, link: QuicLink, cid: bytes) -> None: ...
    def cid_retired(self, link: QuicLink, cid: bytes) -> None: ...
    def link_ended(self, link: QuicLink, error: EdgetunError | None) -> None:
        """The link will neither send nor receive any more."""


class QuicLink:
    """One QUIC connection as a link; see `Link` for the contract."""

    __slots__ = (
        "_closing",
        "_deadline",
        "_early",
        "_ended",
        "_endpoint",
        "_lane_estimate",
        "_lanes",
        "_loop",
        "_opened_lanes",
        "_paused",
        "_quic",
        "_ready",
        "_regular",
        "_runs",
        "_scheduled",
        "_timer",
        "_timer_at",
        "_user",
        "ended_by",
        "engine",
        "farewell",
        "is_dialler",
        "is_established",
        "is_open",
    )

    transport = "quic"

    def __init__(
        self, engine: str, quic: Connection, endpoint: Endpoint, user: LinkUser | None, *, is_dialler: bool
    ) -> None:
        self.engine = engine
        self.is_dialler = is_dialler
        self.is_established = False
        """The handshake is through."""
        self.is_open = False
        """`on_open` was called."""
        self.ended_by: Ended | None = None
        self.farewell: list[bytes] = []
        """The last datagrams, to be repeated for a peer that did not hear them."""
        self._quic = quic
        self._runs = Runs(quic)
        self._endpoint = endpoint
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._lanes = 0
        self._regular = REGULAR_LANES
        self._opened_lanes: set[int] = set()
        self._ready: set[int] = set()
        self._early: dict[int, bytes] = {}
        self._lane_estimate: dict[int, int] = {}
        self._paused: set[int] = set()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closing: tuple[int, str] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._ended = False

    # --- the link

    @property
    def lanes(self) -> int:
        return self._lanes

    @property
    def bulk_from(self) -> int:
        return min(self._regular, self._lanes)

    @property
    def peer_address(self) -> tuple[str, int]:
        return plain_address(self._quic.peer)

    @property
    def rtt_s(self) -> float | None:
        return self._quic.rtt_s

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
        if estimate > HIGH_WATER_BYTES and lane not in self._paused:
            estimate = self.unsent_bytes(lane)
            if estimate > HIGH_WATER_BYTES:
                self._paused.add(lane)
                self._lane_estimate[lane] = estimate
                self._schedule()
                assert self._user is not None
                self._user.on_lane_paused(lane)
                return
        self._lane_estimate[lane] = estimate
        if not self._scheduled:
            self._schedule()

    def close(self, code: int, reason: str) -> None:
        if self._closing is not None or self._ended:
            return
        self._closing = (code, reason)
        self._deadline = self._loop.call_later(CLOSE_TIMEOUT_S, self._finish_close)
        self._schedule()

    def abort(self) -> None:
        self.fail(SessionLost("the link was dropped on this side"))

    def fail(self, error: EdgetunError | None) -> None:
        """Ends the link at once, telling the peer as far as one packet can."""
        if self._ended:
            return
        if error is None:
            code, reason = self._closing or (0, "")
        else:
            code, reason = error.presentation.close_code, error.message
        try:
            self._quic.end(code, reason[:200])
            self._quic.transmit(time.monotonic(), self._send_farewell)
        except Exception:
            log.exception("quic: %s could not say goodbye to %s", self.engine, self.peer_address)
        self._finish(error)

    def _send_farewell(self, datagrams: list[bytes], address: Address) -> None:
        self.farewell.extend(datagrams)
        self._endpoint.send(datagrams, address)

    # --- called by the endpoint

    def start(self, address: Address) -> None:
        """The dialler's first flight."""
        self._quic.connect(address, time.monotonic())
        self.transmit()

    def take(self, data: bytes, segment: int, address: Address, now: float) -> None:
        """Datagrams came in; `pump` follows at the end of the burst."""
        if self._ended:
            return
        try:
            self._quic.take(data, segment, address, now)
        except Exception as error:  # noqa: BLE001 - the edge to a peer: whatever trips the library ends one link, not the process
            self._tripped(error)

    def pump(self) -> None:
        """Delivers what the library made of the datagrams."""
        if self._ended:
            return
        try:
            self._quic.pump(self)
        except Exception as error:  # noqa: BLE001 - as above
            self._tripped(error)
            return
        if self._early and 0 in self._opened_lanes:
            self._open_lanes()
        if self._is_over():
            return
        ended = self._quic.ended
        if ended is not None:
            self._peer_ended(ended)
        else:
            self._schedule()

    def _is_over(self) -> bool:
        return self._ended  # asked after calls that may have ended the link

    def _tripped(self, error: Exception) -> None:
        log.error("quic: %s tripped over datagrams of %s", self.engine, self.peer_address, exc_info=error)
        self.fail(ProtocolError("the QUIC library could not go on with what came in"))

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.transmit)

    def transmit(self) -> None:
        """Sends what the library has, resumes lanes, closes when it is time, and sets the timer."""
        self._scheduled = False
        if self._ended:
            return
        if self._endpoint.is_blocked:
            self._endpoint.when_writable(self.transmit)
            return
        quic = self._quic
        runs = self._runs
        try:
            runs.feed()
            quic.transmit(time.monotonic(), self._endpoint.send)
            while runs.waiting and not self._endpoint.is_blocked and runs.feed():
                quic.transmit(time.monotonic(), self._endpoint.send)
        except Exception as error:  # noqa: BLE001 - as above
            self._tripped(error)
            return
        if self._is_over():  # the socket reported that the peer is gone
            return
        if self._paused:
            self._resume_lanes()
        if self._closing is not None and not runs.waiting and quic.has_settled():
            self._finish_close()
            return
        at = quic.get_timer()
        if at is not None and (self._timer is None or at < self._timer_at - 0.001):
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(at)

    def _resume_lanes(self) -> None:
        for lane in sorted(self._paused):
            unsent = self.unsent_bytes(lane)
            if unsent < LOW_WATER_BYTES:
                self._paused.discard(lane)
                self._lane_estimate[lane] = unsent
                if self._closing is None and not self._ended:
                    assert self._user is not None
                    self._user.on_lane_resumed(lane)

    def _set_timer(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        # The timer stays where it is when the library's moves back (every packet moves it); here that is made good.
        self._timer = None
        at = self._quic.get_timer()
        if at is None:
            return
        now = time.monotonic()
        if at > now + 0.0005:
            self._set_timer(at)
            return
        try:
            self._quic.handle_timer(max(now, at))
        except Exception as error:  # noqa: BLE001 - as above
            self._tripped(error)
            return
        self.pump()

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
            quic.send_stream_data(0, OPENING)
            for lane in range(1, LANES):
                quic.send_stream_data(lane * 4, bytes((lane,)))
            self._lanes = LANES
            self._ready.update(range(LANES))
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
        if lane in self._ready and not stream_id & 3:
            assert self._user is not None
            self._user.on_data(lane, data)
        elif stream_id & 3 or lane >= LANES or self.is_dialler:
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
        if lane not in self._opened_lanes:
            size = 1 if lane else len(OPENING)
            if len(data) < size:
                return
            if data[0] != (lane or VERSION) or (lane == 0 and not 0 < data[1] <= data[2] <= LANES):
                self.fail(ProtocolError(f"the peer opens lane {lane} in a way that is not known here"))
                return
            if lane == 0:
                self._regular = data[1]
            self._early[lane] = data[size:]
            self._opened_lanes.add(lane)
            while self._lanes in self._opened_lanes:
                self._lanes += 1

    def _open_lanes(self) -> None:
        """Lane 0 is there: opens the link, and delivers what came early; at the end of a burst, so that all lanes count."""
        if not self.is_open:
            self._open()
        for lane in sorted(self._opened_lanes - self._ready):
            self._ready.add(lane)
            held = self._early.pop(lane, b"")
            if held and not self._ended:
                assert self._user is not None
                self._user.on_data(lane, held)

    def stream_ended(self, stream_id: int) -> None:
        if not self._ended and self._closing is None:
            self.fail(ProtocolError(f"the peer ended stream {stream_id}, a lane lives as long as its link"))

    def cid_issued(self, cid: bytes) -> None:
        self._endpoint.cid_issued(self, cid)

    def cid_retired(self, cid: bytes) -> None:
        self._endpoint.cid_retired(self, cid)

    # --- the end

    def _finish_close(self) -> None:
        self.fail(None)

    def _peer_ended(self, ended: Ended) -> None:
        error: EdgetunError | None
        if self._closing is not None or (ended.is_application and ended.code == 0):
            error = None
        elif ended.is_application:
            error = error_from_code(ended.code, ended.reason)
        elif "idle" in ended.reason.lower():
            error = SessionLost(f"nothing was heard of {self.peer_address[0]} for {IDLE_TIMEOUT_S:g} s")
        else:
            error = SessionLost(f"QUIC error {ended.code:#x} ({ended.reason or 'no reason given'})")
        self.ended_by = ended
        # A library that found the error itself still has to tell the peer.
        self._quic.transmit(time.monotonic(), self._send_farewell)
        self._finish(error)

    def _finish(self, error: EdgetunError | None) -> None:
        if self._ended:
            return
        self._ended = True
        for handle in (self._timer, self._deadline):
            if handle is not None:
                handle.cancel()
        self._endpoint.link_ended(self, error)
        if self.is_open:
            assert self._user is not None
            # Not from within the user's own call to `abort` or `write`.
            self._loop.call_soon(self._user.on_closed, error)
