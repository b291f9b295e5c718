"""What the stages of all routes keep by heads: one set of memos per node, so that the bound holds however many tunnels there are.

Only heads that come again (`recurs`) are keys. Each memo holds at most twice `REMEMBERED_BYTES`. A stage is told apart by its serial, since the
address of a stage that is gone may be another's.
"""

from __future__ import annotations

from itertools import count
from typing import Any, Final

from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.memo import WeighedMemo
from edgetun_exitnode.cache.view import Views

REMEMBERED_BYTES: Final = 4 * 1024 * 1024
MAX_ENTRY_BYTES: Final = 20 * 1024
"""Twice what a head of 3 KiB in 20 fields takes; a larger one is made anew each time."""
_VERDICT_BYTES: Final = 400

_serials = count(1)


def next_serial() -> int:
    """A number for a stage that no other stage of this process has."""
    return next(_serials)


class StageMemos:
    """The memos. Of each key the first part is the head that was received, and one part the stage's serial."""

    __slots__ = (
        "alone",
        "changed_requests",
        "changed_responses",
        "decorated",
        "forwarded",
        "verdicts",
        "views",
    )

    def __init__(self) -> None:
        self.alone: WeighedMemo[tuple[ResponseHead, int], ResponseHead] = _heads()
        """Decorated heads of responses that a route's rules do not let it store."""
        self.changed_requests: WeighedMemo[tuple[RequestHead, int], RequestHead] = _heads()
        """Under a route's header rules."""
        self.changed_responses: WeighedMemo[tuple[ResponseHead, int], ResponseHead] = _heads()
        self.decorated: WeighedMemo[tuple[ResponseHead, bytes], ResponseHead] = _heads()
        """With the cache's `Cache-Status`."""
        self.forwarded: WeighedMemo[tuple[RequestHead, str, int], RequestHead] = WeighedMemo(
            _weigh_forwarded, REMEMBERED_BYTES, max_entry_bytes=2 * MAX_ENTRY_BYTES
        )
        """As an agent gets them, by the visitor's address; each may hold what another exit node gets in its place."""
        self.verdicts: WeighedMemo[tuple[ResponseHead, int], Any] = WeighedMemo(
            _weigh_verdict, REMEMBERED_BYTES, max_entry_bytes=MAX_ENTRY_BYTES
        )
        """Whether and how a response is compressed."""
        self.views = Views()
        """What the cache must know of a request; by the head alone, and in a bound of its own."""


def _heads() -> WeighedMemo[Any, Any]:
    return WeighedMemo(_weigh_head, REMEMBERED_BYTES, max_entry_bytes=MAX_ENTRY_BYTES)


def _weigh_head(_key: tuple[Any, ...], made: RequestHead | ResponseHead) -> int:
    return 2 * made.memory_bytes()


def _weigh_forwarded(_key: tuple[Any, ...], made: RequestHead) -> int:
    return 4 * made.memory_bytes()


def _weigh_verdict(key: tuple[ResponseHead, int], _verdict: object) -> int:
    return _VERDICT_BYTES + 2 * key[0].memory_bytes()
