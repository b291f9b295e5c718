"""What the kernel lost because a QUIC socket of this process had no room: datagrams that no program ever saw.

A burst at full speed wants 7.5 MB per socket; where `net.core.rmem_max` gives less, QUIC takes what is lost here for a bad network.
Sockets are watched from their making to their close; a scrape reads (`process_metrics`).
"""

from __future__ import annotations

import socket
import struct
from typing import Final

SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=9I")
_DROPS: Final = 8

_watched: Final[set[socket.socket]] = set()
_dropped_before = 0
"""Of sockets that are closed."""


def watch(sock: socket.socket) -> None:
    """Counts a socket in; `leave` it before it is closed."""
    _watched.add(sock)


def leave(sock: socket.socket) -> None:
    """Keeps what was dropped."""
    global _dropped_before
    if sock in _watched:
        _watched.remove(sock)
        _dropped_before += _drops_of(sock)


def udp_drops() -> int:
    """Datagrams lost since the process began. May be called on another thread than the sockets' own."""
    return _dropped_before + sum(map(_drops_of, list(_watched)))


def _drops_of(sock: socket.socket) -> int:
    """0 where the kernel does not tell (not Linux), and for a socket that was closed meanwhile."""
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return 0
    return int(_MEMINFO.unpack(told)[_DROPS]) if len(told) == _MEMINFO.size else 0
