"""How late a node's own event loop is: what no peer is to be blamed for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

TICK_S: Final = 0.05


class Lateness:
    """How late this node's own loop is, at its worst, while somebody watches: what a peer is not to be blamed for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.late_s = 0.0
        self._clock = clock
        self._at = clock()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._clock()
            self.late_s = max(self.late_s, now - self._at - TICK_S)
            self._at = now
