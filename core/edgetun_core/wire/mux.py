"""The mux: frames of many exchanges over the lanes of one session; sans-I/O.

Hot path: `open`, `receive` and what they call in `flow.py` and `exchanges.py`; about 4 us per end for a 1 KB GET passed
through. Exchange frames make no event objects: handlers and sinks are called from the loop that reads them.
Everything here raises `SessionBroken` for what the peer must not do, and only that.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from edgetun_core.errors import Draining, EdgetunError, LimitExceeded, NoSession, ProtocolError
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.wire import frames
from edgetun_core.wire.early import Early
from edgetun_core.wire.exchanges import Incoming, Outgoing
from edgetun_core.wire.flow import Exchange
from edgetun_core.wire.frames import (
    BULK_PAYLOAD_BYTES,
    DATA,
    DATA_END,
    END,
    HEAD,
    HEAD_END,
    HEADER,
    HEADER_BYTES,
    MAX_DATA_BYTES,
    MAX_ID,
    MAX_LANES,
    MAX_PAYLOAD_BYTES,
    SessionBroken,
    encode_frame,
    encode_reset,
    name_of,
)
from edgetun_core.wire.heads import decode_request, encode_request
from edgetun_core.wire.hello import MAX_EXCHANGE_WINDOW_BYTES, Windows
from edgetun_core.wire.lanes import Lane

MAX_PARKED_BYTES: Final = 64 * 1024 * 1024
"""Bytes given to paused sinks that do not count against the session's window: a few slow readers must not stall all the
others. From here on they do."""

MAX_IDS_AHEAD: Final = 65_536
"""How far the ids of exchanges that arrive on fast lanes may run ahead of those on a slow one."""

MAX_UNOPENED: Final = 1024
"""Exchanges of which something came on a bulk lane before their HEAD."""

MAX_EARLY_TRAILERS_BYTES: Final = 1024 * 1024
MAX_UNREAD_REPLIES: Final = 10_000
"""Frames the peer makes us write while it does not read; beyond this it is given up."""

OPENS_PER_LANE: Final = 32
"""Exchanges opened in a row on one lane. Within a loop tick they stay together, since one write costs less than two."""

LOW_ID_MARGIN: Final = 1 << 16
"""With fewer ids left the session drains, so that another takes over before there are none."""

_pack = HEADER.pack
_unpack = HEADER.unpack_from


class Control(Protocol):
    """What the mux hands up to the session."""

    def on_control(self, lane: int, kind: int, payload: bytes, now: float) -> None: ...
    def on_first_frame_before_hello(self, kind: int) -> None: ...
    def on_ids_exhausted(self) -> None: ...
    def on_bug(self, error: Exception) -> None: ...
    def wake(self) -> None: ...


class Mux:
    """All exchanges of one session, of both ends' opening. A `Handler`: `open` starts an exchange with the peer."""

    __slots__ = (
        "_accept_to",
        "_ahead",
        "_bulk_lanes",
        "_burst",
        "_control",
        "_dirty",
        "_early_trailers",
        "_expected",
        "_handler",
        "_is_open",
        "_last_id",
        "_next_id",
        "_open_lane",
        "_open_limit",
        "_peer",
        "_peer_next",
        "_refusal",
        "_regular",
        "_serve_limit",
        "_session_window",
        "_unopened",
        "blocked",
        "early_bytes",
        "exchange_low",
        "exchange_window",
        "exchanges",
        "has_bulk",
        "held",
        "is_agent",
        "lanes",
        "max_exchange_window",
        "max_parked",
        "now",
        "opened_now",
        "recv_left",
        "recv_low",
        "rtt_s",
        "send_left",
        "send_window",
        "served_now",
    )

    def __init__(self, control: Control, handler: Handler, peer: Peer, windows: Windows, *, is_agent: bool) -> None:
        """`windows` is what this end takes."""
        self.is_agent = is_agent
        self._control = control
        self._handler = handler
        self._peer = peer
        self.now = 0.0
        self.rtt_s: float | None = None
        self.exchanges: dict[int, Exchange] = {}
        # Opening: nothing before `start`, nothing after `stop_opening`.
        self._is_open = False
        self._refusal: EdgetunError = NoSession("the session is not open")
        self._next_id = 1 if is_agent else 2
        self._last_id = 0
        self._open_limit = 0
        self.opened_now = 0
        # Serving.
        self._peer_next = 2 if is_agent else 1
        self._ahead: set[int] = set()
        self._accept_to = MAX_ID
        self._expected = 0
        self._serve_limit = 0
        self.served_now = 0
        self._unopened: dict[int, Early] = {}
        # Credit we gave.
        self.exchange_window = windows.exchange_window
        self.exchange_low = windows.exchange_window // 2
        self.max_exchange_window = max(
            windows.exchange_window, min(MAX_EXCHANGE_WINDOW_BYTES, windows.session_window // 4)
        )
        self._session_window = windows.session_window
        self.recv_left = windows.session_window
        self.recv_low = windows.session_window // 2
        self.held = 0
        self.max_parked = MAX_PARKED_BYTES
        self.early_bytes = 0
        self._early_trailers = 0
        # Credit we have.
        self.send_window = 0
        self.send_left = 0
        self.blocked: deque[Exchange] = deque()
        # Lanes.
        self.lanes = [Lane(0)]
        self._regular = self.lanes[:1]
        self._bulk_lanes: list[Lane] = []
        self.has_bulk = False
        self._open_lane = self.lanes[0]
        self._burst = OPENS_PER_LANE
        self._dirty: list[Lane] = []
        self._serve_limit = windows.max_exchanges

    # --- for the session

    def start(self, theirs: Windows) -> None:
        """The session is open; `theirs` is what the peer takes."""
        self._is_open = True
        self.send_window = theirs.exchange_window
        self.send_left = theirs.session_window
        self._open_limit = theirs.max_exchanges
        self._last_id = MAX_ID - LOW_ID_MARGIN

    def stop_opening(self, why: EdgetunError) -> None:
        """`open` refuses from now on, with this error."""
        self._last_id = 0
        self._refusal = why

    def expect_no_more_than(self, last_opened: int) -> None:
        """The peer drains: exchanges up to `last_opened` may still come in, none after it."""
        self._accept_to = self._expected = last_opened

    @property
    def last_opened(self) -> int:
        """The highest id opened from here, or 0."""
        return max(self._next_id - 2, 0)

    @property
    def is_idle(self) -> bool:
        """No exchange is under way, and none that the peer said it opened is still to come."""
        return not self.exchanges and self._peer_next > self._expected

    @property
    def in_flight(self) -> int:
        return len(self.exchanges)

    @property
    def opened_total(self) -> int:
        return self._next_id // 2 if self.is_agent else self._next_id // 2 - 1

    @property
    def served_total(self) -> int:
        in_order = self._peer_next // 2 - 1 if self.is_agent else self._peer_next // 2
        return in_order + len(self._ahead)

    def reset_all(self, why: EdgetunError) -> None:
        """The session is over: every open exchange ends, on this side only."""
        self._is_open = False
        self._serve_limit = -1
        self.blocked.clear()
        self._unopened.clear()
        for exchange in list(self.exchanges.values()):
            try:
                if isinstance(exchange, Incoming):
                    exchange.lose()
                else:
                    exchange.deliver_reset(why)
            except Exception as bug:  # noqa: BLE001 - a handler's bug must not keep the others from being told
                self._control.on_bug(bug)

    # --- opening

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Starts an exchange with the peer; refuses by resetting `client` when that cannot be."""
        number = self._next_id
        if number > self._last_id or self.opened_now >= self._open_limit:
            client.on_reset(self._why_not())
            return CLOSED
        block = head.wire
        if block is None:
            try:
                block = encode_request(head)
            except EdgetunError as error:
                client.on_reset(error)
                return CLOSED
        self._next_id = number + 2
        self.opened_now += 1
        lane = self._open_lane
        lane.load += 1
        exchange = Outgoing(self, number, lane, client, end, head.protocol is not None)
        self.exchanges[number] = exchange
        out = lane.out
        if not out:
            self.mark(lane)
        if end:
            out.append(_pack(frames.WORD_HEAD_END | len(block), number))
        else:
            out.append(_pack(frames.WORD_HEAD | len(block), number))
            exchange.head = head
        out.append(block)
        self._burst -= 1
        if not self._burst:
            self._choose_open_lane()
        return exchange

    def _why_not(self) -> EdgetunError:
        if not self._last_id:
            return self._refusal
        if self._next_id > self._last_id:
            self._control.on_ids_exhausted()
            return Draining("the session has used all its exchange ids")
        return LimitExceeded(f"the session carries {self._open_limit} exchanges, as many as its other end takes")

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

    def choose_bulk_lane(self) -> Lane | None:
        """The bulk lane with the fewest bodies on it."""
        return min(self._bulk_lanes, key=_load, default=None)

    def pause_lane(self, number: int) -> None:
        """The link has too much of this lane to send. Producers are paused as they come by (flow.py)."""
        self._lane(number).is_paused = True
        if self._open_lane.is_paused:
            self._choose_open_lane()

    def resume_lane(self, number: int) -> None:
        """The link takes more again."""
        lane = self._lane(number)
        lane.is_paused = False
        lane.replies = 0
        waiting, lane.waiting = lane.waiting, []
        for exchange in waiting:
            if exchange.flow is not None:
                exchange.flow.in_waiting = False
            exchange.pump()

    def _choose_open_lane(self) -> None:
        self._burst = OPENS_PER_LANE
        self._open_lane = min(self._regular, key=_load)

    def _lane(self, number: int) -> Lane:
        if number >= MAX_LANES:
            raise SessionBroken(f"lane {number}; there are {MAX_LANES} at most")
        while len(self.lanes) <= number:
            self.lanes.append(Lane(len(self.lanes)))
        return self.lanes[number]

    # --- writing

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

    def _turn_down(self, lane: Lane, number: int, error: EdgetunError) -> None:
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

    def _session_credit(self, amount: int) -> None:
        self.send_left += amount
        if self.send_left > frames.MAX_CREDIT:
            raise SessionBroken(f"CREDIT of the session adds up to more than {frames.MAX_CREDIT}")
        # In turn, each as far as it gets: those that still miss something queue again.
        blocked = self.blocked
        for _ in range(len(blocked)):
            if self.send_left <= 0:
                return
            exchange = blocked.popleft()
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

    # --- reading

    def receive(self, lane_number: int, data: bytes, now: float) -> None:
        """Takes what arrived on a lane; raises `SessionBroken`."""
        self.now = now
        try:
            lane = self.lanes[lane_number]
        except IndexError:
            lane = self._lane(lane_number)
        lane.received_at = now
        position = 0
        if lane.left:
            position = self._receive_stream(lane, data, 0)
        if lane.rest:
            position = self._receive_rest(lane, data, position)
        if position < len(data):
            self._receive_frames(lane, data, position)

    def _receive_frames(self, lane: Lane, data: bytes, position: int) -> None:
        """Reads frames from `position` on; keeps or passes on what is left of the last."""
        size = len(data)
        exchanges = self.exchanges
        while True:
            number = 0
            try:
                while size - position >= HEADER_BYTES:
                    word, number = _unpack(data, position)
                    length = word & 0xFFFFFF
                    kind = word >> 24
                    start = position + HEADER_BYTES
                    if length > MAX_DATA_BYTES:
                        raise SessionBroken(f"{name_of(kind)} of {length} bytes")
                    stop = start + length
                    if stop > size:
                        self._receive_beginning(lane, data, start, kind, number, length)
                        return
                    position = stop
                    exchange = exchanges.get(number)
                    if kind in (DATA_END, DATA):
                        if exchange is not None:
                            exchange.receive_data(lane, data[start:stop], kind == DATA_END)
                        else:
                            self._stray_data(lane, number, length, data[start:stop], kind == DATA_END)
                    elif kind in (HEAD_END, HEAD):
                        if exchange is not None:
                            exchange.receive_head(lane, data[start:stop], kind == HEAD_END)
                        else:
                            self._receive_request(lane, number, data[start:stop], kind == HEAD_END)
                    else:
                        self._receive_other(lane, kind, number, exchange, data[start:stop])
                break
            except SessionBroken:
                raise
            except Exception as bug:  # noqa: BLE001 - the edge between the protocol and whoever handles its exchanges
                self._on_bug(number, bug)
        if position < size:
            lane.rest += data[position:]

    def _receive_beginning(self, lane: Lane, data: bytes, start: int, kind: int, number: int, length: int) -> None:
        """A frame of which a part is here. Large DATA goes on in pieces; the rest of other frames is waited for."""
        if kind & ~END == DATA and length >= BULK_PAYLOAD_BYTES:
            lane.stream_ends = kind == DATA_END
            lane.left = length
            lane.stream = self._begin_stream(lane, number, length)
            if start < len(data):
                self._receive_stream(lane, data, start)
            return
        if length > MAX_PAYLOAD_BYTES.get(kind, -1):
            self._check_kind(kind, length)
        lane.rest += data[start - HEADER_BYTES :]

    def _receive_rest(self, lane: Lane, data: bytes, position: int) -> int:
        """Completes the frame whose beginning waits in `rest`; returns where in `data` the next one begins."""
        rest = lane.rest
        size = len(data)
        if len(rest) < HEADER_BYTES:
            missing = HEADER_BYTES - len(rest)
            rest += data[position : position + missing]
            position += missing
            if len(rest) < HEADER_BYTES:
                return size
            header = bytes(rest)
            rest.clear()
            self._receive_frames(lane, header, 0)  # checks the header; keeps it, begins a stream, or is an empty frame
            if lane.left:
                return self._receive_stream(lane, data, position) if position < size else size
            if not rest:
                return position
        missing = HEADER_BYTES + (int.from_bytes(rest[1:4], "big")) - len(rest)
        rest += data[position : position + missing]
        if size - position < missing:
            return size
        frame = bytes(rest)
        rest.clear()
        self._receive_frames(lane, frame, 0)
        return position + missing

    def _receive_stream(self, lane: Lane, data: bytes, position: int) -> int:
        """Passes on a piece of a large DATA frame; returns where in `data` the next frame begins."""
        left = lane.left
        here = len(data) - position
        if here <= left:
            piece = data[position:] if position else data
            size = here
        else:
            piece = data[position : position + left]
            size = left
        lane.left = left - size
        ends = lane.stream_ends and size == left
        target = lane.stream
        if size == left:
            lane.stream = None
        position += size
        if isinstance(target, Early):
            if target.exchange is None:
                target.data += piece
                target.ends = ends
                return position
            target = target.exchange
        if target is not None:
            try:
                target.receive_piece(lane, piece, ends)
            except SessionBroken:
                raise
            except Exception as bug:  # noqa: BLE001 - the edge between the protocol and whoever handles its exchanges
                self._on_bug(target.id, bug)
        return position

    def _begin_stream(self, lane: Lane, number: int, length: int) -> Exchange | Early | None:
        """Charges a DATA frame whose payload is still to come; says where the payload goes."""
        exchange = self.exchanges.get(number)
        if exchange is not None:
            exchange.charge(lane, length)
            return exchange
        return self._stray(lane, number, length)

    def _receive_request(self, lane: Lane, number: int, block: bytes, end: bool) -> None:
        """HEAD of an exchange that is not here: the peer opens it, or it is a late answer."""
        if not self._is_open:
            self._control.on_first_frame_before_hello(HEAD)
            return
        if number & 1 == self.is_agent or not number:
            self._check_late(number, "HEAD")
            return
        if number == self._peer_next:
            self._peer_next = number + 2
            if self._ahead:
                self._catch_up()
        else:
            self._run_ahead(number)
        early = self._unopened.pop(number, None) if self._unopened else None
        if self.served_now >= self._serve_limit or number > self._accept_to:
            self._refuse(lane, number, early)
            return
        try:
            head = decode_request(block)
        except ProtocolError as error:
            self._drop_early(early)
            self._turn_down(lane, number, error)
            return
        if early is not None and (early.is_reset or early.lane is lane or end):
            self._drop_early(early)
            if not early.is_reset:
                raise SessionBroken(f"exchange {number}: DATA before HEAD")
            return
        self.served_now += 1
        exchange = Incoming(self, number, lane, end, head.protocol is not None)
        self.exchanges[number] = exchange
        if early is not None:
            exchange.adopt(early)
        exchange.attach(self._handler.open(head, self._peer, end, exchange))

    def _refuse(self, lane: Lane, number: int, early: Early | None) -> None:
        self._drop_early(early)
        if number > self._accept_to:
            error: EdgetunError = Draining("the session is draining")
        else:
            error = LimitExceeded(f"{self._serve_limit} exchanges are in flight, as many as a session takes")
        self._turn_down(lane, number, error)

    def _drop_early(self, early: Early | None) -> None:
        if early is not None:
            self.release_early(early)

    def _run_ahead(self, number: int) -> None:
        """Lanes are independent, so ids may arrive out of order; each arrives once, and none is left out."""
        if number < self._peer_next or number in self._ahead:
            raise SessionBroken(f"exchange {number}: opened twice")
        self._ahead.add(number)
        if len(self._ahead) > MAX_IDS_AHEAD:
            raise SessionBroken(f"exchange {self._peer_next} never came, {MAX_IDS_AHEAD} later ones did")

    def _catch_up(self) -> None:
        ahead = self._ahead
        number = self._peer_next
        while number in ahead:
            ahead.remove(number)
            number += 2
        self._peer_next = number

    def _receive_other(self, lane: Lane, kind: int, number: int, exchange: Exchange | None, payload: bytes) -> None:
        """The rarer kinds."""
        length = len(payload)
        if length > MAX_PAYLOAD_BYTES.get(kind, -1):
            self._check_kind(kind, length)
        if kind < HEAD:
            if number:
                raise SessionBroken(f"{name_of(kind)} of exchange {number}; it belongs to the session")
            self._control.on_control(lane.number, kind, payload, self.now)
        elif not self._is_open:
            self._control.on_first_frame_before_hello(kind)
        elif kind == frames.CREDIT:
            self._receive_credit(lane, number, exchange, payload)
        elif kind == frames.RESET:
            self._receive_reset(lane, number, exchange, payload)
        elif frames.IGNORABLE_FROM <= kind <= frames.IGNORABLE_TO:
            pass  # of a later version that can do without an answer
        elif exchange is None:
            self._stray_other(lane, kind, number, payload)
        elif kind == frames.INTERIM:
            exchange.receive_interim(lane, payload)
        elif kind == frames.TRAILERS:
            exchange.receive_trailers(lane, payload)
        else:
            exchange.receive_move(lane, self._target(payload))

    def _check_kind(self, kind: int, length: int) -> None:
        if kind not in MAX_PAYLOAD_BYTES:
            raise SessionBroken(f"frame of unknown kind {name_of(kind)}")
        raise SessionBroken(f"{name_of(kind)} of {length} bytes")

    def _target(self, payload: bytes) -> Lane:
        if len(payload) != 4:
            raise SessionBroken(f"MOVE of {len(payload)} bytes")
        return self._lane(int.from_bytes(payload, "big"))

    def _receive_credit(self, lane: Lane, number: int, exchange: Exchange | None, payload: bytes) -> None:
        amount = int.from_bytes(payload, "big")
        if len(payload) != 4 or not amount:
            raise SessionBroken("CREDIT without an amount")
        if exchange is not None:
            exchange.receive_credit(amount)
        elif not number:
            self._session_credit(amount)
        elif self._is_yet_unopened(number):
            self._early(lane, number).credit += amount

    def _receive_reset(self, lane: Lane, number: int, exchange: Exchange | None, payload: bytes) -> None:
        if len(payload) < 2:
            raise SessionBroken(f"RESET of {len(payload)} bytes")
        if exchange is not None:
            exchange.receive_reset(int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace"))
        elif self._is_yet_unopened(number):
            self._early(lane, number).is_reset = True

    # --- frames of exchanges that are not here

    def _is_yet_unopened(self, number: int) -> bool:
        """Whether an exchange that is not here is still to be opened by the peer; otherwise it is over.

        Raises `SessionBroken` when it is ours to open, and we did not.
        """
        if not number:
            raise SessionBroken("a frame of an exchange without its number")
        if number & 1 == self.is_agent:
            self._check_late(number, "a frame")
            return False
        return number >= self._peer_next and number not in self._ahead

    def _check_late(self, number: int, what: str) -> None:
        if not number or number >= self._next_id:
            raise SessionBroken(f"{what} of exchange {number}, which was never opened")

    def _early(self, lane: Lane, number: int) -> Early:
        early = self._unopened.get(number)
        if early is None:
            if len(self._unopened) >= MAX_UNOPENED:
                raise SessionBroken(f"frames of {MAX_UNOPENED} exchanges came before their HEAD")
            early = self._unopened[number] = Early(lane)
        elif early.lane is not lane:
            raise SessionBroken(f"exchange {number}: frames on three lanes")
        return early

    def _stray(self, lane: Lane, number: int, length: int) -> Early | None:
        """Charges DATA of an exchange that is not here. Returns where to keep it, or None when it is late."""
        if not self._is_open:
            self._control.on_first_frame_before_hello(DATA)
            return None
        is_unopened = self._is_yet_unopened(number)
        self.recv_left -= length
        if self.recv_left < 0:
            raise SessionBroken("more DATA than the credit of the session allows")
        early = None
        if is_unopened:
            early = self._early(lane, number)
            if early.is_complete:
                raise SessionBroken(f"exchange {number}: DATA after the end")
            early.taken += length
            self.early_bytes += length
            if early.taken > self.exchange_window:
                raise SessionBroken(f"more DATA than the credit of exchange {number} allows")
        if self.recv_left < self.recv_low:
            self.grant_session()
        return early

    def _stray_data(self, lane: Lane, number: int, length: int, payload: bytes, end: bool) -> None:
        early = self._stray(lane, number, length)
        if early is not None:
            early.data += payload
            early.ends = end

    def _stray_other(self, lane: Lane, kind: int, number: int, payload: bytes) -> None:
        """INTERIM, TRAILERS or MOVE."""
        if not self._is_yet_unopened(number):
            return
        early = self._early(lane, number)
        if kind != frames.TRAILERS or early.is_complete:
            raise SessionBroken(f"{name_of(kind)} of exchange {number}, which was never opened")
        early.trailers = payload
        self.count_early_trailers(payload)

    def _on_bug(self, number: int, bug: Exception) -> None:
        """A handler or a sink raised. The exchange ends; the session goes on."""
        self._control.on_bug(bug)
        exchange = self.exchanges.get(number)
        if exchange is None:
            return
        try:
            exchange.fail(EdgetunError("an internal error; see the log"))
        except SessionBroken:
            raise
        except Exception as another:  # noqa: BLE001 - the sink that raised is told of the reset, and may raise again
            self._control.on_bug(another)


def _load(lane: Lane) -> tuple[bool, int]:
    return lane.is_paused, lane.load
