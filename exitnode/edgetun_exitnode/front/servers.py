"""A front: one listener for visitors, its connections, their bounds and deadlines, and going away in good order.

Everything that would cost a timer, a task or a callback per connection or request is done for all of them here: one sweep a
second for the deadlines and the date, one callback per loop tick for what was left to flush.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import LimitExceeded
from edgetun_core.http.h2.hpack import render_field
from edgetun_core.http.head_memo import HeadMemo
from edgetun_core.http.message import Peer
from edgetun_exitnode.front.addresses import AddressCounts, normalise_address
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.clock import FrontClock
from edgetun_exitnode.front.context import FrontContext
from edgetun_exitnode.front.eviction import Evictor
from edgetun_exitnode.front.h1 import H1Connection
from edgetun_exitnode.front.h1_exchange import H1Exchange
from edgetun_exitnode.front.h2 import H2Connection
from edgetun_exitnode.front.listening import bind_sockets
from edgetun_exitnode.front.memos import REMEMBERED_BYTES, FieldsMemo, RequestMemo
from edgetun_exitnode.front.proxied import ProxiedConnection

if TYPE_CHECKING:
    from edgetun_exitnode.front.ports import StreamFronts

BACKLOG: Final = 4096
_REFUSED_AT_ONCE: Final = 512
"""Refused connections that are read out politely at one time; beyond it they are dropped without a word."""


AnyConnection = H1Connection | H2Connection


class FrontFull(LimitExceeded):
    """The front has as many connections as it may, and none could be put out."""

    status = 503
    retry_after_s = 1.0


class Front:
    """A listener and its connections; made by `serve_http` or `serve_https`."""

    scheme = b"http"
    checks_host = False
    can_half_close = True
    takes_h2_unasked = True
    advertises_http3 = False
    """Whether visitors are told that HTTP/3 is served on the port they came to (RFC 7838)."""

    def __init__(self, context: FrontContext, sockets: list[socket.socket]) -> None:
        self.context = context
        self.limits = context.limits
        self.h1_limits = context.limits.h1
        self.counters = context.counters
        self.known: RequestMemo = HeadMemo(REMEMBERED_BYTES)
        self.known_fields: FieldsMemo = HeadMemo(REMEMBERED_BYTES)
        self._clock = FrontClock(context.clock, context.limits.sweep_s)
        self.now = self._clock.now
        """The time of the last sweep, by the front's own clock."""
        self.date_line = b""
        self.date_block = b""
        self.draining = False
        self._is_closed = False
        self.held_bytes = 0
        self.queued_bytes = 0
        self.connections: set[AnyConnection] = set()
        self.preludes: set[ProxiedConnection] = set()
        """Connections of trusted proxies that have not said yet whose they are."""
        self._loop = asyncio.get_running_loop()
        self.addresses = AddressCounts(context.limits.max_connections_per_address)
        self._locals: dict[str, tuple[str, int]] = {}
        self._unflushed: list[H1Exchange | H2Connection] = []
        self._unpumped: deque[H1Connection] = deque()
        self._evictor: Evictor[AnyConnection] = Evictor(lambda connection, now: connection.evictability(now))
        self._refused = 0
        self._servers: list[asyncio.Server] = []
        self._sockets = sockets
        self._emptied: asyncio.Future[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self.addresses_bound: list[tuple[str, int]] = [sock.getsockname()[:2] for sock in sockets]
        self.host, self.port = self.addresses_bound[0]

    async def start(self) -> None:
        """Begins to accept."""
        self._tick()
        for sock in self._sockets:
            server = await self._loop.create_server(lambda: H1Connection(self), sock=sock, backlog=BACKLOG)
            self._servers.append(server)

    def stop_accepting(self) -> None:
        """Closes the listening sockets; what is connected stays."""
        for server in self._servers:
            server.close()

    def approves(self, peer: Peer, authority: bytes) -> bool:
        """Whether a request for this authority may come on the peer's connection."""
        return True

    # Connections.

    def connected(self, connection: H1Connection) -> None:
        """Admits a new connection, makes room for it, or refuses it."""
        transport = connection.transport
        if self._is_closed:  # it was being accepted when the front closed, and nobody would close it any more
            transport.abort()
            return
        address, port = peer_of(transport)
        if self.context.proxies.holds(address):
            transport.set_protocol(ProxiedConnection(self, connection, self.preludes))
            return
        self.welcome(connection, Peer(address, port, self.scheme, b"1.1", "", self.local_of(transport)))

    def welcome(self, connection: H1Connection, peer: Peer) -> None:
        """Admits a connection whose visitor is known, makes room for it, or refuses it."""
        connection.peer = peer
        address = peer.address
        self.register(connection)
        if not self.admits(address, len(self.connections) - 1):
            self.counters.connections_refused += 1
            if self._refused >= _REFUSED_AT_ONCE:
                connection.abort()
            else:
                self._refused += 1
                connection.refuse(FrontFull("this edge has too many connections", remedy="try again in a moment"), None)

    def become_h2(self, connection: H1Connection, data: bytes) -> None:
        """A connection turns out to be of a client who knows that HTTP/2 is spoken here; `data` is what it sent."""
        transport = connection.transport
        old = connection.peer
        connection.drop_held()
        connection.closing = self.now or 1.0
        self.connections.discard(connection)
        peer = Peer(old.address, old.port, old.scheme, b"2", old.sni, old.local)
        knowing = H2Connection(self, transport, peer)
        self.connections.add(knowing)
        transport.set_protocol(knowing)
        knowing.begin()
        connection.resume_reading(connection.read_paused)
        knowing.data_received(data)

    def register(self, connection: AnyConnection) -> None:
        """Counts a connection from here on."""
        high = self.limits.write_buffer_bytes
        connection.transport.set_write_buffer_limits(high=high, low=high // 4)
        connection.active = self.now  # the loop may have taken a turn since it was made; nobody is idle who just came
        self.connections.add(connection)
        self.counters.connections_open += 1
        self.counters.connections_total += 1
        self.addresses.add(connection.peer.address)

    def disconnected(self, connection: AnyConnection) -> None:
        """The connection is gone."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        self.counters.connections_open -= 1
        self.addresses.remove(connection.peer.address)
        self._notice_empty()

    def admits(self, address: str, others: int) -> bool:
        """Whether a connection from this address, already counted, may stay beside `others`; makes room when full."""
        if self.addresses.is_over(address):
            return False
        return others < self.limits.max_connections or self._make_room()

    def _make_room(self) -> bool:
        """Puts out the connection that has been idle for longest; False when none is."""
        connection = self._evictor.choose(self.connections, self.now)
        if connection is None:
            return False
        self.counters.connections_evicted += 1
        connection.give_up("the edge needed the connection's place")
        return True

    def local_of(self, transport: asyncio.Transport) -> tuple[str, int]:
        """The local address of a connection; one shared tuple per address."""
        name = transport.get_extra_info("sockname")
        if not name:
            return ("", 0)
        known = self._locals.get(name[0])
        if known is None:
            known = self._locals[name[0]] = (normalise_address(name[0]), name[1])
        return known

    # Once a tick, once a second.

    def flush_later(self, exchange: H1Exchange | H2Connection) -> None:
        """Has what waits written at the end of this loop tick: an exchange's head unless a body comes before, or all that a
        multiplexed connection has."""
        if not self._unflushed and not self._unpumped:
            self._loop.call_soon(self._flush)
        self._unflushed.append(exchange)

    def pump_later(self, connection: H1Connection) -> None:
        """Has the connection go on with what it holds, outside of whoever calls now."""
        if not self._unflushed and not self._unpumped:
            self._loop.call_soon(self._flush)
        self._unpumped.append(connection)

    def _flush(self) -> None:
        unflushed = self._unflushed
        self._unflushed = []
        for exchange in unflushed:
            exchange.flush()
        unpumped = self._unpumped
        self._unpumped = deque()
        try:
            while unpumped:
                unpumped.popleft().pump()
        finally:
            for connection in unpumped:  # only when one of them raised: it must not take the others along
                self.pump_later(connection)

    def _tick(self) -> None:
        self._sweep = self._loop.call_later(self.limits.sweep_s, self._tick)
        context = self.context
        self.now = now = self._clock.tick()
        date = formatdate(context.wall_clock(), usegmt=True).encode()
        self.date_line = b"date: %b\r\n\r\n" % date
        self.date_block = render_field(b"date", date)
        self._refused = 0
        for prelude in tuple(self.preludes):
            prelude.check_deadline(now)
        for connection in tuple(self.connections):
            connection.check_deadline(now)
        if self.queued_bytes > self.limits.queued_bytes:
            self._drop_slow_readers()

    def _drop_slow_readers(self) -> None:
        """Too much waits to be sent: visitors who take nothing, and for whom most waits, make room."""
        slow = [
            c for c in self.connections if isinstance(c, H2Connection) and c.queued_bytes and c.is_stalled(self.now)
        ]
        for connection in sorted(slow, key=lambda c: c.queued_bytes, reverse=True):
            if self.queued_bytes <= self.limits.queued_bytes:
                break
            self.counters.connections_evicted += 1
            connection.give_up("the visitor took too little of what waits for it")

    # The end.

    async def drain(self, deadline_s: float) -> None:
        """Stops accepting, lets exchanges finish with `Connection: close`, closes idle connections; returns when all are gone.

        What is left after `deadline_s` is dropped.
        """
        self.draining = True
        self.stop_accepting()
        for connection in tuple(self.connections):
            connection.close_if_idle()
        await self._wait_empty(deadline_s)
        self.close()
        await self._wait_empty(1.0)

    def close(self) -> None:
        """Stops accepting and drops every connection at once."""
        self.draining = True
        self._is_closed = True
        self.stop_accepting()
        for prelude in tuple(self.preludes):
            prelude.drop()
        for connection in tuple(self.connections):
            connection.give_up("the edge went away")
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _is_empty(self) -> bool:
        return not self.connections

    def _notice_empty(self) -> None:
        if self._emptied is not None and not self._emptied.done() and self._is_empty():
            self._emptied.set_result(None)

    async def _wait_empty(self, timeout_s: float) -> None:
        if self._is_empty() or timeout_s <= 0.0:
            return
        self._emptied = self._loop.create_future()
        try:
            await asyncio.wait_for(self._emptied, timeout_s)
        except TimeoutError:
            pass
        finally:
            self._emptied = None


def peer_of(transport: asyncio.Transport) -> tuple[str, int]:
    """The visitor's address as text and port; IPv4 in IPv6 is shown as IPv4."""
    name = transport.get_extra_info("peername")
    return (normalise_address(name[0]), name[1]) if name else ("", 0)


async def serve_http(context: FrontContext, host: str, port: int, *, reuse_port: bool = False) -> Front:
    """Serves HTTP/1.1, and HTTP/2 to clients that begin with it, in the clear. Raises OSError when it cannot listen."""
    sockets = bind_sockets(host, port, reuse_port=reuse_port, dead_after_s=context.limits.write_stall_s + 15.0)
    front = Front(context, sockets)
    await front.start()
    return front


async def serve_https(
    context: FrontContext,
    host: str,
    port: int,
    certificates: CertificateStore,
    *,
    reuse_port: bool = False,
    streams: StreamFronts | None = None,
) -> Front:
    """Serves HTTP/1.1 and HTTP/2 over TLS, but for the names that tunnels of `streams` take unopened. Raises OSError when it cannot listen."""
    from edgetun_exitnode.front.tls import TlsFront  # a node without HTTPS needs no TLS

    sockets = bind_sockets(host, port, reuse_port=reuse_port, dead_after_s=context.limits.write_stall_s + 15.0)
    front = TlsFront(context, sockets, certificates, streams)
    await front.start()
    return front
