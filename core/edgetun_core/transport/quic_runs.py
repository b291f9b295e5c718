"""Which bulk lane's bytes a QUIC connection gets next: one lane at a time, in long runs.

The libraries take streams in turn, packet by packet. With several bodies under way every packet would then carry another lane's
bytes, and the receiver would get each body in pieces of one packet, several times as costly as pieces of a read.
Regular lanes do not come here; nothing of theirs waits behind a run that the library does not have yet.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from edgetun_core.transport.quic_connection import Connection

RUN_BYTES: Final = 128 * 1024
"""Twice what one read of the receiver's socket takes."""


class Runs:
    """What bulk lanes have written and the library does not have yet."""

    __slots__ = ("_bytes", "_last", "_quic", "waiting")

    def __init__(self, quic: Connection) -> None:
        self._quic = quic
        self.waiting: dict[int, deque[bytes]] = {}
        """By lane, in the order of their turns; a lane without bytes is not in it."""
        self._bytes: dict[int, int] = {}
        self._last = 0
        """Whose run the library has."""

    def put(self, lane: int, data: bytes) -> None:
        """Takes what was written on a lane."""
        pieces = self.waiting.get(lane)
        if pieces is None:
            pieces = self.waiting[lane] = deque()
        pieces.append(data)
        self._bytes[lane] = self._bytes.get(lane, 0) + len(data)

    def bytes_of(self, lane: int) -> int:
        """How much of a lane waits here."""
        return self._bytes.get(lane, 0)

    def feed(self) -> bool:
        """Hands over the next run, if there is one and the library is through with the last.

        A lane that is held up by its own flow control, not by the congestion window that all share, does not hold up the next.
        """
        if not self.waiting:
            return False
        quic = self._quic
        if quic.is_congested and quic.unsent(self._last * 4):
            return False
        lane = next(iter(self.waiting))
        pieces = self.waiting.pop(lane)
        self._last = lane
        size = 0
        while pieces and size < RUN_BYTES:
            data = pieces.popleft()
            size += len(data)
            quic.send_stream_data(lane * 4, data)
        self._bytes[lane] -= size
        if pieces:
            self.waiting[lane] = pieces  # behind the others
        elif not self.waiting:
            self.waiting, self._bytes = {}, {}  # emptied dicts keep their size
        return True
