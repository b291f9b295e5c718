"""Bounded memos for pure functions on the hot path: two generations, no bookkeeping per hit.

Visitors repeat themselves: the same head block, the same response head within a second. A memo turns parsing it again
into one dictionary lookup. `young` takes every new entry; when it is full it becomes `old` and a new `young` starts, so an
entry lives for between one and two generations and at most `2 * capacity` entries are kept.

What strangers choose is bounded in bytes too (`WeighedMemo`), and kept only when it comes again (`RecurringMemo`): a visitor who never asks
the same twice would otherwise fill every memo with what nobody looks up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_ENTRIES: Final = 8192
"""Of each generation of a `WeighedMemo`, however light they are."""
MAX_AGE_S: Final = 30.0
"""How long a generation of a `WeighedMemo` is the young one at most: a response's head with its `Date` recurs within a second and then never again."""
SIGHTED: Final = 2048
"""Half of how many keys a `RecurringMemo` knows that it has not kept; 100 bytes each."""


_NOTHING: Final[dict[Any, Any]] = {}
"""What every memo begins with: tunnels have ten, most of which stay empty. Never written to."""


class Memo(Generic[K, V]):
    """Bounded memo of at most `2 * capacity` entries.

    `None` is never a stored value: `get` uses it for "not here".
    """

    __slots__ = ("_capacity", "_old", "young")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.young: dict[K, V] = _NOTHING
        self._old: dict[K, V] = _NOTHING

    def get(self, key: K) -> V | None:
        """Returns the value, and keeps a value found in the old generation alive for another one."""
        value = self.young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> bool:
        """Stores the value, and says whether it did; drops the oldest generation when the young one is full."""
        young = self.young
        if young is _NOTHING:
            self.young = {key: value}
            return True
        if len(young) >= self._capacity:
            self._age()
        self.young[key] = value
        return True

    def _age(self) -> None:
        self._old = self.young
        self.young = {}

    def clear(self) -> None:
        """Forgets everything, as when a new snapshot arrives."""
        self.young = _NOTHING
        self._old = _NOTHING

    def __len__(self) -> int:
        return len(self.young) + len(self._old)


class WeighedMemo(Memo[K, V]):
    """A memo whose generations are bounded by what their entries weigh, and by age: what nobody looked up for a minute goes.

    `weigh` estimates an entry in bytes; what weighs more than `max_entry_bytes` is not stored. Together the two generations hold
    `2 * max_bytes`.
    """

    __slots__ = ("_max_bytes", "_max_entry_bytes", "_until", "_weigh", "_weight")

    def __init__(self, weigh: Callable[[K, V], int], max_bytes: int, *, max_entry_bytes: int) -> None:
        super().__init__(MAX_ENTRIES)
        self._weigh = weigh
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_entry_bytes
        self._weight = 0
        self._until = 0.0
        """When another generation begins."""

    def put(self, key: K, value: V) -> bool:
        """Stores the value if it is light enough, and says whether it was; drops the oldest generation when the young one is full."""
        weight = self._weigh(key, value)
        if weight > self._max_entry_bytes:
            return False
        now = monotonic()
        if now >= self._until or self._weight + weight > self._max_bytes:
            self._age()
            self._until = now + MAX_AGE_S
        self._weight += weight
        return super().put(key, value)

    def _age(self) -> None:
        super()._age()
        self._weight = 0

    def clear(self) -> None:
        """Forgets everything."""
        super().clear()
        self._weight = 0


class RecurringMemo(WeighedMemo[K, V]):
    """A weighed memo that keeps what comes for the second time: `remember` in the place of `put`."""

    __slots__ = ("_sighted",)

    def __init__(self, weigh: Callable[[K, V], int], max_bytes: int, *, max_entry_bytes: int) -> None:
        super().__init__(weigh, max_bytes, max_entry_bytes=max_entry_bytes)
        self._sighted: Memo[int, bool] = Memo(SIGHTED)

    def remember(self, key: K, value: V) -> bool:
        """Stores the value if the key was seen before, within the last few thousand keys; whether it did.

        Keys are told apart by their salted hash: keys of bytes, or of what is made of bytes, never objects that hash by their address.
        """
        mark = hash(key)
        if self._sighted.get(mark) is None:
            self._sighted.put(mark, True)
            return False
        return self.put(key, value)

    def clear(self) -> None:
        """Forgets everything, what it saw once as well."""
        super().clear()
        self._sighted.clear()
