"""HostnameReservation -> its status; under `Delete` it goes with its Tunnel."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgetun_cluster.client import Cluster
from edgetun_cluster.errors import Conflict
from edgetun_cluster.kinds import HOSTNAME_RESERVATION
from edgetun_core.api.conditions import ConditionType, Reason, Verdict
from edgetun_operator.decide.conditions import decide_accepted
from edgetun_operator.reconcile.status import StatusWriter
from edgetun_operator.world import World


class ReservationReconciler:
    """`reconcile(name)`."""

    def __init__(
        self, cluster: Cluster, world: World, statuses: StatusWriter, clock: Callable[[], float] = time.time
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._statuses = statuses
        self._clock = clock

    async def reconcile(self, name: str) -> None:
        seen = self._world.reservations.get(name)
        if seen is None or seen.is_leaving:
            return
        if seen.resource is None:
            verdicts = {ConditionType.ACCEPTED: decide_accepted(seen.problems)}
            await self._statuses.write(HOSTNAME_RESERVATION, seen, verdicts, {}, self._clock())
            return
        spec = seen.resource.spec
        claimant = f"{spec.claimed_by.namespace}/{spec.claimed_by.tunnel}"
        if not self._world.claims.is_in_force(seen.resource):
            # Its tunnel is gone or asks for the name no longer, and nobody wanted the name to be kept.
            try:
                version = seen.metadata["resourceVersion"]
                await self._cluster.delete(HOSTNAME_RESERVATION, name, uid=seen.uid, resource_version=version)
            except Conflict:
                return  # it has just been changed; the watch brings it
            return
        if self._world.claims.holder(spec.hostname) == claimant:
            bound = Verdict("True", Reason.BOUND)
        else:
            bound = Verdict(
                "False",
                Reason.RETAINED,
                f"Tunnel {claimant} does not serve it; kept for namespace {spec.claimed_by.namespace} until it is deleted",
            )
        verdicts = {ConditionType.ACCEPTED: decide_accepted(seen.problems), ConditionType.BOUND: bound}
        await self._statuses.write(HOSTNAME_RESERVATION, seen, verdicts, {}, self._clock())
