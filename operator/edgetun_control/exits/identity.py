"""Certifies exit nodes: their ServiceAccount token says which pool's region they are of; control decides what they may be called."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from edgetun_control.registry import Refused
from edgetun_core.control_stream import IdentityAnswer, IdentityRequest
from edgetun_core.errors import AuthError, ConfigError
from edgetun_core.fleet_identity import (
    EXIT_NODE_CERTIFICATE_S,
    ExitNodeName,
    check_exit_node_name,
    sign_exit_node,
)

MOST_NAMES: Final = 32


class Account(NamedTuple):
    """Whose token it is: a ServiceAccount, and the pod that it was made for (empty when it was made by hand)."""

    namespace: str
    name: str
    pod: str = ""


class Reviewer(Protocol):
    """Who knows whether a ServiceAccount token is good: a TokenReview on a cluster."""

    async def review(self, token: str) -> Account | None:
        """Whose it is; None when it is no good or for another audience. Raises `EdgetunError` when nobody can say."""
        ...


class Authority(NamedTuple):
    """The fleet's CA."""

    ca_pem: bytes
    ca_key_pem: bytes


def exit_node_account(pool: str, region: str) -> str:
    """Name of the ServiceAccount of a region's exit nodes."""
    return f"edgetun-exit-{pool}-{region}"


class IdentityService:
    """Issues certificates of a day. `own_names` are control's, which no exit node may have."""

    def __init__(
        self,
        reviewer: Reviewer,
        authority: Callable[[], Authority | None],
        namespace: str,
        *,
        own_names: Iterable[str] = (),
        addresses: Callable[[str, str], tuple[str, ...]] = lambda _pool, _region: (),
        clock: Callable[[], float] = time.time,
        lifetime_s: float = EXIT_NODE_CERTIFICATE_S,
    ) -> None:
        self._reviewer = reviewer
        self._authority = authority
        self._namespace = namespace
        self._own_names = frozenset(name.lower() for name in own_names)
        self._addresses = addresses
        self._clock = clock
        self._lifetime_s = lifetime_s
        self.issued_total = 0
        self.refused_total = 0

    async def issue(self, token: str, request: IdentityRequest) -> IdentityAnswer | Refused:
        """Raises `EdgetunError` when the token cannot be reviewed now."""
        answer = await self._issue(token, request)
        if isinstance(answer, Refused):
            self.refused_total += 1
        else:
            self.issued_total += 1
        return answer

    async def _issue(self, token: str, request: IdentityRequest) -> IdentityAnswer | Refused:
        account = await self._reviewer.review(token)
        if account is None:
            return Refused(
                "TokenRefused", "the ServiceAccount token is not good", "mount one with audience edgetun-control"
            )
        wanted = exit_node_account(request.pool, request.region)
        if (account.namespace, account.name) != (self._namespace, wanted):
            return Refused(
                "NotAnExitNode",
                f"{account.namespace}/{account.name} is not the ServiceAccount of {request.pool}/{request.region}",
                f"run exit nodes of this region as {self._namespace}/{wanted}",
            )
        if account.pod and account.pod != request.node:
            return Refused("NotAnExitNode", f"the token is of pod {account.pod}, not of {request.node}")
        name = ExitNodeName(request.pool, request.region, request.node)
        refused = self._check_names(request.names)
        if refused is not None:
            return refused
        authority = self._authority()
        if authority is None:
            return Refused("StoreUnavailable", "the fleet's CA is not there yet", "try again in a moment")
        names = [*self._addresses(request.pool, request.region), *request.names]
        try:
            check_exit_node_name(name)
            cert_pem = await asyncio.to_thread(
                sign_exit_node,
                request.csr_pem.encode(),
                name,
                dict.fromkeys(names),
                ca_pem=authority.ca_pem,
                ca_key_pem=authority.ca_key_pem,
                now=self._clock(),
                lifetime_s=self._lifetime_s,
            )
        except (AuthError, ConfigError) as error:
            return Refused("InvalidRequest", error.message, error.remedy)
        return IdentityAnswer(cert_pem.decode(), authority.ca_pem.decode(), self._lifetime_s)

    def _check_names(self, names: tuple[str, ...]) -> Refused | None:
        if len(names) > MOST_NAMES:
            return Refused("NameNotAllowed", f"a certificate carries at most {MOST_NAMES} names")
        for name in names:
            if name.lower() in self._own_names or "*" in name:
                return Refused("NameNotAllowed", f"no exit node may be called {name}")
        return None
