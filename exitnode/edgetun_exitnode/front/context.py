"""What every connection of the exit node's fronts shares: the handler, the limits, the counters and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgetun_core.http.exchange import Handler
from edgetun_core.http.h1 import H1Limits
from edgetun_core.http.h2 import H2Limits
from edgetun_core.proxy_protocol import TrustedNetworks


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """Bounds on visitors' connections. Times are in seconds; each is met within one `sweep_s`."""

    h1: H1Limits = field(default_factory=H1Limits)
    """Bounds on a head; they hold for every version."""
    h2: H2Limits = field(default_factory=H2Limits)
    max_connections: int = 15_000
    """Per front; beyond it the longest idle connection makes room, and when none is idle the newcomer gets 503."""
    max_connections_per_address: int = 2_000
    """Per IPv4 address or IPv6 /64; loopback is exempt. 0: no bound."""
    keep_alive_s: float = 75.0
    """A connection without a request, first or next."""
    head_s: float = 10.0
    """From the first byte of a head to its last; beyond it 408. HTTP/2: also the preface and each frame about the connection."""
    body_progress_s: float = 30.0
    """The longest silence within a request's body while we read; beyond it 408."""
    write_stall_s: float = 60.0
    """How long a visitor may take nothing of what waits for it; then its connection is dropped."""
    linger_s: float = 2.0
    """How long what still arrives is read and dropped after a last response (RFC 9112 §9.6)."""
    tls_handshake_s: float = 10.0
    sweep_s: float = 1.0
    write_buffer_bytes: int = 256 * 1024
    """Beyond it the answering side is paused."""
    pipelined_bytes: int = 64 * 1024
    """What is held of requests behind the one in flight; beyond it the connection is not read."""
    held_bytes: int = 48 * 1024 * 1024
    """Unfinished heads, pipelined requests and bodies that came while paused, of all connections of a front together;
    beyond it 503, or a reset of the stream that brings more."""
    queued_bytes: int = 128 * 1024 * 1024
    """Responses that wait for HTTP/2 visitors' windows, of all connections of a front together; beyond it those who write are
    paused sooner, and visitors who take nothing are dropped."""
    drained_body_bytes: int = 256 * 1024
    """What is read and dropped of a request's body after its response; beyond it the connection closes."""


class FrontCounters:
    """Plain integers; a scrape reads them. `responses[n]` counts statuses nxx."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "connections_evicted",
        "connections_open",
        "connections_refused",
        "connections_total",
        "early_data_refused",
        "early_data_requests",
        "h2_connections",
        "h2_connections_broken",
        "h2_streams_reset",
        "http3_connections",
        "http3_requests",
        "quic_migrations",
        "requests_malformed",
        "requests_timed_out",
        "responses",
        "responses_aborted",
        "tls_handshake_failures",
        "tls_handshakes",
    )

    def __init__(self) -> None:
        self.connections_open = 0
        self.connections_total = 0
        self.connections_refused = 0
        self.connections_evicted = 0
        self.h2_connections = 0
        self.h2_connections_broken = 0
        self.h2_streams_reset = 0
        self.requests_malformed = 0
        self.requests_timed_out = 0
        self.responses = [0, 0, 0, 0, 0, 0]
        self.responses_aborted = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.http3_connections = 0
        self.http3_requests = 0
        self.quic_migrations = 0
        self.early_data_requests = 0
        self.early_data_refused = 0
        self.tls_handshakes = 0
        self.tls_handshake_failures = 0

    @property
    def requests_total(self) -> int:
        """Requests that got a final response head."""
        return sum(self.responses)


class FrontContext:
    """Shared by the fronts of a node. `handler` is the pipeline's entry and may be swapped at any time."""

    __slots__ = ("clock", "counters", "handler", "limits", "proxies", "wall_clock")

    def __init__(
        self,
        handler: Handler,
        limits: FrontLimits | None = None,
        counters: FrontCounters | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.handler = handler
        self.limits = limits or FrontLimits()
        self.counters = counters or FrontCounters()
        self.clock = clock
        self.wall_clock = wall_clock
        self.proxies = TrustedNetworks()
        """Who has to say, by PROXY protocol, whose connection it brings."""
