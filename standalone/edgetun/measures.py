"""The admin listener of an edge in one process: the exit node's metrics, and its origins' where the agent is here too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgetun_core.admin import AdminServer, start_admin

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from edgetun_agent.serve import Origins
    from edgetun_exitnode.node import ExitNode


def start_node_admin(host: str, port: int, node: ExitNode, origins: Origins | None) -> AdminServer:
    """Serves /metrics, /healthz and /readyz."""

    def collect() -> Iterable[Metric]:
        from edgetun_exitnode.observe.metrics import collect_exit_node

        yield from collect_exit_node(node)
        if origins is not None:
            from edgetun_agent.metrics import collect_origins

            yield from collect_origins(origins)

    def ready() -> tuple[bool, dict[str, Any]]:
        return node.readiness()

    return start_admin(host, port, collect, ready)
