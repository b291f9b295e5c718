"""The pipeline's entry: host and path choose a tunnel's route, whose stages were built when the snapshot arrived.

Hot path. A head is shared by every visitor who sends the same bytes, so the choice is made once per head and kept on it
(`head.view`) until the next snapshot. In order, as docs/architecture.md draws it: route -> compression -> limits -> header
rules -> cache and collapse -> forward; response rules on the way back. A stage a route does not need is not in its chain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from edgetun_core.errors import NotFound
from edgetun_core.http.exchange import Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.snapshot import RouteRule, Snapshot, SnapshotChange, TunnelRule, find_rule
from edgetun_exitnode.observe.counters import TunnelCounters
from edgetun_exitnode.pipeline.answer import answer, refuse
from edgetun_exitnode.sessions.door import TARGET as DOOR_TARGET
from edgetun_exitnode.sessions.door import Door

OpenFunction = Callable[[RequestHead, Peer, bool, ResponseSink], RequestSink]


class RouteChain(NamedTuple):
    """The stages of a route: `handler` is the first for its visitors, `relayed` for those of other exit nodes."""

    handler: Handler
    relayed: Handler


class RoutePlan:
    """A route ready to use: its rule and where its chain begins; see `RouteChain`.

    A first stage with an `open_for` is asked once per head for what opens exchanges with it.
    """

    __slots__ = ("_open_for", "_relayed_for", "handler", "relayed", "rule")

    def __init__(self, rule: RouteRule, chain: RouteChain) -> None:
        self.rule = rule
        self.handler = chain.handler
        self.relayed = chain.relayed
        self._open_for: Callable[[RequestHead], OpenFunction] | None = getattr(chain.handler, "open_for", None)

        self._relayed_for: Callable[[RequestHead, Peer], Handler] | None = getattr(chain.relayed, "handler_for", None)

    def open_for(self, head: RequestHead) -> OpenFunction:
        return self.handler.open if self._open_for is None else self._open_for(head)

    def relayed_for(self, head: RequestHead, peer: Peer) -> Handler:
        """What takes exchanges with this head from another exit node."""
        return self.relayed if self._relayed_for is None else self._relayed_for(head, peer)


class TunnelPlan:
    """A tunnel ready to use. `routes` are in the order of the snapshot: the first match is the right one."""

    __slots__ = ("counters", "routes", "rule", "stream")

    def __init__(self, rule: TunnelRule, routes: tuple[RoutePlan, ...], counters: TunnelCounters) -> None:
        self.rule = rule
        self.routes = routes
        self.counters = counters
        self.stream: Handler | None = None
        """Takes the connections of a tunnel that carries no HTTP (pipeline/streams.py); such a one has no routes."""

    def choose(self, path: bytes) -> RoutePlan | None:
        for plan in self.routes:
            if matches_path(plan.rule, path):
                return plan
        return None


def matches_path(rule: RouteRule, path: bytes) -> bool:
    """Whether a route's path covers a request's: exactly, or as a prefix of whole segments."""
    wanted = rule.path.encode()
    if rule.match == "exact":
        return path == wanted
    wanted = wanted.rstrip(b"/")
    return path.startswith(wanted) and (len(path) == len(wanted) or path[len(wanted) : len(wanted) + 1] == b"/")


class _View:
    """What was chosen for a head, under which table, and where to count it.

    It knows the table by its stamp alone: a head may be remembered for long, and a table of 10,000 tunnels shall not be.
    """

    __slots__ = ("counters", "open", "stamp")

    def __init__(self, stamp: object, open_: OpenFunction, counters: TunnelCounters) -> None:
        self.stamp = stamp
        self.open = open_
        self.counters = counters


class RouteTable:
    """Every tunnel of one snapshot, by host. Immutable once built."""

    __slots__ = ("exact", "plans", "stamp", "version", "wildcard")

    def __init__(self, version: int, plans: dict[str, TunnelPlan]) -> None:
        self.version = version
        self.stamp = object()
        self.plans = plans
        self.exact: dict[bytes, TunnelPlan] = {}
        self.wildcard: dict[bytes, TunnelPlan] = {}
        for plan in plans.values():
            self._place(plan)

    def replaced(self, version: int, put: Iterable[TunnelPlan], removed: Iterable[str]) -> RouteTable:
        """Another table, with some tunnels put in and some taken out. Copies three dicts, and looks at no other tunnel."""
        table = RouteTable(version, {})
        table.plans, table.exact, table.wildcard = self.plans.copy(), self.exact.copy(), self.wildcard.copy()
        put = tuple(put)
        # All goes before anything comes: a name may pass from one tunnel to another in one step.
        for tunnel_id in (*removed, *(plan.rule.id for plan in put)):
            gone = table.plans.pop(tunnel_id, None)
            if gone is not None:
                table._displace(gone)
        for plan in put:
            table.plans[plan.rule.id] = plan
            table._place(plan)
        return table

    def _place(self, plan: TunnelPlan) -> None:
        for hostname in plan.rule.hostnames:
            if hostname.startswith("*."):
                self.wildcard[hostname[1:].encode()] = plan
            else:
                self.exact[hostname.encode()] = plan

    def _displace(self, plan: TunnelPlan) -> None:
        for hostname in plan.rule.hostnames:
            names, name = (self.wildcard, hostname[1:]) if hostname.startswith("*.") else (self.exact, hostname)
            if names.get(name.encode()) is plan:
                del names[name.encode()]

    def find(self, host: bytes) -> TunnelPlan | None:
        """The tunnel of a host (no port, lower case); an exact name wins over a wildcard, which covers one label."""
        plan = self.exact.get(host)
        if plan is None and self.wildcard:
            label, dot, rest = host.partition(b".")
            if label and dot:
                plan = self.wildcard.get(b"." + rest)
        return plan


def host_of(authority: bytes) -> bytes:
    """An authority without its port, and without a trailing dot (`example.com.:8080` -> `example.com`)."""
    if authority.startswith(b"["):
        return authority.partition(b"]")[0] + b"]"
    return authority.partition(b":")[0].removesuffix(b".")


def normal_path(target: bytes) -> bytes:
    """The path by which a route is chosen: unreserved characters decoded, dot segments resolved (RFC 3986 §6.2.2).

    Origins resolve `/public/../admin` and `/%61dmin` to `/admin`, so the policies of `/admin` hold for them. What is sent
    down the tunnel stays as the visitor wrote it.
    """
    path = target.partition(b"?")[0]
    if path == b"*":
        return b"/"
    if b"%" in path:
        path = _ENCODED.sub(_decode_unreserved, path)
    if b"/." not in path:
        return path
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def _decode_unreserved(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16)
    return bytes((code,)) if code in _UNRESERVED else match[0].upper()


class Router:
    """The handler every front calls; `table` is swapped when a snapshot arrives."""

    __slots__ = ("door", "door_counters", "https_port", "requests_without_tunnel", "table")

    def __init__(self, https_port: int = 443) -> None:
        self.table = RouteTable(0, {})
        self.https_port = https_port
        self.requests_without_tunnel = 0
        self.door: Door | None = None
        """Takes agents' sessions in WebSockets, when there is a tunnel port to lead them to."""
        self.door_counters = TunnelCounters()

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        view = head.view
        if view.__class__ is _View and view.stamp is self.table.stamp:
            view.counters.requests += 1
            return view.open(head, peer, end, client)
        found = self._find(head)
        if found is None:
            self.requests_without_tunnel += 1
            return refuse(client, self._explain(head))
        head.view = found
        found.counters.requests += 1
        return found.open(head, peer, end, client)

    def _find(self, head: RequestHead) -> _View | None:
        if head.protocol is not None and head.target == DOOR_TARGET and self.door is not None:
            return _View(self.table, self.door.open, self.door_counters)
        tunnel = self.table.find(host_of(head.authority))
        if tunnel is None:
            return None
        if tunnel.rule.force_https and head.scheme == b"http":
            return _View(self.table.stamp, self._redirect_to_https, tunnel.counters)
        route = tunnel.choose(normal_path(head.target))
        if route is None:
            return None
        return _View(self.table.stamp, route.open_for(head), tunnel.counters)

    def _redirect_to_https(self, head: RequestHead, _peer: Peer, _end: bool, client: ResponseSink) -> RequestSink:
        port = b"" if self.https_port == 443 else b":%d" % self.https_port
        location = b"https://" + host_of(head.authority) + port + (b"/" if head.target == b"*" else head.target)
        return answer(client, 308, ((b"location", location),))

    def _explain(self, head: RequestHead) -> NotFound:
        host = host_of(head.authority).decode("latin-1")
        if self.table.find(host_of(head.authority)) is None:
            return NotFound(f"no tunnel serves {host}", remedy="check the address, or start the tunnel's agent")
        return NotFound(f"the tunnel of {host} has no route for this path")


class PlanBuilder:
    """Builds tunnel plans from rules, and keeps a plan whose rule did not change (its cache, limits and counters too)."""

    def __init__(self, build_route: Callable[[TunnelRule, RouteRule, TunnelCounters], RouteChain]) -> None:
        self._build_route = build_route

    def build(self, snapshot: Snapshot, previous: RouteTable, change: SnapshotChange | None = None) -> RouteTable:
        """The table of a snapshot. `change`: how it differs from the snapshot of the previous table, when that is known."""
        if change is None:
            plans = {rule.id: self._plan(rule, previous) for rule in snapshot.tunnels}
            return RouteTable(snapshot.version, plans)
        put, removed = [], []
        for tunnel_id in change.tunnel_ids:
            rule = find_rule(snapshot.tunnels, tunnel_id)
            if rule is None:
                removed.append(tunnel_id)
            else:
                put.append(self._plan(rule, previous))
        return previous.replaced(snapshot.version, put, removed)

    def _plan(self, rule: TunnelRule, previous: RouteTable) -> TunnelPlan:
        kept = previous.plans.get(rule.id)
        if kept is not None and (kept.rule is rule or kept.rule == rule):
            return kept
        counters = kept.counters if kept is not None else TunnelCounters()
        routes = tuple(RoutePlan(route, self._build_route(rule, route, counters)) for route in rule.routes)
        return TunnelPlan(rule, routes, counters)
