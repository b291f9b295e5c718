"""How long to wait before the next try: exponential with full jitter, so that many who failed together do not come together."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Grows with every failure, starts anew after `reset`."""

    __slots__ = ("_attempt", "_first_s", "_most_s", "_random")

    def __init__(self, first_s: float, most_s: float, rng: Callable[[], float] = random.random) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._random = rng
        self._attempt = 0

    @property
    def attempts(self) -> int:
        """Failures since the last `reset`."""
        return self._attempt

    def next_s(self) -> float:
        """Seconds to wait now; between half of and the whole of the current step."""
        step = min(self._most_s, self._first_s * (1 << min(self._attempt, 30)))
        self._attempt += 1
        return step * (0.5 + 0.5 * self._random())

    def reset(self) -> None:
        self._attempt = 0
