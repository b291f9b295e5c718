"""What went wrong in opening a transport, in words for a person: the thing, the problem, the remedy."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import TYPE_CHECKING

from edgetun_core.errors import (
    AuthError,
    ConfigError,
    EdgetunError,
    ProtocolError,
    UpstreamUnreachable,
    error_from_code,
)
from edgetun_core.transport.link import ALPN

if TYPE_CHECKING:
    from edgetun_core.transport.quic_connection import Ended


def describe_dial_error(
    error: Exception, host: str, port: int, name: str, timeout_s: float, kind: str = ""
) -> EdgetunError:
    """The error of a dial in words for a person."""
    where = f"{kind}{host}:{port}"
    match error:
        case ssl.SSLCertVerificationError():
            if error.verify_code in (62, 64):
                return AuthError(
                    f"{where} shows a certificate that is not for {name}",
                    remedy="check the name, or set the server name",
                )
            if error.verify_code in (9, 10):
                return AuthError(
                    f"the certificate of {where} is expired or not yet valid", remedy="check the clock here and there"
                )
            return AuthError(
                f"the certificate of {where} is not trusted ({error.verify_message})",
                remedy="give the CA that signed it",
            )
        case ssl.SSLError():
            return ProtocolError(
                f"{where} refused TLS 1.3 ({error.reason or error})",
                remedy="check that host and port are an exit node's",
            )
        case TimeoutError():
            return UpstreamUnreachable(
                f"{where} did not answer within {timeout_s:.1f} s", remedy="check the address and the firewalls between"
            )
        case ConnectionRefusedError():
            return UpstreamUnreachable(
                f"{where} refused the connection", remedy="check that an exit node listens on this port"
            )
        case socket.gaierror():
            return UpstreamUnreachable(f"the name {host} does not resolve", remedy="check the spelling and the DNS")
        case ConnectionError():
            return UpstreamUnreachable(
                f"{where} closed the connection in the handshake", remedy="check that it is an exit node, and its log"
            )
        case OSError():
            return UpstreamUnreachable(
                f"{where} cannot be reached ({error.strerror or error})", remedy="check the network"
            )
    return UpstreamUnreachable(f"{where} cannot be reached ({error})")


def describe_quic_end(ended: Ended, host: str, port: int, name: str) -> EdgetunError:
    """Why a QUIC handshake failed (RFC 9000 §20, RFC 9001 §4.8), in words for a person."""
    where = f"UDP {host}:{port}"
    if ended.is_application:
        return error_from_code(ended.code, ended.reason)
    reason = ended.reason
    alert = ended.code - 0x100
    if alert == 120 or "alpn" in reason.lower():
        return ProtocolError(f"{where} does not speak {ALPN}", remedy="check that host and port are an exit node's")
    if alert == 45 or "expired" in reason.lower() or "no longer valid" in reason.lower():
        return AuthError(
            f"the certificate of {where} is expired or not yet valid", remedy="check the clock here and there"
        )
    if "name" in reason.lower() or "match" in reason.lower():
        return AuthError(
            f"{where} shows a certificate that is not for {name}", remedy="check the name, or set the server name"
        )
    if alert in (42, 43, 44, 46, 48):
        return AuthError(f"the certificate of {where} is not trusted ({reason})", remedy="give the CA that signed it")
    return UpstreamUnreachable(
        f"{where} broke off the QUIC handshake ({reason or hex(ended.code)})",
        remedy="check that host and port are an exit node's",
    )


def describe_listen_error(error: OSError, host: str, port: int, kind: str) -> ConfigError:
    """The error of a bind in words for a person."""
    remedy = {
        errno.EADDRINUSE: "another process listens there; end it or choose another port",
        errno.EACCES: "ports below 1024 need more rights; choose a higher one",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }.get(error.errno or 0, "check the address")
    return ConfigError(f"cannot listen on {kind} {host}:{port} ({error.strerror or error})", remedy=remedy)
