"""What the fronts keep of request heads, so that a head that was read is not read again.

Visitors choose the heads: what comes once is not kept, what is kept is bounded in bytes, and a large head is read anew each time. Each memo
holds at most twice `REMEMBERED_BYTES`, some 5,000 heads of a browser.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.http.h1 import ParsedRequest
from edgetun_core.http.message import Fields
from edgetun_core.http.multiplexed import ReceivedRequest
from edgetun_core.memo import RecurringMemo

REMEMBERED_BYTES: Final = 6 * 1024 * 1024
MAX_HEAD_BYTES: Final = 4 * 1024
_MAX_ENTRY_BYTES: Final = 20 * 1024
"""A head of `MAX_HEAD_BYTES` in 50 fields; one in more, smaller fields is not kept either."""


class RequestMemo(RecurringMemo[bytes, ParsedRequest]):
    """Requests of HTTP/1.1 by the block of bytes that they came in, one memo per front."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_weigh_block, REMEMBERED_BYTES, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, key: bytes, value: ParsedRequest) -> bool:
        """Keeps what a block was read as when it comes again, if it is small enough."""
        if len(key) > MAX_HEAD_BYTES or not super().remember(key, value):
            return False
        value.head.recurs = True
        return True


class FieldsMemo(RecurringMemo[Fields, ReceivedRequest]):
    """Requests of HTTP/2 by their decoded fields, one memo per front."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_weigh_fields, REMEMBERED_BYTES, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, key: Fields, value: ReceivedRequest) -> bool:
        """Keeps what fields were read as when they come again, if they are small enough."""
        if value.head.size_bytes() > MAX_HEAD_BYTES or not super().remember(key, value):
            return False
        value.head.recurs = True
        return True


class KnownRequests(RecurringMemo[bytes, ReceivedRequest]):
    """Requests of HTTP/3 by the bytes that they came in, one memo per front."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_weigh_block, REMEMBERED_BYTES, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, key: bytes, value: ReceivedRequest) -> bool:
        """Keeps what bytes were read as when they come again, if they are few enough."""
        if len(key) > MAX_HEAD_BYTES or not super().remember(key, value):
            return False
        value.head.recurs = True
        return True


def _weigh_block(block: bytes, parsed: ParsedRequest | ReceivedRequest) -> int:
    return len(block) + parsed.head.memory_bytes()


def _weigh_fields(_fields: Fields, parsed: ReceivedRequest) -> int:
    return 2 * parsed.head.memory_bytes()
