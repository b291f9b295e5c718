"""The agent's metrics, read from plain ints when somebody scrapes. Names follow OpenMetrics; runs on the admin's threads.

Cardinality is bounded by configuration: one `origin` label per origin of the agent's tunnels, at most `MAX_ORIGINS`, the rest
summed as `(other)`; kinds of errors are those of the one table in `errors.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from edgetun_agent.origin.health import HealthState
from edgetun_agent.udp_memory import STATES
from edgetun_core import __version__

if TYPE_CHECKING:
    from edgetun_agent.connect import Agent
    from edgetun_agent.serve import Origins

MAX_ORIGINS = 200
OTHER = "(other)"


def collect_agent(agent: Agent, origins: Origins) -> Iterable[Metric]:
    """Every metric of an agent process."""
    info = GaugeMetricFamily("edgetun_agent_info", "What runs here.", labels=["version"])
    info.add_metric([__version__], 1)
    yield info
    sessions = GaugeMetricFamily("edgetun_agent_sessions", "Sessions open now.", labels=["transport"])
    open_now = {"quic": 0, "tls": 0}
    views = agent.sessions
    for view in views:
        open_now[view.transport] = open_now.get(view.transport, 0) + 1
    for transport, count in open_now.items():
        sessions.add_metric([transport], count)
    yield sessions
    paths = GaugeMetricFamily(
        "edgetun_agent_paths",
        "Sessions by how their transport stands to the best one: on it (preferred), on another since QUIC does not get through "
        "(fallback), or while QUIC shows how well it is (recovering).",
        labels=["state"],
    )
    for state in STATES:
        paths.add_metric([state], sum(view.path == state for view in views))
    yield paths
    rtts = [view.rtt_s for view in views if view.rtt_s is not None]
    if rtts:
        yield GaugeMetricFamily(
            "edgetun_agent_session_rtt_seconds", "Round trip of the nearest session.", value=min(rtts), unit="seconds"
        )
        yield GaugeMetricFamily(
            "edgetun_agent_keep_alive_seconds",
            "How long a session's path is left silent, the shortest: as long as the NATs on the way were seen to bear.",
            value=min(view.keep_alive_s for view in views),
            unit="seconds",
        )
    yield CounterMetricFamily(
        "edgetun_agent_bindings_lost", "Times that a NAT on the way forgot a silent path.", value=agent.bindings_lost
    )
    buffers = [view.udp_buffer_bytes for view in views if view.udp_buffer_bytes]
    if buffers:
        yield GaugeMetricFamily(
            "edgetun_udp_receive_buffer_bytes",
            "What the kernel gives the UDP sockets of sessions for receiving, the smallest; below 7.5 MB packets are lost at high "
            "speed (net.core.rmem_max).",
            value=min(buffers),
            unit="bytes",
        )
    counters = agent.counters
    yield CounterMetricFamily("edgetun_agent_sessions_opened", "Sessions opened.", value=counters.sessions_opened)
    yield CounterMetricFamily("edgetun_agent_reconnects", "Sessions lost.", value=counters.reconnects)
    yield CounterMetricFamily(
        "edgetun_agent_connect_failures", "Attempts that came to nothing.", value=counters.connect_failures
    )
    yield CounterMetricFamily(
        "edgetun_agent_transport_fallbacks", "Sessions on TLS since QUIC did not open.", value=counters.fallbacks
    )
    yield CounterMetricFamily(
        "edgetun_agent_transport_returns", "Sessions that went back to QUIC.", value=counters.returns
    )
    probes = CounterMetricFamily(
        "edgetun_agent_quic_probes", "Probes of QUIC while it was in doubt.", labels=["result"]
    )
    for answered, count in counters.probes.items():
        probes.add_metric(["answered" if answered else "silent"], count)
    yield probes
    yield from collect_origins(origins)


def collect_origins(origins: Origins) -> Iterator[Metric]:
    """The metrics of the origins alone, as a process that holds them without sessions shows them."""
    requests: dict[str, int] = defaultdict(int)
    responses: dict[tuple[str, str], int] = defaultdict(int)
    errors: dict[tuple[str, str], int] = defaultdict(int)
    traffic: dict[tuple[str, str], int] = defaultdict(int)
    gauges: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    cancelled: dict[str, int] = defaultdict(int)
    connects: dict[str, int] = defaultdict(int)
    repeated: dict[str, int] = defaultdict(int)
    datagrams = {"dropped": 0, "too_large": 0}
    for client in origins.clients:
        for name in datagrams:
            datagrams[name] += getattr(client, name, 0)
    udp = CounterMetricFamily(
        "edgetun_agent_datagrams_lost", "Datagrams that did not go to a UDP service.", labels=["why"]
    )
    for why, count in datagrams.items():
        udp.add_metric([why], count)
    yield udp
    for number, client in enumerate(origins.clients):
        name = client.service if number < MAX_ORIGINS else OTHER
        counters = client.counters
        requests[name] += counters.requests
        for hundreds, count in enumerate(counters.statuses):
            if hundreds:
                responses[name, f"{hundreds}xx"] += count
        for label, count in dict(counters.errors).items():
            errors[name, label] += count
        traffic[name, "received"] += counters.bytes_received
        traffic[name, "sent"] += counters.bytes_sent
        cancelled[name] += counters.cancelled
        connects[name] += counters.connects
        repeated[name] += counters.repeated
        gauges["in_flight"][name] += client.in_flight
        gauges["connections"][name] += client.connections
        if client.health.state is not HealthState.UNKNOWN:
            gauges["up"][name] = int(client.health.state is HealthState.UP)

    yield _counter("requests", "Requests given to origins.", requests)
    yield _counter("responses", "Responses of origins by class of status.", responses, "class")
    yield _counter("errors", "Requests that origins did not answer, by kind of error.", errors, "kind")
    yield _counter("cancelled", "Requests whose visitor left.", cancelled)
    yield _counter("bytes", "Bytes of bodies from and to origins.", traffic, "direction")
    yield _counter("connects", "Connections opened to origins.", connects)
    yield _counter("repeated", "Requests sent again because a kept connection was dead.", repeated)
    yield _gauge("requests_in_flight", "Requests under way.", gauges["in_flight"])
    yield _gauge("connections", "Connections open now.", gauges["connections"])
    yield _gauge("up", "Whether the origin answers.", gauges["up"])


def _counter(name: str, help_text: str, values: dict[str, int] | dict[tuple[str, str], int], label: str = "") -> Metric:
    family = CounterMetricFamily(f"edgetun_origin_{name}", help_text, labels=["origin", label] if label else ["origin"])
    for key, value in values.items():
        family.add_metric([key] if isinstance(key, str) else list(key), value)
    return family


def _gauge(name: str, help_text: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"edgetun_origin_{name}", help_text, labels=["origin"])
    for origin, value in values.items():
        family.add_metric([origin], value)
    return family
