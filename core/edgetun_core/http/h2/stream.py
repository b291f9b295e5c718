"""One stream of an HTTP/2 connection: what it may send and receive, and the calls in both directions.

Fronts and clients subclass it and implement the `on_...` calls; none of them may raise. Hot path.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from edgetun_core.errors import EdgetunError
from edgetun_core.http.h2.frames import END_HEADERS, END_STREAM, HEADER, HEADERS, Code, build_headers
from edgetun_core.http.h2.guard import WORTH_AN_UPDATE_BYTES
from edgetun_core.http.h2.states import State
from edgetun_core.http.message import Fields
from edgetun_core.http.multiplexed import UNKNOWN_LENGTH
from edgetun_core.http.priority import Priority

if TYPE_CHECKING:
    from edgetun_core.http.h2.outlet import Outlet

_pack = HEADER.pack
TURN_FRAMES: Final = 4
"""DATA frames that a stream sends in its turn; one that is wanted piece by piece sends one."""
_WHOLE_HEADERS = END_HEADERS | END_STREAM


NOTHING: Final[deque[bytes | memoryview]] = deque()
"""The queue of a stream on which nothing ever waited; shared, and never changed. A queue of its own takes 600 bytes."""


class Stream:
    """A stream; made by `Connection.make_stream` (server) or by whoever opens one (client).

    `expects_no_body` is for a client to set when it asks with HEAD. `body_left` is what is still to come of an announced body, or `UNKNOWN_LENGTH`. `queued_bytes` is what waits to be sent,
    `sent_bytes` what went of what had to wait.
    """

    __slots__ = (
        "awaits_head",
        "body_left",
        "connection",
        "ends",
        "expects_no_body",
        "head_ends",
        "held_head",
        "id",
        "in_order",
        "is_full",
        "is_paused",
        "is_scheduled",
        "queue",
        "queued_bytes",
        "receive_window",
        "send_window",
        "sent_bytes",
        "state",
        "trailer_block",
        "turn_frames",
        "unreturned",
        "urgency",
        "withheld",
    )

    def __init__(self, connection: Outlet[Any]) -> None:
        self.connection = connection
        self.begin(0)

    def begin(self, stream_id: int) -> None:
        """Makes the object ready for a stream, whether new or used before."""
        connection = self.connection
        self.id = stream_id
        self.queue = NOTHING
        self.state = State.IDLE
        self.send_window = connection.peer_settings.initial_window_bytes
        self.receive_window = connection.limits.stream_window_bytes
        self.unreturned = 0
        self.body_left = UNKNOWN_LENGTH
        self.awaits_head = True
        self.urgency = 3
        self.in_order = False
        self.turn_frames = TURN_FRAMES
        self.is_scheduled = False
        self.is_full = False
        self.is_paused = False
        self.held_head: bytes | None = None
        self.trailer_block: bytes | None = None
        self.expects_no_body = False
        self.ends = False
        self.head_ends = False
        self.withheld = 0
        self.queued_bytes = 0
        self.sent_bytes = 0

    # What came from the peer; for subclasses.

    def got_head(self, received: Any, end: bool) -> None:
        """A head as `Connection.read_head` read it: the request's, or a response's, interim ones included."""

    def got_body(self, data: bytes, end: bool) -> None:
        """A piece of the body; empty only at the end."""

    def got_trailers(self, fields: Fields) -> None:
        """The trailer section, which ends the message."""

    def got_broken(self, error: EdgetunError, code: int) -> None:
        """The stream is over before both ends said their last: reset by the peer, or by us for what the peer did."""

    def on_full(self) -> None:
        """What waits to be sent reached its bound: write no more for now."""

    def on_room(self) -> None:
        """Undoes `on_full`."""

    def on_sent(self) -> None:
        """Everything up to our end of the stream is in the connection's output; the stream may still receive."""

    # What goes to the peer.

    @property
    def may_send(self) -> bool:
        return self.state in (State.OPEN, State.HALF_CLOSED_REMOTE) and not self.ends

    def put_head(self, block: bytes, end: bool) -> None:
        """The head as a rendered block (`hpack.render_block`)."""
        connection = self.connection
        if connection.table_change:
            block = connection.take_table_change() + block
        if end:
            self.ends = True
        if len(block) <= connection.peer_settings.max_frame_bytes:
            size = len(block)
            flags = _WHOLE_HEADERS if end else END_HEADERS
            frames = _pack(size >> 16, size & 0xFFFF, HEADERS, flags, self.id) + block
        else:
            frames = build_headers(self.id, block, connection.peer_settings.max_frame_bytes, end=end)
        if connection.is_blocked or self.held_head is not None:
            self.head_ends = end
            connection.hold_head(self, frames)
            return
        connection.out.append(frames)
        if end:
            connection.ended(self)

    def put_interim(self, block: bytes) -> None:
        """An interim head; dropped when the transport takes nothing."""
        if not self.connection.is_blocked:
            self.put_head(block, False)

    def put_whole(self, block: bytes, data: bytes) -> None:
        """A head and a whole body that is not empty. In one go when windows allow it and nobody else waits."""
        connection = self.connection
        size = len(data)
        if (
            size <= self.send_window
            and size <= connection.send_window
            and size <= connection.peer_settings.max_frame_bytes
            and len(block) <= connection.peer_settings.max_frame_bytes
            and not connection.is_blocked
            and not connection.schedule
            and not connection.table_change
        ):
            stream_id = self.id
            self.ends = True
            connection.send_window -= size
            head = len(block)
            out = connection.out
            out.append(_pack(head >> 16, head & 0xFFFF, HEADERS, END_HEADERS, stream_id))
            out.append(block)
            out.append(_pack(size >> 16, size & 0xFFFF, 0, END_STREAM, stream_id))
            out.append(data)
            if size >= WORTH_AN_UPDATE_BYTES:
                connection.guard.sent_data()
            connection.ended(self)
            return
        self.put_head(block, False)
        self.put_body(data, True)

    def put_body(self, data: bytes, end: bool) -> None:
        """A piece of the body; empty only with `end`."""
        if self.ends:
            return
        connection = self.connection
        if end:
            self.ends = True
        if not data and not self.queue:
            if end and self.held_head is None:
                connection.send_end(self)
            return
        if data:
            if self.queue is NOTHING:
                self.queue = deque()
            self.queue.append(data)
            size = len(data)
            self.queued_bytes += size
            connection.queued(size)
        if self.send_window > 0 and self.held_head is None:
            connection.schedule.add(self)
        if not end and not self.is_full and self.queued_bytes and connection.is_over(self):
            self.is_full = True
            connection.full = (*connection.full, self)
            self.on_full()

    def put_trailers(self, block: bytes) -> None:
        """A trailer section as a rendered block, which ends what we send."""
        if self.ends:
            return
        self.ends = True
        self.trailer_block = block
        if not self.queue and self.held_head is None:
            self.connection.send_end(self)

    def break_off(self, code: Code) -> None:
        """Ends the stream from our side; `got_broken` is not called."""
        if self.state in (State.CLOSED, State.IDLE):
            return
        self.connection.reset_stream(self, code)

    def pause_receiving(self) -> None:
        """Gives the peer no more windows: neither the stream's nor, for what this stream takes, the connection's."""
        self.is_paused = True

    def resume_receiving(self) -> None:
        """Gives back what was held."""
        if self.is_paused:
            self.is_paused = False
            self.connection.resume(self)

    def set_priority(self, priority: Priority | None) -> None:
        """Says whose turn it is; None when nobody said anything (see schedule.py)."""
        schedule = self.connection.schedule
        is_scheduled = self.is_scheduled
        schedule.remove(self)
        self.urgency = 3 if priority is None else priority.urgency
        self.in_order = priority is not None and not priority.incremental
        self.turn_frames = 1 if priority is not None and priority.incremental else TURN_FRAMES
        if is_scheduled:
            schedule.add(self)
