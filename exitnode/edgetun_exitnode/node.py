"""One exit node: fronts for visitors, listeners for agents, and the pipeline between them.

`ExitNode` composes; it decides nothing about a request. `apply` swaps in a new snapshot as a whole, at any time and without
touching what is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgetun_core.errors import ConfigError, Draining
from edgetun_core.http.exchange import Handler
from edgetun_core.http.h1 import H1Limits
from edgetun_core.pki import ServerIdentity
from edgetun_core.proxy_protocol import TrustedNetworks
from edgetun_core.purge import PurgeOrder, PurgeReport
from edgetun_core.snapshot import PoolRule, RouteRule, Snapshot, SnapshotChange, TunnelRule, find_rule
from edgetun_core.transport.engines import Listener, listen
from edgetun_exitnode.cache.disk import DiskTier
from edgetun_exitnode.cache.purge import purge
from edgetun_exitnode.cache.stage import CacheStage
from edgetun_exitnode.cache.stats import CacheStats
from edgetun_exitnode.cache.store import Store
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontContext, FrontLimits
from edgetun_exitnode.front.listening import explain
from edgetun_exitnode.front.ports import StreamFronts
from edgetun_exitnode.front.servers import Front, serve_http, serve_https
from edgetun_exitnode.mesh.mesh import Mesh
from edgetun_exitnode.mesh.ownership import AskingOthers, AtOwner, Owners, RelayedEntry
from edgetun_exitnode.observe.counters import RateMeter, TunnelCounters
from edgetun_exitnode.pipeline.compression.stage import CompressionStage, Compressor
from edgetun_exitnode.pipeline.forward import ForwardStage
from edgetun_exitnode.pipeline.headers import CompiledHeaderRules, RequestHeaderStage, ResponseHeaderStage
from edgetun_exitnode.pipeline.limits import LimitStage, RateLimit
from edgetun_exitnode.pipeline.router import PlanBuilder, RouteChain, Router
from edgetun_exitnode.pipeline.streams import StreamPlans
from edgetun_exitnode.sessions.acceptor import SessionAcceptor
from edgetun_exitnode.sessions.door import Door
from edgetun_exitnode.sessions.registry import SessionRegistry
from edgetun_exitnode.stage_memos import StageMemos

if TYPE_CHECKING:
    from edgetun_exitnode.front.h3_front import H3Front

log = logging.getLogger(__name__)

_FREE_PORT_TRIES = 5
_STREAM_RATE = " stream "
"""In the place of a route's match, which is `prefix` or `exact`."""
DEFAULT_CACHE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What one exit node may hold."""

    front: FrontLimits = field(default_factory=FrontLimits)
    cache_bytes: int = DEFAULT_CACHE_BYTES
    cache_disk_bytes: int = 0
    cache_bytes_per_tunnel: int = 0
    max_sessions: int = 10_000

    @classmethod
    def of(cls, rule: PoolRule) -> NodeLimits:
        """The limits that a pool sets."""
        front = FrontLimits(
            h1=H1Limits(max_head_bytes=rule.max_request_head_bytes, max_fields=rule.max_request_fields),
            max_connections=rule.max_connections,
            max_connections_per_address=rule.max_connections_per_address,
        )
        return cls(front, rule.cache_bytes, rule.cache_disk_bytes, rule.cache_bytes_per_tunnel)


class ExitNode:
    """Owns every socket of the data plane; made on the loop that it runs on."""

    def __init__(
        self,
        name: str,
        *,
        limits: NodeLimits | None = None,
        https_port: int = 443,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.limits = limits or NodeLimits()
        loop = asyncio.get_running_loop()
        self._clock = clock
        self._wall_clock = wall_clock
        self._memos = StageMemos()
        self.registry = SessionRegistry(clock, loop.call_later, lambda tunnel: tunnel in self.router.table.plans)
        self.acceptor = SessionAcceptor(self.registry, name, wall_clock, max_sessions=self.limits.max_sessions)
        self.store = Store(self.limits.cache_bytes, tenant_max_bytes=self.limits.cache_bytes_per_tunnel)
        self.cache_stats: dict[str, CacheStats] = {}
        self.compressor = Compressor()
        self.router = Router(https_port)
        self.context = FrontContext(self.router, self.limits.front, clock=clock, wall_clock=wall_clock)
        self.fronts: list[Front] = []
        self.http3_fronts: list[H3Front] = []
        self.listeners: list[Listener] = []
        self.snapshot: Snapshot | None = None
        self.is_draining = False
        self.rates: dict[str, RateLimit] = {}
        """Limits of requests per second, by `TUNNEL MATCH PATH` of their route; of connections or flows by `TUNNEL stream KIND`."""
        self.mesh: Mesh | None = None
        """Other exit nodes, where control tells of them; see `join`."""
        self.knows_enough: Callable[[], bool] | None = None
        """Whether the first visitor would be answered though no agent has come here yet."""
        self._plans = PlanBuilder(self._build_route)
        self._requests = RateMeter(clock())
        self.streams = StreamFronts(StreamPlans(self._build_forward), self.limits.front, clock)

    def join(self, mesh: Mesh) -> None:
        """From now on what this node holds no session of is relayed to who does."""
        self.mesh = mesh
        self.registry.use_mesh(mesh.remote)
        for rate in self.rates.values():
            rate.share(mesh.sharing.wake)

    def apply(self, snapshot: Snapshot, change: SnapshotChange | None = None) -> None:
        """Obeys a snapshot from the next request on. With a `change` of the present one this costs what has changed."""
        if change is not None and change.base is not self.snapshot:
            change = None
        self.router.table = table = self._plans.build(snapshot, self.router.table, change)
        self.snapshot = snapshot
        self.acceptor.apply(snapshot)
        candidates = self._remembered() if change is None else change.tunnel_ids
        gone = [tunnel for tunnel in candidates if tunnel not in table.plans]
        self.registry.forget(gone)
        if self.mesh is not None:
            self.mesh.forget(gone)
        for tunnel in gone:
            self.cache_stats.pop(tunnel, None)
        if gone and self.rates:
            for name in [name for name in self.rates if name.partition(" ")[0] not in table.plans]:
                del self.rates[name]
        if change is None or self._is_of_streams(snapshot, change):
            self._apply_streams(snapshot)

    def _apply_streams(self, snapshot: Snapshot) -> None:
        streams = self.streams
        streams.trusted = self.context.proxies = TrustedNetworks(snapshot.pool_rule.trusted_proxies)
        plans = self.router.table.plans
        per_address = snapshot.pool_rule.max_connections_per_address
        streams.drop(streams.plans.apply(snapshot.tunnels, lambda tunnel: plans[tunnel].counters, per_address))
        for tunnel_id, plan in streams.plans.plans.items():
            plans[tunnel_id].stream = plan.handler
        self._share_stream_rates()
        streams.follow()

    def _share_stream_rates(self) -> None:
        """New connections and flows count for the whole fleet too."""
        wanted = {
            f"{tunnel_id} stream {plan.stream.kind}": plan.state.rate
            for tunnel_id, plan in self.streams.plans.plans.items()
            if plan.state.rate is not None
        }
        for name in [name for name in self.rates if _STREAM_RATE in name and name not in wanted]:
            del self.rates[name]
        for name, rate in wanted.items():
            if self.rates.get(name) is not rate:
                self._share_rate(name, rate)

    def _is_of_streams(self, snapshot: Snapshot, change: SnapshotChange) -> bool:
        """Whether a change says anything to TCP and UDP tunnels."""
        if change.base.pool_rule != snapshot.pool_rule:
            return True
        rules = (find_rule(snapshot.tunnels, tunnel_id) for tunnel_id in change.tunnel_ids)
        is_one_now = any(rule is not None and rule.stream is not None for rule in rules)
        return is_one_now or any(tunnel_id in self.streams.plans.plans for tunnel_id in change.tunnel_ids)

    def _build_forward(self, tunnel: TunnelRule, route: RouteRule) -> Handler:
        """The one stage of a TCP or UDP tunnel."""
        counters = self.router.table.plans[tunnel.id].counters
        return ForwardStage(tunnel, route, self.registry.pool(tunnel.id), counters, self._clock, self._memos)

    def open_disk(self, folder: Path) -> None:
        """Keeps stored responses in a folder too, where the limits allow it. Raises ConfigError when the folder cannot be used."""
        if not self.limits.cache_disk_bytes or not self.limits.cache_bytes:
            return
        loop = asyncio.get_running_loop()
        disk = DiskTier(folder, self.limits.cache_disk_bytes, loop.call_soon_threadsafe)
        try:
            disk.open()
        except OSError as error:
            disk.close()
            raise ConfigError(
                f"the cache folder {folder} cannot be written: {error.strerror}",
                remedy="choose another, or mount one there",
            ) from error
        self.store.use_disk(disk, self._clock, self._wall_clock)

    def _remembered(self) -> set[str]:
        """Every tunnel of which something is kept beside its plan."""
        of_mesh = self.mesh.tunnels if self.mesh is not None else ()
        return {*self.registry.services, *self.cache_stats, *of_mesh}

    async def purge_everywhere(self, order: PurgeOrder) -> PurgeReport:
        """Takes responses out of the caches of all exit nodes that this one knows."""
        return self.purge(order) if self.mesh is None else await self.mesh.purging.begin(order)

    def _invalidated(self, tunnel: str, keys: list[bytes]) -> None:
        if self.mesh is not None:
            self.mesh.invalidated(tunnel, keys)

    def purge(self, order: PurgeOrder) -> PurgeReport:
        """Takes responses out of this node's cache alone."""

        def find(host: bytes) -> TunnelRule | None:
            plan = self.router.table.find(host)
            return plan.rule if plan is not None else None

        report = purge(self.store, order, find, self._clock())
        log.info("purged %d stored responses", report.purged)
        return report

    def _build_route(self, tunnel: TunnelRule, route: RouteRule, counters: TunnelCounters) -> RouteChain:
        """A route's chain, from the last stage to the first; stages it does not need are left out."""
        forward = ForwardStage(tunnel, route, self.registry.pool(tunnel.id), counters, self._clock, self._memos)
        handler: Handler = forward
        cache: CacheStage | None = None
        if route.cache.mode != "off" or route.collapse.enabled:
            handler = cache = self._build_cache(tunnel, route, forward)
        relayed = RelayedEntry(forward, cache, lambda: self.registry.answers_itself(tunnel.id), self._clock)
        if cache is not None:
            cache.fetch_next = AskingOthers(self, tunnel.id, forward, self.store, self._clock)
            cache.on_invalidated = lambda keys: self._invalidated(tunnel.id, keys)
            cache.elsewhere = AtOwner(
                self, tunnel.id, forward, relayed, lambda following: self._build_cache(tunnel, route, following)
            )
        if CompiledHeaderRules.is_needed(route.request_headers):
            handler = RequestHeaderStage(route.request_headers, handler, self._memos)
        if CompiledHeaderRules.is_needed(route.response_headers):
            handler = ResponseHeaderStage(route.response_headers, handler, self._memos)
        if LimitStage.is_needed(route.limits):
            handler = limits = LimitStage(route.limits, self._clock, handler)
            if limits.rate is not None:
                self._share_rate(f"{tunnel.id} {route.match} {route.path}", limits.rate)
        if CompressionStage.is_needed(route.compression):
            handler = CompressionStage(
                route.compression, self.compressor, handler, asyncio.get_running_loop(), self._memos
            )
        return RouteChain(handler, relayed)

    def _share_rate(self, name: str, rate: RateLimit) -> None:
        """The fleet keeps one account of what visitors may ask."""
        self.rates[name] = rate
        if self.mesh is not None:
            rate.share(self.mesh.sharing.wake)

    def _build_cache(self, tunnel: TunnelRule, route: RouteRule, following: Handler) -> CacheStage:
        return CacheStage(
            route.cache,
            route.collapse,
            tunnel.id,
            self.store,
            following,
            self._clock,
            asyncio.get_running_loop(),
            wall_clock=self._wall_clock,
            stats=self.cache_stats.setdefault(tunnel.id, CacheStats()),
            memos=self._memos,
            partition=_origin_of(tunnel, route),
        )

    def owners(self, tunnel: str) -> Owners | None:
        """Who owns the keys of a tunnel; None while there are no other exit nodes."""
        return self.mesh.remote(tunnel) if self.mesh is not None else None

    async def listen_http(self, host: str, port: int) -> Front:
        """Serves visitors over plain HTTP; `port` 0 takes a free one. Raises AddressUnavailable."""
        try:
            front = await serve_http(self.context, host, port)
        except OSError as error:
            raise explain(error, host, port, "--http-port") from error
        self.fronts.append(front)
        return front

    async def listen_https(self, host: str, port: int, certificates: CertificateStore, *, http3: bool = False) -> Front:
        """Serves visitors over TLS and, with `http3`, over QUIC on the same port number. Raises AddressUnavailable."""
        for tries_left in reversed(range(_FREE_PORT_TRIES if port == 0 else 1)):
            try:
                front = await serve_https(self.context, host, port, certificates, streams=self.streams)
                if http3:
                    self._serve_http3(front, certificates)
                break
            except OSError as error:
                if not tries_left:
                    raise explain(error, host, port, "--https-port") from error
        self.fronts.append(front)
        self.router.https_port = front.port
        return front

    async def listen_streams(self, host: str) -> Mapping[tuple[str, int], ConfigError]:
        """Serves TCP and UDP tunnels at their ports, as snapshots name them; returns the ports that cannot be had now."""
        return await self.streams.listen(host)

    def _serve_http3(self, front: Front, certificates: CertificateStore) -> None:
        """The same addresses over UDP. A free TCP port is not always free for UDP: OSError, and the front is closed."""
        from edgetun_exitnode.front.h3_front import serve_http3  # the QUIC library takes a tenth of a second

        try:
            self.http3_fronts += serve_http3(self.context, front.addresses_bound, certificates)
        except OSError:
            front.close()
            raise
        front.advertises_http3 = True

    async def listen_tunnel(
        self,
        host: str,
        port: int,
        identity: ServerIdentity,
        *,
        quic_engine: str = "qh3",
        other_protocols: Mapping[str, Callable[[], asyncio.Protocol]] | None = None,
        state: Path | None = None,
    ) -> tuple[int, int]:
        """Takes sessions over TLS and, unless `quic_engine` is `"none"`, over QUIC on the same port number.

        Returns the two ports (QUIC: 0 when there is none). Raises AddressUnavailable.
        """
        accept = self.acceptor.accept
        tries = 1 if port else _FREE_PORT_TRIES
        while True:
            tries -= 1
            tls: Listener | None = None
            try:
                tls = await listen("tls", host, port, identity=identity, accept=accept, other_protocols=other_protocols)
                quic = None
                if quic_engine != "none":
                    quic = await listen(quic_engine, host, tls.port, identity=identity, accept=accept, state=state)
                break
            except ConfigError as error:
                if tls is not None:
                    await tls.close()
                if not isinstance(error.__cause__, OSError):
                    raise
                if not tries:
                    number = port if tls is None else tls.port
                    raise explain(error.__cause__, host, number, "--tunnel-port") from error.__cause__
        self.listeners += [tls] if quic is None else [tls, quic]
        self.router.door = Door(host, tls.port, self.limits.max_sessions)
        return tls.port, 0 if quic is None else quic.port

    async def drain(self, deadline_s: float) -> None:
        """Goes away in good order: no new visitors or sessions, what is in flight may end until the deadline."""
        self.is_draining = True
        self.acceptor.is_draining = True
        until = self._clock() + deadline_s
        if self.mesh is not None:
            self.mesh.going_away()
        self.acceptor.on_change()
        for runner in self.acceptor.runners:
            runner.drain(deadline_s, "the exit node is going away")
        await asyncio.gather(self.streams.drain(deadline_s), *(front.drain(deadline_s) for front in self.all_fronts))
        if self.mesh is not None:
            await self.mesh.drain(max(0.0, until - self._clock()))
        for runner in self.acceptor.runners:
            runner.close(Draining("the exit node went away"))
        await self.close()

    async def close(self) -> None:
        """Closes every socket."""
        self.streams.close()
        for front in self.all_fronts:
            front.close()
        if self.mesh is not None:
            await self.mesh.close()
        await asyncio.gather(*(listener.close() for listener in self.listeners))
        self.fronts.clear()
        self.http3_fronts.clear()
        self.listeners.clear()
        if self.store.disk is not None:
            await asyncio.to_thread(self.store.disk.close)
            self.store.disk = None

    @property
    def all_fronts(self) -> tuple[Front | H3Front, ...]:
        """Every front, over TCP and over UDP."""
        return (*self.fronts, *self.http3_fronts)

    @property
    def exchanges_in_flight(self) -> int:
        """Exchanges that wait for an origin's answer."""
        return sum(plan.counters.in_flight for plan in self.router.table.plans.values())

    def requests_per_second(self) -> float:
        """Answers to visitors per second of late, whoever gave them: cache, collapse, origin or a refusal."""
        return self._requests.per_second(self._clock(), sum(self.context.counters.responses))

    def cache_outcomes(self) -> tuple[tuple[str, int], ...]:
        """How requests were answered, over all tunnels; `hit` and `collapsed` spared the origin a request."""
        stats = self.cache_stats.values()
        return (
            ("hit", sum(one.hits + one.stale for one in stats)),
            ("collapsed", sum(one.collapsed - one.released for one in stats)),
            ("miss", sum(one.misses + one.released for one in stats)),
            ("bypass", sum(one.bypass + one.alone for one in stats)),
        )

    def readiness(self) -> tuple[bool, dict[str, object]]:
        """Whether visitors may be sent here, and why not."""
        facts: dict[str, object] = {
            "draining": self.is_draining,
            "snapshot": self.snapshot.version if self.snapshot is not None else None,
            "listening": bool(self.fronts),
            "sessions": len(self.registry.sessions),
        }
        if self.mesh is not None:
            facts["peers"] = len(self.mesh.holders.peers)
            facts["links"] = self.mesh.links
        is_ready = self.snapshot is not None and bool(self.fronts) and not self.is_draining
        if self.knows_enough is not None:
            facts["presence"] = self.knows_enough()
            is_ready = is_ready and bool(facts["presence"])
        return is_ready, facts


def _origin_of(tunnel: TunnelRule, route: RouteRule) -> str:
    """Which origin answers for a route, by name and url: another one's stored answers are not this one's."""
    for origin in tunnel.origins:
        if origin.name == route.origin or not route.origin:
            return f"{origin.name} {origin.url}"
    return route.origin
