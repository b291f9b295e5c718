"""The Tunnel resource of a claim: what an agent asked for on its command line, as if somebody had written a manifest."""

from __future__ import annotations

from edgetun_control.registry import adhoc_namespace, stream_kind
from edgetun_control.store import Claim
from edgetun_core.api.meta import Metadata
from edgetun_core.api.policies import CachePolicy
from edgetun_core.api.streams import TcpExposure, UdpExposure
from edgetun_core.api.tunnel import Origin, PoolChoice, Tunnel, TunnelSpec


def build_adhoc_tunnel(claim: Claim, pool: str) -> Tunnel:
    """Raises `pydantic.ValidationError` for a claim that no agent could have made (the file was edited)."""
    wanted = claim.tunnel
    kind = stream_kind(wanted)
    if kind:
        proxy = wanted.proxy_protocol or "none"
        return Tunnel(
            metadata=Metadata(name=claim.hostname, namespace=adhoc_namespace(claim.token_id)),
            spec=TunnelSpec(
                hostnames=[] if wanted.port else [claim.hostname],
                tcp=TcpExposure(port=wanted.port or None, passthrough=not wanted.port) if kind == "tcp" else None,
                udp=UdpExposure(port=wanted.port) if kind == "udp" else None,
                pool=PoolChoice(name=pool),
                origin=Origin(url=wanted.origin_url, proxy_protocol=proxy),  # type: ignore[arg-type]
            ),
        )
    cache = CachePolicy(mode="override", ttl=wanted.cache_ttl_s) if wanted.cache_ttl_s else CachePolicy()
    return Tunnel(
        metadata=Metadata(name=claim.hostname, namespace=adhoc_namespace(claim.token_id)),
        spec=TunnelSpec(
            hostnames=[claim.hostname],
            pool=PoolChoice(name=pool),
            origin=Origin(url=wanted.origin_url, host_header=wanted.host_header),
            cache=cache,
        ),
    )
