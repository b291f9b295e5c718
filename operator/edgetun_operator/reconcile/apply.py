"""Makes objects as they should be, and touches no others.

Each carries a digest of what was wanted when it was applied. It is applied anew when another one is wanted, or when something of
what is wanted is no longer there (drift), and else left alone: a restart rewrites nothing. An object of a wanted name that is
not ours is left alone, too, and told of.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

from edgetun_cluster.client import Cluster
from edgetun_cluster.errors import ApiAbsent, ApiRefused, Conflict, Forbidden, Invalid
from edgetun_cluster.kinds import DEPLOYMENT, Kind, Object
from edgetun_operator.desired.fleet import Desired
from edgetun_operator.desired.labels import DESIRED, HANDOVER_MANAGER, MANAGER, is_ours
from edgetun_operator.desired.pool import digest
from edgetun_operator.reconcile.compare import covers

Result = Literal["unchanged", "applied", "foreign", "leaving", "absent", "refused", "contested"]

REPAIRS_MOST: Final = 10
REPAIRS_WITHIN_S: Final = 60.0
"""Somebody who changes an object back as often as we repair it is told of, and not fought with faster than this."""


class Outcome(NamedTuple):
    """What became of one wanted object. `object` is how it stands now, when it is ours."""

    kind: Kind
    name: str
    result: Result
    message: str = ""
    object: Object | None = None


class Applier:
    """Counts what it does; `applied` growing without changes would be churn."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self.applied = 0
        self.unchanged = 0
        self.deleted = 0
        self._cluster = cluster
        self._clock = clock
        self._repairs: dict[tuple[Kind, str, str], deque[float]] = {}

    async def ensure(self, desired: Desired, owner: Kind, owner_name: str, observed: Object | None) -> Outcome:
        """Makes one object as it should be. `observed` is our local copy, None when it has none (it may be there all the same)."""
        kind, name = desired.kind, desired.name
        wanted = _stamped(desired.object)
        try:
            if observed is None:
                # Our copy holds what carries our label. What else has this name must be seen before it is overwritten.
                observed = await self._cluster.get(kind, name, wanted["metadata"].get("namespace", ""))
            if observed is not None:
                if not is_ours(observed, owner, owner_name):
                    return Outcome(kind, name, "foreign", f"{kind} {name} is there already and is not edgetun's")
                if observed["metadata"].get("deletionTimestamp"):
                    return Outcome(kind, name, "leaving", f"{kind} {name} is being deleted")
                if covers(observed, wanted):
                    self.unchanged += 1
                    return Outcome(kind, name, "unchanged", object=observed)
                if self._is_contested(kind, wanted, observed):
                    message = f"{kind} {name} is changed again and again by somebody else; find out who, and let it be"
                    return Outcome(kind, name, "contested", message, object=observed)
                await self._hand_over_replicas(kind, wanted, observed)
            self.applied += 1
            return Outcome(kind, name, "applied", object=await self._cluster.apply(kind, wanted, manager=MANAGER))
        except ApiAbsent:
            return Outcome(kind, name, "absent", f"the API server does not serve {kind.plural}.{kind.group}")
        except (Invalid, Forbidden, Conflict) as error:
            return Outcome(kind, name, "refused", f"{kind} {name}: {error.message}")
        except ApiRefused as error:
            if error.status < 500:
                return Outcome(kind, name, "refused", f"{kind} {name}: {error.message}")
            raise

    def _is_contested(self, kind: Kind, wanted: Object, observed: Object) -> bool:
        """Notes a repair of what nobody asked us to change; True when there were too many of late."""
        meta = observed["metadata"]
        if (meta.get("annotations") or {}).get(DESIRED) != wanted["metadata"]["annotations"][DESIRED]:
            return False
        now = self._clock()
        key = (kind, meta.get("namespace", ""), meta["name"])
        times = self._repairs.setdefault(key, deque(maxlen=REPAIRS_MOST))
        if len(times) == REPAIRS_MOST and now - times[0] < REPAIRS_WITHIN_S:
            return True
        times.append(now)
        return False

    async def _hand_over_replicas(self, kind: Kind, wanted: Object, observed: Object) -> None:
        """Keeps the number of pods when it becomes an autoscaler's: the field that we let go of would fall back to 1."""
        replicas = observed.get("spec", {}).get("replicas")
        if kind != DEPLOYMENT or "replicas" in wanted["spec"] or replicas is None:
            return
        meta = observed["metadata"]
        if (meta.get("annotations") or {}).get(DESIRED) == wanted["metadata"]["annotations"][DESIRED]:
            return  # only drift: the number was let go of before
        patch = {
            "metadata": {name: meta[name] for name in ("name", "namespace", "uid")},
            "spec": {"replicas": replicas},
        }
        await self._cluster.apply(kind, patch, manager=HANDOVER_MANAGER, force=True)

    async def prune(self, kind: Kind, observed: Iterable[Object], keep: Mapping[str, object] | set[str]) -> int:
        """Deletes those of our objects that are no longer wanted; the caller has chosen `observed` by owner."""
        count = 0
        for obj in observed:
            meta = obj["metadata"]
            if meta["name"] in keep or meta.get("deletionTimestamp"):
                continue
            try:
                if await self._cluster.delete(kind, meta["name"], meta.get("namespace", ""), uid=meta["uid"]):
                    count += 1
            except Conflict:
                continue  # another object by now; the watch brings it
        self.deleted += count
        return count


def _stamped(obj: Object) -> Object:
    wanted = copy.deepcopy(obj)
    meta = wanted["metadata"]
    meta["annotations"] = {**(meta.get("annotations") or {}), DESIRED: digest(obj)}
    return wanted
