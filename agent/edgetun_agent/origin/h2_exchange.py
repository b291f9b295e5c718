"""One request to an HTTP/2 origin: the `RequestSink` that the requester holds, and its stream once it has one.

What comes of a body before there is a stream is held, at most `MAX_HELD_BYTES`; the requester has been told to pause. The
beginning of a body stays at hand until the origin answers, because a stream that the origin refuses or that its GOAWAY leaves out was
not looked at (RFC 9113 §8.7) and may be sent again as it was.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from time import monotonic
from typing import TYPE_CHECKING, Final

from edgetun_agent.origin.exchange import MAX_HELD_BYTES, REPEATABLE
from edgetun_core.errors import (
    Cancelled,
    EdgetunError,
    LimitExceeded,
    ProtocolError,
    UpstreamBroken,
    UpstreamTimeout,
)
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.h2 import Code, State, Stream, StreamReset, render_block
from edgetun_core.http.h2.frames import name_of
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.http.multiplexed import ReceivedResponse

if TYPE_CHECKING:
    from edgetun_agent.origin.client import OriginClient
    from edgetun_agent.origin.h2_client import H2OriginClient
    from edgetun_agent.origin.h2_connection import H2OriginConnection

MAX_REPLAY_BYTES: Final = 64 * 1024
MAX_TRIES: Final = 4
MAX_INTERIM: Final = 32
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class OriginLost(UpstreamBroken):
    """The connection to the origin ended under its streams."""


def is_grpc(head: RequestHead) -> bool:
    """A gRPC call; its deadline is its own (`grpc-timeout`)."""
    content_type = head.get(b"content-type")
    return content_type is not None and content_type[:16].lower() == b"application/grpc"


class OriginStream(Stream):
    """A stream, until its exchange is over."""

    __slots__ = ("exchange",)

    connection: H2OriginConnection

    def __init__(self, connection: H2OriginConnection, exchange: H2Exchange) -> None:
        super().__init__(connection)
        self.exchange: H2Exchange | None = exchange

    def got_head(self, received: ReceivedResponse, end: bool) -> None:
        if self.exchange is not None:
            self.exchange.got_head(received.head, end)

    def got_body(self, data: bytes, end: bool) -> None:
        if self.exchange is not None:
            self.exchange.got_body(data, end)

    def got_trailers(self, fields: Fields) -> None:
        if self.exchange is not None:
            self.exchange.got_trailers(fields)

    def got_broken(self, error: EdgetunError, code: int) -> None:
        if self.exchange is not None:
            self.exchange.got_broken(error, code)

    def on_full(self) -> None:
        if self.exchange is not None:
            self.exchange.client.pause_request()

    def on_room(self) -> None:
        if self.exchange is not None:
            self.exchange.since = monotonic()
            self.exchange.client.resume_request()

    def on_sent(self) -> None:
        if self.exchange is not None:
            self.exchange.is_sent = True
            self.exchange.since = monotonic()


class H2Exchange:
    """A request and its answer."""

    __slots__ = (
        "_delegate",
        "_ends_with",
        "_has_head",
        "_held",
        "_held_bytes",
        "_interims",
        "_is_stream",
        "_left",
        "_owner",
        "_peer",
        "_replay",
        "_response_ended",
        "_sent_mark",
        "_tries",
        "bytes_received",
        "bytes_sent",
        "client",
        "head",
        "is_over",
        "is_paused",
        "is_probe",
        "is_raw",
        "is_sent",
        "since",
        "started",
        "status",
        "stream",
    )

    def __init__(
        self,
        owner: H2OriginClient,
        head: RequestHead,
        peer: Peer,
        end: bool,
        client: ResponseSink,
        *,
        is_probe: bool = False,
    ) -> None:
        self._owner = owner
        self._peer = peer
        self._delegate: RequestSink | None = None
        """The exchange that HTTP/1.1 took over."""
        self.head = head
        self.client = client
        self.is_probe = is_probe
        self.stream: OriginStream | None = None
        self.is_over = False
        self.is_paused = False
        self.is_raw = False
        """The origin accepted a WebSocket (RFC 8441)."""
        self.is_sent = False
        self.status = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.started = self.since = monotonic()
        self._ends_with: Fields | None = () if end else None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._replay: list[bytes] | None = []
        self._has_head = False
        self._response_ended = False
        self._interims = 0
        self._is_stream = False
        self._sent_mark = 0
        self._tries = 0
        length = head.get(b"content-length")
        self._left = int(length) if length is not None else -1

    @property
    def has_body(self) -> bool:
        """Whether the requester may still send, so that it has to be paused while there is no stream."""
        return self._ends_with is None

    # ---- with a stream

    def attach(self, connection: H2OriginConnection, block: bytes) -> None:
        """Sends what there is of the request on a new stream."""
        self._tries += 1
        stream = self.stream = OriginStream(connection, self)
        self.is_sent = False
        self.since = monotonic()
        held, self._held, self._held_bytes = self._held, [], 0
        is_upgrade = self.head.protocol is not None
        at_once = not held and self._ends_with == () and not is_upgrade
        connection.open_stream(stream, block, at_once)
        stream.expects_no_body = self.head.method == b"HEAD"
        if self.is_paused:
            stream.pause_receiving()
        if is_upgrade:
            self._held = held
            self._held_bytes = sum(map(len, held))
        elif not at_once:
            for data in held:
                stream.put_body(data, False)
            if self._ends_with is not None:
                self._put_end(stream, self._ends_with)
            elif not stream.is_full:
                self.client.resume_request()
        connection.wake()

    def detach(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.exchange = None

    def got_head(self, head: ResponseHead, end: bool) -> None:
        self.since = monotonic()
        if head.status < 200:
            self._interims += 1
            if self._interims > MAX_INTERIM:
                self.fail(UpstreamBroken(f"{self._owner.url} sent more than {MAX_INTERIM} interim responses"))
                return
            self.client.on_interim(head)
            return
        self._has_head = True
        self._replay = None
        if self.stream is not None:
            self.stream.connection.answered += 1
        self.status = head.status
        if self.head.protocol is not None and head.status < 300 and not end:
            self._accept_upgrade(head)
            return
        content_type = head.get(b"content-type") or b""
        self._is_stream = content_type[:17].lower() == b"text/event-stream" or is_grpc(self.head)
        if end:
            self._finish()
        self.client.on_head(head, end)

    def _accept_upgrade(self, head: ResponseHead) -> None:
        """The origin accepted an extended CONNECT: what the requester knows is a 101 (RFC 8441 §5, RFC 6455 §4.2.2)."""
        self.status = 101
        self.is_raw = True
        fields = [field for field in head.fields if field[0] not in (b"sec-websocket-accept", b"content-length")]
        key = self.head.get(b"sec-websocket-key")
        if key is not None:
            digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
            fields.append((b"sec-websocket-accept", b64encode(digest)))
        self.client.on_head(ResponseHead(101, tuple(fields)), False)
        stream = self.stream
        if stream is None:
            return
        held, self._held, self._held_bytes = self._held, [], 0
        for data in held:
            stream.put_body(data, False)
        if self._ends_with is not None:
            self._put_end(stream, self._ends_with)
        elif not stream.is_full:
            self.client.resume_request()
        stream.connection.wake()

    def got_body(self, data: bytes, end: bool) -> None:
        self.since = monotonic()
        self.bytes_received += len(data)
        if not end:
            self.client.on_data(data, False)
        elif self.is_raw and self._ends_with is None:
            self._response_ended = True
            self.client.on_data(data, True)
        else:
            self._finish()
            self.client.on_data(data, True)

    def got_trailers(self, fields: Fields) -> None:
        if self.is_raw:
            self.got_body(b"", True)
            return
        self._finish()
        self.client.on_trailers(fields)

    def got_broken(self, error: EdgetunError, code: int) -> None:
        """The stream is gone; `error` is a reset of the origin's, its GOAWAY, or the connection's end."""
        stream = self.stream
        self.detach()
        if self.is_over:
            return
        if self._response_ended:
            self._over(None)
            return
        owner = self._owner
        if not self._has_head and stream is not None and self._may_try_again(error, code, stream.connection):
            owner.again(self)
            return
        if isinstance(error, StreamReset):
            remedy = (
                "set the origin's protocol to http1" if code == Code.HTTP_1_1_REQUIRED else "look at the origin's log"
            )
            error = UpstreamBroken(f"{owner.url} reset the request ({name_of(code)})", remedy=remedy)
        elif not isinstance(error, UpstreamBroken | UpstreamTimeout):
            # A refusal that cannot be repeated, or what the origin did wrong: for the visitor it is the origin that failed.
            error = UpstreamBroken(f"{owner.url}: {error.message}", remedy="look at the origin's log")
        self._over(error)
        self.client.on_reset(error)

    def _may_try_again(self, error: EdgetunError, code: int, connection: H2OriginConnection) -> bool:
        if self._tries >= MAX_TRIES or self._replay is None or self._interims:
            return False
        if code == Code.REFUSED_STREAM:
            return True
        # A connection that had served ended: what was sent on it last may have been seen, so only what is idempotent goes again.
        is_lost = isinstance(error, OriginLost) and connection.answered > 0 and self._tries == 1
        return is_lost and self._ends_with is not None and self.head.method in REPEATABLE

    def rewind(self) -> None:
        """Makes the exchange ready for another stream."""
        self._held = list(self._replay or ())
        self._held_bytes = sum(map(len, self._held))
        self.is_sent = False

    def hand_over(self, http1: OriginClient) -> None:
        """Sends the request over HTTP/1.1 instead; from then on this is but a name for it."""
        if self.is_probe:
            self._delegate = http1.probe(self.head.target.decode(), self.client)
            return
        held, self._held = self._held, []
        ended = self._ends_with
        at_once = ended == () and not held and self.head.protocol is None
        sink = self._delegate = http1.open(self.head, self._peer, at_once, self.client)
        for data in held:
            sink.send_data(data, False)
        if ended and not at_once:
            sink.send_trailers(ended)
        elif ended is not None and not at_once:
            sink.send_data(b"", True)
        if self.is_paused:
            sink.pause_response()

    # ---- ends

    def _finish(self) -> None:
        """The response is whole; the caller then says the end. What is missing of the request is not wanted any more."""
        stream = self.stream
        self.detach()
        if stream is not None and stream.state not in (State.CLOSED, State.IDLE):
            stream.break_off(Code.NO_ERROR if self._ends_with is not None else Code.CANCEL)
            stream.connection.wake()
        self._over(None)

    def _over(self, error: EdgetunError | None) -> None:
        if not self.is_over:
            self.is_over = True
            self._held = []
            self._owner.exchange_over(self, error)

    def fail(self, error: EdgetunError) -> None:
        """Ends the exchange with an error, and its stream with it."""
        if self.is_over:
            return
        self._break_off()
        self._over(error)
        self.client.on_reset(error)

    refuse = fail

    def _break_off(self) -> None:
        stream = self.stream
        self.detach()
        if stream is not None:
            stream.break_off(Code.CANCEL)
            stream.connection.wake()

    # ---- RequestSink

    def send_data(self, data: bytes, end: bool) -> None:
        if self._delegate is not None:
            self._delegate.send_data(data, end)
            return
        if self.is_over or self._ends_with is not None:
            return
        size = len(data)
        if self._left >= 0:
            self._left -= size
            if self._left < 0 or (end and self._left):
                how = "longer" if self._left < 0 else "shorter"
                self.fail(ProtocolError(f"the request's body is {how} than its content-length"))
                return
        self.bytes_sent += size
        if end:
            self._ends_with = ()
        if size and self._replay is not None:
            if self.bytes_sent <= MAX_REPLAY_BYTES:
                self._replay.append(data)
            else:
                self._replay = None
        stream = self.stream
        if stream is None or (self.head.protocol is not None and not self._has_head):
            self._hold(data)
            return
        if not stream.queued_bytes:
            self.since = monotonic()  # the origin's time to take it begins here; until now the visitor was awaited
        stream.put_body(data, end)
        stream.connection.wake()
        self._settle_raw()

    def _settle_raw(self) -> None:
        if self._response_ended and self._ends_with is not None:
            self._finish()

    def send_trailers(self, fields: Fields) -> None:
        if self._delegate is not None:
            self._delegate.send_trailers(fields)
            return
        if self.is_over or self._ends_with is not None:
            return
        if self._left > 0:
            self.fail(ProtocolError("the request's body is shorter than its content-length"))
            return
        self._ends_with = fields
        stream = self.stream
        if stream is not None and (self.head.protocol is None or self._has_head):
            self._put_end(stream, fields)
            stream.connection.wake()
            self._settle_raw()

    def _put_end(self, stream: OriginStream, fields: Fields) -> None:
        if fields and not self.is_raw:
            stream.put_trailers(render_block(fields))
        else:
            stream.put_body(b"", True)

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES:
            self._owner.abandon(self)
            self.fail(LimitExceeded("more of the request came than may wait for the origin"))

    def reset(self, error: EdgetunError) -> None:
        """The visitor left: the origin is told so (RFC 9113 §8.1: CANCEL)."""
        if self._delegate is not None:
            self._delegate.reset(error)
            return
        if self.is_over:
            return
        if self.stream is None:
            self._owner.abandon(self)
        self._break_off()
        self._over(error if isinstance(error, Cancelled) else Cancelled(str(error)))

    def pause_response(self) -> None:
        if self._delegate is not None:
            self._delegate.pause_response()
            return
        if not self.is_paused:
            self.is_paused = True
            if self.stream is not None:
                self.stream.pause_receiving()

    def resume_response(self) -> None:
        if self._delegate is not None:
            self._delegate.resume_response()
            return
        if self.is_paused:
            self.is_paused = False
            self.since = monotonic()
            stream = self.stream
            if stream is not None:
                stream.resume_receiving()
                stream.connection.wake()

    # ---- time

    def sweep(self, now: float, response_timeout_s: float, idle_timeout_s: float) -> None:
        """Looks whether the origin let a deadline pass."""
        stream = self.stream
        if stream is None or self.is_paused or self.is_over:
            return
        if stream.sent_bytes != self._sent_mark:
            self._sent_mark = stream.sent_bytes
            self.since = now
        silent_s = now - self.since
        url = self._owner.url
        if not self._has_head:
            if self.is_sent:
                if silent_s > response_timeout_s and not is_grpc(self.head):
                    self.fail(
                        UpstreamTimeout(
                            f"{url} did not answer within {response_timeout_s:g} s",
                            remedy="see what the server is busy with, or raise the origin's response timeout",
                        )
                    )
            elif stream.queued_bytes and silent_s > idle_timeout_s:
                self.fail(UpstreamTimeout(f"{url} took nothing of the request's body for {idle_timeout_s:g} s"))
        elif self.is_raw:
            if (self.is_sent or self._response_ended) and silent_s > idle_timeout_s:
                self.fail(UpstreamTimeout(f"{url} fell silent after one side of its connection had ended"))
        elif not self._is_stream and silent_s > idle_timeout_s and (self.is_sent or stream.queued_bytes):
            self.fail(
                UpstreamTimeout(
                    f"{url} fell silent for {idle_timeout_s:g} s in the middle of its answer",
                    remedy="see what the server is busy with, or raise the origin's idle timeout",
                )
            )
