"""The admin listener of an edge in one process: the exit node's metrics, and its origins' where the agent is here too."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgetun_core.admin import AdminServer
from edgetun_exitnode.observe.admin import start_exit_node_admin

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from edgetun_agent.serve import Origins
    from edgetun_exitnode.node import ExitNode


def start_node_admin(host: str, port: int, node: ExitNode, origins: Origins | None, state: Path) -> AdminServer:
    """Serves /metrics, /healthz, /readyz, and purges."""

    def collect() -> Iterable[Metric]:
        from edgetun_exitnode.observe.metrics import collect_exit_node

        yield from collect_exit_node(node)
        if origins is not None:
            from edgetun_agent.metrics import collect_origins

            yield from collect_origins(origins)

    return start_exit_node_admin(host, port, node, collect, state)
