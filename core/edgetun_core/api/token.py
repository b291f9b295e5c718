"""AgentToken: lets agents serve tunnels of its namespace, until it ends or is deleted."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from edgetun_core.api.meta import Column, Resource, Timestamp, ready_columns
from edgetun_core.api.model import Rule, RuledModel, repeated
from edgetun_core.api.names import Domain, ObjectName, check_tunnel_pattern
from edgetun_core.api.status import Status

TUNNEL_PATTERN: str = r"^[a-z0-9*]([-a-z0-9.*]*[a-z0-9*])?$"
TIMESTAMP_PATTERN: str = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"

TunnelPattern = Annotated[
    str,
    Field(max_length=253),
    AfterValidator(check_tunnel_pattern),
    WithJsonSchema({"type": "string", "pattern": TUNNEL_PATTERN, "minLength": 1, "maxLength": 253}),
]
End = Annotated[
    Timestamp,
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": TIMESTAMP_PATTERN, "maxLength": 20}),
]


class AgentTokenSpec(RuledModel):
    """What agents with this token may serve."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"ttl", "expiresAfter", "addresses", "pools", "regions", "rotate", "rotation", "maxAgents", "adhoc"}
    )

    tunnels: list[TunnelPattern] = Field(
        default_factory=list,
        max_length=64,
        description="Names of tunnels in the token's namespace; `*` stands for any run of characters. Empty: all of them.",
        examples=[["shop", "preview-*"]],
    )
    hostnames: list[Domain] = Field(
        default_factory=list,
        max_length=64,
        description="Hostnames that may be served: a name, `*.` for exactly one more label, or `*`. Empty: all that the tunnels name.",
        examples=[["*.preview.example.com"]],
    )
    expires: End | None = Field(
        default=None,
        description="When the token ends, in UTC; left out: never.",
        examples=["2027-01-31T00:00:00Z"],
    )
    secret_name: ObjectName | None = Field(
        default=None,
        description="Secret that the token is written to (key `token`); left out: the resource's name and `-token`.",
        examples=["laptop-token"],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.tunnels.all(a, self.tunnels.exists_one(b, b == a))",
            "a tunnel is listed twice",
            lambda spec: repeated(spec.tunnels, "tunnels"),
        ),
    )


class AgentTokenStatus(Status):
    """How the token stands. It holds a hash only; the token itself is in the Secret."""

    token_id: str = Field(default="", max_length=64, description="Public id of the token, as logs show it.")
    secret_hash: str = Field(default="", max_length=128, description="Hash of the token's secret.")
    secret_name: str = Field(default="", max_length=253, description="Secret that holds the token.")
    last_used: str | None = Field(
        default=None,
        max_length=40,
        description="When an agent last registered with it, to the minute or so.",
        json_schema_extra={"format": "date-time"},
    )
    agents: int = Field(default=0, ge=0, description="Agents that are connected with it.")


class AgentToken(Resource):
    """A credential for agents, limited to tunnels of its namespace."""

    plural: ClassVar[str] = "agenttokens"
    short_names: ClassVar[tuple[str, ...]] = ("at",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("Expires", ".spec.expires", description="When the token ends."),
        Column("Last-Used", ".status.lastUsed", "date", "How long ago an agent last registered with it."),
        Column("Secret", ".status.secretName", description="Secret that holds the token.", wide=True),
        *ready_columns(),
    )

    kind: Literal["AgentToken"] = Field(default="AgentToken", description="`AgentToken`.")
    spec: AgentTokenSpec = Field(default_factory=AgentTokenSpec, description="What agents with this token may serve.")
    status: AgentTokenStatus | None = Field(default=None, description="Written by edgetun.")

    @property
    def secret_name(self) -> str:
        """Name of the Secret that the token is written to."""
        return self.spec.secret_name or f"{self.metadata.name}-token"
