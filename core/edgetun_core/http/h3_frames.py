"""HTTP/3's frames and stream types (RFC 9114 §6, §7), read incrementally from one stream, without I/O.

Hot path: a request that came whole in one piece never gets here (`front/h3.py` knows it by its bytes); bodies do.
Bounds: a frame that must be whole before it means anything (HEADERS, SETTINGS, ...) is held up to the reader's limit; DATA and
unknown frames are passed on or dropped as they come.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.errors import ProtocolError

# Frame types (RFC 9114 §7.2, RFC 9218 §7.2).
DATA: Final = 0x00
HEADERS: Final = 0x01
CANCEL_PUSH: Final = 0x03
SETTINGS: Final = 0x04
PUSH_PROMISE: Final = 0x05
GOAWAY: Final = 0x07
MAX_PUSH_ID: Final = 0x0D
PRIORITY_UPDATE_REQUEST: Final = 0xF0700
PRIORITY_UPDATE_PUSH: Final = 0xF0701
OF_HTTP2: Final = frozenset((0x02, 0x06, 0x08, 0x09))
"""Frame types of HTTP/2 that must not be used here (RFC 9114 §7.2.8)."""

# Unidirectional stream types (RFC 9114 §6.2, RFC 9204 §4.2).
CONTROL_STREAM: Final = 0x00
PUSH_STREAM: Final = 0x01
ENCODER_STREAM: Final = 0x02
DECODER_STREAM: Final = 0x03

# Settings (RFC 9114 §7.2.4.1, RFC 9204 §5, RFC 9220 §5, RFC 9297 §2.1.1).
QPACK_MAX_TABLE_CAPACITY: Final = 0x01
MAX_FIELD_SECTION_SIZE: Final = 0x06
QPACK_BLOCKED_STREAMS: Final = 0x07
ENABLE_CONNECT_PROTOCOL: Final = 0x08
H3_DATAGRAM: Final = 0x33
SETTINGS_OF_HTTP2: Final = frozenset((0x00, 0x02, 0x03, 0x04, 0x05))
MAX_SETTINGS: Final = 64

# Error codes (RFC 9114 §8.1, RFC 9204 §6).
H3_NO_ERROR: Final = 0x100
H3_GENERAL_PROTOCOL_ERROR: Final = 0x101
H3_INTERNAL_ERROR: Final = 0x102
H3_STREAM_CREATION_ERROR: Final = 0x103
H3_CLOSED_CRITICAL_STREAM: Final = 0x104
H3_FRAME_UNEXPECTED: Final = 0x105
H3_FRAME_ERROR: Final = 0x106
H3_EXCESSIVE_LOAD: Final = 0x107
H3_ID_ERROR: Final = 0x108
H3_SETTINGS_ERROR: Final = 0x109
H3_MISSING_SETTINGS: Final = 0x10A
H3_REQUEST_REJECTED: Final = 0x10B
H3_REQUEST_CANCELLED: Final = 0x10C
H3_REQUEST_INCOMPLETE: Final = 0x10D
H3_MESSAGE_ERROR: Final = 0x10E
H3_CONNECT_ERROR: Final = 0x10F
H3_VERSION_FALLBACK: Final = 0x110
QPACK_DECOMPRESSION_FAILED: Final = 0x200
QPACK_ENCODER_STREAM_ERROR: Final = 0x201
QPACK_DECODER_STREAM_ERROR: Final = 0x202

MAX_VARINT: Final = (1 << 62) - 1


class H3Error(ProtocolError):
    """A peer broke HTTP/3's rules; the connection ends with `code` (RFC 9114 §8)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class FrameTooLarge(Exception):
    """A frame that must be held whole is larger than the reader's limit; `type` says which."""

    def __init__(self, frame_type: int, size: int) -> None:
        super().__init__(frame_type, size)
        self.type = frame_type
        self.size = size


def encode_varint(value: int) -> bytes:
    """A variable-length integer in its shortest form (RFC 9000 §16)."""
    if value < 0x40:
        return bytes((value,))
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def decode_varint(data: bytes | bytearray | memoryview, at: int = 0) -> tuple[int, int]:
    """The integer at `at` and where it ends; (-1, at) when it is not all there."""
    if at >= len(data):
        return -1, at
    first = data[at]
    if first < 0x40:
        return first, at + 1
    size = 1 << (first >> 6)
    end = at + size
    if end > len(data):
        return -1, at
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * size - 2)) - 1), end


def encode_frame(frame_type: int, payload: bytes) -> bytes:
    """A whole frame."""
    return encode_varint(frame_type) + encode_varint(len(payload)) + payload


def encode_settings(settings: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return encode_frame(
        SETTINGS, b"".join(encode_varint(key) + encode_varint(value) for key, value in settings.items())
    )


def decode_settings(payload: bytes) -> dict[int, int]:
    """Reads a SETTINGS frame's payload (RFC 9114 §7.2.4). Raises H3Error."""
    settings: dict[int, int] = {}
    at = 0
    while at < len(payload):
        key, at = decode_varint(payload, at)
        value, end = decode_varint(payload, at)
        if key < 0 or value < 0:
            raise H3Error(H3_FRAME_ERROR, "a SETTINGS frame ends within a setting")
        at = end
        if key in SETTINGS_OF_HTTP2:
            raise H3Error(H3_SETTINGS_ERROR, f"setting {key:#x} is HTTP/2's")
        if key in settings:
            raise H3Error(H3_SETTINGS_ERROR, f"setting {key:#x} comes twice")
        if key in (ENABLE_CONNECT_PROTOCOL, H3_DATAGRAM) and value > 1:
            raise H3Error(H3_SETTINGS_ERROR, f"setting {key:#x} is neither 0 nor 1")
        settings[key] = value
        if len(settings) > MAX_SETTINGS:
            raise H3Error(H3_EXCESSIVE_LOAD, "too many settings")
    return settings


def decode_one_varint(payload: bytes, what: str) -> int:
    """The payload of a frame that is one integer (GOAWAY, MAX_PUSH_ID, CANCEL_PUSH). Raises H3Error."""
    value, end = decode_varint(payload)
    if value < 0 or end != len(payload):
        raise H3Error(H3_FRAME_ERROR, f"a {what} frame is not one integer")
    return value


class FrameReader:
    """Frames of one stream. `feed` gives `(type, bytes)`: whole payloads, but DATA's and unknown frames' as they come.

    An empty DATA frame, and an unknown frame when it begins, give one `(type, b"")`, so that they can be counted.
    """

    __slots__ = ("_held", "_left", "_limit", "_streamed", "_type")

    def __init__(self, limit: int) -> None:
        self._held = bytearray()
        self._limit = limit
        self._type = -1
        self._left = 0
        self._streamed = False

    @property
    def is_between_frames(self) -> bool:
        """False when the stream must not end here (RFC 9114 §7.1)."""
        return self._type < 0 and not self._held

    @property
    def held_bytes(self) -> int:
        """What is kept of a frame that is not whole."""
        return len(self._held)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Takes the next bytes of the stream. Raises FrameTooLarge."""
        frames: list[tuple[int, bytes]] = []
        at = 0
        held = self._held
        if held and not self._streamed:
            held += data
            data = bytes(held)
            held.clear()
        size = len(data)
        while at < size or (self._type >= 0 and not self._left):
            if self._type < 0:
                frame_type, end = decode_varint(data, at)
                length, end = decode_varint(data, end) if frame_type >= 0 else (-1, at)
                if length < 0:
                    held += data[at:]
                    break
                at = end
                self._type, self._left = frame_type, length
                self._streamed = frame_type not in _WHOLE
                if not self._streamed and length > self._limit:
                    raise FrameTooLarge(frame_type, length)
                if self._streamed and (frame_type != DATA or not length):
                    frames.append((frame_type, b""))
            if self._streamed:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if piece and self._type == DATA:
                    frames.append((DATA, piece))
                if self._left:
                    break
            else:
                if size - at < self._left:
                    # The header is read; what is held is payload only, and `_left` stays the whole payload's length.
                    held += data[at:]
                    break
                frames.append((self._type, data[at : at + self._left]))
                at += self._left
            self._type = -1
            self._left = 0
            self._streamed = False
        return frames


_WHOLE: Final = frozenset(
    (
        *(HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID),
        *(PRIORITY_UPDATE_REQUEST, PRIORITY_UPDATE_PUSH),
    )
)
