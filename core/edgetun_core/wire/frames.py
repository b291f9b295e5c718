"""Frames of the tunnel protocol: their kinds, their limits and how their headers are written (docs/protocol.md).

A frame is an 8-byte header, `>II`: the kind in the first word's top byte and the payload's length in its other three, then the
id of the exchange (0: the session itself), and the payload. On `HEAD` and `DATA` the kind's top bit says that nothing
follows in this direction.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from edgetun_core.errors import EdgetunError, ProtocolError

HEADER: Final = Struct(">II")
HEADER_BYTES: Final = 8

# Of the session. Lane 0 only, but for PING and PONG, which any lane may carry.
HELLO: Final = 0x01
WELCOME: Final = 0x02
REFUSE: Final = 0x03
PING: Final = 0x04
PONG: Final = 0x05
DRAIN: Final = 0x06
CLOSE: Final = 0x07

# Of an exchange (CREDIT with exchange 0 is the session's).
HEAD: Final = 0x10
INTERIM: Final = 0x11
DATA: Final = 0x12
TRAILERS: Final = 0x13
RESET: Final = 0x14
CREDIT: Final = 0x15
MOVE: Final = 0x16

END: Final = 0x80
KIND_BITS: Final = 0x7F
HEAD_END: Final = HEAD | END
DATA_END: Final = DATA | END

# Of an exchange that carries datagrams (datagrams.py); one of those that are skipped by who does not know them.
DATAGRAM: Final = 0x40

IGNORABLE_FROM: Final = 0x40
IGNORABLE_TO: Final = 0x5F

# The same, shifted into the first word, ready for `| length`.
WORD_HEAD: Final = HEAD << 24
WORD_HEAD_END: Final = HEAD_END << 24
WORD_INTERIM: Final = INTERIM << 24
WORD_DATA: Final = DATA << 24
WORD_DATA_END: Final = DATA_END << 24
WORD_TRAILERS: Final = TRAILERS << 24
WORD_RESET: Final = RESET << 24
WORD_CREDIT: Final = CREDIT << 24
WORD_MOVE: Final = MOVE << 24

MAX_DATA_BYTES: Final = 64 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_CONTROL_BYTES: Final = 64 * 1024
MAX_PING_BYTES: Final = 64
MAX_RESET_BYTES: Final = 1024
MAX_ID: Final = 0xFFFF_FFFF
MAX_LANES: Final = 64
MAX_CREDIT: Final = 0x7FFF_FFFF

BULK_PAYLOAD_BYTES: Final = 16 * 1024
"""Payloads from here on are not waited for as a whole: their pieces go on as they come."""

BULK_BODY_BYTES: Final = 256 * 1024
"""A body beyond this moves to a bulk lane, where the link has one."""

NAMES: Final[dict[int, str]] = {
    HELLO: "HELLO",
    WELCOME: "WELCOME",
    REFUSE: "REFUSE",
    PING: "PING",
    PONG: "PONG",
    DRAIN: "DRAIN",
    CLOSE: "CLOSE",
    HEAD: "HEAD",
    INTERIM: "INTERIM",
    DATA: "DATA",
    TRAILERS: "TRAILERS",
    RESET: "RESET",
    CREDIT: "CREDIT",
    MOVE: "MOVE",
    DATAGRAM: "DATAGRAM",
    HEAD_END: "HEAD+END",
    DATA_END: "DATA+END",
}

MAX_PAYLOAD_BYTES: Final[dict[int, int]] = {
    HELLO: MAX_CONTROL_BYTES,
    WELCOME: MAX_CONTROL_BYTES,
    REFUSE: MAX_CONTROL_BYTES,
    PING: MAX_PING_BYTES,
    PONG: MAX_PING_BYTES,
    DRAIN: MAX_CONTROL_BYTES,
    CLOSE: MAX_CONTROL_BYTES,
    HEAD: MAX_HEAD_BYTES,
    HEAD_END: MAX_HEAD_BYTES,
    INTERIM: MAX_HEAD_BYTES,
    TRAILERS: MAX_HEAD_BYTES,
    DATA: MAX_DATA_BYTES,
    DATA_END: MAX_DATA_BYTES,
    RESET: MAX_RESET_BYTES,
    CREDIT: 4,
    MOVE: 4,
} | dict.fromkeys(range(IGNORABLE_FROM, IGNORABLE_TO + 1), MAX_CONTROL_BYTES)
"""The longest payload of each kind; a kind that is not here does not exist."""


class SessionBroken(ProtocolError):
    """The peer broke a rule of framing, order or credit, so nothing more it sends can be understood: the session closes.

    Only `wire/` raises it, and only for the peer's bytes; a `ProtocolError` from elsewhere never closes a session.
    """


def name_of(kind: int) -> str:
    """A kind's name for people."""
    return NAMES.get(kind, f"0x{kind:02x}")


def encode_frame(kind: int, exchange: int, payload: bytes) -> bytes:
    """A whole frame; for control frames and tests, the hot path packs by itself."""
    return HEADER.pack(kind << 24 | len(payload), exchange) + payload


def encode_reset(exchange: int, error: EdgetunError) -> bytes:
    """A RESET frame that carries the error's code and its message, cut to what fits."""
    text = str(error).encode("utf-8", "replace")[: MAX_RESET_BYTES - 2]
    return encode_frame(RESET, exchange, error.presentation.close_code.to_bytes(2, "big") + text)
