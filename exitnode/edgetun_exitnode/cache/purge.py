"""Takes responses out of this node's store by URL, prefix, tag or tunnel. One call per order; costs as much as the tunnel holds.

What is on its way while something is purged is not stored either, for the whole tunnel: it may be what was purged.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from edgetun_core.purge import PurgeOrder, PurgeReport
from edgetun_core.snapshot import TunnelRule
from edgetun_exitnode.cache.key import QueryFilter, build_host, build_prefix
from edgetun_exitnode.cache.store import Store

FindTunnel = Callable[[bytes], TunnelRule | None]
"""The tunnel of a host, without port."""


def purge(store: Store, order: PurgeOrder, find: FindTunnel, now: float) -> PurgeReport:
    """Carries out an order that `check_order` let pass."""
    purged = 0
    problems: list[str] = []
    if order.everything:
        purged += store.purge_tenant(order.tunnel, now)
    for tag in order.tags:
        purged += store.purge_tag(order.tunnel, tag.encode(), now)
    for text in order.urls:
        purged += _purge_url(store, order, text, find, now, problems, is_prefix=False)
    for text in order.prefixes:
        purged += _purge_url(store, order, text, find, now, problems, is_prefix=True)
    return PurgeReport(purged, tuple(problems))


def _purge_url(
    store: Store, order: PurgeOrder, text: str, find: FindTunnel, now: float, problems: list[str], *, is_prefix: bool
) -> int:
    try:
        url = urlsplit(text)
        host, port = (url.hostname or "").encode(), url.port
    except ValueError:
        problems.append(f"{text}: is not a URL")
        return 0
    tunnel = find(host.removesuffix(b"."))
    if tunnel is None or (order.tunnel and tunnel.id != order.tunnel):
        problems.append(
            f"{text}: no tunnel of this exit node{f' named {order.tunnel}' if order.tunnel else ''} has this host"
        )
        return 0
    authority = host if port is None else b"%s:%d" % (host, port)
    target = (url.path or "/").encode() + (b"?" + url.query.encode() if url.query else b"")
    # A URL is stored under what is left of it by its route's `ignoreQuery`; which route that was does not matter here.
    targets = {target} | {QueryFilter(route.cache.ignore_query).strip(target) for route in tunnel.routes}
    # Also without the port: behind a load balancer or a port mapping the node sees another than the visitor wrote.
    hosts = {authority, host, *(build_host(scheme, authority) for scheme in (b"http", b"https"))}
    end = b"" if is_prefix else b"\0"
    prefixes = tuple(build_prefix(tunnel.id.encode(), host, target) + end for host in hosts for target in targets)
    return store.purge_prefix(tunnel.id, prefixes, now)
