"""Agent: who is registered, where it is connected and how. Written by control; people read it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edgetun_core.api.meta import Column, Resource, ready_columns
from edgetun_core.api.model import ApiModel
from edgetun_core.api.names import ObjectName
from edgetun_core.api.status import Status

Text = Annotated[str, Field(max_length=253)]


class AgentSpec(ApiModel):
    """Who the agent is, as it registered."""

    agent_id: str = Field(min_length=1, max_length=63, description="The agent's own lasting name.", examples=["laptop"])
    token: ObjectName = Field(
        description="AgentToken, in the same namespace, that it registered with.", examples=["laptops"]
    )
    tunnels: list[Text] = Field(
        default_factory=list, max_length=256, description="Tunnels, in the same namespace, that it serves."
    )
    software: str = Field(default="", max_length=128, description="Its version.")


class AgentStatus(Status):
    """Where the agent is connected. Whether it still lives says its Lease (of the same name), not this."""

    pool: str = Field(default="", max_length=63, description="ExitPool that it is placed on.")
    region: str = Field(default="", max_length=63, description="Region that it is placed on.")
    placed: str = Field(
        default="",
        max_length=512,
        description="Where control wants it: `pool/region`, with several pools joined by commas.",
        examples=["default/eu-west"],
    )
    nodes: list[Text] = Field(default_factory=list, max_length=16, description="Exit nodes that it has sessions with.")
    relays: list[Text] = Field(
        default_factory=list,
        max_length=16,
        description="Where other exit nodes reach those nodes: `POOL/REGION/NODE@HOST:PORT`.",
    )
    shares: list[int] = Field(
        default_factory=list,
        max_length=16,
        description="For each of `relays`, the summed weight of the agent's sessions there, negative while it is on standby. "
        "None: 1 each.",
    )
    serves: list[Annotated[str, Field(max_length=512)]] = Field(
        default_factory=list, max_length=256, description="Tunnels, `NAMESPACE/NAME`, that its sessions serve."
    )
    transport: str = Field(default="", max_length=32, description="`quic`, `tls`, or both with a comma.")
    rtt: str = Field(
        default="", max_length=32, description="Round trip to the region when it was measured, such as `12ms`."
    )
    sessions: int = Field(default=0, ge=0, description="Sessions that it holds.")
    since: str | None = Field(
        default=None,
        max_length=40,
        description="When it connected.",
        json_schema_extra={"format": "date-time"},
    )


class Agent(Resource):
    """An agent that has registered."""

    plural: ClassVar[str] = "agents"
    short_names: ClassVar[tuple[str, ...]] = ("ea",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("Pool", ".status.pool", description="ExitPool that it is placed on."),
        Column("Region", ".status.region", description="Region that it is placed on."),
        Column("Transport", ".status.transport", description="QUIC or TLS."),
        Column("RTT", ".status.rtt", description="Round trip to the region."),
        Column("Since", ".status.since", "date", "How long it is connected."),
        Column("Placed", ".status.placed", description="Where control wants it.", wide=True),
        Column("Token", ".spec.token", description="AgentToken that it registered with.", wide=True),
        Column("Software", ".spec.software", description="Its version.", wide=True),
        *(column._replace(wide=True) for column in ready_columns()),
    )

    kind: Literal["Agent"] = Field(default="Agent", description="`Agent`.")
    spec: AgentSpec = Field(description="Who the agent is.", examples=["{agentId: laptop, token: laptops}"])
    status: AgentStatus | None = Field(default=None, description="Written by edgetun.")
