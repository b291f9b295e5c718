"""The receiving half of an HTTP/2 connection, and the whole: bytes in, calls on streams, bytes out (RFC 9113).

Sans-I/O: no socket, no clock. `receive_data` never raises for the peer's sake: a connection error becomes a GOAWAY in the output
and `failure`, and every stream is told. Hot path: a request whose header block was seen before costs some 3 us.

Bounds: one frame that is not whole (16 KiB), one header block that is not (`H2Limits.max_block_bytes`), the budgets of guard.py.
"""

from __future__ import annotations

from typing import Any, Final

from edgetun_core.http.h2 import settings as names
from edgetun_core.http.h2.controls import CONTROL_FRAMES, Controls
from edgetun_core.http.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW_BYTES,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADER_BYTES,
    HEADERS,
    LEAST_MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    PADDED,
    PREFACE,
    SETTINGS,
    WITH_PRIORITY,
    Code,
    ConnectionBroken,
    StreamBroken,
    build_rst_stream,
    build_settings,
    build_window_update,
)
from edgetun_core.http.h2.hpack import BlockBroken, BlockDecoder, BlockTooLarge
from edgetun_core.http.h2.outlet import S
from edgetun_core.http.h2.settings import H2Limits
from edgetun_core.http.h2.states import Event, State, after
from edgetun_core.http.message import Field
from edgetun_core.http.multiplexed import UNKNOWN_LENGTH, MalformedMessage, RequestRefused, read_trailers

_KNOWN_BLOCKS: Final = 32
_KNOWN_BLOCK_BYTES: Final = 1024
_MOST_SKIPPED: Final = 15
_SIMPLE: Final = END_HEADERS | END_STREAM
_unpack = HEADER.unpack_from


class Connection(Controls[S]):
    """One connection, of either role. Subclasses say how heads are read and streams made."""

    __slots__ = (
        "_awaits_preface",
        "_awaits_settings",
        "_block",
        "_block_end",
        "_block_parts",
        "_block_stream",
        "_decoder",
        "_known",
        "_skipped",
        "frames_received",
        "rest",
    )

    def __init__(self, limits: H2Limits, *, is_server: bool) -> None:
        super().__init__(limits, is_server=is_server)
        self._awaits_preface = is_server
        self._awaits_settings = True
        self.rest = b""
        """A frame that is not whole."""
        self.frames_received = 0
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_parts = 0
        self._block_end = False
        self._decoder = BlockDecoder(limits.max_list_bytes)
        # Heads by header block, as long as the dynamic table stays as it is.
        self._known: dict[bytes, Any] = {}
        # Streams that the peer left out, and so closed without ever opening them.
        self._skipped: tuple[range, ...] = ()

    # For subclasses.

    def read_head(self, fields: list[Field]) -> Any:
        """A head out of a field section (multiplexed.py). May raise MalformedMessage, and on a server RequestRefused."""
        raise NotImplementedError

    def make_stream(self) -> S:
        """Server: an object for a stream that the peer opened; `begin` is called next, then `got_head` or `refuse_request`."""
        raise NotImplementedError

    def refuse_request(self, stream: S, error: RequestRefused, end: bool) -> None:
        """Server: the peer's request is understood and not served; answer it."""
        raise NotImplementedError

    # What whoever owns the connection calls.

    def start(self) -> None:
        """Puts the preface into the output; call first."""
        limits = self.limits
        ours = {
            names.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            names.MAX_HEADER_LIST_SIZE: limits.max_list_bytes,
        }
        if self.is_server:
            ours[names.MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
            ours[names.ENABLE_CONNECT_PROTOCOL] = 1
            ours[names.NO_RFC7540_PRIORITIES] = 1
        else:
            ours[names.ENABLE_PUSH] = 0
            self.out.append(PREFACE)
        self.out.append(build_settings(ours))
        if limits.connection_window_bytes > DEFAULT_WINDOW_BYTES:
            self.out.append(build_window_update(0, limits.connection_window_bytes - DEFAULT_WINDOW_BYTES))

    def receive_data(self, data: bytes) -> None:
        """Takes what the transport read."""
        if self.failure is not None:
            return
        try:
            self._receive(self.rest + data if self.rest else data)
        except ConnectionBroken as error:
            self.fail(error, error.code)

    @property
    def is_reading_head(self) -> bool:
        """Whether the peer owes the rest of its preface, of a header block or of a frame."""
        return self._awaits_settings or self._block is not None or bool(self.rest)

    @property
    def open_limit(self) -> int:
        """Client: how many more streams may be opened now."""
        if self.failure is not None or self.goaway_received is not None or self._next_id > MAX_STREAM_ID:
            return 0
        return max(0, self.peer_settings.max_concurrent_streams - len(self.streams))

    def open_stream(self, stream: S, block: bytes, end: bool) -> None:
        """Client: opens a stream with a request head as a rendered block; `open_limit` must be above 0."""
        stream.begin(self._next_id)
        self._next_id += 2
        stream.state = after(stream.state, Event.HEADERS)
        self.streams[stream.id] = stream
        stream.put_head(block, end)

    # Frames.

    def _receive(self, data: bytes) -> None:
        at = 0
        size = len(data)
        if self._awaits_preface:
            if not data.startswith(PREFACE):
                if not PREFACE.startswith(data[: len(PREFACE)]):
                    raise ConnectionBroken(Code.PROTOCOL_ERROR, "this is not the preface of HTTP/2 (RFC 9113 §3.4)")
                self.rest = data
                return
            self._awaits_preface = False
            at = len(PREFACE)
        known = self._known
        while size - at >= HEADER_BYTES:
            high, low, kind, flags, stream_id = _unpack(data, at)
            length = high << 16 | low
            if length > LEAST_MAX_FRAME_BYTES:
                raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "a frame is larger than 16,384 bytes (RFC 9113 §4.2)")
            start = at + HEADER_BYTES
            if start + length > size:
                break
            at = start + length
            stream_id &= MAX_STREAM_ID  # the first bit is ignored (§4.1)
            payload = data[start:at]
            if kind == HEADERS and flags == _SIMPLE and self._block is None and stream_id > self.last_peer_id:
                received = known.get(payload)
                if received is not None and received.body_length <= 0:
                    if self._may_open(stream_id):
                        self._open(stream_id, received, True)
                        if self.failure is not None:
                            return
                    continue
            self._handle(kind, flags, stream_id, payload)
            known = self._known
            if self.failure is not None:
                return
        self.rest = data[at:] if at else data

    def _handle(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.frames_received += 0 if kind == CONTINUATION else 1
        if self._awaits_settings:
            if kind != SETTINGS or flags & ACK:
                raise ConnectionBroken(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS (RFC 9113 §3.4)")
            self._awaits_settings = False
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block_stream):
            raise ConnectionBroken(
                Code.PROTOCOL_ERROR, "a header block is interrupted by another frame (RFC 9113 §4.3)"
            )
        try:
            if kind == DATA:
                self._handle_data(flags, stream_id, payload)
            elif kind == HEADERS:
                self._handle_headers(flags, stream_id, payload)
            elif kind == CONTINUATION:
                self._handle_continuation(flags, payload)
            else:
                handle = CONTROL_FRAMES.get(kind)
                if handle is None:
                    self.guard.spend_control()  # unknown frames are ignored (§4.1)
                else:
                    handle(self, flags, stream_id, payload)
        except StreamBroken as error:
            self._break_stream(stream_id, error)

    def _break_stream(self, stream_id: int, error: StreamBroken) -> None:
        """A stream error (§5.4.2): the peer made us reset it, and pays as if it had done so itself."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.reset_stream(stream, error.code)
            stream.got_broken(error, error.code)
        else:
            if self.is_idle(stream_id):  # RST_STREAM may not be sent there (§6.4)
                raise ConnectionBroken(error.code, error.message)
            self.out.append(build_rst_stream(stream_id, error.code))
            self.remember_reset(stream_id, by_peer=False)
        if self.is_server:
            self.guard.spend_reset()

    def _handle_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "DATA on stream 0 (RFC 9113 §6.1)")
        size = len(payload)
        self.receive_window -= size
        if self.receive_window < 0:
            raise ConnectionBroken(Code.FLOW_CONTROL_ERROR, "DATA beyond the connection's window (RFC 9113 §6.9.1)")
        data = _without_padding(payload) if flags & PADDED else payload
        end = bool(flags & END_STREAM)
        if not data and not end:
            self.guard.spend_control()
        stream = self.streams.get(stream_id)
        if stream is None:
            self.check_not_idle(stream_id, "DATA")
            self.return_connection(size)
            self._frame_on_closed(stream_id, "DATA")
            return
        if stream.state is State.HALF_CLOSED_REMOTE or stream.awaits_head:
            self.return_connection(size)
            if stream.awaits_head:
                raise StreamBroken(Code.PROTOCOL_ERROR, "DATA before the head (RFC 9113 §8.1)")
            raise StreamBroken(Code.STREAM_CLOSED, "DATA after the end of the stream (RFC 9113 §5.1)")
        stream.receive_window -= size
        if stream.receive_window < 0:
            self.return_connection(size)
            raise StreamBroken(Code.FLOW_CONTROL_ERROR, "DATA beyond the stream's window (RFC 9113 §6.9.1)")
        left = stream.body_left
        if left >= 0:
            left -= len(data)
            if left < 0 or (end and left):
                self.return_connection(size)
                raise StreamBroken(Code.PROTOCOL_ERROR, "the body has not the announced length (RFC 9113 §8.1.1)")
            stream.body_left = left
        if end:
            self.remote_ended(stream)
        if data or end:
            stream.got_body(data, end)
        if size:
            self.take(stream, size)

    def _handle_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "HEADERS on stream 0 (RFC 9113 §6.2)")
        if flags & PADDED:
            payload = _without_padding(payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "HEADERS is too short for its priority (RFC 9113 §6.2)")
            payload = payload[5:]
        end = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._handle_block(stream_id, payload, end)
            return
        self._block = bytearray(payload)
        self._block_stream = stream_id
        self._block_end = end
        self._block_parts = 0

    def _handle_continuation(self, flags: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS (RFC 9113 §6.10)")
        self._block_parts += 1
        block += payload
        limits = self.limits
        if self._block_parts > limits.max_continuations or len(block) > limits.max_block_bytes:
            raise ConnectionBroken(Code.ENHANCE_YOUR_CALM, "a header block is too large, or in too many pieces")
        if flags & END_HEADERS:
            self._block = None
            self._handle_block(self._block_stream, bytes(block), self._block_end)

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:
        try:
            fields, is_stable = self._decoder.decode(block)
        except BlockTooLarge as error:
            raise ConnectionBroken(Code.ENHANCE_YOUR_CALM, error.message) from None
        except BlockBroken as error:
            raise ConnectionBroken(Code.COMPRESSION_ERROR, error.message) from None
        if not is_stable:
            self._known = {}
        return fields, is_stable

    def _handle_block(self, stream_id: int, block: bytes, end: bool) -> None:
        """A whole header block. It is decoded whatever becomes of it: the dynamic table must stay in step (§4.3)."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._handle_later_block(stream, block, end)
            return
        if not self.is_server:
            self._decode(block)
            self.check_not_idle(stream_id, "HEADERS")
            self._frame_on_closed(stream_id, "HEADERS")
            return
        if not stream_id & 1:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "HEADERS on a stream that no client opens (RFC 9113 §5.1.1)")
        if stream_id <= self.last_peer_id:
            self._decode(block)
            if any(stream_id in skipped for skipped in self._skipped):
                raise ConnectionBroken(Code.PROTOCOL_ERROR, "HEADERS on a stream lower than the last (RFC 9113 §5.1.1)")
            self._frame_on_closed(stream_id, "HEADERS")
            return
        received = self._known.get(block)
        if received is None:
            fields, is_stable = self._decode(block)
            if not self._may_open(stream_id):
                return
            try:
                received = self.read_head(fields)
            except MalformedMessage as error:
                self.last_peer_id = stream_id
                raise StreamBroken(Code.PROTOCOL_ERROR, error.message) from None
            except RequestRefused as error:
                self._refuse(stream_id, error, end)
                return
            if is_stable:
                self._learn(block, received)
        elif not self._may_open(stream_id):
            return
        if end and received.body_length > 0:
            self.last_peer_id = stream_id
            raise StreamBroken(Code.PROTOCOL_ERROR, "the announced body is missing (RFC 9113 §8.1.1)")
        self._open(stream_id, received, end)

    def _may_open(self, stream_id: int) -> bool:
        """Whether a new stream of the peer is served; refuses it when not."""
        if not stream_id & 1 or self._awaits_settings or not self.is_server:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "HEADERS on a stream that cannot be opened (RFC 9113 §5.1.1)")
        if self.goaway_sent is not None:
            return False  # it crossed our GOAWAY (§6.8)
        if len(self.streams) < self.limits.max_concurrent_streams:
            return True
        self.last_peer_id = stream_id
        self.out.append(build_rst_stream(stream_id, Code.REFUSED_STREAM))
        self.remember_reset(stream_id, by_peer=False)
        self.guard.spend_reset()
        return False

    def _begin(self, stream_id: int, end: bool) -> S:
        if stream_id > self.last_peer_id + 2:
            self._skipped = (*self._skipped[-_MOST_SKIPPED:], range(self.last_peer_id + 1, stream_id))
        self.last_peer_id = stream_id
        stream = self.make_stream()
        stream.begin(stream_id)
        stream.state = State.HALF_CLOSED_REMOTE if end else State.OPEN
        stream.awaits_head = False
        self.streams[stream_id] = stream
        return stream

    def _open(self, stream_id: int, received: Any, end: bool) -> None:
        stream = self._begin(stream_id, end)
        stream.body_left = received.body_length
        priority = received.priority
        if self._priorities:
            priority = self._priorities.pop(stream_id, priority)
        if priority is not None:
            stream.set_priority(priority)
        stream.got_head(received, end)

    def _refuse(self, stream_id: int, error: RequestRefused, end: bool) -> None:
        self.refuse_request(self._begin(stream_id, end), error, end)

    def _learn(self, block: bytes, received: Any) -> None:
        """Keeps what a block that means the same each time was read as, if its head comes again."""
        if received.head.recurs and len(block) <= _KNOWN_BLOCK_BYTES and len(self._known) < _KNOWN_BLOCKS:
            self._known[block] = received

    def _handle_later_block(self, stream: S, block: bytes, end: bool) -> None:
        """Trailers, or on a client the response's head."""
        is_head = stream.awaits_head
        received = self._known.get(block) if is_head else None
        if received is None:
            fields, is_stable = self._decode(block)
            if stream.state is State.HALF_CLOSED_REMOTE:
                raise StreamBroken(Code.STREAM_CLOSED, "HEADERS after the end of the stream (RFC 9113 §5.1)")
            try:
                if not is_head:
                    if not end:
                        raise MalformedMessage("trailers do not end the stream (RFC 9113 §8.1)")
                    if stream.body_left > 0:
                        raise MalformedMessage("the body has not the announced length (RFC 9113 §8.1.1)")
                    trailers = read_trailers(fields)
                    self.remote_ended(stream)
                    stream.got_trailers(trailers)
                    return
                received = self.read_head(fields)
            except MalformedMessage as error:
                raise StreamBroken(Code.PROTOCOL_ERROR, error.message) from None
            if is_stable:
                self._learn(block, received)
        elif stream.state is State.HALF_CLOSED_REMOTE:
            raise StreamBroken(Code.STREAM_CLOSED, "HEADERS after the end of the stream (RFC 9113 §5.1)")
        status = received.head.status
        if status < 200:
            if end:
                raise StreamBroken(Code.PROTOCOL_ERROR, "an interim response ends the stream (RFC 9113 §8.1)")
        else:
            stream.awaits_head = False
            if status not in (204, 304) and not stream.expects_no_body:
                stream.body_left = received.body_length
                if end and received.body_length > 0:
                    raise StreamBroken(Code.PROTOCOL_ERROR, "the announced body is missing (RFC 9113 §8.1.1)")
            else:
                stream.body_left = UNKNOWN_LENGTH if end else 0
            if end:
                self.remote_ended(stream)
        stream.got_head(received, end)

    def _frame_on_closed(self, stream_id: int, name: str) -> None:
        """DATA or HEADERS on a stream that is no more (RFC 9113 §5.1, "closed")."""
        self.guard.spend_control()
        by_peer = None if self._resets is None else self._resets.get(stream_id)
        if by_peer is None:
            raise ConnectionBroken(Code.STREAM_CLOSED, f"{name} on a stream that was closed (RFC 9113 §5.1)")
        if by_peer:
            raise StreamBroken(Code.STREAM_CLOSED, f"{name} on a stream that its sender reset (RFC 9113 §5.1)")
        # We reset it; the frame may have crossed that.


def _without_padding(payload: bytes) -> bytes:
    """RFC 9113 §6.1: the first byte tells how much padding stands at the end."""
    if not payload:
        raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "a padded frame without its length of padding (RFC 9113 §6.1)")
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionBroken(Code.PROTOCOL_ERROR, "a frame is all padding and more (RFC 9113 §6.1)")
    return payload[1 : len(payload) - padding]
