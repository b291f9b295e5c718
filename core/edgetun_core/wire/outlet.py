"""What a mux writes, lane by lane, and the session's two accounts of credit.

Hot path: `mark` and `data_to_send`, once per lane and loop tick.
"""

from __future__ import annotations

from typing import Final, Protocol

from edgetun_core.errors import EdgetunError
from edgetun_core.wire import frames
from edgetun_core.wire.early import Early
from edgetun_core.wire.frames import HEADER, MAX_LANES, SessionBroken, encode_frame, encode_reset
from edgetun_core.wire.hello import MAX_EXCHANGE_WINDOW_BYTES, Windows
from edgetun_core.wire.lanes import NOBODY, Lane
from edgetun_core.wire.sending import Sending

MAX_PARKED_BYTES: Final = 64 * 1024 * 1024
"""Bytes given to paused sinks that do not count against the session's window: a few slow readers must not stall all the
others. From here on they do."""

MAX_EARLY_TRAILERS_BYTES: Final = 1024 * 1024
MAX_UNREAD_REPLIES: Final = 10_000
"""Frames the peer makes us write while it does not read; beyond this it is given up."""

OPENS_PER_LANE: Final = 32
"""Exchanges opened in a row on one lane. Within a loop tick they stay together, since one write costs less than two."""

_pack = HEADER.pack


class Control(Protocol):
    """What the mux hands up to the session."""

    def on_control(self, lane: int, kind: int, payload: bytes, now: float) -> None: ...
    def on_first_frame_before_hello(self, kind: int) -> None: ...
    def on_ids_exhausted(self) -> None: ...
    def on_bug(self, error: Exception) -> None: ...
    def wake(self) -> None: ...


class Outlet:
    """The lanes of a session from the writing side, and the credit that all its exchanges share."""

    __slots__ = (
        "_bulk_lanes",
        "_burst",
        "_control",
        "_dirty",
        "_early_trailers",
        "_full",
        "_open_lane",
        "_regular",
        "_session_window",
        "blocked",
        "early_bytes",
        "exchange_low",
        "exchange_window",
        "has_bulk",
        "held",
        "lanes",
        "max_exchange_window",
        "max_parked",
        "recv_left",
        "recv_low",
        "send_left",
        "send_window",
    )

    def __init__(self, control: Control, windows: Windows) -> None:
        self._control = control
        self.lanes = [Lane(0)]
        self._regular = self.lanes[:1]
        self._bulk_lanes: list[Lane] = []
        self.has_bulk = False
        self._open_lane = self.lanes[0]
        self._burst = OPENS_PER_LANE
        self._dirty: list[Lane] = []
        self._full: list[Lane] = []
        # Credit we gave.
        self.exchange_window = windows.exchange_window
        self.exchange_low = windows.exchange_window // 2
        self.max_exchange_window = max(
            windows.exchange_window, min(MAX_EXCHANGE_WINDOW_BYTES, windows.session_window // 2)
        )
        self._session_window = windows.session_window
        self.recv_left = windows.session_window
        self.recv_low = windows.session_window // 2
        self.held = 0
        """Bytes given to paused sinks."""
        self.max_parked = MAX_PARKED_BYTES
        self.early_bytes = 0
        """Bytes that wait for a HEAD or a MOVE (early.py)."""
        self._early_trailers = 0
        # Credit we have.
        self.send_window = 0
        self.send_left = 0
        self.blocked: list[Sending] = []
        """Exchanges that wait for the session's credit."""

    # --- lanes

    def set_lanes(self, lanes: int, bulk_from: int) -> None:
        """What the link has now."""
        lanes = max(1, min(lanes, MAX_LANES))
        while len(self.lanes) < lanes:
            self.lanes.append(Lane(len(self.lanes)))
        bulk_from = max(1, min(bulk_from, lanes))
        self._regular = self.lanes[:bulk_from]
        self._bulk_lanes = self.lanes[bulk_from:lanes]
        self.has_bulk = bool(self._bulk_lanes)
        if self._open_lane not in self._regular:
            self._choose_open_lane()

    def regular_lanes(self) -> list[Lane]:
        return self._regular

    def all_lanes(self) -> list[Lane]:
        """Those that the link has, bulk lanes too."""
        return self._regular + self._bulk_lanes

    def choose_bulk_lane(self) -> Lane | None:
        """The bulk lane with the fewest bodies on it."""
        return min(self._bulk_lanes, key=_load, default=None)

    def pause_lane(self, number: int) -> None:
        """The link has too much of this lane to send. Producers are paused as they come by (flow.py)."""
        lane = self.lane(number)
        lane.is_paused = True
        lane.is_full = False
        if self._open_lane.is_paused:
            self._choose_open_lane()

    def fill_lane(self, lane: Lane) -> None:
        """Bodies have put enough on a lane for this tick. `flushed` goes on, unless the link has paused it by then."""
        if not lane.is_full:
            lane.is_full = lane.is_paused = True
            self._full.append(lane)

    def flushed(self) -> None:
        """See `Session.flushed`."""
        full, self._full = self._full, []
        for lane in full:
            if lane.is_full:
                self.resume_lane(lane.number)

    def resume_lane(self, number: int) -> None:
        """The link takes more again."""
        lane = self.lane(number)
        lane.is_paused = lane.is_full = False
        lane.replies = 0
        waiting, lane.waiting = lane.waiting, NOBODY
        for exchange in waiting:
            if exchange.flow is not None:
                exchange.flow.in_waiting = False
            exchange.pump()
        self._lane_resumed(lane)

    def _lane_resumed(self, lane: Lane) -> None:
        """For what is not an exchange's body."""

    def _choose_open_lane(self) -> None:
        self._burst = OPENS_PER_LANE
        self._open_lane = min(self._regular, key=_load)

    def lane(self, number: int) -> Lane:
        if number >= MAX_LANES:
            raise SessionBroken(f"lane {number}; there are {MAX_LANES} at most")
        while len(self.lanes) <= number:
            self.lanes.append(Lane(len(self.lanes)))
        return self.lanes[number]

    # --- writing

    def wake(self) -> None:
        """There is something to send that is not on a lane."""
        self._control.wake()

    def mark(self, lane: Lane) -> None:
        """The lane's `out` is about to become non-empty."""
        if not self._dirty:
            self._control.wake()
        self._dirty.append(lane)

    def data_to_send(self) -> list[tuple[int, bytes]]:
        """What to write on which lane, in order."""
        writes: list[tuple[int, bytes]] = []
        dirty = self._dirty
        if dirty:
            self._dirty = []
            for lane in dirty:
                lane.take_writes(writes)
            if self._burst != OPENS_PER_LANE:
                self._choose_open_lane()
        return writes

    def send_control(self, lane_number: int, kind: int, payload: bytes) -> None:
        """Queues a control frame."""
        lane = self.lanes[lane_number]
        if not lane.out:
            self.mark(lane)
        lane.out.append(encode_frame(kind, 0, payload))

    def send_pong(self, lane_number: int, payload: bytes) -> None:
        """Answers a PING where it came; not while the lane is paused, so that pings cannot pile up answers."""
        if not self.lanes[lane_number].is_paused:
            self.send_control(lane_number, frames.PONG, payload)

    def write_credit(self, lane: Lane, number: int, amount: int) -> None:
        """Queues CREDIT."""
        if not lane.out:
            self.mark(lane)
        lane.out.append(_pack(frames.WORD_CREDIT | 4, number) + amount.to_bytes(4, "big"))

    def write_reset(self, lane: Lane, frame: bytes) -> None:
        """Queues RESET."""
        if not lane.out:
            self.mark(lane)
        lane.out.append(frame)

    def turn_down(self, lane: Lane, number: int, error: EdgetunError) -> None:
        """Resets an exchange that never began; a peer that makes us do so without end and does not read is given up."""
        if lane.is_paused:
            lane.replies += 1
            if lane.replies > MAX_UNREAD_REPLIES:
                raise SessionBroken(f"the peer does not read lane {lane.number}")
        self.write_reset(lane, encode_reset(number, error))

    # --- credit of the session

    def grant_session(self) -> None:
        """Gives back what has been taken since, when it is a quarter of the window or more."""
        window = self._session_window
        amount = window - self.recv_left - self.early_bytes
        if self.held > self.max_parked:
            amount -= self.held - self.max_parked
        if amount >= window // 4 and amount > 0:
            self.recv_left += amount
            self.write_credit(self.lanes[0], 0, amount)

    def receive_session_credit(self, amount: int) -> None:
        self.send_left += amount
        if self.send_left > frames.MAX_CREDIT:
            raise SessionBroken(f"CREDIT of the session adds up to more than {frames.MAX_CREDIT}")
        # In turn, each as far as it gets: those that still miss something queue again.
        if not self.blocked or self.send_left <= 0:
            return
        blocked, self.blocked = self.blocked, []
        for position, exchange in enumerate(blocked):
            if self.send_left <= 0:
                self.blocked[:0] = blocked[position:]
                return
            if exchange.flow is not None:
                exchange.flow.in_blocked = False
            exchange.pump()

    def release_early(self, early: Early) -> None:
        """What came early is delivered or dropped."""
        self.early_bytes -= early.taken
        early.taken = 0
        if early.trailers is not None:
            self._early_trailers -= len(early.trailers)
        if self.recv_left < self.recv_low:
            self.grant_session()

    def count_early_trailers(self, block: bytes) -> None:
        """Trailers are not covered by credit, so those that wait have a bound of their own."""
        self._early_trailers += len(block)
        if self._early_trailers > MAX_EARLY_TRAILERS_BYTES:
            raise SessionBroken("too many trailers came before the MOVE that sends them")


def _load(lane: Lane) -> tuple[bool, int]:
    return lane.is_paused, lane.load
