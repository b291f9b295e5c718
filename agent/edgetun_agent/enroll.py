"""Enrollment: from a cluster token to a session credential, and renewing it for as long as the agent lives.

The order matters. The token pins the CA of its control server, so the CA certificate is fetched first, over a connection
that proves nothing and carries nothing secret; only when its fingerprint is the pinned one is the token sent, over TLS that
trusts that one certificate and no other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from edgetun_agent.control_client import CertificateMismatch, ControlUnreachable, ServerDate, exchange
from edgetun_agent.credential_keeper import CredentialKeeper
from edgetun_agent.proxy import Proxy
from edgetun_core.credentials import ClusterToken
from edgetun_core.enrollment import (
    CA_PATH,
    REGISTER_PATH,
    RENEW_PATH,
    UNREADABLE,
    WATCH_PATH,
    AdHocTunnel,
    Endpoint,
    EnrollRequest,
    EnrollResponse,
    Offer,
    RefusalBody,
    VisitorAddress,
)
from edgetun_core.errors import AuthError, EdgetunError, ProtocolError
from edgetun_core.pki import Trust, ca_with_fingerprint, certificates_der
from edgetun_core.snapshot import TunnelRule

__all__ = [
    "AdHocTunnel",
    "CertificateMismatch",
    "ControlRefused",
    "ControlUnreachable",
    "CredentialKeeper",
    "Endpoint",
    "EnrollRequest",
    "Enrollment",
    "enroll",
    "renew",
]

URL_TIMEOUT_S: Final = 10.0
"""For one control URL, all its requests together."""
MAX_CA_BYTES: Final = 64 * 1024
MAX_RESPONSE_BYTES: Final = 4 * 1024 * 1024
ALPN: Final = ("http/1.1",)
"""Said so that control can share the port of the exit node's sessions."""

_WORTH_ANOTHER_URL: Final = frozenset({"TooManyAttempts"})
_FINAL_REASONS: Final = frozenset({"TokenUnknown", "TokenMistyped", "TokenRevoked", "TokenExpired"})


class ControlRefused(AuthError):
    """Control was reached, and said no. `reason` is its CamelCase reason (`TokenRevoked`, `NameTaken`, ...)."""

    def __init__(self, reason: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason

    @property
    def is_final(self) -> bool:
        """Whether only another token can help."""
        return self.reason in _FINAL_REASONS


@dataclass(frozen=True, slots=True)
class Enrollment:
    """What a registered agent works with. `server_time_skew_s` is this machine's clock minus the server's."""

    endpoints: tuple[Endpoint, ...]
    trust: Trust
    credential: str
    tunnels: tuple[TunnelRule, ...]
    renew_after_s: float
    expires_in_s: float
    server_time_skew_s: float
    control_url: str
    visitors: VisitorAddress = VisitorAddress()
    control_trust: Trust = Trust()
    """Of control itself; `trust` is of the exit nodes."""
    offers: tuple[Offer, ...] = ()
    placed: str = ""
    watch_s: float = 0.0
    revision: str = ""

    def __repr__(self) -> str:
        tunnels = [tunnel.id for tunnel in self.tunnels]
        return f"Enrollment({self.control_url!r}, endpoints={self.endpoints!r}, tunnels={tunnels!r}, credential=<redacted>)"


async def enroll(
    token: ClusterToken,
    request: EnrollRequest,
    *,
    timeout_s: float = URL_TIMEOUT_S,
    wall_clock: Callable[[], float] = time.time,
    proxy: Proxy | None = None,
) -> Enrollment:
    """Registers with the first of the token's control URLs that answers.

    Raises `ControlRefused` when control says no, `CertificateMismatch` when somebody else answers in its place, and
    `ControlUnreachable` otherwise, naming every URL that was tried and what to check.
    """
    return await _ask(token, request, REGISTER_PATH, timeout_s, wall_clock, proxy)


async def renew(
    token: ClusterToken,
    request: EnrollRequest,
    *,
    timeout_s: float = URL_TIMEOUT_S,
    wall_clock: Callable[[], float] = time.time,
    proxy: Proxy | None = None,
) -> Enrollment:
    """The same question again: control may have new tunnels, endpoints or keys for this agent since. Raises what `enroll` does."""
    return await _ask(token, request, RENEW_PATH, timeout_s, wall_clock, proxy)


async def watch(
    token: ClusterToken, request: EnrollRequest, enrollment: Enrollment, trust: Trust, proxy: Proxy | None = None
) -> bool:
    """Asks the control that enrolled us to answer when a renewal would say something new; False when nothing did in time.

    Raises `ControlUnreachable`, `CertificateMismatch` or `ControlRefused`.
    """
    url = enrollment.control_url
    fields = {"Authorization": f"Bearer {token.format()}", "Content-Type": "application/json"}
    try:
        async with asyncio.timeout(enrollment.watch_s + URL_TIMEOUT_S):
            status, answer = await exchange(
                "POST",
                url + WATCH_PATH,
                trust.ssl_context(ALPN),
                ServerDate(),
                MAX_RESPONSE_BYTES,
                body=msgspec.json.encode(request),
                fields=fields,
                proxy=proxy,
            )
    except TimeoutError:
        raise ControlUnreachable(f"{url} did not answer in time") from None
    if status not in (200, 204):
        raise _refusal(url, status, answer)
    return status == 200


async def _ask(
    token: ClusterToken,
    request: EnrollRequest,
    path: str,
    timeout_s: float,
    wall_clock: Callable[[], float],
    proxy: Proxy | None,
) -> Enrollment:
    failures: list[EdgetunError] = []
    for url in token.control_urls:
        try:
            async with asyncio.timeout(timeout_s):
                return await _ask_one(token, url, request, path, wall_clock, proxy)
        except TimeoutError:
            failures.append(
                ControlUnreachable(
                    f"{url} did not answer within {timeout_s:g} s", remedy="check that no firewall stands between"
                )
            )
        except ControlRefused as refused:
            if refused.reason not in _WORTH_ANOTHER_URL:
                raise
            failures.append(refused)
        except (ControlUnreachable, CertificateMismatch, ProtocolError) as failure:
            failures.append(failure)
    raise _worst(failures)


async def _ask_one(
    token: ClusterToken,
    url: str,
    request: EnrollRequest,
    path: str,
    wall_clock: Callable[[], float],
    proxy: Proxy | None,
) -> Enrollment:
    server_date = ServerDate()
    trust = await _pinned_trust(token, url, server_date, proxy)
    body = msgspec.json.encode(request)
    fields = {
        # The one place where the token leaves this process: `context` proves the peer before a byte of it is sent.
        "Authorization": f"Bearer {token.format()}",
        "Content-Type": "application/json",
    }
    sent = wall_clock()
    status, answer = await exchange(
        "POST",
        url + path,
        trust.ssl_context(ALPN),
        server_date,
        MAX_RESPONSE_BYTES,
        body=body,
        fields=fields,
        proxy=proxy,
    )
    received = wall_clock()
    if status != 200:
        raise _refusal(url, status, answer)
    try:
        response = msgspec.json.decode(answer, type=EnrollResponse)
    except UNREADABLE:
        raise ProtocolError(
            f"{url} answered with something that is not an enrollment", remedy="is it an edgetun control server?"
        ) from None
    return Enrollment(
        endpoints=response.endpoints,
        trust=Trust(response.exit_ca_pem.encode()) if response.exit_ca_pem else trust,
        credential=response.credential,
        tunnels=response.tunnels,
        renew_after_s=response.renew_after_s,
        expires_in_s=response.expires_in_s,
        server_time_skew_s=(sent + received) / 2 - response.server_time,
        control_url=url,
        visitors=response.visitors,
        control_trust=trust,
        offers=response.offers,
        placed=response.placed,
        watch_s=response.watch_s,
        revision=response.revision,
    )


async def _pinned_trust(token: ClusterToken, url: str, server_date: ServerDate, proxy: Proxy | None) -> Trust:
    """The CA that the token names, fetched from whoever answers and believed for its fingerprint alone."""
    if not token.ca_fingerprint:
        return Trust(ca_pem=None)
    unverified = Trust(insecure=True).ssl_context(ALPN)
    status, answer = await exchange("GET", url + CA_PATH, unverified, server_date, MAX_CA_BYTES, proxy=proxy)
    try:
        offered = certificates_der(answer) if status == 200 else []
    except ValueError:
        offered = []
    if not offered:
        raise ProtocolError(f"{url}{CA_PATH} is not a certificate", remedy="is it an edgetun control server?")
    # One certificate, alone: another beside the right one would be trusted without being pinned.
    ca_pem = ca_with_fingerprint(offered, token.ca_fingerprint)
    if ca_pem is None:
        raise CertificateMismatch(
            f"{url} has another CA than the token names; the token was not sent",
            remedy="someone may be intercepting the connection (a proxy that opens TLS?), or the server was set up anew: "
            "then ask for a new token",
        )
    return Trust(ca_pem=ca_pem)


def _refusal(url: str, status: int, answer: bytes) -> EdgetunError:
    try:
        body = msgspec.json.decode(answer, type=RefusalBody)
    except UNREADABLE:
        return ControlUnreachable(
            f"{url} answered {status} to the registration", remedy="check that an edgetun server answers there"
        )
    if status >= 500:
        return ControlUnreachable(f"{url}: {body.message}", remedy=body.remedy)
    return ControlRefused(body.reason, body.message, remedy=body.remedy)


def _worst(failures: list[EdgetunError]) -> EdgetunError:
    """What to tell when every URL failed: an impostor before a refusal before a silence, and all silences together."""
    for kind in (CertificateMismatch, ControlRefused):
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    if len(failures) == 1:
        return failures[0]
    return ControlUnreachable("no control URL of the token works: " + ". ".join(str(failure) for failure in failures))
