"""What a connection's streams have written and the QUIC library does not have yet, and whose turn is next (RFC 9218 §10).

The library keeps all it is handed, without a bound and in turns of its own; so it gets little at a time: `HAND_BYTES` ahead of
the network, `STREAM_HAND_BYTES` of one stream. The rest waits here, where the more urgent stream goes first. A stream whose
visitor takes nothing (its flow control is used up) holds up no other.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from edgetun_core.transport.quic_qh3_server import Qh3ServerConnection

HAND_BYTES: Final = 128 * 1024
STREAM_HAND_BYTES: Final = 64 * 1024
_TURN_BYTES: Final = 16 * 1024
"""What an incremental stream gets per turn."""
_SMALL_BYTES: Final = 4096
"""What goes at once although others wait: it costs them nothing to speak of."""
_PROBE_BYTES: Final = 1200
"""What a less urgent stream gets to see whether it can go on where a more urgent one cannot."""


class Writer(Protocol):
    """A stream as far as its output goes."""

    sid: int
    urgency: int
    incremental: bool
    queue: deque[memoryview] | None
    queued: int
    queue_ends: bool


class Output:
    """The waiting output of one connection; in the common case there is none."""

    __slots__ = ("_quic", "_stuck", "handed", "queued_bytes", "waiting")

    def __init__(self, quic: Qh3ServerConnection) -> None:
        self._quic = quic
        self.handed = 0
        """At least what the library holds unsent."""
        self.queued_bytes = 0
        self.waiting: dict[int, Writer] = {}
        self._stuck = -1
        """The most urgent stream that flow control held the last time."""

    def write(self, stream: Writer, data: bytes, is_end: bool) -> bool:
        """Hands bytes over, or keeps them; True when they were kept."""
        size = len(data)
        if stream.queue is None and self.handed + size <= HAND_BYTES and (not self.waiting or size <= _SMALL_BYTES):
            self.handed += size
            self._quic.send(stream.sid, data, is_end)
            return False
        if stream.queue is None:
            stream.queue = deque()
            self.waiting[stream.sid] = stream
        if size:
            stream.queue.append(memoryview(data))
        stream.queued += size
        stream.queue_ends = is_end
        self.queued_bytes += size
        return True

    def drop(self, stream: Writer) -> None:
        """Forgets what a stream had waiting."""
        if stream.queue is not None:
            self.queued_bytes -= stream.queued
            stream.queued = 0
            stream.queue = None
            self.waiting.pop(stream.sid, None)

    def settle(self) -> None:
        """Asks the library what it still holds unsent."""
        if self.handed:
            self.handed = self._quic.unsent_bytes()

    def feed(self, fed: list[Writer]) -> bool:
        """Hands over what the network has room for, by priority; puts the streams into `fed`. False when nothing moved."""
        fed.clear()
        quic = self._quic
        is_held_back = quic.is_held_back
        room = HAND_BYTES - (self.handed if is_held_back else 0)
        moved = False
        blocked: set[int] = set()
        hand_bytes = STREAM_HAND_BYTES
        while room > 0 and len(blocked) < len(self.waiting):
            stream = self._next(blocked)
            if stream is None:
                break
            unsent = quic.get_send_buffer_size(stream.sid)
            allowance = min(room, hand_bytes - unsent)
            if stream.incremental:
                allowance = min(allowance, _TURN_BYTES)
            if allowance <= 0 and stream.queued:
                if is_held_back:
                    break  # the network takes more in a moment, and then of this one
                if not blocked:
                    # Flow control holds it. When it has not moved since the last time that is its own window, and the others may
                    # go on; else it may be the connection's, and what the others were given would share it.
                    is_stuck = self._stuck == stream.sid and stream not in fed
                    hand_bytes = STREAM_HAND_BYTES if is_stuck else _PROBE_BYTES
                    self._stuck = stream.sid
                blocked.add(stream.sid)
                continue
            size = self._hand_over(stream, allowance)
            room -= max(size, 1)
            self.handed += size
            moved = True
            fed.append(stream)
        return moved

    def _next(self, blocked: set[int]) -> Writer | None:
        """The most urgent stream; of equals the first that is not incremental takes turns with those that are."""
        best: Writer | None = None
        first_whole = -1
        for stream in self.waiting.values():
            if stream.sid in blocked:
                continue
            if best is None or stream.urgency < best.urgency:
                best = stream
                first_whole = -1 if stream.incremental else stream.sid
            elif (
                stream.urgency == best.urgency
                and not stream.incremental
                and not best.incremental
                and stream.sid < first_whole
            ):
                best = stream
                first_whole = stream.sid
        return best

    def _hand_over(self, stream: Writer, allowance: int) -> int:
        quic, queue = self._quic, stream.queue
        assert queue is not None
        size = 0
        while queue and size < allowance:
            piece = queue.popleft()
            if len(piece) > allowance - size:
                queue.appendleft(piece[allowance - size :])
                piece = piece[: allowance - size]
            size += len(piece)
            quic.send(stream.sid, piece, stream.queue_ends and not queue)
        if not size and stream.queue_ends:
            quic.send(stream.sid, b"", True)
        stream.queued -= size
        self.queued_bytes -= size
        del self.waiting[stream.sid]
        if queue:
            self.waiting[stream.sid] = stream  # behind the others
        else:
            stream.queue = None
        return size
