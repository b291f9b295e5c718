"""A visitor's HTTP/2 connection: the engine of `edgetun_core.http.h2` on a transport, with the front's bounds and deadlines.

Hot path. What one read brings is answered in one write; what is answered later leaves in one write per loop tick. A request whose
header block was seen before on this connection is one dictionary lookup away from `Handler.open`.

Bounds, beside `H2Limits`: unsent bytes of the transport (`FrontLimits.write_buffer_bytes`, then DATA and heads stay in the
engine's queues), and all queues of a front together (`FrontLimits.queued_bytes`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Cancelled, EdgetunError
from edgetun_core.http.h2 import Code, Connection, Stream
from edgetun_core.http.message import Field, Peer, RequestHead
from edgetun_core.http.multiplexed import MalformedMessage, ReceivedRequest, RequestRefused, read_request
from edgetun_exitnode.front.deadlines import SLOW_GRACE_S
from edgetun_exitnode.front.h2_deadlines import check_h2_deadline, is_waiting_for_visitor
from edgetun_exitnode.front.h2_exchange import H2Exchange

if TYPE_CHECKING:
    from edgetun_exitnode.front.servers import Front

_LEAST_QUEUE_BYTES: Final = 64 * 1024
"""What a connection may queue even when the front's queues are full."""


class H2Connection(Connection[H2Exchange], asyncio.Protocol):
    """One connection that speaks HTTP/2. `active` and `closing` are as in `VisitorConnection`."""

    __slots__ = (
        "active",
        "approved",
        "begun",
        "closing",
        "drained_since",
        "front",
        "is_reading",
        "is_woken",
        "lingers",
        "partial",
        "partial_since",
        "peer",
        "spare",
        "stalled_bytes",
        "transport",
        "unflushed",
    )

    def __init__(self, front: Front, transport: asyncio.BaseTransport, peer: Peer) -> None:
        super().__init__(front.limits.h2, is_server=True)
        self.front = front
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.peer = peer
        self.active = front.now
        self.begun = front.now
        self.closing = 0.0
        self.drained_since = 0.0
        self.lingers = False
        self.is_reading = False
        self.is_woken = False
        self.stalled_bytes = 0
        self.partial: tuple[int, ...] = ()
        self.partial_since = 0.0
        self.approved = b""
        self.spare: H2Exchange | None = None
        self.unflushed: list[H2Exchange] = []

    def begin(self) -> None:
        """Greets the visitor; called once the connection is registered."""
        self.front.counters.h2_connections += 1
        self.start()
        if self.front.draining:
            self.shut_down()
        self.flush()

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        self.front.counters.bytes_in += len(data)
        self.is_reading = True
        try:
            self.receive_data(data)
        finally:
            self.is_reading = False
        self.flush()

    def eof_received(self) -> bool:
        """The visitor sends no more, and takes no more either: on a multiplexed connection nobody half-closes."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = self.closing or self.front.now or 1.0
        self.spare = None
        self.unflushed = []
        self.fail(Cancelled("the visitor closed the connection"), None)
        self.front.disconnected(self)

    def pause_writing(self) -> None:
        self.is_blocked = True
        self.active = self.front.now
        self.stalled_bytes = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self.is_blocked = False
        self.active = self.front.now
        self.flush()

    # Writing.

    def wake(self) -> None:
        """Has what waits written at the end of this loop tick, or of the read under way."""
        if not self.is_reading and not self.is_woken:
            self.is_woken = True
            self.front.flush_later(self)

    def flush(self) -> None:
        """Writes everything that can go, in one piece as a rule."""
        self.is_woken = False
        if self.unflushed:
            unflushed = self.unflushed
            self.unflushed = []
            for exchange in unflushed:
                exchange.flush()
        data = self.data_to_send()
        while data:
            self.front.counters.bytes_out += len(data)
            self.transport.write(data)
            data = self.data_to_send() if self.has_output and not self.is_blocked else b""
        if self.is_draining and not self.streams and self.goaway_sent is not None:
            self.close()

    # What the engine asks for.

    def read_head(self, fields: list[Field]) -> ReceivedRequest:
        front = self.front
        key = tuple(fields)
        received = front.known_fields.get(key)
        if received is None:
            try:
                received = read_request(fields, self.peer.scheme, front.h1_limits)
            except MalformedMessage:
                front.counters.requests_malformed += 1
                raise
            except RequestRefused as error:
                front.counters.requests_malformed += 1
                error.is_head = (b":method", b"HEAD") in fields
                raise
            front.known_fields.remember(key, received)
        return received

    def make_stream(self) -> H2Exchange:
        self.active = self.front.now
        spare = self.spare
        if spare is None:
            return H2Exchange(self)
        self.spare = None
        return spare

    def refuse_request(self, stream: H2Exchange, error: RequestRefused, end: bool) -> None:
        stream.refuse(error, is_head=error.is_head)

    def queued(self, size: int) -> None:
        self.queued_bytes += size
        self.front.queued_bytes += size

    def withheld(self, size: int) -> None:
        self.front.held_bytes += size

    def is_over(self, stream: Stream) -> bool:
        return super().is_over(stream) or (
            self.front.queued_bytes > self.front.limits.queued_bytes and self.queued_bytes > _LEAST_QUEUE_BYTES
        )

    def on_failure(self, error: EdgetunError) -> None:
        """A connection error: the GOAWAY is sent, and what still comes is dropped for a moment so that it arrives."""
        if self.closing:
            return
        front = self.front
        front.counters.h2_connections_broken += 1
        self.flush()
        self.lingers = True
        self.closing = front.now + front.limits.linger_s
        if front.can_half_close and not self.transport.is_closing():
            self.transport.write_eof()

    # What the front calls.

    @property
    def write_paused(self) -> bool:
        return self.is_blocked

    def check_deadline(self, now: float) -> None:
        check_h2_deadline(self, now)

    def evictability(self, now: float) -> float:
        """For how many seconds the connection has kept its place without need; 0.0 when it must stay."""
        if self.closing:
            return 0.0
        silent_s = now - self.active
        if not self.streams and not self.is_blocked:
            return silent_s
        return silent_s - SLOW_GRACE_S if self.is_stalled(now) else 0.0

    def is_stalled(self, now: float) -> bool:
        """Whether everything under way has waited for the visitor for a while."""
        return now - self.active > SLOW_GRACE_S and (self.is_blocked or is_waiting_for_visitor(self))

    def refuse(self, error: EdgetunError, head: RequestHead | None, block: bytes = b"") -> None:
        """Ends a connection that there is no room for."""
        self.fail(error, Code.ENHANCE_YOUR_CALM)

    def close_if_idle(self) -> None:
        """The front drains: says so, serves what is under way, and closes."""
        if self.closing:
            return
        self.shut_down()
        if not self.streams and self.settings_acknowledged:
            self.finish_shut_down()
        self.flush()

    def close(self) -> None:
        """Closes when what was written is sent, within the time that a stalled visitor has."""
        if not self.closing:
            self.closing = self.front.now + self.front.limits.write_stall_s
            self.transport.close()

    def abort(self) -> None:
        """Drops the connection at once."""
        self.closing = self.closing or self.front.now or 1.0
        self.transport.abort()

    def give_up(self, why: str) -> None:
        """Drops the connection together with its exchanges."""
        self.closing = self.closing or self.front.now or 1.0
        self.fail(Cancelled(why), None)
        self.transport.abort()
