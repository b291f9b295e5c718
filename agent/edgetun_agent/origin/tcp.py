"""Takes a tunnel's TCP connections to one local service: an exchange is a connection, bytes both ways, each side ends on its own.

Hot path: protocol callbacks only. The one task that a connection costs is its dial, and that ends when it is connected. Bounds:
what comes of the visitor before the service is connected is bounded by the exchange's credit; after that by the transport's write
buffer (`WRITE_BUFFER_BYTES`, then the visitor is paused).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from edgetun_agent.observe import OriginCounters, RecentRequests, RequestLine
from edgetun_agent.origin.connect import OriginDialler
from edgetun_agent.origin.health import OriginHealth
from edgetun_core.errors import (
    Cancelled,
    Draining,
    EdgetunError,
    ProtocolError,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead
from edgetun_core.http.stream import ACCEPTED, TCP, read_endpoints
from edgetun_core.proxy_protocol import Endpoints, render_proxy_v1, render_proxy_v2
from edgetun_core.snapshot import OriginRule
from edgetun_core.transport.sockets import no_delay, reset

WRITE_BUFFER_BYTES: Final = 256 * 1024

OnHealth = Callable[["TcpOrigin"], None]


def decide_stream_head(head: RequestHead, protocol: bytes, service: str) -> EdgetunError | None:
    """Why an exchange is not one of this kind of tunnel, or None."""
    if head.protocol == protocol and head.method == b"CONNECT":
        return None
    kind = protocol.decode().upper()
    return ProtocolError(
        f"tunnel {service} carries {kind}, and this is {head.method.decode('ascii', 'replace')}",
        remedy=f"connect to it by {kind}; an exit node of an older version has no {kind} tunnels, bring it up to date",
    )


def describe_visitor(head: RequestHead, protocol: bytes) -> RequestHead:
    """What the list of recent requests shows of a connection or flow: TCP or UDP, and the visitor's address."""
    source = read_endpoints(head)
    text = f"[{source.source}]" if ":" in source.source else source.source
    target = f"{text}:{source.source_port}".encode("ascii", "replace")
    return RequestHead(protocol.upper(), b"http", b"", target, (), protocol, head.service)


class TcpOrigin:
    """One local TCP service. Make it on the event loop; `close` it when its rule is gone."""

    def __init__(
        self,
        rule: OriginRule,
        *,
        service: str = "",
        recent: RecentRequests | None = None,
        on_health: OnHealth | None = None,
    ) -> None:
        self.rule = rule
        self.service = service
        self.url = rule.url
        self.recent = recent
        self.counters = OriginCounters()
        self.health = OriginHealth()
        self._on_health = on_health
        self._dialler = OriginDialler(rule)
        self._exchanges: set[_Connection] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._is_retired = False
        self._emptied: asyncio.Event | None = None

    @property
    def in_flight(self) -> int:
        """Connections of visitors, those being connected included."""
        return len(self._exchanges)

    @property
    def connections(self) -> int:
        """Open connections to the service."""
        return len(self._exchanges) - len(self._dials)

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Connects the visitor with the service; see `Handler.open`."""
        self.counters.requests += 1
        refusal = decide_stream_head(head, TCP, self.service)
        if refusal is None and self._is_retired:
            refusal = Draining(f"{self.url} is no longer an origin of this agent")
        if refusal is not None:
            client.on_reset(refusal)
            return CLOSED
        exchange = _Connection(self, head, client, end)
        self._exchanges.add(exchange)
        client.pause_request()
        task = asyncio.get_running_loop().create_task(self._dial(exchange))
        self._dials.add(task)
        exchange.dial = task
        task.add_done_callback(self._dials.discard)
        return exchange

    async def _dial(self, exchange: _Connection) -> None:
        try:
            pipe = await self._dialler.connect(_Pipe)
        except (UpstreamUnreachable, UpstreamTimeout) as error:
            self._saw_unreachable(error)
            exchange.fail(error)
            return
        self.counters.connects += 1
        self._saw_answer()
        exchange.connected(pipe)

    def proxy_header(self, endpoints: Endpoints) -> bytes:
        """What the service gets before the visitor's first byte."""
        match self.rule.proxy_protocol:
            case "v1":
                return render_proxy_v1(endpoints)
            case "v2":
                return render_proxy_v2(endpoints)
        return b""

    def over(self, exchange: _Connection, error: EdgetunError | None) -> None:
        """A connection has ended, both ways."""
        if exchange not in self._exchanges:
            return
        self._exchanges.discard(exchange)
        counters = self.counters
        counters.bytes_received += exchange.bytes_received
        counters.bytes_sent += exchange.bytes_sent
        if error is None:
            counters.answered += 1
            counters.statuses[2] += 1
        elif isinstance(error, Cancelled):
            counters.cancelled += 1
        else:
            label = error.presentation.label
            counters.errors[label] = counters.errors.get(label, 0) + 1
            self.health.failed(str(error), monotonic())
        if self.recent is not None:
            now = monotonic()
            shown = describe_visitor(exchange.head, TCP)
            status = 200 if exchange.is_connected else 0
            took_s = now - exchange.started
            self.recent.add(RequestLine(now, self.service, shown, status, took_s, exchange.bytes_received, error))
        if self._emptied is not None and not self._exchanges:
            self._emptied.set()

    def _saw_answer(self) -> None:
        if self.health.answered(monotonic()) and self._on_health is not None:
            self._on_health(self)

    def _saw_unreachable(self, error: EdgetunError) -> None:
        if self.health.unreachable(str(error), monotonic()) and self._on_health is not None:
            self._on_health(self)

    async def close(self, deadline_s: float = 0.0) -> None:
        """No new connections; those that stand may end by themselves within `deadline_s`, then they are reset."""
        self._is_retired = True
        if deadline_s > 0 and self._exchanges:
            self._emptied = asyncio.Event()
            try:
                async with asyncio.timeout(deadline_s):
                    await self._emptied.wait()
            except TimeoutError:
                pass
        for exchange in tuple(self._exchanges):
            exchange.fail(Draining(f"the agent in front of {self.url} stopped"))
        if self._dials:
            await asyncio.wait(tuple(self._dials))


class _Pipe(asyncio.Protocol):
    """A connection to the service. What comes before its exchange has it is kept: dials race, and the winner is told later."""

    __slots__ = ("early", "exchange", "is_ended", "lost_by", "transport")

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.exchange: _Connection | None = None
        self.early: list[bytes] = []
        self.is_ended = False
        self.lost_by: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self.transport = transport  # type: ignore[assignment]
        no_delay(self.transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES, low=WRITE_BUFFER_BYTES // 4)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.bytes_received += len(data)
            exchange.client.on_data(data, False)
        else:
            self.early.append(data)

    def eof_received(self) -> bool:
        self.is_ended = True
        return True if self.exchange is None else self.exchange.service_ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_by = exc or ConnectionResetError()
        exchange, self.exchange = self.exchange, None  # no cycle is left for the garbage collector
        if exchange is not None:
            exchange.service_lost(exc)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client.pause_request()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client.resume_request()


class _Connection:
    """One visitor's connection to the service: the `RequestSink` of its exchange."""

    __slots__ = (
        "_held",
        "_input_done",
        "_is_over",
        "_is_paused",
        "_origin",
        "_output_done",
        "_pipe",
        "bytes_received",
        "bytes_sent",
        "client",
        "dial",
        "head",
        "started",
    )

    def __init__(self, origin: TcpOrigin, head: RequestHead, client: ResponseSink, end: bool) -> None:
        self.client = client
        self.head = head
        self.started = monotonic()
        self.bytes_received = 0
        self.bytes_sent = 0
        self.dial: asyncio.Task[None] | None = None
        self._origin = origin
        self._pipe: _Pipe | None = None
        self._held: list[bytes] = []
        self._input_done = end
        self._output_done = False
        self._is_paused = False
        self._is_over = False

    @property
    def is_connected(self) -> bool:
        return self._pipe is not None

    # From the dial.

    def connected(self, pipe: _Pipe) -> None:
        """The service has taken the connection."""
        if self._is_over:
            reset(pipe.transport)
            return
        self._pipe = pipe
        pipe.exchange = self
        first = self._origin.proxy_header(read_endpoints(self.head)) if self._origin.rule.proxy_protocol else b""
        held, self._held = self._held, []
        pieces = [first, *held] if first else held
        self.client.on_head(ACCEPTED, False)
        if pieces:
            pipe.transport.writelines(pieces)
        if self._input_done:
            pipe.transport.write_eof()
        if self._is_paused:
            pipe.transport.pause_reading()
        for piece in pipe.early:
            self.bytes_received += len(piece)
            self.client.on_data(piece, False)
        pipe.early = []
        if pipe.is_ended and not self.service_ended():
            pipe.transport.close()
        if pipe.lost_by is not None:
            self.service_lost(pipe.lost_by)
        elif not self._ended_meanwhile():
            self.client.resume_request()

    def _ended_meanwhile(self) -> bool:
        return self._is_over  # asked after calls that may have ended the exchange

    # From the service.

    def service_ended(self) -> bool:
        """The service sends no more; True when it may still be sent to."""
        if self._is_over or self._output_done:
            return False
        self._output_done = True
        if self._input_done:
            self._finish(None)
        self.client.on_data(b"", True)
        return not self._input_done

    def service_lost(self, cause: Exception | None) -> None:
        """The connection to the service is gone."""
        if self._is_over:
            return
        detail = f" ({cause})" if cause is not None and str(cause) else ""
        error = UpstreamBroken(f"{self._origin.url} reset the connection{detail}")
        self._finish(error)
        self.client.on_reset(error)

    # From the visitor.

    def send_data(self, data: bytes, end: bool) -> None:
        if self._is_over:
            return
        self.bytes_sent += len(data)
        pipe = self._pipe
        if pipe is None:
            if data:
                self._held.append(data)
            self._input_done = self._input_done or end
            return
        if data:
            pipe.transport.write(data)
        if end and not self._input_done:
            self._input_done = True
            if self._output_done:
                self._finish(None)
                pipe.transport.close()
            elif not pipe.transport.is_closing():
                pipe.transport.write_eof()

    def send_trailers(self, fields: Fields) -> None:
        self.send_data(b"", True)

    def reset(self, error: EdgetunError) -> None:
        """The visitor reset the connection, or is gone: so is the service's."""
        if not self._is_over:
            self._finish(error if isinstance(error, Cancelled) else Cancelled(str(error)))
            self._drop()

    def pause_response(self) -> None:
        self._is_paused = True
        if self._pipe is not None and not self._pipe.transport.is_closing():
            self._pipe.transport.pause_reading()

    def resume_response(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if self._pipe is not None and not self._pipe.transport.is_closing():
                self._pipe.transport.resume_reading()

    # The end.

    def fail(self, error: EdgetunError) -> None:
        """The agent ends it."""
        if not self._is_over:
            self._finish(error)
            self._drop()
            self.client.on_reset(error)

    def _drop(self) -> None:
        if self._pipe is not None:
            reset(self._pipe.transport)
        elif self.dial is not None and not self.dial.done() and self.dial is not asyncio.current_task():
            self.dial.cancel()

    def _finish(self, error: EdgetunError | None) -> None:
        self._is_over = True
        self._held.clear()
        self._origin.over(self, error)
