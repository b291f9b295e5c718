"""What the cache needs of a clock and an event loop; `asyncio` loops fit, and tests turn the hands themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    """A timer that has been set."""

    def cancel(self) -> None:
        """Forgets it; does nothing when it has run."""


class Scheduler(Protocol):
    """Sets timers."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> TimerHandle:
        """Calls back once, after `delay` seconds."""
        ...
