"""How many exit nodes a region has: the HorizontalPodAutoscaler, and the PodDisruptionBudget."""

from __future__ import annotations

from edgetun_cluster.kinds import HORIZONTAL_POD_AUTOSCALER, POD_DISRUPTION_BUDGET, Object
from edgetun_core.api.scaling import Autoscaling, ScalingPace
from edgetun_operator.desired.fleet import DEREGISTER_S, Desired, RegionInputs, metadata
from edgetun_operator.desired.labels import exit_selector
from edgetun_operator.desired.quantities import canonical_quantity

SESSIONS_METRIC = "edgetun_sessions"
REQUESTS_METRIC = "edgetun_requests_per_second"


def build_autoscaler(inputs: RegionInputs, scaling: Autoscaling) -> Desired:
    """The HPA: CPU always, sessions and requests per second where they are asked for; the one that wants most wins."""
    pool, plan = inputs.pool, inputs.plan
    metrics: list[Object] = [
        {
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": scaling.cpu}},
        }
    ]
    for name, target in ((SESSIONS_METRIC, scaling.sessions), (REQUESTS_METRIC, scaling.requests_per_second)):
        if target is not None:
            metrics.append(
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": name},
                        "target": {"type": "AverageValue", "averageValue": canonical_quantity(target)},
                    },
                }
            )
    # One step down is not taken before the drain of the step before has ended.
    drained_s = round(pool.spec.drain) + DEREGISTER_S
    return Desired(
        HORIZONTAL_POD_AUTOSCALER,
        {
            "metadata": metadata(pool, plan.name, inputs.fleet),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": inputs.name},
                "minReplicas": scaling.min_replicas,
                "maxReplicas": scaling.max_replicas,
                "metrics": metrics,
                "behavior": {
                    "scaleUp": _pace(scaling.behavior.scale_up, 1),
                    "scaleDown": _pace(scaling.behavior.scale_down, drained_s),
                },
            },
        },
    )


def build_disruption_budget(inputs: RegionInputs) -> Desired:
    """How many exit nodes of the region may be away for upkeep of the cluster."""
    pool, plan = inputs.pool, inputs.plan
    return Desired(
        POD_DISRUPTION_BUDGET,
        {
            "metadata": metadata(pool, plan.name, inputs.fleet),
            "spec": {
                "maxUnavailable": pool.spec.disruption_budget.max_unavailable,
                "selector": {"matchLabels": exit_selector(pool.metadata.name, plan.name)},
                # A node that cannot become ready must not keep its machine from being emptied.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        },
    )


def _pace(pace: ScalingPace, shortest_period_s: int) -> Object:
    period_s = min(1800, max(round(pace.period), shortest_period_s))
    policies: list[Object] = [{"type": "Pods", "value": pace.pods, "periodSeconds": period_s}]
    if pace.percent is not None:
        policies.append({"type": "Percent", "value": pace.percent, "periodSeconds": period_s})
    return {
        "stabilizationWindowSeconds": round(pace.stabilization),
        "selectPolicy": "Max",
        "policies": policies,
    }
