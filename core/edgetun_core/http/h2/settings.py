"""HTTP/2 settings (RFC 9113 §6.5, RFC 8441 §3, RFC 9218 §2.1) and our own bounds."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from edgetun_core.http.h2.frames import (
    DEFAULT_WINDOW_BYTES,
    LEAST_MAX_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    MOST_MAX_FRAME_BYTES,
    Code,
    ConnectionBroken,
)

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6
ENABLE_CONNECT_PROTOCOL: Final = 0x8
NO_RFC7540_PRIORITIES: Final = 0x9

DEFAULT_TABLE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class H2Limits:
    """What one connection may take of us. The windows (65,535 at least) bound what is received and not yet taken."""

    max_concurrent_streams: int = 100
    """Streams of the peer at a time; one more is refused (§5.1.2)."""
    stream_window_bytes: int = 256 * 1024
    """What a peer may send on a stream before it is taken."""
    connection_window_bytes: int = 1024 * 1024
    """The same for all streams together."""
    max_block_bytes: int = 64 * 1024
    """A header block as it comes; beyond it the connection ends (its compression state would be lost)."""
    max_list_bytes: int = 128 * 1024
    """A header block decoded, 32 bytes per field included; beyond it the connection ends."""
    max_continuations: int = 16
    """CONTINUATION frames of one header block."""
    stream_queue_bytes: int = 256 * 1024
    """What may wait to be sent on a stream; beyond it whoever writes is paused."""
    connection_queue_bytes: int = 1024 * 1024
    """The same for all streams together."""
    control_burst: int = 2_000
    """Frames that carry nothing (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, unknown ones) at once ..."""
    control_per_s: int = 200
    """... and per second. Requests and DATA sent earn a few as well."""
    reset_burst: int = 200
    """Streams that the peer cancels, or makes us reset, before they were answered, at once ..."""
    reset_per_s: int = 20
    """... and per second. Answered requests earn some as well."""


_unpack_all = struct.Struct(">HL").iter_unpack


class PeerSettings:
    """What the peer announced; begins with the defaults (§6.5.2)."""

    __slots__ = (
        "enable_connect_protocol",
        "header_table_bytes",
        "initial_window_bytes",
        "max_concurrent_streams",
        "max_frame_bytes",
        "max_header_list_bytes",
    )

    def __init__(self) -> None:
        self.header_table_bytes = DEFAULT_TABLE_BYTES
        self.max_concurrent_streams = MAX_WINDOW_BYTES
        self.initial_window_bytes = DEFAULT_WINDOW_BYTES
        self.max_frame_bytes = LEAST_MAX_FRAME_BYTES
        self.max_header_list_bytes = 0xFFFF_FFFF
        self.enable_connect_protocol = False

    def update(self, payload: bytes, *, is_server: bool) -> None:
        """Takes the values of a SETTINGS frame, in order (§6.5.3). Raises ConnectionBroken; `is_server` is our own role."""
        for setting, value in _unpack_all(payload):
            if setting == HEADER_TABLE_SIZE:
                self.header_table_bytes = value
            elif setting == ENABLE_PUSH:
                if value > 1 or (value == 1 and not is_server):
                    raise ConnectionBroken(
                        Code.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is out of range (RFC 9113 §6.5.2)"
                    )
            elif setting == MAX_CONCURRENT_STREAMS:
                self.max_concurrent_streams = value
            elif setting == INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW_BYTES:
                    raise ConnectionBroken(
                        Code.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE is beyond 2^31-1 (RFC 9113 §6.5.2)"
                    )
                self.initial_window_bytes = value
            elif setting == MAX_FRAME_SIZE:
                if not LEAST_MAX_FRAME_BYTES <= value <= MOST_MAX_FRAME_BYTES:
                    raise ConnectionBroken(
                        Code.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE is out of range (RFC 9113 §6.5.2)"
                    )
                self.max_frame_bytes = value
            elif setting == MAX_HEADER_LIST_SIZE:
                self.max_header_list_bytes = value
            elif setting == ENABLE_CONNECT_PROTOCOL:
                if value > 1 or (value == 0 and self.enable_connect_protocol):
                    raise ConnectionBroken(
                        Code.PROTOCOL_ERROR, "SETTINGS_ENABLE_CONNECT_PROTOCOL is out of range (RFC 8441 §3)"
                    )
                self.enable_connect_protocol = value == 1
