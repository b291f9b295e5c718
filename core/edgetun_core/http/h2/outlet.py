"""The sending half of an HTTP/2 connection: frames that wait, windows, turns (RFC 9113 §5.2; RFC 9218).

Hot path. Bounds: what waits per stream and per connection (`H2Limits`), then writers are paused; heads wait only while the
transport takes nothing, and interim heads are dropped then.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from edgetun_core.http.h2.frames import (
    DEFAULT_WINDOW_BYTES,
    END_STREAM,
    HEADER,
    MAX_WINDOW_BYTES,
    Code,
    ConnectionBroken,
    StreamBroken,
    build_headers,
    build_rst_stream,
    build_window_update,
)
from edgetun_core.http.h2.guard import WORTH_AN_UPDATE_BYTES, Guard
from edgetun_core.http.h2.hpack import TABLE_EMPTY
from edgetun_core.http.h2.schedule import Schedule
from edgetun_core.http.h2.settings import H2Limits, PeerSettings
from edgetun_core.http.h2.states import Event, State, after
from edgetun_core.http.h2.stream import NOTHING, Stream

_RESETS_REMEMBERED: Final = 256
_LOW: Final = 4
"""A paused writer may go on when what waits fell to this part of the bound."""

S = TypeVar("S", bound=Stream)
_pack = HEADER.pack


class Outlet(Generic[S]):
    """What both roles send with. `out` holds frames in order; whoever has the transport takes them by `data_to_send`."""

    __slots__ = (
        "_held",
        "_resets",
        "full",
        "guard",
        "is_blocked",
        "limits",
        "out",
        "peer_settings",
        "queued_bytes",
        "receive_window",
        "schedule",
        "send_window",
        "streams",
        "table_change",
        "unreturned",
    )

    def __init__(self, limits: H2Limits) -> None:
        self.limits = limits
        self.peer_settings = PeerSettings()
        self.guard = Guard(limits)
        self.schedule = Schedule()
        self.streams: dict[int, S] = {}
        self.out: list[bytes | memoryview] = []
        # What most connections never have is a tuple, or made when it is needed: one at rest is to be small.
        self.full: tuple[Stream, ...] = ()
        """Streams whose writers are paused."""
        self.queued_bytes = 0
        self.send_window = DEFAULT_WINDOW_BYTES
        self.receive_window = max(limits.connection_window_bytes, DEFAULT_WINDOW_BYTES)
        self.unreturned = 0
        self.is_blocked = False
        """The transport takes nothing for now: heads and DATA stay here."""
        self.table_change = False
        self._held: tuple[Stream, ...] = ()
        self._resets: dict[int, bool] | None = None
        """The last streams that were reset, and whether by the peer."""

    # Taken by whoever has the transport.

    def data_to_send(self, most_bytes: int = 128 * 1024) -> bytes:
        """Everything that can go now, in one piece of about `most_bytes` at most; empty when there is nothing."""
        if (self.schedule or self._held) and not self.is_blocked:
            self._produce(most_bytes)
        out = self.out
        if not out:
            return b""
        self.out = []
        return b"".join(out) if len(out) > 1 else bytes(out[0])

    @property
    def has_output(self) -> bool:
        """Whether `data_to_send` would give anything."""
        if self.out:
            return True
        return not self.is_blocked and (bool(self._held) or (bool(self.schedule) and self.send_window > 0))

    def _produce(self, most_bytes: int) -> None:
        held, self._held = self._held, ()
        for stream in held:
            frames = stream.held_head
            if frames is None:
                continue  # it was reset meanwhile
            stream.held_head = None
            self.out.append(frames)
            if stream.head_ends:
                self.ended(stream)
            elif stream.queue:
                if stream.send_window > 0:
                    self.schedule.add(stream)
            elif stream.ends:
                self.send_end(stream)
        schedule = self.schedule
        out = self.out
        largest = self.peer_settings.max_frame_bytes
        left = most_bytes
        while left > 0 and self.send_window > 0 and schedule:
            stream = schedule.pop()
            left -= self._send_turn(stream, largest, out)
        if self.full:
            self._tell_of_room()

    def _send_turn(self, stream: Stream, largest: int, out: list[bytes | memoryview]) -> int:
        """DATA frames of a stream that has data and a window, as many as its turn has; puts it back when more can go."""
        queue = stream.queue
        data = queue[0]
        size = len(data)
        most = min(largest * stream.turn_frames, self.send_window, stream.send_window)
        if size > most:
            whole = memoryview(data)
            queue[0] = whole[most:]
            data, size = whole[:most], most
        else:
            queue.popleft()
        self.send_window -= size
        stream.send_window -= size
        stream.queued_bytes -= size
        stream.sent_bytes += size
        self.queued(-size)
        ends = stream.ends and not queue and stream.trailer_block is None
        left = size
        if size > largest:
            header = _pack(largest >> 16, largest & 0xFFFF, 0, 0, stream.id)
            whole = memoryview(data)
            at = 0
            while left > largest:
                out.append(header)
                out.append(whole[at : at + largest])
                at += largest
                left -= largest
            data = whole[at:]
            self.guard.sent_data()
        out.append(_pack(left >> 16, left & 0xFFFF, 0, END_STREAM if ends else 0, stream.id))
        out.append(data)
        if size >= WORTH_AN_UPDATE_BYTES:
            self.guard.sent_data()
        if ends:
            self.ended(stream)
        elif queue:
            if stream.send_window > 0:
                self.schedule.add(stream)
        elif stream.ends:
            self.send_end(stream)
        return size

    def _tell_of_room(self) -> None:
        limits = self.limits
        if self.queued_bytes > limits.connection_queue_bytes // _LOW:
            return
        waiting = self.full
        self.full = ()
        for stream in waiting:
            if stream.queued_bytes > limits.stream_queue_bytes // _LOW:
                self.full = (*self.full, stream)
            elif stream.is_full:
                stream.is_full = False
                stream.on_room()

    # What streams do.

    def is_over(self, stream: Stream) -> bool:
        """Whether what waits has reached a bound."""
        limits = self.limits
        return stream.queued_bytes >= limits.stream_queue_bytes or self.queued_bytes >= limits.connection_queue_bytes

    def queued(self, size: int) -> None:
        """So many bytes more wait to be sent, or fewer; a hook for who counts over many connections."""
        self.queued_bytes += size

    def hold_head(self, stream: Stream, frames: bytes) -> None:
        """Keeps a head until the transport takes something again."""
        if stream.held_head is None:
            stream.held_head = frames
            self._held = (*self._held, stream)
        else:
            stream.held_head += frames

    def send_end(self, stream: Stream) -> None:
        """Trailers, or an empty DATA frame, in place of a last piece."""
        block = stream.trailer_block
        if block is not None:
            if self.table_change:
                block = self.take_table_change() + block
            self.out.append(build_headers(stream.id, block, self.peer_settings.max_frame_bytes, end=True))
        else:
            self.out.append(_pack(0, 0, 0, END_STREAM, stream.id))
        self.ended(stream)

    def ended(self, stream: Stream) -> None:
        """Our end of the stream is out."""
        if stream.state is State.HALF_CLOSED_REMOTE:
            stream.state = State.CLOSED
            del self.streams[stream.id]
            self.guard.earn()
            if stream.withheld:
                self._return_withheld(stream)
            stream.on_sent()
            self.stream_over()
        else:
            stream.state = after(stream.state, Event.LOCAL_END)
            stream.on_sent()

    def remote_ended(self, stream: Stream) -> None:
        """The peer's end of the stream came."""
        if stream.state is State.HALF_CLOSED_LOCAL:
            stream.state = State.CLOSED
            del self.streams[stream.id]
            self.guard.earn()
            if stream.withheld:
                self._return_withheld(stream)
            self.stream_over()
        else:
            stream.state = after(stream.state, Event.REMOTE_END)

    def reset_stream(self, stream: Stream, code: int) -> None:
        """RST_STREAM, and the stream is gone."""
        self.out.append(build_rst_stream(stream.id, code))
        self.forget(stream, by_peer=False)

    def forget(self, stream: Stream, *, by_peer: bool) -> None:
        """The stream is closed by a reset: nothing of it waits any more."""
        stream.state = after(stream.state, Event.RESET)
        self.remember_reset(stream.id, by_peer=by_peer)
        self.schedule.remove(stream)
        if stream.queued_bytes:
            self.queued(-stream.queued_bytes)
            stream.queued_bytes = 0
        stream.queue = NOTHING
        stream.held_head = None
        stream.ends = True
        if stream.is_full:
            stream.is_full = False
            self.full = tuple(other for other in self.full if other is not stream)
        if stream.withheld:
            self._return_withheld(stream)
        self.streams.pop(stream.id, None)
        if self.full:
            self._tell_of_room()
        self.stream_over()

    def stream_over(self) -> None:
        """A stream is closed and no longer among `streams`; a hook."""

    def remember_reset(self, stream_id: int, *, by_peer: bool) -> None:
        """Frames that crossed a reset are told from frames on a stream that ended (RFC 9113 §5.1, "closed")."""
        if self._resets is None:
            self._resets = {}
        self._resets[stream_id] = by_peer
        if len(self._resets) > _RESETS_REMEMBERED:
            del self._resets[next(iter(self._resets))]

    def take_table_change(self) -> bytes:
        """The size update that a smaller HEADER_TABLE_SIZE asks for before the next block (RFC 7541 §4.2)."""
        self.table_change = False
        return TABLE_EMPTY

    # Windows.

    def take(self, stream: Stream, size: int) -> None:
        """A frame of so many bytes came on a stream and was passed on; gives windows back, or keeps them while it is paused."""
        if stream.is_paused and stream.state is not State.CLOSED:
            stream.unreturned += size
            stream.withheld += size
            self.withheld(size)
            return
        if stream.state is State.OPEN or stream.state is State.HALF_CLOSED_LOCAL:
            self._return_stream(stream, size)
        self.return_connection(size)

    def resume(self, stream: Stream) -> None:
        """The stream takes more again."""
        if stream.withheld:
            self._return_withheld(stream)
        if stream.unreturned and (stream.state is State.OPEN or stream.state is State.HALF_CLOSED_LOCAL):
            self._return_stream(stream, 0)

    def return_connection(self, size: int) -> None:
        """So much of the connection's window is free again; the peer is told when it is worth a frame."""
        self.unreturned += size
        if self.unreturned * 2 >= self.limits.connection_window_bytes:
            self.out.append(build_window_update(0, self.unreturned))
            self.receive_window += self.unreturned
            self.unreturned = 0

    def withheld(self, size: int) -> None:
        """So many bytes more, or fewer, were received for paused streams; a hook for who counts over many connections."""

    def _return_withheld(self, stream: Stream) -> None:
        size = stream.withheld
        stream.withheld = 0
        self.withheld(-size)
        self.return_connection(size)

    def _return_stream(self, stream: Stream, size: int) -> None:
        stream.unreturned += size
        if stream.unreturned * 2 >= self.limits.stream_window_bytes:
            self.out.append(build_window_update(stream.id, stream.unreturned))
            stream.receive_window += stream.unreturned
            stream.unreturned = 0

    def window_update(self, stream_id: int, increment: int) -> None:
        """The peer takes more. Raises ConnectionBroken or StreamBroken (RFC 9113 §6.9)."""
        if stream_id == 0:
            if increment == 0:
                raise ConnectionBroken(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 for the connection (RFC 9113 §6.9)")
            self.send_window += increment
            if self.send_window > MAX_WINDOW_BYTES:
                raise ConnectionBroken(Code.FLOW_CONTROL_ERROR, "the connection's window is beyond 2^31-1 (§6.9.1)")
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if increment == 0:
            raise StreamBroken(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 (RFC 9113 §6.9)")
        stream.send_window += increment
        if stream.send_window > MAX_WINDOW_BYTES:
            raise StreamBroken(Code.FLOW_CONTROL_ERROR, "the stream's window is beyond 2^31-1 (RFC 9113 §6.9.1)")
        if stream.queue and stream.send_window > 0 and stream.held_head is None:
            self.schedule.add(stream)

    def initial_window_changed(self, difference: int) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE changed: so do all streams' windows, perhaps to below 0 (RFC 9113 §6.9.2)."""
        for stream in self.streams.values():
            stream.send_window += difference
            if stream.send_window > MAX_WINDOW_BYTES:
                raise ConnectionBroken(Code.FLOW_CONTROL_ERROR, "a stream's window is beyond 2^31-1 (RFC 9113 §6.9.2)")
            if stream.send_window <= 0:
                self.schedule.remove(stream)
            elif stream.queue and stream.held_head is None:
                self.schedule.add(stream)
