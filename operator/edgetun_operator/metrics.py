"""Metrics of the operator. Read on the admin listener's threads: plain numbers only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgetun_cluster.client import Cluster
from edgetun_operator.reconcile.apply import Applier
from edgetun_operator.reconcile.status import StatusWriter
from edgetun_operator.work import WorkQueue
from edgetun_operator.world import World

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def collect_operator(
    cluster: Cluster, world: World, queue: WorkQueue, applier: Applier, statuses: StatusWriter, is_leader: bool
) -> Iterable[Metric]:
    """The operator's numbers now."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    def counter(name: str, text: str, value: float) -> Metric:
        return CounterMetricFamily(name, text, value=value)

    yield GaugeMetricFamily("edgetun_operator_leader", "Whether this replica works.", value=float(is_leader))
    yield GaugeMetricFamily("edgetun_operator_queue", "Resources to reconcile now.", value=len(queue))
    yield GaugeMetricFamily("edgetun_operator_failing", "Resources whose last reconcile failed.", value=queue.failing)
    yield counter("edgetun_operator_reconciles", "Reconciles.", queue.done)
    yield counter("edgetun_operator_reconcile_failures", "Reconciles that failed.", queue.failed)
    yield counter("edgetun_operator_reconcile_seconds", "Seconds spent in reconciles.", queue.seconds)
    yield counter("edgetun_operator_objects_applied", "Objects written.", applier.applied)
    yield counter("edgetun_operator_objects_unchanged", "Objects found as they should be.", applier.unchanged)
    yield counter("edgetun_operator_objects_deleted", "Objects deleted.", applier.deleted)
    yield counter("edgetun_operator_statuses_written", "Statuses written.", statuses.written)
    yield counter("edgetun_operator_statuses_unchanged", "Statuses that said it already.", statuses.skipped)
    calls = CounterMetricFamily("edgetun_operator_api_calls", "Calls of the Kubernetes API.", labels=["verb"])
    for verb, count in tuple(cluster.counters.calls.items()):
        calls.add_metric([verb], count)
    yield calls
    yield counter("edgetun_operator_api_failures", "Calls that failed.", cluster.counters.failures)
    resources = GaugeMetricFamily("edgetun_operator_resources", "Resources known.", labels=["kind"])
    for informer in (world.pools, world.tunnels, world.tokens, world.agents, world.reservations):
        resources.add_metric([informer.kind.kind], len(informer))
    yield resources


def readiness(world: World) -> tuple[bool, dict[str, Any]]:
    """Ready when every copy is whole. A replica that waits for the Lease is ready, too: it would take over at once."""
    waiting = [informer.kind.plural for informer in world.informers if not informer.is_synced]
    behind = {informer.kind.plural: str(informer.last_error) for informer in world.informers if informer.last_error}
    return not waiting, {"waiting": waiting, "behind": behind}
