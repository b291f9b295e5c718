"""How a dialler's TCP connections come about when they do not simply go to the address: through a proxy, or in a WebSocket."""

from __future__ import annotations

import socket
from typing import Protocol


class Way(Protocol):
    """Another way to an address than the direct one."""

    def leads_to(self, host: str, port: int) -> bool:
        """Whether connections to this address take it; the others are made directly."""
        ...

    async def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """A connected, non-blocking socket whose bytes arrive at the address.

        Raises `UpstreamUnreachable` or `AuthError` in words for a person; never with a password in them.
        """
        ...
