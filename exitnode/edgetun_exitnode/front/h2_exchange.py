"""One stream of a visitor's HTTP/2 connection: the stream of the engine and the ResponseSink of its request in one object.

Hot path: for an answer given within `open`, head and body join the connection's output at once, and the object is used again for
the connection's next request. An answer that comes later gets an object of its own, so a late call of an old exchange can never
reach a new one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import EdgetunError, LimitExceeded, ProtocolError, UpstreamBroken
from edgetun_core.http.exchange import CLOSED, RequestSink
from edgetun_core.http.h2 import Code, State, Stream
from edgetun_core.http.h2.heads import PreparedHead, prepare_response, render_trailers
from edgetun_core.http.message import Fields, RequestHead, ResponseHead
from edgetun_core.http.multiplexed import ReceivedRequest, RequestRefused
from edgetun_core.http.websocket import KEY_BYTES, accept_handshake, open_handshake
from edgetun_exitnode.front.alternatives import alt_svc_block
from edgetun_exitnode.front.grpc_status import build_status, is_grpc
from edgetun_exitnode.front.pages import build_problem, status_of

if TYPE_CHECKING:
    from edgetun_exitnode.front.h2 import H2Connection

# What the response's body is.
LENGTH: Final = 0
FREE: Final = 1
NO_BODY: Final = 2
RAW: Final = 3
RAW_ENDED: Final = 4
"""A WebSocket whose origin said its last; the visitor may go on."""


class H2Exchange(Stream):
    """The ResponseSink of one request. `over` says that the handler is owed nothing and calls nothing any more."""

    __slots__ = (
        "active",
        "cancelled",
        "continued",
        "drained",
        "is_head",
        "key",
        "left",
        "mode",
        "opening",
        "over",
        "pending",
        "protocol",
        "request",
        "request_done",
        "request_head",
        "sent_at",
        "sent_mark",
        "started",
        "status",
    )

    connection: H2Connection

    def __init__(self, connection: H2Connection) -> None:
        self.opening = False
        self.request_head: RequestHead | None = None
        super().__init__(connection)

    def begin(self, stream_id: int) -> None:
        super().begin(stream_id)
        self.active = self.connection.front.now
        self.cancelled: EdgetunError | None = None
        self.continued = True
        self.drained = 0
        self.is_head = False
        self.key = b""
        self.left = 0
        self.mode = FREE
        self.over = False
        self.pending: bytes | None = None
        self.protocol: bytes | None = None
        self.request: RequestSink = CLOSED
        self.request_done = True
        self.sent_at = 0.0
        self.sent_mark = 0
        self.started = False
        self.status = 0

    # The request, as the engine calls.

    def got_head(self, received: ReceivedRequest, end: bool) -> None:
        connection = self.connection
        front = connection.front
        head = received.head
        self.request_head = head
        self.is_head = received.is_head
        if front.checks_host and head.authority != connection.approved:
            if not front.approves(connection.peer, head.authority):
                message, remedy = "this connection was made for another host", "connect anew to the host that is meant"
                self.refuse(RequestRefused(message, status=421, remedy=remedy), is_head=self.is_head)
                return
            connection.approved = head.authority
        if not end:
            self.request_done = False
            self.continued = not received.expects_continue
        sent_end = end
        if head.protocol is not None:
            self.protocol = head.protocol
            head, self.key = open_handshake(head, os.urandom(KEY_BYTES))
            end = False
        self.opening = True
        request = front.context.handler.open(head, connection.peer, end, self)
        self.opening = False
        if self.over:
            if self.cancelled is not None:
                request.reset(self.cancelled)
            elif self.state is State.CLOSED and connection.spare is None:
                connection.spare = self
            return
        self.request = request
        if self.pending is not None:
            connection.unflushed.append(self)
        if self.is_full:
            request.pause_response()
        if self.protocol is not None:
            if self.started and self.mode < RAW:
                self._settle_upgrade()
            elif sent_end:
                request.send_data(b"", True)

    def got_body(self, data: bytes, end: bool) -> None:
        connection = self.connection
        self.active = connection.front.now
        self.continued = True  # a visitor that did not wait for 100 needs none any more
        if end:
            self.request_done = True
        if self.over:
            self.drained += len(data)
            if self.drained > connection.front.limits.drained_body_bytes and not end:
                self.break_off(
                    Code.NO_ERROR
                )  # the response is whole; the rest of the request is not wanted (RFC 9113 §8.1)
            return
        if self.is_paused and connection.front.held_bytes > connection.front.limits.held_bytes:
            self.give_up("too much is on the way to servers that do not take it", Code.ENHANCE_YOUR_CALM)
            return
        self.request.send_data(data, end)
        if end and self.mode == RAW_ENDED:
            self.over = True

    def got_trailers(self, fields: Fields) -> None:
        self.request_done = True
        if self.over:
            return
        if fields:
            self.request.send_trailers(fields)
        else:
            self.request.send_data(b"", True)
        if self.mode == RAW_ENDED:
            self.over = True

    def got_broken(self, error: EdgetunError, code: int) -> None:
        front = self.connection.front
        front.counters.h2_streams_reset += 1
        self._visitor_left(error)

    def on_full(self) -> None:
        if not self.over and not self.opening:
            self.request.pause_response()

    def on_room(self) -> None:
        if not self.over and not self.opening:
            self.request.resume_response()

    # The response, as the answering side calls.

    def on_interim(self, head: ResponseHead) -> None:
        if self.over or self.started:
            return
        if head.status == 100:
            if self.continued:
                return
            self.continued = True
        if 100 <= head.status < 200 and head.status != 101:
            self.put_interim(prepare_response(head).block)
            self.connection.wake()

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if self.over or self.started:
            return
        prepared = head.h2
        if prepared is None:
            prepared = prepare_response(head)
        assert type(prepared) is PreparedHead
        if self.protocol is not None:
            switched = self._answer_upgrade(head, end)
            if switched is None:
                return
            if switched is not head:
                head, prepared = switched, prepare_response(switched)
        if prepared.without_body or self.is_head:
            if head.status < 200:
                self._break_off("a final response had an interim status")
                return
            self.mode = NO_BODY
        elif prepared.content_length >= 0 and self.mode != RAW:
            if end and prepared.content_length:
                self._break_off("the response ended before its content-length")
                return
            self.mode = LENGTH
            self.left = prepared.content_length
        self.started = True
        self.status = head.status
        if prepared.priority is not None:
            self.set_priority(prepared.priority)  # the server's word goes before the visitor's (RFC 9218 §8)
        block = self._complete(prepared)
        if end:
            self.put_head(block, True)
            self._finish()
            self.connection.wake()
            return
        self.pending = block
        if not self.opening:
            connection = self.connection
            connection.unflushed.append(self)
            connection.wake()
            if self.protocol is not None and self.mode < RAW:
                self._settle_upgrade()

    def _complete(self, prepared: PreparedHead) -> bytes:
        """A head's block with what the front adds: the date, and where HTTP/3 is."""
        block = prepared.block
        front = self.connection.front
        if not prepared.has_date:
            block += front.date_block
        if front.advertises_http3 and not prepared.has_alt_svc:
            block += alt_svc_block(self.connection.approved)
        return block

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
            if not end:
                return
        elif mode == RAW_ENDED:
            return
        block = self.pending
        if block is None:
            self.put_body(data, end)
        else:
            self.pending = None
            if not end:
                self.put_head(block, False)
                self.put_body(data, False)
            elif data:
                self.put_whole(block, data)
            else:
                self.put_head(block, True)
        if end:
            self._finish()
        self.connection.wake()

    def on_trailers(self, fields: Fields) -> None:
        if self.over or not self.started:
            return
        if self.mode == LENGTH and self.left:
            self._break_off("the response does not have the length of its content-length")
            return
        if not fields or self.mode in (NO_BODY, RAW, RAW_ENDED):
            self.on_data(b"", True)
            return
        self.flush()
        self.put_trailers(render_trailers(fields))
        self._finish()
        self.connection.wake()

    def on_reset(self, error: EdgetunError) -> None:
        if self.over:
            return
        if self.started and self.pending is None:
            # The head is out: only a reset tells the visitor that the rest is missing (RFC 9113 §8.1), or a gRPC status.
            self.over = True
            self.connection.front.counters.responses_aborted += 1
            if self.mode == FREE and is_grpc(self.request_head):
                self.put_trailers(render_trailers(build_status(error, status_of(error))))
                self.request_done = True
            else:
                self.break_off(Code.INTERNAL_ERROR)
            self.request = CLOSED
        else:
            self._answer_error(error)
        self.connection.wake()

    def pause_request(self) -> None:
        if not self.over:
            self.pause_receiving()

    def resume_request(self) -> None:
        if self.is_paused:
            self.active = self.connection.front.now
            self.resume_receiving()
            self.connection.wake()

    # What follows.

    @property
    def waits_for_body(self) -> bool:
        """Whether it is the visitor's turn to send. A gRPC call may be silent for as long as its deadline says."""
        return not self.request_done and not self.is_paused and self.mode < RAW and not is_grpc(self.request_head)

    def flush(self) -> None:
        """Sends a head whose body did not come within the tick, so that an event stream's visitor sees it at once."""
        block = self.pending
        if block is not None:
            self.pending = None
            if self.state is not State.CLOSED:
                self.put_head(block, False)

    def refuse(self, error: EdgetunError, *, is_head: bool) -> None:
        """Answers a request that gets no handler."""
        self.is_head = is_head
        self.request_done = self.state is State.HALF_CLOSED_REMOTE
        self._answer_error(error)

    def time_out(self, error: RequestRefused) -> None:
        """The request's body does not arrive in time: 408, if the visitor can still be told; then the stream's end."""
        told = self.over or (self.started and self.pending is None)
        if not self.over:
            self.over = True
            self.request.reset(error)
        if told:
            self.break_off(Code.CANCEL if self.may_send else Code.NO_ERROR)
            return
        self._answer_error(error)
        self.request_done = True
        if not self.queued_bytes and self.held_head is None:
            self.break_off(Code.NO_ERROR)

    def give_up(self, why: str, code: Code) -> None:
        """Ends stream and exchange for what the visitor does or does not do."""
        self._visitor_left(LimitExceeded(why))
        self.connection.front.counters.responses_aborted += 1
        self.break_off(code)
        self.connection.wake()

    def _visitor_left(self, error: EdgetunError) -> None:
        if self.over:
            return
        self.over = True
        self.pending = None
        if self.opening:
            self.cancelled = error
        else:
            request, self.request = self.request, CLOSED  # who is behind holds us: no cycle is left for the collector
            request.reset(error)

    def _finish(self) -> None:
        """The response is complete, and in the engine's hands."""
        connection = self.connection
        connection.front.counters.responses[self.status // 100] += 1
        if self.mode == RAW and not self.request_done:
            self.mode = RAW_ENDED
            return
        self.over = True
        self.request = CLOSED
        if self.is_paused:
            self.resume_receiving()  # what still comes of the request is dropped
            self.active = connection.front.now
        connection.active = connection.front.now

    def _answer_upgrade(self, head: ResponseHead, end: bool) -> ResponseHead | None:
        """What the visitor is told of an answer to its WebSocket; None when the answer was dealt with here (rule 7)."""
        if head.status == 101:
            try:
                head = accept_handshake(head, self.key)
            except UpstreamBroken as error:
                self._break_off(error.message)
                return None
            self.mode = RAW
        elif 200 <= head.status < 300 and not end:
            self.mode = RAW
        return head

    def _settle_upgrade(self) -> None:
        """The upgrade was answered with an ordinary response: the request has no more to say (rule 7 of exchange.py)."""
        self.request_done = True
        if not self.over:
            self.request.send_data(b"", True)

    def _break_off(self, why: str) -> None:
        """The answering side contradicts itself; the visitor must not take what it got for the whole."""
        error = ProtocolError(why)
        if self.opening:
            self.cancelled = error
        else:
            self.request.reset(error)
        if self.started and self.pending is None:
            self.over = True
            self.connection.front.counters.responses_aborted += 1
            self.break_off(Code.INTERNAL_ERROR)
        else:
            self._answer_error(UpstreamBroken(why))
        self.connection.wake()

    def _answer_error(self, error: EdgetunError) -> None:
        """A problem page in place of a response that did not begin."""
        head, body = build_problem(error, self.request_head)
        self.over = True
        self.pending = None
        prepared = prepare_response(head)
        block = self._complete(prepared)
        if self.is_head or not body:
            self.put_head(block, True)
        else:
            self.put_whole(block, body)
        self.connection.front.counters.responses[head.status // 100] += 1
        self.request = CLOSED
        self.connection.wake()
