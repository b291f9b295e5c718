"""ExitPool -> the objects of its regions, and its status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from edgetun_cluster.client import Cluster
from edgetun_cluster.kinds import DEPLOYMENT, EXIT_POOL, HORIZONTAL_POD_AUTOSCALER, SECRET, SERVICE, Kind, Object
from edgetun_core.api.conditions import Reason, Verdict
from edgetun_core.api.exitpool import ExitPool, region_plans
from edgetun_operator.decide.conditions import decide_accepted
from edgetun_operator.decide.pool import (
    CertificateTrouble,
    ObjectTrouble,
    RegionSeen,
    build_pool_numbers,
    decide_pool_verdicts,
)
from edgetun_operator.desired.certificates import CertificateSource, certificate_sources
from edgetun_operator.desired.fleet import Fleet, metadata, region_name
from edgetun_operator.desired.labels import MANAGER, is_ours
from edgetun_operator.desired.pool import build_pool
from edgetun_operator.reconcile.apply import Applier, Outcome
from edgetun_operator.reconcile.own_ca import OwnCA, describe_certificate
from edgetun_operator.reconcile.status import StatusWriter
from edgetun_operator.world import OWNED_KINDS, Seen, World

LEAVING_RETRY_S: Final = 2.0
REFUSED_RETRY_S: Final = 15.0
"""What was refused is tried again, since a quota or a policy may have changed without any event for us."""
CERTIFICATE_LOOK_S: Final = 3600.0
EXPIRING_S: Final = 7 * 86400.0


class PoolReconciler:
    """`reconcile(name)`; everything it needs is in the world."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        applier: Applier,
        statuses: StatusWriter,
        ca: OwnCA,
        fleet: Callable[[str], Fleet],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._applier = applier
        self._statuses = statuses
        self._ca = ca
        self._fleet = fleet
        self._clock = clock

    async def reconcile(self, name: str) -> float | None:
        """Seconds after which to look again, if at all."""
        seen = self._world.pools.get(name)
        if seen is None or seen.is_leaving:
            return None  # the garbage collector follows the ownerReferences
        if seen.resource is None:
            # What was made of the last good spec serves on.
            await self._statuses.write(EXIT_POOL, seen, _invalid(seen), {}, self._clock())
            return None
        if not self._ca.is_ready:
            return 1.0
        pool, now = seen.resource, self._clock()
        sources = certificate_sources(pool)
        secrets, trouble = await self._secrets(pool, sources, now)
        mountable, more_trouble, look_again_s = _look_at_certificates(sources, secrets, now)
        trouble += more_trouble
        fleet = self._fleet(self._ca.ca_pem)
        outcomes = await self._apply(pool, fleet, mountable)
        trouble += [
            CertificateTrouble(Reason.API_UNAVAILABLE, f"{outcome.message}; install cert-manager, or use secretName")
            for outcome in outcomes
            if outcome.result == "absent"
        ]
        regions = self._regions(pool, outcomes)
        verdicts = decide_pool_verdicts(pool, seen.problems, regions, _trouble(outcomes), trouble)
        numbers = build_pool_numbers(pool, regions, len(self._world.tunnels_by_pool.get(name, ())))
        await self._statuses.write(EXIT_POOL, seen, verdicts, numbers, now)
        results = {outcome.result for outcome in outcomes}
        if "leaving" in results:
            return LEAVING_RETRY_S
        return REFUSED_RETRY_S if results & {"refused", "foreign", "contested"} else look_again_s

    async def _apply(self, pool: ExitPool, fleet: Fleet, mountable: tuple[str, ...]) -> list[Outcome]:
        name = pool.metadata.name
        desired = build_pool(pool, fleet, mountable)
        outcomes = []
        for wanted in desired:
            copy = self._world.owned[wanted.kind]
            if copy.is_absent:
                message = f"the API server does not serve {wanted.kind.plural}.{wanted.kind.group}"
                outcomes.append(Outcome(wanted.kind, wanted.name, "absent", message))
                continue
            observed = copy.get(wanted.name, fleet.namespace)
            outcomes.append(await self._applier.ensure(wanted, EXIT_POOL, name, observed))
        keep: dict[Kind, set[str]] = {kind: set() for kind in OWNED_KINDS}
        for wanted in desired:
            keep[wanted.kind].add(wanted.name)
        for kind in OWNED_KINDS:
            ours = [obj for obj in self._world.owned_by_pool(kind, name) if is_ours(obj, EXIT_POOL, name)]
            await self._applier.prune(kind, ours, keep[kind])
        return outcomes

    def _regions(self, pool: ExitPool, outcomes: list[Outcome]) -> dict[str, RegionSeen]:
        fresh = {(outcome.kind, outcome.name): outcome.object for outcome in outcomes if outcome.object is not None}
        name = pool.metadata.name

        def stands(kind: Kind, object_name: str) -> Object | None:
            # Never an object of somebody else's: what is not among the outcomes as ours does not count.
            return fresh.get((kind, object_name))

        return {
            plan.name: RegionSeen(
                stands(DEPLOYMENT, region_name(name, plan.name)),
                stands(HORIZONTAL_POD_AUTOSCALER, region_name(name, plan.name)),
                stands(SERVICE, region_name(name, plan.name)),
                self._world.sessions.get((name, plan.name), 0),
            )
            for plan in region_plans(pool.spec)
        }

    # ---- certificates

    async def _secrets(
        self, pool: ExitPool, sources: tuple[CertificateSource, ...], now: float
    ) -> tuple[dict[str, Object], list[CertificateTrouble]]:
        """The Secrets with certificates that are there; the own CA's leaf is made or renewed first."""
        found, trouble = {}, []
        for source in sources:
            stands = self._world.secrets.get(source.secret, self._world.namespace)
            if source.origin == "own":
                try:
                    stands = await self._own_leaf(pool, source, stands, now)
                except _ForeignSecret as foreign:
                    trouble.append(CertificateTrouble(Reason.OBJECT_CONFLICT, str(foreign)))
                    continue
            if stands is not None:
                found[source.secret] = stands
        return found, trouble

    async def _own_leaf(self, pool: ExitPool, source: CertificateSource, stands: Object | None, now: float) -> Object:
        """Keeps the pool's certificate of the own CA good."""
        if stands is None:
            # Our copy may be behind, and a certificate is not to be made twice.
            stands = await self._cluster.get(SECRET, source.secret, self._world.namespace)
        if stands is not None and not is_ours(stands, EXIT_POOL, pool.metadata.name):
            raise _ForeignSecret(f"Secret {source.secret} is there already and is not edgetun's")
        if stands is not None and self._ca.is_good(stands, source.names, now):
            return stands
        data = await asyncio.to_thread(self._ca.issue_leaf, source.names)
        meta = metadata(pool, "", self._fleet(self._ca.ca_pem), name=source.secret)
        obj = {"metadata": meta, "type": "kubernetes.io/tls", "data": data}
        return await self._cluster.apply(SECRET, obj, manager=MANAGER)


class _ForeignSecret(Exception):
    """A Secret of a name that is needed belongs to somebody else."""


def _look_at_certificates(
    sources: tuple[CertificateSource, ...], secrets: Mapping[str, Object], now: float
) -> tuple[tuple[str, ...], list[CertificateTrouble], float | None]:
    """Secrets that pods can mount, what is wrong with the certificates, and when to look again."""
    mountable, trouble = [], []
    for source in sources:
        secret = secrets.get(source.secret)
        if secret is None:
            if source.origin != "own":
                hints = {"issuer": "cert-manager has not issued it yet", "given": "make it, or correct secretName"}
                message = f"Secret {source.secret} is not there; {hints[source.origin]}"
                trouble.append(CertificateTrouble(Reason.CERTIFICATE_MISSING, message))
            continue
        facts = describe_certificate(secret)
        if facts is None:
            message = f"Secret {source.secret} holds no certificate (type kubernetes.io/tls, keys tls.crt and tls.key)"
            trouble.append(CertificateTrouble(Reason.CERTIFICATE_INVALID, message))
            continue
        mountable.append(source.secret)
        if facts.ends <= now:
            message = f"the certificate in Secret {source.secret} has expired; renew it"
            trouble.append(CertificateTrouble(Reason.CERTIFICATE_EXPIRED, message))
        elif facts.ends - now < EXPIRING_S and source.origin != "own":
            days = (facts.ends - now) / 86400
            message = f"the certificate in Secret {source.secret} ends in {days:.0f} days; renew it"
            trouble.append(CertificateTrouble(Reason.CERTIFICATE_EXPIRING, message, is_serving=True))
    return tuple(mountable), trouble, CERTIFICATE_LOOK_S if sources else None


def _trouble(outcomes: list[Outcome]) -> list[ObjectTrouble]:
    reasons = {
        "foreign": Reason.OBJECT_CONFLICT,
        "contested": Reason.OBJECT_CONFLICT,
        "refused": Reason.APPLY_FAILED,
    }
    return [
        ObjectTrouble(reasons[outcome.result], outcome.message) for outcome in outcomes if outcome.result in reasons
    ]


def _invalid(seen: Seen[ExitPool]) -> dict[str, Verdict]:
    return {"Accepted": decide_accepted(seen.problems)}
