"""Settings of `edgetun-control`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from edgetun_core.settings import setting


@dataclass(frozen=True, slots=True)
class ControlServiceSettings:
    """Registers agents and places them, tells exit nodes what to serve. Its state is the Kubernetes API; replicas share nothing else."""

    section: ClassVar[str] = "control"

    listen: str = setting("0.0.0.0", "Address to listen on.")
    port: int = setting(7443, "Port for agents; 0 takes a free one.", minimum=0, maximum=65535)
    exit_port: int = setting(7444, "Port for exit nodes; 0 takes a free one.", minimum=0, maximum=65535)
    domain: str = setting(
        "", "Domain under which agents get names that they ask for by one label, such as tunnels.example.com."
    )
    adhoc_pool: str = setting("default", "ExitPool of the tunnels that agents make themselves.")
    control_name: tuple[str, ...] = setting(
        (), "More names of control itself, which no exit node and no tunnel may have."
    )
    namespace: str = setting(
        "", "Namespace of the system. Default: the pod's own, or that of the kubeconfig's context."
    )
    kubeconfig: Path | None = setting(
        None, "Kubeconfig, outside of a cluster. Default: $KUBECONFIG, or the pod's own account."
    )
    max_connections: int = setting(4096, "Connections of agents at one time.", minimum=1)
    wait_s: float = setting(300.0, "How long the first copy of the cluster's resources may take.")
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz and /readyz.", metavar="HOST:PORT")
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")
