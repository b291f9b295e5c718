"""What every resource begins with: group and version, kind, metadata under Kubernetes' name rules."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, NamedTuple

from pydantic import AfterValidator, Field

from edgetun_core.api.model import ApiModel
from edgetun_core.api.names import Label, ObjectName
from edgetun_core.quantities import quoted

GROUP: Final = "edgetun.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "edgetun.dev/v1alpha1"
DEFAULT_NAMESPACE: Final = "default"
OWN_LABELS: Final = ("edgetun.dev/", "app.kubernetes.io/")
"""Beginnings of the labels that edgetun writes itself; the selectors of its objects rest on them."""


def _check_timestamp(value: str) -> str:
    # Kubernetes always writes UTC to the second, so that timestamps compare as text.
    digits = value.translate(str.maketrans("123456789", "000000000"))
    if not value.isascii() or digits != "0000-00-00T00:00:00Z":
        raise ValueError(f"{quoted(value)} is not a time; write it in UTC, such as 2026-01-31T12:00:00Z")
    return value


Timestamp = Annotated[str, AfterValidator(_check_timestamp)]


class Metadata(ApiModel):
    """Who a resource is. Fields that a cluster fills in are accepted, so that `kubectl get -o yaml` can be read back."""

    name: ObjectName = Field(
        description="Name of the resource, unique among its kind (in its namespace).", examples=["shop"]
    )
    namespace: Label = Field(
        default=DEFAULT_NAMESPACE, description="Namespace of the resource. Exit pools have none; it is ignored there."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels, for selecting resources.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Notes that edgetun does not read.")
    creation_timestamp: Timestamp | None = Field(
        default=None,
        description="When the cluster stored the resource. The oldest resource keeps a hostname that two claim.",
    )
    uid: str = Field(default="", description="Written by the cluster.")
    resource_version: str = Field(default="", description="Written by the cluster.")
    generation: int = Field(default=0, description="Written by the cluster.")
    generate_name: str = Field(default="", description="Written by the cluster.")
    deletion_timestamp: Timestamp | None = Field(
        default=None, description="Written by the cluster when deletion began."
    )
    finalizers: list[str] = Field(default_factory=list, description="Written by controllers.")


class Column(NamedTuple):
    """A column of `kubectl get`. `wide` ones show with `-o wide` only."""

    name: str
    path: str
    type: Literal["string", "integer", "date"] = "string"
    description: str = ""
    wide: bool = False


def ready_columns() -> tuple[Column, ...]:
    """What all kinds with conditions show: whether all is well, and why not."""
    ready = '.status.conditions[?(@.type=="Ready")]'
    return (
        Column("Ready", f"{ready}.status", description="Whether all is well."),
        Column("Reason", f"{ready}.reason", description="Why it is, or is not.", wide=True),
        Column("Message", f"{ready}.message", description="The same for people.", wide=True),
    )


class Resource(ApiModel):
    """Base of the kinds."""

    namespaced: ClassVar[bool] = True
    plural: ClassVar[str] = ""
    """Name in the API's paths and of the CRD."""
    short_names: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()
    """What `kubectl get` prints, besides the name; `Age` comes last by itself."""

    api_version: Literal["edgetun.dev/v1alpha1"] = Field(
        default=API_VERSION, description="Group and version of the resource: `edgetun.dev/v1alpha1`."
    )
    kind: str = Field(description="Kind of the resource.")
    metadata: Metadata = Field(description="Name, namespace, labels.")

    @property
    def id(self) -> str:
        """`"namespace/name"`, or `"name"` of a kind without namespaces."""
        return f"{self.metadata.namespace}/{self.metadata.name}" if self.namespaced else self.metadata.name

    @property
    def ref(self) -> str:
        """`"Tunnel team-a/shop"`, as messages name it."""
        return f"{self.kind} {self.id}"
