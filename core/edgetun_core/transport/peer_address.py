"""Where a listener's connection sends when its peer's address changes. Pure.

For libraries that follow a peer to few addresses only and never back (qh3): the library is told one address for good, and this says
where its datagrams go. Another port of the same host is followed at once. Another host is sent at most three times what came from it
until it acknowledged something that was sent there alone, as RFC 9000 §8.2 and §9.3 want; if it does not, what is sent goes back to
the last host that did.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.transport.udp import Address

PROVE_WITHIN_S: Final = 3.0
AGAIN_AFTER_S: Final = 0.3
FACTOR: Final = 3


class PeerAddress:
    """One peer's."""

    __slots__ = ("_again_at", "_allowance", "_first_probe", "_probe", "_proven", "_until", "current", "is_proving")

    def __init__(self, address: Address) -> None:
        self.current = address
        self.is_proving = False
        self._proven = address
        self._probe = 0
        self._first_probe = 0
        self._allowance = 0
        self._until = 0.0
        self._again_at = 0.0

    def heard(self, address: Address, size_bytes: int, now: float) -> int:
        """Authentic datagrams came from an address. Returns the number of a probe that is to be sent (and acknowledged) now, or 0."""
        if address != self.current:
            if address[0] == self._proven[0]:
                self.current = self._proven = address
                self.is_proving = False
                return 0
            if address[0] != self.current[0]:
                self.is_proving = True
                self._allowance = 0
                self._until = now + PROVE_WITHIN_S
                self._again_at = now
                self._first_probe = self._probe + 1
            self.current = address
        if not self.is_proving:
            return 0
        self._allowance += FACTOR * size_bytes
        if now < self._again_at:
            return 0
        self._again_at = now + AGAIN_AFTER_S
        self._probe += 1
        return self._probe

    def acknowledged(self, probe: int) -> None:
        """A probe arrived where it was sent."""
        if self.is_proving and probe >= self._first_probe:
            self.is_proving = False
            self._proven = self.current

    def allowed(self, datagrams: list[bytes], now: float) -> list[bytes]:
        """What may be sent to `current`; the rest is as good as lost, and the library sends it again."""
        if not self.is_proving:
            return datagrams
        if now >= self._until:
            self.is_proving = False
            self.current = self._proven
            return datagrams
        count = 0
        for datagram in datagrams:
            if len(datagram) > self._allowance:
                break
            self._allowance -= len(datagram)
            count += 1
        return datagrams[:count]
