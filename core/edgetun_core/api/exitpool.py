"""ExitPool: a fleet of exit nodes under one name, its regions, the hostnames it may serve, its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edgetun_core.api.meta import Resource
from edgetun_core.api.model import ApiModel, Broken, Rule, RuledModel, repeated
from edgetun_core.api.names import Domain, FilePath, Label
from edgetun_core.api.quantities import Bytes
from edgetun_core.quantities import quoted

MAX_POOL_NAME = 30
MAX_REGION_NAME = 24
"""Together they fit a Service's name (63) with a prefix."""


class Region(ApiModel):
    """One place where the pool has exit nodes."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"replicas", "autoscaling", "nodeSelector", "affinity", "tolerations", "template", "service", "location", "capacity", "minReplicas", "maxReplicas", "cluster"}
    )  # fmt: skip

    name: Label = Field(max_length=MAX_REGION_NAME, description="Name of the region.", examples=["eu-west"])


class CertificateFiles(ApiModel):
    """A certificate for visitors, from files; which hosts it is for stands in it."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"secretName", "secretRef", "issuerRef", "acme", "hosts", "hostnames"}
    )

    cert_file: FilePath = Field(description="PEM file with the certificate and its chain.", examples=["certs/shop.pem"])
    key_file: FilePath = Field(description="PEM file with the private key.", examples=["certs/shop.key"])


class PoolLimits(ApiModel):
    """Bounds of every exit node of the pool."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "maxSessions",
            "maxTunnels",
            "cacheDiskBytes",
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


class ExitPoolSpec(RuledModel):
    """Where the pool's exit nodes stand and what they may serve."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "allowedNamespaces", "namespaceSelector", "autoscaling", "template", "podTemplate", "service", "image", "mesh", "dns",
            "externalDns", "network", "networkPolicy", "ports", "listeners", "issuer", "issuerRef", "access", "waf", "timeouts",
            "replicas", "logging", "tracing", "capacity", "drain", "nodeSelector", "default", "compression", "http2", "http3",
        }
    )  # fmt: skip

    regions: list[Region] = Field(
        min_length=1, max_length=64, description="The pool's regions; at least one.", examples=["[{name: eu-west}]"]
    )
    domains: list[Domain] = Field(
        min_length=1,
        max_length=256,
        description="Hostnames that tunnels may claim: `shop.example.com`, `*.example.com` (exactly one more label), or `*` for any.",
        examples=[["*.tunnels.example.com"]],
    )
    certificates: list[CertificateFiles] = Field(
        default_factory=list,
        max_length=256,
        description="Certificates for visitors, when exit nodes run without a cluster. Other hosts get one from the development CA.",
    )
    limits: PoolLimits = Field(default_factory=PoolLimits, description="Bounds of every exit node.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.regions.all(a, self.regions.exists_one(b, b.name == a.name))",
            "two regions have the same name",
            lambda spec: repeated([region.name for region in spec.regions], "regions", "name"),
        ),
        Rule(
            "self.domains.all(a, self.domains.exists_one(b, b == a))",
            "a domain is listed twice",
            lambda spec: repeated(spec.domains, "domains"),
        ),
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

    kind: Literal["ExitPool"] = Field(default="ExitPool", description="`ExitPool`.")
    spec: ExitPoolSpec = Field(
        description="Where the pool's exit nodes stand and what they may serve.",
        examples=["{regions: [...], domains: [...]}"],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"size(self.metadata.name) <= {MAX_POOL_NAME} && !self.metadata.name.contains('.')",
            f"an exit pool's name has at most {MAX_POOL_NAME} characters and no '.'",
            _short_name,
        ),
    )
