"""One exchange of a visitor's HTTP/1.1 connection: takes the response and writes it (RFC 9112 §6, §7).

Hot path: for an answer given within `open`, head and body leave in one write and the object is used again for the
connection's next request. An answer that comes later gets an object of its own, so a late call of an old exchange can never
reach a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Cancelled, EdgetunError, ProtocolError, UpstreamBroken
from edgetun_core.http.exchange import CLOSED, RequestSink
from edgetun_core.http.h1 import (
    LAST_CHUNK,
    ChunkedDecoder,
    ParsedRequest,
    PreparedResponse,
    encode_chunk,
    prepare_response,
    render_response,
    render_trailers,
)
from edgetun_core.http.message import Fields, ResponseHead
from edgetun_exitnode.front.alternatives import alt_svc_line

if TYPE_CHECKING:
    from edgetun_exitnode.front.h1 import H1Connection

# How the body is written. RAW is an accepted upgrade.
LENGTH: Final = 0
BY_CHUNKS: Final = 1
BY_CLOSE: Final = 2
NO_BODY: Final = 3
RAW: Final = 4
RAW_ENDED: Final = 5
"""An upgrade whose origin said its last; the visitor may go on."""

_JOIN_BYTES: Final = 64 * 1024
"""A head is joined with a first piece up to this size; copying a bigger one costs more than a second write."""

_CLOSES: Final = 2


class H1Exchange:
    """The ResponseSink of one request, and what the connection knows of that request."""

    __slots__ = (
        "body_left",
        "cancelled",
        "closes",
        "connection",
        "continued",
        "decoder",
        "drained",
        "left",
        "mode",
        "opening",
        "over",
        "parsed",
        "pending",
        "request",
        "request_done",
        "started",
        "status",
    )

    def __init__(self, connection: H1Connection) -> None:
        self.connection = connection
        self.opening = False
        self.cancelled: EdgetunError | None = None
        self.continued = False
        self.decoder: ChunkedDecoder | None = None
        self.body_left = 0
        self.drained = 0
        self.left = 0
        self.mode = LENGTH
        self.status = 0
        self.closes = False

    def begin(self, parsed: ParsedRequest) -> None:
        """Makes the object ready for a request, whether new or used before."""
        self.parsed = parsed
        self.over = False
        self.started = False
        self.pending: bytes | None = None
        self.request: RequestSink = CLOSED
        self.request_done = True
        if not parsed.is_simple:
            self._begin_body(parsed)

    def _begin_body(self, parsed: ParsedRequest) -> None:
        self.mode = LENGTH
        self.continued = not parsed.expect_continue
        self.drained = 0
        self.decoder = None
        self.body_left = 0
        if parsed.body_length != 0:
            self.request_done = False
            if parsed.body_length < 0:
                self.decoder = ChunkedDecoder()
            else:
                self.body_left = parsed.body_length

    # The response, as the answering side calls it.

    def on_interim(self, head: ResponseHead) -> None:
        if self.over or self.started or self.parsed.http_minor == 0:
            return  # RFC 9110 §15.2: never to HTTP/1.0
        if head.status == 100:
            if self.continued:
                return
            self.continued = True
        if 100 <= head.status < 200 and head.status != 101:
            self.connection.write(render_response(head, chunked=False, keep_alive=True, http_minor=1))

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if self.over or self.started:
            return
        connection = self.connection
        front = connection.front
        prepared = head.h1
        if prepared is None:
            prepared = prepare_response(head)
        assert type(prepared) is PreparedResponse
        index = self.parsed.variant
        if connection.closing or front.draining or not self.request_done:
            index = self._decide_to_close(index)
        length = prepared.content_length
        if length >= 0 and not prepared.without_body and not self.parsed.is_head:
            if end and length:
                self._break_off("the response ended before its content-length")
                return
            self.mode = LENGTH
            self.left = length
        else:
            chosen = self._choose_framing(head, prepared, index, end)
            if chosen < 0:
                return
            index = chosen
        self.started = True
        self.status = head.status
        self.closes = index & _CLOSES != 0
        rendered = prepared.variants[index]
        if rendered is None:
            rendered = prepared.variant(index)
        if not prepared.has_date:
            rendered += front.date_line
        if front.advertises_http3 and not prepared.has_alt_svc:
            rendered = rendered[:-2] + alt_svc_line(self.parsed.head.authority)
        if end:
            self.pending = None
            connection.write(rendered)
            self._finish()
            return
        self.pending = rendered
        if not self.opening:
            front.flush_later(self)
            if self.parsed.head.protocol is not None:
                self._settle_upgrade()

    def _decide_to_close(self, index: int) -> int:
        """Whether this is to be the connection's last response, for a reason other than the request's own wish."""
        if self.connection.closing or self.connection.front.draining:
            return index | _CLOSES
        # A final answer in place of 100: whether the body will follow cannot be known (RFC 9110 §10.1.1).
        if not self.continued:
            return index | _CLOSES
        return index

    def _choose_framing(self, head: ResponseHead, prepared: PreparedResponse, index: int, end: bool) -> int:
        """The rarer framings; returns the variant to render, or -1 when the head was dealt with here."""
        if head.status == 101:
            self._accept_upgrade(head, end)
            return -1
        if head.status < 200:
            self._break_off("a final response had an interim status")
            return -1
        if prepared.without_body or self.parsed.is_head:
            self.mode = NO_BODY
            return index
        if end:
            self.mode = NO_BODY
            return index | 8
        if self.parsed.http_minor == 0:
            self.mode = BY_CLOSE
            return index | _CLOSES
        self.mode = BY_CHUNKS
        return index | 1

    def _accept_upgrade(self, head: ResponseHead, end: bool) -> None:
        protocol = self.parsed.head.protocol
        if protocol is None or end:
            self._break_off("the origin switched protocols without being asked")
            return
        self.started = True
        self.status = 101
        self.mode = RAW
        self.closes = True
        self.request_done = False
        self.pending = render_response(head, chunked=False, keep_alive=True, http_minor=1, upgrade=protocol)
        if not self.opening:
            self.connection.front.flush_later(self)
            self.connection.front.pump_later(self.connection)

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
        elif mode == BY_CHUNKS:
            if data:
                data = encode_chunk(data) + LAST_CHUNK if end else encode_chunk(data)
            elif end:
                data = LAST_CHUNK
        elif mode == NO_BODY:
            data = b""
        elif mode == RAW_ENDED:
            return
        pending = self.pending
        if pending is not None:
            self.pending = None
            if len(data) > _JOIN_BYTES:
                self.connection.write(pending)
            else:
                data = pending + data
        # `H1Connection.write`, without its call
        connection = self.connection
        connection.front.counters.bytes_out += len(data)
        connection.transport.write(data)
        if end:
            self._finish()

    def on_trailers(self, fields: Fields) -> None:
        if self.over or not self.started:
            return
        if self.mode != BY_CHUNKS or not fields:
            self.on_data(b"", True)
            return
        data = render_trailers(fields)
        if self.pending is not None:
            data = self.pending + data
            self.pending = None
        self.connection.write(data)
        self._finish()

    def on_reset(self, error: EdgetunError) -> None:
        if self.over:
            return
        if self.started and self.pending is None:
            # The head is out: only a broken connection tells the visitor that the rest is missing (RFC 9112 §8).
            self.over = True
            self.connection.front.counters.responses_aborted += 1
            self.connection.abort()
            return
        self.pending = None
        self.over = True
        self.connection.answer_error(self, error)

    def pause_request(self) -> None:
        if not self.over:
            self.connection.pause_body()

    def resume_request(self) -> None:
        if not self.over:
            self.connection.resume_body()

    # What follows.

    def flush(self) -> None:
        """Writes a head whose body did not come within the tick, so that an event stream's visitor sees it at once."""
        pending = self.pending
        if pending is not None and not self.over:
            self.pending = None
            self.connection.write(pending)

    def after_open(self, request: RequestSink) -> None:
        """Called when `open` returned and the response is not over."""
        self.request = request
        front = self.connection.front
        if self.pending is not None:
            front.flush_later(self)
        if self.parsed.head.protocol is not None and self.started:
            if self.mode >= RAW:
                front.pump_later(self.connection)
            else:
                self._settle_upgrade()
        if self.connection.write_paused:
            request.pause_response()

    def _settle_upgrade(self) -> None:
        """The upgrade was answered with an ordinary response: the request has no more to say (rule 7 of exchange.py)."""
        if self.mode < RAW:
            self.request.send_data(b"", True)

    def _finish(self) -> None:
        """The response is complete and written."""
        connection = self.connection
        front = connection.front
        front.counters.responses[self.status // 100] += 1
        if self.mode == RAW:
            self.mode = RAW_ENDED
            connection.end_raw_output(self)
            return
        self.over = True
        if self.request_done and not self.closes:
            self.request = CLOSED  # who is behind holds us as their client: no cycle is left for the collector
            connection.exchange = None
            connection.active = front.now
            if not self.opening:
                connection.after_exchange()
        else:
            connection.end_early(self)

    def _break_off(self, why: str) -> None:
        """The answering side contradicts itself; the visitor must not take what it got for the whole."""
        error = ProtocolError(why)
        self.over = True
        if self.opening:
            self.cancelled = error
        else:
            self.request.reset(error)
        connection = self.connection
        if self.started and self.pending is None:
            connection.front.counters.responses_aborted += 1
            connection.abort()
            return
        self.pending = None
        connection.answer_error(self, UpstreamBroken(why))

    def visitor_left(self, error: EdgetunError | None = None) -> None:
        """The connection is gone or given up: nobody waits for the response any more."""
        if self.over:
            return
        self.over = True
        self.pending = None
        cause = error or Cancelled("the visitor closed the connection")
        if self.opening:
            self.cancelled = cause
        else:
            request, self.request = self.request, CLOSED  # no cycle, as above
            request.reset(cause)
