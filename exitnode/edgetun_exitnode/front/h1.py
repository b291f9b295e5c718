"""A visitor's HTTP/1.1 connection: reads requests, one at a time, and hands them to the pipeline (RFC 9112).

Hot path. A request whose bytes were seen before, and came alone, is one dictionary lookup away from `Handler.open`. There is no
timer per request or connection: the front sweeps over its connections once a second (deadlines.py).

Bounds: an unfinished head (`H1Limits`), pipelined bytes (64 KiB, then reading pauses), unsent response bytes (256 KiB, then the
answering side is paused).
"""

from __future__ import annotations

import asyncio
from typing import Final

from edgetun_core.errors import Cancelled, EdgetunError
from edgetun_core.http.exchange import CLOSED
from edgetun_core.http.h1 import H1Error, ParsedRequest, has_bare_line_end, parse_request
from edgetun_exitnode.front.connection import BY_HANDLER, BY_PIPELINE, BY_WRITING, VisitorConnection
from edgetun_exitnode.front.deadlines import check_deadline, evictability
from edgetun_exitnode.front.h1_exchange import BY_CLOSE, NO_BODY, RAW, H1Exchange
from edgetun_exitnode.front.pages import build_problem

_H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n"
"""How a client begins who knows that HTTP/2 is spoken here (RFC 9113 §3.3)."""
_PIPELINED_AT_ONCE: Final = 64
"""Requests answered in one go before the loop gets a turn."""


class H1Connection(VisitorConnection):
    """One connection that speaks HTTP/1.1."""

    __slots__ = ()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.front.connected(self)

    def data_received(self, data: bytes) -> None:
        front = self.front
        front.counters.bytes_in += len(data)
        if self.exchange is None and self.held is None and not self.write_paused:
            parsed = front.known.get(data)
            if parsed is not None and parsed.is_simple and not self.closing:
                self._start(parsed)
                return
        self._receive(data)

    def eof_received(self) -> bool:
        """The visitor sends no more. Except after an upgrade that is how leaving looks, and nobody can tell it from leaving."""
        exchange = self.exchange
        if exchange is None or exchange.over:
            return False
        if exchange.mode >= RAW:
            if not exchange.request_done:
                exchange.request_done = True
                exchange.request.send_data(b"", True)
            if exchange.mode == RAW and not exchange.over and self.front.can_half_close:
                return True
            exchange.over = exchange.over or exchange.mode > RAW
        exchange.visitor_left()
        self.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self.exchange
        self.exchange = None
        self.spare = None
        self.approved = None
        self.drop_held()
        self.closing = self.closing or self.front.now or 1.0
        self.front.disconnected(self)
        if exchange is not None:
            exchange.visitor_left()
            exchange.request = CLOSED  # also where it was over before: no cycle is left for the collector

    def pause_writing(self) -> None:
        self.write_paused = True
        self.active = self.front.now
        self.stalled_bytes = self.transport.get_write_buffer_size()
        exchange = self.exchange
        if exchange is not None and not exchange.over and not exchange.opening:
            exchange.request.pause_response()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.active = self.front.now
        exchange = self.exchange
        if exchange is None:
            if self.held is not None:
                self.front.pump_later(self)
        elif not exchange.over and not exchange.opening:
            exchange.request.resume_response()
        self.resume_reading(BY_WRITING)

    # Requests.

    def _start(self, parsed: ParsedRequest) -> None:
        """Opens an exchange. What the handler answers within `open` is written when this returns."""
        front = self.front
        if front.checks_host and parsed is not self.approved:
            if not front.approves(self.peer, parsed.head.authority):
                message = "this connection was made for another host"
                self.refuse(H1Error(message, status=421, remedy="connect anew to the host that is meant"), parsed.head)
                return
            self.approved = parsed
        exchange = self.spare
        if exchange is None:
            exchange = self.spare = H1Exchange(self)
        exchange.begin(parsed)
        exchange.opening = True
        self.exchange = exchange
        self.active = front.now
        request = front.context.handler.open(parsed.head, self.peer, parsed.is_simple, exchange)
        exchange.opening = False
        if exchange.over:
            if exchange.cancelled is not None:
                self.spare = None
                request.reset(exchange.cancelled)
            elif self.exchange is not None:
                self.spare = None
        else:
            self.spare = None
            exchange.after_open(request)

    def _receive(self, data: bytes) -> None:
        """Everything but a lone request that is known."""
        if self.closing:
            return
        exchange = self.exchange
        if exchange is None:
            self._read_requests(data)
        elif exchange.mode >= RAW:
            if self.held is not None:
                self.hold(data)
            else:
                exchange.request.send_data(data, False)
        elif exchange.request_done:
            self.hold(data)
        else:
            rest = self._read_body(exchange, data)
            if rest and not self.closing:
                self.hold(rest)
                if self.exchange is None:
                    self.front.pump_later(self)

    def pump(self) -> None:
        """Goes on with what is held, after an exchange ended or writing resumed or an upgrade was accepted."""
        held = self.held
        if held is None or self.closing:
            return
        exchange = self.exchange
        if exchange is None:
            if self.write_paused:
                return
            self.drop_held()
            self.resume_reading(BY_PIPELINE)
            self._read_requests(bytes(held))
        elif exchange.mode >= RAW:
            self.drop_held()
            self.resume_reading(BY_PIPELINE)
            exchange.request.send_data(bytes(held), False)

    def _read_requests(self, data: bytes) -> None:
        """Reads heads and bodies as long as they are whole and each request is answered at once."""
        if self.held is not None:
            self.hold(data)
            held: bytearray | None = self.held
            if held is None:
                return
            if self.write_paused:
                self.pause_reading(BY_WRITING)
                return
            if held.find(b"\r\n\r\n", max(self.scanned - 3, 0)) < 0:
                self._check_unfinished(held)
                return
            data = bytes(held)
            self.drop_held()
        front = self.front
        at = 0
        size = len(data)
        turns = 0
        while at < size and not self.closing:
            if self.exchange is not None:
                self.hold(data[at:])
                return
            if self.write_paused or turns >= _PIPELINED_AT_ONCE:
                self.hold(data[at:])
                if self.write_paused:
                    self.pause_reading(BY_WRITING)
                else:
                    front.pump_later(self)
                return
            if data[at] == 0x0D and data.startswith(b"\r\n", at):
                at += 2  # an empty line before a request is forgiven (RFC 9112 §2.2)
                continue
            turns += 1
            end = data.find(b"\r\n\r\n", at)
            if end < 0:
                self.hold(data[at:])
                if self.held is not None:
                    self._check_unfinished(self.held)
                return
            block = data[at : end + 4]
            at = end + 4
            parsed = front.known.get(block)
            if parsed is None:
                try:
                    parsed = parse_request(block, front.scheme, front.h1_limits)
                except H1Error as error:
                    if block == _H2_PREFACE and front.takes_h2_unasked:
                        front.become_h2(self, data[at - len(block) :])
                        return
                    front.counters.requests_malformed += 1
                    self.refuse(error, None, block)
                    return
                front.known.remember(block, parsed)
            self._start(parsed)
            exchange = self._exchange_in_flight()
            if exchange is not None and not exchange.request_done and exchange.mode < RAW and at < size:
                rest = self._read_body(exchange, data[at:])
                at = size - len(rest)

    def _exchange_in_flight(self) -> H1Exchange | None:
        return None if self.closing else self.exchange

    def _check_unfinished(self, held: bytearray) -> None:
        """Refuses a head that is already too long, or can no longer become one."""
        limits = self.front.h1_limits
        size = len(held)
        remedy = ""
        status = 400
        if size > limits.max_request_line_bytes and held.find(b"\n", 0, limits.max_request_line_bytes + 2) < 0:
            message, status = f"the request line is longer than {limits.max_request_line_bytes} bytes", 414
            remedy = "shorten the URL"
        elif size > limits.max_head_bytes:
            message, status = "the header section is too large", 431
            remedy = "send fewer or shorter header fields"
        elif has_bare_line_end(held, max(self.scanned - 1, 0)):
            message = "a line ends in LF without CR (RFC 9112 §2.2)"
        elif held[0] == 0x16:
            message, remedy = "this looks like TLS", "use https:// with the port for it, or http:// here"
        else:
            self.scanned = size
            return
        self.front.counters.requests_malformed += 1
        self.refuse(H1Error(message, status=status, remedy=remedy), None, bytes(held))

    def _read_body(self, exchange: H1Exchange, data: bytes) -> bytes:
        """Passes on a piece of the request's body; returns what came after the body's end."""
        self.active = self.front.now
        exchange.continued = True  # a visitor that did not wait for 100 needs none any more
        decoder = exchange.decoder
        if decoder is None:
            left = exchange.body_left
            if len(data) < left:
                exchange.body_left = left - len(data)
                self._pass_on(exchange, data, False)
                return b""
            exchange.body_left = 0
            exchange.request_done = True
            self._pass_on(exchange, data if len(data) == left else data[:left], True)
            rest = data[left:]
        else:
            try:
                pieces = decoder.feed(data)
            except H1Error as error:
                self.front.counters.requests_malformed += 1
                self._fail_request(exchange, error)
                return b""
            if not decoder.done:
                for piece in pieces:
                    self._pass_on(exchange, piece, False)
                return b""
            exchange.request_done = True
            last = b"" if decoder.trailers or not pieces else pieces.pop()
            for piece in pieces:
                self._pass_on(exchange, piece, False)
            if not decoder.trailers:
                self._pass_on(exchange, last, True)
            elif not exchange.over:
                exchange.request.send_trailers(decoder.trailers)
            rest = decoder.rest
        if exchange.over and self.exchange is exchange and not self.closing:
            # The response was over before; with the body read away the connection is free for the next request.
            self.exchange = None
        return rest

    def _pass_on(self, exchange: H1Exchange, data: bytes, end: bool) -> None:
        if not exchange.over:
            exchange.request.send_data(data, end)
            return
        exchange.drained += len(data)
        if exchange.drained > self.front.limits.drained_body_bytes and not self.closing:
            self.linger()

    def _fail_request(self, exchange: H1Exchange, error: H1Error) -> None:
        """The rest of the request cannot be read: whatever stands behind is told, and the visitor, if it is not too late."""
        told = exchange.over or (exchange.started and exchange.pending is None)
        over = exchange.over
        exchange.visitor_left(error)
        if not told:
            self.refuse(error, exchange.parsed.head)
        elif over:
            self.linger()
        else:
            self.front.counters.responses_aborted += 1
            self.abort()

    def time_out(self, error: H1Error) -> None:
        """The request does not arrive in time: 408, if the visitor can still be told."""
        self.front.counters.requests_timed_out += 1
        if self.exchange is not None:
            self._fail_request(self.exchange, error)
        else:
            self.refuse(error, None, bytes(self.held or b""))

    # What the front asks of every version's connections.

    def check_deadline(self, now: float) -> None:
        check_deadline(self, now)

    def evictability(self, now: float) -> float:
        return evictability(self, now)

    # The end of an exchange, as it tells.

    def pause_body(self) -> None:
        """The handler wants no more of the request's body for now."""
        self.pause_reading(BY_HANDLER)

    def resume_body(self) -> None:
        """The handler takes more again."""
        self.active = self.front.now
        self.resume_reading(BY_HANDLER)

    def after_exchange(self) -> None:
        """An exchange ended outside `open`, and the connection is free again."""
        self.resume_reading(BY_HANDLER)
        if self.held is not None:
            self.front.pump_later(self)
        elif self.front.draining:
            self.close()

    def end_early(self, exchange: H1Exchange) -> None:
        """The response is over, and either the connection is to close or the request's body is still under way."""
        self.resume_body()
        if exchange.request_done and (exchange.mode == BY_CLOSE or not exchange.parsed.keep_alive):
            self.close()
        elif exchange.closes or exchange.body_left > self.front.limits.drained_body_bytes:
            self.linger()
        # Otherwise the body is read and dropped, and the connection used again.

    def end_raw_output(self, exchange: H1Exchange) -> None:
        """The origin's side of an upgraded connection said its last."""
        if exchange.request_done:
            exchange.over = True
            self.close()
        elif self.front.can_half_close:
            self.transport.write_eof()
        else:
            exchange.over = True
            if not exchange.opening:
                exchange.request.reset(Cancelled("the upgraded connection was closed by the other side"))
            self.close()

    def answer_error(self, exchange: H1Exchange, error: EdgetunError) -> None:
        """Writes a problem page in place of a response that did not begin."""
        head, body = build_problem(error, exchange.parsed.head)
        exchange.over = False
        exchange.started = False
        exchange.request = CLOSED
        exchange.mode = NO_BODY
        if exchange.parsed.is_head:
            exchange.on_head(head, True)
        else:
            exchange.on_head(head, False)
            exchange.on_data(body, True)
