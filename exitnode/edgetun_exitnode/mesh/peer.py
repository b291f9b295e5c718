"""One other exit node: the sessions with it, and when to dial it again after it could not be reached."""

from __future__ import annotations

import asyncio
from typing import Final

from edgetun_core.transport.runner import SessionRunner

RETRY_FIRST_S: Final = 0.5
RETRY_MOST_S: Final = 30.0


class Peer:
    """What the mesh knows of one exit node. `name` is `pool/region/node`."""

    __slots__ = (
        "active_until",
        "dialling",
        "exchanges",
        "failures",
        "is_probing",
        "name",
        "opened_before",
        "probes",
        "retry_at",
        "runners",
        "stale",
        "used_at",
        "wanted_for",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.runners: list[SessionRunner] = []
        """Sessions that take exchanges, whichever end dialled; the first is used."""
        self.dialling: asyncio.Task[None] | None = None
        self.failures = 0
        self.retry_at = 0.0
        self.used_at = 0.0
        self.wanted_for: set[str] = set()
        """Tunnels whose visitors wait for this peer to be reached."""
        self.is_probing = False
        self.probes = 0
        self.opened_before = 0
        """Exchanges opened when last looked, without probes."""
        self.active_until = 0.0
        self.stale: dict[bytes, None] = {}
        """Cache keys to tell it of as soon as it is reached; bounded, since dialling ends within seconds."""
        self.exchanges = 0
        """Of all that were, as far as somebody looked."""

    @property
    def runner(self) -> SessionRunner | None:
        return self.runners[0] if self.runners else None

    def may_dial(self, now: float) -> bool:
        """Whether it is time to try it (again)."""
        return self.dialling is None and now >= self.retry_at

    def failed(self, now: float) -> None:
        """It could not be reached, or broke off."""
        self.retry_at = now + min(RETRY_MOST_S, RETRY_FIRST_S * 2**self.failures)
        self.failures = min(self.failures + 1, 16)

    def reached(self) -> None:
        """A session with it is up."""
        self.failures = 0
        self.retry_at = 0.0
