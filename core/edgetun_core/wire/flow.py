"""What only longer exchanges need to remember of their credit, and the stages of a direction.

An exchange makes its `Flow` on first use; the short ones, which are most, never do.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgetun_core.wire.early import Early
    from edgetun_core.wire.lanes import Lane

# How far a direction is; `sending` and `receiving` of an exchange.
NO_HEAD: Final = 0
BODY: Final = 1
ENDED: Final = 2


class Flow:
    """What only longer exchanges need."""

    __slots__ = (
        "early",
        "granted_at",
        "has_moved",
        "held",
        "home",
        "in_blocked",
        "in_waiting",
        "interims",
        "is_paused",
        "is_stopped",
        "offset",
        "peer_moved",
        "pending",
        "pending_bytes",
        "pending_end",
        "sent",
        "trailers",
        "window",
    )

    def __init__(self, window: int, home: Lane) -> None:
        self.home = home
        # Receiving.
        self.window = window
        self.granted_at = 0.0
        self.is_paused = False
        """The sink asked for no more: credit is withheld."""
        self.held = 0
        """Bytes given to a paused sink."""
        self.interims = 0
        self.peer_moved = False
        self.early: Early | None = None
        # Sending.
        self.sent = 0
        self.has_moved = False
        self.is_stopped = False
        """The producer was asked for no more."""
        self.pending: deque[bytes] = deque()
        self.offset = 0
        """How much of the first pending piece is sent."""
        self.pending_bytes = 0
        self.pending_end = False
        self.trailers: bytes | None = None
        self.in_blocked = False
        self.in_waiting = False
