"""All objects of an ExitPool, in the order in which they are applied."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from edgetun_cluster.kinds import CONFIG_MAP, SERVICE_ACCOUNT
from edgetun_core.api.exitpool import ExitPool, region_plans
from edgetun_operator.desired.certificates import build_certificates
from edgetun_operator.desired.deployment import build_deployment
from edgetun_operator.desired.fleet import Desired, Fleet, RegionInputs, metadata
from edgetun_operator.desired.reaching import build_network_policy, build_service
from edgetun_operator.desired.scaling import build_autoscaler, build_disruption_budget


def build_pool(pool: ExitPool, fleet: Fleet, certificate_secrets: Iterable[str] = ()) -> tuple[Desired, ...]:
    """Everything that should be there for the pool. `certificate_secrets` are those that pods can mount now."""
    secrets = tuple(certificate_secrets)
    found = list(build_certificates(pool, fleet))
    for plan in region_plans(pool.spec):
        found.extend(build_region(RegionInputs(pool, plan, fleet, secrets)))
    return tuple(found)


def build_region(inputs: RegionInputs) -> Iterable[Desired]:
    """What one region has. What pods need comes before them."""
    pool, plan, fleet = inputs.pool, inputs.plan, inputs.fleet
    meta = metadata(pool, plan.name, fleet)
    config = {"ca.crt": fleet.ca_pem}
    yield Desired(SERVICE_ACCOUNT, {"metadata": meta, "automountServiceAccountToken": False})
    yield Desired(CONFIG_MAP, {"metadata": meta, "data": config})
    if pool.spec.network_policy.enabled:
        yield build_network_policy(inputs)
    yield build_service(inputs)
    yield build_deployment(inputs, digest(config))
    if plan.autoscaling is not None:
        yield build_autoscaler(inputs, plan.autoscaling)
    if pool.spec.disruption_budget.enabled:
        yield build_disruption_budget(inputs)


def digest(value: Any) -> str:
    """A short digest of a JSON-like value, the same for equal values."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]
