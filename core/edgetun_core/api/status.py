"""What every status has: the generation that was looked at, and conditions."""

from __future__ import annotations

from pydantic import Field

from edgetun_core.api.conditions import Condition
from edgetun_core.api.model import StatusModel


class Status(StatusModel):
    """Base of the kinds' status."""

    observed_generation: int = Field(default=0, ge=0, description="Generation of the resource that was looked at.")
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        description="How the resource stands, question by question.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
