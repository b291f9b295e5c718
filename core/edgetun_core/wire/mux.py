"""The mux: frames of many exchanges over the lanes of one session; sans-I/O.

Hot path: `open`, `receive` and what they call in `exchanges.py`, `sending.py` and `receiving.py`: about 3 us per end for a
1 KB GET passed through. Exchange frames make no event objects: handlers and sinks are called from the loop that reads them.
Everything here raises `SessionBroken` for what the peer must not do, and only that.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.errors import Draining, EdgetunError, LimitExceeded, NoSession, ProtocolError
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.http.stream import UDP
from edgetun_core.wire import frames
from edgetun_core.wire.datagrams import Datagrams
from edgetun_core.wire.early import Early
from edgetun_core.wire.exchanges import Incoming, IncomingFlow, Outgoing, OutgoingFlow
from edgetun_core.wire.frames import (
    BULK_PAYLOAD_BYTES,
    DATA,
    DATA_END,
    END,
    HEAD,
    HEAD_END,
    HEADER,
    HEADER_BYTES,
    KIND_BITS,
    MAX_DATA_BYTES,
    MAX_ID,
    MAX_PAYLOAD_BYTES,
    SessionBroken,
    name_of,
)
from edgetun_core.wire.heads import decode_request, encode_request
from edgetun_core.wire.hello import Windows
from edgetun_core.wire.lanes import Lane
from edgetun_core.wire.openings import Openings
from edgetun_core.wire.outlet import Control, Outlet
from edgetun_core.wire.receiving import Exchange
from edgetun_core.wire.splices import Spliced, SpliceOwner

LOW_ID_MARGIN: Final = 1 << 16
"""With fewer ids left the session drains, so that another takes over before there are none."""

_pack = HEADER.pack
_unpack = HEADER.unpack_from


class Mux(Outlet):
    """All exchanges of one session, of both ends' opening. A `Handler`: `open` starts an exchange with the peer."""

    __slots__ = (
        "_accept_to",
        "_awaited",
        "_handler",
        "_is_open",
        "_last_id",
        "_next_id",
        "_open_limit",
        "_openings",
        "_peer",
        "_refusal",
        "_serve_limit",
        "datagrams",
        "exchanges",
        "is_agent",
        "now",
        "opened_now",
        "rtt_s",
        "served_now",
    )

    def __init__(self, control: Control, handler: Handler, peer: Peer, windows: Windows, *, is_agent: bool) -> None:
        """`windows` is what this end takes."""
        super().__init__(control, windows)
        self.is_agent = is_agent
        self._handler = handler
        self._peer = peer
        self.now = 0.0
        self.rtt_s: float | None = None
        self.exchanges: dict[int, Exchange] = {}
        self.datagrams = Datagrams(self)
        # Opening: nothing before `start`, nothing after `stop_opening`.
        self._is_open = False
        self._refusal: EdgetunError = NoSession("the session is not open")
        self._next_id = 1 if is_agent else 2
        self._last_id = 0
        self._open_limit = 0
        self.opened_now = 0
        # Serving.
        self._openings = Openings(2 if is_agent else 1)
        self._accept_to = MAX_ID
        self._awaited = 0
        self._serve_limit = windows.max_exchanges
        self.served_now = 0

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
        self._accept_to = self._awaited = last_opened

    def end_flows(self) -> None:
        """The session drains: UDP flows of our opening have no end to wait for, and begin anew where there is another session."""
        for exchange in [one for one in self.exchanges.values() if isinstance(one, OutgoingFlow)]:
            try:
                exchange.fail(self._refusal)
            except Exception as bug:  # noqa: BLE001 - as in `reset_all`
                self._control.on_bug(bug)

    @property
    def last_opened(self) -> int:
        """The highest id opened from here, or 0."""
        return max(self._next_id - 2, 0)

    @property
    def is_idle(self) -> bool:
        """No exchange is under way, and none that the peer said it opened is still to come."""
        return not self.exchanges and self._openings.expected > self._awaited

    @property
    def in_flight(self) -> int:
        return len(self.exchanges)

    @property
    def opened_total(self) -> int:
        return self._next_id // 2 if self.is_agent else self._next_id // 2 - 1

    @property
    def served_total(self) -> int:
        return self._openings.total

    def reset_all(self, why: EdgetunError) -> None:
        """The session is over: every open exchange ends, on this side only."""
        self._is_open = False
        self._serve_limit = -1
        self.blocked.clear()
        self._openings.early.clear()
        for exchange in list(self.exchanges.values()):
            try:
                if isinstance(exchange, Incoming):
                    exchange.lose()
                else:
                    exchange.deliver_reset(why)
            except Exception as bug:  # noqa: BLE001 - a handler's bug must not keep the others from being told
                self._control.on_bug(bug)

    def _lane_resumed(self, lane: Lane) -> None:
        self.datagrams.lane_resumed(lane)

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
        kind = OutgoingFlow if head.protocol == UDP else Outgoing
        exchange = kind(self, number, lane, client, end, head.protocol is not None)
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

    def splice(
        self, head: RequestHead, end: bool, client: Incoming, owner: SpliceOwner, session: Handler, started: float
    ) -> Spliced | None:
        """The same for what another session's peer asks, no upgrade, see splices.py; None where `open` would refuse."""
        number = self._next_id
        if number > self._last_id or self.opened_now >= self._open_limit:
            return None
        block = head.wire
        if block is None:
            try:
                block = encode_request(head)
            except EdgetunError:
                return None
        self._next_id = number + 2
        self.opened_now += 1
        lane = self._open_lane
        lane.load += 1
        exchange = self.exchanges[number] = Spliced(self, number, lane, head, end, client, owner, session, started)
        out = lane.out
        if not out:
            self.mark(lane)
        out += (_pack((frames.WORD_HEAD_END if end else frames.WORD_HEAD) | len(block), number), block)
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

    # --- reading

    def receive(self, lane_number: int, data: bytes, now: float) -> None:
        """Takes what arrived on a lane; raises `SessionBroken`."""
        self.now = now
        try:
            lane = self.lanes[lane_number]
        except IndexError:
            lane = self.lane(lane_number)
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
                    base = kind & KIND_BITS
                    if base == DATA:
                        if exchange is not None:
                            exchange.receive_data(lane, data[start:stop], kind == DATA_END)
                        else:
                            self._stray_data(lane, number, length, data[start:stop], kind == DATA_END)
                    elif base == HEAD:
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
            lane.keep(data[position:])

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
        lane.keep(data[start - HEADER_BYTES :])

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
        openings = self._openings
        if number == openings.expected and not openings.ahead:
            openings.expected = number + 2
        else:
            openings.arrive(number)
        early = openings.early.pop(number, None) if openings.early else None
        if self.served_now >= self._serve_limit or number > self._accept_to:
            self._refuse(lane, number, early)
            return
        try:
            head = decode_request(block)
        except ProtocolError as error:
            self._drop_early(early)
            self.turn_down(lane, number, error)
            return
        if early is not None and (early.is_reset or early.lane is lane or end):
            self._drop_early(early)
            if not early.is_reset:
                raise SessionBroken(f"exchange {number}: DATA before HEAD")
            return
        self.served_now += 1
        kind = IncomingFlow if head.protocol == UDP else Incoming
        exchange = kind(self, number, lane, end, head.protocol is not None)
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
        self.turn_down(lane, number, error)

    def _drop_early(self, early: Early | None) -> None:
        if early is not None:
            self.release_early(early)

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
        elif kind == frames.DATAGRAM:
            if exchange is not None:
                exchange.receive_datagram(payload)
            elif self._is_yet_unopened(number):
                raise SessionBroken(f"DATAGRAM of exchange {number}, which was never opened")
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
        return self.lane(int.from_bytes(payload, "big"))

    def _receive_credit(self, lane: Lane, number: int, exchange: Exchange | None, payload: bytes) -> None:
        amount = int.from_bytes(payload, "big")
        if len(payload) != 4 or not amount:
            raise SessionBroken("CREDIT without an amount")
        if exchange is not None:
            exchange.receive_credit(amount)
        elif not number:
            self.receive_session_credit(amount)
        elif self._is_yet_unopened(number):
            early = self._openings.early_of(lane, number)
            early.credit += amount
            if early.credit > frames.MAX_CREDIT:
                raise SessionBroken(f"exchange {number}: CREDIT adds up to more than {frames.MAX_CREDIT}")

    def _receive_reset(self, lane: Lane, number: int, exchange: Exchange | None, payload: bytes) -> None:
        if len(payload) < 2:
            raise SessionBroken(f"RESET of {len(payload)} bytes")
        if exchange is not None:
            exchange.receive_reset(int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace"))
        elif self._is_yet_unopened(number):
            self._openings.early_of(lane, number).is_reset = True

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
        return not self._openings.has_come(number)

    def _check_late(self, number: int, what: str) -> None:
        if not number or number >= self._next_id:
            raise SessionBroken(f"{what} of exchange {number}, which was never opened")

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
            early = self._openings.early_of(lane, number)
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
        early = self._openings.early_of(lane, number)
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
