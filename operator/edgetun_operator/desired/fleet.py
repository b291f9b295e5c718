"""What every region's objects have in common: the installation's facts, names, ports, paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from edgetun_cluster.kinds import EXIT_POOL, Kind, Object
from edgetun_core.api.exitpool import ExitPool, RegionPlan
from edgetun_core.api.streams import numbers
from edgetun_operator.desired.labels import exit_labels, owner_reference

HTTP_PORT: Final = 8080
HTTPS_PORT: Final = 8443
TUNNEL_PORT: Final = 7443
ADMIN_PORT: Final = 9090
CONTROL_PORT: Final = 7444
RELAY_PORT: Final = 7445
"""Of exit nodes, for each other: by the pod's address, through no Service."""

CONFIG_FOLDER: Final = "/etc/edgetun"
CERTIFICATE_FOLDER: Final = "/etc/edgetun-certificates"
IDENTITY_FOLDER: Final = "/var/run/secrets/edgetun.dev"
STATE_FOLDER: Final = "/var/lib/edgetun"

USER_ID: Final = 65532

DEREGISTER_S: Final = 5
"""How long a pod waits before it drains, until load balancers and proxies have heard that it goes."""
SHUTDOWN_S: Final = 10
"""What a pod gets beyond its drain before it is killed."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The installation, as far as it shows in exit nodes' objects."""

    namespace: str
    image: str
    pull_policy: str = ""
    pull_secrets: tuple[str, ...] = ()
    control: str = ""
    """Where exit nodes reach control, such as "https://edgetun-control.edgetun-system.svc:7444"."""
    ca_pem: str = ""
    """The own CA's certificate, by which they know control."""
    http3: bool = False
    """Whether exit nodes serve HTTP/3, on UDP 443."""
    log_level: str = "info"
    labels: Mapping[str, str] = field(default_factory=dict)
    """More labels of every object, as the installation wants them."""


class Desired(NamedTuple):
    """One object that should be there."""

    kind: Kind
    object: Object

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])


def stream_ports(pool: ExitPool) -> list[tuple[str, int]]:
    """Ports that the pool gives to TCP and UDP tunnels, each with `"tcp"` or `"udp"`."""
    ports = pool.spec.ports
    return [(kind, port) for kind in ("tcp", "udp") for port in numbers(ports.ranges(kind))]


def region_name(pool: str, region: str) -> str:
    """Name of a region's objects."""
    return f"edgetun-exit-{pool}-{region}"


def metadata(pool: ExitPool, region: str, fleet: Fleet, name: str = "", **more: Any) -> Object:
    """Metadata of an object of the pool, or of one of its regions."""
    pool_name = pool.metadata.name
    return {
        "name": name or region_name(pool_name, region),
        "namespace": fleet.namespace,
        "labels": {**fleet.labels, **exit_labels(pool_name, region)},
        "ownerReferences": [owner_reference(EXIT_POOL, pool_name, pool.metadata.uid)],
        **more,
    }


class RegionInputs(NamedTuple):
    """Everything that a region's objects are built from."""

    pool: ExitPool
    plan: RegionPlan
    fleet: Fleet
    certificate_secrets: tuple[str, ...]
    """Secrets of type kubernetes.io/tls that are there, for visitors."""

    @property
    def name(self) -> str:
        return region_name(self.pool.metadata.name, self.plan.name)
