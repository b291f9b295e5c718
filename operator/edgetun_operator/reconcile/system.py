"""The system's own Secrets: made when missing, never overwritten, rotated before they end."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final

from edgetun_cluster.client import Cluster
from edgetun_cluster.errors import AlreadyExists, ClusterError
from edgetun_cluster.kinds import SECRET, Object
from edgetun_cluster.system_secrets import (
    CA_SECRET,
    CONTROL_TLS_SECRET,
    SIGNING_KEYS_SECRET,
    rotate_seeds,
    seeds_to_data,
    signing_seeds,
    system_secret,
)
from edgetun_operator.decide.ca import decide_ca_step
from edgetun_operator.desired.labels import MANAGER
from edgetun_operator.reconcile.own_ca import OwnCA
from edgetun_operator.reconcile.rotate_ca import see_ca, take_step
from edgetun_operator.world import World

log = logging.getLogger("edgetun.operator")

LOOK_EVERY_S: Final = 600.0
_STEPS: Final = {
    "introduce": "its successor is made known; it signs in two hours",
    "switch": "its successor signs from now on; tokens that pin the old one stay good",
    "retire": "the old one is forgotten; tokens that pin it count no longer",
}


class SystemReconciler:
    """`reconcile()`. `on_new_ca` is called when the CA is known, and again when somebody has put another one in its place."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        ca: OwnCA,
        control_names: Sequence[str],
        on_new_ca: Callable[[], None],
        clock: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._ca = ca
        self._control_names = tuple(control_names)
        self._on_new_ca = on_new_ca
        self._clock = clock
        self._random = random_bytes

    async def reconcile(self) -> float:
        """Seconds until the next look."""
        if self._ca.take(await self._rotated_ca()):
            self._on_new_ca()
        await self._signing_keys()
        await self._control_certificate()
        return LOOK_EVERY_S

    async def _present(self, name: str, make: Callable[[], dict[str, str]], type_: str = "Opaque") -> Object:
        """The Secret as it stands; made when there is none. Asked of the API server, since our copy may be behind."""
        namespace = self._world.namespace
        stands = await self._cluster.get(SECRET, name, namespace)
        if stands is not None:
            return stands
        obj = system_secret(name, namespace, await asyncio.to_thread(make), type_)
        try:
            return await self._cluster.create(SECRET, obj, manager=MANAGER)
        except AlreadyExists:
            stands = await self._cluster.get(SECRET, name, namespace)
            if stands is None:
                raise ClusterError(f"Secret {name} comes and goes") from None
            return stands

    async def _rotated_ca(self) -> Object:
        """The CA, after whatever step of a rotation is due."""
        stands = await self._present(CA_SECRET, self._ca.make)
        for _ in range(2):  # "now" introduces and switches at once
            now = self._clock()
            step = decide_ca_step(see_ca(stands), now)
            if step is None:
                break
            # With the version that was read: of two that rotate at the same time one meets a conflict.
            after = await asyncio.to_thread(take_step, stands, step, now, self._clock)
            stands = await self._cluster.replace(SECRET, after, manager=MANAGER)
            log.info("the own CA: %s", _STEPS[step])
        return stands

    async def _signing_keys(self) -> None:
        now = self._clock()
        stands = await self._present(SIGNING_KEYS_SECRET, lambda: seeds_to_data(rotate_seeds((), now, self._random)))
        seeds = signing_seeds(stands)
        wanted = rotate_seeds(seeds, now, self._random)
        if wanted != seeds:
            # With the version that was read: a key that somebody else has just added is not lost.
            await self._cluster.replace(SECRET, {**stands, "data": seeds_to_data(wanted)}, manager=MANAGER)

    async def _control_certificate(self) -> None:
        names = self._control_names
        stands = await self._present(CONTROL_TLS_SECRET, lambda: self._ca.issue_leaf(names), type_="kubernetes.io/tls")
        if self._ca.is_good(stands, names, self._clock()):
            return
        labels = stands["metadata"].get("labels") or {}
        if labels.get("app.kubernetes.io/managed-by") != "edgetun-operator":
            return  # somebody brings a certificate of their own
        data = await asyncio.to_thread(self._ca.issue_leaf, names)
        await self._cluster.replace(SECRET, {**stands, "data": data}, manager=MANAGER)
