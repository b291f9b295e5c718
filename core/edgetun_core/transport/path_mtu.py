"""Whether a path still carries large packets: RFC 8899's black hole detection, from what both QUIC libraries tell. Pure.

Neither library looks for one once a connection stands. Probe timeouts alone do not show it: what is small still arrives, is acknowledged,
and ends the timeouts. So large packets sent are held against packets lost, over several round trips: a queue that overflows loses
most of one.
"""

from __future__ import annotations

from typing import Final

WINDOW_PACKETS: Final = 8
"""Large packets per judgement, at least, and at least a round trip's."""
LOST_SHARE: Final = 0.75
"""Lost packets per large one sent."""
WINDOWS: Final = 3
"""Judgements in a row."""


class BlackHole:
    """Fed with a connection's running totals."""

    __slots__ = ("_bad", "_from_large", "_from_lost", "_not_before")

    def __init__(self) -> None:
        self._from_large = 0
        self._from_lost = 0
        self._not_before = 0.0
        self._bad = 0

    def is_there(self, large_sent: int, lost: int, rtt_s: float, now: float) -> bool:
        """`large_sent` and `lost` are packets since the connection began; losses are known a round trip later, so a later window tells."""
        large = large_sent - self._from_large
        if large < WINDOW_PACKETS or now < self._not_before:
            return False
        self._bad = self._bad + 1 if lost - self._from_lost >= LOST_SHARE * large else 0
        self._from_large = large_sent
        self._from_lost = lost
        self._not_before = now + rtt_s
        return self._bad >= WINDOWS
