"""TLS session tickets on both sides of QUIC: a listener's, each good for one use, and what a dialler remembers of its peers.

A ticket saves the certificate and its check, a signature and a round of bytes. No data is sent before the handshake is through (0-RTT): the
hello carries a credential, and a first flight can be replayed; see docs/decisions/2026-11-26-sessions-are-resumed-not-early.md.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

MAX_REMEMBERED: Final = 256
REMEMBERED_FOR_S: Final = 3600.0
"""A resumed handshake shows no certificate: within this time a peer is believed to be who it was."""


class Tickets:
    """Session tickets by their id, each good for one use: a replayed first flight finds its ticket gone (RFC 8446 §8.1)."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._tickets: dict[bytes, Any] = {}

    def put(self, ticket: Any) -> None:
        """Keeps a ticket; the oldest makes room."""
        if len(self._tickets) >= self._capacity:
            del self._tickets[next(iter(self._tickets))]
        self._tickets[ticket.ticket] = ticket

    def take(self, ticket_id: bytes, server_name: str) -> Any:
        """Gives a ticket away, if it was made for the same server name; None when there is none."""
        ticket = self._tickets.pop(ticket_id, None)
        return ticket if ticket is not None and (ticket.server_name or "") == server_name else None

    def take_any(self, ticket_id: bytes) -> Any:
        """The same where there is one server name only."""
        return self._tickets.pop(ticket_id, None)

    def __len__(self) -> int:
        return len(self._tickets)


class Remembered:
    """A dialler's tickets, the newest of each peer; in memory only."""

    def __init__(self) -> None:
        self._tickets: dict[Hashable, tuple[Any, float]] = {}

    def put(self, peer: Hashable, ticket: Any, now: float) -> None:
        """Keeps a peer's ticket; the oldest makes room."""
        self._tickets.pop(peer, None)
        if len(self._tickets) >= MAX_REMEMBERED:
            del self._tickets[next(iter(self._tickets))]
        self._tickets[peer] = (ticket, now)

    def take(self, peer: Hashable, now: float) -> Any:
        """A peer's ticket, for one use; None when there is none that is young enough."""
        ticket, since = self._tickets.pop(peer, (None, 0.0))
        return ticket if now - since < REMEMBERED_FOR_S else None
