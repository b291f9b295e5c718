"""How an ExitPool stands: its regions, and what keeps it from being ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgetun_cluster.kinds import Object
from edgetun_core.api.conditions import ConditionType, Reason, Verdict
from edgetun_core.api.exitpool import ExitPool, RegionPlan, region_plans
from edgetun_core.problem import Problem
from edgetun_operator.decide.conditions import decide_accepted


class RegionSeen(NamedTuple):
    """A region's objects as they stand; None where there is none (yet)."""

    deployment: Object | None
    autoscaler: Object | None
    service: Object | None
    sessions: int = 0


class ObjectTrouble(NamedTuple):
    """An object that could not be made as it should be."""

    reason: str
    message: str


class CertificateTrouble(NamedTuple):
    """A certificate that visitors do not get, or not for long."""

    reason: str
    message: str
    is_serving: bool = False


def decide_pool_verdicts(
    pool: ExitPool,
    problems: Sequence[Problem],
    regions: Mapping[str, RegionSeen],
    trouble: Sequence[ObjectTrouble],
    certificates: Sequence[CertificateTrouble],
) -> dict[str, Verdict]:
    """The pool's conditions, in the order in which a person mends them."""
    accepted = decide_accepted(problems)
    if trouble and accepted.status == "True":
        accepted = Verdict("False", trouble[0].reason, "; ".join(item.message for item in trouble))
    plans = region_plans(pool.spec)
    return {
        ConditionType.ACCEPTED: accepted,
        ConditionType.CERTIFICATE_READY: _decide_certificates(certificates),
        ConditionType.NODES_AVAILABLE: _decide_nodes(plans, regions),
        ConditionType.ADDRESS_READY: _decide_addresses(plans, regions),
        ConditionType.SCALING_ACTIVE: _decide_scaling(plans, regions),
    }


def _decide_certificates(trouble: Sequence[CertificateTrouble]) -> Verdict:
    if not trouble:
        return Verdict("True", Reason.CERTIFICATE_VALID)
    worst = next((item for item in trouble if not item.is_serving), trouble[0])
    return Verdict("False", worst.reason, "; ".join(item.message for item in trouble))


def _decide_nodes(plans: Sequence[RegionPlan], regions: Mapping[str, RegionSeen]) -> Verdict:
    short = []
    wanted_in_all = 0
    for plan in plans:
        seen = regions.get(plan.name) or RegionSeen(None, None, None)
        wanted, available = wanted_nodes(plan, seen), available_nodes(seen)
        wanted_in_all += wanted
        if available < wanted:
            why = deployment_complaint(seen.deployment)
            short.append(f"{plan.name}: {available} of {wanted} exit nodes serve{f' ({why})' if why else ''}")
    if short:
        return Verdict("False", Reason.NODES_UNAVAILABLE, "; ".join(short))
    if not wanted_in_all:
        return Verdict("True", Reason.SCALED_TO_ZERO, "no region wants an exit node")
    return Verdict("True", Reason.NODES_AVAILABLE)


def _decide_addresses(plans: Sequence[RegionPlan], regions: Mapping[str, RegionSeen]) -> Verdict:
    without = []
    for plan in plans:
        seen = regions.get(plan.name) or RegionSeen(None, None, None)
        if region_addresses(plan, seen):
            continue
        if plan.service.type == "LoadBalancer":
            without.append(f"{plan.name}: no load balancer has given the Service an address yet")
        else:
            without.append(
                f"{plan.name}: the Service cannot tell where it is reached; write service.addresses with the nodes' names"
            )
    if without:
        return Verdict("False", Reason.ADDRESS_PENDING, "; ".join(without))
    return Verdict("True", Reason.ADDRESS_ASSIGNED)


def _decide_scaling(plans: Sequence[RegionPlan], regions: Mapping[str, RegionSeen]) -> Verdict:
    scaled = [plan for plan in plans if plan.autoscaling is not None]
    if not scaled:
        return Verdict("True", Reason.SCALING_OFF, "the number of exit nodes is fixed")
    unknown = []
    for plan in scaled:
        seen = regions.get(plan.name)
        conditions = _conditions(seen.autoscaler if seen is not None else None)
        active = conditions.get("ScalingActive")
        if active is None:
            unknown.append(f"{plan.name}: the autoscaler has not been looked at yet")
        elif active.get("status") == "False" and active.get("reason") != "ScalingDisabled":
            return Verdict("False", Reason.METRICS_UNAVAILABLE, f"{plan.name}: {active.get('message', '')}")
    if unknown:
        return Verdict("Unknown", Reason.PENDING, "; ".join(unknown))
    return Verdict("True", Reason.SCALING_ACTIVE)


# --- numbers -----------------------------------------------------------------------------------------------------------


def wanted_nodes(plan: RegionPlan, seen: RegionSeen) -> int:
    """How many exit nodes there should be now."""
    if plan.autoscaling is None:
        return plan.replicas
    for obj, where, field in ((seen.autoscaler, "status", "desiredReplicas"), (seen.deployment, "spec", "replicas")):
        value = int(((obj or {}).get(where) or {}).get(field) or 0)
        if value:
            return max(value, plan.autoscaling.min_replicas)
    return plan.autoscaling.min_replicas


def available_nodes(seen: RegionSeen) -> int:
    """How many serve."""
    return int(((seen.deployment or {}).get("status") or {}).get("availableReplicas") or 0)


def deployment_complaint(deployment: Object | None) -> str:
    """What the Deployment says is wrong: pods that cannot be made, or that take too long."""
    conditions = _conditions(deployment)
    failure = conditions.get("ReplicaFailure")
    if failure is not None and failure.get("status") == "True":
        return str(failure.get("message", ""))
    progressing = conditions.get("Progressing")
    if progressing is not None and progressing.get("status") == "False":
        return str(progressing.get("message", ""))
    return ""


def region_addresses(plan: RegionPlan, seen: RegionSeen) -> list[dict[str, Any]]:
    """Where visitors and agents reach the region, as `status.regions[].addresses` says it."""
    service = plan.service
    hosts: list[str] = list(service.addresses)
    ports = {"httpPort": service.ports.http, "httpsPort": service.ports.https, "tunnelPort": service.ports.tunnel}
    ports["quicPort"] = service.ports.tunnel
    if service.type == "NodePort":
        ports = _node_ports(seen.service)
        if not ports:
            return []
    elif service.type == "LoadBalancer" and not hosts:
        status: dict[str, Any] = (seen.service or {}).get("status") or {}
        given: list[dict[str, str]] = (status.get("loadBalancer") or {}).get("ingress") or []
        hosts = [str(entry.get("hostname") or entry.get("ip") or "") for entry in given]
    return [{"host": host, **ports} for host in hosts[:32] if host]


_PORT_FIELDS = {"http": "httpPort", "https": "httpsPort", "tunnel": "tunnelPort", "tunnel-quic": "quicPort"}


def _node_ports(service: Object | None) -> dict[str, int]:
    ports = ((service or {}).get("spec") or {}).get("ports") or ()
    return {
        _PORT_FIELDS[port["name"]]: int(port["nodePort"])
        for port in ports
        if port.get("name") in _PORT_FIELDS and port.get("nodePort")
    }


def build_pool_numbers(pool: ExitPool, regions: Mapping[str, RegionSeen], tunnels: int) -> dict[str, Any]:
    """The status without its conditions."""
    rows: list[dict[str, Any]] = []
    for plan in region_plans(pool.spec):
        seen = regions.get(plan.name) or RegionSeen(None, None, None)
        wanted, available = wanted_nodes(plan, seen), available_nodes(seen)
        complaint = deployment_complaint(seen.deployment) if available < wanted else ""
        rows.append(
            {
                "name": plan.name,
                "desired": wanted,
                "available": available,
                "sessions": seen.sessions,
                "addresses": region_addresses(plan, seen),
                "reason": Reason.NODES_UNAVAILABLE if available < wanted else "",
                "message": complaint[:1024],
            }
        )
    return {
        "regionNames": ",".join(row["name"] for row in rows),
        "desired": sum(row["desired"] for row in rows),
        "available": sum(row["available"] for row in rows),
        "sessions": sum(row["sessions"] for row in rows),
        "tunnels": tunnels,
        "regions": rows,
    }


def _conditions(obj: Object | None) -> dict[str, Mapping[str, Any]]:
    return {item["type"]: item for item in ((obj or {}).get("status") or {}).get("conditions") or ()}
