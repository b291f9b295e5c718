"""HTTP/2 frames: numbers, sizes and builders (RFC 9113 §4, §6, §7)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from edgetun_core.errors import ProtocolError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client begins with (RFC 9113 §3.4)."""

HEADER: Final = struct.Struct(">BHBBL")
"""Length in two parts, type, flags, stream (§4.1)."""
HEADER_BYTES: Final = 9
LEAST_MAX_FRAME_BYTES: Final = 16_384
MOST_MAX_FRAME_BYTES: Final = 0xFF_FFFF
DEFAULT_WINDOW_BYTES: Final = 65_535
MAX_WINDOW_BYTES: Final = 0x7FFF_FFFF
MAX_STREAM_ID: Final = 0x7FFF_FFFF

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9
PRIORITY_UPDATE: Final = 0x10
"""RFC 9218 §7.1."""

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20


class Code(IntEnum):
    """Error codes (§7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def name_of(code: int) -> str:
    """The code's name, or its number when it has none."""
    try:
        return Code(code).name
    except ValueError:
        return f"0x{code:x}"


class ConnectionBroken(ProtocolError):
    """A connection error (§5.4.1): GOAWAY with `code`, and the end."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class StreamBroken(ProtocolError):
    """A stream error (§5.4.2): RST_STREAM with `code`; the connection goes on."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


_pack = HEADER.pack
_pack_four = struct.Struct(">BHBBLL").pack
_pack_goaway = struct.Struct(">BHBBLLL").pack
_pack_setting = struct.Struct(">HL").pack


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    size = len(payload)
    return _pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def build_headers(stream_id: int, block: bytes, max_frame_bytes: int, *, end: bool) -> bytes:
    """HEADERS, and as many CONTINUATION as the block needs."""
    size = len(block)
    if size <= max_frame_bytes:
        flags = END_HEADERS | END_STREAM if end else END_HEADERS
        return _pack(size >> 16, size & 0xFFFF, HEADERS, flags, stream_id) + block
    parts = [frame(HEADERS, END_STREAM if end else 0, stream_id, block[:max_frame_bytes])]
    for at in range(max_frame_bytes, size, max_frame_bytes):
        is_last = at + max_frame_bytes >= size
        piece = block[at : at + max_frame_bytes]
        parts.append(frame(CONTINUATION, END_HEADERS if is_last else 0, stream_id, piece))
    return b"".join(parts)


def build_rst_stream(stream_id: int, code: int) -> bytes:
    return _pack_four(0, 4, RST_STREAM, 0, stream_id, code)


def build_window_update(stream_id: int, increment: int) -> bytes:
    return _pack_four(0, 4, WINDOW_UPDATE, 0, stream_id, increment)


def build_goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    return _pack_goaway(0, 8 + len(debug), GOAWAY, 0, 0, last_stream_id, code) + debug


def build_settings(settings: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join([_pack_setting(*setting) for setting in settings.items()]))


def build_priority_update(stream_id: int, value: bytes) -> bytes:
    return frame(PRIORITY_UPDATE, 0, 0, stream_id.to_bytes(4, "big") + value)


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)
