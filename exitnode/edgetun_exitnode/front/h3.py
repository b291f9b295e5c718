"""A visitor's HTTP/3 connection: request streams in, one exchange each, and their responses out by priority (RFC 9114).

Hot path. A request whose bytes were seen before, and came whole in one piece, is one dictionary lookup away from
`Handler.open`; the answers to a burst of datagrams leave with one transmit at its end.

Bounds: streams (the library's 100), unfinished heads and bodies held for paused handlers (then no more events are taken, which
is flow control, see transport/quic_qh3_server.py), unsent response bytes (then the answering side is paused), and an allowance
for what costs us and gets nobody anything: cancelled requests, unknown frames and streams, priority updates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Cancelled, Draining, EdgetunError, ProtocolError
from edgetun_core.http.h3_frames import (
    CONTROL_STREAM,
    DECODER_STREAM,
    ENABLE_CONNECT_PROTOCOL,
    ENCODER_STREAM,
    GOAWAY,
    H3_CLOSED_CRITICAL_STREAM,
    H3_EXCESSIVE_LOAD,
    H3_INTERNAL_ERROR,
    H3_NO_ERROR,
    MAX_FIELD_SECTION_SIZE,
    H3Error,
    decode_varint,
    encode_frame,
    encode_settings,
    encode_varint,
)
from edgetun_core.http.message import Peer
from edgetun_core.http.multiplexed import ReceivedRequest
from edgetun_core.http.priority import parse_priority
from edgetun_core.transport.quic_peer import QuicPeer
from edgetun_core.transport.quic_qh3_server import Qh3ServerConnection
from edgetun_core.transport.udp import Address
from edgetun_exitnode.front.h3_control import Control, UniStream
from edgetun_exitnode.front.h3_exchange import NOTHING, H3Exchange
from edgetun_exitnode.front.h3_output import Output, Writer

if TYPE_CHECKING:
    from edgetun_exitnode.front.h3_front import H3Front

MAX_HELD_BYTES: Final = 256 * 1024
"""Bodies held for paused handlers, and unfinished heads, of one connection."""
MAX_QUEUED_BYTES: Final = 1024 * 1024
"""Response bytes of one connection that wait; beyond it every stream that writes is paused."""
CONTROL_SID: Final = 3
"""The first unidirectional stream that a server opens."""
MAX_REQUEST_ID: Final = (1 << 62) - 4
ALLOWANCE: Final = 500
"""What a connection may cost without getting anything; grows by `ALLOWANCE_PER_S`, and by one per answered request."""
ALLOWANCE_PER_S: Final = 50
CANCEL_COSTS: Final = 2
GOAWAY_GRACE_S: Final = 0.3
"""Between saying that we are going away and saying which request was the last (RFC 9114 §5.2)."""


class H3Connection(QuicPeer["H3Front", Qh3ServerConnection]):
    """One connection that speaks HTTP/3."""

    __slots__ = (
        "_has_control",
        "_has_paused",
        "_last_address",
        "_moved",
        "active",
        "allowance",
        "answered",
        "approved",
        "control",
        "front",
        "goaway",
        "held_bodies",
        "held_heads",
        "is_full",
        "last_request",
        "output",
        "peer",
        "pinged",
        "streams",
        "unis",
    )

    def __init__(self, quic: Qh3ServerConnection, front: H3Front) -> None:
        super().__init__("qh3", quic, front)
        self.front = front
        self.streams: dict[int, H3Exchange] = {}
        """Requests that are not over, and those whose visitor has not ended its side."""
        self.unis: dict[int, UniStream] = {}
        self.control = Control()
        self.output = Output(quic)
        self.approved: ReceivedRequest | None = None
        self.peer = Peer("", 0, b"https", b"3")
        self.active = front.now
        self.pinged = front.now
        self.last_request = -4
        self.goaway = -1
        """The id that our GOAWAY named; -1 as long as there was none."""
        self.answered = 0
        self.allowance = ALLOWANCE
        self.held_heads = 0
        self.held_bodies = 0
        self.is_full = False
        """Asked by the library's shell before each event: no more for now."""
        self._has_control = False
        self._has_paused = False
        self._last_address: Address = ("", 0)
        self._moved = True

    # --- the connection's own (QuicPeer)

    def take(self, data: bytes, segment: int, address: Address, now: float) -> None:
        self.front.counters.bytes_in += len(data)
        if address != self._last_address:
            self._last_address = address
            self._moved = True
        super().take(data, segment, address, now)

    def pump(self) -> None:
        self._scheduled = True  # what is written meanwhile leaves with the transmit below
        super().pump()
        if not self._ended:
            self.transmit()

    def _tripped(self, error: Exception) -> None:
        self.front.tripped(error)
        self.fail(ProtocolError("the QUIC library could not go on with what came in"))

    def _deliver(self) -> None:
        self.active = self.front.now
        if self._moved:
            self._update_peer()
        try:
            self._quic.pump(self)
        except H3Error as error:
            self.fail(error)

    def _update_peer(self) -> None:
        """Who is there, now: a client's address may change in the middle (RFC 9000 §9)."""
        host, port = self.peer_address
        before = self.peer
        if (host, port) != (before.address, before.port) or self._quic.server_name != before.sni:
            self.peer = Peer(host, port, b"https", b"3", self._quic.server_name, (self.front.host, self.front.port))
            self.front.moved(self, before.address)
        # As long as packets come from an address that is not validated yet, it is looked at again.
        self._moved = self._quic.peer[:2] != self._last_address[:2] or not self.is_established

    def _send_all(self) -> None:
        output = self.output
        super()._send_all()
        output.settle()
        if output.waiting or self._has_paused:
            fed: list[Writer] = []
            while output.waiting and not self._endpoint.is_blocked and output.feed(fed):
                super()._send_all()
                output.settle()
            self._resume()

    def _resume(self) -> None:
        """Lets those write again whose output has gone down, and lets go of those that are through."""
        low = self.front.limits.write_buffer_bytes // 4
        may_write = self.output.queued_bytes <= MAX_QUEUED_BYTES // 2
        self._has_paused = False
        for exchange in tuple(self.streams.values()):
            if exchange.over:
                if exchange.ended:
                    self.forget(exchange)
            elif exchange.response_paused:
                if exchange.queued <= low and may_write:
                    exchange.response_paused = False
                    exchange.request.resume_response()
                else:
                    self._has_paused = True

    def _has_more(self) -> bool:
        return bool(self.output.waiting)

    def _code_of(self, error: EdgetunError | None) -> int:
        if isinstance(error, H3Error):
            return error.code
        return H3_NO_ERROR if error is None or isinstance(error, Draining) else H3_INTERNAL_ERROR

    def _ended_with(self, error: EdgetunError | None) -> None:
        cause = Cancelled("the visitor closed the connection") if error is None else Cancelled(error.message)
        for exchange in tuple(self.streams.values()):
            exchange.visitor_left(cause)
        self.streams.clear()
        self.unis.clear()
        self.front.held_bytes -= self.held_heads + self.held_bodies
        self.held_heads = self.held_bodies = 0
        if isinstance(error, H3Error):
            self.front.counters.requests_malformed += 1
        self.front.link_ended(self, error)

    # --- called by the library's shell (ServerSink)

    def handshake_done(self, alpn: str | None) -> None:
        if self.is_established:
            return
        self.is_established = True
        self._update_peer()
        self._open_control()
        self.front.handshake_done(self)

    def _open_control(self) -> None:
        if not self._has_control:
            self._has_control = True
            settings = {
                MAX_FIELD_SECTION_SIZE: self.front.max_section_bytes,
                ENABLE_CONNECT_PROTOCOL: 1,
            }
            self._quic.send(CONTROL_SID, encode_varint(CONTROL_STREAM) + encode_settings(settings), False)
            if self.goaway >= 0:
                self._quic.send(CONTROL_SID, encode_frame(GOAWAY, encode_varint(self.goaway)), False)

    def stream_data(self, stream_id: int, data: bytes, is_end: bool) -> None:
        exchange = self.streams.get(stream_id)
        if exchange is not None:
            exchange.receive(data, is_end)
        elif not stream_id & 3:
            if stream_id > self.last_request:
                self.last_request = stream_id
            parsed = self.front.known.get(data) if is_end and self.goaway < 0 else None
            exchange = H3Exchange(self, stream_id)
            if parsed is not None and self.is_established:
                exchange.start(parsed, True)
                if not exchange.over or exchange.queue is not None:
                    self.streams[stream_id] = exchange
            else:
                self._begin(exchange, data, is_end)
        elif stream_id & 3 == 2:
            uni = self.unis.get(stream_id)
            if uni is None:
                uni = self.unis[stream_id] = UniStream()
            uni.receive(self, stream_id, data, is_end)
            if is_end:
                self.unis.pop(stream_id, None)

    def _begin(self, exchange: H3Exchange, data: bytes, is_end: bool) -> None:
        """A request that is not known, or not whole, or comes at an unusual time."""
        if not self.is_established:
            self._update_peer()
            self._open_control()
            self.front.counters.early_data_requests += 1
        exchange.begin_reading()
        self.streams[exchange.sid] = exchange
        if 0 <= self.goaway <= exchange.sid:
            exchange.reject()
            if is_end:
                exchange.end_reading()
            return
        exchange.receive(data, is_end)
        parsed = exchange.parsed
        if is_end and parsed is not None and self.is_established and parsed.head.protocol is None:
            kind, at = decode_varint(data)
            length, at = decode_varint(data, at)
            if kind == 1 and at + length == len(data):  # one HEADERS frame and nothing else
                self.front.known.remember(data, parsed)

    def stream_reset(self, stream_id: int, code: int) -> None:
        exchange = self.streams.get(stream_id)
        if exchange is not None:
            exchange.reader = None
            exchange.ended = True
            if not exchange.request_done or not exchange.over:
                self._cancelled(exchange)
            self.forget(exchange)
        else:
            uni = self.unis.pop(stream_id, None)
            if uni is not None and uni.type in (CONTROL_STREAM, ENCODER_STREAM, DECODER_STREAM):
                raise H3Error(H3_CLOSED_CRITICAL_STREAM, "a critical stream was reset (RFC 9114 §6.2.1)")
            if uni is None and not stream_id & 3:
                self.last_request = max(self.last_request, stream_id)
                self.spend(CANCEL_COSTS)  # opened and reset with nothing in between

    def stop_sending(self, stream_id: int, code: int) -> None:
        if stream_id == CONTROL_SID:
            raise H3Error(H3_CLOSED_CRITICAL_STREAM, "our control stream was not wanted (RFC 9114 §6.2.1)")
        exchange = self.streams.get(stream_id)
        if exchange is not None and not exchange.over:
            self._cancelled(exchange)

    def _cancelled(self, exchange: H3Exchange) -> None:
        exchange.request_done = exchange.request_done or exchange.ended
        if not exchange.over:
            self.spend(CANCEL_COSTS)
        exchange.visitor_left()

    def cid_issued(self, cid: bytes) -> None:
        self.front.cid_issued(self, cid)

    def cid_retired(self, cid: bytes) -> None:
        self.front.cid_retired(self, cid)

    # --- called by the exchanges

    def write(self, exchange: H3Exchange, data: bytes, is_end: bool) -> None:
        """Hands a stream's bytes on; they leave at the end of the burst, or of this loop tick."""
        if self._ended:
            return
        self.front.counters.bytes_out += len(data)
        output = self.output
        if output.write(exchange, data, is_end):
            self._hold_back(exchange)
        if not self._scheduled:
            self._schedule()

    def _hold_back(self, exchange: H3Exchange) -> None:
        if exchange.response_paused:
            return
        if exchange.queued > self.front.limits.write_buffer_bytes or self.output.queued_bytes > MAX_QUEUED_BYTES:
            exchange.response_paused = self._has_paused = True
            if not exchange.opening:
                exchange.request.pause_response()

    def exchange_over(self, exchange: H3Exchange) -> None:
        """The response is done with, outside of `open`."""
        if exchange.ended:
            self.forget(exchange)

    def forget(self, exchange: H3Exchange) -> None:
        """The stream has ended on both sides."""
        if exchange.queue is not None:
            return  # what waits is still to be sent; the sweep looks after it
        if self.streams.pop(exchange.sid, None) is not None and self.goaway >= 0 and not self.streams:
            self.close_if_idle()

    def take_priority(self, exchange: H3Exchange) -> None:
        """An update that came before its request (RFC 9218 §7)."""
        value = self.control.priorities.pop(exchange.sid, None)
        if value is not None:
            exchange.set_priority(parse_priority(value))
        for sid in [sid for sid in self.control.priorities if sid < exchange.sid]:
            del self.control.priorities[sid]

    def reset(self, sid: int, code: int) -> None:
        if not self._ended and self._quic.reset(sid, code) and not self._scheduled:
            self._schedule()

    def stop(self, sid: int, code: int) -> None:
        if not self._ended and self._quic.stop(sid, code) and not self._scheduled:
            self._schedule()

    def spend(self, cost: int) -> None:
        """Takes from the allowance. Raises H3Error when it is used up (RFC 9114 §10.5)."""
        self.allowance += self.answered - cost
        self.answered = 0
        if self.allowance > ALLOWANCE:
            self.allowance = ALLOWANCE
        if self.allowance < 0:
            self.front.counters.connections_refused += 1
            raise H3Error(H3_EXCESSIVE_LOAD, "too much was asked that leads to nothing (RFC 9114 §10.5)")

    def count_held(self, exchange: H3Exchange) -> None:
        """What is held of a stream's request has changed. Raises H3Error when unfinished heads are too much."""
        bodies = exchange.held_bytes
        heads = exchange.reader.held_bytes if exchange.reader is not None and exchange.parsed is None else 0
        front = self.front
        counted_bodies, counted_heads = exchange.counted
        exchange.counted = (bodies, heads) if bodies or heads else NOTHING
        self.held_bodies += bodies - counted_bodies
        self.held_heads += heads - counted_heads
        front.held_bytes += bodies + heads - counted_bodies - counted_heads
        was_full = self.is_full
        self.is_full = self.held_bodies > MAX_HELD_BYTES or (bodies > 0 and front.held_bytes > front.limits.held_bytes)
        if was_full and not self.is_full:
            front.pump_later(self)
        if heads > counted_heads and (self.held_heads > MAX_HELD_BYTES or front.held_bytes > front.limits.held_bytes):
            front.counters.connections_refused += 1
            raise H3Error(H3_EXCESSIVE_LOAD, "too many unfinished requests wait at this edge")

    # --- the end

    def go_away(self) -> None:
        """Asks the visitor to open no more requests; a moment later says which was the last that is served."""
        if self.goaway >= 0:
            return
        self._say_goaway(MAX_REQUEST_ID)
        self._loop.call_later(GOAWAY_GRACE_S, self._settle_goaway)

    def _settle_goaway(self) -> None:
        if not self._ended:
            self._say_goaway(self.last_request + 4)
            self.close_if_idle()

    def _say_goaway(self, sid: int) -> None:
        self.goaway = sid
        if self._has_control and not self._ended:
            self._quic.send(CONTROL_SID, encode_frame(GOAWAY, encode_varint(sid)), False)
            self._schedule()

    def close_if_idle(self) -> None:
        """Closes when no request is under way; the front drains."""
        if not self.streams and self.goaway != MAX_REQUEST_ID:
            self.close(H3_NO_ERROR, "")

    def give_up(self, why: str) -> None:
        """Drops the connection together with its exchanges."""
        self.fail(Draining(why))

    def sweep(self, now: float) -> None:
        """Ends what has been silent for too long; called once a second."""
        self.allowance = min(ALLOWANCE, self.allowance + ALLOWANCE_PER_S)
        limits = self.front.limits
        if self.is_full and self._quic.is_gone:
            self.is_full = False
            self.front.pump_later(self)
            return
        if not self.streams:
            if now - self.active > limits.keep_alive_s and self._closing is None:
                self.close(H3_NO_ERROR, "")
            return
        for exchange in tuple(self.streams.values()):
            self._check(exchange, now)
        if now - max(self.active, self.pinged) > self.front.ping_s and not self._ended:
            self.pinged = now
            self._quic.ping()
            self._schedule()

    def _check(self, exchange: H3Exchange, now: float) -> None:
        limits = self.front.limits
        silent_s = now - exchange.active
        if exchange.queue is not None or exchange.unsent_seen > 0 or exchange.response_paused:
            unsent = exchange.queued + self._quic.unsent(exchange.sid)
            if unsent != exchange.unsent_seen:
                exchange.unsent_seen = unsent
                exchange.active = now
            elif unsent and silent_s > limits.write_stall_s:
                exchange.visitor_left(Cancelled("the visitor took nothing of the response for too long"))
                exchange.abandon_output()
            elif not unsent and exchange.over and exchange.ended:
                self.forget(exchange)
            return
        if exchange.over:
            if exchange.ended:
                self.forget(exchange)
            else:
                exchange.unsent_seen = self._quic.unsent(exchange.sid)
        elif exchange.request_done or exchange.request_paused or exchange.held is not None or exchange.is_upgraded:
            exchange.unsent_seen = self._quic.unsent(exchange.sid)  # the answering side has deadlines of its own
        elif exchange.parsed is None:
            if silent_s > limits.head_s:
                exchange.time_out("the request's head did not arrive in time")
        elif silent_s > limits.body_progress_s:
            exchange.time_out("the request's body did not arrive in time")

    @property
    def idle_s(self) -> float:
        """For how long the connection has kept its place without need; 0.0 when it must stay."""
        return 0.0 if self.streams or self._closing is not None else self.front.now - self.active
