"""One HTTP/1.1 connection to an origin: reads responses (RFC 9112), pushes them at the exchange it serves.

Hot path: about 3 us of Python per small response. A head block seen before is one dictionary lookup; no task, no future,
no timer per request (the client sweeps). Bounds: a response head is at most `MAX_HEAD_BYTES`, interim heads `MAX_INTERIM`
per response, what waits to be written is held near `WRITE_HIGH_BYTES` by pausing the visitor.
"""

from __future__ import annotations

import asyncio
import re
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, cast

from edgetun_core.errors import EdgetunError, UpstreamBroken, UpstreamTimeout
from edgetun_core.http.h1 import CHUNKED, UNTIL_CLOSE, ChunkedDecoder, H1Error, has_bare_line_end, parse_response
from edgetun_core.http.head_memo import HeadMemo
from edgetun_core.http.message import ResponseHead

if TYPE_CHECKING:
    from edgetun_agent.origin.exchange import OriginExchange

MAX_HEAD_BYTES = 64 * 1024
MAX_INTERIM = 32
WRITE_HIGH_BYTES = 256 * 1024
WRITE_LOW_BYTES = 64 * 1024
KEEP_IDLE_S = 55.0
"""How long an unused connection is kept; less when the origin says so in `Keep-Alive: timeout=`."""
LINGER_S = 10.0
"""How long an upgraded connection that cannot be half-closed (TLS) outlives the visitor's end of stream in silence."""

# What a connection does with the bytes that come.
IDLE, HEAD, LENGTH, CHUNKS, TO_CLOSE, RAW, CLOSED = range(7)

_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?im)^keep-alive:[^\r\n]*?timeout\s*=\s*([0-9]{1,6})")


class PreparedHead:
    """A response head with what the client needs to know of it, worked out once per distinct block."""

    __slots__ = ("body_length", "head", "is_stream", "keep_s", "upgrade")

    def __init__(self, block: bytes, method: bytes) -> None:
        parsed = parse_response(block, method)
        self.head: ResponseHead = parsed.head
        self.body_length = parsed.body_length
        self.upgrade = parsed.upgrade
        content_type = parsed.head.get(b"content-type")
        self.is_stream = content_type is not None and content_type[:17].lower() == b"text/event-stream"
        self.keep_s = 0.0
        if parsed.keep_alive:
            said = _KEEP_ALIVE_TIMEOUT.search(block)
            # A second of margin: the origin's clock started before ours.
            self.keep_s = KEEP_IDLE_S if said is None else min(KEEP_IDLE_S, max(0.0, int(said[1]) - 1.0))


class ConnectionOwner(Protocol):
    """What a connection tells its client."""

    url: str
    heads: HeadMemo[bytes, PreparedHead]
    """Heads of answers to anything but HEAD, by block."""
    heads_of_head: HeadMemo[bytes, PreparedHead]

    def connection_free(self, conn: OriginConnection, keep_s: float) -> None:
        """The response ended and the connection can serve another request within `keep_s`."""

    def connection_streams(self, conn: OriginConnection) -> None:
        """The response became an endless stream."""

    def connection_gone(self, conn: OriginConnection) -> None:
        """The connection is closed or closing. May be said twice."""

    def repeat(self, exchange: OriginExchange) -> None:
        """A kept connection was dead before it answered; the exchange may be sent again on a new one."""


class OriginConnection(asyncio.Protocol):
    """Serves one exchange after the other. `served` counts them."""

    __slots__ = (
        "_decoder",
        "_held",
        "_interims",
        "_is_stream",
        "_keep_s",
        "_left",
        "_mode",
        "_owner",
        "_reading_paused",
        "_unwritten",
        "_writing_paused",
        "exchange",
        "idle_since",
        "idle_until",
        "served",
        "since",
        "transport",
    )

    def __init__(self, owner: ConnectionOwner) -> None:
        self._owner = owner
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.exchange: OriginExchange | None = None
        self.served = 0
        self.since = 0.0
        """When the origin last did, or was last owed, something."""
        self.idle_since = 0.0
        self.idle_until = 0.0
        self._mode = IDLE
        self._held = b""
        self._left = 0
        self._keep_s = 0.0
        self._decoder: ChunkedDecoder | None = None
        self._interims = 0
        self._is_stream = False
        self._reading_paused = False
        self._writing_paused = False
        self._unwritten = 0
        """What waited to be written when it was last looked at; of use while writing is paused."""

    # ---- the exchange's side

    def begin(self, exchange: OriginExchange, block: bytes) -> None:
        """Sends a request head; what comes back is the exchange's."""
        self.exchange = exchange
        self.served += 1
        self.since = monotonic()
        self._mode = HEAD
        self.transport.write(block)

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that the visitor must pause."""
        return self._writing_paused

    @property
    def can_half_close(self) -> bool:
        """Whether the end of what we send can be told while the origin goes on sending."""
        return self.transport.can_write_eof()

    def end_raw(self) -> None:
        """The visitor's side of an upgraded connection ended."""
        self.since = monotonic()
        if self.can_half_close and not self.transport.is_closing():
            self.transport.write_eof()

    def finish_raw(self) -> None:
        """Both sides of an upgraded connection have ended."""
        if self.exchange is not None:
            self._keep_s = 0.0
            self._finish(self.exchange)

    def pause_reading(self) -> None:
        """The visitor is slow: stop taking the origin's bytes, so that TCP tells the origin."""
        self._reading_paused = True
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Undoes `pause_reading`."""
        self._reading_paused = False
        self.since = monotonic()
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def drop(self) -> None:
        """Closes at once; the exchange, if any, hears nothing more from here."""
        self.exchange = None
        self._mode = CLOSED
        self._owner.connection_gone(self)
        self.transport.abort()

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)

    def data_received(self, data: bytes) -> None:
        """Hot path."""
        mode = self._mode
        if mode == HEAD:
            self._read_head(data)
            return
        exchange = self.exchange
        if exchange is None:
            if mode != CLOSED:
                self.drop()  # bytes that nobody asked for: the connection is out of step
            return
        self.since = monotonic()
        size = len(data)
        if mode == LENGTH:
            left = self._left
            exchange.bytes_received += size
            if size < left:
                self._left = left - size
                exchange.client.on_data(data, False)
                return
            if size > left:
                data = data[:left]
                self._keep_s = 0.0
            client = exchange.client
            self._finish(exchange)
            client.on_data(data, True)
        elif mode == CHUNKS:
            self._read_chunks(exchange, data)
        else:
            exchange.bytes_received += size
            exchange.client.on_data(data, False)

    def _read_head(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        while True:
            exchange = self.exchange
            if exchange is None:
                return
            at = data.find(b"\r\n\r\n") + 4
            if at == 3 or at > MAX_HEAD_BYTES:
                self._hold_head(data)
                return
            size = len(data)
            block = data if at == size else data[:at]
            memo = self._owner.heads if exchange.head.method != b"HEAD" else self._owner.heads_of_head
            prepared = memo.get(block)
            if prepared is None:
                try:
                    prepared = PreparedHead(block, exchange.head.method)
                except H1Error as error:
                    self._broken(f"answered with something that is not valid HTTP/1.1: {error}")
                    return
                memo.remember(block, prepared)
            status = prepared.head.status
            if status >= 200:
                break
            if status == 101:
                self._switch(exchange, prepared, data[at:])
                return
            self._interims += 1
            if self._interims > MAX_INTERIM:
                self._broken(f"sent more than {MAX_INTERIM} interim responses")
                return
            self.since = monotonic()
            exchange.client.on_interim(prepared.head)
            if at == size:
                return
            data = data[at:]

        self._interims = 0
        length = prepared.body_length
        client = exchange.client
        exchange.status = status
        self._keep_s = prepared.keep_s
        if length == 0:
            if size > at:
                self._keep_s = 0.0
            self._finish(exchange)
            client.on_head(prepared.head, True)
            return
        if length > 0 and size - at == length:
            # The common small response: head and body in one read.
            client.on_head(prepared.head, False)
            if self.exchange is exchange:
                exchange.bytes_received = length
                self._finish(exchange)
                client.on_data(data[at:], True)
            return
        self.since = monotonic()
        if length > 0:
            self._mode, self._left = LENGTH, length
        elif length == CHUNKED:
            self._mode, self._decoder = CHUNKS, ChunkedDecoder()
        else:
            assert length == UNTIL_CLOSE
            self._mode = TO_CLOSE
        self._is_stream = prepared.is_stream
        if prepared.is_stream:
            self._keep_s = 0.0
            self._owner.connection_streams(self)
        client.on_head(prepared.head, False)
        if size > at and self.exchange is exchange:
            self.data_received(data[at:])

    def _hold_head(self, data: bytes) -> None:
        """Keeps the beginning of a head, unless it can no longer become one."""
        if len(data) >= MAX_HEAD_BYTES:
            self._broken(f"sent a response head of more than {MAX_HEAD_BYTES // 1024} KiB")
        elif data[:7] != b"HTTP/1."[: len(data)]:
            if data[:2] == b"\x15\x03":
                self._broken("speaks TLS", "write https:// in the origin's URL")
            elif data[3:9] == b"\x04\0\0\0\0\0":  # SETTINGS on stream 0 (RFC 9113 §3.4)
                self._broken("speaks HTTP/2 alone", "set the origin's protocol to h2c (edgetun http h2c://HOST:PORT)")
            else:
                self._broken(f"answered with something that is not HTTP/1.1: it begins with {data[:24]!r}")
        elif has_bare_line_end(data):
            self._broken("answered with something that is not valid HTTP/1.1: a line ends in LF without CR")
        else:
            self._held = data

    def _switch(self, exchange: OriginExchange, prepared: PreparedHead, rest: bytes) -> None:
        """101: from here on the bytes are the upgraded protocol's (RFC 9110 §7.8)."""
        if exchange.head.protocol is None:
            self._broken("switched protocols (101) without having been asked to")
            return
        self._mode = RAW
        self._is_stream = True
        self.since = monotonic()
        exchange.status = 101
        self._owner.connection_streams(self)
        exchange.client.on_head(prepared.head, False)
        if self.exchange is exchange:
            exchange.switched()
        if rest and self.exchange is exchange:
            exchange.bytes_received += len(rest)
            exchange.client.on_data(rest, False)

    def _read_chunks(self, exchange: OriginExchange, data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        try:
            pieces = decoder.feed(data)
        except H1Error as error:
            self._broken(f"broke the chunked coding: {error}")
            return
        client = exchange.client
        is_done = decoder.done
        last = None
        if is_done:
            self._decoder = None
            if decoder.rest:
                self._keep_s = 0.0
            if not decoder.trailers:
                last = pieces.pop() if pieces else b""
        for piece in pieces:
            exchange.bytes_received += len(piece)
            client.on_data(piece, False)
            if self.exchange is not exchange:
                return
        if not is_done:
            return
        if last is not None:
            exchange.bytes_received += len(last)
        self._finish(exchange)
        if last is not None:
            client.on_data(last, True)
        else:
            client.on_trailers(decoder.trailers)

    def _finish(self, exchange: OriginExchange) -> None:
        """The response is whole: the exchange is over, and the connection free or closed. The caller then says the end."""
        self.exchange = None
        exchange.finished(None)
        if self._reading_paused:
            self.resume_reading()
        if self._keep_s > 0 and exchange.is_sent and not self._writing_paused and not self.transport.is_closing():
            self._mode = IDLE
            self._owner.connection_free(self, self._keep_s)
        else:
            # A request that is not wholly sent cannot be taken back either (RFC 9112 §9.3).
            self._mode = CLOSED
            self._owner.connection_gone(self)
            self.transport.close()

    def _broken(self, what: str, remedy: str = "look at the origin's log") -> None:
        self.fail(UpstreamBroken(f"{self._owner.url} {what}", remedy=remedy))

    def fail(self, error: EdgetunError) -> None:
        """Ends the exchange with an error and the connection with it."""
        exchange = self.exchange
        self.drop()
        if exchange is not None:
            exchange.finished(error)
            exchange.client.on_reset(error)

    def eof_received(self) -> bool | None:
        exchange = self.exchange
        if exchange is None:
            self._mode = CLOSED
            self._owner.connection_gone(self)
            return False
        if self._mode == TO_CLOSE:
            client = exchange.client
            self._keep_s = 0.0
            self._finish(exchange)
            client.on_data(b"", True)
        elif self._mode == RAW:
            return self._end_of_raw(exchange)
        return False

    def _end_of_raw(self, exchange: OriginExchange) -> bool:
        """The origin's side of an upgraded connection ended; the visitor's may go on where TCP can do that."""
        if exchange.is_sent or not self.can_half_close:
            client = exchange.client
            self._keep_s = 0.0
            self._finish(exchange)
            client.on_data(b"", True)
            return False
        if not exchange.is_answered:
            exchange.is_answered = True
            self.since = monotonic()
            exchange.client.on_data(b"", True)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        mode, self._mode = self._mode, CLOSED
        self._owner.connection_gone(self)
        exchange = self.exchange
        if exchange is None:
            return
        self.exchange = None
        if mode == HEAD and not self._held and not self._interims and self.served > 1 and exchange.may_repeat:
            self._owner.repeat(exchange)  # on a new connection, so this cannot happen to it twice
            return
        if exchange.is_answered:
            exchange.finished(None)
            return
        if exc is None and mode in (RAW, TO_CLOSE):
            exchange.finished(None)
            exchange.client.on_data(b"", True)
            return
        url = self._owner.url
        how = "closed the connection" if exc is None else f"broke the connection off ({_reason(exc)})"
        if mode == HEAD:
            message = f"{url} {how} before it answered"
        elif mode == LENGTH:
            received = exchange.bytes_received
            message = f"{url} {how} after {received} of {received + self._left} bytes of its answer"
        else:
            message = f"{url} {how} in the middle of its answer"
        error = UpstreamBroken(message, remedy="look at the origin's log")
        exchange.finished(error)
        exchange.client.on_reset(error)

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._unwritten = self.transport.get_write_buffer_size()
        self.since = monotonic()
        if self.exchange is not None:
            self.exchange.client.pause_request()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self.since = monotonic()
        if self.exchange is not None:
            self.exchange.client.resume_request()

    # ---- time

    def sweep(self, now: float, response_timeout_s: float, idle_timeout_s: float) -> None:
        """Looks whether the origin let a deadline pass; called by the client every now and then."""
        mode = self._mode
        if mode == IDLE:
            if 0 < self.idle_until <= now and self.exchange is None:
                self.drop()
            return
        exchange = self.exchange
        if exchange is None or self._reading_paused:
            return
        if self._writing_paused:
            unwritten = self.transport.get_write_buffer_size()
            if unwritten < self._unwritten:  # it takes the body, however slowly
                self.since = now
            self._unwritten = unwritten
        silent_s = now - self.since
        url = self._owner.url
        if self._writing_paused:
            if silent_s > idle_timeout_s:
                self.fail(UpstreamTimeout(f"{url} took nothing of the request's body for {idle_timeout_s:g} s"))
        elif mode == HEAD:
            if exchange.is_sent and silent_s > response_timeout_s:
                self.fail(
                    UpstreamTimeout(
                        f"{url} did not answer within {response_timeout_s:g} s",
                        remedy="see what the server is busy with, or raise the origin's response timeout",
                    )
                )
        elif mode == RAW:
            if exchange.is_sent and silent_s > (
                idle_timeout_s if self.can_half_close else min(LINGER_S, idle_timeout_s)
            ):
                self.fail(UpstreamTimeout(f"{url} fell silent after the visitor's side had ended"))
        elif exchange.is_sent and not self._is_stream and silent_s > idle_timeout_s:
            # Before all is sent it may be waiting for the visitor.
            self.fail(
                UpstreamTimeout(
                    f"{url} fell silent for {idle_timeout_s:g} s in the middle of its answer",
                    remedy="see what the server is busy with, or raise the origin's idle timeout",
                )
            )


_LONGEST_REASON: Final = 120


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).lower()[:_LONGEST_REASON]
