"""Leases: who leads, and who is alive. Liveness is written here, never in the resources that people watch.

A leader is fenced by time: it stops counting itself as leader before anybody else may take over, by its own clock from when it
last renewed. Others measure how long a Lease stood unchanged by their own clock, so that clocks need not agree.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from edgetun_cluster.client import Cluster
from edgetun_cluster.errors import ClusterError, Conflict, ObjectNotFound
from edgetun_cluster.kinds import LEASE, Object

log = logging.getLogger(__name__)

LEASE_S: Final = 18.0
RENEW_S: Final = 5.0
"""Between renewals while they succeed; one that failed is tried again after `TRY_S`."""
TRY_S: Final = 2.0
SURE_PART: Final = 5 / 6
"""For this part of a Lease its holder acts on it; in the rest nobody does, whatever the clocks and the network do."""


def micro_time(now: float) -> str:
    """Seconds since the epoch as `metav1.MicroTime`."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def lease_object(name: str, namespace: str, holder: str, seconds: float, now: float) -> Object:
    """A Lease that `holder` has renewed now."""
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(seconds)),
            "renewTime": micro_time(now),
        },
    }


class LeaderElection:
    """At most one of several processes leads. `await elected()`, then watch `lost`; `close` gives the Lease back at once."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        namespace: str,
        identity: str,
        *,
        manager: str,
        lease_s: float = LEASE_S,
        renew_s: float = RENEW_S,
        try_s: float = TRY_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.identity = identity
        self.holder = ""
        """Who leads, as last seen."""
        self._cluster = cluster
        self._name = name
        self._namespace = namespace
        self._manager = manager
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._try_s = try_s
        self._clock = clock
        self._wall = wall_clock
        self._lease: Object | None = None
        self._unchanged_since = 0.0
        self._renewed_at = float("-inf")
        self._elected = asyncio.Event()
        self.lost = asyncio.Event()
        """Set when we led and do no longer; the process then ends, or stops to write."""
        self._task: asyncio.Task[None] | None = None

    @property
    def is_leader(self) -> bool:
        """Whether we lead now. False before anybody else could, also when no answer comes from the API server."""
        return (
            self._elected.is_set()
            and not self.lost.is_set()
            and self._clock() - self._renewed_at < self._lease_s * SURE_PART
        )

    def start(self) -> None:
        """Begins to try, and goes on renewing once it leads."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"leader election {self._name}")

    async def elected(self) -> None:
        """Returns when we lead."""
        await self._elected.wait()

    async def close(self) -> None:
        """Stops, and frees the Lease when it is ours, so that the next one need not wait. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if self.is_leader and self._lease is not None:
            lease = self._lease
            lease["spec"].update(holderIdentity="", leaseDurationSeconds=1, renewTime=micro_time(self._wall()))
            with suppress(ClusterError):
                await self._cluster.replace(LEASE, lease, manager=self._manager)
        self.lost.set()

    async def _run(self) -> None:
        while True:
            asked_at = self._clock()
            try:
                if await self._try():
                    self._renewed_at = asked_at
                    if not self._elected.is_set():
                        log.info("leading as %s", self.identity)
                        self._elected.set()
                elif self._elected.is_set():
                    break
            except ClusterError as error:
                log.warning("lease %s/%s: %s", self._namespace, self._name, error)
            if self._elected.is_set() and not self.is_leader:
                break
            is_renewed = self._elected.is_set() and self._renewed_at == asked_at
            await asyncio.sleep(self._renew_s if is_renewed else min(self._try_s, self._renew_s))
        log.error("the lease %s/%s was lost to %s", self._namespace, self._name, self.holder or "nobody")
        self.lost.set()

    async def _try(self) -> bool:
        """Takes or renews the Lease; False when somebody else has it."""
        if self._elected.is_set() and self._lease is not None and self.holder == self.identity:
            # Whoever leads need not ask who does: a version that is not ours any more is a conflict.
            self._lease["spec"]["renewTime"] = micro_time(self._wall())
            with suppress(Conflict, ObjectNotFound):
                self._lease = await self._cluster.replace(LEASE, self._lease, manager=self._manager)
                return True
        now = self._clock()
        found = await self._cluster.get(LEASE, self._name, self._namespace)
        ours = lease_object(self._name, self._namespace, self.identity, self._lease_s, self._wall())
        if found is None:
            ours["spec"] |= {"acquireTime": ours["spec"]["renewTime"], "leaseTransitions": 0}
            try:
                self._lease = await self._cluster.create(LEASE, ours, manager=self._manager)
            except Conflict:
                return False
            self.holder = self.identity
            return True
        spec = found.get("spec") or {}
        self.holder = spec.get("holderIdentity") or ""
        if (
            self._lease is None
            or self._lease["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]
        ):
            self._unchanged_since = now
        self._lease = found
        is_ours = self.holder == self.identity
        if self.holder and not is_ours and now - self._unchanged_since < float(spec.get("leaseDurationSeconds") or 1):
            return False
        if not is_ours:
            ours["spec"] |= {
                "acquireTime": ours["spec"]["renewTime"],
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1,
            }
        found["spec"] = spec | ours["spec"]
        try:
            self._lease = await self._cluster.replace(LEASE, found, manager=self._manager)
        except Conflict:
            return False
        self.holder = self.identity
        return True
