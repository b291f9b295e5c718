"""What transports of raw TCP need of the socket below: a reset that the other side sees as one, and no delay."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

_LINGER_NOT: Final = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Drops a connection with RST instead of FIN, so that whoever reads from it learns that the end is none."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        except OSError:
            pass  # it is gone already, or no TCP
    transport.abort()


def no_delay(transport: asyncio.Transport) -> None:
    """Small writes leave at once; the loops do so for sockets that they made, not for all that they were given."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # the connection works without
