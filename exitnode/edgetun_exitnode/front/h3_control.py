"""A visitor's unidirectional streams on an HTTP/3 connection: settings, priorities, going away, QPACK (RFC 9114 §6.2, §7.2).

Bounds: a control frame of `MAX_CONTROL_FRAME_BYTES`; priorities of as many streams as may be open; whatever costs us work and
gets the visitor nothing counts against the connection's allowance (`H3Connection.spend`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.http.h3_frames import (
    CANCEL_PUSH,
    CONTROL_STREAM,
    DATA,
    DECODER_STREAM,
    ENCODER_STREAM,
    GOAWAY,
    H3_CLOSED_CRITICAL_STREAM,
    H3_FRAME_ERROR,
    H3_FRAME_UNEXPECTED,
    H3_ID_ERROR,
    H3_MISSING_SETTINGS,
    H3_STREAM_CREATION_ERROR,
    HEADERS,
    MAX_PUSH_ID,
    OF_HTTP2,
    PRIORITY_UPDATE_PUSH,
    PRIORITY_UPDATE_REQUEST,
    PUSH_PROMISE,
    PUSH_STREAM,
    SETTINGS,
    FrameReader,
    FrameTooLarge,
    H3Error,
    decode_one_varint,
    decode_settings,
    decode_varint,
)
from edgetun_core.http.priority import parse_priority
from edgetun_core.http.qpack import InstructionChecker

if TYPE_CHECKING:
    from edgetun_exitnode.front.h3 import H3Connection

MAX_CONTROL_FRAME_BYTES: Final = 4096
MAX_TYPE_BYTES: Final = 8
MAX_EARLY_PRIORITIES: Final = 100


class UniStream:
    """One unidirectional stream of the visitor's."""

    __slots__ = ("_checker", "_head", "_reader", "type")

    def __init__(self) -> None:
        self.type = -1
        self._head = b""
        self._reader: FrameReader | None = None
        self._checker: InstructionChecker | None = None

    def receive(self, connection: H3Connection, sid: int, data: bytes, is_end: bool) -> None:
        """Takes the stream's next bytes. Raises H3Error."""
        if self.type < 0:
            self._head += data
            kind, at = decode_varint(self._head)
            if kind < 0:
                return  # a stream may end before its type is there (RFC 9114 §6.2)
            data, self._head = self._head[at:], b""
            self._begin(connection, sid, kind)
        if self._reader is not None:
            try:
                frames = self._reader.feed(data)
            except FrameTooLarge as error:
                raise H3Error(
                    H3_FRAME_ERROR, f"a control frame of {error.size} bytes is longer than any may be"
                ) from None
            for frame_type, payload in frames:
                connection.control.frame(connection, frame_type, payload)
        elif self._checker is not None and data:
            connection.spend(self._checker.feed(data))
        if is_end and self.type in (CONTROL_STREAM, ENCODER_STREAM, DECODER_STREAM):
            raise H3Error(H3_CLOSED_CRITICAL_STREAM, "a critical stream was closed (RFC 9114 §6.2.1)")

    def _begin(self, connection: H3Connection, sid: int, kind: int) -> None:
        self.type = kind
        if kind == PUSH_STREAM:
            raise H3Error(H3_STREAM_CREATION_ERROR, "only a server pushes (RFC 9114 §6.2.2)")
        if kind in (CONTROL_STREAM, ENCODER_STREAM, DECODER_STREAM):
            if kind in connection.control.critical:
                raise H3Error(H3_STREAM_CREATION_ERROR, f"a second stream of type {kind} (RFC 9114 §6.2.1)")
            connection.control.critical.add(kind)
            if kind == CONTROL_STREAM:
                self._reader = FrameReader(MAX_CONTROL_FRAME_BYTES)
            else:
                self._checker = InstructionChecker(is_encoder=kind == ENCODER_STREAM)
        else:
            connection.spend(1)
            connection.stop(sid, H3_STREAM_CREATION_ERROR)  # unknown types are not read (RFC 9114 §6.2)


class Control:
    """What the visitor's control stream has said."""

    __slots__ = ("_goaway", "_max_push_id", "critical", "priorities", "settings")

    def __init__(self) -> None:
        self._goaway = -1
        self._max_push_id = -1
        self.critical: set[int] = set()
        """Types of the critical streams that are open."""
        self.settings: dict[int, int] | None = None
        self.priorities: dict[int, bytes] = {}
        """Updates for requests that are not here yet."""

    def frame(self, connection: H3Connection, kind: int, payload: bytes) -> None:
        """Takes a frame of the control stream. Raises H3Error."""
        if self.settings is None:
            if kind != SETTINGS:
                raise H3Error(H3_MISSING_SETTINGS, "the control stream does not begin with SETTINGS (RFC 9114 §6.2.1)")
            self.settings = decode_settings(payload)
            return
        if kind == SETTINGS:
            raise H3Error(H3_FRAME_UNEXPECTED, "a second SETTINGS frame (RFC 9114 §7.2.4)")
        if kind in (DATA, HEADERS, PUSH_PROMISE) or kind in OF_HTTP2:
            raise H3Error(H3_FRAME_UNEXPECTED, f"a frame of type {kind:#x} on the control stream (RFC 9114 §7.2)")
        connection.spend(1)
        if kind == GOAWAY:
            push_id = decode_one_varint(payload, "GOAWAY")
            if 0 <= self._goaway < push_id:
                raise H3Error(H3_ID_ERROR, "GOAWAY with a larger id than before (RFC 9114 §5.2)")
            self._goaway = push_id
        elif kind == MAX_PUSH_ID:
            push_id = decode_one_varint(payload, "MAX_PUSH_ID")
            if push_id < self._max_push_id:
                raise H3Error(H3_ID_ERROR, "MAX_PUSH_ID goes back (RFC 9114 §7.2.7)")
            self._max_push_id = push_id
        elif kind == CANCEL_PUSH:
            decode_one_varint(payload, "CANCEL_PUSH")
            raise H3Error(H3_ID_ERROR, "CANCEL_PUSH of what was never promised (RFC 9114 §7.2.3)")
        elif kind == PRIORITY_UPDATE_REQUEST:
            self._update_priority(connection, payload)
        elif kind == PRIORITY_UPDATE_PUSH:
            push_id, _end = decode_varint(payload)
            if push_id < 0:
                raise H3Error(H3_FRAME_ERROR, "a PRIORITY_UPDATE frame without an id (RFC 9218 §7.2)")
            raise H3Error(H3_ID_ERROR, "a priority for what was never promised (RFC 9218 §7.2)")

    def _update_priority(self, connection: H3Connection, payload: bytes) -> None:
        sid, end = decode_varint(payload)
        if sid < 0:
            raise H3Error(H3_FRAME_ERROR, "a PRIORITY_UPDATE frame without an id (RFC 9218 §7.2)")
        if sid & 3:
            raise H3Error(H3_ID_ERROR, "a priority for a stream that is no request (RFC 9218 §7.2)")
        value = payload[end:]
        stream = connection.streams.get(sid)
        if stream is not None:
            stream.set_priority(parse_priority(value))
        elif sid > connection.last_request:
            if sid > connection.last_request + 4 * MAX_EARLY_PRIORITIES:
                raise H3Error(H3_ID_ERROR, "a priority for a stream beyond the limit (RFC 9218 §7.2)")
            if len(self.priorities) < MAX_EARLY_PRIORITIES:
                self.priorities[sid] = value
