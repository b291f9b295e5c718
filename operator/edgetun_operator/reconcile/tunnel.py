"""Tunnel -> reservations of the hostnames that it gets, and its status."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgetun_cluster.client import Cluster
from edgetun_cluster.errors import AlreadyExists
from edgetun_cluster.kinds import HOSTNAME_RESERVATION, TUNNEL, Key
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.reservation import reservation_name
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.compile import region_problems
from edgetun_operator.decide.conditions import conditions_of, decide_accepted
from edgetun_operator.decide.tunnel import (
    AgentSeen,
    PoolSeen,
    agent_seen,
    build_tunnel_facts,
    decide_tunnel_verdicts,
)
from edgetun_operator.desired.labels import MANAGED_BY, MANAGER
from edgetun_operator.reconcile.status import StatusWriter
from edgetun_operator.world import World


class TunnelReconciler:
    """`reconcile(key)`. Costs what the tunnel's own hostnames cost, however many tunnels there are."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        statuses: StatusWriter,
        reclaim_policy: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._statuses = statuses
        self._reclaim_policy = reclaim_policy
        self._clock = clock

    async def reconcile(self, key: Key) -> None:
        seen = self._world.tunnels.get(key.name, key.namespace)
        if seen is None or seen.is_leaving:
            return
        if seen.resource is None:
            verdicts = {"Accepted": decide_accepted(seen.problems)}
            await self._statuses.write(
                TUNNEL, seen, verdicts, {"hostnames": [], "port": "", "regions": [], "url": ""}, self._clock()
            )
            return
        tunnel = seen.resource
        verdict = self._world.claims.verdict(tunnel.id)
        problems = [*seen.problems, *verdict.problems]
        if verdict.pool is not None:
            problems.extend(region_problems(tunnel, verdict.pool))
        for hostname in verdict.hostnames:
            await self._reserve(tunnel, hostname)
        pool = self._pool(verdict.pool)
        agents = self._agents(key)
        facts = build_tunnel_facts(tunnel, verdict.served, pool, agents)
        served = verdict.served if facts["regions"] else ()
        hint = f'no agent is connected; run "edgetun-agent" with a token of namespace {key.namespace}'
        verdicts = decide_tunnel_verdicts(
            problems,
            served,
            pool,
            agents,
            hint,
            is_stream=tunnel.spec.stream is not None,
            port=tunnel.spec.port_name if facts["port"] else "",
            ports_unavailable=seen.status.get("portsUnavailable") or (),
        )
        await self._statuses.write(TUNNEL, seen, verdicts, facts, self._clock())

    async def _reserve(self, tunnel: Tunnel, hostname: str) -> None:
        """Keeps the name for the tunnel's namespace. Before the status says that it is served."""
        claimed_by = {"namespace": tunnel.metadata.namespace, "tunnel": tunnel.metadata.name}
        stands = self._world.claims.reservation(hostname)
        if stands is None:
            reservation = {
                "metadata": {"name": reservation_name(hostname), "labels": {MANAGED_BY: "edgetun-operator"}},
                "spec": {"hostname": hostname, "claimedBy": claimed_by, "reclaimPolicy": self._reclaim_policy},
            }
            try:
                await self._cluster.create(HOSTNAME_RESERVATION, reservation, manager=MANAGER)
            except AlreadyExists:
                return  # the watch brings it, and whose it is, and this tunnel is looked at again
            return
        before = stands.spec.claimed_by
        if before.namespace != tunnel.metadata.namespace or before.tunnel == tunnel.metadata.name:
            return
        seen = self._world.reservations.get(stands.metadata.name)
        if seen is None:
            return  # it has just gone; this tunnel is looked at again
        # The namespace's name passes on to another of its tunnels. With the version that was seen, so that nobody's change is lost.
        patch = {
            "metadata": {"resourceVersion": seen.metadata["resourceVersion"]},
            "spec": {"claimedBy": claimed_by},
        }
        await self._cluster.patch(HOSTNAME_RESERVATION, stands.metadata.name, "", patch, manager=MANAGER)

    def _pool(self, pool: ExitPool | None) -> PoolSeen | None:
        if pool is None:
            return None
        seen = self._world.pools.get(pool.metadata.name)
        status = seen.status if seen is not None else {}
        return PoolSeen(pool, conditions_of(status), int(status.get("available") or 0))

    def _agents(self, key: Key) -> list[AgentSeen]:
        found = (self._world.agents.get(a.name, a.namespace) for a in self._world.agents_by_tunnel.get(key, ()))
        return [agent_seen(agent.status) for agent in found if agent is not None]
