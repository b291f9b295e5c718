"""Settings of `edgetun-operator`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from edgetun_core.settings import REQUIRED, setting


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Makes what custom resources ask for: exit nodes' Deployments and Services, tokens' Secrets, everybody's status."""

    section: ClassVar[str] = "operator"

    exit_image: str = setting(REQUIRED, "Image of exit nodes.", metavar="IMAGE")
    exit_image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = setting(
        "", "When exit nodes' image is pulled; empty: Kubernetes' own rule."
    )
    exit_image_pull_secret: tuple[str, ...] = setting(
        (), "Secret with the credentials of exit nodes' registry.", metavar="NAME"
    )
    exit_log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level that exit nodes log.")
    http3: bool = setting(True, "Have exit nodes serve HTTP/3 and offer UDP 443 beside TCP 443.")
    control_url: tuple[str, ...] = setting(
        (),
        "Where agents reach control; written into every token. Default: control's Service, which only agents inside the cluster reach.",
        metavar="URL",
    )
    control_for_nodes: str = setting(
        "", "Where exit nodes reach control. Default: control's Service, port 7444.", metavar="URL"
    )
    control_name: tuple[str, ...] = setting(
        (), "More names and addresses for control's certificate, beside those of its Service and of the URLs."
    )
    reclaim_policy: Literal["Delete", "Retain"] = setting(
        "Retain", "What reservations say that the operator makes: whether a hostname outlives its tunnel."
    )
    namespace: str = setting(
        "", "Namespace of the system. Default: the pod's own, or that of the kubeconfig's context."
    )
    kubeconfig: Path | None = setting(
        None, "Kubeconfig, outside of a cluster. Default: $KUBECONFIG, or the pod's own account."
    )
    leader_elect: bool = setting(True, "Let only one of several replicas work, by the Lease edgetun-operator.")
    identity: str = setting("", "This replica's name in the Lease. Default: the host's name and a random part.")
    workers: int = setting(4, "Resources reconciled at one time.", minimum=1, maximum=64)
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz and /readyz.", metavar="HOST:PORT")
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")
