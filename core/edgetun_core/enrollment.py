"""What agent and control say to each other: the bodies of `POST /v1/register` and `/v1/renew`, as JSON.

The cluster token itself travels in the `Authorization: Bearer` field, over TLS only, and is in none of these. Times are
seconds since the epoch, durations in seconds. New fields get defaults, so that either side may be one version behind.
"""

from __future__ import annotations

from msgspec import Struct

from edgetun_core.snapshot import TunnelRule

REGISTER_PATH = "/v1/register"
RENEW_PATH = "/v1/renew"
WATCH_PATH = "/v1/watch"
CA_PATH = "/ca.pem"
TIME_PATH = "/v1/time"

WEBSOCKET_PATH = "/.well-known/edgetun-session"
WEBSOCKET_PROTOCOL = "edgetun.1"
"""Where exit nodes take sessions in a WebSocket on the visitors' ports, and the subprotocol that says so."""

UNREADABLE = (ValueError, RecursionError)
"""What msgspec raises for text it cannot read: besides its own errors (all `ValueError`s) those for bad UTF-8 and deep nesting."""


class AdHocTunnel(Struct, frozen=True, omit_defaults=True):
    """A tunnel that the agent asks for itself, without a manifest on the server.

    `host` is a full hostname, or one label under the server's domain, or empty for a generated name that stays the same for
    this token and agent. `cache_ttl_s` > 0 lets the exit node keep storable responses for that long.
    """

    origin_url: str
    host: str = ""
    host_header: str = "preserve"
    cache_ttl_s: float = 0.0
    port: int = 0
    """With a `tcp://` or `udp://` origin and no `host`: the exit node's port; 0: one that stays the same for this agent. A
    `tcp://` origin with a `host` gets the TLS connections for that name as they are."""
    proxy_protocol: str = ""


class Probe(Struct, frozen=True, omit_defaults=True):
    """Round trips that an agent measured to one offered region, the best of some tries; 0 means no answer."""

    pool: str
    region: str
    tcp_s: float = 0.0
    quic_s: float = 0.0


class EnrollRequest(Struct, frozen=True, omit_defaults=True):
    """What an agent asks for. `want` are tunnel ids or patterns (`team-a/*`); empty and no `adhoc`: all it may serve.

    `agent_id` is the agent's own lasting name: 1 to 63 letters, digits, `-`, `_` or `.`.
    """

    agent_id: str
    want: tuple[str, ...] = ()
    adhoc: AdHocTunnel | None = None
    software: str = ""
    can_probe: bool = False
    """Whether the agent measures what it is offered; it then gets `offers` to measure."""
    probes: tuple[Probe, ...] = ()
    placed: str = ""
    """`EnrollResponse.placed` of the answer before, so that any replica of control knows where the agent is."""
    carries: tuple[str, ...] = ()
    """What the agent carries besides HTTP: `"tcp"`, `"udp"`. Other tunnels are not given to it."""
    spare: str = ""
    """A region for one session beside those where the agent is placed: its name, or `auto`. Empty: none."""
    revision: str = ""
    """To `/v1/watch`: `EnrollResponse.revision` of the answer that the agent works with."""


class Endpoint(Struct, frozen=True, omit_defaults=True):
    """Where an exit node takes sessions. A port of 0 means that transport is not offered."""

    host: str
    tls_port: int
    quic_port: int
    node: str = ""
    server_name: str = ""
    """The name that the certificate there carries; empty: `host`."""
    spare: bool = False
    """In the agent's spare region: for its last session, and for the others when nothing else works."""


class Offer(Struct, frozen=True, omit_defaults=True):
    """A region that an agent may be placed in, and where to measure the round trip to it."""

    pool: str
    region: str
    endpoints: tuple[Endpoint, ...]


class VisitorAddress(Struct, frozen=True, omit_defaults=True):
    """How visitors reach the exit nodes, so that people can be told whole URLs."""

    scheme: str = "https"
    port: int = 443
    host: str = ""
    """The exit nodes' own name, for tunnels that are found by a port."""

    def url(self, hostname: str) -> str:
        """The URL of a hostname."""
        usual = {"http": 80, "https": 443}.get(self.scheme)
        return f"{self.scheme}://{hostname}" + ("" if self.port == usual else f":{self.port}")

    def url_of(self, tunnel: TunnelRule, name: str) -> str:
        """The URL by which visitors find a tunnel under one of its `address_names`."""
        stream = tunnel.stream
        if stream is None:
            return self.url(name)
        if not stream.port:
            return f"tls://{name}:{self.port}"
        return f"{stream.kind}://{self.host or '*'}:{stream.port}"


class EnrollResponse(Struct, frozen=True, omit_defaults=True):
    """What control answers with. `tunnels` are the rules of the tunnels that the credential is good for.

    `exit_ca_pem` is the CA of the exit nodes when it is not the one that control itself is trusted by.
    """

    credential: str
    endpoints: tuple[Endpoint, ...]
    tunnels: tuple[TunnelRule, ...]
    renew_after_s: float
    expires_in_s: float
    server_time: float
    exit_ca_pem: str = ""
    visitors: VisitorAddress = VisitorAddress()
    offers: tuple[Offer, ...] = ()
    """Regions to measure; the agent renews with `probes` then. Empty: there is nothing to choose from."""
    placed: str = ""
    """`"pool/region"` of every pool that the tunnels are on, joined by commas."""
    watch_s: float = 0.0
    """How long control holds a `POST /v1/watch` (204 in the end, 200 as soon as a renewal would say something new); 0: not offered."""
    revision: str = ""
    """Names what this answer says; `/v1/watch` answers when another one holds."""


class RefusalBody(Struct, frozen=True):
    """How control says no: `reason` for programs (CamelCase), `message` and `remedy` for people."""

    reason: str
    message: str
    remedy: str = ""
