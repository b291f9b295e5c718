"""Conditions of resources: their types, their reasons, and how they are set. Types and reasons are public API.

People, dashboards and `kubectl wait` rely on these strings, so they are added to and never renamed. Every type is positive:
`True` is well. An event on a resource carries the reason of the condition that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from pydantic import Field

from edgetun_core.api.model import StatusModel
from edgetun_core.quantities import one_line

ConditionStatus = Literal["True", "False", "Unknown"]

MAX_MESSAGE: Final = 1024


class ConditionType:
    """Which question a condition answers."""

    READY: Final = "Ready"
    """Every kind: all is well. Repeats the reason of the first child that is not."""
    ACCEPTED: Final = "Accepted"
    """Every kind: the resource can be obeyed as it is written."""
    POOL_READY: Final = "PoolReady"
    """Tunnel: its ExitPool has an exit node that serves."""
    AGENT_CONNECTED: Final = "AgentConnected"
    """Tunnel: at least one agent holds a session. Agent: this one does."""
    CERTIFICATE_READY: Final = "CertificateReady"
    """ExitPool, Tunnel: visitors get a valid certificate for every hostname."""
    NODES_AVAILABLE: Final = "NodesAvailable"
    """ExitPool: every region has the exit nodes it wants."""
    ADDRESS_READY: Final = "AddressReady"
    """ExitPool: every region has an address that visitors and agents can reach."""
    SCALING_ACTIVE: Final = "ScalingActive"
    """ExitPool: autoscaling gets the metrics it needs."""
    PORT_AVAILABLE: Final = "PortAvailable"
    """Tunnel with a port: every exit node can listen on it."""
    SECRET_READY: Final = "SecretReady"  # noqa: S105
    """AgentToken: the Secret with the token is there, and the token has neither ended nor been revoked."""
    BOUND: Final = "Bound"
    """HostnameReservation: the Tunnel that it is for serves the hostname; `False` while it is only kept."""


class Reason:
    """Why a condition is what it is: CamelCase, for programs; the message beside it is for people."""

    READY: Final = "Ready"
    ACCEPTED: Final = "Accepted"
    PENDING: Final = "Pending"
    """Not looked at yet, or under way."""
    DELETING: Final = "Deleting"

    # Accepted=False: what the loader says of one object, what the compiler says of the whole set
    INVALID_SPEC: Final = "InvalidSpec"
    INVALID_VALUE: Final = "InvalidValue"
    FIELD_MISSING: Final = "FieldMissing"
    UNKNOWN_FIELD: Final = "UnknownField"
    NOT_AVAILABLE: Final = "NotAvailable"
    INVALID_REFERENCE: Final = "InvalidReference"
    """A Secret, issuer or other object that the resource names is not there or not usable."""
    POOL_NOT_FOUND: Final = "PoolNotFound"
    NAMESPACE_NOT_ALLOWED: Final = "NamespaceNotAllowed"
    REGION_NOT_FOUND: Final = "RegionNotFound"
    NO_REGION: Final = "NoRegion"
    HOSTNAME_NOT_ALLOWED: Final = "HostnameNotAllowed"
    HOSTNAME_CONFLICT: Final = "HostnameConflict"
    HOSTNAME_RESERVED: Final = "HostnameReserved"
    PORT_NOT_ALLOWED: Final = "PortNotAllowed"
    """The pool does not give the port away (`spec.ports`)."""
    PORT_CONFLICT: Final = "PortConflict"
    """An older tunnel of the pool has the port."""
    PORT_AVAILABLE: Final = "PortAvailable"
    PORT_UNAVAILABLE: Final = "PortUnavailable"
    """Another program has the port on an exit node; the message names the nodes."""
    PARTIALLY_ACCEPTED: Final = "PartiallyAccepted"
    """Some hostnames are served and some are refused; the message names them."""

    # pools
    POOL_READY: Final = "PoolReady"
    POOL_NOT_READY: Final = "PoolNotReady"
    NODES_AVAILABLE: Final = "NodesAvailable"
    NODES_UNAVAILABLE: Final = "NodesUnavailable"
    SCALED_TO_ZERO: Final = "ScaledToZero"
    ADDRESS_ASSIGNED: Final = "AddressAssigned"
    ADDRESS_PENDING: Final = "AddressPending"
    SCALING_ACTIVE: Final = "ScalingActive"
    SCALING_OFF: Final = "ScalingOff"
    METRICS_UNAVAILABLE: Final = "MetricsUnavailable"
    OBJECT_CONFLICT: Final = "ObjectConflict"
    """An object of a name that is needed belongs to somebody else; it is left alone."""
    APPLY_FAILED: Final = "ApplyFailed"
    """The API server refused an object (quota, admission, rights)."""
    API_UNAVAILABLE: Final = "ApiUnavailable"
    """An optional API that the resource asks for (cert-manager, metrics) is not installed."""

    # certificates
    CERTIFICATE_VALID: Final = "CertificateValid"
    CERTIFICATE_MISSING: Final = "CertificateMissing"
    CERTIFICATE_INVALID: Final = "CertificateInvalid"
    CERTIFICATE_EXPIRING: Final = "CertificateExpiring"
    CERTIFICATE_EXPIRED: Final = "CertificateExpired"

    # agents and tokens
    AGENT_CONNECTED: Final = "AgentConnected"
    NO_AGENT_CONNECTED: Final = "NoAgentConnected"
    AGENT_GONE: Final = "AgentGone"
    SECRET_CREATED: Final = "SecretCreated"  # noqa: S105
    SECRET_INVALID: Final = "SecretInvalid"  # noqa: S105
    TOKEN_EXPIRED: Final = "TokenExpired"  # noqa: S105
    TOKEN_REVOKED: Final = "TokenRevoked"  # noqa: S105

    # reservations
    BOUND: Final = "Bound"
    RETAINED: Final = "Retained"
    """The Tunnel is gone or no longer asks for the name, which stays with its namespace."""


class Condition(StatusModel):
    """One answer about a resource, as `metav1.Condition` has it."""

    type: str = Field(description="Which question it answers.", min_length=1, max_length=316)
    status: ConditionStatus = Field(description="`True`, `False` or `Unknown`.")
    reason: str = Field(description="Why, for programs.", min_length=1, max_length=128)
    message: str = Field(default="", description="Why, for people, and what to do.", max_length=32768)
    observed_generation: int = Field(default=0, ge=0, description="Generation of the resource that was looked at.")
    last_transition_time: str = Field(
        description="When `status` last changed.", json_schema_extra={"format": "date-time"}, max_length=40
    )


class Verdict(NamedTuple):
    """What a condition should say."""

    status: ConditionStatus
    reason: str
    message: str = ""


def timestamp(now: float) -> str:
    """Seconds since the epoch as Kubernetes writes times: UTC, to the second."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> float:
    """Seconds since the epoch of a time that Kubernetes wrote, also with fractions (Leases); raises `ValueError`."""
    return datetime.fromisoformat(text).timestamp()


def set_condition(
    conditions: Sequence[Condition],
    type: str,  # noqa: A002 - the field's own name
    status: ConditionStatus,
    reason: str,
    message: str,
    generation: int,
    now: float,
) -> list[Condition]:
    """The conditions with one of them set; the others and the order stay. `lastTransitionTime` moves only with `status`."""
    before = find_condition(conditions, type)
    since = before.last_transition_time if before is not None and before.status == status else timestamp(now)
    after = Condition(
        type=type,
        status=status,
        reason=reason,
        message=one_line(message, MAX_MESSAGE),
        observed_generation=generation,
        last_transition_time=since,
    )
    if before is None:
        return [*conditions, after]
    return [after if condition.type == type else condition for condition in conditions]


def find_condition(conditions: Iterable[Condition], type: str) -> Condition | None:  # noqa: A002
    """The condition of a type."""
    return next((condition for condition in conditions if condition.type == type), None)


def is_true(conditions: Iterable[Condition], type: str) -> bool:  # noqa: A002
    """Whether a condition is there and true."""
    found = find_condition(conditions, type)
    return found is not None and found.status == "True"


def decide_ready(children: Iterable[Condition | Verdict]) -> Verdict:
    """What `Ready` says: the first child that is false, else the first that is unknown, else that all is well.

    So whoever reads `Ready` alone learns what is wrong. The order of the children is the order in which a person mends them.
    """
    unknown: Condition | Verdict | None = None
    seen = False
    for child in children:
        seen = True
        if child.status == "False":
            return Verdict("False", child.reason, child.message)
        if child.status == "Unknown" and unknown is None:
            unknown = child
    if unknown is not None:
        return Verdict("Unknown", unknown.reason, unknown.message)
    return Verdict("True", Reason.READY) if seen else Verdict("Unknown", Reason.PENDING)
