"""Decides what an agent that registers may serve: manifests' tunnels, and the ad-hoc tunnel it asks for itself.

Pure: everything that the answer depends on is handed in, and nothing is changed. The caller stores the claim that comes out,
which may still find that somebody else was faster.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from edgetun_control.readable_names import readable_name
from edgetun_control.store import Claim
from edgetun_core.api.names import check_host_header, check_hostname, check_origin_url
from edgetun_core.credentials import TokenRecord, TokenState, hostname_matches, tunnel_matches
from edgetun_core.enrollment import AdHocTunnel, EnrollRequest

MAX_SERVICES: Final = 200
"""Tunnels per agent: what one credential can name."""
MAX_WANT: Final = 200
MAX_HOSTNAME_LENGTH: Final = 200
"""Shorter than DNS allows, so that a hostname is also a file name and the name of a resource."""
MAX_CACHE_TTL_S: Final = 7 * 86400.0
GENERATED_NAME_ATTEMPTS: Final = 16

_AGENT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Ground:
    """What is there when an agent registers."""

    domain: str = ""
    """Single labels and generated names go under it; empty when the server has none."""
    own_hostnames: frozenset[str] = frozenset()
    """Names of the server itself, which no tunnel may have."""
    manifest_tunnels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tunnels of manifests: id -> hostnames, also wildcards, or a port as `tcp/5432`."""
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """By hostname."""
    ports: Callable[[str], Sequence[int]] = lambda _: ()
    """Ports that agents may take, of `"tcp"` or `"udp"`."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The agent may serve these tunnels. `claim` is to be stored first when it is there; its tunnel is among `services`."""

    services: tuple[str, ...]
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent may not, for this CamelCase `reason`; `message` and `remedy` are for a person."""

    reason: str
    message: str
    remedy: str = ""


def decide_registration(request: EnrollRequest, token: TokenRecord, ground: Ground, now: float) -> Registered | Refused:
    """Says which tunnels an agent with this token gets; the token's secret has been checked by the caller."""
    refused = decide_token(token, now) or _check_request(request)
    if refused is not None:
        return refused
    services: list[str] = []
    claim: Claim | None = None
    if request.want or request.adhoc is None:
        chosen = _choose_manifest_tunnels(request.want, token, ground)
        if isinstance(chosen, Refused):
            return chosen
        services.extend(chosen)
    if request.adhoc is not None:
        found = _decide_claim(request.agent_id, request.adhoc, token, ground, now)
        if isinstance(found, Refused):
            return found
        claim = found
        services.append(adhoc_tunnel_id(claim))
    if len(services) > MAX_SERVICES:
        return Refused(
            "TooManyTunnels",
            f"this token may serve {len(services)} tunnels here, and one agent serves at most {MAX_SERVICES}",
            "name the ones this agent shall serve with --tunnel",
        )
    return Registered(tuple(services), claim)


def decide_token(token: TokenRecord, now: float) -> Refused | None:
    """Why the token counts no longer, or None when it does."""
    match token.state(now):
        case TokenState.LIVE:
            return None
        case TokenState.REVOKED:
            return Refused("TokenRevoked", f"the cluster token {token.id} was revoked", "ask for a new one")
        case TokenState.EXPIRED:
            ended = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(token.expires))
            return Refused("TokenExpired", f"the cluster token {token.id} ended at {ended}", "ask for a new one")


def stream_kind(adhoc: AdHocTunnel) -> str:
    """`"tcp"` or `"udp"` when a tunnel carries that, else empty."""
    scheme = adhoc.origin_url.partition("://")[0]
    return scheme if scheme in ("tcp", "udp") else ""


def adhoc_tunnel_id(claim: Claim) -> str:
    """The id of a claim's tunnel: the token is its namespace, so tokens cannot speak of each other's tunnels."""
    return f"{adhoc_namespace(claim.token_id)}/{claim.hostname}"


def adhoc_namespace(token_id: str) -> str:
    return f"token-{token_id}"


def name_taken(hostname: str) -> Refused:
    """What a token is told whose name another token holds; whose, is not its business."""
    return Refused("NameTaken", f"the name {hostname} belongs to another token", "choose another --host")


def holder_among_manifests(hostname: str, ground: Ground, *, by_wildcard: bool) -> str | None:
    """The id of the manifest tunnel that has the hostname: itself, or with `by_wildcard` also by a wildcard."""
    for tunnel_id, hostnames in ground.manifest_tunnels.items():
        if hostname in hostnames:
            return tunnel_id
        if by_wildcard and any(hostname_matches(pattern, hostname) for pattern in hostnames):
            return tunnel_id
    return None


def _check_request(request: EnrollRequest) -> Refused | None:
    if _AGENT_ID.fullmatch(request.agent_id) is None:
        return Refused(
            "InvalidRequest",
            "the agent's id is not one",
            "use 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit",
        )
    if len(request.want) > MAX_WANT or any(len(pattern) > 320 for pattern in request.want):
        return Refused("InvalidRequest", f"an agent names at most {MAX_WANT} tunnels", "use a pattern such as team-a/*")
    if request.adhoc is None:
        return None
    try:
        check_origin_url(request.adhoc.origin_url)
        check_host_header(request.adhoc.host_header)
    except ValueError as error:
        return Refused("InvalidRequest", f"the origin {error}")
    refused = _check_stream(request.adhoc)
    if refused is not None:
        return refused
    if not 0 <= request.adhoc.cache_ttl_s <= MAX_CACHE_TTL_S:
        return Refused("InvalidRequest", "the cache time is not between 0 and 7 days", "write for example --cache 1s")
    return None


def _check_stream(adhoc: AdHocTunnel) -> Refused | None:
    kind = stream_kind(adhoc)
    allowed = {"tcp": ("", "v1", "v2"), "udp": ("", "v2")}.get(kind, ("",))
    if adhoc.proxy_protocol not in allowed:
        why = "UDP has PROXY protocol v2 only" if kind == "udp" else "PROXY protocol is for TCP and UDP"
        return Refused("InvalidRequest", why, "choose another --proxy-protocol, or leave it away")
    if not 0 <= adhoc.port <= 65535 or (adhoc.port and not kind):
        return Refused("InvalidRequest", "--port is for tcp:// and udp:// origins", "leave it away")
    if adhoc.host and kind and (adhoc.port or kind == "udp"):
        return Refused("InvalidRequest", "a port has no hostname", "give either --host or --port; UDP has ports only")
    if kind and adhoc.cache_ttl_s:
        return Refused("InvalidRequest", f"{kind.upper()} is not cached", "leave --cache away")
    return None


def _choose_port(kind: str, claim: Claim, ground: Ground) -> int | Refused:
    """The port of a tunnel that has no hostname: the one asked for, the one it had, or the first that is free."""
    allowed = ground.ports(kind)
    if not allowed:
        return Refused(
            "NoPorts",
            f"this server gives no {kind.upper()} ports away",
            f"ask the administrator for some (edgetun serve --{kind}-ports, or spec.ports of the ExitPool)",
        )
    others = {
        one.tunnel.port
        for one in ground.claims.values()
        if one.hostname != claim.hostname and stream_kind(one.tunnel) == kind
    }
    names = {name for names in ground.manifest_tunnels.values() for name in names}
    wanted = claim.tunnel.port
    if wanted:
        if wanted not in allowed:
            return Refused(
                "PortNotAllowed",
                f"this server does not give {kind.upper()} port {wanted} away",
                "leave --port away, or choose another",
            )
        if wanted in others or f"{kind}/{wanted}" in names:
            return Refused(
                "PortTaken", f"{kind.upper()} port {wanted} is taken by another tunnel", "choose another --port"
            )
        return wanted
    standing = ground.claims.get(claim.hostname)
    before = standing.tunnel.port if standing is not None and stream_kind(standing.tunnel) == kind else 0
    free = (port for port in allowed if port not in others and f"{kind}/{port}" not in names)
    if before and before in allowed and f"{kind}/{before}" not in names:
        return before
    found = next(free, 0)
    return found or Refused(
        "NoPorts", f"every {kind.upper()} port of this server is taken", "ask the administrator for more"
    )


def _choose_manifest_tunnels(want: tuple[str, ...], token: TokenRecord, ground: Ground) -> tuple[str, ...] | Refused:
    allowed = [
        tunnel_id for tunnel_id, hostnames in ground.manifest_tunnels.items() if _may_serve(token, tunnel_id, hostnames)
    ]
    if not want:
        if not allowed:
            return Refused(
                "NothingToServe",
                "there is no tunnel on this server that the token may serve",
                "say what to serve with --origin http://localhost:3000, or let the administrator add a tunnel",
            )
        return tuple(sorted(allowed))
    chosen: set[str] = set()
    for pattern in want:
        matching = [tunnel_id for tunnel_id in allowed if tunnel_matches(pattern, tunnel_id)]
        if not matching:
            # The same words for a tunnel that is not there and one that is not allowed: a token learns nothing of others.
            return Refused(
                "TunnelNotServed",
                f'no tunnel "{pattern}" that this token may serve is on this server',
                "check its name (namespace/name), the manifest's errors on the server, and what the token allows",
            )
        chosen.update(matching)
    return tuple(sorted(chosen))


def _may_serve(token: TokenRecord, tunnel_id: str, hostnames: tuple[str, ...]) -> bool:
    return token.may_serve_tunnel(tunnel_id) and all(token.may_serve_hostname(hostname) for hostname in hostnames)


def _decide_claim(agent_id: str, adhoc: AdHocTunnel, token: TokenRecord, ground: Ground, now: float) -> Claim | Refused:
    if token.tunnels and not token.hostnames:
        return Refused(
            "NameNotAllowed",
            f"this token serves only the tunnels {', '.join(token.tunnels)}",
            "leave --host and --origin away, or ask for a token with --host",
        )
    hostname = _expand_host(adhoc.host, ground) if adhoc.host else _generate_host(agent_id, token, ground)
    if isinstance(hostname, Refused):
        return hostname
    refused = _check_hostname_allowed(hostname, token, ground)
    if refused is not None:
        return refused
    standing = ground.claims.get(hostname)
    if standing is not None and standing.token_id != token.id:
        return name_taken(hostname)
    claim = Claim(hostname, token.id, agent_id, adhoc, standing.created if standing is not None else now)
    kind = stream_kind(adhoc)
    if kind and not adhoc.host:
        port = _choose_port(kind, claim, ground)
        if isinstance(port, Refused):
            return port
        claim = msgspec.structs.replace(claim, tunnel=msgspec.structs.replace(adhoc, port=port))
    return claim


def _expand_host(host: str, ground: Ground) -> str | Refused:
    wanted = host.strip().rstrip(".").lower()
    if "." not in wanted:
        if not ground.domain:
            return _no_domain()
        wanted = f"{wanted}.{ground.domain}"
    try:
        check_hostname(wanted)
    except ValueError as error:
        return Refused("InvalidRequest", f"--host {error}")
    if len(wanted) > MAX_HOSTNAME_LENGTH:
        return Refused("InvalidRequest", f"the hostname is longer than {MAX_HOSTNAME_LENGTH} characters", "shorten it")
    if wanted.startswith("*."):
        return Refused("NameNotAllowed", f"{wanted} is a wildcard", "wildcards need a manifest on the server")
    return wanted


def _generate_host(agent_id: str, token: TokenRecord, ground: Ground) -> str | Refused:
    if not ground.domain:
        return _no_domain()
    for name in _generated_names(token.id, agent_id):
        hostname = f"{name}.{ground.domain}"
        standing = ground.claims.get(hostname)
        if standing is not None and standing.token_id != token.id:
            continue
        if _check_hostname_allowed(hostname, token, ground) is None:
            return hostname
    return Refused(
        "NameNotAllowed",
        f"this token may not have a generated name under {ground.domain}",
        f"choose a name that it allows with --host ({', '.join(token.hostnames) or 'none is left'})",
    )


def _generated_names(token_id: str, agent_id: str) -> Iterator[str]:
    """Always the same names in the same order for a token and an agent, so that a laptop keeps its URL."""
    for attempt in range(GENERATED_NAME_ATTEMPTS):
        yield readable_name(hashlib.sha256(f"{token_id}\0{agent_id}\0{attempt}".encode()).digest())


def _check_hostname_allowed(hostname: str, token: TokenRecord, ground: Ground) -> Refused | None:
    if hostname in ground.own_hostnames or hostname == ground.domain:
        return Refused("NameTaken", f"the name {hostname} is the server's own", "choose another --host")
    if token.hostnames:
        if not token.may_serve_hostname(hostname):
            return Refused(
                "NameNotAllowed",
                f"this token may not have the name {hostname}, only {', '.join(token.hostnames)}",
                "choose another --host, or ask for a token that allows it",
            )
    elif not ground.domain or not hostname_matches(f"*.{ground.domain}", hostname):
        where = f"names directly under {ground.domain}" if ground.domain else "no names, as the server has no domain"
        return Refused(
            "NameNotAllowed",
            f"this token may not have the name {hostname}, but {where}",
            "choose another --host, or ask for a token that allows it (edgetun token create --host PATTERN)",
        )
    # A wildcard that is put up later takes no name from a token that has it: exact names win over wildcards.
    holder = holder_among_manifests(hostname, ground, by_wildcard=hostname not in ground.claims)
    if holder is not None:
        return Refused(
            "NameTaken",
            f"the name {hostname} belongs to the server's tunnel {holder}",
            "choose another --host, or serve that tunnel with --tunnel if the token allows it",
        )
    return None


def _no_domain() -> Refused:
    return Refused(
        "NoDomain",
        "this server has no domain to make names under",
        "give a full hostname with --host, or let the administrator start the server with --domain",
    )
