"""Counts failed attempts per address, so that whoever tries tokens out is told to wait.

A token's secret has 256 bits and cannot be guessed; this bounds the noise and the work. A good token always passes: many
laptops share an office's address with the one whose script has gone wild.
"""

from __future__ import annotations

import ipaddress
from typing import Final

MOST_FAILURES: Final = 20
WINDOW_S: Final = 60.0
MOST_ADDRESSES: Final = 10_000


class FailedAttempts:
    """Fixed windows per IPv4 address or IPv6 /64. At most `MOST_ADDRESSES` are remembered; then the oldest are forgotten."""

    def __init__(
        self, most: int = MOST_FAILURES, window_s: float = WINDOW_S, most_addresses: int = MOST_ADDRESSES
    ) -> None:
        self._most = most
        self._window_s = window_s
        self._most_addresses = most_addresses
        self._windows: dict[str, tuple[float, int]] = {}

    def wait_s(self, address: str, now: float) -> float:
        """How long the address must wait before a failure is answered again; 0 when it need not."""
        since, count = self._windows.get(address_key(address), (now, 0))
        left_s = since + self._window_s - now
        return left_s if count >= self._most and left_s > 0 else 0.0

    def note(self, address: str, now: float) -> None:
        """One more failure."""
        key = address_key(address)
        since, count = self._windows.pop(key, (now, 0))
        if now >= since + self._window_s:
            since, count = now, 0
        while len(self._windows) >= self._most_addresses:
            del self._windows[next(iter(self._windows))]
        self._windows[key] = (since, count + 1)

    def __len__(self) -> int:
        return len(self._windows)


def address_key(address: str) -> str:
    """What counts as one address: IPv4 as it is, IPv6 by its /64, since one host has all of that."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(ip) >> 64 << 64))
    return str(ip)
