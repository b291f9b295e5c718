"""What there is to place agents on: pools and regions as the operator finds them, exit nodes as they report themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgetun_control.exits.fleet import Fleet
from edgetun_control.placement import DEFAULT_CAPACITY, NodeView, RegionView, ToldOfRegion
from edgetun_control.publish_fleet import FleetPublisher
from edgetun_control.stores.kubernetes import KubernetesStore
from edgetun_core.api.exitpool import ExitPool, region_plans
from edgetun_core.compile import allows_region
from edgetun_core.enrollment import Endpoint
from edgetun_core.fleet_identity import inner_name


class ClusterRegions:
    """Joins three views: ExitPools' status (shared by all replicas), and the nodes that follow this replica."""

    def __init__(self, store: KubernetesStore, publisher: FleetPublisher, fleet: Fleet) -> None:
        self._store = store
        self._publisher = publisher
        self._fleet = fleet
        self._closed: dict[str, tuple[ExitPool, frozenset[str]]] = {}

    def pool(self, name: str) -> ExitPool | None:
        """The pool as it is written now."""
        seen = self._store.pools.get(name)
        return seen.resource if seen is not None else None

    def is_closed(self, pool: str, region: str) -> bool:
        """Whether the pool wants no exit node in the region (any more). Unknown pools are nobody's to close."""
        resource = self.pool(pool)
        return resource is not None and region in self._closed_regions(resource, region)

    def _closed_regions(self, pool: ExitPool, region: str) -> frozenset[str]:
        known = self._closed.get(pool.metadata.name)
        if known is None or known[0] is not pool:
            plans = region_plans(pool.spec)
            closed = {plan.name for plan in plans if plan.autoscaling is None and plan.replicas == 0}
            known = self._closed[pool.metadata.name] = (pool, frozenset(closed))
        if region not in {one.name for one in pool.spec.regions}:
            return known[1] | {region}
        return known[1]

    def view(self, pool: str, region: str) -> RegionView:
        """One region, whoever may be served there."""
        seen = self._store.pools.get(pool)
        status = seen.status if seen is not None else {}
        said = {one.get("name", ""): one for one in status.get("regions") or ()}
        return self._view(pool, region, said.get(region, {}))

    def regions_for(self, service: str) -> Iterable[RegionView]:
        """The regions that the tunnel allows."""
        spec = self._publisher.spec(service)
        seen = self._store.pools.get(spec.pool.name) if spec is not None else None
        if spec is None or seen is None or seen.resource is None:
            return []
        said = {one.get("name", ""): one for one in seen.status.get("regions") or ()}
        return [
            self._view(spec.pool.name, region.name, said.get(region.name, {}))
            for region in seen.resource.spec.regions
            if allows_region(spec, region.name) and not self.is_closed(spec.pool.name, region.name)
        ]

    def spare_for(self, service: str) -> str:
        """The spare region that the tunnel asks for; empty: none."""
        spec = self._publisher.spec(service)
        return (spec.pool.regions.spare or "") if spec is not None else ""

    def _view(self, pool: str, region: str, status: Mapping[str, Any]) -> RegionView:
        here = [node for node in self._fleet if (node.name.pool, node.name.region) == (pool, region)]
        nodes = tuple(
            NodeView(endpoint, node.load.sessions, node.load.is_draining)
            for node in here
            for endpoint in node.hello.addresses
        )
        addresses = tuple(
            Endpoint(
                str(address["host"]),
                int(address.get("tunnelPort") or 0),
                int(address.get("quicPort") or 0),
                server_name=inner_name(pool, region),
            )
            for address in status.get("addresses") or ()
            if address.get("host") and (address.get("tunnelPort") or address.get("quicPort"))
        )
        serving = [node for node in here if not node.load.is_draining]
        capacity = sum(node.load.max_sessions or DEFAULT_CAPACITY for node in serving)
        elsewhere = max(0, int(status.get("available") or 0) - len(here))
        return RegionView(
            pool,
            region,
            nodes,
            addresses,
            sum(node.load.sessions for node in serving),
            capacity + elsewhere * DEFAULT_CAPACITY,
            ToldOfRegion(int(status.get("available") or 0), int(status.get("sessions") or 0)) if status else None,
        )
