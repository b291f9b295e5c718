"""Datagrams of UDP flows, beside the lanes where the link has datagrams of its own, else on a lane; sans-I/O.

A flow is an exchange with protocol `udp` (exchange.py, rule 8); its id is the flow id. Hot path: `send` and `receive`. What waits is
bounded: `MAX_WAITING` datagrams behind a lane that is congested, `MAX_HALVES` halves whose other half has not come; the oldest is
dropped for the newest, and counted.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from edgetun_core.wire.frames import DATAGRAM, HEADER

if TYPE_CHECKING:
    from edgetun_core.wire.lanes import Lane
    from edgetun_core.wire.mux import Mux
    from edgetun_core.wire.sending import Sending

MAX_WAITING: Final = 256
MAX_HALVES: Final = 256
MAX_EARLY: Final = 16
"""Datagrams of a flow that may overtake the head that accepts it."""
MAX_DATAGRAM_BYTES: Final = 65_507

_WHOLE, _FIRST, _SECOND = 0, 1, 2
_HEAD: Final = Struct(">BI")
_HALF_HEAD: Final = Struct(">BIH")
_WORD_DATAGRAM: Final = DATAGRAM << 24


class DatagramCounters:
    """By which way datagrams went, and what was lost on this side. Plain ints."""

    __slots__ = ("by_datagram", "by_lane", "dropped", "in_halves", "late")

    def __init__(self) -> None:
        self.by_datagram = 0
        self.in_halves = 0
        """Larger than one of the link's: in two."""
        self.by_lane = 0
        """On an ordered lane: the link has no datagrams, or none so large."""
        self.dropped = 0
        """For a full queue, or since nobody could carry them."""
        self.late = 0
        """Came for a flow that is not here, not yet or no longer."""

    def add(self, other: DatagramCounters) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Datagrams:
    """All datagrams of one session. `path_bytes` is what one datagram of the link carries, 0 when it has none."""

    __slots__ = ("_halves", "_mux", "_sequence", "_waiting", "counters", "out", "path_bytes")

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        # No deque: an empty one is ten times as large, and there is one per session.
        self._waiting: list[tuple[Sending, bytes]] = []
        self._halves: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._sequence = 0
        self.path_bytes = 0
        self.out: list[bytes] = []
        """For the link, at the end of this loop tick."""
        self.counters = DatagramCounters()

    # --- sending

    def send(self, exchange: Sending, data: bytes, *, is_known: bool) -> None:
        """Sends a datagram of a flow; `is_known` when the other end has the flow for certain, else it goes behind its head."""
        path = self.path_bytes
        size = len(data)
        if is_known and size + 5 <= path:
            self._beside(_HEAD.pack(_WHOLE, exchange.id) + data)
            self.counters.by_datagram += 1
        elif is_known and size + 14 <= 2 * path:
            self._sequence = number = (self._sequence + 1) & 0xFFFF
            middle = (size + 1) // 2
            self._beside(_HALF_HEAD.pack(_FIRST, exchange.id, number) + data[:middle])
            self._beside(_HALF_HEAD.pack(_SECOND, exchange.id, number) + data[middle:])
            self.counters.in_halves += 1
        elif size > MAX_DATAGRAM_BYTES:
            self.counters.dropped += 1
        else:
            self._on_lane(exchange, data)

    def _beside(self, datagram: bytes) -> None:
        out = self.out
        if not out:
            self._mux.wake()
        out.append(datagram)

    def _on_lane(self, exchange: Sending, data: bytes) -> None:
        lane = exchange.lane
        if lane.is_paused:
            if len(self._waiting) >= MAX_WAITING:
                del self._waiting[0]
                self.counters.dropped += 1
            self._waiting.append((exchange, data))
            return
        self.counters.by_lane += 1
        if not lane.out:
            self._mux.mark(lane)
        lane.out.append(HEADER.pack(_WORD_DATAGRAM | len(data), exchange.id))
        if data:
            lane.out.append(data)

    def lane_resumed(self, lane: Lane) -> None:
        """What waited for a lane goes on."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for exchange, data in waiting:
                if exchange.lane is not lane:
                    self._waiting.append((exchange, data))
                elif exchange.id in self._mux.exchanges:
                    self._on_lane(exchange, data)

    def take(self) -> list[bytes]:
        """What the link is to send beside the lanes."""
        out, self.out = self.out, []
        return out

    # --- receiving

    def receive(self, datagram: bytes) -> None:
        """Takes a datagram of the link. Whatever makes no sense is dropped: it is unreliable anyway."""
        if len(datagram) < 5:
            self.counters.late += 1
            return
        kind, number = _HEAD.unpack_from(datagram)
        if kind == _WHOLE:
            self._deliver(number, datagram[5:])
        elif kind in (_FIRST, _SECOND) and len(datagram) >= 7:
            self._receive_half(kind, number, int.from_bytes(datagram[5:7], "big"), datagram[7:])
        else:
            self.counters.late += 1

    def _receive_half(self, kind: int, number: int, sequence: int, data: bytes) -> None:
        key = (number, sequence)
        other = self._halves.pop(key, None)
        if other is None or other[0] == kind:
            if len(self._halves) >= MAX_HALVES:
                self._halves.pop(next(iter(self._halves)))
                self.counters.dropped += 1
            self._halves[key] = (kind, data)
        else:
            self._deliver(number, data + other[1] if kind == _FIRST else other[1] + data)

    def _deliver(self, number: int, data: bytes) -> None:
        exchange = self._mux.exchanges.get(number)
        if exchange is None:
            self.counters.late += 1
        else:
            exchange.receive_datagram(data)
