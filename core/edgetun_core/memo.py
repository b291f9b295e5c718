"""A bounded memo for pure functions on the hot path: two generations, no bookkeeping per hit.

Visitors repeat themselves: the same head block, the same response head within a second. A memo turns parsing it again
into one dictionary lookup. `young` takes every new entry; when it is full it becomes `old` and a new `young` starts, so an
entry lives for between one and two generations and at most `2 * capacity` entries are kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


_NOTHING: Final[dict[Any, Any]] = {}
"""What every memo begins with: tunnels have ten, most of which stay empty. Never written to."""


class Memo(Generic[K, V]):
    """Bounded memo of at most `2 * capacity` entries.

    `None` is never a stored value: `get` uses it for "not here".
    """

    __slots__ = ("_capacity", "_old", "_young")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._young: dict[K, V] = _NOTHING
        self._old: dict[K, V] = _NOTHING

    def get(self, key: K) -> V | None:
        """Returns the value, and keeps a value found in the old generation alive for another one."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Stores the value; drops the oldest generation when the young one is full."""
        young = self._young
        if young is _NOTHING:
            self._young = young = {}
        elif len(young) >= self._capacity:
            self._old = young
            self._young = young = {}
        young[key] = value

    def clear(self) -> None:
        """Forgets everything, as when a new snapshot arrives."""
        self._young = _NOTHING
        self._old = _NOTHING

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
