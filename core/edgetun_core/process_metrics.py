"""What every process tells of itself beside its own metrics: memory, file descriptors, threads, tasks (where these grow, something
leaks), and what its UDP sockets had no room for.

Runs on a scrape's thread and only reads: `/proc` (nothing of that elsewhere than on Linux), and the event loop's set of tasks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from edgetun_core.transport.udp_health import udp_drops

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry


def register_process(registry: CollectorRegistry, loop: asyncio.AbstractEventLoop | None) -> None:
    """Adds the process's numbers to a registry; tasks are those of `loop`."""
    ProcessCollector(registry=registry)
    registry.register(_Process(loop))


class _Process:
    """The numbers that prometheus_client does not have."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("edgetun_threads", "Threads of the interpreter.", value=threading.active_count())
        if self._loop is not None:
            # all_tasks copies the set, and tries again when the loop changed it meanwhile
            tasks = asyncio.all_tasks(self._loop)
            yield GaugeMetricFamily("edgetun_event_loop_tasks", "Tasks that have not ended.", value=len(tasks))
        yield CounterMetricFamily(
            "edgetun_udp_receive_drops",
            "Datagrams that the kernel lost since the receive buffer of a UDP socket was full; raise net.core.rmem_max.",
            value=udp_drops(),
        )
