"""What came on a lane before the MOVE that sends it there, or before the HEAD that opens its exchange.

Lanes are independent streams, so a new lane may be faster than the old one. All of it is within the credit the peer has,
and counts as taken from it; small DATA frames are joined, so that many of them cost no more than their bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetun_core.wire.lanes import Lane
    from edgetun_core.wire.receiving import Exchange


class Early:
    """Frames of one direction of one exchange, kept until their turn."""

    __slots__ = ("credit", "data", "ends", "exchange", "is_reset", "lane", "taken", "trailers")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.exchange: Exchange | None = None
        self.data = bytearray()
        self.taken = 0
        """Credit used by what is here, which is more than `data` while a frame is half received."""
        self.ends = False
        self.trailers: bytes | None = None
        self.is_reset = False
        self.credit = 0

    @property
    def is_complete(self) -> bool:
        return self.ends or self.trailers is not None
