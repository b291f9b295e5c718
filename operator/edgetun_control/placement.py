"""Where an agent shall hold its sessions. `decide_placement` is pure: regions, what the agent measured, where it was before.

An agent stays where it is unless another region is clearly better (hysteresis), so that a round trip that wavers moves nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import msgspec

from edgetun_core.enrollment import Endpoint, EnrollRequest, Offer, Probe

BASE_S: Final = 0.005
"""Added to every round trip, so that between near regions load decides."""
LOAD_FREE: Final = 0.5
"""Load below this costs nothing."""
LOAD_COST: Final = 4.0
BETTER_BY: Final = 0.75
BETTER_BY_S: Final = 0.005
"""Another region is worth a move when its cost is below this part of the present one's, and by this much."""
MOST_ENDPOINTS: Final = 8
MOST_SPARE: Final = 2
"""Endpoints of the spare region that an agent is told."""
MOST_OFFERED: Final = 16
DEFAULT_CAPACITY: Final = 10_000


@dataclass(frozen=True, slots=True)
class NodeView:
    """One exit node that can be dialled by itself."""

    endpoint: Endpoint
    sessions: int = 0
    is_draining: bool = False


class ToldOfRegion(NamedTuple):
    """What the ExitPool's status says of a region: of all its exit nodes, and a few seconds old."""

    available: int
    sessions: int


@dataclass(frozen=True, slots=True)
class RegionView:
    """One region that the agent's tunnels may be served in."""

    pool: str
    region: str
    nodes: tuple[NodeView, ...] = ()
    addresses: tuple[Endpoint, ...] = ()
    """Where the region is reached as a whole."""
    sessions: int = 0
    capacity: int = DEFAULT_CAPACITY
    """Sessions that it can hold; 0 when no exit node is there."""
    told: ToldOfRegion | None = None

    @property
    def name(self) -> str:
        return f"{self.pool}/{self.region}"

    @property
    def load(self) -> float:
        """Part of the capacity that is used; 1 and more: full."""
        return self.sessions / self.capacity if self.capacity > 0 else 1.0

    @property
    def has_nodes(self) -> bool:
        """Whether an exit node is there, and can be reached."""
        return self.capacity > 0 and self.is_reachable

    @property
    def is_reachable(self) -> bool:
        return bool(self.addresses) or any(not node.is_draining for node in self.nodes)


class Choice(NamedTuple):
    """Regions of one pool, best first, and why the first is the first."""

    ranked: tuple[RegionView, ...]
    reason: str


def round_trip_s(probe: Probe | None) -> float | None:
    """The better of the two transports; None when neither answered."""
    answered = [rtt for rtt in (probe.tcp_s, probe.quic_s) if rtt > 0] if probe is not None else []
    return min(answered, default=None)


def decide_placement(regions: Sequence[RegionView], probes: Mapping[str, Probe], current: str, agent_id: str) -> Choice:
    """Ranks the regions of one pool for an agent. `probes` by region's name, `current` the name of where it is, or empty.

    A region without room takes only whom it has already; one that the agent cannot reach comes after all it can. Without
    measurements (an agent of an older version) load decides, and among equals a hash, so that agents spread.
    """
    open_regions = [region for region in regions if region.is_reachable]
    roomy = [region for region in open_regions if region.load < 1.0 or (region.name == current and region.capacity > 0)]
    candidates = roomy or open_regions
    measured = any(round_trip_s(probes.get(region.name)) is not None for region in candidates)

    def rank(region: RegionView) -> tuple[bool, float, str]:
        rtt_s = round_trip_s(probes.get(region.name))
        return (measured and rtt_s is None, _cost(region, rtt_s), _spread(agent_id, region.name))

    ranked = sorted(candidates, key=rank)
    if not ranked:
        return Choice((), "no region has an exit node with room")
    best = ranked[0]
    here = next((region for region in ranked if region.name == current), None)
    if here is None or here is best:
        why = "the nearest with room" if measured else "the least loaded"
        return Choice(tuple(ranked), why)
    if measured and round_trip_s(probes.get(here.name)) is None:
        return Choice(tuple(ranked), f"{current} does not answer any more")
    cost, best_cost = (_cost(region, round_trip_s(probes.get(region.name))) for region in (here, best))
    if best_cost < cost * BETTER_BY and best_cost < cost - BETTER_BY_S:
        return Choice(tuple(ranked), f"clearly better than {current}")
    return Choice((here, *(region for region in ranked if region is not here)), "stays where it is")


def _cost(region: RegionView, rtt_s: float | None) -> float:
    return (BASE_S + (rtt_s or 0.0)) * (1.0 + LOAD_COST * max(0.0, region.load - LOAD_FREE))


def _spread(agent_id: str, name: str) -> str:
    """Rendezvous hashing: stable for an agent, even over agents."""
    return hashlib.blake2b(f"{agent_id}\0{name}".encode(), digest_size=8).hexdigest()


def endpoints_of(choice: Choice, agent_id: str, spare: str = "") -> tuple[Endpoint, ...]:
    """Where to connect, best first: the first region's nodes, then one endpoint of each further region to fall back on.

    With `spare` (a region's name, or `auto`) those of that region are marked: one session goes there.
    """
    away = _spare_region(choice, spare)
    found: list[Endpoint] = []
    for index, region in enumerate(choice.ranked):
        own = _region_endpoints(region, agent_id)
        if region is not away:
            found.extend(own if index == 0 else own[:1])
    marked = (
        []
        if away is None
        else [msgspec.structs.replace(one, spare=True) for one in _region_endpoints(away, agent_id)[:MOST_SPARE]]
    )
    return (*found[: MOST_ENDPOINTS - len(marked)], *marked)


def _spare_region(choice: Choice, spare: str) -> RegionView | None:
    """The best region but the first that has an exit node, or the one that is asked for by name; None when there is none."""
    others = choice.ranked[1:]
    if not spare:
        return None
    if spare != "auto" and any(region.region == spare for region in others):
        return next(region for region in others if region.region == spare)
    is_any = spare == "auto" or (choice.ranked and choice.ranked[0].region == spare)
    return next((region for region in others if region.has_nodes), None) if is_any else None


def _region_endpoints(region: RegionView, agent_id: str) -> list[Endpoint]:
    nodes = [node for node in region.nodes if not node.is_draining]
    nodes.sort(key=lambda node: (node.sessions // 100, _spread(agent_id, node.endpoint.node)))
    return [node.endpoint for node in nodes] or list(region.addresses)


@dataclass(frozen=True, slots=True)
class Placed:
    """What an agent is told. `offers`: regions to measure, when there is a choice."""

    endpoints: tuple[Endpoint, ...]
    offers: tuple[Offer, ...] = ()
    placed: str = ""
    rtt_s: float | None = None
    measurable: tuple[str, ...] = ()
    """Regions that have an exit node now. When they change, an agent that measures has something new to measure."""


class Placement(Protocol):
    """Chooses exit nodes for an agent."""

    def place(self, request: EnrollRequest, services: tuple[str, ...], now: float) -> Placed:
        """Without endpoints when none has room."""
        ...


class FixedPlacement:
    """The same exit nodes for everybody, as a server on its own has them."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints

    def place(self, request: EnrollRequest, services: tuple[str, ...], now: float) -> Placed:
        return Placed(self.endpoints)


class Regions(Protocol):
    """What there is to place agents on."""

    def regions_for(self, service: str) -> Iterable[RegionView]:
        """The regions of the tunnel's pool that the tunnel allows."""
        ...

    def spare_for(self, service: str) -> str:
        """The tunnel's spare region, by name or `auto`; empty: none."""
        ...


class FleetPlacement:
    """Places an agent on the best region of every pool that its tunnels are on."""

    def __init__(self, regions: Regions) -> None:
        self._regions = regions

    def place(self, request: EnrollRequest, services: tuple[str, ...], now: float) -> Placed:
        by_pool: dict[str, dict[str, RegionView]] = {}
        spares: dict[str, str] = {}
        for service in services:
            views = {view.name: view for view in self._regions.regions_for(service)}
            if not views:
                continue
            pool = next(iter(views.values())).pool
            # What the agent was started with counts for more, and of several tunnels the first that asks for one.
            spares[pool] = request.spare or spares.get(pool) or self._regions.spare_for(service)
            kept = by_pool.get(pool, views)
            # A region must be allowed by every tunnel; where that leaves none, the first tunnels' must do.
            by_pool[pool] = {name: view for name, view in kept.items() if name in views} or kept
        probes = {f"{probe.pool}/{probe.region}": probe for probe in request.probes[: 4 * MOST_OFFERED]}
        current = {name.partition("/")[0]: name for name in request.placed.split(",") if "/" in name}
        endpoints: list[Endpoint] = []
        offers: list[Offer] = []
        placed: list[str] = []
        rtts: list[float] = []
        measurable: list[str] = []
        for pool, regions in sorted(by_pool.items()):
            choice = decide_placement(tuple(regions.values()), probes, current.get(pool, ""), request.agent_id)
            if not choice.ranked:
                continue
            endpoints.extend(endpoints_of(choice, request.agent_id, spares[pool]))
            placed.append(choice.ranked[0].name)
            rtt_s = round_trip_s(probes.get(choice.ranked[0].name))
            rtts.extend([rtt_s] if rtt_s is not None else [])
            measurable.extend(sorted(name for name, region in regions.items() if region.has_nodes))
            if request.can_probe and len(regions) > 1:
                offers.extend(
                    Offer(region.pool, region.region, tuple(_region_endpoints(region, request.agent_id)[:2]))
                    for region in choice.ranked
                )
        unique = tuple(dict.fromkeys(endpoints))
        return Placed(
            unique[: 2 * MOST_ENDPOINTS],
            tuple(offers[:MOST_OFFERED]),
            ",".join(placed),
            min(rtts, default=None),
            tuple(measurable),
        )
