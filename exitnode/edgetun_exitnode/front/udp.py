"""Visitors' UDP datagrams: what one address and port sends is a flow, and a flow is one exchange (core/edgetun_core/http/stream.py).

Hot path. Datagrams of one read are passed on one by one; those that go to a visitor leave together at the end of the loop tick, many
with one system call. Bounds: flows per tunnel and address (pipeline/streams.py), `MAX_WAITING` datagrams of a flow that waits for an
agent (the oldest is dropped), what the socket queues when the kernel takes no more. All that is dropped is counted.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Cancelled, EdgetunError
from edgetun_core.http.exchange import CLOSED, RequestSink
from edgetun_core.http.message import Fields, Peer, ResponseHead
from edgetun_core.http.stream import UDP, build_stream_head
from edgetun_core.proxy_protocol import Endpoints
from edgetun_core.transport.udp import Address, UdpSocket, plain_address, split_segments
from edgetun_exitnode.front.addresses import address_key
from edgetun_exitnode.pipeline.streams import StreamPlan

if TYPE_CHECKING:
    from edgetun_exitnode.front.ports import StreamFronts

MAX_WAITING: Final = 32


class UdpFront:
    """The listener of one UDP port; its tunnel may change while it listens."""

    def __init__(self, fronts: StreamFronts, plan: StreamPlan, sockets: list[socket.socket]) -> None:
        self.plan = plan
        self.fronts = fronts
        self._listening = [_UdpListener(self, sock) for sock in sockets]

    @property
    def flows(self) -> int:
        """Flows that are known now."""
        return sum(len(one.flows) for one in self._listening)

    def sweep(self, now: float) -> None:
        """Forgets flows without a datagram for too long; called once a second."""
        for listener in self._listening:
            listener.sweep(now)

    def drop_flows(self, why: str) -> None:
        """Ends every flow."""
        for listener in self._listening:
            for flow in tuple(listener.flows.values()):
                flow.give_up(why)

    def close(self) -> None:
        """Ends every flow and the listening."""
        self.drop_flows("the edge went away")
        for listener in self._listening:
            listener.close()


class _UdpListener:
    """One bound socket of a front."""

    def __init__(self, front: UdpFront, sock: socket.socket) -> None:
        self.front = front
        self.flows: dict[Address, UdpFlow] = {}
        name = sock.getsockname()
        self.local = plain_address(name)
        self._udp = UdpSocket(sock, self._on_datagrams, self._on_batch_end, self._on_error)
        self._unsent: dict[UdpFlow, list[bytes]] = {}
        self._loop = asyncio.get_running_loop()
        self._dropped = 0

    # From the socket.

    def _on_datagrams(self, data: bytes, segment: int, address: Address) -> None:
        flow = self.flows.get(address)
        if flow is None:
            flow = self._begin(address)
            if flow is None:
                self.front.plan.state.counters.dropped += 1
                return
        if len(data) <= segment:
            flow.from_visitor(data)
        else:
            for piece in split_segments(data, segment):
                flow.from_visitor(piece)

    def _on_batch_end(self) -> None:
        pass

    def _on_error(self, error: OSError) -> None:
        pass  # a visitor that is gone (ICMP), or a network that is away for a moment

    def _begin(self, address: Address) -> UdpFlow | None:
        front = self.front
        plan = front.plan
        host, port = plain_address(address)
        key = address_key(host)
        refusal = plan.admit(host, key, front.fronts.clock())
        if refusal is not None:
            front.fronts.tell_refused(plan, refusal)
            return None
        flow = UdpFlow(self, plan, address, key)
        self.flows[address] = flow
        flow.open(Endpoints(host, port, *self.local))
        return flow if self.flows.get(address) is flow else None

    # From flows.

    def send(self, flow: UdpFlow, data: bytes) -> None:
        """Sends a datagram to a visitor, with all others of this loop tick."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        waiting = self._unsent.get(flow)
        if waiting is None:
            self._unsent[flow] = [data]
        else:
            waiting.append(data)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, {}
        for flow, datagrams in unsent.items():
            self._udp.send(datagrams, flow.address)

    def forget(self, flow: UdpFlow) -> None:
        """A flow is over."""
        if self.flows.get(flow.address) is flow:
            del self.flows[flow.address]

    def sweep(self, now: float) -> None:
        dropped = self._udp.dropped
        self.front.plan.state.counters.dropped += dropped - self._dropped
        self._dropped = dropped
        for flow in tuple(self.flows.values()):
            if now - flow.active > flow.plan.stream.idle_timeout_s:
                flow.plan.state.counters.idle += 1
                flow.give_up("nothing came for too long")

    def close(self) -> None:
        self._udp.close()


class UdpFlow:
    """What one address and port of a visitor sends, and what comes back: the `ResponseSink` of its exchange."""

    __slots__ = ("_is_over", "_is_waiting", "_key", "_listener", "_request", "_waiting", "active", "address", "plan")

    def __init__(self, listener: _UdpListener, plan: StreamPlan, address: Address, key: bytes | str | None) -> None:
        self.plan = plan
        self.address = address
        self.active = listener.front.fronts.now
        self._listener = listener
        self._key = key
        self._request: RequestSink = CLOSED
        self._waiting: deque[bytes] = deque()
        self._is_waiting = False
        self._is_over = False

    def open(self, endpoints: Endpoints) -> None:
        """Begins the exchange; it may be over when this returns."""
        plan = self.plan
        head = build_stream_head(UDP, plan.rule.id, endpoints)
        local = (endpoints.destination, endpoints.destination_port)
        peer = Peer(endpoints.source, endpoints.source_port, b"http", local=local)
        request = plan.handler.open(head, peer, False, self)
        if not self._is_over:
            self._request = request

    def from_visitor(self, data: bytes) -> None:
        """A datagram of the visitor."""
        counters = self.plan.state.counters
        size = len(data)
        counters.datagrams_in += 1
        counters.bytes_in += size
        self.active = self._listener.front.fronts.now
        if size > self.plan.stream.max_datagram_bytes:
            self._too_large(size, "from")
        elif not self._is_waiting:
            self._request.send_data(data, False)
        else:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                counters.dropped += 1
            self._waiting.append(data)

    def _too_large(self, size: int, way: str) -> None:
        self.plan.state.counters.datagrams_too_large += 1
        self._listener.front.fronts.tell_too_large(self.plan, size, way)

    # From the exchange.

    def on_interim(self, head: ResponseHead) -> None:
        pass

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if end or not 200 <= head.status <= 299:
            self._listener.front.fronts.tell_failed(
                self.plan, EdgetunError(f"the agent answered {head.status} to a UDP flow")
            )
            self.give_up("no UDP flow came of it")

    def on_data(self, data: bytes, end: bool) -> None:
        if self._is_over:
            return
        if end:
            self.give_up("the service's side ended the flow")
            return
        counters = self.plan.state.counters
        self.active = self._listener.front.fronts.now
        if len(data) > self.plan.stream.max_datagram_bytes:
            self._too_large(len(data), "to")
            return
        counters.datagrams_out += 1
        counters.bytes_out += len(data)
        self._listener.send(self, data)

    def on_trailers(self, fields: Fields) -> None:
        self.give_up("the service's side ended the flow")

    def on_reset(self, error: EdgetunError) -> None:
        if self._is_over:
            return
        if not isinstance(error, Cancelled):
            self._listener.front.fronts.tell_failed(self.plan, error)
        self.plan.state.counters.reset_by_origin += 1
        self._finish()

    def pause_request(self) -> None:
        self._is_waiting = True

    def resume_request(self) -> None:
        self._is_waiting = False
        waiting, self._waiting = self._waiting, deque()
        for data in waiting:
            self._request.send_data(data, False)

    # The end.

    def give_up(self, why: str) -> None:
        """Ends the flow; a visitor that sends again begins another."""
        request = self._request
        self._finish()
        request.reset(Cancelled(why))

    def _finish(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._request = CLOSED
            self.plan.state.counters.dropped += len(self._waiting)
            self._waiting.clear()
            self._listener.forget(self)
            self.plan.release(self._key)
