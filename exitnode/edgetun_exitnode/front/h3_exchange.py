"""One request stream of a visitor's HTTP/3 connection: takes the response and writes it (RFC 9114 §4).

Hot path: for an answer given within `open`, head and body leave in one write and the connection never keeps the object. Frames
of a request that did not come whole in one piece are read here too.

Flow: what a paused handler does not take is held and counted by the connection, which stops taking events when it is too
much; what the visitor does not take waits in the connection's output and pauses the answering side.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Cancelled, EdgetunError, ProtocolError, UpstreamBroken
from edgetun_core.http.exchange import CLOSED, RequestSink
from edgetun_core.http.h3_frames import (
    CANCEL_PUSH,
    DATA,
    GOAWAY,
    H3_EXCESSIVE_LOAD,
    H3_FRAME_ERROR,
    H3_FRAME_UNEXPECTED,
    H3_INTERNAL_ERROR,
    H3_MESSAGE_ERROR,
    H3_NO_ERROR,
    H3_REQUEST_CANCELLED,
    H3_REQUEST_INCOMPLETE,
    H3_REQUEST_REJECTED,
    HEADERS,
    MAX_PUSH_ID,
    OF_HTTP2,
    PRIORITY_UPDATE_PUSH,
    PRIORITY_UPDATE_REQUEST,
    PUSH_PROMISE,
    SETTINGS,
    FrameReader,
    FrameTooLarge,
    H3Error,
    encode_varint,
)
from edgetun_core.http.message import Fields, RequestHead, ResponseHead
from edgetun_core.http.multiplexed import MalformedMessage, ReceivedRequest, RequestRefused, read_trailers
from edgetun_core.http.priority import Priority
from edgetun_core.http.qpack import SectionTooLarge
from edgetun_core.http.websocket import KEY_BYTES, accept_handshake, open_handshake
from edgetun_exitnode.front.h3_response import PreparedH3, prepare_response, render_trailers
from edgetun_exitnode.front.pages import build_problem

if TYPE_CHECKING:
    from edgetun_exitnode.front.h3 import H3Connection

_ON_OTHER_STREAMS: Final = (
    frozenset(
        (
            *(SETTINGS, GOAWAY, MAX_PUSH_ID, CANCEL_PUSH, PUSH_PROMISE),
            *(PRIORITY_UPDATE_REQUEST, PRIORITY_UPDATE_PUSH),
        )
    )
    | OF_HTTP2
)
"""Frames that may not stand on a request stream (RFC 9114 §7.2, RFC 9218 §7.2)."""

NOTHING: Final = (0, 0)

# How the body is written. RAW is an accepted upgrade.
LENGTH: Final = 0
FRAMES: Final = 1
NO_BODY: Final = 2
RAW: Final = 3

_JOIN_BYTES: Final = 64 * 1024
"""A head is joined with a first piece up to this size; copying a bigger one costs more than a second write."""

SAFE_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""What may be taken from early data, which an attacker could send again (RFC 8470 §2)."""


class TooEarly(ProtocolError):
    """A request that may not be replayed came in early data."""

    status = 425


class Misdirected(ProtocolError):
    """A request for a host that this connection was not made for."""

    status = 421


class SlowRequest(ProtocolError):
    """A request that does not arrive in time."""

    status = 408


class H3Exchange:
    """The ResponseSink of one request stream, and what is known of the request."""

    __slots__ = (
        "active",
        "body_left",
        "cancelled",
        "connection",
        "counted",
        "ended",
        "held",
        "held_bytes",
        "incremental",
        "key",
        "left",
        "mode",
        "opening",
        "over",
        "parsed",
        "pending",
        "queue",
        "queue_ends",
        "queued",
        "reader",
        "request",
        "request_done",
        "request_paused",
        "response_paused",
        "sid",
        "started",
        "status",
        "trailed",
        "unsent_seen",
        "urgency",
    )

    def __init__(self, connection: H3Connection, sid: int) -> None:
        self.connection = connection
        self.sid = sid
        self.urgency = 3
        self.incremental = False
        self.queue: deque[memoryview] | None = None
        self.queued = 0
        self.queue_ends = False
        self.parsed: ReceivedRequest | None = None
        self.pending: bytes | None = None
        self.request: RequestSink = CLOSED
        self.opening = False
        self.started = False
        self.over = False
        """The response is written, or nobody waits for it any more."""
        self.request_done = False
        self.cancelled: EdgetunError | None = None
        self.mode = LENGTH
        self.status = 0
        self.reader: FrameReader | None = None
        self.ended = True
        """The visitor's side of the stream has ended: nothing comes any more."""
        self.held: list[bytes | Fields] | None = None
        self.key: bytes = b""
        self.trailed = False
        self.request_paused = False
        self.response_paused = False
        self.unsent_seen = -1
        self.active = connection.front.now

    @property
    def is_upgraded(self) -> bool:
        """The stream carries, or asked to carry, another protocol."""
        return self.parsed is not None and self.parsed.head.protocol is not None

    def set_priority(self, priority: Priority) -> None:
        self.urgency, self.incremental = priority

    # The request, as frames.

    def begin_reading(self) -> None:
        """For a request that did not come whole in one piece."""
        self.ended = False
        self.reader = FrameReader(self.connection.front.h1_limits.max_head_bytes)
        self.body_left = -1
        self.held_bytes = 0
        self.counted = NOTHING

    def receive(self, data: bytes, is_end: bool) -> None:
        """Takes the next bytes of the stream. Raises H3Error, which ends the connection."""
        reader = self.reader
        if reader is None:
            if is_end:
                self.end_reading()
            return
        self.active = self.connection.front.now
        try:
            frames = reader.feed(data)
        except FrameTooLarge as error:
            self.reader = None
            if self.request_done:
                return
            if error.type == HEADERS and self.parsed is None:
                self._refuse(RequestRefused("the header section is too large", status=431, remedy="send fewer fields"))
                return
            raise H3Error(H3_EXCESSIVE_LOAD, f"a frame of {error.size} bytes is longer than any may be") from None
        if is_end and not reader.is_between_frames:
            raise H3Error(H3_FRAME_ERROR, "a request stream ends within a frame (RFC 9114 §7.1)")
        if reader.held_bytes or self.counted is not NOTHING:
            self.connection.count_held(self)
        last = len(frames) - 1
        for index, (kind, payload) in enumerate(frames):
            if kind == DATA:
                if self.trailed or (self.parsed is None and not self.over):
                    raise H3Error(H3_FRAME_UNEXPECTED, "DATA where none may be (RFC 9114 §4.1)")
                if not payload:
                    self.connection.spend(1)
                elif not self.request_done:
                    self._body(payload, is_end and index == last)
            elif kind == HEADERS:
                self._headers(payload, is_end and index == last)
            elif kind in _ON_OTHER_STREAMS:
                raise H3Error(H3_FRAME_UNEXPECTED, f"a frame of type {kind:#x} on a request stream (RFC 9114 §7.2)")
            else:
                self.connection.spend(1)
        if is_end:
            self._end_of_stream()

    def _headers(self, block: bytes, is_end: bool) -> None:
        connection = self.connection
        if self.parsed is None:
            if self.over:
                return  # refused already
            try:
                parsed = connection.front.read_head(block)
            except (RequestRefused, SectionTooLarge) as error:
                connection.front.counters.requests_malformed += 1
                if isinstance(error, SectionTooLarge):
                    error = RequestRefused("the header section is too large", status=431, remedy="send fewer fields")
                self._refuse(error)
                return
            except MalformedMessage as error:
                connection.front.counters.requests_malformed += 1
                self.give_up(error, H3_MESSAGE_ERROR)
                return
            self.body_left = parsed.body_length
            if is_end and parsed.body_length > 0:
                self.give_up(ProtocolError("the request's body is shorter than its content-length"), H3_MESSAGE_ERROR)
                return
            self.start(parsed, is_end and parsed.head.protocol is None)
            return
        if self.trailed or self.parsed.head.protocol is not None:
            raise H3Error(H3_FRAME_UNEXPECTED, "HEADERS where none may be (RFC 9114 §4.1)")
        self.trailed = True
        try:
            trailers = read_trailers(connection.front.decode(block))
        except SectionTooLarge:
            self.give_up(ProtocolError("the trailer section is too large"), H3_EXCESSIVE_LOAD)
            return
        except MalformedMessage as error:
            self.give_up(error, H3_MESSAGE_ERROR)
            return
        if self.request_done:
            return
        if self.body_left > 0:
            self.give_up(ProtocolError("the request's body is shorter than its content-length"), H3_MESSAGE_ERROR)
        elif self.held is not None:
            self.held.append(trailers)
        else:
            self.request_done = True
            self.request.send_trailers(trailers)

    def _body(self, data: bytes, is_end: bool) -> None:
        left = self.body_left
        if left >= 0:
            left -= len(data)
            self.body_left = left
            if left < 0 or (is_end and left):
                self.give_up(
                    ProtocolError("the request's body does not have the length of its content-length"), H3_MESSAGE_ERROR
                )
                return
        if self.over and self.mode != RAW:
            return
        if self.request_paused or self.held is not None:
            if self.held is None:
                self.held = []
            self.held.append(data)
            self.held_bytes += len(data)
            self.connection.count_held(self)
            return
        if is_end:
            self.request_done = True
        self.request.send_data(data, is_end)

    def _end_of_stream(self) -> None:
        """The visitor's side of the stream is complete."""
        if self.parsed is None and not self.over:
            self.request_done = self.ended = True
            self.give_up(ProtocolError("the request stream ended before a request"), H3_REQUEST_INCOMPLETE)
            return
        if not self.request_done and self.held is None:
            if self.body_left > 0:
                self.give_up(ProtocolError("the request's body is shorter than its content-length"), H3_MESSAGE_ERROR)
                return
            self.request_done = True
            self.request.send_data(b"", True)
        elif self.held is not None:
            if self.body_left > 0:
                self.give_up(ProtocolError("the request's body is shorter than its content-length"), H3_MESSAGE_ERROR)
                return
            self.held.append(b"")
        self.end_reading()

    def end_reading(self) -> None:
        """Nothing comes on the visitor's side of the stream any more."""
        self.reader = None
        self.ended = True
        if self.over and self.request_done:
            self.connection.forget(self)

    def _refuse(self, error: EdgetunError) -> None:
        """Answers a request that gets no exchange, and reads no more of it."""
        self._stop_request()
        self.answer_error(error, None)

    def _stop_request(self) -> None:
        """Asks for no more of the request (RFC 9114 §4.1)."""
        if not self.request_done:
            self.request_done = True
            self.connection.stop(self.sid, H3_NO_ERROR)

    # The exchange.

    def start(self, parsed: ReceivedRequest, is_end: bool) -> None:
        """Opens the exchange. What the handler answers within `open` is written when this returns."""
        self.parsed = parsed
        self.request_done = is_end
        connection = self.connection
        front = connection.front
        if parsed is not connection.approved:
            if not front.approves(connection.peer, parsed.head.authority):
                self._refuse(
                    Misdirected(
                        "this connection was made for another host", remedy="connect anew to the host that is meant"
                    )
                )
                return
            connection.approved = parsed
        if parsed.priority is not None:
            self.urgency, self.incremental = parsed.priority
        if connection.control.priorities:
            connection.take_priority(self)
        head = parsed.head
        if not connection.is_established:
            early = front.early_head(parsed, is_end)
            if early is None:
                front.counters.early_data_refused += 1
                self._refuse(
                    TooEarly(
                        "this request may not come in early data", remedy="send it again when the handshake is done"
                    )
                )
                return
            head = early
        if head.protocol is not None:
            head, self.key = open_handshake(head, os.urandom(KEY_BYTES))
        self.opening = True
        request = front.context.handler.open(head, connection.peer, is_end, self)
        self.opening = False
        if self.over:
            if self.cancelled is not None:
                request.reset(self.cancelled)
            return
        self.request = request
        if self.pending is not None:
            front.flush_later(self)
        if head.protocol is not None and self.started and self.mode != RAW:
            self._settle_upgrade()
        if self.response_paused:
            request.pause_response()

    def _settle_upgrade(self) -> None:
        """The upgrade was answered with an ordinary response: the request has no more to say (rule 7 of exchange.py)."""
        self._stop_request()
        self.request.send_data(b"", True)

    # The response, as the answering side calls it.

    def on_interim(self, head: ResponseHead) -> None:
        if self.over or self.started or not 100 <= head.status < 200 or head.status == 101:
            return
        self.connection.write(self, prepare_response(head).lead, False)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if self.over or self.started:
            return
        status = head.status
        if status < 200:
            if status != 101 or end or self.parsed is None or self.parsed.head.protocol is None:
                self._break_off("a final response had an interim status")
                return
            try:
                head = accept_handshake(head, self.key)
            except UpstreamBroken as error:
                self._break_off(error.message)
                return
            self.mode = RAW
        prepared = head.h3
        if prepared is None:
            prepared = prepare_response(head)
        assert type(prepared) is PreparedH3
        connection = self.connection
        if self.mode != RAW:
            if prepared.without_body or (self.parsed is not None and self.parsed.is_head):
                self.mode = NO_BODY
            else:
                length = prepared.content_length
                if length < 0:
                    self.mode = FRAMES
                elif end and length:
                    self._break_off("the response ended before its content-length")
                    return
                self.left = length
        self.started = True
        self.status = status
        if prepared.priority is not None:
            self.set_priority(prepared.priority)  # the server's word goes before the visitor's (RFC 9218 §8)
        lead = prepared.lead if prepared.has_date else prepared.lead + connection.front.date_line
        if end:
            connection.write(self, lead, True)
            self._finish()
            return
        if self.mode == LENGTH:
            lead += prepared.data_lead
        self.pending = lead
        if not self.opening:
            connection.front.flush_later(self)
            if self.mode != RAW and self.parsed is not None and self.parsed.head.protocol is not None:
                self._settle_upgrade()

    def on_data(self, data: bytes, end: bool) -> None:
        if self.over or not self.started:
            return
        mode = self.mode
        if mode == LENGTH:
            left = self.left - len(data)
            self.left = left
            if left < 0 or (end and left):
                self._break_off("the response does not have the length of its content-length")
                return
        elif mode == NO_BODY:
            data = b""
        elif data:
            data = b"\x00" + encode_varint(len(data)) + data
        pending = self.pending
        if pending is not None:
            self.pending = None
            if len(data) > _JOIN_BYTES:
                self.connection.write(self, pending, False)
            else:
                data = pending + data
        self.connection.write(self, data, end)
        if end:
            self._finish()

    def on_trailers(self, fields: Fields) -> None:
        if self.over or not self.started:
            return
        if not fields or self.mode == NO_BODY or (self.mode == LENGTH and self.left):
            self.on_data(b"", True)
            return
        data = render_trailers(fields)
        if self.pending is not None:
            data = self.pending + data
            self.pending = None
        self.connection.write(self, data, True)
        self._finish()

    def on_reset(self, error: EdgetunError) -> None:
        if self.over:
            return
        if self.started and self.pending is None:
            # The head is out: only a broken stream tells the visitor that the rest is missing (RFC 9114 §4.1.1).
            self.connection.front.counters.responses_aborted += 1
            self._abandon(H3_INTERNAL_ERROR)
            return
        self.pending = None
        self.request = CLOSED
        self._stop_request()
        self.answer_error(error, self.parsed.head if self.parsed is not None else None)

    def pause_request(self) -> None:
        if not self.over or self.mode == RAW:
            self.request_paused = True

    def resume_request(self) -> None:
        if self.request_paused:
            self.request_paused = False
            self.active = self.connection.front.now  # the visitor's time begins here; until now it was not read
            if self.held is not None:
                self.connection.front.release_later(self)

    # What follows.

    def release(self) -> None:
        """Passes on what was held for a handler that had paused."""
        held = self.held
        if held is None or self.request_paused:
            return
        self.active = self.connection.front.now
        at = 0
        while at < len(held) and not self.request_paused and not self.request_done:
            piece = held[at]
            at += 1
            if isinstance(piece, tuple):
                self.request_done = True  # trailers end it
                self.request.send_trailers(piece)
            elif not piece:
                self.request_done = True
                self.request.send_data(b"", True)
            else:
                self.held_bytes -= len(piece)
                is_end = at < len(held) and held[at] == b""
                if is_end:
                    self.request_done = True
                self.request.send_data(piece, is_end)
        if self.request_done or at >= len(held):
            self.held = None
            self.held_bytes = 0
        else:
            del held[:at]
        self.connection.count_held(self)
        if self.over and self.request_done and self.ended:
            self.connection.forget(self)

    def flush(self) -> None:
        """Writes a head whose body did not come within the tick, so that an event stream's visitor sees it at once."""
        pending = self.pending
        if pending is not None and not self.over:
            self.pending = None
            self.connection.write(self, pending, False)

    def answer_error(self, error: EdgetunError, head: RequestHead | None) -> None:
        """Writes a problem page in place of a response that did not begin."""
        page, body = build_problem(error, head)
        self.over = False
        self.started = False
        self.mode = LENGTH
        if head is not None and head.method == b"HEAD":
            self.on_head(page, True)
        else:
            self.on_head(page, False)
            self.on_data(body, True)

    def _finish(self) -> None:
        """The response is complete and written."""
        connection = self.connection
        counters = connection.front.counters
        counters.responses[self.status // 100] += 1
        counters.http3_requests += 1
        self.over = True
        connection.answered += 1
        if self.mode == RAW and not self.request_done:
            return  # the visitor may go on
        if not self.request_done:
            self._drop_held()
            self._stop_request()
        self.request = CLOSED
        if not self.opening:
            connection.exchange_over(self)

    def _drop_held(self) -> None:
        if self.held is not None:
            self.held = None
            self.held_bytes = 0
            self.connection.count_held(self)

    def _break_off(self, why: str) -> None:
        """The answering side contradicts itself; the visitor must not take what it got for the whole."""
        error = ProtocolError(why)
        if self.opening:
            self.cancelled = error
        else:
            self.request.reset(error)
        if self.started and self.pending is None:
            self.connection.front.counters.responses_aborted += 1
            self._abandon(H3_INTERNAL_ERROR)
            return
        self.pending = None
        self.request = CLOSED
        self.mode = LENGTH
        self._stop_request()
        self.answer_error(UpstreamBroken(why), self.parsed.head if self.parsed is not None else None)

    def _abandon(self, code: int) -> None:
        """Ends both directions of the stream abruptly."""
        self.over = True
        self.pending = None
        self.request = CLOSED
        connection = self.connection
        connection.output.drop(self)
        connection.reset(self.sid, code)
        self._drop_held()
        if not self.request_done:
            self.request_done = True
            connection.stop(self.sid, code)
        if not self.opening:
            connection.exchange_over(self)

    def abandon_output(self) -> None:
        """Gives up what waits of a response that is complete on our side, and that nobody takes."""
        if self.queue is not None:
            self._abandon(H3_REQUEST_CANCELLED)
        self.unsent_seen = 0

    def give_up(self, error: EdgetunError, code: int) -> None:
        """A request that is wrong, too slow or not wanted: its exchange is cancelled and its stream reset."""
        request = self.request
        if self.opening:
            self.cancelled = error
        self._abandon(code)
        request.reset(error)

    def reject(self) -> None:
        """A request that comes after GOAWAY: nothing was done with it, it may be sent elsewhere (RFC 9114 §5.2)."""
        self._abandon(H3_REQUEST_REJECTED)

    def visitor_left(self, error: EdgetunError | None = None) -> None:
        """The visitor cancelled the request, or is gone: nobody waits for the response any more."""
        if self.over and self.mode != RAW:
            return
        request = self.request
        cause = error or Cancelled("the visitor cancelled the request")
        if self.opening:
            self.cancelled = cause
        self._abandon(H3_REQUEST_CANCELLED)
        request.reset(cause)

    def time_out(self, why: str) -> None:
        """The request does not arrive in time: 408, if the visitor can still be told."""
        self.connection.front.counters.requests_timed_out += 1
        error = SlowRequest(why)
        if self.started or self.over:
            self.give_up(error, H3_REQUEST_CANCELLED)
            return
        request, self.request = self.request, CLOSED
        self._refuse(error)
        request.reset(error)
