"""TCP and UDP in resources: how a Tunnel is reached without HTTP, and which ports an ExitPool gives away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Final

from pydantic import Field

from edgetun_core.api.model import ApiModel, Broken, Rule, RuledModel
from edgetun_core.api.names import Network
from edgetun_core.api.quantities import Duration

PortNumber = Annotated[int, Field(ge=1, le=65535)]
Connections = Annotated[int, Field(ge=1, le=1_000_000)]
PerAddress = Annotated[int, Field(ge=0, le=1_000_000)]

MAX_POOL_PORTS: Final = 250
"""Of both protocols together: each is a port of a Service."""
OWN_PORTS: Final = (80, 443, 7443, 8080, 8443, 9090)
"""Where exit nodes and their Services listen themselves."""
MAX_DATAGRAM: Final = 65_507
MAX_NETWORKS: Final = 256


def _port_or_passthrough(tcp: TcpExposure) -> Iterator[Broken]:
    if tcp.port is None and not tcp.passthrough:
        yield Broken((), "says neither port nor passthrough; write {port: 5432} or {passthrough: true}")
    elif tcp.port is not None and tcp.passthrough:
        yield Broken(("port",), "stands beside passthrough; keep one, or make two tunnels")


class TcpExposure(RuledModel):
    """A tunnel that carries TCP connections: by a port of the exit nodes, or by the server name of TLS that stays unopened."""

    reserved: ClassVar[frozenset[str]] = frozenset({"ports", "proxyProtocol", "tls", "keepAlive", "bandwidth", "alpn"})

    port: PortNumber | None = Field(
        default=None,
        description="Port of the exit nodes, one that the pool gives away (`spec.ports`). Either this or `passthrough`.",
        examples=[5432],
    )
    passthrough: bool = Field(
        default=False,
        description=(
            "Whether TLS connections for `spec.hostnames` on the HTTPS port go to the origin as they are; the exit node reads "
            "no more of them than the name (SNI)."
        ),
    )
    idle_timeout: Duration = Field(
        default=3600.0, gt=0, le=2_592_000, description="A connection without a byte either way for so long is closed."
    )
    max_connections: Connections = Field(
        default=10_000, description="Connections at one time on one exit node; one more is reset."
    )
    max_connections_per_address: PerAddress = Field(
        default=0, description="The same per IPv4 address or IPv6 /64; 0: the pool's `limits.maxConnectionsPerAddress`."
    )
    allow_from: list[Network] = Field(
        default_factory=list,
        max_length=MAX_NETWORKS,
        description="Networks of the visitors whose connections are taken, and nobody else's; none: everybody's.",
        examples=[["203.0.113.0/24", "2001:db8::/32"]],
    )
    deny_from: list[Network] = Field(
        default_factory=list,
        max_length=MAX_NETWORKS,
        description="Networks of visitors whose connections are refused, also where `allowFrom` holds them.",
        examples=[["203.0.113.66/32"]],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.port) != self.passthrough", "say either port or passthrough: true", _port_or_passthrough),
    )


class UdpExposure(ApiModel):
    """A tunnel that carries UDP datagrams. What one address and port of a visitor sends is a flow."""

    reserved: ClassVar[frozenset[str]] = frozenset({"ports", "proxyProtocol", "bandwidth", "sessionAffinity"})

    port: PortNumber = Field(
        description="Port of the exit nodes, one that the pool gives away (`spec.ports`).", examples=[53]
    )
    idle_timeout: Duration = Field(
        default=60.0, gt=0, le=86_400, description="A flow without a datagram either way for so long is forgotten."
    )
    max_flows: Connections = Field(
        default=10_000, description="Flows at one time on one exit node; the datagrams of one more are dropped."
    )
    max_flows_per_address: PerAddress = Field(
        default=0, description="The same per IPv4 address or IPv6 /64; 0: the pool's `limits.maxConnectionsPerAddress`."
    )
    max_datagram: Annotated[int, Field(ge=512, le=MAX_DATAGRAM)] = Field(
        default=MAX_DATAGRAM, description="Larger datagrams, in bytes, are dropped and counted, either way."
    )
    allow_from: list[Network] = Field(
        default_factory=list,
        max_length=MAX_NETWORKS,
        description="Networks of the visitors whose datagrams are taken, and nobody else's; none: everybody's.",
        examples=[["203.0.113.0/24", "2001:db8::/32"]],
    )
    deny_from: list[Network] = Field(
        default_factory=list,
        max_length=MAX_NETWORKS,
        description="Networks of visitors whose datagrams are refused, also where `allowFrom` holds them.",
        examples=[["203.0.113.66/32"]],
    )


def _from_up_to(ports: PortRange) -> Iterator[Broken]:
    if ports.to is not None and ports.to < ports.from_:
        yield Broken(("to",), f"is below from; write {{from: {ports.to}, to: {ports.from_}}}")
    else:
        own = next((port for port in OWN_PORTS if port in ports), None)
        if own is not None:
            yield Broken((), f"holds port {own}, which exit nodes need themselves; leave it out")


class PortRange(RuledModel):
    """A port, or all from one up to another."""

    from_: PortNumber = Field(alias="from", description="The first port.", examples=[5432])
    to: PortNumber | None = Field(default=None, description="The last port; left out: `from` alone.", examples=[5439])

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("!has(self.to) || self.to >= self.from", "to is below from", _from_up_to),
        Rule(
            f"[{', '.join(map(str, OWN_PORTS))}].all(p, p < self.from || p > (has(self.to) ? self.to : self.from))",
            "exit nodes need ports " + ", ".join(map(str, OWN_PORTS)) + " themselves",
            lambda _: iter(()),
        ),
    )

    @property
    def last(self) -> int:
        return self.from_ if self.to is None else self.to

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.from_ <= port <= self.last

    def __str__(self) -> str:
        return str(self.from_) if self.last == self.from_ else f"{self.from_}-{self.last}"


def _few_ports(ports: PoolPorts) -> Iterator[Broken]:
    count = sum(each.last - each.from_ + 1 for each in (*ports.tcp, *ports.udp))
    if count > MAX_POOL_PORTS:
        yield Broken((), f"are {count} ports, and {MAX_POOL_PORTS} are the most; write smaller ranges")


class PoolPorts(RuledModel):
    """Ports of the exit nodes that tunnels may take."""

    reserved: ClassVar[frozenset[str]] = frozenset({"http", "https", "tunnel", "sctp"})

    tcp: list[PortRange] = Field(
        default_factory=list, max_length=64, description="For TCP.", examples=["[{from: 5432, to: 5439}]"]
    )
    udp: list[PortRange] = Field(default_factory=list, max_length=64, description="For UDP.", examples=["[{from: 53}]"])

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.tcp.map(r, (has(r.to) ? r.to : r.from) - r.from + 1).sum()"
            f" + self.udp.map(r, (has(r.to) ? r.to : r.from) - r.from + 1).sum() <= {MAX_POOL_PORTS}",
            f"at most {MAX_POOL_PORTS} ports in all",
            _few_ports,
        ),
    )

    def ranges(self, kind: str) -> list[PortRange]:
        """Those of `"tcp"` or `"udp"`."""
        return self.tcp if kind == "tcp" else self.udp

    def allow(self, kind: str, port: int) -> bool:
        return any(port in each for each in self.ranges(kind))


def every_port() -> PoolPorts:
    """All of them: on a single machine whoever writes the manifest owns its ports."""
    everything = [PortRange.model_construct(from_=1, to=65535)]
    return PoolPorts.model_construct(tcp=everything, udp=everything)


def numbers(ranges: Iterable[PortRange]) -> list[int]:
    """Every port of some ranges, once, in order."""
    return sorted({port for each in ranges for port in range(each.from_, each.last + 1)})
