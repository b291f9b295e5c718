"""The Snapshot: what one region's exit nodes obey, and what an agent needs to know of its tunnels.

`compile.py` makes it from resources; it travels as msgpack. Nothing here is validated again, so everything here has been
checked by the models in `api/`. Structs are frozen: a new configuration is a new snapshot, swapped in as a whole.
Times are in seconds, sizes in bytes. New fields get defaults, so that a process one version behind still reads it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct


class OriginRule(Struct, frozen=True, omit_defaults=True):
    """Where the agent sends a tunnel's requests, and how.

    `url` is `http://host:port`, `https://host:port` (an optional path is a prefix of every target) or `unix:///path.sock`, and of
    a tunnel with a `StreamRule` `tcp://host:port`, `udp://host:port` or `unix:///path.sock`.
    `host_header`: `"preserve"` keeps the visitor's authority, `"origin"` uses the url's, anything else is sent as it stands.
    """

    name: str
    url: str
    host_header: str = "preserve"
    tls_verify: bool = True
    tls_ca_file: str = ""
    tls_server_name: str = ""
    connect_timeout_s: float = 5.0
    response_timeout_s: float = 60.0
    """From the end of the request to the response head."""
    idle_timeout_s: float = 300.0
    """The longest silence within a body; upgraded connections and event streams are exempt."""
    max_connections: int = 100
    health_path: str = ""
    """Asked every `health_interval_s` when set; otherwise health is what requests experience plus a TCP connect."""
    health_interval_s: float = 10.0
    proxy_protocol: str = ""
    """`"v1"` or `"v2"`: the PROXY protocol header that a TCP service gets first, a UDP service before every datagram."""
    protocol: str = "http1"
    """`"http1"`; `"h2c"`, HTTP/2 with prior knowledge over TCP or a unix socket; `"h2"`, HTTP/2 over TLS; `"auto"`, what ALPN chooses."""


class CacheRule(Struct, frozen=True, omit_defaults=True):
    """How responses are stored and answered from store.

    `mode`: `"off"`; `"respect"` stores what RFC 9111 allows by the origin's own fields; `"override"` gives responses that
    are storable otherwise a freshness lifetime of `ttl_s`, whatever freshness the origin stated (never `no-store` or `private`,
    unless `ignore_no_store` says so too).
    """

    mode: str = "respect"
    ttl_s: float = 0.0
    statuses: tuple[int, ...] = ()
    """Statuses that `override` applies to; empty: those that are cacheable by default (RFC 9110 §15.1)."""
    allow_authorization: bool = False
    """Store and share answers to requests that carry `Authorization` (the operator vouches that they do not depend on it)."""
    allow_cookies: bool = False
    """The same for requests that carry `Cookie`."""
    allow_set_cookie: bool = False
    """Store responses that carry `Set-Cookie`, without that field."""
    ignore_no_store: bool = False
    ignore_query: tuple[str, ...] = ()
    """Query parameters (names, `*` at the end as wildcard) that are left out of the key."""
    max_object_bytes: int = 8 * 1024 * 1024
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    show_key: bool = False
    """`Cache-Status` says the key (RFC 9211 §2.8)."""
    heuristic_max_s: float = 0.0
    """Without a stated freshness: a tenth of the time since Last-Modified, at most this (RFC 9111 §4.2.2); 0: none."""


class CollapseRule(Struct, frozen=True, omit_defaults=True):
    """How identical requests in flight become one."""

    enabled: bool = True
    patience_s: float = 30.0
    """How long a follower waits for the leader's head before it makes a request of its own."""
    not_collapsible_s: float = 120.0
    """How long a key whose answer was not storable is passed through uncollapsed."""


class LimitRule(Struct, frozen=True, omit_defaults=True):
    """Bounds per tunnel or route; 0 means no bound."""

    max_request_body_bytes: int = 0
    max_concurrent_requests: int = 0
    """Exchanges forwarded or waiting at one time; one more gets 503."""
    requests_per_second: float = 0.0
    """Per visitor address (IPv6: per /64); beyond it 429 with `Retry-After`."""
    burst: int = 0
    """Requests a visitor may make at once before the rate applies; 0 means one second's worth."""


class HeaderRules(Struct, frozen=True, omit_defaults=True):
    """Fields to remove, then to set, then to add. Names are lower case."""

    remove: tuple[str, ...] = ()
    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()


class CompressionRule(Struct, frozen=True, omit_defaults=True):
    """Which responses are compressed for visitors who accept it. `codings` are in our order of preference."""

    enabled: bool = True
    codings: tuple[str, ...] = ("zstd", "br", "gzip")
    types: tuple[str, ...] = (
        "text/*",
        "application/json",
        "application/*+json",
        "application/xml",
        "application/*+xml",
        "application/javascript",
        "application/x-javascript",
        "application/x-ndjson",
        "application/wasm",
        "application/rtf",
        "image/svg+xml",
        "image/bmp",
        "image/x-icon",
        "image/vnd.microsoft.icon",
        "font/ttf",
        "font/otf",
        "application/vnd.ms-fontobject",
    )
    """Media types: `type/subtype`, `type/*`, or `type/*+suffix`. Event streams only by their full name."""
    min_bytes: int = 1024
    allow_cookies: bool = False
    """Compress also what is not marked as public when the request has `Cookie` (BREACH: the visitor's secrets may be in it)."""
    allow_authorization: bool = False
    """The same for requests with `Authorization`."""


class RouteRule(Struct, frozen=True, omit_defaults=True):
    """One path of a tunnel and the policies that hold there, already merged with the tunnel's defaults."""

    path: str = "/"
    match: str = "prefix"
    """`"prefix"` (whole segments) or `"exact"`."""
    origin: str = ""
    """Name of the `OriginRule`; the tunnel's first when empty."""
    strip_prefix: bool = False
    cache: CacheRule = CacheRule()
    collapse: CollapseRule = CollapseRule()
    limits: LimitRule = LimitRule()
    request_headers: HeaderRules = HeaderRules()
    response_headers: HeaderRules = HeaderRules()
    compression: CompressionRule = CompressionRule()


class StreamRule(Struct, frozen=True, omit_defaults=True):
    """How a tunnel that carries no HTTP is reached, and its bounds on each exit node.

    `kind` is `"tcp"` or `"udp"`. With `port` 0, TCP connections come to the HTTPS port and are told apart by the server name
    of their TLS ClientHello, which stays unopened; with a port, the exit node listens on it.
    """

    kind: str
    port: int = 0
    idle_timeout_s: float = 3600.0
    """Without a byte (or datagram) either way."""
    max_connections: int = 10_000
    """Connections, or flows, at one time."""
    max_connections_per_address: int = 0
    """Per IPv4 address or IPv6 /64; 0: the pool's bound."""
    max_datagram_bytes: int = 65_507
    limits: LimitRule = LimitRule()
    """`requests_per_second` and `burst` are of new connections or flows per visitor address."""
    allow_from: tuple[str, ...] = ()
    """Networks of those who may connect; empty: everybody."""
    deny_from: tuple[str, ...] = ()
    """Networks of those who may not, whatever `allow_from` says."""


class TunnelRule(Struct, frozen=True, omit_defaults=True):
    """One tunnel as an exit node serves it. `id` is `"namespace/name"`.

    `hostnames` are lower case, without port; a leading `*.` stands for exactly one more label. `routes` are sorted: exact
    paths first, then prefixes from long to short, so the first match is the right one.
    """

    id: str
    hostnames: tuple[str, ...]
    origins: tuple[OriginRule, ...]
    routes: tuple[RouteRule, ...]
    reconnect_grace_s: float = 5.0
    force_https: bool = False
    stream: StreamRule | None = None
    """Set when the tunnel carries TCP or UDP instead of HTTP; it then has one origin and no routes."""

    @property
    def address_names(self) -> tuple[str, ...]:
        """By what visitors find the tunnel: its hostnames, or its port (`tcp/5432`)."""
        stream = self.stream
        return (f"{stream.kind}/{stream.port}",) if stream is not None and stream.port else self.hostnames


class PoolRule(Struct, frozen=True, omit_defaults=True):
    """Bounds of every exit node of a pool."""

    max_connections: int = 15_000
    max_connections_per_address: int = 2_000
    """Per IPv4 address or IPv6 /64; 0 means no bound."""
    max_request_head_bytes: int = 32 * 1024
    max_request_fields: int = 128
    cache_bytes: int = 256 * 1024 * 1024
    trusted_proxies: tuple[str, ...] = ()
    """Networks of load balancers that say by PROXY protocol who the visitor is; they must say it."""
    cache_disk_bytes: int = 0
    cache_bytes_per_tunnel: int = 0


class CredentialKey(Struct, frozen=True):
    """A public key that session credentials are verified with (Ed25519, 32 raw bytes)."""

    key_id: str
    public: bytes


class Snapshot(Struct, frozen=True, omit_defaults=True):
    """Everything one region's exit nodes need. `version` grows with every change."""

    version: int
    pool: str
    region: str
    tunnels: tuple[TunnelRule, ...] = ()
    """Sorted by id, so that equal content makes equal bytes and one of 10,000 is found without looking at the others."""
    credential_keys: tuple[CredentialKey, ...] = ()
    revoked_tokens: tuple[str, ...] = ()
    """Ids of cluster tokens whose sessions must end and whose credentials no longer count."""
    pool_rule: PoolRule = PoolRule()


class SnapshotChange(NamedTuple):
    """How a snapshot came from another one: of the tunnels at most these are others, new or gone."""

    base: Snapshot
    tunnel_ids: frozenset[str]


def find_rule(tunnels: Sequence[TunnelRule], tunnel_id: str) -> TunnelRule | None:
    """The rule of a tunnel in a snapshot's tunnels."""
    at = bisect_left(tunnels, tunnel_id, key=_id_of)
    return tunnels[at] if at < len(tunnels) and tunnels[at].id == tunnel_id else None


def _id_of(rule: TunnelRule) -> str:
    return rule.id


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """msgpack bytes; equal snapshots encode equally."""
    return _encoder.encode(snapshot)


def decode_snapshot(data: bytes) -> Snapshot:
    """Reads what `encode_snapshot` made; raises `msgspec.DecodeError` or `msgspec.ValidationError` otherwise."""
    return _decoder.decode(data)
