"""Tunnel: which hostnames lead to which local server, and what the edge does on the way.

Modelled is what is enforced. Fields planned for later are reserved by name (`reserved`), so that adding them breaks nothing;
`protocol`, `pool` and `path` are open for more values and keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from edgetun_core.api.meta import Column, Resource, ready_columns
from edgetun_core.api.model import ApiModel, Broken, Location, Rule, RuledModel, StatusModel, repeated, told_above
from edgetun_core.api.names import FilePath, HostHeader, Hostname, Label, OriginUrl, UrlPath
from edgetun_core.api.policies import CachePolicy, CollapsePolicy, CompressionPolicy, HeaderPolicy, LimitPolicy, overlay
from edgetun_core.api.quantities import Duration
from edgetun_core.api.status import Status
from edgetun_core.api.streams import TcpExposure, UdpExposure
from edgetun_core.quantities import quoted

DEFAULT_POOL = "default"


# --- pool --------------------------------------------------------------------------------------------------------------


ANY_SPARE: Final = "auto"


def _regions_both_ways(policy: RegionPolicy) -> Iterator[Broken]:
    for index, region in enumerate(policy.deny):
        if region in policy.allow:
            yield Broken(("deny", index), f"{quoted(region)} is also in allow; keep it in one of them")


def _spare_not_allowed(policy: RegionPolicy) -> Iterator[Broken]:
    spare = policy.spare
    if spare in (None, ANY_SPARE):
        return
    if spare in policy.deny or (policy.allow and spare not in policy.allow):
        yield Broken(("spare",), f"{quoted(spare)} is not among the regions that may serve the tunnel")


class RegionPolicy(RuledModel):
    """In which of the pool's regions a tunnel is served. Denied regions win over allowed ones."""

    reserved: ClassVar[frozenset[str]] = frozenset({"prefer", "selector", "residency"})

    allow: list[Label] = Field(
        default_factory=list,
        max_length=64,
        description="Only these regions; empty: all of them.",
        examples=[["eu-west"]],
    )
    deny: list[Label] = Field(
        default_factory=list, max_length=64, description="Not these regions.", examples=[["us-east"]]
    )
    spare: Label | None = Field(
        default=None,
        description="Region for the last session of each agent, beside the one where it is placed: its name, or `auto` for "
        "the next best. `edgetun-agent --spare-region` overrides it.",
        examples=["auto"],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.deny.all(r, !(r in self.allow))",
            "a region is in both allow and deny; keep it in one",
            _regions_both_ways,
        ),
        Rule(
            "!has(self.spare) || self.spare == 'auto' || "
            "(!(self.spare in self.deny) && (size(self.allow) == 0 || self.spare in self.allow))",
            "the spare region is not among the regions that may serve the tunnel",
            _spare_not_allowed,
        ),
    )


class PoolChoice(ApiModel):
    """Which exit nodes serve the tunnel."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"selector", "names", "fallback", "weights", "class", "className", "spare"}
    )

    name: Label = Field(default=DEFAULT_POOL, description="Name of the ExitPool.")
    regions: RegionPolicy = Field(
        default_factory=RegionPolicy, description="Regions of the pool that may serve the tunnel."
    )


# --- origin ------------------------------------------------------------------------------------------------------------


class OriginTls(ApiModel):
    """How the agent checks an `https://` origin."""

    reserved: ClassVar[frozenset[str]] = frozenset({"clientCertificate", "certFile", "keyFile", "minVersion", "pin"})

    verify: bool = Field(
        default=True, description="Whether the origin's certificate must be valid. Turn off only on your own machine."
    )
    ca_file: FilePath | None = Field(
        default=None,
        description="Certificates to trust instead of the system's; a file beside the agent.",
        examples=["certs/ca.pem"],
    )
    server_name: Hostname | None = Field(
        default=None,
        description="Name that the certificate must carry, when it is not the url's host.",
        examples=["app.internal"],
    )


class OriginTimeouts(ApiModel):
    """How long the agent waits for the origin."""

    connect: Duration = Field(default=5.0, gt=0, le=300, description="Until a connection stands; then 502.")
    response: Duration = Field(
        default=60.0, gt=0, le=86_400, description="From the end of the request to the head of the response; then 504."
    )
    idle: Duration = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="The longest silence within a body. Upgraded connections and event streams are exempt.",
    )


class OriginHealth(ApiModel):
    """Asking the origin whether it is well, besides what requests experience."""

    reserved: ClassVar[frozenset[str]] = frozenset({"status", "statuses", "method", "headers", "threshold", "timeout"})

    path: UrlPath = Field(description="Path to ask; a status below 500 is healthy.", examples=["/healthz"])
    interval: Duration = Field(default=10.0, ge=1, le=3600, description="Time between two questions.")


def _protocol_fits_the_url(origin: Origin) -> Iterator[Broken]:
    is_tls = origin.url.startswith("https:")
    if origin.protocol == "h2c" and is_tls:
        yield Broken(("protocol",), "h2c is HTTP/2 without TLS, and the url is https://; write h2, or an http:// url")
    elif origin.protocol == "h2c" and not origin.url.startswith(("http:", "unix:")):
        yield Broken(("protocol",), "h2c is for http:// and unix:// urls; remove it, or write such a url")
    elif origin.protocol in ("h2", "auto") and not is_tls:
        yield Broken(
            ("protocol",),
            f"{origin.protocol} is agreed on in the TLS handshake, and the url is not https://; write h2c, http1, or an https:// url",
        )


class Origin(RuledModel):
    """The local server that the agent sends requests to."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "weight",
            "retries",
            "circuitBreaker",
            "outlier",
            "backup",
            "failover",
            "compression",
            "replicas",
        }
    )

    url: OriginUrl = Field(
        description=(
            "`http://host:port`, `https://host:port` (an optional path is put before every request's) or `unix:///path.sock`, "
            "as seen from the agent. With `spec.tcp`: `tcp://host:port` or `unix:///path.sock`; with `spec.udp`: `udp://host:port`."
        ),
        examples=["http://localhost:3000"],
    )
    protocol: Literal["http1", "h2c", "h2", "auto"] = Field(
        default="http1",
        description=(
            "What the server speaks: `http1`; `h2c`, HTTP/2 without TLS (gRPC servers), for `http://` and `unix://`; `h2`, HTTP/2 over "
            "TLS; `auto`, what the TLS handshake chooses of the two. `h2` and `auto` need `https://`."
        ),
        examples=["h2c"],
    )
    host_header: HostHeader = Field(
        default="preserve",
        description="Host that the origin sees: `preserve` keeps the visitor's, `origin` takes the url's, anything else is sent as it stands.",
        examples=["app.internal:8080"],
    )
    tls: OriginTls = Field(default_factory=OriginTls, description="Checks of an `https://` origin.")
    timeouts: OriginTimeouts = Field(default_factory=OriginTimeouts, description="Patience with the origin.")
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=100, description="Connections of one agent to the origin; more requests wait."
    )
    health: OriginHealth | None = Field(
        default=None, description="A path that the agent asks at intervals; left out: none."
    )
    proxy_protocol: Literal["none", "v1", "v2"] = Field(
        default="none",
        description=(
            "How the local service of a TCP or UDP tunnel learns who the visitor is: a PROXY protocol header of this version "
            "before the first byte (TCP), or of `v2` before every datagram (UDP)."
        ),
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.protocol == 'http1' || (self.protocol == 'h2c' ? self.url.startsWith('http://') || self.url.startsWith('unix://')"
            " : self.url.startsWith('https://'))",
            "protocol h2c needs an http:// or unix:// url; h2 and auto need https://",
            _protocol_fits_the_url,
        ),
    )


class NamedOrigin(Origin):
    """One of several local servers."""

    name: Label = Field(description="Name by which routes choose the origin.", examples=["api"])


# --- routes ------------------------------------------------------------------------------------------------------------


def _one_kind_of_path(path: RoutePath) -> Iterator[Broken]:
    if path.prefix is None and path.exact is None:
        yield Broken((), "says neither prefix nor exact; write {prefix: /api} or {exact: /api}")
    elif path.prefix is not None and path.exact is not None:
        yield Broken((), "says both prefix and exact; keep one, or write two routes")


class RoutePath(RuledModel):
    """Which paths a route is for."""

    reserved: ClassVar[frozenset[str]] = frozenset({"regex", "pattern", "glob", "suffix", "template"})

    prefix: UrlPath | None = Field(
        default=None,
        description="The path and everything below it, by whole segments: `/api` covers `/api/v1`, not `/apis`.",
        examples=["/api"],
    )
    exact: UrlPath | None = Field(default=None, description="This path only.", examples=["/index.html"])

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.prefix) != has(self.exact)", "say either prefix or exact", _one_kind_of_path),
    )

    @property
    def match(self) -> str:
        return "exact" if self.exact is not None else "prefix"

    @property
    def normal(self) -> str:
        """The path as routes are compared: a prefix without its closing slash."""
        if self.exact is not None:
            return self.exact
        return (self.prefix or "/").rstrip("/") or "/"


def _strip_needs_a_prefix(route: Route) -> Iterator[Broken]:
    if route.strip_prefix and route.path.exact is not None:
        yield Broken(("stripPrefix",), "has no prefix to strip; write path.prefix, or remove stripPrefix")


class Route(RuledModel):
    """One path of a tunnel, and what is different there. Policies are laid over the tunnel's: what a route leaves out stays."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "access", "waf", "mock", "mocks", "shadow", "failover", "webhook", "webhooks", "rewrite", "redirect",
            "respond", "methods", "method", "hostnames", "match", "retries", "timeouts", "weight", "budget",
        }
    )  # fmt: skip

    laid_over: ClassVar[frozenset[str]] = frozenset({"cache", "collapse", "compression", "limits", "headers"})

    path: RoutePath = Field(description="Which paths the route is for.", examples=["{prefix: /api}"])
    origin: Label | None = Field(
        default=None, description="Name of one of `spec.origins`; left out: the first of them.", examples=["api"]
    )
    strip_prefix: bool = Field(default=False, description="Whether the origin sees the path without the prefix.")
    cache: CachePolicy = Field(default_factory=CachePolicy, description="What differs from `spec.cache`.")
    collapse: CollapsePolicy = Field(default_factory=CollapsePolicy, description="What differs from `spec.collapse`.")
    compression: CompressionPolicy = Field(
        default_factory=CompressionPolicy, description="What differs from `spec.compression`."
    )
    limits: LimitPolicy = Field(default_factory=LimitPolicy, description="What differs from `spec.limits`.")
    headers: HeaderPolicy = Field(default_factory=HeaderPolicy, description="What differs from `spec.headers`.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!self.stripPrefix || has(self.path.prefix)",
            "stripPrefix needs path.prefix",
            _strip_needs_a_prefix,
        ),
    )


# --- spec --------------------------------------------------------------------------------------------------------------


def _one_way_to_name_origins(spec: TunnelSpec) -> Iterator[Broken]:
    if spec.origin is None and not spec.origins:
        yield Broken(("origin",), "is missing; add origin: {url: http://localhost:3000}")
    elif spec.origin is not None and spec.origins:
        yield Broken(("origins",), "stands beside origin; keep one of them")


def _http_needs_a_hostname(spec: TunnelSpec) -> Iterator[Broken]:
    if not spec.hostnames and spec.stream is None:
        yield Broken(("hostnames",), "names no host; add one, such as shop.example.com")


def _tcp_or_udp(spec: TunnelSpec) -> Iterator[Broken]:
    if spec.tcp is not None and spec.udp is not None:
        yield Broken(("udp",), "stands beside tcp; make two tunnels")


def _names_or_a_port(spec: TunnelSpec) -> Iterator[Broken]:
    if spec.tcp is not None and spec.tcp.passthrough and not spec.hostnames:
        yield Broken(("hostnames",), "names no host; passthrough tells connections apart by it, such as db.example.com")
    elif spec.stream is not None and not (spec.tcp is not None and spec.tcp.passthrough) and spec.hostnames:
        kind = "tcp" if spec.tcp is not None else "udp"
        remedy = "; remove it, or write tcp: {passthrough: true}" if spec.tcp is not None else "; remove it"
        yield Broken(("hostnames",), f"has no effect with {kind}.port, where any name leads to the port{remedy}")


def _origin_fits(spec: TunnelSpec) -> Iterator[Broken]:
    places: list[tuple[Location, Origin]] = [(("origin",), spec.origin)] if spec.origin is not None else []
    places += [(("origins", index), origin) for index, origin in enumerate(spec.origins)]
    for where, origin in places:
        scheme = origin.url.partition("://")[0]
        if spec.tcp is not None and scheme not in ("tcp", "unix"):
            yield Broken((*where, "url"), f"{quoted(origin.url)} is no TCP service; write tcp://localhost:5432")
        elif spec.udp is not None and scheme != "udp":
            yield Broken((*where, "url"), f"{quoted(origin.url)} is no UDP service; write udp://localhost:53")
        elif spec.stream is None and scheme in ("tcp", "udp"):
            yield Broken(
                (*where, "url"),
                f"{quoted(origin.url)} is no HTTP server; add {scheme}: {{port: 5432}} to spec, or write http://localhost:3000",
            )


def _proxy_protocol_fits(spec: TunnelSpec) -> Iterator[Broken]:
    for index, origin in enumerate(spec.origins):
        if origin.proxy_protocol != "none":
            yield Broken(("origins", index, "proxyProtocol"), "is for TCP and UDP tunnels; HTTP origins get Forwarded")
    if spec.origin is None or spec.origin.proxy_protocol == "none":
        return
    if spec.stream is None:
        yield Broken(("origin", "proxyProtocol"), "is for TCP and UDP tunnels; HTTP origins get Forwarded")
    elif spec.udp is not None and spec.origin.proxy_protocol != "v2":
        yield Broken(("origin", "proxyProtocol"), "is v1, which UDP does not have; write v2")


def _no_http_policies(spec: TunnelSpec) -> Iterator[Broken]:
    if spec.stream is None:
        return
    kind = "tcp" if spec.tcp is not None else "udp"
    said = {
        "origins": bool(spec.origins),
        "routes": bool(spec.routes),
        "cache": spec.cache != CachePolicy(),
        "collapse": spec.collapse != CollapsePolicy(),
        "compression": spec.compression != CompressionPolicy(),
        "headers": spec.headers != HeaderPolicy(),
        "forceHttps": spec.force_https,
    }
    for name in (name for name, is_said in said.items() if is_said):
        yield Broken((name,), f"is for HTTP and has no effect with {kind}; remove it")
    if spec.limits.max_request_body_bytes:
        yield Broken(("limits", "maxRequestBodyBytes"), f"is for HTTP and has no effect with {kind}; remove it")
    if spec.origin is not None and spec.origin.health is not None:
        yield Broken(("origin", "health"), f"is for HTTP and has no effect with {kind}; remove it")


def _routes_name_known_origins(spec: TunnelSpec) -> Iterator[Broken]:
    names = list(dict.fromkeys(origin.name for origin in spec.origins))
    for index, route in enumerate(spec.routes):
        if route.origin is None or route.origin in names:
            continue
        if names:
            remedy = f"write {' or '.join(names[:5])}, or add it to spec.origins"
        else:
            remedy = "the tunnel has one origin without a name; remove this, or name origins in spec.origins"
        yield Broken(("routes", index, "origin"), f"{quoted(route.origin)} is not an origin of this tunnel; {remedy}")


def _routes_differ(spec: TunnelSpec) -> Iterator[Broken]:
    seen: dict[tuple[str, str], int] = {}
    for index, route in enumerate(spec.routes):
        key = (route.path.match, route.path.normal)
        first = seen.setdefault(key, index)
        if first != index:
            yield Broken(
                ("routes", index, "path"),
                f"{key[0]} {quoted(key[1])} is the path of routes[{first}] too; merge the two routes",
            )


def _cache_blocks(spec: TunnelSpec) -> Iterator[tuple[Location, CachePolicy, CachePolicy]]:
    """Every cache block: where, what it says, and what it comes to."""
    yield ("cache",), spec.cache, spec.cache
    for index, route in enumerate(spec.routes):
        if route.cache.model_fields_set:
            yield ("routes", index, "cache"), route.cache, overlay(spec.cache, route.cache)


def _override_needs_a_ttl(spec: TunnelSpec) -> Iterator[Broken]:
    for where, said, whole in _cache_blocks(spec):
        if whole.mode == "override" and not whole.ttl and said.model_fields_set & {"mode", "ttl"}:
            place = (*where, "ttl" if "ttl" in said.model_fields_set else "mode")
            yield Broken(place, "override needs a ttl above zero; add ttl: 1s, or write mode: respect")


def _only_override_overrides(spec: TunnelSpec) -> Iterator[Broken]:
    names = {"ttl": "ttl", "statuses": "statuses", "ignore_no_store": "ignoreNoStore"}
    for where, said, whole in _cache_blocks(spec):
        for name, written in names.items():
            if name in said.model_fields_set and getattr(said, name) and whole.mode != "override":
                yield Broken(
                    (*where, written), f"has no effect with mode {whole.mode}; add mode: override, or remove it"
                )


def _burst_needs_a_rate(spec: TunnelSpec) -> Iterator[Broken]:
    blocks: list[tuple[Location, LimitPolicy, LimitPolicy]] = [(("limits",), spec.limits, spec.limits)]
    blocks += [
        (("routes", index, "limits"), route.limits, overlay(spec.limits, route.limits))
        for index, route in enumerate(spec.routes)
        if route.limits.model_fields_set
    ]
    for where, said, whole in blocks:
        if said.burst and not whole.rate_per_visitor:
            yield Broken((*where, "burst"), "has no effect without a rate; add ratePerVisitor: 10/s, or remove burst")


_ROUTE_MODE: Final = "(has(r.cache.mode) ? r.cache.mode : self.cache.mode)"


class TunnelSpec(RuledModel):
    """What the tunnel serves, where from, and under which policies."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "access", "waf", "mock", "mocks", "shadow", "failover", "standby", "webhook", "webhooks",
            "tls", "certificates", "certificate", "proxyProtocol", "replicas", "loadBalancing", "retries", "circuitBreaker",
            "bandwidth", "inspect", "inspector", "reclaimPolicy", "port", "ports", "http2", "http3", "logging", "suspend", "wake",
        }
    )  # fmt: skip

    value_hints: ClassVar[dict[str, dict[str, str]]] = {
        "protocol": dict.fromkeys(
            ("grpc", "h2c", "h2"), "an http tunnel carries it: remove this, and write protocol: h2c in spec.origin"
        )
    }

    protocol: Literal["http"] = Field(
        default="http",
        description=(
            "What visitors speak: `http` (with WebSocket, event streams and gRPC, plain and over TLS). For anything else "
            "write `tcp` or `udp`."
        ),
    )
    hostnames: list[Hostname] = Field(
        default_factory=list,
        max_length=64,
        description="Hosts that lead here; at least one, but for ports of `tcp` and `udp`. A leading `*.` stands for exactly one more label; an exact name wins over it.",
        examples=[["shop.example.com", "*.shop.example.com"]],
    )
    tcp: TcpExposure | None = Field(
        default=None, description="Carries TCP connections instead of HTTP.", examples=["{port: 5432}"]
    )
    udp: UdpExposure | None = Field(
        default=None, description="Carries UDP datagrams instead of HTTP.", examples=["{port: 53}"]
    )
    pool: PoolChoice = Field(default_factory=PoolChoice, description="Which exit nodes serve the tunnel.")
    origin: Origin | None = Field(
        default=None,
        description="The local server. Either this or `origins`.",
        examples=["{url: http://localhost:3000}"],
    )
    origins: list[NamedOrigin] = Field(
        default_factory=list,
        max_length=32,
        description=(
            "Several local servers that routes choose from by name; the first is for everything else. Each has a name and "
            "the fields of `spec.origin`."
        ),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    routes: list[Route] = Field(
        default_factory=list,
        max_length=64,
        description=(
            "Paths with an origin or policies of their own. An exact path wins over a prefix, a longer prefix over a shorter "
            "one; what no route covers goes to the (first) origin under the tunnel's policies."
        ),
    )
    cache: CachePolicy = Field(default_factory=CachePolicy, description="How responses are stored at the edge.")
    collapse: CollapsePolicy = Field(
        default_factory=CollapsePolicy, description="How identical requests in flight become one."
    )
    compression: CompressionPolicy = Field(
        default_factory=CompressionPolicy, description="Which responses the edge compresses for visitors."
    )
    limits: LimitPolicy = Field(default_factory=LimitPolicy, description="Bounds on requests.")
    headers: HeaderPolicy = Field(default_factory=HeaderPolicy, description="Changes to header fields.")
    force_https: bool = Field(default=False, description="Whether plain HTTP is redirected to HTTPS (308).")
    reconnect_grace: Duration = Field(
        default=5.0, le=300, description="How long visitors wait while no agent is connected, before they get 503."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.origin) != (has(self.origins) && size(self.origins) > 0)",
            "say either origin or origins",
            _one_way_to_name_origins,
        ),
        Rule(
            "has(self.tcp) || has(self.udp) || size(self.hostnames) > 0",
            "an http tunnel needs a hostname",
            _http_needs_a_hostname,
        ),
        Rule(
            "!has(self.tcp) || !has(self.udp)",
            "say either tcp or udp; two tunnels can share a port number",
            _tcp_or_udp,
        ),
        Rule(
            "!(has(self.tcp) || has(self.udp)) || (has(self.tcp) && self.tcp.passthrough) == (size(self.hostnames) > 0)",
            "hostnames go with tcp.passthrough, and a port has none",
            _names_or_a_port,
        ),
        Rule(
            "!has(self.origin) || (has(self.tcp) ? self.origin.url.matches('^(tcp|unix)://')"
            " : has(self.udp) ? self.origin.url.startsWith('udp://') : !self.origin.url.matches('^(tcp|udp)://'))",
            "origin.url does not fit: tcp:// goes with tcp, udp:// with udp, http:// and https:// with neither",
            _origin_fits,
        ),
        Rule(
            "self.origins.all(o, !o.url.matches('^(tcp|udp)://') && o.proxyProtocol == 'none')",
            "tcp:// and udp:// are for a single origin",
            told_above,
        ),
        Rule(
            "!has(self.origin) || self.origin.proxyProtocol == 'none' || has(self.tcp)"
            " || (has(self.udp) && self.origin.proxyProtocol == 'v2')",
            "origin.proxyProtocol is for tcp (v1, v2) and udp (v2)",
            _proxy_protocol_fits,
        ),
        Rule(
            "!(has(self.tcp) || has(self.udp)) || (size(self.origins) == 0 && size(self.routes) == 0 && !self.forceHttps"
            " && self.cache.mode == 'respect' && self.collapse.enabled && !has(self.origin.health))",
            "origins, routes, cache, collapse, headers, forceHttps and health are for HTTP and have no effect with tcp or udp",
            _no_http_policies,
        ),
        Rule(
            "self.hostnames.all(h, self.hostnames.exists_one(o, o == h))",
            "a hostname is listed twice",
            lambda spec: repeated(spec.hostnames, "hostnames"),
        ),
        Rule(
            "",
            "two origins have the same name",
            lambda spec: repeated([origin.name for origin in spec.origins], "origins", "name"),
        ),
        Rule(
            "self.routes.all(r, !has(r.origin) || self.origins.exists(o, o.name == r.origin))",
            "a route names an origin that spec.origins does not have",
            _routes_name_known_origins,
        ),
        Rule(
            "self.routes.all(a, self.routes.exists_one(b, has(a.path.prefix) == has(b.path.prefix) && (has(a.path.prefix)"
            " ? (a.path.prefix.endsWith('/') ? a.path.prefix : a.path.prefix + '/')"
            " == (b.path.prefix.endsWith('/') ? b.path.prefix : b.path.prefix + '/')"
            " : a.path.exact == b.path.exact)))",
            "two routes have the same path",
            _routes_differ,
        ),
        Rule(
            "self.cache.mode != 'override' || duration(self.cache.ttl) > duration('0s')",
            "cache.mode override needs a ttl above zero",
            _override_needs_a_ttl,
        ),
        Rule(
            f"self.routes.all(r, !has(r.cache) || !(has(r.cache.mode) || has(r.cache.ttl)) || {_ROUTE_MODE} != 'override'"
            " || duration(has(r.cache.ttl) ? r.cache.ttl : self.cache.ttl) > duration('0s'))",
            "cache.mode override of a route needs a ttl above zero",
            told_above,
        ),
        Rule(
            "self.cache.mode == 'override' || (duration(self.cache.ttl) == duration('0s')"
            " && size(self.cache.statuses) == 0 && !self.cache.ignoreNoStore)",
            "ttl, statuses and ignoreNoStore need cache.mode override",
            _only_override_overrides,
        ),
        Rule(
            f"self.routes.all(r, !has(r.cache) || {_ROUTE_MODE} == 'override'"
            " || ((!has(r.cache.ttl) || duration(r.cache.ttl) == duration('0s'))"
            " && (!has(r.cache.statuses) || size(r.cache.statuses) == 0)"
            " && (!has(r.cache.ignoreNoStore) || !r.cache.ignoreNoStore)))",
            "ttl, statuses and ignoreNoStore of a route need cache.mode override",
            told_above,
        ),
        Rule(
            "self.limits.burst == 0 || (has(self.limits.ratePerVisitor) && self.limits.ratePerVisitor.matches('^[0-9.]*[1-9]'))",
            "limits.burst needs limits.ratePerVisitor",
            _burst_needs_a_rate,
        ),
        Rule(
            "self.routes.all(r, !has(r.limits) || !has(r.limits.burst) || r.limits.burst == 0"
            " || (has(r.limits.ratePerVisitor) ? r.limits.ratePerVisitor.matches('^[0-9.]*[1-9]')"
            " : has(self.limits.ratePerVisitor) && self.limits.ratePerVisitor.matches('^[0-9.]*[1-9]')))",
            "limits.burst of a route needs limits.ratePerVisitor",
            told_above,
        ),
    )

    @property
    def stream(self) -> TcpExposure | UdpExposure | None:
        """What the tunnel carries instead of HTTP."""
        return self.tcp if self.tcp is not None else self.udp

    @property
    def port_name(self) -> str:
        """The port that the tunnel wants, as `tcp/5432`; empty when it wants none."""
        if self.tcp is not None:
            return f"tcp/{self.tcp.port}" if self.tcp.port is not None else ""
        return f"udp/{self.udp.port}" if self.udp is not None else ""


class PortUnavailable(StatusModel):
    """An exit node that cannot listen on the tunnel's port."""

    node: str = Field(description="Name of the exit node.", min_length=1, max_length=253)
    message: str = Field(default="", max_length=1024, description="Why, for people.")
    seen: str = Field(
        description="When the node was last known to say so.", json_schema_extra={"format": "date-time"}, max_length=40
    )


class TunnelStatus(Status):
    """How the tunnel stands."""

    hostnames: list[Hostname] = Field(default_factory=list, max_length=64, description="Hostnames that are served.")
    port: str = Field(default="", max_length=16, description="Port that is served, as `tcp/5432`.")
    regions: list[Label] = Field(default_factory=list, max_length=64, description="Regions that serve it.")
    url: str = Field(default="", max_length=512, description="Where visitors find it.")
    agents: int = Field(default=0, ge=0, description="Agents that are connected for it.")
    transport: str = Field(
        default="", max_length=32, description="How they are connected: `quic`, `tls`, or both with a comma."
    )
    ports_unavailable: list[PortUnavailable] = Field(
        default_factory=list,
        max_length=256,
        description="Exit nodes that cannot listen on the port; control keeps the list.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["node"]},
    )


class Tunnel(Resource):
    """Hostnames that lead to a local server through exit nodes near the visitors."""

    plural: ClassVar[str] = "tunnels"
    short_names: ClassVar[tuple[str, ...]] = ("tun",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("Host", ".spec.hostnames[0]", description="First of its hostnames."),
        Column("Port", ".status.port", description="Port of a TCP or UDP tunnel."),
        Column("Pool", ".spec.pool.name", description="ExitPool that serves it."),
        Column("Transport", ".status.transport", description="How agents are connected."),
        Column("Agents", ".status.agents", "integer", "Agents that are connected."),
        *ready_columns(),
    )

    kind: Literal["Tunnel"] = Field(default="Tunnel", description="`Tunnel`.")
    spec: TunnelSpec = Field(description="What the tunnel serves.", examples=["{hostnames: [...], origin: {url: ...}}"])
    status: TunnelStatus | None = Field(default=None, description="Written by edgetun.")
