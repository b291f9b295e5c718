"""Which connection makes room when a front is full: the one that has kept its place without need for longest."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from typing import Final, Generic, TypeVar

_TOGETHER: Final = 256
"""One search finds this many, so that a flood of newcomers does not search each time."""

C = TypeVar("C")


class Evictor(Generic[C]):
    """`evictability(connection, now)` says for how many seconds a connection was not needed; 0.0 when it must stay."""

    def __init__(self, evictability: Callable[[C, float], float]) -> None:
        self._evictability = evictability
        self._found: list[C] = []
        self._searched_at = -1.0

    def choose(self, connections: Collection[C], now: float) -> C | None:
        """The connection to put out, or None when all must stay."""
        evictability = self._evictability
        while True:
            while self._found:
                connection = self._found.pop()
                if connection in connections and evictability(connection, now) > 0.0:
                    return connection
            if self._searched_at == now:
                return None  # nothing was left at this time; a flood of newcomers must not cost a search each
            candidates = [(idle_s, id(c), c) for c in connections if (idle_s := evictability(c, now)) > 0.0]
            self._found = [connection for _, _, connection in heapq.nlargest(_TOGETHER, candidates)]
            self._found.reverse()
            if len(self._found) < _TOGETHER:
                self._searched_at = now
