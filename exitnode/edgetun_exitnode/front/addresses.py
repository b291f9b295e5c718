"""Visitors' addresses as text, and how many connections each has."""

from __future__ import annotations

import socket


class AddressCounts:
    """Connections per IPv4 address or IPv6 /64; loopback is exempt. `bound` 0 means no bound, and nothing is counted."""

    __slots__ = ("_bound", "_counts")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._counts: dict[bytes | str, int] = {}

    def add(self, address: str) -> None:
        """One more connection or handshake from this address."""
        key = address_key(address) if self._bound else None
        if key is not None:
            self._counts[key] = self._counts.get(key, 0) + 1

    def remove(self, address: str) -> None:
        """One fewer."""
        key = address_key(address) if self._counts else None
        if key is not None:
            left = self._counts.get(key, 0) - 1
            if left > 0:
                self._counts[key] = left
            else:
                self._counts.pop(key, None)

    def is_over(self, address: str, coming: int = 0) -> bool:
        """Whether this address has more than it may, with `coming` more that are not counted yet."""
        if not self._counts:
            return False
        key = address_key(address)
        return key is not None and self._counts.get(key, 0) + coming > self._bound


def normalise_address(address: str) -> str:
    """`::ffff:192.0.2.1` is `192.0.2.1`, and a zone is no part of who somebody is."""
    if ":" in address:
        if address.startswith("::ffff:") and "." in address:
            return address[7:]
        return address.partition("%")[0]
    return address


def address_key(address: str) -> bytes | str | None:
    """What connections are counted by: the IPv4 address or the IPv6 /64; None for loopback."""
    if ":" not in address:
        return None if address.startswith("127.") or not address else address
    if address == "::1":
        return None
    try:
        return socket.inet_pton(socket.AF_INET6, address)[:8]
    except OSError:
        return address
