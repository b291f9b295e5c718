"""Budgets against peers that keep a connection busy for nothing: a fixed stock, earned back by use and by time.

    control   frames that carry nothing: PING and SETTINGS floods (CVE-2019-9512, -9515), empty frames (CVE-2019-9518), PRIORITY
              and WINDOW_UPDATE floods, unknown frames. DATA that we send earns some, since a reader must update its windows.
    resets    streams begun and ended unanswered: by RST_STREAM (CVE-2023-44487), or by making us reset them (CVE-2025-8671)

`tick` is called once a second by whoever has a clock; without it the stock is all there is.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.http.h2.frames import Code, ConnectionBroken
from edgetun_core.http.h2.settings import H2Limits

CONTROL_PER_FRAME_SENT: Final = 3
CONTROL_PER_STREAM: Final = 8
WORTH_AN_UPDATE_BYTES: Final = 512
"""DATA frames below this earn nothing: a window that opens by single bytes would pay for itself (CVE-2019-9511)."""


class Guard:
    """The budgets of one connection."""

    __slots__ = ("_limits", "control", "resets")

    def __init__(self, limits: H2Limits) -> None:
        self._limits = limits
        self.control = limits.control_burst
        self.resets = limits.reset_burst

    def spend_control(self, cost: int = 1) -> None:
        """A frame that carries nothing came. Raises ConnectionBroken when there were too many."""
        self.control -= cost
        if self.control < 0:
            raise ConnectionBroken(Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def spend_reset(self) -> None:
        """A stream ended unanswered, by the peer's doing. Raises ConnectionBroken when there were too many."""
        self.resets -= 1
        if self.resets < 0:
            raise ConnectionBroken(Code.ENHANCE_YOUR_CALM, "too many streams were begun and given up")

    def earn(self) -> None:
        """A stream came to its proper end."""
        limits = self._limits
        if self.control < limits.control_burst:
            self.control += CONTROL_PER_STREAM
        if self.resets < limits.reset_burst:
            self.resets += 1

    def sent_data(self) -> None:
        """A DATA frame went out; the peer will answer it with WINDOW_UPDATE, now or later."""
        if self.control < self._limits.control_burst:
            self.control += CONTROL_PER_FRAME_SENT

    def tick(self) -> None:
        """A second passed."""
        limits = self._limits
        if self.control < limits.control_burst:
            self.control = min(limits.control_burst, self.control + limits.control_per_s)
        if self.resets < limits.reset_burst:
            self.resets = min(limits.reset_burst, self.resets + limits.reset_per_s)
