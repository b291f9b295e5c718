"""Whose DATA goes next (RFC 9218 §10): by urgency, and within one urgency by turns.

Responses of one urgency that are of use only whole come one after the other, oldest first; those that are incremental, or of
which nobody said anything, share by turns. The first kind takes one turn among the second. So that nothing starves, every 16th
turn goes to the least urgent that waits.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgetun_core.http.h2.stream import Stream

_URGENCIES: Final = 8
_CHARITY_EVERY: Final = 16


class _Class:
    """The streams of one urgency."""

    __slots__ = ("by_turns", "in_order", "turn")

    def __init__(self) -> None:
        self.by_turns: deque[Stream] = deque()
        self.in_order: list[tuple[int, Stream]] = []
        self.turn = False

    def __bool__(self) -> bool:
        return bool(self.by_turns or self.in_order)

    def pop(self) -> Stream:
        if self.in_order and (not self.by_turns or self.turn):
            self.turn = False
            return heapq.heappop(self.in_order)[1]
        self.turn = True
        return self.by_turns.popleft()

    def take_out(self, stream: Stream) -> None:
        if stream.in_order:
            self.in_order = [entry for entry in self.in_order if entry[1] is not stream]
            heapq.heapify(self.in_order)
        else:
            self.by_turns.remove(stream)


_NO_CLASSES: Final = (None,) * _URGENCIES
"""Of a schedule that nothing was ever put in: most answers leave at once."""


class Schedule:
    """The streams that have something to send and a window for it; one entry each."""

    __slots__ = ("_classes", "_count", "_picks")

    def __init__(self) -> None:
        self._classes: list[_Class | None] | tuple[None, ...] = _NO_CLASSES
        self._count = 0
        self._picks = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, stream: Stream) -> None:
        """Puts a stream in, unless it is."""
        if stream.is_scheduled:
            return
        stream.is_scheduled = True
        self._count += 1
        classes = self._classes
        if not isinstance(classes, list):
            classes = self._classes = [None] * _URGENCIES
        one = classes[stream.urgency]
        if one is None:
            one = classes[stream.urgency] = _Class()
        if stream.in_order:
            heapq.heappush(one.in_order, (stream.id, stream))
        else:
            one.by_turns.append(stream)

    def remove(self, stream: Stream) -> None:
        """Takes a stream out, if it is in."""
        if stream.is_scheduled:
            stream.is_scheduled = False
            self._count -= 1
            one = self._classes[stream.urgency]
            assert one is not None
            one.take_out(stream)

    def pop(self) -> Stream:
        """Takes out the stream whose turn it is; there must be one."""
        self._picks += 1
        classes = self._classes if self._picks % _CHARITY_EVERY else reversed(self._classes)
        for one in classes:
            if one is not None and one:
                stream = one.pop()
                stream.is_scheduled = False
                self._count -= 1
                return stream
        raise LookupError("nothing is scheduled")
