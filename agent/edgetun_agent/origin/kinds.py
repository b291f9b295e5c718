"""The kinds of local servers, chosen by the tunnel's kind and the origin's protocol; what `Origins`, metrics and the display ask of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgetun_agent.observe import OriginCounters, RecentRequests
from edgetun_agent.origin.client import OriginClient
from edgetun_agent.origin.h2_client import H2OriginClient
from edgetun_agent.origin.health import OriginHealth
from edgetun_agent.origin.tcp import TcpOrigin
from edgetun_agent.origin.udp import UdpOrigin
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.snapshot import OriginRule, TunnelRule


class LocalServer(Protocol):
    """One origin, of whatever kind."""

    service: str
    url: str
    counters: OriginCounters
    health: OriginHealth

    @property
    def rule(self) -> OriginRule: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def connections(self) -> int: ...
    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink: ...
    async def close(self, deadline_s: float = 0.0) -> None: ...


def build_local_server(
    tunnel: TunnelRule,
    rule: OriginRule,
    service: str,
    recent: RecentRequests | None,
    on_health: Callable[[LocalServer], None],
) -> LocalServer:
    """The client of an origin. Made on the event loop."""
    if tunnel.stream is not None and tunnel.stream.kind == "udp":
        return UdpOrigin(
            rule, service=service, recent=recent, on_health=on_health, max_flows=tunnel.stream.max_connections
        )
    if tunnel.stream is not None:
        return TcpOrigin(rule, service=service, recent=recent, on_health=on_health)
    kind = OriginClient if rule.protocol == "http1" else H2OriginClient
    return kind(rule, service=service, recent=recent, on_health=on_health)
