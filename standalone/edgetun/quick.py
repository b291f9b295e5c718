"""From what a person types after `edgetun http` to a snapshot with one tunnel. Pure, and free of pydantic: start-up counts."""

from __future__ import annotations

import re

from edgetun_core.errors import ConfigError
from edgetun_core.snapshot import CacheRule, CollapseRule, OriginRule, RouteRule, Snapshot, TunnelRule

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")


def read_hostname(text: str, folder: str, domain: str = "localhost") -> str:
    """The tunnel's hostname: `text` itself when it has dots, else a label under `domain`; from the folder's name by default."""
    name = text.lower().rstrip(".")
    if not name:
        name = re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-")[:63].strip("-") or "app"
    labels = name.split(".")
    if not all(_LABEL.match(label) for label in labels) or len(name) > 253:
        raise ConfigError(
            f'--host "{text}" is not a hostname',
            remedy="use letters, digits and hyphens, as in shop or shop.example.com",
        )
    return name if len(labels) > 1 else f"{name}.{domain}"


def quick_snapshot(origin: OriginRule, hostname: str, *, cache_s: float, collapse: bool, version: int = 1) -> Snapshot:
    """One tunnel that also answers to localhost, so that a bare `http://localhost:8080` works."""
    cache = CacheRule(mode="override", ttl_s=cache_s) if cache_s else CacheRule()
    route = RouteRule(cache=cache, collapse=CollapseRule(enabled=collapse))
    hostnames = (hostname, f"*.{hostname}", "localhost", "127.0.0.1", "[::1]")
    tunnel = TunnelRule("local/http", tuple(dict.fromkeys(hostnames)), (origin,), (route,))
    return Snapshot(version, "local", "local", (tunnel,))
