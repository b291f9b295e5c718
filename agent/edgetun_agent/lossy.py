"""What is remembered of an endpoint's path: whether it loses packets at random, and for how long that is believed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOSSY_FIRST_S: Final = 600.0
LOSSY_MOST_S: Final = 6 * 3600.0


@dataclass(slots=True)
class LossMemory:
    """Believed for longer each time, so that a path on the border does not make sessions move to and fro."""

    lossy_until: float = 0.0
    times: int = 0

    def is_lossy(self, now: float) -> bool:
        """Whether a session should begin with the controller for such paths."""
        return now < self.lossy_until

    def found_lossy(self, now: float) -> None:
        """A session measured it."""
        self.times += 1
        self.lossy_until = now + min(LOSSY_MOST_S, LOSSY_FIRST_S * 2.0 ** min(self.times - 1, 16))
