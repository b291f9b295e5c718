"""An exit node's metrics, read from the plain counters when somebody scrapes. Names follow OpenMetrics.

Cardinality is bounded: at most `MAX_TUNNELS` tunnels have series of their own, the rest are summed as `tunnel="(other)"`;
no label holds anything a visitor can choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from edgetun_core import __version__
from edgetun_exitnode.observe.counters import Histogram, TunnelCounters

if TYPE_CHECKING:
    from edgetun_exitnode.mesh.mesh import Mesh
    from edgetun_exitnode.node import ExitNode

MAX_TUNNELS = 500
OTHER = "(other)"


def collect_exit_node(node: ExitNode) -> Iterable[Metric]:
    """Every metric of a node. Runs on the scrape's thread and only reads integers."""
    info = GaugeMetricFamily("edgetun_exitnode_info", "What runs here.", labels=["version", "node"])
    info.add_metric([__version__, node.name], 1)
    yield info
    yield from _front(node)
    yield from _tunnels(node)
    yield from _streams(node)
    yield from _sessions(node)
    yield from _udp_buffers(node)
    yield from _cache(node)
    yield from _compression(node)
    if node.mesh is not None:
        yield from _mesh(node.mesh)


def _mesh(mesh: Mesh) -> Iterator[Metric]:
    yield _gauge("edgetun_mesh_peers", "Other exit nodes that are known.", len(mesh.holders.peers))
    yield _gauge("edgetun_mesh_links", "Sessions with other exit nodes open now.", mesh.links)
    yield _counter("edgetun_mesh_dials_failed", "Exit nodes that could not be reached.", mesh.dials_failed)
    yield _counter("edgetun_mesh_asked", "Rounds of asking who holds a tunnel.", mesh.asked_total)
    yield _counter(
        "edgetun_mesh_copies_wanted", "Keys that others were asked for copies of.", mesh.siblings.asked_total
    )
    yield _counter("edgetun_mesh_copies_found", "Copies that others had.", mesh.siblings.found_total)
    yield _gauge("edgetun_mesh_outliers", "Exit nodes that are left out now: failing, or slow.", len(mesh.outliers.out))
    yield _counter("edgetun_mesh_ejections", "Times that an exit node was left out.", mesh.outliers.ejected_total)
    yield _counter(
        "edgetun_mesh_rate_reports", "Reports of what visitors used of their rates.", mesh.sharing.reports_total
    )
    yield _counter("edgetun_mesh_served", "Requests taken from other exit nodes.", mesh.served_total)


def _front(node: ExitNode) -> Iterator[Metric]:
    counters = node.context.counters
    yield _gauge("edgetun_visitor_connections", "Visitors' connections open now.", counters.connections_open)
    yield _counter("edgetun_visitor_connections_accepted", "Visitors' connections taken.", counters.connections_total)
    yield _counter("edgetun_visitor_connections_refused", "Refused for a limit.", counters.connections_refused)
    yield _counter(
        "edgetun_visitor_connections_evicted", "Idle connections closed to make room.", counters.connections_evicted
    )
    yield _gauge("edgetun_requests_per_second", "Visitors answered per second of late.", node.requests_per_second())
    responses = CounterMetricFamily("edgetun_visitor_responses", "Responses by class of status.", labels=["class"])
    for hundreds, count in enumerate(counters.responses):
        if hundreds:
            responses.add_metric([f"{hundreds}xx"], count)
    yield responses
    yield _counter("edgetun_visitor_responses_aborted", "Broken off after the head.", counters.responses_aborted)
    yield _counter("edgetun_visitor_requests_malformed", "Refused by the parser.", counters.requests_malformed)
    yield _counter("edgetun_visitor_requests_timed_out", "Heads and bodies too slow.", counters.requests_timed_out)
    traffic = CounterMetricFamily("edgetun_visitor_bytes", "Bytes to and from visitors.", labels=["direction"])
    traffic.add_metric(["in"], counters.bytes_in)
    traffic.add_metric(["out"], counters.bytes_out)
    yield traffic
    yield _counter("edgetun_http2_connections", "Visitors' connections that spoke HTTP/2.", counters.h2_connections)
    yield _counter(
        "edgetun_http2_connections_broken",
        "HTTP/2 connections ended for what the visitor did against the rules or the limits.",
        counters.h2_connections_broken,
    )
    yield _counter(
        "edgetun_http2_streams_reset", "HTTP/2 requests that the visitor cancelled.", counters.h2_streams_reset
    )
    yield _counter("edgetun_tls_handshakes", "TLS handshakes done.", counters.tls_handshakes)
    yield _counter("edgetun_tls_handshake_failures", "TLS handshakes failed.", counters.tls_handshake_failures)
    yield _counter("edgetun_http3_connections", "HTTP/3 connections taken.", counters.http3_connections)
    yield _counter("edgetun_http3_requests", "Requests answered over HTTP/3.", counters.http3_requests)
    yield _counter("edgetun_quic_migrations", "Visitors' connections that changed address.", counters.quic_migrations)
    yield _counter("edgetun_early_data_requests", "Requests that came in early data.", counters.early_data_requests)
    yield _counter("edgetun_early_data_refused", "Of these, answered with 425.", counters.early_data_refused)
    resets = sum(front.resets_sent for front in node.http3_fronts)
    yield _counter("edgetun_quic_resets", "Connections of others ended by a stateless reset.", resets)
    retries = sum(front.retries_sent for front in node.http3_fronts)
    yield _counter("edgetun_quic_retries", "Visitors asked to prove their address first.", retries)
    yield _counter("edgetun_requests_without_tunnel", "For no known host.", node.router.requests_without_tunnel)


def _tunnels(node: ExitNode) -> Iterator[Metric]:
    rows: dict[str, list[TunnelCounters]] = {}
    for tunnel, plan in sorted(node.router.table.plans.items()):
        label = tunnel if len(rows) < MAX_TUNNELS else OTHER
        rows.setdefault(label, []).append(plan.counters)
    families = {
        name: CounterMetricFamily(f"edgetun_tunnel_{name}", help_text, labels=["tunnel"])
        for name, help_text in (
            ("requests", "Requests of visitors."),
            ("forwarded", "Requests sent down a session."),
            ("relayed", "Requests sent to another exit node."),
            ("refused", "Requests refused for a limit."),
            ("retried", "Requests asked again on another session."),
            ("failed", "Requests that a session or the origin failed."),
            ("no_session", "Requests that found no agent."),
        )
    }
    seconds = HistogramMetricFamily(
        "edgetun_tunnel_upstream_seconds", "From forwarding a request to its response head.", labels=["tunnel"]
    )
    for label, counted in rows.items():
        for name, family in families.items():
            family.add_metric([label], sum(getattr(counters, name) for counters in counted))
        total = Histogram()
        for counters in counted:
            total.add(counters.upstream_seconds)
        seconds.add_metric([label], total.cumulative(), total.total)
    yield from families.values()
    yield seconds


def _streams(node: ExitNode) -> Iterator[Metric]:
    """TCP and UDP tunnels; `edgetun_tunnel_*` count their connections and flows as requests."""
    plans = sorted(node.streams.plans.plans.items())
    rows = [(tunnel if number < MAX_TUNNELS else OTHER, plan.state) for number, (tunnel, plan) in enumerate(plans)]
    open_now: dict[str, int] = {}
    for label, state in rows:
        open_now[label] = open_now.get(label, 0) + state.open
    gauge = GaugeMetricFamily("edgetun_stream_open", "TCP connections and UDP flows open now.", labels=["tunnel"])
    for label, count in open_now.items():
        gauge.add_metric([label], count)
    yield gauge
    for name, help_text in (
        ("connections", "TCP connections and UDP flows that were let in."),
        ("refused", "Refused for a limit."),
        ("idle", "Closed since nothing came for too long."),
        ("reset_by_visitor", "TCP connections that the visitor broke off."),
        ("reset_by_origin", "TCP connections that the local service, its agent or the session to it broke off."),
        ("bytes_in", "Bytes from visitors."),
        ("bytes_out", "Bytes to visitors."),
        ("datagrams_in", "Datagrams from visitors."),
        ("datagrams_out", "Datagrams to visitors."),
        ("dropped", "Datagrams that a full queue or a refused flow did not take."),
        ("datagrams_too_large", "Datagrams larger than the tunnel or the path takes."),
    ):
        family = CounterMetricFamily(f"edgetun_stream_{name}", help_text, labels=["tunnel"])
        sums: dict[str, int] = {}
        for label, state in rows:
            sums[label] = sums.get(label, 0) + getattr(state.counters, name)
        for label, count in sums.items():
            family.add_metric([label], count)
        yield family
    ways = CounterMetricFamily("edgetun_datagrams", "Datagrams to agents by their way.", labels=["way"])
    counted = node.acceptor.datagrams
    for way in ("by_datagram", "in_halves", "by_lane", "dropped", "late"):
        ways.add_metric([way.rpartition("_")[2]], getattr(counted, way))
    yield ways
    yield _gauge(
        "edgetun_stream_ports_unavailable",
        "Ports of tunnels that another program has, or that may not be used.",
        len(node.streams.problems),
    )
    yield _counter(
        "edgetun_proxy_headers_wrong", "Connections of trusted proxies without a header.", node.streams.wrong_headers
    )


def _sessions(node: ExitNode) -> Iterator[Metric]:
    acceptor = node.acceptor
    by_transport: dict[str, int] = {"quic": 0, "tls": 0}
    slowest: dict[str, float] = {}
    for runner in acceptor.runners:
        by_transport[runner.transport] = by_transport.get(runner.transport, 0) + 1
        slowest[runner.transport] = max(slowest.get(runner.transport, 0.0), runner.rtt_s or 0.0)
    sessions = GaugeMetricFamily("edgetun_sessions", "Sessions of agents open now.", labels=["transport"])
    rtt = GaugeMetricFamily(
        "edgetun_session_rtt_max_seconds", "Round trip of the farthest agent.", labels=["transport"]
    )
    for transport, count in by_transport.items():
        sessions.add_metric([transport], count)
        if transport in slowest:
            rtt.add_metric([transport], slowest[transport])
    yield sessions
    yield rtt
    yield _counter("edgetun_sessions_opened", "Sessions that were let in.", acceptor.opened_total)
    yield _counter("edgetun_sessions_refused", "Sessions that were not.", acceptor.refused_total)
    yield _counter(
        "edgetun_sessions_revoked", "Sessions closed because their token was revoked.", acceptor.revoked_total
    )
    yield _counter(
        "edgetun_sessions_taken_over",
        "Sessions closed because their agent connected anew and they did not answer.",
        acceptor.taken_over_total,
    )


def _udp_buffers(node: ExitNode) -> Iterator[Metric]:
    buffers = GaugeMetricFamily(
        "edgetun_udp_receive_buffer_bytes",
        "What the kernel gives UDP sockets for receiving, the smallest; below 7.5 MB packets are lost at high speed (net.core.rmem_max).",
        labels=["use"],
        unit="bytes",
    )
    sessions = [size for one in node.listeners if (size := getattr(one, "udp_buffer_bytes", 0))]
    visitors = [front.udp_buffer_bytes for front in node.http3_fronts]
    for use, given in (("sessions", sessions), ("visitors", visitors)):
        if given:
            buffers.add_metric([use], min(given))
    yield buffers


def _cache(node: ExitNode) -> Iterator[Metric]:
    store = node.store
    yield _gauge("edgetun_cache_bytes", "Bytes of stored responses.", store.stored_bytes)
    yield _gauge("edgetun_cache_max_bytes", "Bytes that may be stored.", store.max_bytes)
    yield _gauge("edgetun_cache_entries", "Stored responses.", store.entry_count)
    yield _counter("edgetun_cache_evictions", "Responses put out to make room.", store.stats.evictions)
    stats = tuple(node.cache_stats.values())
    yield _counter(
        "edgetun_cache_validations",
        "Requests that asked the origin whether what is stored still holds.",
        sum(one.validations for one in stats),
    )
    yield _counter(
        "edgetun_cache_validated", "Of these, the ones answered by 304.", sum(one.validated for one in stats)
    )
    if store.disk is not None:
        yield _gauge("edgetun_cache_disk_bytes", "Bytes of stored responses on disk.", store.disk.stored_bytes)
        yield _gauge("edgetun_cache_disk_entries", "Stored responses on disk.", store.disk.entry_count)
        yield _counter("edgetun_cache_disk_reads", "Stored responses read back from disk.", store.disk.reads)
        yield _counter(
            "edgetun_cache_disk_refused", "Responses the disk was too slow or small for.", store.disk.refused
        )
    outcomes = CounterMetricFamily("edgetun_cache_requests", "Requests by how they were answered.", labels=["outcome"])
    for outcome, count in node.cache_outcomes():
        outcomes.add_metric([outcome], count)
    yield outcomes


def _compression(node: ExitNode) -> Iterator[Metric]:
    stats = node.compressor.stats
    bodies = CounterMetricFamily("edgetun_compression_responses", "Responses compressed here.", labels=["coding"])
    for coding, count in stats.bodies.items():
        bodies.add_metric([coding.decode()], count)
    yield bodies
    volume = CounterMetricFamily("edgetun_compression_bytes", "Their bytes before and after.", labels=["side"])
    volume.add_metric(["before"], stats.bytes_in)
    volume.add_metric(["after"], stats.bytes_out)
    yield volume
    yield _counter("edgetun_compression_shared", "Responses whose compressed body was there already.", stats.shared)
    yield _counter(
        "edgetun_compression_refused", "Left as they were for want of room.", node.compressor.encoders.refused
    )
    yield _gauge(
        "edgetun_compression_kept_bytes", "Bytes of compressed bodies kept.", node.compressor.encodings.size_bytes
    )


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(name, help_text, value=value)
