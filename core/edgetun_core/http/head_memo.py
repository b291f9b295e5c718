"""A memo of what heads were read as: what comes again, bounded in bytes and in age, and the heads in it marked as recurring."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Protocol, TypeVar

from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.memo import RecurringMemo

MAX_HEAD_BYTES: Final = 4 * 1024
"""A larger head is read anew each time."""
_MAX_ENTRY_BYTES: Final = 40 * 1024
"""A head of `MAX_HEAD_BYTES` in 75 fields; one in more, smaller fields is not kept either."""


class HasHead(Protocol):
    """What reading a head results in: the head, and what else there is to know."""

    @property
    def head(self) -> RequestHead | ResponseHead: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=HasHead)


class HeadMemo(RecurringMemo[K, V]):
    """What heads were read as, by what they came as: a block of bytes, or a tuple of decoded fields.

    Each of the two generations holds `max_bytes` by estimate.
    """

    __slots__ = ()

    def __init__(self, max_bytes: int) -> None:
        super().__init__(_weigh, max_bytes, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, key: K, value: V) -> bool:
        """Keeps what a head was read as when it comes again, if it is small enough; whether it did."""
        head = value.head
        if head.size_bytes() > MAX_HEAD_BYTES or not super().remember(key, value):
            return False
        head.recurs = True
        return True


def _weigh(_key: Hashable, value: HasHead) -> int:
    return 2 * value.head.memory_bytes()  # what it came as is about as large
