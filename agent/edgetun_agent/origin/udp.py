"""Takes a tunnel's UDP flows to one local service: each flow has a socket of its own, so that answers find their visitor.

Hot path: datagrams of one loop tick leave with one system call where the kernel can do that. Bounds: flows (`MAX_FLOWS`), and of a
flow `MAX_WAITING` datagrams while its service's name is looked up (the oldest is dropped) and what its socket queues.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from edgetun_agent.observe import OriginCounters, RecentRequests, RequestLine
from edgetun_agent.origin.address import parse_origin_url
from edgetun_agent.origin.connect import explain_refusal
from edgetun_agent.origin.health import OriginHealth
from edgetun_agent.origin.tcp import decide_stream_head, describe_visitor
from edgetun_core.errors import Cancelled, Draining, EdgetunError, LimitExceeded
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead
from edgetun_core.http.stream import ACCEPTED, UDP, read_endpoints
from edgetun_core.proxy_protocol import render_proxy_v2
from edgetun_core.snapshot import OriginRule
from edgetun_core.transport.udp import Address, UdpSocket, split_segments

log = logging.getLogger(__name__)

MAX_FLOWS: Final = 10_000
MAX_WAITING: Final = 32
MAX_QUEUED_BYTES: Final = 256 * 1024
MAX_DATAGRAM_BYTES: Final = 65_507
RESOLVED_FOR_S: Final = 10.0
TELL_AGAIN_S: Final = 10.0

OnHealth = Callable[["UdpOrigin"], None]


class UdpOrigin:
    """One local UDP service. Make it on the event loop; `close` it when its rule is gone."""

    def __init__(
        self,
        rule: OriginRule,
        *,
        service: str = "",
        recent: RecentRequests | None = None,
        on_health: OnHealth | None = None,
        max_flows: int = MAX_FLOWS,
    ) -> None:
        self.rule = rule
        self.service = service
        self.url = rule.url
        self.recent = recent
        self.counters = OriginCounters()
        self.health = OriginHealth()
        self.too_large = 0
        """Datagrams that no UDP datagram can carry, the PROXY protocol header included."""
        self.dropped = 0
        """Datagrams that a full queue did not take."""
        self.max_flows = max_flows
        self._on_health = on_health
        self._address = parse_origin_url(rule.url)
        self._loop = asyncio.get_running_loop()
        self._flows: set[_Flow] = set()
        self._lookups: set[asyncio.Task[None]] = set()
        self._known: list[tuple[int, Address]] = []
        self._known_until = 0.0
        self._is_retired = False
        self._told_at = -TELL_AGAIN_S
        if self._address.is_localhost:
            # A service on the other one of the two tells so (ICMP), and is asked there from then on.
            port = self._address.port
            self._known = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
            self._known_until = float("inf")

    @property
    def in_flight(self) -> int:
        """Flows that are known."""
        return len(self._flows)

    @property
    def connections(self) -> int:
        """Sockets that are open to the service."""
        return sum(flow.is_connected for flow in self._flows)

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Begins a flow; see `Handler.open` and rule 8 of exchanges."""
        self.counters.requests += 1
        refusal = decide_stream_head(head, UDP, self.service)
        if refusal is None and self._is_retired:
            refusal = Draining(f"{self.url} is no longer an origin of this agent")
        elif refusal is None and len(self._flows) >= self.max_flows:
            refusal = LimitExceeded(f"{self.max_flows} flows go to {self.url}, as many as may")
        if refusal is not None:
            client.on_reset(refusal)
            return CLOSED
        flow = _Flow(self, head, client)
        self._flows.add(flow)
        if self._loop.time() < self._known_until:
            flow.connect(self._known)
        else:
            task = self._loop.create_task(self._look_up(flow))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)
        return flow

    async def _look_up(self, flow: _Flow) -> None:
        try:
            async with asyncio.timeout(self.rule.connect_timeout_s):
                found = await self._loop.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_DGRAM)
        except (OSError, TimeoutError) as error:
            cause = error if isinstance(error, OSError) else OSError(errno.ETIMEDOUT, "timed out")
            flow.fail(explain_refusal(self.rule, cause))
            return
        self._known = [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]
        self._known_until = self._loop.time() + RESOLVED_FOR_S
        flow.connect(self._known)

    # From flows.

    def over(self, flow: _Flow, error: EdgetunError | None) -> None:
        """A flow has ended."""
        if flow not in self._flows:
            return
        self._flows.discard(flow)
        counters = self.counters
        counters.bytes_received += flow.bytes_received
        counters.bytes_sent += flow.bytes_sent
        if flow.bytes_received:
            counters.answered += 1
            counters.statuses[2] += 1
        elif error is None or isinstance(error, Cancelled):
            counters.cancelled += 1
        else:
            label = error.presentation.label
            counters.errors[label] = counters.errors.get(label, 0) + 1
        if self.recent is not None:
            now = monotonic()
            shown = describe_visitor(flow.head, UDP)
            status = 200 if flow.bytes_received else 0
            told = None if status or isinstance(error, Cancelled) else error
            self.recent.add(
                RequestLine(now, self.service, shown, status, now - flow.started, flow.bytes_received, told)
            )

    def saw_answer(self) -> None:
        """The service said something."""
        if self.health.answered(monotonic()) and self._on_health is not None:
            self._on_health(self)

    def saw_refusal(self, error: OSError, address: Address) -> None:
        """Nobody listens there (ICMP)."""
        if len(self._known) > 1 and self._known[0][1] == address:
            self._known = [*self._known[1:], self._known[0]]
        told = explain_refusal(self.rule, error)
        if self.health.unreachable(str(told), monotonic()) and self._on_health is not None:
            self._on_health(self)

    def tell_too_large(self, size: int) -> None:
        """Counts a datagram that cannot be sent, and says so, rarely."""
        self.too_large += 1
        now = monotonic()
        if now - self._told_at >= TELL_AGAIN_S:
            self._told_at = now
            log.warning(
                "%s: a datagram of %d bytes is larger than UDP carries; %d so far", self.url, size, self.too_large
            )

    async def close(self, deadline_s: float = 0.0) -> None:
        """Ends every flow; flows have no end of their own, so there is nothing to wait for."""
        self._is_retired = True
        for task in tuple(self._lookups):
            task.cancel()
        for flow in tuple(self._flows):
            flow.fail(Draining(f"the agent in front of {self.url} stopped"))
        if self._lookups:
            await asyncio.wait(tuple(self._lookups))


class _Flow:
    """One visitor's flow: the `RequestSink` of its exchange."""

    __slots__ = (
        "_address",
        "_is_over",
        "_origin",
        "_others",
        "_out",
        "_prefix",
        "_udp",
        "_waiting",
        "bytes_received",
        "bytes_sent",
        "client",
        "head",
        "started",
    )

    def __init__(self, origin: UdpOrigin, head: RequestHead, client: ResponseSink) -> None:
        self.client = client
        self.head = head
        self.started = monotonic()
        self.bytes_received = 0
        self.bytes_sent = 0
        self._origin = origin
        self._udp: UdpSocket | None = None
        self._address: Address = ("", 0)
        self._others: list[tuple[int, Address]] = []
        self._out: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self._is_over = False
        self._prefix = b""
        if origin.rule.proxy_protocol:
            self._prefix = render_proxy_v2(read_endpoints(head), datagram=True)

    @property
    def is_connected(self) -> bool:
        return self._udp is not None

    def connect(self, addresses: list[tuple[int, Address]]) -> None:
        """The service's addresses are known."""
        if self._is_over:
            return
        error: OSError | None = None
        for number, (family, address) in enumerate(addresses):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            try:
                sock.connect(address)
            except OSError as refused:
                sock.close()
                error = refused
                continue
            self._others = addresses[number + 1 :]
            self._address = address
            self._udp = UdpSocket(
                sock,
                self._on_datagrams,
                self._on_batch_end,
                self._on_error,
                wanted_buffer_bytes=0,
                max_queued_bytes=MAX_QUEUED_BYTES,
            )
            break
        else:
            cause = error or OSError(errno.EADDRNOTAVAIL, "no address")
            self._origin.saw_refusal(cause, ("", 0))
            self.fail(explain_refusal(self._origin.rule, cause))
            return
        self._origin.counters.connects += 1
        self.client.on_head(ACCEPTED, False)
        waiting, self._waiting = self._waiting, deque()
        for data in waiting:
            self.send_data(data, False)

    # From the service.

    def _on_datagrams(self, data: bytes, segment: int, address: Address) -> None:
        if not self.bytes_received:
            self._origin.saw_answer()
            self._others = []
        self.bytes_received += len(data)
        for piece in split_segments(data, segment):
            self.client.on_data(piece, False)

    def _on_batch_end(self) -> None:
        pass

    def _on_error(self, error: OSError) -> None:
        if error.errno != errno.ECONNREFUSED or self._is_over:
            return
        self._origin.saw_refusal(error, self._address)
        if self._others and self._udp is not None:
            # localhost has two addresses, and the service listens on the other one: what comes next goes there.
            self._udp.close()
            self._udp = None
            others, self._others = self._others, []
            self._reconnect(others)

    def _reconnect(self, addresses: list[tuple[int, Address]]) -> None:
        for family, address in addresses:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            try:
                sock.connect(address)
            except OSError:
                sock.close()
                continue
            self._address = address
            self._udp = UdpSocket(
                sock,
                self._on_datagrams,
                self._on_batch_end,
                self._on_error,
                wanted_buffer_bytes=0,
                max_queued_bytes=MAX_QUEUED_BYTES,
            )
            return

    # From the visitor.

    def send_data(self, data: bytes, end: bool) -> None:
        if self._is_over:
            return
        if end:
            self._finish(None)
            return
        self.bytes_sent += len(data)
        if self._udp is None:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self._origin.dropped += 1
            self._waiting.append(data)
            return
        if self._prefix:
            data = self._prefix + data
        if len(data) > MAX_DATAGRAM_BYTES:
            self._origin.tell_too_large(len(data))
            return
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        udp = self._udp
        if udp is not None:
            before = udp.dropped
            udp.send(out, self._address)
            self._origin.dropped += udp.dropped - before

    def send_trailers(self, fields: Fields) -> None:
        self.send_data(b"", True)

    def reset(self, error: EdgetunError) -> None:
        """The flow is over at the exit node."""
        if not self._is_over:
            self._finish(error if isinstance(error, Cancelled) else Cancelled(str(error)))

    def pause_response(self) -> None:
        pass  # datagrams are dropped, not held

    def resume_response(self) -> None:
        pass

    # The end.

    def fail(self, error: EdgetunError) -> None:
        """The agent ends it."""
        if not self._is_over:
            self._finish(error)
            self.client.on_reset(error)

    def _finish(self, error: EdgetunError | None) -> None:
        self._is_over = True
        self._waiting.clear()
        if self._out:
            self._flush()
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        self._origin.over(self, error)
