"""What a client of an origin keeps of heads: what comes again, bounded in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.http.message import Fields, RequestHead
from edgetun_core.http.multiplexed import ReceivedResponse
from edgetun_core.memo import RecurringMemo, WeighedMemo

if TYPE_CHECKING:
    from edgetun_agent.origin.connection import PreparedHead

MAX_MEMO_HEAD_BYTES: Final = 4096
MEMO_BYTES: Final = 1024 * 1024
"""What each of the two generations of a memo holds; an origin has two or three memos."""
_MAX_ENTRY_BYTES: Final = 4 * MAX_MEMO_HEAD_BYTES


class HeadMemo(RecurringMemo[bytes, "PreparedHead"]):
    """Response heads by the block that they came in: of an origin's answers within a second many are equal."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_weigh_prepared, MEMO_BYTES, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, key: bytes, value: PreparedHead) -> bool:
        """Keeps what a block was read as when it comes again, if it is small enough."""
        if len(key) > MAX_MEMO_HEAD_BYTES or not super().remember(key, value):
            return False
        value.head.recurs = True
        return True


class ReceivedHeads(RecurringMemo[Fields, ReceivedResponse]):
    """Response heads of HTTP/2 by their decoded fields."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_weigh_received, MEMO_BYTES, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, key: Fields, value: ReceivedResponse) -> bool:
        """Keeps what fields were read as when they come again, if they are small enough."""
        if value.head.size_bytes() > MAX_MEMO_HEAD_BYTES or not super().remember(key, value):
            return False
        value.head.recurs = True
        return True


class RequestBlocks(WeighedMemo[RequestHead, bytes]):
    """Requests without a body as an origin gets them, by their heads."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_weigh_block, MEMO_BYTES, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, head: RequestHead, block: bytes) -> None:
        """Keeps a block, if its head comes again."""
        if head.recurs:
            self.put(head, block)


def _weigh_prepared(block: bytes, prepared: PreparedHead) -> int:
    return len(block) + prepared.head.memory_bytes()


def _weigh_received(_fields: Fields, received: ReceivedResponse) -> int:
    return 2 * received.head.memory_bytes()


def _weigh_block(head: RequestHead, block: bytes) -> int:
    return len(block) + head.memory_bytes()
