"""A visitor's TCP or TLS connection below HTTP: what is held and paused within bounds, and the ways it ends.

Bounds: bytes behind the request in flight (`pipelined_bytes`, then reading pauses), all held bytes of a front together
(`held_bytes`, then 503).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Cancelled, EdgetunError, LimitExceeded
from edgetun_core.http.h1 import ParsedRequest, render_response
from edgetun_core.http.message import Peer, RequestHead
from edgetun_exitnode.front.pages import build_problem

if TYPE_CHECKING:
    from edgetun_exitnode.front.h1_exchange import H1Exchange
    from edgetun_exitnode.front.servers import Front

# Why reading is paused; a set of bits.
BY_HANDLER: Final = 1
BY_PIPELINE: Final = 2
BY_WRITING: Final = 4


class TooManyUnfinished(LimitExceeded):
    """The front holds as many unread and half-read requests as it may."""

    status = 503
    retry_after_s = 1.0


class VisitorConnection(asyncio.Protocol):
    """What every visitor's connection has.

    `active` is when something last happened that its phase's deadline counts from. `closing` is when it is dropped at the
    latest, or 0.0 as long as it serves; `lingers` says that what still arrives until then is read and dropped.
    """

    __slots__ = (
        "active",
        "approved",
        "closing",
        "exchange",
        "front",
        "held",
        "lingers",
        "peer",
        "read_paused",
        "scanned",
        "spare",
        "stalled_bytes",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport
    peer: Peer

    def __init__(self, front: Front) -> None:
        self.front = front
        self.exchange: H1Exchange | None = None
        self.spare: H1Exchange | None = None
        self.held: bytearray | None = None
        self.scanned = 0
        self.active = front.now
        self.closing = 0.0
        self.lingers = False
        self.read_paused = 0
        self.write_paused = False
        self.stalled_bytes = 0
        self.approved: ParsedRequest | None = None

    # What is held back.

    def hold(self, data: bytes) -> None:
        front = self.front
        held = self.held
        if held is None:
            held = self.held = bytearray()
            if self.exchange is None:
                self.active = front.now
        held += data
        front.held_bytes += len(data)
        if self.exchange is not None:
            if len(held) > front.limits.pipelined_bytes:
                self.pause_reading(BY_PIPELINE)
        elif front.held_bytes > front.limits.held_bytes:
            front.counters.connections_refused += 1
            self.refuse(TooManyUnfinished("too many unfinished requests wait at this edge"), None, bytes(held[:4096]))

    def drop_held(self) -> None:
        held = self.held
        if held is not None:
            self.front.held_bytes -= len(held)
            self.held = None
        self.scanned = 0

    def pause_reading(self, why: int) -> None:
        if not self.read_paused:
            self.transport.pause_reading()
        self.read_paused |= why

    def resume_reading(self, why: int) -> None:
        if self.read_paused & why:
            self.read_paused &= ~why
            if not self.read_paused and not self.transport.is_closing():
                self.transport.resume_reading()

    # Writing, and the end.

    def write(self, data: bytes) -> None:
        """Hands bytes to the transport."""
        self.front.counters.bytes_out += len(data)
        self.transport.write(data)

    def refuse(self, error: EdgetunError, head: RequestHead | None, block: bytes = b"") -> None:
        """Answers a request that gets no exchange and closes: what follows on this connection is not to be trusted."""
        accept = None if head is not None else b"text/html" if b"text/html" in block else b""
        page, body = build_problem(error, head, accept=accept)
        rendered = render_response(page, chunked=False, keep_alive=False, http_minor=1)
        front = self.front
        front.counters.responses[page.status // 100] += 1
        is_head = head.method == b"HEAD" if head is not None else block.startswith(b"HEAD ")
        date = front.date_line  # ends in the empty line that the rendering ends in as well
        self.write(rendered[:-2] + date + (b"" if is_head else body))
        self.linger()

    def linger(self) -> None:
        """Sends no more, and reads on for a moment: closing at once would destroy the response under way (RFC 9112 §9.6)."""
        self.exchange = None
        self.drop_held()
        self.lingers = True
        self.closing = self.front.now + self.front.limits.linger_s
        self.resume_reading(self.read_paused)
        if self.front.can_half_close:
            self.transport.write_eof()

    def close(self) -> None:
        """Closes when what was written is sent, within the time that a stalled visitor has."""
        if not self.closing:
            self.closing = self.front.now + self.front.limits.write_stall_s
        self.drop_held()
        self.transport.close()

    def abort(self) -> None:
        """Drops the connection at once."""
        self.closing = self.closing or self.front.now or 1.0
        self.transport.abort()

    def close_if_idle(self) -> None:
        """Closes when no request is under way; the front drains."""
        if self.exchange is None and self.held is None and not self.closing:
            self.close()

    def give_up(self, why: str) -> None:
        """Drops the connection together with its exchange."""
        exchange = self.exchange
        if exchange is not None:
            exchange.visitor_left(Cancelled(why))
        self.abort()
