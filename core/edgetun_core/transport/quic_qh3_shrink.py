"""Telling when qh3's packets may become smaller. Pure but for what it does to the packet core.

The core cuts stream frames for the packet size of the moment, one per stream in turn, and sends them packet by packet. Those that
the congestion window holds back stay as they are. One that was cut for 1,452 bytes fits no packet of 1,200: the core fails, and goes
on failing. It has no call that says whether frames are held back, so this finds out:

- The window has room, and yet there is nothing to send: no frame is held back.
- The window is full. Frames that belong to no stream leave all the same, unless stream frames are held back: a PING tells.
- A probe (RFC 9002 §6.2.4) takes the frame that waits longest, and new ones are cut when none is left. PINGs put behind what waits are in
  one packet with the last that waited, as many as fit and no more; behind new frames they cannot be.
"""

from __future__ import annotations

from typing import Any, Final

MARK: Final = 0
"""The number of PINGs that only mark a place; nobody waits for their acknowledgement."""
MARKS: Final = 100
"""More than fit behind a stream frame that was cut for a whole packet, by a packet's rest of up to 64 bytes and more."""
MANY_FRAMES: Final = 22
"""More frames than a full packet has that holds one cut for the whole of it, and no marks: such a frame leaves less than 35 bytes."""
PROBES_PER_TIMEOUT: Final = 2


class Shrink:
    """From when a connection's packets are to be smaller until they may."""

    __slots__ = ("_is_marked", "_probes", "_timeouts")

    def __init__(self, core: Any) -> None:
        self._is_marked = False
        self._probes = 0
        self._timeouts: int = core.pto_total - core.pto_count

    def poll(self, core: Any, now: float) -> tuple[tuple[bytes, Any] | None, bool]:
        """The core's next datagram, if there is one, and whether nothing too large is held back any more."""
        if core.state != "connected":  # what is left to say fits, and nothing else is taken any more
            return core.poll_transmit(now), False
        self._probes += PROBES_PER_TIMEOUT * (core.pto_total - self._timeouts)
        self._timeouts = core.pto_total
        size = core.active_path[5]
        has_room = core.congestion_window - core.bytes_in_flight >= size
        if not has_room and not self._is_marked:
            for _ in range(MARKS):
                core.send_ping(MARK)
            self._is_marked = True
        datagram = core.poll_transmit(now)
        if datagram is None:
            return None, has_room
        self._is_marked = False
        is_probe = self._probes > 0
        if is_probe:
            self._probes -= 1
        if has_room:
            return datagram, False
        if not is_probe:
            return datagram, True
        is_full = len(datagram[0]) == size
        return datagram, is_full and MANY_FRAMES <= core.outstanding_application_packets[-1][2] <= MARKS
