"""A lane as the mux sees it: what waits to be written, and the frame that is half received."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgetun_core.wire.early import Early
    from edgetun_core.wire.receiving import Exchange
    from edgetun_core.wire.sending import Sending


NOBODY: Final[tuple[()]] = ()
NO_REST: Final = bytearray()
"""Of lanes on which no frame came in parts yet. Never written to."""


class Lane:
    """One ordered byte stream of a session.

    `out` holds headers and payloads until the next flush. `rest` is the beginning of a frame that is waited for as a
    whole (at most 64 KiB); of a large DATA frame nothing is kept: its pieces go on as they come, `left` bytes are missing.
    """

    __slots__ = (
        "fresh",
        "is_full",
        "is_paused",
        "is_watched",
        "left",
        "load",
        "number",
        "out",
        "received_at",
        "replies",
        "rest",
        "stream",
        "stream_ends",
        "waiting",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.out: list[bytes | memoryview] = []
        self.fresh = 0
        """Bytes of longer bodies since the last flush."""
        self.is_full = False
        """Paused by us until the flush, which shows whether the link takes more."""
        self.is_paused = False
        self.is_watched = False
        """The peer pings here, so that its silence means something."""
        self.waiting: list[Sending] | tuple[()] = NOBODY
        """Exchanges whose producers were paused because this lane was."""
        self.load = 0
        self.replies = 0
        """Frames we were made to write while the lane was paused."""
        self.received_at = 0.0
        self.rest = NO_REST
        self.left = 0
        self.stream: Exchange | Early | None = None
        self.stream_ends = False

    def keep(self, data: bytes) -> None:
        """Puts the beginning of a frame behind what is kept."""
        if self.rest is NO_REST:
            self.rest = bytearray(data)
        else:
            self.rest += data

    def take_writes(self, writes: list[tuple[int, bytes]]) -> None:
        """Moves what waits into `writes`, joined: on the way a header by itself costs more than the copy of a payload."""
        out = self.out
        writes.append((self.number, b"".join(out)))
        out.clear()
        self.fresh = 0
