"""Enrollment: from a cluster token to a session credential, and renewing it for as long as the agent lives.

The order matters. The token pins the CA of its control server, so the CA certificate is fetched first, over a connection
that proves nothing and carries nothing secret; only when its fingerprint is the pinned one is the token sent, over TLS that
trusts that one certificate and no other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from edgetun_agent.control_by_websocket import exchange_by
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
from edgetun_core.errors import AuthError, EdgetunError, ProtocolError, UpstreamUnreachable
from edgetun_core.pki import Trust, ca_with_fingerprint, certificates_der
from edgetun_core.snapshot import TunnelRule
from edgetun_core.transport.way import Way

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
    is_by_websocket: bool = False
    """Control was reached in a WebSocket to the visitors' port, and not as its URL says."""

    def __repr__(self) -> str:
        tunnels = [tunnel.id for tunnel in self.tunnels]
        return f"Enrollment({self.control_url!r}, endpoints={self.endpoints!r}, tunnels={tunnels!r}, credential=<redacted>)"


@dataclass(frozen=True, slots=True)
class Out:
    """The ways to control: as its URL says, through `proxy` where that leads, or in a WebSocket."""

    proxy: Proxy | None
    websocket: Way | None
    is_by_websocket: bool = False

    async def exchange(
        self,
        method: str,
        url: str,
        trust: Trust,
        server_date: ServerDate,
        most_bytes: int,
        body: bytes = b"",
        fields: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """One request. Raises what `control_client.exchange` does."""
        context = trust.ssl_context(ALPN)
        if self.is_by_websocket and self.websocket is not None:
            return await exchange_by(
                self.websocket, method, url, context, server_date, most_bytes, body=body, fields=fields
            )
        return await exchange(method, url, context, server_date, most_bytes, body=body, fields=fields, proxy=self.proxy)


async def enroll(
    token: ClusterToken,
    request: EnrollRequest,
    *,
    timeout_s: float = URL_TIMEOUT_S,
    wall_clock: Callable[[], float] = time.time,
    proxy: Proxy | None = None,
    websocket: Way | None = None,
) -> Enrollment:
    """Registers with the first of the token's control URLs that answers.

    Raises `ControlRefused` when control says no, `CertificateMismatch` when somebody else answers in its place, and
    `ControlUnreachable` otherwise, naming every URL that was tried and what to check.
    """
    return await _ask(token, request, REGISTER_PATH, timeout_s, wall_clock, Out(proxy, websocket))


async def renew(
    token: ClusterToken,
    request: EnrollRequest,
    *,
    timeout_s: float = URL_TIMEOUT_S,
    wall_clock: Callable[[], float] = time.time,
    proxy: Proxy | None = None,
    websocket: Way | None = None,
) -> Enrollment:
    """The same question again: control may have new tunnels, endpoints or keys for this agent since. Raises what `enroll` does."""
    return await _ask(token, request, RENEW_PATH, timeout_s, wall_clock, Out(proxy, websocket))


async def watch(
    token: ClusterToken,
    request: EnrollRequest,
    enrollment: Enrollment,
    trust: Trust,
    proxy: Proxy | None = None,
    websocket: Way | None = None,
) -> bool:
    """Asks the control that enrolled us to answer when a renewal would say something new; False when nothing did in time.

    Raises `ControlUnreachable`, `CertificateMismatch` or `ControlRefused`.
    """
    url = enrollment.control_url
    fields = {"Authorization": f"Bearer {token.format()}", "Content-Type": "application/json"}
    try:
        async with asyncio.timeout(enrollment.watch_s + URL_TIMEOUT_S):
            status, answer = await Out(proxy, websocket, enrollment.is_by_websocket).exchange(
                "POST", url + WATCH_PATH, trust, ServerDate(), MAX_RESPONSE_BYTES, msgspec.json.encode(request), fields
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
    out: Out,
) -> Enrollment:
    failures: list[EdgetunError] = []
    outs = [out] if out.websocket is None else [out, dataclasses.replace(out, is_by_websocket=True)]
    for url, by in [(url, by) for by in outs for url in token.control_urls]:
        try:
            async with asyncio.timeout(timeout_s):
                return await _ask_one(token, url, request, path, wall_clock, by)
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
        except (UpstreamUnreachable, CertificateMismatch, ProtocolError) as failure:
            failures.append(failure)
    raise _worst(failures)


async def _ask_one(
    token: ClusterToken,
    url: str,
    request: EnrollRequest,
    path: str,
    wall_clock: Callable[[], float],
    out: Out,
) -> Enrollment:
    server_date = ServerDate()
    trust = await _pinned_trust(token, url, server_date, out)
    body = msgspec.json.encode(request)
    fields = {
        # The one place where the token leaves this process: `context` proves the peer before a byte of it is sent.
        "Authorization": f"Bearer {token.format()}",
        "Content-Type": "application/json",
    }
    sent = wall_clock()
    status, answer = await out.exchange("POST", url + path, trust, server_date, MAX_RESPONSE_BYTES, body, fields)
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
        is_by_websocket=out.is_by_websocket,
    )


async def _pinned_trust(token: ClusterToken, url: str, server_date: ServerDate, out: Out) -> Trust:
    """The CA that the token names, fetched from whoever answers and believed for its fingerprint alone."""
    if not token.ca_fingerprint:
        return Trust(ca_pem=None)
    status, answer = await out.exchange("GET", url + CA_PATH, Trust(insecure=True), server_date, MAX_CA_BYTES)
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
