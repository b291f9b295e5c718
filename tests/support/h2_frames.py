"""HTTP/2 by hand, for tests that must break its rules: frames, header blocks and what comes back."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from jh2.hpack import Decoder, Encoder

from edgetun_core.http.h2.frames import END_HEADERS, END_STREAM, HEADER, HEADERS, frame

GET = ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"localhost"), (b":path", b"/"))
POST = ((b":method", b"POST"), *GET[1:])


def block(*fields: tuple[bytes, bytes], huffman: bool = False) -> bytes:
    """A header block of its own: literals that enter no table. By another implementation than the one under test."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return b"".join(encoder.encode([(name, value, True)], huffman) for name, value in fields).removeprefix(b"\x20")


def headers(stream_id: int, *fields: tuple[bytes, bytes], end: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream_id, block(*fields))


def settings(*values: tuple[int, int]) -> bytes:
    return frame(0x4, 0, 0, b"".join(struct.pack(">HL", *value) for value in values))


@dataclass(frozen=True)
class Frame:
    """A frame as it came."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[:4] if self.kind == 0x3 else self.payload[4:8], "big")


def split_frames(data: bytes) -> tuple[list[Frame], bytes]:
    """Whole frames, and the rest."""
    found = []
    at = 0
    while len(data) - at >= 9:
        high, low, kind, flags, stream_id = HEADER.unpack_from(data, at)
        end = at + 9 + (high << 16 | low)
        if end > len(data):
            break
        found.append(Frame(kind, flags, stream_id, data[at + 9 : end]))
        at = end
    return found, data[at:]


def frames_of(data: bytes) -> list[Frame]:
    found, rest = split_frames(data)
    assert not rest
    return found


def fields_of(found: Iterable[Frame], decoder: Decoder | None = None) -> list[tuple[bytes, bytes]]:
    """The fields of the first header block among frames."""
    payload = b""
    for one in found:
        if one.kind in (0x1, 0x9):
            payload += one.payload
            if one.flags & END_HEADERS:
                break
    return [(bytes(field[0]), bytes(field[1])) for field in (decoder or Decoder()).decode(payload, raw=True)]
