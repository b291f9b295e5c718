"""Visitors' TCP connections that carry no HTTP: bytes both ways, each side ends on its own, a reset stays a reset.

Hot path. A connection is one exchange (core/edgetun_core/http/stream.py) and makes no task, timer or future; deadlines are swept
once a second for all of them (ports.py). Bounds: what the exchange takes before it pauses us (its credit), `write_buffer_bytes`
towards the visitor before we pause it, and `MAX_HEADER_BYTES` of a PROXY protocol header.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edgetun_core.errors import Cancelled, EdgetunError
from edgetun_core.http.exchange import CLOSED, RequestSink
from edgetun_core.http.message import Fields, Peer, ResponseHead
from edgetun_core.http.stream import TCP, build_stream_head
from edgetun_core.proxy_protocol import Endpoints, ProxyHeaderError, read_proxy_header
from edgetun_core.transport.sockets import no_delay, reset
from edgetun_exitnode.front.addresses import address_key, normalise_address
from edgetun_exitnode.front.servers import peer_of
from edgetun_exitnode.pipeline.streams import StreamPlan

if TYPE_CHECKING:
    from edgetun_exitnode.front.ports import StreamFronts


class StreamConnection(asyncio.Protocol):
    """One visitor's connection to a TCP tunnel; a `ResponseSink` of its exchange."""

    __slots__ = (
        "_held",
        "_input_done",
        "_is_over",
        "_is_reading",
        "_key",
        "_opening",
        "_output_done",
        "_pauses_output",
        "_request",
        "_server_name",
        "_told",
        "_transport",
        "active",
        "fronts",
        "plan",
        "since",
    )

    _transport: asyncio.Transport

    def __init__(
        self, fronts: StreamFronts, plan: StreamPlan, server_name: str = "", told: Endpoints | None = None
    ) -> None:
        """`told` is what a load balancer said of the visitor, when that was read already."""
        self.fronts = fronts
        self.plan = plan
        self.active = self.since = fronts.now
        self._server_name = server_name
        self._told = told
        self._request: RequestSink = CLOSED
        self._held: bytearray | None = None
        self._key: bytes | str | None = None
        self._is_reading = True
        self._pauses_output = False
        self._input_done = False
        self._output_done = False
        self._opening = False
        self._is_over = True
        """No exchange is under way: not yet, or no longer."""

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = transport  # type: ignore[assignment]
        fronts = self.fronts
        self.active = self.since = fronts.now
        fronts.connections.add(self)
        no_delay(self._transport)
        high = fronts.limits.write_buffer_bytes
        self._transport.set_write_buffer_limits(high=high, low=high // 4)
        if len(fronts.connections) > fronts.limits.max_connections:
            self.plan.state.counters.refused += 1
            reset(self._transport)
            return
        address, port = peer_of(self._transport)
        if self._told is not None:
            self._begin(self._told)
        elif fronts.trusted.holds(address):
            self._held = bytearray()
        else:
            name = transport.get_extra_info("sockname") or ("", 0)
            self._begin(Endpoints(address, port, normalise_address(name[0]), name[1]))

    def data_received(self, data: bytes) -> None:
        if self._held is not None:
            self._read_header(data)
            return
        if not self._is_reading:
            self._transport.pause_reading()  # uvloop forgets a pause that is asked for while the connection is made
        self.active = self.fronts.now
        self.plan.state.counters.bytes_in += len(data)
        self._request.send_data(data, False)

    def eof_received(self) -> bool:
        if self._is_over:
            return False
        self.active = self.fronts.now  # what still waits for the visitor has its time from here on
        self._input_done = True
        self._request.send_data(b"", True)
        if self._output_done:
            self._finish()
            return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.fronts.gone(self)
        if not self._is_over:
            request = self._request
            self._finish()
            self.plan.state.counters.reset_by_visitor += 1
            request.reset(Cancelled("the visitor reset the connection"))

    def pause_writing(self) -> None:
        self._pauses_output = True
        if not self._opening:
            self._request.pause_response()

    def resume_writing(self) -> None:
        self._pauses_output = False
        self._request.resume_response()

    # The beginning.

    def _read_header(self, data: bytes) -> None:
        """From a load balancer that is trusted: who the visitor is stands before the first byte."""
        held = self._held
        assert held is not None
        held += data
        try:
            header = read_proxy_header(bytes(held))
        except ProxyHeaderError as error:
            self.fronts.tell_wrong_header(peer_of(self._transport)[0], error)
            reset(self._transport)
            return
        if header is None:
            return
        self._held = None
        endpoints = header.endpoints
        if endpoints is None:
            address, port = peer_of(self._transport)
            name = self._transport.get_extra_info("sockname") or ("", 0)
            endpoints = Endpoints(address, port, normalise_address(name[0]), name[1])
        self._begin(endpoints)
        rest = bytes(held[header.size_bytes :])
        if rest and not self._is_over:
            self.data_received(rest)

    def _begin(self, endpoints: Endpoints) -> None:
        plan = self.plan
        fronts = self.fronts
        key = address_key(endpoints.source)
        refusal = plan.admit(endpoints.source, key, fronts.clock())
        if refusal is not None:
            fronts.tell_refused(plan, refusal)
            reset(self._transport)
            return
        self._key = key
        self._is_over = False
        head = build_stream_head(TCP, plan.rule.id, endpoints, self._server_name)
        peer = Peer(
            endpoints.source,
            endpoints.source_port,
            b"https" if self._server_name else b"http",
            sni=self._server_name,
            local=(endpoints.destination, endpoints.destination_port),
        )
        self._opening = True
        request = plan.handler.open(head, peer, False, self)
        self._opening = False
        if self._ended_meanwhile():
            return
        self._request = request
        if self._pauses_output:
            request.pause_response()

    def _ended_meanwhile(self) -> bool:
        return self._is_over  # asked after a call that may have ended the exchange

    # From the exchange.

    def on_interim(self, head: ResponseHead) -> None:
        pass

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if not 200 <= head.status <= 299:
            self.fronts.tell_failed(self.plan, EdgetunError(f"the agent answered {head.status} to a TCP connection"))
            request = self._request
            self._drop()
            request.reset(Cancelled("no TCP connection came of it"))
        elif end:
            self._end_output()

    def on_data(self, data: bytes, end: bool) -> None:
        if self._is_over:
            return
        self.active = self.fronts.now
        if data:
            self.plan.state.counters.bytes_out += len(data)
            self._transport.write(data)
        if end:
            self._end_output()

    def on_trailers(self, fields: Fields) -> None:
        self._end_output()

    def on_reset(self, error: EdgetunError) -> None:
        if self._is_over:
            return
        if not isinstance(error, Cancelled):
            self.fronts.tell_failed(self.plan, error)
        self.plan.state.counters.reset_by_origin += 1
        self._drop()

    def pause_request(self) -> None:
        if self._is_reading and not self._input_done:
            self._is_reading = False
            self._transport.pause_reading()

    def resume_request(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # The end.

    def _end_output(self) -> None:
        self._output_done = True
        if self._input_done:
            self._finish()
            self._transport.close()
        else:
            self._transport.write_eof()

    def _finish(self) -> None:
        """The exchange is over; the transport may still have bytes to send."""
        if not self._is_over:
            self._is_over = True
            self._request = CLOSED
            self.plan.release(self._key)

    def _drop(self) -> None:
        self._finish()
        reset(self._transport)

    def give_up(self, why: EdgetunError) -> None:
        """Ends both sides: resets the visitor's connection and cancels the exchange."""
        request = self._request
        self._drop()
        request.reset(why)

    def check_deadline(self, now: float, header_s: float) -> None:
        """Ends what has been silent for too long; called by the sweep."""
        silent_s = now - self.active
        if self._held is not None:
            if silent_s > header_s:
                reset(self._transport)
        elif silent_s > self.plan.stream.idle_timeout_s:
            self.plan.state.counters.idle += 1
            self.give_up(Cancelled("nothing came for too long"))
        elif self._transport.is_closing() and silent_s > self.fronts.limits.write_stall_s:
            self._transport.abort()
