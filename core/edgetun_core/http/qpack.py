"""QPACK (RFC 9204) without a dynamic table, by a native codec: what is equal is encoded equally, so blocks can be memoised.

We announce a table capacity of 0. A peer can then put nothing into a table of ours, its blocks never wait for anything, and
a block's bytes alone say what it means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qh3._hazmat import DecoderStreamError, HeaderTooLarge, QpackDecoder, QpackEncoder, StreamBlocked

from edgetun_core.http.h3_frames import (
    QPACK_DECODER_STREAM_ERROR,
    QPACK_DECOMPRESSION_FAILED,
    QPACK_ENCODER_STREAM_ERROR,
    H3Error,
)
from edgetun_core.http.message import Field

EMPTY_SECTION: Final = b"\x00\x00"
"""Required Insert Count 0, Base 0 (RFC 9204 §4.5.1), and no field line."""

_encoder = QpackEncoder()
_encoder.apply_settings(0, 0, 0)


class SectionTooLarge(Exception):
    """A field section is beyond the limit that we announced (RFC 9114 §4.2.2)."""


class SectionDecoder:
    """Decodes field sections; one serves any number of connections, since no section refers to another."""

    def __init__(self, max_section_bytes: int) -> None:
        self._max_section_bytes = max_section_bytes
        self._decoder = QpackDecoder(0, 0, max_field_section_size=max_section_bytes)

    def decode(self, block: bytes) -> list[Field]:
        """The fields of an encoded section, in order. Raises H3Error (the connection's end), or SectionTooLarge."""
        if block == EMPTY_SECTION:
            return []
        try:
            return self._decoder.feed_header(0, block)[1]
        except HeaderTooLarge:
            self._renew()
            raise SectionTooLarge from None
        except (DecoderStreamError, StreamBlocked, ValueError):
            self._renew()
            raise H3Error(QPACK_DECOMPRESSION_FAILED, "a field section cannot be decoded (RFC 9204 §2.2)") from None

    def _renew(self) -> None:
        self._decoder = QpackDecoder(0, 0, max_field_section_size=self._max_section_bytes)


def encode_section(fields: Iterable[Field]) -> bytes:
    """An encoded field section, prefix included."""
    listed = list(fields)
    return _encoder.encode(0, listed)[1] if listed else EMPTY_SECTION


def encode_date_line(date: bytes) -> bytes:
    """A `date` field line that can be put behind any encoded section (RFC 9204 §4.5.4; `date` is static name 6)."""
    assert len(date) < 0x7F
    return bytes((0x56, len(date))) + date


class InstructionChecker:
    """Reads a peer's encoder or decoder stream, on which almost nothing may stand when no table is in use."""

    __slots__ = ("_is_encoder", "_more", "_value")

    def __init__(self, *, is_encoder: bool) -> None:
        self._is_encoder = is_encoder
        self._more = False
        self._value = 0

    def feed(self, data: bytes) -> int:
        """Takes the next bytes; returns how many instructions they held. Raises H3Error (RFC 9204 §4.3, §4.4)."""
        count = 0
        for byte in data:
            if self._more:  # a Stream Cancellation's id, continued (RFC 7541 §5.1)
                self._value += 1
                if self._value > 9:
                    raise H3Error(QPACK_DECODER_STREAM_ERROR, "an integer on the QPACK decoder stream is too long")
                self._more = byte & 0x80 != 0
                continue
            count += 1
            if self._is_encoder:
                if byte != 0x20:  # Set Dynamic Table Capacity to 0
                    raise H3Error(
                        QPACK_ENCODER_STREAM_ERROR, "there is no dynamic table to insert into (RFC 9204 §3.2.3)"
                    )
            elif byte & 0xC0 == 0x40:  # Stream Cancellation
                self._more = byte & 0x3F == 0x3F
                self._value = 0
            else:
                raise H3Error(QPACK_DECODER_STREAM_ERROR, "an acknowledgment of what was never sent (RFC 9204 §4.4)")
        return count
