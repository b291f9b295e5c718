"""What a client of an origin keeps of heads: what comes again, bounded in bytes and in age."""

from __future__ import annotations

from typing import Final

from edgetun_core.http.message import RequestHead
from edgetun_core.memo import WeighedMemo

MEMO_BYTES: Final = 1024 * 1024
"""What each of the two generations of a memo holds; an origin has two or three memos."""
_MAX_ENTRY_BYTES: Final = 16 * 1024


class RequestBlocks(WeighedMemo[RequestHead, bytes]):
    """Requests without a body as an origin gets them, by their heads."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_weigh_block, MEMO_BYTES, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, head: RequestHead, block: bytes) -> None:
        """Keeps a block, if its head comes again."""
        if head.recurs:
            self.put(head, block)


def _weigh_block(head: RequestHead, block: bytes) -> int:
    return len(block) + head.memory_bytes()
