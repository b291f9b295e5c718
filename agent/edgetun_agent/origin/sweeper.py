"""The one timer of an origin's client: it looks over all exchanges now and then, for none of them has a timer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from edgetun_core.snapshot import OriginRule

SLOWEST_SWEEP_S: Final = 1.0
QUICKEST_SWEEP_S: Final = 0.02


class Sweeper:
    """Calls `sweep(now)` once in a quarter of the shortest deadline, and goes on for as long as that returns True.

    A sweep that comes late by more than that has found that this process itself stood still (a machine that slept, or was too
    busy): what the origin sent meanwhile is still to be read, so it waits for the next time before it blames anybody.
    """

    def __init__(self, rule: OriginRule, sweep: Callable[[float], bool]) -> None:
        shortest_s = min(rule.response_timeout_s, rule.idle_timeout_s, rule.connect_timeout_s)
        self._every_s = min(SLOWEST_SWEEP_S, max(QUICKEST_SWEEP_S, shortest_s / 4))
        self._sweep = sweep
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._was_late = False

    def watch(self) -> None:
        """There is something to look over."""
        if self._timer is None:
            self._due = monotonic() + self._every_s
            self._timer = asyncio.get_running_loop().call_later(self._every_s, self._look)

    def stop(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        # Once at a time: a process that is always late keeps its deadlines all the same.
        self._was_late = not self._was_late and now - self._due > self._every_s
        if self._was_late or self._sweep(now):
            self.watch()
