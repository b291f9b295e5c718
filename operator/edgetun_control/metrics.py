"""Metrics of control. Read on the admin listener's threads: plain numbers only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgetun_control.cluster_control import ClusterControl

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def collect_control(control: ClusterControl) -> Iterable[Metric]:
    """Control's numbers now."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    def counter(name: str, text: str, value: float) -> Metric:
        return CounterMetricFamily(name, text, value=value)

    def gauge(name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(name, text, value=value)

    nodes = tuple(control.fleet.nodes.values())
    by_region = GaugeMetricFamily("edgetun_control_exit_nodes", "Exit nodes that follow.", labels=["pool", "region"])
    sessions = GaugeMetricFamily("edgetun_control_sessions", "Agents' sessions.", labels=["pool", "region"])
    behind = 0
    for pool, region in sorted({(node.name.pool, node.name.region) for node in nodes}):
        here = [node for node in nodes if (node.name.pool, node.name.region) == (pool, region)]
        by_region.add_metric([pool, region], len(here))
        sessions.add_metric([pool, region], sum(len(node.sessions) for node in here))
        behind += sum(not node.feed.is_current for node in here)
    yield by_region
    yield sessions
    yield gauge("edgetun_control_exit_nodes_behind", "Exit nodes with a change on its way to them.", behind)
    yield gauge("edgetun_control_tunnels", "Tunnels that are served.", len(control.publisher.manifest_tunnels))
    yield gauge("edgetun_control_agents", "Agents known here.", len(control.agents))
    yield counter("edgetun_control_registrations", "Agents registered or renewed.", control.control.registered_total)
    yield counter("edgetun_control_publications", "Times that something changed.", control.publisher.published_total)
    yield gauge("edgetun_control_publication_seconds", "What the last publication cost.", control.publisher.last_cost_s)
    yield counter("edgetun_control_stream_messages", "Messages to exit nodes.", control.fleet.messages_sent)
    yield counter("edgetun_control_stream_bytes", "Bytes to exit nodes.", control.fleet.bytes_sent)
    orders = CounterMetricFamily("edgetun_control_orders", "Orders to exit nodes.", labels=["order"])
    orders.add_metric(["move"], control.orders.moved_total)
    orders.add_metric(["drain"], control.orders.drained_total)
    yield orders
    yield counter("edgetun_control_identities", "Certificates issued.", control.identities.issued_total)
    yield counter("edgetun_control_identities_refused", "Certificates refused.", control.identities.refused_total)
    yield counter("edgetun_control_agents_written", "Writes of Agents.", control.agents.writes_total)
    yield counter("edgetun_control_leases_written", "Writes of agents' Leases.", control.agents.lease_writes_total)
    yield counter("edgetun_control_write_failures", "Writes that failed.", control.agents.failures_total)
    calls = CounterMetricFamily("edgetun_control_api_calls", "Calls of the Kubernetes API.", labels=["verb"])
    for verb, count in tuple(control.cluster.counters.calls.items()):
        calls.add_metric([verb], count)
    yield calls
