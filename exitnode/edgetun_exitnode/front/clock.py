"""Time as a front's deadlines count it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_MOST_SWEEPS: Final = 2
"""A sweep that comes later than this came late because the process stood still."""


class FrontClock:
    """From one sweep to the next it goes on by two sweeps' time at most.

    When the process itself stood still (a paused machine, a busy one that gave it no turn), what visitors sent meanwhile waits to
    be read, and is not to be taken for their silence. So its times mean something only beside each other.
    """

    __slots__ = ("_clock", "_most_s", "_read_at", "now")

    def __init__(self, clock: Callable[[], float], sweep_s: float) -> None:
        self._clock = clock
        self._most_s = _MOST_SWEEPS * sweep_s
        self.now = self._read_at = clock()

    def tick(self) -> float:
        """The time of this sweep; called once for each."""
        read_at = self._clock()
        self.now += min(read_at - self._read_at, self._most_s)
        self._read_at = read_at
        return self.now
