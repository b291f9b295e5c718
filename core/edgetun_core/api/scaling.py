"""How many exit nodes a region has, and how visitors and agents reach them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from edgetun_core.api.model import ApiModel, Broken, Rule, RuledModel
from edgetun_core.api.names import Domain, LabelKey, Network
from edgetun_core.api.pods import Annotations, Labels
from edgetun_core.api.quantities import Duration
from edgetun_core.quantities import quoted

MAX_REPLICAS: Final = 1000

Replicas = Annotated[int, Field(ge=0, le=MAX_REPLICAS)]
Port = Annotated[int, Field(ge=1, le=65535)]
Percent = Annotated[int, Field(ge=1, le=1000)]


# --- autoscaling -------------------------------------------------------------------------------------------------------


class ScalingPace(ApiModel):
    """How fast the number of exit nodes may change in one direction. The larger of `pods` and `percent` counts."""

    stabilization: Duration = Field(
        default=0.0, le=3600, description="How long the need must last; whole seconds.", examples=["5m"]
    )
    pods: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = Field(default=4, description="Exit nodes per period.")
    percent: Percent | None = Field(default=None, description="Share of those there are per period.", examples=[100])
    period: Duration = Field(default=15.0, ge=1, le=1800, description="The period; whole seconds.")


class SlowPace(ScalingPace):
    """The same with a slow default: a node that goes drains its visitors first."""

    stabilization: Duration = Field(default=300.0, le=3600, description="How long the lull must last; whole seconds.")
    pods: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = Field(default=1, description="Exit nodes per period.")
    period: Duration = Field(
        default=60.0, ge=1, le=1800, description="The period; whole seconds. Not shorter than drains take."
    )


class ScalingBehavior(ApiModel):
    """How fast the number of exit nodes follows the load."""

    scale_up: ScalingPace = Field(default_factory=ScalingPace, description="Towards more.")
    scale_down: SlowPace = Field(default_factory=SlowPace, description="Towards fewer.")


def _min_below_max(scaling: Autoscaling) -> Iterator[Broken]:
    if scaling.min_replicas > scaling.max_replicas:
        yield Broken(("minReplicas",), f"is more than maxReplicas ({scaling.max_replicas}); write at most that")


class Autoscaling(RuledModel):
    """The number of exit nodes follows their load (HorizontalPodAutoscaler). The measure that asks for most wins."""

    reserved: ClassVar[frozenset[str]] = frozenset({"memory", "metrics", "wake", "schedule", "bandwidth"})

    min_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = Field(default=1, description="Never fewer.")
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = Field(default=10, description="Never more.")
    cpu: Percent = Field(default=70, description="CPU to aim for, in percent of what a node requests.")
    sessions: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Agents' sessions per exit node to aim for; needs a metrics adapter (`edgetun_sessions`).",
        examples=[500],
    )
    requests_per_second: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None,
        description="Requests per second and exit node to aim for; needs a metrics adapter (`edgetun_requests_per_second`).",
        examples=[5000],
    )
    behavior: ScalingBehavior = Field(default_factory=ScalingBehavior, description="How fast it follows.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.minReplicas <= self.maxReplicas", "minReplicas is more than maxReplicas", _min_below_max),
    )


# --- being reached -----------------------------------------------------------------------------------------------------


class ServicePorts(ApiModel):
    """Ports that visitors and agents use; of each node with `HostPort`."""

    http: Port = Field(default=80, description="Plain HTTP.")
    https: Port = Field(default=443, description="HTTPS over TCP, and UDP 443 beside it.")
    tunnel: Port = Field(default=7443, description="Agents, over TCP and UDP.")


class NodePorts(ApiModel):
    """Ports of every node of the cluster with `NodePort`; left out: Kubernetes chooses."""

    http: Port | None = Field(default=None, description="Plain HTTP.", examples=[30080])
    https: Port | None = Field(default=None, description="HTTPS.", examples=[30443])
    tunnel: Port | None = Field(default=None, description="Agents, over TCP and UDP.", examples=[30743])

    @property
    def are_given(self) -> bool:
        return (self.http, self.https, self.tunnel) != (None, None, None)


_ADDRESS_PATTERN: Final = r"^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45})$"
_address = re.compile(_ADDRESS_PATTERN, re.ASCII)


def _check_address(value: str) -> str:
    if len(value) > 253 or not _address.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not a name or an address; write eu.example.com, 192.0.2.1 or 2001:db8::1")
    return value


Address = Annotated[
    str,
    AfterValidator(_check_address),
    WithJsonSchema({"type": "string", "pattern": _ADDRESS_PATTERN, "minLength": 1, "maxLength": 253}),
]


class ServiceSpec(ApiModel):
    """How a region's exit nodes are reached. A region's block is laid over the pool's, field by field."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"clusterIP", "ipFamilies", "ipFamilyPolicy", "gateway", "proxyProtocol", "healthCheckNodePort"}
    )

    type: Literal["LoadBalancer", "NodePort", "HostPort"] = Field(
        default="LoadBalancer",
        description=(
            "`LoadBalancer`: an address from the cluster's provider; `NodePort`: ports of every node; `HostPort`: the ports "
            "themselves on the nodes where exit nodes run, one exit node per node."
        ),
    )
    ports: ServicePorts = Field(
        default_factory=ServicePorts, description="Ports of the Service, or of the nodes with `HostPort`."
    )
    node_ports: NodePorts = Field(default_factory=NodePorts, description="With `NodePort`: which ports.")
    addresses: list[Address] = Field(
        default_factory=list,
        max_length=16,
        description="Names or addresses by which the region is reached, when the Service cannot tell (NodePort, HostPort).",
        examples=[["eu.example.com"]],
    )
    dns_names: list[Domain] = Field(
        default_factory=list,
        max_length=64,
        description="Names that external-dns points at the region (`external-dns.alpha.kubernetes.io/hostname`).",
        examples=[["*.tunnels.example.com"]],
    )
    labels: Labels = Field(default_factory=dict, description="Labels of the Service, beside edgetun's own.")
    annotations: Annotations = Field(default_factory=dict, description="Annotations of the Service.")
    external_traffic_policy: Literal["Local", "Cluster"] = Field(
        default="Local",
        description="`Local` keeps visitors' addresses; `Cluster` spreads over all nodes and loses them.",
    )
    load_balancer_class: LabelKey | None = Field(
        default=None, description="Which load balancer, where there are several."
    )
    load_balancer_source_ranges: list[Network] = Field(
        default_factory=list,
        max_length=64,
        description="Only visitors from these networks.",
        examples=[["192.0.2.0/24"]],
    )
