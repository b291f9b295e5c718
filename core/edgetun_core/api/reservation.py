"""HostnameReservation: a hostname belongs to a namespace, also when its Tunnel is gone.

Made by the operator when it accepts a Tunnel's hostname. Under `Retain` it outlives the Tunnel, so that nobody else can
claim a name that OAuth redirects, webhooks or bookmarks still lead to; deleting it frees the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Final, Literal

from pydantic import Field

from edgetun_core.api.meta import Column, Resource, ready_columns
from edgetun_core.api.model import ApiModel, Broken, Rule, RuledModel
from edgetun_core.api.names import Hostname, Label, ObjectName
from edgetun_core.api.status import Status

_WILDCARD_LIKE: Final = re.compile(r"^wildcardx*(\.|$)", re.ASCII)


def reservation_name(hostname: str) -> str:
    """Name of the reservation of a hostname: the hostname, with `wildcard` for `*`.

    No two hostnames share one: a hostname that itself begins with a label `wildcard` (or that and `x`es) gets one `x` more.
    """
    if hostname.startswith("*."):
        return f"wildcard{hostname[1:]}"
    return f"wildcardx{hostname[8:]}" if _WILDCARD_LIKE.match(hostname) else hostname


class ClaimedBy(ApiModel):
    """Whose the hostname is."""

    namespace: Label = Field(description="Namespace that the hostname belongs to.", examples=["team-a"])
    tunnel: ObjectName = Field(description="Tunnel that it was claimed by.", examples=["shop"])


class HostnameReservationSpec(ApiModel):
    """Which hostname belongs to whom, and for how long."""

    immutable: ClassVar[frozenset[str]] = frozenset({"hostname"})

    hostname: Hostname = Field(description="The hostname.", examples=["shop.example.com"])
    claimed_by: ClaimedBy = Field(
        description="Whose it is. Changing it hands the name over.", examples=["{namespace: team-a, tunnel: shop}"]
    )
    reclaim_policy: Literal["Delete", "Retain"] = Field(
        default="Retain",
        description="When the Tunnel goes: `Retain` keeps the name for the namespace, `Delete` frees it.",
    )


class HostnameReservationStatus(Status):
    """How the reservation stands."""


def _named_for_the_hostname(reservation: HostnameReservation) -> Iterator[Broken]:
    wanted = reservation_name(reservation.spec.hostname)
    if reservation.metadata.name != wanted:
        yield Broken(("metadata", "name"), f"is not the name of this hostname's reservation; write {wanted}")


class HostnameReservation(Resource, RuledModel):
    """A hostname that belongs to a namespace."""

    namespaced: ClassVar[bool] = False
    plural: ClassVar[str] = "hostnamereservations"
    short_names: ClassVar[tuple[str, ...]] = ("hr",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("Host", ".spec.hostname", description="The hostname."),
        Column("Namespace", ".spec.claimedBy.namespace", description="Namespace that it belongs to."),
        Column("Tunnel", ".spec.claimedBy.tunnel", description="Tunnel that it was claimed by."),
        Column("Policy", ".spec.reclaimPolicy", description="What happens when the Tunnel goes."),
        *(column._replace(wide=True) for column in ready_columns()),
    )

    kind: Literal["HostnameReservation"] = Field(default="HostnameReservation", description="`HostnameReservation`.")
    spec: HostnameReservationSpec = Field(
        description="Which hostname belongs to whom.",
        examples=["{hostname: shop.example.com, claimedBy: {namespace: team-a, tunnel: shop}}"],
    )
    status: HostnameReservationStatus | None = Field(default=None, description="Written by edgetun.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.metadata.name == (self.spec.hostname.startsWith('*.') ? 'wildcard' + self.spec.hostname.substring(1)"
            " : self.spec.hostname.matches('^wildcardx*([.]|$)') ? 'wildcardx' + self.spec.hostname.substring(8)"
            " : self.spec.hostname)",
            "the name of a reservation is its hostname, with wildcard for *",
            _named_for_the_hostname,
        ),
    )
