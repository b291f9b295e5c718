"""Gives the orders that `orders` decides on: looks every few seconds at the nodes that follow this replica.

Every node follows one replica of control, so no node hears two.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from edgetun_control.exits.fleet import Fleet, FollowingNode
from edgetun_control.exits.orders import (
    AgentSeen,
    Homecoming,
    NodeSeen,
    Region,
    Spreading,
    decide_drains,
)
from edgetun_control.placement import RegionView
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.control_stream import Drain, Move

log = logging.getLogger("edgetun.control.exits")

LOOK_EVERY_S: Final = 5.0
DRAIN_S: Final = 30.0


class Regions(Protocol):
    """What is known of regions."""

    def pool(self, name: str) -> ExitPool | None:
        """The pool as it is written."""
        ...

    def is_closed(self, pool: str, region: str) -> bool:
        """Whether the pool wants no exit node there."""
        ...

    def view(self, pool: str, region: str) -> RegionView:
        """Nodes, sessions, capacity."""
        ...


class Whereabouts(Protocol):
    """Who knows where agents are."""

    def whereabouts(self) -> Iterable[AgentSeen]:
        """Agents with sessions here."""
        ...


class OrderGiver:
    """`start` after the fleet is there, `close` at the end."""

    def __init__(
        self,
        fleet: Fleet,
        regions: Regions,
        agents: Whereabouts,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._fleet = fleet
        self._regions = regions
        self._agents = agents
        self._clock = clock
        self._look_every_s = look_every_s
        self._homecoming = Homecoming()
        self._spreading = Spreading()
        self._task: asyncio.Task[None] | None = None
        self.moved_total = 0
        self.drained_total = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="give orders to exit nodes")

    async def close(self) -> None:
        """Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                self.look()
            except Exception:
                # The edge of a task: the next look may do better.
                log.exception("exit nodes could not be given orders")

    def look(self) -> None:
        """Decides once, and sends what comes of it."""
        nodes = {node.name: node for node in self._fleet}
        seen = [
            NodeSeen(node.name, tuple(node.sessions), node.load.is_draining, node.told_to_drain)
            for node in nodes.values()
        ]
        for name, on in decide_drains(seen, self._regions.is_closed):
            reason = f"region {name.region} of pool {name.pool} is {'to be empty' if on else 'open again'}"
            log.info("exit node %s: %s", name, reason)
            self._fleet.order(nodes[name], Drain(on, self._drain_s(name.pool), reason))
            self.drained_total += on
        moves = self._homecoming.decide(self._agents.whereabouts(), self._has_room, self._clock())
        moves += self._spreading.decide(seen, self._told({node.region for node in seen}), self._clock())
        for move in moves:
            node: FollowingNode | None = nodes.get(move.node)
            if node is not None:
                self._fleet.order(node, Move(move.session_ids, self._drain_s(move.node.pool), move.reason))
                self.moved_total += len(move.session_ids)
                log.info("exit node %s: %d sessions go elsewhere: %s", move.node, len(move.session_ids), move.reason)

    def _drain_s(self, pool: str) -> float:
        found = self._regions.pool(pool)
        return found.spec.drain if found is not None else DRAIN_S

    def _has_room(self, pool: str, region: str) -> bool:
        if self._regions.is_closed(pool, region):
            return False
        view = self._regions.view(pool, region)
        return view.has_nodes and view.load < 1.0

    def _told(self, regions: Iterable[Region]) -> dict[Region, tuple[int, int]]:
        """Nodes and sessions of regions as the pools' status has them."""
        views = {region: self._regions.view(*region).told for region in regions}
        return {region: (told.available, told.sessions) for region, told in views.items() if told is not None}
