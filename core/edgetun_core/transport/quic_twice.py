"""Small bursts sent a second time over a path that loses packets: a request and its answer are a packet each, with nothing behind them
whose acknowledgement would tell that they are missing, so that a lost one costs two round trips and more. A second copy costs its bytes.

The same datagrams, a moment later, since losses come in groups; the receiver drops what it has already (RFC 9000 §12.3). Only while
the congestion window has room to spare, so that bulk is never sent twice, and only where a round trip is long enough to be worth it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from edgetun_core.transport.udp import Address

MAX_BURST_BYTES: Final = 16 * 1024
"""What is more is bulk."""
SPARE_ROOM_BYTES: Final = 4 * 1024
"""A new connection, whose window is ten packets, has that; one that sends bulk has not."""
MAX_WAITING_BYTES: Final = 64 * 1024
"""What waits for its second time; beyond it nothing is added."""
MIN_RTT_S: Final = 0.02
LATER_SHARE: Final = 1 / 16
MAX_LATER_S: Final = 0.01


def decide_later_s(burst_bytes: int, room_bytes: int, waiting_bytes: int, rtt_s: float | None) -> float | None:
    """How much later a burst is sent again; None when it is not. `room_bytes` is what the window still takes."""
    if rtt_s is None or rtt_s < MIN_RTT_S or burst_bytes > MAX_BURST_BYTES:
        return None
    if room_bytes < SPARE_ROOM_BYTES + burst_bytes or waiting_bytes + burst_bytes > MAX_WAITING_BYTES:
        return None
    return min(rtt_s * LATER_SHARE, MAX_LATER_S)


class Twice:
    """The second copies of one connection."""

    __slots__ = ("_loop", "_send", "_timers", "_waiting_bytes", "sent")

    def __init__(self, send: Callable[[list[bytes], Address], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._timers: dict[asyncio.TimerHandle, None] = {}
        self._waiting_bytes = 0
        self.sent = 0
        """Datagrams sent again so far."""

    def consider(self, datagrams: list[bytes], address: Address, room_bytes: int, rtt_s: float | None) -> None:
        """Takes note of a burst that is about to be sent for the first time."""
        size = sum(map(len, datagrams))
        later_s = decide_later_s(size, room_bytes, self._waiting_bytes, rtt_s)
        if later_s is None:
            return
        copies = list(datagrams)
        self._waiting_bytes += size

        def again() -> None:
            self._timers.pop(timer, None)
            self._waiting_bytes -= size
            self.sent += len(copies)
            self._send(copies, address)

        timer = self._loop.call_later(later_s, again)
        self._timers[timer] = None

    def stop(self) -> None:
        """The connection is over."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
