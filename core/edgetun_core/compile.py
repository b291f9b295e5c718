"""Resources to what exit nodes obey: `compile_region(resources, ...) -> (Snapshot, problems)`. Pure.

`Plan` does the part that all regions share (who holds which hostname, who is refused and why) once; `Plan.snapshot` then
picks what one region serves. The order of the resources matters only between those without a creationTimestamp, which are
files: the first in the files wins a hostname. Everything else is ordered by name, so equal input gives equal bytes.

The models have been validated, so what one object alone can break (an unknown origin, two routes with one path) is
refused before it gets here; here stands what only the whole set can break.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from edgetun_core.api.conditions import Reason
from edgetun_core.api.exitpool import ExitPool, ExitPoolSpec
from edgetun_core.api.meta import Resource
from edgetun_core.api.policies import (
    CachePolicy,
    CollapsePolicy,
    CompressionPolicy,
    HeaderChanges,
    HeaderPolicy,
    LimitPolicy,
    overlay,
)
from edgetun_core.api.reservation import HostnameReservation
from edgetun_core.api.tunnel import ANY_SPARE, NamedOrigin, Origin, Tunnel, TunnelSpec
from edgetun_core.claims import Claims
from edgetun_core.problem import Problem, sort_problems
from edgetun_core.quantities import quoted
from edgetun_core.snapshot import (
    CacheRule,
    CollapseRule,
    CompressionRule,
    CredentialKey,
    HeaderRules,
    LimitRule,
    OriginRule,
    PoolRule,
    RouteRule,
    Snapshot,
    StreamRule,
    TunnelRule,
)

__all__ = ["Plan", "Problem", "allows_region", "compile_region", "region_problems", "tunnel_rule"]

R = TypeVar("R", bound=Struct)

LONE_ORIGIN = "default"
"""Name of the origin of a tunnel that has only one, written as `spec.origin`."""


def compile_region(
    resources: Sequence[Resource],
    pool: str,
    region: str,
    version: int,
    *,
    credential_keys: tuple[CredentialKey, ...] = (),
    revoked_tokens: tuple[str, ...] = (),
    namespaces: Mapping[str, Mapping[str, str]] | None = None,
    system_namespace: str = "",
) -> tuple[Snapshot, tuple[Problem, ...]]:
    """What the exit nodes of one region of one pool serve, and every problem of the whole set."""
    plan = Plan(resources, namespaces=namespaces, system_namespace=system_namespace)
    snapshot = plan.snapshot(pool, region, version, credential_keys=credential_keys, revoked_tokens=revoked_tokens)
    return snapshot, plan.problems


class Plan:
    """What a set of resources comes to, before a region is chosen.

    HostnameReservations among the resources keep hostnames for their namespaces; `namespaces` (labels by name) and
    `system_namespace` decide on the pools' `allowedNamespaces`, and are left out where there is no cluster. Whoever follows
    changes one by one uses `Claims`, `region_problems` and `tunnel_rule` instead.

    `problems` are sorted. An error keeps a tunnel, or one of its hostnames, from being served; a warning does not.
    """

    def __init__(
        self,
        resources: Sequence[Resource],
        *,
        namespaces: Mapping[str, Mapping[str, str]] | None = None,
        system_namespace: str = "",
    ) -> None:
        claims = Claims(namespaces=namespaces, system_namespace=system_namespace)
        for resource in resources:
            if isinstance(resource, Tunnel):
                claims.put_tunnel(resource)
            elif isinstance(resource, ExitPool):
                claims.put_pool(resource)
            elif isinstance(resource, HostnameReservation):
                claims.put_reservation(resource)
        found: list[Problem] = []
        self._pools = claims.pools
        self._served: dict[str, tuple[Tunnel, TunnelRule]] = {}
        for tunnel_id in claims.by_seniority():
            tunnel = claims.tunnel(tunnel_id)
            assert tunnel is not None
            verdict = claims.verdict(tunnel_id)
            found.extend(verdict.problems)
            if verdict.pool is not None:
                found.extend(region_problems(tunnel, verdict.pool))
            if verdict.served:
                self._served[tunnel_id] = (tunnel, tunnel_rule(tunnel, verdict.hostnames))
        self.problems = sort_problems(found)

    @property
    def rules(self) -> Iterator[TunnelRule]:
        """Every tunnel that is served somewhere, with the hostnames it holds."""
        return (rule for _, rule in self._served.values())

    def snapshot(
        self,
        pool: str,
        region: str,
        version: int,
        *,
        credential_keys: tuple[CredentialKey, ...] = (),
        revoked_tokens: tuple[str, ...] = (),
    ) -> Snapshot:
        """What one region serves: the tunnels of its pool that allow it."""
        rules = [
            rule
            for tunnel, rule in self._served.values()
            if tunnel.spec.pool.name == pool and allows_region(tunnel.spec, region)
        ]
        here = self._pools.get(pool)
        return Snapshot(
            version=version,
            pool=pool,
            region=region,
            tunnels=tuple(sorted(rules, key=lambda rule: rule.id)),
            credential_keys=credential_keys,
            revoked_tokens=tuple(sorted(revoked_tokens)),
            pool_rule=pool_rule(here.spec) if here is not None else PoolRule(),
        )

    def everything(self, pool: str, region: str, version: int) -> Snapshot:
        """What one machine serves that stands for every pool and region, as `edgetun up` does."""
        rules = tuple(sorted((rule for _, rule in self._served.values()), key=lambda rule: rule.id))
        here = self._pools.get(pool)
        limits = pool_rule(here.spec) if here is not None else PoolRule()
        return Snapshot(version=version, pool=pool, region=region, tunnels=rules, pool_rule=limits)


# --- the whole set -----------------------------------------------------------------------------------------------------


def allows_region(spec: TunnelSpec, region: str) -> bool:
    """Whether a tunnel may be served in a region."""
    policy = spec.pool.regions
    return region not in policy.deny and (not policy.allow or region in policy.allow)


def region_problems(tunnel: Tunnel, pool: ExitPool) -> Iterator[Problem]:
    """What is wrong with a tunnel's choice among the regions of its pool."""
    policy = tunnel.spec.pool.regions
    regions = [region.name for region in pool.spec.regions]
    for where, names in (("allow", policy.allow), ("deny", policy.deny)):
        for index, name in enumerate(names):
            if name not in regions:
                text = f"{pool.ref} has no region {quoted(name)}; it has {', '.join(sorted(regions))}"
                yield Problem(
                    "warning", tunnel.ref, f"spec.pool.regions.{where}[{index}]", Reason.REGION_NOT_FOUND, text
                )
    if policy.spare not in (None, ANY_SPARE, *regions):
        text = f"{pool.ref} has no region {quoted(policy.spare)}; it has {', '.join(sorted(regions))}"
        yield Problem("warning", tunnel.ref, "spec.pool.regions.spare", Reason.REGION_NOT_FOUND, text)
    if not any(allows_region(tunnel.spec, region) for region in regions):
        text = f"allows none of the regions of {pool.ref} ({', '.join(sorted(regions))}); allow one of them"
        yield Problem("error", tunnel.ref, "spec.pool.regions", Reason.NO_REGION, text)


# --- one tunnel --------------------------------------------------------------------------------------------------------


def tunnel_rule(tunnel: Tunnel, hostnames: Sequence[str] | None = None) -> TunnelRule:
    """The rule of one tunnel; `hostnames` when it does not get all it asks for."""
    spec = tunnel.spec
    return _slim(
        TunnelRule,
        id=tunnel.id,
        hostnames=tuple(sorted(spec.hostnames if hostnames is None else hostnames)),
        origins=_origin_rules(spec),
        routes=_route_rules(spec) if spec.stream is None else (),
        reconnect_grace_s=spec.reconnect_grace,
        force_https=spec.force_https,
        stream=_stream_rule(spec),
    )


_DEFAULTS: dict[type[Struct], dict[str, object]] = {
    kind: {field.name: field.default for field in msgspec.structs.fields(kind)}
    for kind in (
        TunnelRule,
        OriginRule,
        StreamRule,
        RouteRule,
        CacheRule,
        CollapseRule,
        CompressionRule,
        LimitRule,
        HeaderRules,
        PoolRule,
    )
}


def _slim(kind: type[R], /, **values: object) -> R:
    """Builds a rule whose default values are the very defaults: msgspec leaves a value out by identity, not by equality.

    A tunnel that says little is so 200 bytes in a snapshot instead of 1000, and shares what it does not say.
    """
    defaults = _DEFAULTS[kind]
    return kind(**{name: value for name, value in values.items() if name not in defaults or value != defaults[name]})


def _origin_rules(spec: TunnelSpec) -> tuple[OriginRule, ...]:
    if spec.origin is not None:
        return (_origin_rule(LONE_ORIGIN, spec.origin),)
    return tuple(_origin_rule(origin.name, origin) for origin in spec.origins)


def _origin_rule(name: str, origin: Origin | NamedOrigin) -> OriginRule:
    health = origin.health
    return _slim(
        OriginRule,
        name=name,
        url=origin.url,
        host_header=origin.host_header,
        tls_verify=origin.tls.verify,
        tls_ca_file=origin.tls.ca_file or "",
        tls_server_name=origin.tls.server_name or "",
        connect_timeout_s=origin.timeouts.connect,
        response_timeout_s=origin.timeouts.response,
        idle_timeout_s=origin.timeouts.idle,
        max_connections=origin.max_connections,
        health_path=health.path if health is not None else "",
        health_interval_s=health.interval if health is not None else 10.0,
        proxy_protocol="" if origin.proxy_protocol == "none" else origin.proxy_protocol,
        protocol=origin.protocol,
    )


def _stream_rule(spec: TunnelSpec) -> StreamRule | None:
    limits = _limit_rule(spec.limits)
    if spec.tcp is not None:
        return _slim(
            StreamRule,
            kind="tcp",
            port=spec.tcp.port or 0,
            idle_timeout_s=spec.tcp.idle_timeout,
            max_connections=spec.tcp.max_connections,
            max_connections_per_address=spec.tcp.max_connections_per_address,
            allow_from=tuple(spec.tcp.allow_from),
            deny_from=tuple(spec.tcp.deny_from),
            limits=limits,
        )
    if spec.udp is not None:
        return _slim(
            StreamRule,
            kind="udp",
            port=spec.udp.port,
            idle_timeout_s=spec.udp.idle_timeout,
            max_connections=spec.udp.max_flows,
            max_connections_per_address=spec.udp.max_flows_per_address,
            max_datagram_bytes=spec.udp.max_datagram,
            allow_from=tuple(spec.udp.allow_from),
            deny_from=tuple(spec.udp.deny_from),
            limits=limits,
        )
    return None


def _route_rules(spec: TunnelSpec) -> tuple[RouteRule, ...]:
    """Exact paths first, then prefixes from long to short; what no route names stays with the tunnel's own policies."""
    rest = _slim(
        RouteRule,
        cache=_cache_rule(spec.cache),
        collapse=_collapse_rule(spec.collapse),
        limits=_limit_rule(spec.limits),
        request_headers=_header_rules(spec.headers.request),
        response_headers=_header_rules(spec.headers.response),
        compression=_compression_rule(spec.compression),
    )
    routes = []
    for route in spec.routes:
        cache: CachePolicy = overlay(spec.cache, route.cache)
        collapse: CollapsePolicy = overlay(spec.collapse, route.collapse)
        limits: LimitPolicy = overlay(spec.limits, route.limits)
        headers: HeaderPolicy = overlay(spec.headers, route.headers)
        compression: CompressionPolicy = overlay(spec.compression, route.compression)
        routes.append(
            _slim(
                RouteRule,
                path=route.path.normal,
                match=route.path.match,
                origin=route.origin or "",
                strip_prefix=route.strip_prefix,
                cache=_cache_rule(cache),
                collapse=_collapse_rule(collapse),
                limits=_limit_rule(limits),
                request_headers=_header_rules(headers.request),
                response_headers=_header_rules(headers.response),
                compression=_compression_rule(compression),
            )
        )
    if not any(route.match == "prefix" and route.path == "/" for route in routes):
        routes.append(rest)
    return tuple(sorted(routes, key=lambda route: (route.match != "exact", -len(route.path), route.path)))


def _cache_rule(policy: CachePolicy) -> CacheRule:
    overrides = policy.mode == "override"
    return _slim(
        CacheRule,
        mode="off" if policy.mode == "disabled" else policy.mode,
        # A route may turn off what the tunnel overrides; what is left of it says nothing then.
        ttl_s=policy.ttl if overrides else 0.0,
        statuses=tuple(sorted(set(policy.statuses))) if overrides else (),
        allow_authorization=policy.allow_authorization,
        allow_cookies=policy.allow_cookies,
        allow_set_cookie=policy.allow_set_cookie,
        ignore_no_store=policy.ignore_no_store and overrides,
        ignore_query=tuple(sorted(set(policy.ignore_query))),
        max_object_bytes=policy.max_object_bytes,
        stale_while_revalidate_s=policy.stale_while_revalidate,
        stale_if_error_s=policy.stale_if_error,
        show_key=policy.show_key,
        heuristic_max_s=policy.heuristic_max,
    )


def _collapse_rule(policy: CollapsePolicy) -> CollapseRule:
    return _slim(
        CollapseRule, enabled=policy.enabled, patience_s=policy.patience, not_collapsible_s=policy.not_collapsible
    )


def _compression_rule(policy: CompressionPolicy) -> CompressionRule:
    return _slim(
        CompressionRule,
        enabled=policy.enabled,
        codings=tuple(dict.fromkeys(policy.codings)),
        types=tuple(dict.fromkeys(one.lower() for one in policy.types)),
        min_bytes=policy.min_bytes,
        allow_cookies=policy.allow_cookies,
        allow_authorization=policy.allow_authorization,
    )


def _limit_rule(policy: LimitPolicy) -> LimitRule:
    return _slim(
        LimitRule,
        max_request_body_bytes=policy.max_request_body_bytes,
        max_concurrent_requests=policy.max_concurrent_requests,
        requests_per_second=policy.rate_per_visitor,
        burst=policy.burst,
    )


def _header_rules(changes: HeaderChanges) -> HeaderRules:
    return _slim(
        HeaderRules,
        remove=tuple(sorted(set(changes.remove))),
        set=tuple(sorted(changes.set.items())),
        add=tuple(sorted(changes.add.items())),
    )


def pool_rule(spec: ExitPoolSpec) -> PoolRule:
    """Bounds of a pool's exit nodes, and whom they trust."""
    limits = spec.limits
    return _slim(
        PoolRule,
        max_connections=limits.max_connections,
        max_connections_per_address=limits.max_connections_per_address,
        max_request_head_bytes=limits.max_request_head_bytes,
        max_request_fields=limits.max_request_fields,
        cache_bytes=limits.cache_bytes,
        trusted_proxies=tuple(sorted(set(spec.trusted_proxies))),
        cache_disk_bytes=limits.cache_disk_bytes,
        cache_bytes_per_tunnel=limits.cache_bytes_per_tunnel,
    )
