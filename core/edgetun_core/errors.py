"""The one tree of errors, and the one table that says how each shows: HTTP status, close code, reason, label.

A message names the thing, what is wrong with it, and what to do. It never carries a secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Presentation:
    """How an error shows on every surface.

    `status` is the HTTP status a visitor gets, `close_code` the code a session or lane is closed with,
    `reason` the CamelCase reason of a Kubernetes condition or a `Problem` body, `label` the metric label.
    """

    status: int
    close_code: int
    reason: str
    label: str


class EdgetunError(Exception):
    """Root of every error that edgetun raises on purpose; `str(error)` is written for a person."""

    presentation: ClassVar[Presentation] = Presentation(500, 0x01, "InternalError", "internal")

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message if not remedy else f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


class ConfigError(EdgetunError):
    """A setting or a resource is wrong; the person who wrote it can mend it."""

    presentation = Presentation(500, 0x02, "InvalidConfiguration", "config")


class AddressUnavailable(ConfigError):
    """An address to listen on is taken by another program, or is not ours to use."""


class ProtocolError(EdgetunError):
    """A peer broke a protocol's rules (HTTP or the tunnel's); its connection or session is closed."""

    presentation = Presentation(400, 0x03, "ProtocolError", "protocol")


class AuthError(EdgetunError):
    """A credential is missing, wrong, expired or revoked."""

    presentation = Presentation(403, 0x04, "Unauthorized", "auth")


class LimitExceeded(EdgetunError):
    """A configured bound was reached; nothing was queued beyond it."""

    presentation = Presentation(429, 0x05, "LimitExceeded", "limit")


class UpstreamError(EdgetunError):
    """What stands behind us (session, agent or origin) could not answer."""

    presentation = Presentation(502, 0x06, "UpstreamFailed", "upstream")


class UpstreamUnreachable(UpstreamError):
    """The origin refused or could not be connected to."""

    presentation = Presentation(502, 0x07, "OriginUnreachable", "origin_unreachable")


class UpstreamTimeout(UpstreamError):
    """The origin accepted the request and did not answer in time."""

    presentation = Presentation(504, 0x08, "OriginTimeout", "origin_timeout")


class UpstreamBroken(UpstreamError):
    """The origin broke off, or answered with something that is not HTTP."""

    presentation = Presentation(502, 0x09, "OriginBroken", "origin_broken")


class OriginBusy(UpstreamError):
    """Every connection to the origin is taken and the queue for one is full, or took too long."""

    presentation = Presentation(503, 0x0F, "OriginBusy", "origin_busy")


class NoSession(UpstreamError):
    """No agent is connected for the tunnel."""

    presentation = Presentation(503, 0x0A, "NoAgentConnected", "no_session")


class SessionLost(UpstreamError):
    """The session that carried the exchange ended before the answer did."""

    presentation = Presentation(502, 0x0B, "SessionLost", "session_lost")


class NotFound(EdgetunError):
    """No tunnel serves this host or path."""

    presentation = Presentation(404, 0x0C, "NoSuchTunnel", "no_tunnel")


class Cancelled(EdgetunError):
    """Whoever asked went away; nobody is left to answer."""

    presentation = Presentation(499, 0x0D, "Cancelled", "cancelled")


class Draining(EdgetunError):
    """This process is going away in good order; connect elsewhere."""

    presentation = Presentation(503, 0x0E, "Draining", "draining")


ERRORS_BY_CODE: dict[int, type[EdgetunError]] = {
    kind.presentation.close_code: kind
    for kind in (
        EdgetunError,
        ConfigError,
        ProtocolError,
        AuthError,
        LimitExceeded,
        UpstreamError,
        UpstreamUnreachable,
        UpstreamTimeout,
        UpstreamBroken,
        OriginBusy,
        NoSession,
        SessionLost,
        NotFound,
        Cancelled,
        Draining,
    )
}


def error_from_code(code: int, message: str) -> EdgetunError:
    """Rebuilds the error a peer sent as a close or reset code; an unknown code becomes `UpstreamError`."""
    return ERRORS_BY_CODE.get(code, UpstreamError)(message)
