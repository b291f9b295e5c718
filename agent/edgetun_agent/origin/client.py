"""Sends a tunnel's requests to one origin: a `Handler` over a pool of kept HTTP/1.1 connections.

Hot path: about 10 us per request and response of 1 KB, system calls included. The rendered head is kept per request head, an idle
connection is popped, one write goes out. Only opening a connection makes a task; deadlines are swept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from edgetun_agent.observe import RecentRequests
from edgetun_agent.origin.address import choose_authority
from edgetun_agent.origin.connect import OriginDialler
from edgetun_agent.origin.connection import KEEP_IDLE_S, OriginConnection, PreparedHead
from edgetun_agent.origin.exchange import OriginExchange, ProbeExchange, Upload
from edgetun_agent.origin.memos import MEMO_BYTES, RequestBlocks
from edgetun_agent.origin.pool import Pool
from edgetun_agent.origin.record import OriginRecord
from edgetun_agent.origin.sweeper import Sweeper
from edgetun_core.errors import (
    Draining,
    EdgetunError,
    OriginBusy,
    ProtocolError,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.h1 import render_request
from edgetun_core.http.h1_render import BodyFraming
from edgetun_core.http.head_memo import HeadMemo
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.snapshot import OriginRule

QUEUE_PER_CONNECTION = 10
"""How many requests may wait for a connection, per connection allowed; one more is refused."""
QUEUE_PATIENCE_S = 30.0


class OriginClient(OriginRecord):
    """One origin. Make it on the event loop; `close` it when its rule is gone."""

    def __init__(
        self,
        rule: OriginRule,
        *,
        service: str = "",
        recent: RecentRequests | None = None,
        on_health: Callable[[OriginRecord], None] | None = None,
        record: OriginRecord | None = None,
    ) -> None:
        super().__init__(rule, service=service, recent=recent, on_health=on_health, record=record)
        self.heads: HeadMemo[bytes, PreparedHead] = HeadMemo(MEMO_BYTES)
        self.heads_of_head: HeadMemo[bytes, PreparedHead] = HeadMemo(MEMO_BYTES)
        self._dialler = OriginDialler(rule)
        self._authority = choose_authority(rule, self._dialler.address)
        self._prefix = self._dialler.address.prefix
        self._pool: Pool[OriginConnection, OriginExchange] = Pool(
            rule.max_connections, rule.max_connections * QUEUE_PER_CONNECTION
        )
        self._blocks = RequestBlocks()
        self._dials: set[asyncio.Task[None]] = set()
        self._sweeper = Sweeper(rule, self._sweep)
        self._is_retired = False
        self._emptied: asyncio.Event | None = None
        self._idle: list[OriginConnection] = self._pool.idle

    @property
    def in_flight(self) -> int:
        """Exchanges under way, those that wait for a connection included."""
        return self._pool.in_flight

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._pool.open) + len(self._pool.busy_streams)

    # ---- Handler

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Starts an exchange; see the rules in `edgetun_core.http.exchange`."""
        self.counters.requests += 1
        if not end:
            return self._open_upload(head, client)
        block = self._blocks.get(head)
        if block is None:
            if head.get(b"content-length") not in (None, b"0"):
                client.on_reset(ProtocolError("the request announces a body and has none"))
                return CLOSED
            block = self._render(head, "none")
            self._blocks.remember(head, block)
        exchange = OriginExchange(self, head, client)
        if self._idle and exchange.may_repeat:
            exchange.attach(self._idle.pop(), block)
            return exchange
        return self._open_waiting(exchange)

    def probe(self, path: str, client: ResponseSink) -> RequestSink:
        """A GET for a health check: like `open`, but not counted."""
        address = self._dialler.address
        authority = self._authority or address.authority
        scheme = b"https" if address.is_tls else b"http"
        head = RequestHead(b"GET", scheme, authority, path.encode(), ((b"user-agent", b"edgetun-health"),))
        return self._open_waiting(ProbeExchange(self, head, client))

    def _open_upload(self, head: RequestHead, client: ResponseSink) -> RequestSink:
        lengths = head.get_all(b"content-length")
        # What two readers might frame differently must not reach a kept connection.
        if head.method == b"CONNECT":
            wrong = "an origin cannot be asked to CONNECT"
        elif len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
            wrong = "the request's content-length is not one number"
        elif head.protocol is not None and lengths and int(lengths[0]):
            wrong = "a request that asks for an upgrade cannot have a body here"
        else:
            return self._open_waiting(Upload(self, head, client))
        client.on_reset(ProtocolError(wrong))
        return CLOSED

    def _open_waiting(self, exchange: OriginExchange) -> RequestSink:
        """Everything but the plain request that finds an idle connection."""
        pool = self._pool
        now = monotonic()
        conn = pool.take(now, exchange.may_repeat)
        if conn is not None:
            self._attach(exchange, conn)
            return exchange
        if self._is_retired:
            exchange.refuse(Draining(f"{self.url} is no longer an origin of this agent"))
            return CLOSED
        stale = pool.stalest()
        if stale is not None:
            stale.drop()
        patience_s = min(QUEUE_PATIENCE_S, self.rule.response_timeout_s)
        if not pool.enqueue(exchange, now + patience_s):
            exchange.refuse(
                OriginBusy(
                    f"all {pool.max_connections} connections to {self.url} are busy and {pool.max_waiting} requests wait",
                    remedy="see what the server is busy with, or raise the origin's maxConnections",
                )
            )
            return CLOSED
        if isinstance(exchange, Upload):
            exchange.client.pause_request()
        self._start_dials()
        self._sweeper.watch()
        return exchange

    def _attach(self, exchange: OriginExchange, conn: OriginConnection) -> None:
        exchange.attach(conn, self._render(exchange.head, exchange.framing))

    def _render(self, head: RequestHead, framing: BodyFraming) -> bytes:
        authority = head.authority if self._authority is None else self._authority
        if self._prefix and head.target != b"*":
            prefixed = head.replace(target=self._prefix + head.target)
            return render_request(prefixed, authority=authority, body=framing)
        return render_request(head, authority=authority, body=framing)

    # ---- what connections and exchanges tell

    def connection_free(self, conn: OriginConnection, keep_s: float) -> None:
        if self._is_retired:
            conn.drop()
            return
        pool = self._pool
        if not pool.waiting:
            # As `give_back` does, without the call.
            conn.idle_since = now = monotonic()
            conn.idle_until = now + keep_s
            self._idle.append(conn)
            return
        waiter = pool.next_waiter()
        assert waiter is not None
        self._attach(waiter, conn)

    def connection_streams(self, conn: OriginConnection) -> None:
        if self._pool.lend(conn):
            self._start_dials()

    def connection_gone(self, conn: OriginConnection) -> None:
        self._pool.remove(conn)
        if self._pool.waiting:
            self._start_dials()
        elif self._emptied is not None and self._pool.is_empty:
            self._emptied.set()

    def repeat(self, exchange: OriginExchange) -> None:
        exchange.conn = None
        self.counters.repeated += 1
        self._pool.reopening += 1
        self._spawn(self._dial_again(exchange))

    def abandon(self, exchange: OriginExchange) -> None:
        self._pool.forget(exchange)

    def exchange_over(self, exchange: OriginExchange, error: EdgetunError | None) -> None:
        """Hot path."""
        if exchange.is_probe:
            return
        if isinstance(exchange, Upload):
            self.counters.bytes_sent += exchange.bytes_sent
        self.ended(exchange.head, exchange.status, exchange.started, exchange.bytes_received, error)

    async def reach(self) -> None:
        """Opens a connection and closes it; raises `UpstreamUnreachable` or `UpstreamTimeout`."""
        connection = await self._dialler.connect(lambda: OriginConnection(self))
        connection.drop()

    # ---- opening connections

    def _start_dials(self) -> None:
        pool = self._pool
        for _ in range(pool.dials_wanted()):
            pool.opening += 1
            self._spawn(self._dial())

    def _spawn(self, dial: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(dial)
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self) -> None:
        pool = self._pool
        try:
            conn = await self._dialler.connect(lambda: OriginConnection(self))
        except (UpstreamUnreachable, UpstreamTimeout) as error:
            pool.opening -= 1
            self._dial_failed(error)
            return
        except asyncio.CancelledError:
            pool.opening -= 1
            raise
        pool.opening -= 1
        if not self._welcome(conn):
            self._dial_failed(self._closed_at_once())
            return
        waiter = pool.give_back(conn, monotonic(), KEEP_IDLE_S)
        if waiter is not None:
            self._attach(waiter, conn)

    async def _dial_again(self, exchange: OriginExchange) -> None:
        pool = self._pool
        try:
            conn = await self._dialler.connect(lambda: OriginConnection(self))
        except (UpstreamUnreachable, UpstreamTimeout) as error:
            pool.reopening -= 1
            self.saw_unreachable(error)
            if not exchange.is_over:
                exchange.refuse(error)
            return
        except asyncio.CancelledError:
            pool.reopening -= 1
            raise
        pool.reopening -= 1
        if not self._welcome(conn):
            if not exchange.is_over:
                exchange.refuse(self._closed_at_once())
        elif exchange.is_over:
            waiter = pool.give_back(conn, monotonic(), KEEP_IDLE_S)
            if waiter is not None:
                self._attach(waiter, conn)
        else:
            self._attach(exchange, conn)

    def _welcome(self, conn: OriginConnection) -> bool:
        """Takes a new connection in; False when it came too late or is closed already."""
        self.counters.connects += 1
        if not self.rule.health_path:
            self.saw_answer()
        if self._is_retired or conn.transport.is_closing():
            conn.drop()
            return False
        self._pool.add(conn)
        self._sweeper.watch()
        return True

    def _closed_at_once(self) -> EdgetunError:
        if self._is_retired:
            return Draining(f"{self.url} is no longer an origin of this agent")
        return UpstreamBroken(
            f"{self.url} accepted a connection and did not wait for a request", remedy="see that it is an HTTP server"
        )

    def _dial_failed(self, error: EdgetunError) -> None:
        pool = self._pool
        self.saw_unreachable(error)
        waiter = pool.next_waiter()
        if waiter is not None:
            waiter.refuse(error)
        if not pool.opening and not pool.open:
            # Nothing else is coming that could serve the rest.
            while (waiter := pool.next_waiter()) is not None:
                waiter.refuse(error)
        self._start_dials()

    # ---- time and end

    def _sweep(self, now: float) -> bool:
        rule = self.rule
        pool = self._pool
        for conn in (*pool.open, *pool.busy_streams):
            conn.sweep(now, rule.response_timeout_s, rule.idle_timeout_s)
        for waiter in pool.expired(now):
            waiter.refuse(
                OriginBusy(
                    f"all {pool.max_connections} connections to {self.url} stayed busy",
                    remedy="see what the server is busy with, or raise the origin's maxConnections",
                )
            )
        return not pool.is_empty

    def retire(self) -> None:
        """No new requests: idle connections close, busy ones when their exchanges end."""
        self._is_retired = True
        for conn in list(self._pool.idle):
            conn.drop()

    async def close(self, deadline_s: float = 0.0) -> None:
        """Ends everything; exchanges under way may end by themselves within `deadline_s`, then they are reset."""
        self.retire()
        if deadline_s > 0 and not self._pool.is_empty:
            self._emptied = asyncio.Event()
            try:
                async with asyncio.timeout(deadline_s):
                    await self._emptied.wait()
            except TimeoutError:
                pass
        gone = Draining(f"the agent in front of {self.url} stopped")
        for conn in (*self._pool.open, *self._pool.busy_streams):
            conn.fail(gone)
        while (waiter := self._pool.next_waiter()) is not None:
            waiter.refuse(gone)
        for task in list(self._dials):
            task.cancel()
        if self._dials:
            await asyncio.wait(self._dials)
        self._sweeper.stop()
