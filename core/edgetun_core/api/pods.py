"""What people may say about the pods of exit nodes: placement, resources, environment. Kubernetes' own words and forms."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from edgetun_core.api.meta import OWN_LABELS
from edgetun_core.api.model import ApiModel, Rule, RuledModel, repeated
from edgetun_core.api.names import EnvName, LabelKey, LabelValue, ObjectName, check_quantity
from edgetun_core.quantities import quoted

QUANTITY_PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

Quantity = Annotated[
    str | int,
    PlainValidator(check_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 32}),
]
ResourceName = Annotated[str, Field(max_length=128, pattern=r"^[a-zA-Z0-9]([-a-zA-Z0-9_./]*[a-zA-Z0-9])?$")]


def _not_ours(labels: dict[str, str]) -> dict[str, str]:
    for key in labels:
        if key.startswith(OWN_LABELS):
            raise ValueError(f"{quoted(key)} is written by edgetun; remove it")
    return labels


Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64), AfterValidator(_not_ours)]
Annotations = Annotated[dict[LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
NodeSelector = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]


class Toleration(ApiModel):
    """A taint that the pods tolerate."""

    key: str = Field(default="", max_length=316, description="Taint key; empty with `Exists`: every taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How `value` is compared.")
    value: str = Field(default="", max_length=63, description="Taint value.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        default="", description="Taint effect; empty: every effect."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        default=None, description="How long `NoExecute` is tolerated."
    )


class PodResources(ApiModel):
    """What one exit node asks for and may use."""

    requests: dict[ResourceName, Quantity] = Field(
        default_factory=dict, max_length=16, description="What is set aside.", examples=[{"cpu": "500m"}]
    )
    limits: dict[ResourceName, Quantity] = Field(
        default_factory=dict, max_length=16, description="What is never exceeded.", examples=[{"memory": "1Gi"}]
    )


class EnvVar(ApiModel):
    """A variable of the exit node's environment."""

    name: EnvName = Field(description="Its name.", examples=["EDGETUN_LOG_LEVEL"])
    value: str = Field(default="", max_length=4096, description="Its value.")


class PullSecret(ApiModel):
    """A Secret with a registry's credentials."""

    name: ObjectName = Field(description="Name of the Secret, in edgetun's namespace.", examples=["registry"])


class PodTemplate(RuledModel):
    """Changes to the pods of exit nodes. A region's block is laid over the pool's, field by field."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"metadata", "spec", "securityContext", "volumes", "initContainers", "containers", "serviceAccountName",
         "runtimeClassName", "schedulerName", "dnsPolicy", "hostNetwork", "sidecars", "volumeMounts"}
    )  # fmt: skip

    labels: Labels = Field(default_factory=dict, description="Labels of the pods, beside edgetun's own.")
    annotations: Annotations = Field(default_factory=dict, description="Annotations of the pods.")
    node_selector: NodeSelector = Field(
        default_factory=dict,
        description="Labels of the nodes that the pods may run on.",
        examples=[{"topology.kubernetes.io/region": "eu-west-1"}],
    )
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32, description="Taints tolerated.")
    affinity: dict[str, Any] = Field(
        default_factory=dict,
        description="Affinity, in the form that pods have it.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    resources: PodResources = Field(default_factory=PodResources, description="CPU and memory of one exit node.")
    env: list[EnvVar] = Field(
        default_factory=list,
        max_length=64,
        description="More environment of the exit node.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    image: str = Field(default="", max_length=512, description="Image of the exit node; empty: the installed one.")
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = Field(
        default="", description="When the image is pulled; empty: Kubernetes' own rule."
    )
    image_pull_secrets: list[PullSecret] = Field(
        default_factory=list,
        max_length=16,
        description="Credentials for the image's registry.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "",
            "two variables have the same name",
            lambda pod: repeated([variable.name for variable in pod.env], "env", "name"),
        ),
    )


class TopologySpread(ApiModel):
    """How exit nodes of a region are spread, so that one failure does not take all of them."""

    topology_key: LabelKey = Field(
        description="Label of nodes that tells places apart.", examples=["kubernetes.io/hostname"]
    )
    max_skew: Annotated[int, Field(ge=1, le=100)] = Field(default=1, description="How uneven it may be.")
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = Field(
        default="ScheduleAnyway", description="Whether a pod that cannot be spread so waits."
    )
