"""ExitPool: a fleet of exit nodes under one name, its regions, the hostnames it may serve, its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from edgetun_core.api.certificates import Certificate
from edgetun_core.api.meta import Column, Resource, ready_columns
from edgetun_core.api.model import ApiModel, Broken, Location, Rule, RuledModel, StatusModel, repeated, told_above
from edgetun_core.api.names import PERCENTAGE_PATTERN, Domain, Label, Network, check_count_or_percent
from edgetun_core.api.pods import NodeSelector, PodTemplate, TopologySpread
from edgetun_core.api.policies import overlay
from edgetun_core.api.quantities import Bytes, Duration
from edgetun_core.api.scaling import Autoscaling, Replicas, ServiceSpec
from edgetun_core.api.status import Status
from edgetun_core.api.streams import PoolPorts
from edgetun_core.quantities import quoted

MAX_POOL_NAME = 30
MAX_REGION_NAME = 24
"""Together they fit a Service's name (63) with a prefix."""


CountOrPercent = Annotated[
    str | int,
    PlainValidator(check_count_or_percent),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": PERCENTAGE_PATTERN,
            "maxLength": 4,
            "minimum": 1,
            "maximum": 1000,
        }
    ),
]


def _usual_spread() -> list[TopologySpread]:
    return [TopologySpread(topology_key=f"{key}") for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")]


def one_way_to_scale(model: Region | ExitPoolSpec) -> Iterator[Broken]:
    """Both, a fixed number and a number that follows the load, would contradict each other."""
    if model.replicas is not None and model.autoscaling is not None:
        yield Broken(("replicas",), "stands beside autoscaling; keep one of them")


class Region(RuledModel):
    """One place where the pool has exit nodes, and what is different there."""

    reserved: ClassVar[frozenset[str]] = frozenset({"template", "location", "capacity", "cluster", "weight", "zones"})
    laid_over: ClassVar[frozenset[str]] = frozenset({"service", "pod_template"})

    name: Label = Field(max_length=MAX_REGION_NAME, description="Name of the region.", examples=["eu-west"])
    replicas: Replicas | None = Field(
        default=None,
        description="A fixed number of exit nodes here, without autoscaling; 0 empties the region.",
        examples=[3],
    )
    autoscaling: Autoscaling | None = Field(default=None, description="Instead of `spec.autoscaling`, as a whole.")
    service: ServiceSpec = Field(default_factory=ServiceSpec, description="What differs from `spec.service`.")
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="What differs from `spec.podTemplate`.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("!has(self.replicas) || !has(self.autoscaling)", "say either replicas or autoscaling", one_way_to_scale),
    )


def _names_fit_from(allowed: AllowedNamespaces) -> Iterator[Broken]:
    if allowed.from_ != "Selector" and (allowed.names or allowed.match_labels):
        where = "names" if allowed.names else "matchLabels"
        yield Broken((where,), f"has no effect with from {allowed.from_}; write from: Selector, or remove it")
    elif allowed.from_ == "Selector" and not (allowed.names or allowed.match_labels):
        yield Broken((), "selects no namespace; write names or matchLabels, or from: All")


class AllowedNamespaces(RuledModel):
    """Whose tunnels the pool serves. Files without a cluster know no labels: there `matchLabels` selects every namespace."""

    reserved: ClassVar[frozenset[str]] = frozenset({"matchExpressions", "selector"})

    from_: Literal["All", "Same", "Selector"] = Field(
        default="All",
        alias="from",
        description="`All` namespaces, the `Same` as edgetun's own, or those that `names` or `matchLabels` select.",
    )
    names: list[Label] = Field(
        default_factory=list, max_length=256, description="Namespaces by name.", examples=[["team-a"]]
    )
    match_labels: NodeSelector = Field(
        default_factory=dict, description="Namespaces by label; all of them must fit.", examples=[{"edge": "public"}]
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.from == 'Selector') == ((has(self.names) && size(self.names) > 0)"
            " || (has(self.matchLabels) && size(self.matchLabels) > 0))",
            "names or matchLabels go with from Selector, and only with it",
            _names_fit_from,
        ),
    )


class DisruptionBudget(ApiModel):
    """How many exit nodes of a region may be away at one time for upkeep of the cluster (PodDisruptionBudget)."""

    enabled: bool = Field(default=True, description="Whether there is one.")
    max_unavailable: CountOrPercent = Field(
        default=1, description="At most so many, or such a share.", examples=["25%"]
    )


class NetworkPolicySwitch(ApiModel):
    """A NetworkPolicy: visitors and agents reach the exit nodes' ports, nobody anything else."""

    enabled: bool = Field(default=True, description="Whether there is one.")


class PoolLimits(ApiModel):
    """Bounds of every exit node of the pool."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "maxSessions",
            "maxTunnels",
            "bandwidth",
            "maxRequestBodyBytes",
            "keepAlive",
            "timeouts",
            "maxSessionsPerAgent",
        }
    )

    max_connections: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        default=15_000,
        description="Visitors' connections; beyond it the longest idle one makes room, and when none is idle the newcomer gets 503.",
    )
    max_connections_per_address: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        default=2_000, description="Connections per IPv4 address or IPv6 /64, loopback exempt; 0: no bound."
    )
    max_request_head_bytes: Bytes = Field(
        default=32 * 1024, ge=4096, le=1 << 20, description="Larger request heads are refused with 431."
    )
    max_request_fields: Annotated[int, Field(ge=16, le=10_000)] = Field(
        default=128, description="Requests with more field lines are refused with 431."
    )
    cache_bytes: Bytes = Field(
        default=256 * 1024 * 1024, le=1 << 44, description="Memory for stored responses; 0: nothing is stored."
    )
    cache_bytes_per_tunnel: Bytes = Field(
        default=0,
        le=1 << 44,
        description=(
            "The most that one tunnel may hold of `cacheBytes`, also while the rest is free; 0: no bound. Without one a tunnel that "
            "holds less than half an equal share loses nothing to another."
        ),
        examples=["64Mi"],
    )
    cache_disk_bytes: Bytes = Field(
        default=0,
        le=1 << 50,
        description=(
            "Disk for stored responses beside the memory, so that a restarted exit node does not begin with an empty cache; 0: none. "
            "On a cluster an emptyDir of this size, which outlives a container and not its pod."
        ),
        examples=["20Gi"],
    )


def _node_ports_need_their_type(spec: ExitPoolSpec) -> Iterator[Broken]:
    blocks: list[tuple[Location, ServiceSpec, ServiceSpec]] = [(("service",), spec.service, spec.service)]
    blocks += [
        (("regions", index, "service"), region.service, overlay(spec.service, region.service))
        for index, region in enumerate(spec.regions)
        if region.service.model_fields_set
    ]
    for where, said, whole in blocks:
        if said.node_ports.are_given and whole.type != "NodePort":
            yield Broken(
                (*where, "nodePorts"), f"has no effect with type {whole.type}; write type: NodePort, or remove it"
            )


def _node_ports_belong_to_one_region(spec: ExitPoolSpec) -> Iterator[Broken]:
    if spec.service.node_ports.are_given and len(spec.regions) > 1:
        yield Broken(
            ("service", "nodePorts"), "cannot be the same for several regions; write it in regions[].service.nodePorts"
        )


_NODE_PORTS_GIVEN = "(has({0}.http) || has({0}.https) || has({0}.tunnel))"


class ExitPoolSpec(RuledModel):
    """Where the pool's exit nodes stand and what they may serve."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "namespaceSelector", "template", "image", "mesh", "dns", "externalDns", "network", "listeners", "issuer",
            "issuerRef", "access", "waf", "timeouts", "logging", "tracing", "capacity", "nodeSelector", "default",
            "compression", "http2", "http3",
        }
    )  # fmt: skip

    regions: list[Region] = Field(
        min_length=1,
        max_length=64,
        description="The pool's regions; at least one.",
        examples=["[{name: eu-west}]"],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    domains: list[Domain] = Field(
        min_length=1,
        max_length=256,
        description="Hostnames that tunnels may claim: `shop.example.com`, `*.example.com` (exactly one more label), or `*` for any.",
        examples=[["*.tunnels.example.com"]],
    )
    certificates: list[Certificate] = Field(
        default_factory=list,
        max_length=64,
        description="Certificates for visitors. Other hosts get one from edgetun's own CA.",
    )
    ports: PoolPorts = Field(
        default_factory=PoolPorts, description="Ports that TCP and UDP tunnels may take; none by default."
    )
    trusted_proxies: list[Network] = Field(
        default_factory=list,
        max_length=64,
        description=(
            "Networks of load balancers before the exit nodes that say by PROXY protocol (v1 or v2) who a visitor is. What "
            "comes from them must begin with it; nobody else's is read."
        ),
        examples=[["10.0.0.0/8"]],
    )
    limits: PoolLimits = Field(default_factory=PoolLimits, description="Bounds of every exit node.")
    allowed_namespaces: AllowedNamespaces = Field(
        default_factory=AllowedNamespaces, description="Namespaces whose tunnels may use the pool."
    )
    replicas: Replicas | None = Field(
        default=None,
        description="A fixed number of exit nodes per region, without autoscaling; neither: 1.",
        examples=[2],
    )
    autoscaling: Autoscaling | None = Field(
        default=None, description="How many exit nodes every region has, by load.", examples=["{minReplicas: 2}"]
    )
    service: ServiceSpec = Field(default_factory=ServiceSpec, description="How every region's exit nodes are reached.")
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Changes to the pods of every region.")
    topology_spread: list[TopologySpread] = Field(
        default_factory=_usual_spread,
        max_length=8,
        description="How exit nodes of a region are spread; by default over zones, then over nodes, where that is possible.",
    )
    disruption_budget: DisruptionBudget = Field(
        default_factory=DisruptionBudget, description="How many may be away at one time for upkeep."
    )
    network_policy: NetworkPolicySwitch = Field(
        default_factory=NetworkPolicySwitch, description="Whether only the ports that are needed can be reached."
    )
    drain: Duration = Field(
        default=30.0, ge=1, le=3600, description="How long requests in flight may take to end when an exit node goes."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "",
            "two regions have the same name",
            lambda spec: repeated([region.name for region in spec.regions], "regions", "name"),
        ),
        Rule(
            "self.domains.all(a, self.domains.exists_one(b, b == a))",
            "a domain is listed twice",
            lambda spec: repeated(spec.domains, "domains"),
        ),
        Rule("!has(self.replicas) || !has(self.autoscaling)", "say either replicas or autoscaling", one_way_to_scale),
        Rule(
            f"self.service.type == 'NodePort' || !{_NODE_PORTS_GIVEN.format('self.service.nodePorts')}",
            "service.nodePorts has no effect without type NodePort",
            _node_ports_need_their_type,
        ),
        Rule(
            "self.regions.all(r, !has(r.service) || !has(r.service.nodePorts)"
            f" || !{_NODE_PORTS_GIVEN.format('r.service.nodePorts')}"
            " || (has(r.service.type) ? r.service.type : self.service.type) == 'NodePort')",
            "nodePorts of a region has no effect without type NodePort",
            told_above,
        ),
        Rule(
            f"size(self.regions) == 1 || !{_NODE_PORTS_GIVEN.format('self.service.nodePorts')}",
            "service.nodePorts cannot be the same for several regions",
            _node_ports_belong_to_one_region,
        ),
    )


class RegionAddress(StatusModel):
    """Where a region is reached. A port of 0 is not offered."""

    host: str = Field(description="Name or address.", max_length=253)
    http_port: int = Field(default=0, ge=0, le=65535, description="Plain HTTP.")
    https_port: int = Field(default=0, ge=0, le=65535, description="HTTPS.")
    tunnel_port: int = Field(default=0, ge=0, le=65535, description="Agents over TCP.")
    quic_port: int = Field(default=0, ge=0, le=65535, description="Agents over UDP.")


class RegionStatus(StatusModel):
    """How one region stands."""

    name: str = Field(description="Name of the region.", max_length=MAX_REGION_NAME)
    desired: int = Field(default=0, ge=0, description="Exit nodes wanted.")
    available: int = Field(default=0, ge=0, description="Exit nodes that serve.")
    sessions: int = Field(default=0, ge=0, description="Agents' sessions.")
    addresses: list[RegionAddress] = Field(
        default_factory=list, max_length=32, description="Where visitors and agents reach it."
    )
    reason: str = Field(default="", max_length=128, description="Why it is not as wanted.")
    message: str = Field(default="", max_length=1024, description="The same for people.")


class ExitPoolStatus(Status):
    """How the pool stands."""

    region_names: str = Field(default="", max_length=2048, description="Names of the regions, for `kubectl get`.")
    desired: int = Field(default=0, ge=0, description="Exit nodes wanted, in all regions.")
    available: int = Field(default=0, ge=0, description="Exit nodes that serve, in all regions.")
    sessions: int = Field(default=0, ge=0, description="Agents' sessions, in all regions.")
    tunnels: int = Field(default=0, ge=0, description="Tunnels that the pool serves.")
    regions: list[RegionStatus] = Field(
        default_factory=list,
        max_length=64,
        description="Region by region.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


def _short_name(pool: ExitPool) -> Iterator[Broken]:
    name = pool.metadata.name
    if len(name) > MAX_POOL_NAME or "." in name:
        yield Broken(
            ("metadata", "name"),
            f"{quoted(name)} is no name for an exit pool; write at most {MAX_POOL_NAME} characters without '.'",
        )


class ExitPool(Resource, RuledModel):
    """A fleet of exit nodes: the edge that visitors reach."""

    namespaced: ClassVar[bool] = False
    plural: ClassVar[str] = "exitpools"
    short_names: ClassVar[tuple[str, ...]] = ("xp",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("Regions", ".status.regionNames", description="Regions of the pool."),
        Column("Desired", ".status.desired", "integer", "Exit nodes wanted."),
        Column("Available", ".status.available", "integer", "Exit nodes that serve."),
        Column("Sessions", ".status.sessions", "integer", "Agents' sessions."),
        *ready_columns(),
    )

    kind: Literal["ExitPool"] = Field(default="ExitPool", description="`ExitPool`.")
    spec: ExitPoolSpec = Field(
        description="Where the pool's exit nodes stand and what they may serve.",
        examples=["{regions: [...], domains: [...]}"],
    )
    status: ExitPoolStatus | None = Field(default=None, description="Written by edgetun.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"size(self.metadata.name) <= {MAX_POOL_NAME} && !self.metadata.name.contains('.')",
            f"an exit pool's name has at most {MAX_POOL_NAME} characters and no '.'",
            _short_name,
        ),
    )


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """One region with what the pool says for all of them: `replicas` counts where `autoscaling` is None."""

    name: str
    replicas: int
    autoscaling: Autoscaling | None
    service: ServiceSpec
    pod_template: PodTemplate


def region_plans(spec: ExitPoolSpec) -> tuple[RegionPlan, ...]:
    """Every region as it is to be, in the order of the resource."""
    return tuple(_region_plan(spec, region) for region in spec.regions)


def _region_plan(spec: ExitPoolSpec, region: Region) -> RegionPlan:
    replicas, autoscaling = region.replicas, region.autoscaling
    if replicas is None and autoscaling is None:
        replicas, autoscaling = spec.replicas, spec.autoscaling
    return RegionPlan(
        name=region.name,
        replicas=1 if replicas is None else replicas,
        autoscaling=autoscaling,
        service=overlay(spec.service, region.service),
        pod_template=overlay(spec.pod_template, region.pod_template),
    )
