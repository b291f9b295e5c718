"""Sends a tunnel's requests to one origin over HTTP/2: with prior knowledge (`h2c`), over TLS (`h2`), or as ALPN decides (`auto`).

Few connections, many streams: a new one is opened only when all are full or going away. What finds no room waits, bounded in number
and time. WebSockets go as extended CONNECT where the origin offers it (RFC 8441), and over HTTP/1.1 where not.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

from edgetun_agent.observe import RecentRequests
from edgetun_agent.origin.address import choose_authority
from edgetun_agent.origin.client import (
    QUEUE_PATIENCE_S,
    QUEUE_PER_CONNECTION,
    OriginClient,
)
from edgetun_agent.origin.connect import OriginDialler
from edgetun_agent.origin.connection import KEEP_IDLE_S
from edgetun_agent.origin.h2_connection import H2OriginConnection
from edgetun_agent.origin.h2_exchange import H2Exchange
from edgetun_agent.origin.health import HealthState
from edgetun_agent.origin.memos import MEMO_BYTES, RequestBlocks
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
from edgetun_core.http.h2 import render_block
from edgetun_core.http.head_memo import HeadMemo
from edgetun_core.http.message import Fields, Peer, RequestHead
from edgetun_core.http.multiplexed import ReceivedResponse, build_request_fields
from edgetun_core.snapshot import OriginRule

LEAST_QUEUE: Final = 100
"""How many requests may wait at least, since one connection serves many."""
_NOBODY: Final = Peer("", 0, b"http")
_WEBSOCKET_KEYS: Final = frozenset((b"sec-websocket-key",))


class H2OriginClient(OriginRecord):
    """One origin. Make it on the event loop; `close` it when its rule is gone."""

    def __init__(
        self,
        rule: OriginRule,
        *,
        service: str = "",
        recent: RecentRequests | None = None,
        on_health: Callable[[OriginRecord], None] | None = None,
    ) -> None:
        super().__init__(rule, service=service, recent=recent, on_health=on_health)
        self._dialler = OriginDialler(rule, alpn=("h2", "http/1.1") if rule.protocol == "auto" else ("h2",))
        address = self._dialler.address
        self._scheme = b"https" if address.is_tls else b"http"
        self._authority = choose_authority(rule, address)
        self._prefix = address.prefix
        self._connections: list[H2OriginConnection] = []
        self._leaving: set[H2OriginConnection] = set()
        """Those that said GOAWAY and have streams under way."""
        self._waiting: OrderedDict[H2Exchange, float] = OrderedDict()
        self._max_waiting = max(LEAST_QUEUE, rule.max_connections * QUEUE_PER_CONNECTION)
        self._running: set[H2Exchange] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._opening = 0
        self._blocks = RequestBlocks()
        self.received_heads: HeadMemo[Fields, ReceivedResponse] = HeadMemo(MEMO_BYTES)
        self._http1: OriginClient | None = None
        """For WebSockets that the origin does not take over HTTP/2, and for an origin whose ALPN chose HTTP/1.1."""
        self._chose_http1 = False
        self._sweeper = Sweeper(rule, self._sweep)
        self._is_retired = False
        self._emptied: asyncio.Event | None = None

    @property
    def in_flight(self) -> int:
        others = self._http1.in_flight if self._http1 is not None else 0
        return len(self._running) + len(self._waiting) + others

    @property
    def connections(self) -> int:
        others = self._http1.connections if self._http1 is not None else 0
        return len(self._connections) + len(self._leaving) + others

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    # ---- Handler

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        if self._chose_http1:
            if self.health.state is not HealthState.DOWN:
                return self._http1_client().open(head, peer, end, client)
            self._chose_http1 = False  # whatever comes back may speak something else
        self.counters.requests += 1
        lengths = head.get_all(b"content-length")
        if head.method == b"CONNECT":
            wrong = "an origin cannot be asked to CONNECT"
        elif len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
            wrong = "the request's content-length is not one number"
        elif lengths and int(lengths[0]) and (end or head.protocol is not None):
            wrong = "the request announces a body and has none"
        else:
            exchange = H2Exchange(self, head, peer, end, client)
            self._begin(exchange)
            return CLOSED if exchange.is_over else exchange
        client.on_reset(ProtocolError(wrong))
        return CLOSED

    def probe(self, path: str, client: ResponseSink) -> RequestSink:
        if self._chose_http1:
            return self._http1_client().probe(path, client)
        authority = self._authority or self._dialler.address.authority
        head = RequestHead(b"GET", self._scheme, authority, path.encode(), ((b"user-agent", b"edgetun-health"),))
        exchange = H2Exchange(self, head, _NOBODY, True, client, is_probe=True)
        self._begin(exchange)
        return exchange

    def _begin(self, exchange: H2Exchange) -> None:
        for connection in self._connections:
            if connection.room > 0:
                self._attach(exchange, connection)
                return
        if self._is_retired:
            exchange.refuse(Draining(f"{self.url} is no longer an origin of this agent"))
            return
        if len(self._waiting) >= self._max_waiting:
            exchange.refuse(
                OriginBusy(
                    f"all streams to {self.url} are busy and {self._max_waiting} requests wait",
                    remedy="see what the server is busy with, or raise the origin's maxConnections",
                )
            )
            return
        self._waiting[exchange] = monotonic() + min(QUEUE_PATIENCE_S, self.rule.response_timeout_s)
        if exchange.has_body:
            exchange.client.pause_request()
        self._dial_if_needed()
        self._sweeper.watch()

    def _attach(self, exchange: H2Exchange, connection: H2OriginConnection) -> None:
        head = exchange.head
        if head.protocol is not None and not connection.peer_settings.enable_connect_protocol:
            self._hand_over(exchange)
            return
        block = self._blocks.get(head)
        if block is None:
            block = self._render(head)
            self._blocks.remember(head, block)
        self._running.add(exchange)
        exchange.attach(connection, block)
        self._sweeper.watch()

    def _render(self, head: RequestHead) -> bytes:
        authority = head.authority if self._authority is None else self._authority
        changed = head
        if self._prefix and head.target != b"*":
            changed = head.replace(target=self._prefix + head.target)
        if head.protocol is not None:
            changed = changed.replace(fields=tuple(field for field in head.fields if field[0] not in _WEBSOCKET_KEYS))
        return render_block(build_request_fields(changed, scheme=self._scheme, authority=authority))

    # ---- HTTP/1.1 where it must be

    def _http1_client(self) -> OriginClient:
        if self._http1 is None:
            self._http1 = OriginClient(
                self.rule, service=self.service, recent=self.recent, on_health=self._on_health, record=self
            )
        return self._http1

    def _hand_over(self, exchange: H2Exchange) -> None:
        """An exchange that has not begun goes to HTTP/1.1 instead."""
        if not exchange.is_probe:
            self.counters.requests -= 1  # it is counted there
        exchange.hand_over(self._http1_client())

    # ---- what connections and exchanges tell

    def connection_free(self, connection: H2OriginConnection) -> None:
        """Streams of a connection are free, and somebody waits."""
        while self._waiting and connection.room > 0:
            exchange, _ = self._waiting.popitem(last=False)
            self._attach(exchange, connection)
        self._dial_if_needed()

    def connection_leaves(self, connection: H2OriginConnection) -> None:
        """The origin said GOAWAY: no new requests go there."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._leaving.add(connection)

    def connection_gone(self, connection: H2OriginConnection) -> None:
        """A connection is closed or closing. May be said twice."""
        if connection in self._connections:
            self._connections.remove(connection)
        self._leaving.discard(connection)
        self._dial_if_needed()
        self._tell_if_empty()

    def connection_useless(self, connection: H2OriginConnection, error: EdgetunError) -> None:
        """A connection ended before the origin said a word of HTTP/2: who waits need not wait for another."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._dial_failed(error)

    def again(self, exchange: H2Exchange) -> None:
        """The origin did not look at this request: it goes again, before those who came later."""
        self.counters.repeated += 1
        self._running.discard(exchange)
        exchange.rewind()
        self._waiting[exchange] = monotonic() + min(QUEUE_PATIENCE_S, self.rule.response_timeout_s)
        self._waiting.move_to_end(exchange, last=False)
        if exchange.has_body:
            exchange.client.pause_request()
        asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        for connection in tuple(self._connections):
            if not self._waiting:
                return
            if connection.room > 0:
                self.connection_free(connection)
        self._dial_if_needed()

    def abandon(self, exchange: H2Exchange) -> None:
        """The requester left while the exchange waited."""
        self._waiting.pop(exchange, None)

    def exchange_over(self, exchange: H2Exchange, error: EdgetunError | None) -> None:
        self._running.discard(exchange)
        self._waiting.pop(exchange, None)
        self._tell_if_empty()
        if exchange.is_probe:
            return
        self.counters.bytes_sent += exchange.bytes_sent
        self.ended(exchange.head, exchange.status, exchange.started, exchange.bytes_received, error)

    def _tell_if_empty(self) -> None:
        if self._emptied is not None and not self.in_flight:
            self._emptied.set()

    # ---- opening connections

    async def reach(self) -> None:
        if any(connection.has_settings for connection in self._connections):
            return
        connection = await self._dialler.connect(lambda: H2OriginConnection(self))
        connection.drop()

    def _dial_if_needed(self) -> None:
        """Opens one connection at a time, when somebody waits and no connection has room."""
        if not self._waiting or self._opening or self._is_retired:
            return
        if any(connection.room > 0 or not connection.has_settings for connection in self._connections):
            return
        if len(self._connections) + len(self._leaving) >= self.rule.max_connections:
            return
        self._opening += 1
        task = asyncio.get_running_loop().create_task(self._dial())
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self) -> None:
        try:
            connection = await self._dialler.connect(lambda: H2OriginConnection(self))
        except (UpstreamUnreachable, UpstreamTimeout) as error:
            self._opening -= 1
            self._dial_failed(error)
            return
        except asyncio.CancelledError:
            self._opening -= 1
            raise
        self._opening -= 1
        self.counters.connects += 1
        if self._is_retired or connection.transport.is_closing():
            connection.drop()
            self._dial_failed(UpstreamBroken(f"{self.url} accepted a connection and closed it at once"))
            return
        if self._dialler.address.is_tls and connection.protocol != "h2":
            connection.transport.abort()
            self._no_http2(connection.protocol)
            return
        if not self.rule.health_path:
            self.saw_answer()
        self._connections.append(connection)
        self._sweeper.watch()
        self.connection_free(connection)

    def _no_http2(self, chosen: str) -> None:
        if self.rule.protocol == "auto":
            self._chose_http1 = True
            while self._waiting:
                exchange, _ = self._waiting.popitem(last=False)
                self._hand_over(exchange)
            return
        self._dial_failed(
            UpstreamBroken(
                f"{self.url} does not speak HTTP/2 (ALPN chose {chosen or 'nothing'})",
                remedy="set the origin's protocol to auto or http1",
            )
        )

    def _dial_failed(self, error: EdgetunError) -> None:
        self.saw_unreachable(error)
        if self._connections:
            return  # they still serve, one after the other
        while self._waiting:
            exchange, _ = self._waiting.popitem(last=False)
            exchange.refuse(error)

    # ---- time and end

    def _sweep(self, now: float) -> bool:
        rule = self.rule
        times = (rule.connect_timeout_s, rule.response_timeout_s, rule.idle_timeout_s)
        for connection in (*self._connections, *self._leaving):
            connection.sweep(now, times, KEEP_IDLE_S)
        while self._waiting and next(iter(self._waiting.values())) <= now:
            exchange, _ = self._waiting.popitem(last=False)
            exchange.refuse(
                OriginBusy(
                    f"all streams to {self.url} stayed busy",
                    remedy="see what the server is busy with, or raise the origin's maxConnections",
                )
            )
        return bool(self._connections or self._leaving or self._waiting)

    async def close(self, deadline_s: float = 0.0) -> None:
        self._is_retired = True
        if deadline_s > 0 and self.in_flight:
            self._emptied = asyncio.Event()
            try:
                async with asyncio.timeout(deadline_s):
                    await self._emptied.wait()
            except TimeoutError:
                pass
        gone = Draining(f"the agent in front of {self.url} stopped")
        for exchange in (*self._running, *self._waiting):
            exchange.fail(gone)
        for connection in (*self._connections, *self._leaving):
            connection.drop()
        for task in list(self._dials):
            task.cancel()
        if self._dials:
            await asyncio.wait(self._dials)
        self._sweeper.stop()
        if self._http1 is not None:
            await self._http1.close()
