"""Which kinds there are on the API server, and where each stands in its paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from edgetun_core.api.meta import API_VERSION

Object = dict[str, Any]
"""An object as the API server has it."""


class Key(NamedTuple):
    """Which object of a kind: `namespace` is empty for kinds without namespaces."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Kind(NamedTuple):
    """One kind of object. `optional`: clusters exist that do not serve it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True
    optional: bool = False

    @property
    def root(self) -> str:
        """The path of its group and version."""
        return f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"

    @property
    def group(self) -> str:
        """Its group; empty for the core group."""
        return self.api_version.partition("/")[0] if "/" in self.api_version else ""

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of an object, of a namespace's collection, or of the whole collection."""
        parts = [self.root]
        if self.namespaced and namespace:
            parts.append(f"namespaces/{quote(namespace, safe='')}")
        elif self.namespaced and name:
            raise ValueError(f"{self.kind} {name}: objects of this kind have a namespace")
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def path_of(self, obj: Mapping[str, Any], subresource: str = "") -> str:
        """The path of the object that `obj` is or names."""
        meta = obj["metadata"]
        return self.path(meta.get("namespace", ""), meta["name"], subresource)

    def __str__(self) -> str:
        return self.kind


def key_of(obj: Mapping[str, Any]) -> Key:
    """Namespace and name of an object."""
    meta = obj["metadata"]
    return Key(meta.get("namespace", ""), meta["name"])


CONFIG_MAP: Final = Kind("v1", "ConfigMap", "configmaps")
EVENT: Final = Kind("v1", "Event", "events")
NAMESPACE: Final = Kind("v1", "Namespace", "namespaces", namespaced=False)
NODE: Final = Kind("v1", "Node", "nodes", namespaced=False)
POD: Final = Kind("v1", "Pod", "pods")
SECRET: Final = Kind("v1", "Secret", "secrets")
SERVICE: Final = Kind("v1", "Service", "services")
SERVICE_ACCOUNT: Final = Kind("v1", "ServiceAccount", "serviceaccounts")
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
HORIZONTAL_POD_AUTOSCALER: Final = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
POD_DISRUPTION_BUDGET: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY: Final = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
TOKEN_REVIEW: Final = Kind("authentication.k8s.io/v1", "TokenReview", "tokenreviews", namespaced=False)

CERTIFICATE: Final = Kind("cert-manager.io/v1", "Certificate", "certificates", optional=True)
POD_METRICS: Final = Kind("metrics.k8s.io/v1beta1", "PodMetrics", "pods", optional=True)
CUSTOM_METRICS: Final = Kind("custom.metrics.k8s.io/v1beta1", "MetricValueList", "pods", optional=True)

EXIT_POOL: Final = Kind(API_VERSION, "ExitPool", "exitpools", namespaced=False)
TUNNEL: Final = Kind(API_VERSION, "Tunnel", "tunnels")
AGENT_TOKEN: Final = Kind(API_VERSION, "AgentToken", "agenttokens")
AGENT: Final = Kind(API_VERSION, "Agent", "agents")
HOSTNAME_RESERVATION: Final = Kind(API_VERSION, "HostnameReservation", "hostnamereservations", namespaced=False)
