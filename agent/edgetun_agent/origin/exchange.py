"""One request on its way to an origin: the `RequestSink` that the requester holds.

Hot path: a request without a body is one small object with no more state than its answer needs. `Upload` adds what a body
or an upgrade takes. What comes of a body before a connection is there is held, at most `MAX_HELD_BYTES`; the requester
has been told to pause.
"""

from __future__ import annotations

from time import monotonic
from typing import ClassVar, Final, Protocol

from edgetun_agent.origin.connection import OriginConnection
from edgetun_core.errors import Cancelled, EdgetunError, LimitExceeded, ProtocolError
from edgetun_core.http.exchange import ResponseSink
from edgetun_core.http.h1 import LAST_CHUNK, encode_chunk, render_trailers
from edgetun_core.http.h1_render import BodyFraming
from edgetun_core.http.message import Fields, RequestHead

MAX_HELD_BYTES = 1024 * 1024
COPY_BELOW_BYTES = 16 * 1024
"""A chunk smaller than this is joined with its frame; a bigger one is written between the parts of it."""

REPEATABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""Idempotent methods (RFC 9110 §9.2.2): a request that may already have been seen may be sent again."""


class ExchangeOwner(Protocol):
    """What an exchange tells its client."""

    def exchange_over(self, exchange: OriginExchange, error: EdgetunError | None) -> None:
        """Counts and shows an exchange that ended; `error` when it was not answered whole."""

    def abandon(self, exchange: OriginExchange) -> None:
        """The requester left while the exchange waited for a connection."""


class OriginExchange:
    """A request without a body."""

    __slots__ = (
        "_owner",
        "bytes_received",
        "client",
        "conn",
        "head",
        "is_answered",
        "is_over",
        "is_paused",
        "is_sent",
        "may_repeat",
        "started",
        "status",
    )
    is_probe: ClassVar[bool] = False

    def __init__(self, owner: ExchangeOwner, head: RequestHead, client: ResponseSink) -> None:
        self._owner = owner
        self.head = head
        self.client = client
        self.conn: OriginConnection | None = None
        self.is_sent = True
        """Whether the request has been written whole."""
        self.is_answered = False
        """Whether the origin's side of an upgraded connection has ended."""
        self.is_over = False
        self.is_paused = False
        self.may_repeat = head.method in REPEATABLE
        self.status = 0
        self.bytes_received = 0
        self.started = monotonic()

    def attach(self, conn: OriginConnection, block: bytes) -> None:
        """Sends the request on a connection."""
        self.conn = conn
        conn.begin(self, block)
        if self.is_paused:
            conn.pause_reading()

    @property
    def framing(self) -> BodyFraming:
        """How the request's head announces its body."""
        return "none"

    def switched(self) -> None:
        """The origin accepted an upgrade. Only an `Upload` can be one."""

    def finished(self, error: EdgetunError | None) -> None:
        """Called by the connection when nothing more comes of it."""
        self.is_over = True
        self.conn = None
        self._owner.exchange_over(self, error)

    def refuse(self, error: EdgetunError) -> None:
        """Ends an exchange that has no connection."""
        self.finished(error)
        self.client.on_reset(error)

    # ---- RequestSink

    def send_data(self, data: bytes, end: bool) -> None:
        pass

    def send_trailers(self, fields: Fields) -> None:
        pass

    def reset(self, error: EdgetunError) -> None:
        """The visitor left: the origin sees its connection close."""
        if self.is_over:
            return
        conn = self.conn
        if conn is not None:
            conn.drop()
        else:
            self._owner.abandon(self)
        self.finished(error if isinstance(error, Cancelled) else Cancelled(str(error)))

    def pause_response(self) -> None:
        if not self.is_over and not self.is_paused:
            self.is_paused = True
            if self.conn is not None:
                self.conn.pause_reading()

    def resume_response(self) -> None:
        if not self.is_over and self.is_paused:
            self.is_paused = False
            if self.conn is not None:
                self.conn.resume_reading()


class ProbeExchange(OriginExchange):
    """A health check: neither counted nor shown as a request."""

    __slots__ = ()
    is_probe = True


# How a body is written.
LENGTH, CHUNKS, UPGRADE, RAW = range(4)


class Upload(OriginExchange):
    """A request with a body, or one that asks for an upgrade (whose bytes are held until the origin agrees)."""

    __slots__ = ("_ends_with", "_framing", "_held", "_held_bytes", "_left", "bytes_sent")

    def __init__(self, owner: ExchangeOwner, head: RequestHead, client: ResponseSink) -> None:
        super().__init__(owner, head, client)
        self._left = 0
        if head.protocol is not None:
            self._framing = UPGRADE
        else:
            self.may_repeat = False
            self.is_sent = False
            length = head.get(b"content-length")
            if length is None:
                self._framing = CHUNKS
            else:
                self._framing = LENGTH
                self._left = int(length)
        self.bytes_sent = 0
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._ends_with: Fields | None = None

    @property
    def framing(self) -> BodyFraming:
        return "chunked" if self._framing == CHUNKS else "length" if self._framing == LENGTH else "none"

    def attach(self, conn: OriginConnection, block: bytes) -> None:
        super().attach(conn, block)
        if self._framing != UPGRADE:
            self._flush(conn)

    def switched(self) -> None:
        self._framing = RAW
        self.is_sent = False
        self.may_repeat = False
        if self.conn is not None:
            self._flush(self.conn)

    def _flush(self, conn: OriginConnection) -> None:
        held, self._held = self._held, []
        for data in held:
            self._write(conn, data, False)
            if self.is_over:
                return
        if self._ends_with is not None:
            self._end(conn, self._ends_with)
        elif not conn.is_full:
            self.client.resume_request()

    def send_data(self, data: bytes, end: bool) -> None:
        conn = self.conn
        if self.is_over or self._ends_with is not None:
            return
        if conn is None or self._framing == UPGRADE:
            self._hold(data, () if end else None)
            return
        self._write(conn, data, end)

    def send_trailers(self, fields: Fields) -> None:
        conn = self.conn
        if self.is_over or self._ends_with is not None:
            return
        if conn is None or self._framing == UPGRADE:
            self._hold(b"", fields)
        else:
            self._ends_with = fields
            self._end(conn, fields)

    def _hold(self, data: bytes, ends_with: Fields | None) -> None:
        self._ends_with = ends_with
        if not data:
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES:
            conn = self.conn
            error = LimitExceeded("more of the request came than may wait for the origin")
            if conn is not None:
                conn.fail(error)
            else:
                self._owner.abandon(self)
                self.refuse(error)

    def _write(self, conn: OriginConnection, data: bytes, end: bool) -> None:
        transport = conn.transport
        size = len(data)
        self.bytes_sent += size
        framing = self._framing
        if framing == LENGTH:
            self._left -= size
            if self._left < 0:
                conn.fail(ProtocolError("the request's body is longer than its content-length"))
                return
            if size:
                transport.write(data)
        elif framing == RAW:
            if size:
                transport.write(data)
        elif size:
            if size < COPY_BELOW_BYTES:
                chunk = encode_chunk(data)
                if end:
                    # One write for a small body with its end.
                    transport.write(chunk + LAST_CHUNK)
                    self._ends_with = ()
                    self._sent(conn)
                    return
                transport.write(chunk)
            else:
                transport.write(b"%x\r\n" % size)
                transport.write(data)
                transport.write(b"\r\n")
        if end:
            self._ends_with = ()
            self._end(conn, ())

    def _end(self, conn: OriginConnection, trailers: Fields) -> None:
        framing = self._framing
        if framing == LENGTH:
            if self._left > 0:
                conn.fail(ProtocolError("the request's body is shorter than its content-length"))
                return
        elif framing == CHUNKS:
            conn.transport.write(render_trailers(trailers) if trailers else LAST_CHUNK)
        self._sent(conn)

    def _sent(self, conn: OriginConnection) -> None:
        """The request is written whole; from now on the origin owes an answer."""
        self.is_sent = True
        conn.since = monotonic()
        if self._framing == RAW:
            if self.is_answered:
                conn.finish_raw()
            else:
                conn.end_raw()
