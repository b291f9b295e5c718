"""HTTPS to a control server: one request, one connection, every failure in words for a person.

aiohttp is imported by the first request: an agent that needs no control starts without it.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from edgetun_agent.proxy import Proxy
from edgetun_core.errors import AuthError, EdgetunError, ProtocolError, UpstreamUnreachable

if TYPE_CHECKING:
    import aiohttp

SKEW_WORTH_SAYING_S: Final = 30.0
# X509_V_ERR_... of OpenSSL's x509_vfy.h
_X509_NOT_YET_VALID: Final = 9
_X509_EXPIRED: Final = 10
_X509_HOSTNAME_MISMATCH: Final = 62
_X509_IP_MISMATCH: Final = 64


class ControlUnreachable(UpstreamUnreachable):
    """No control URL of the token could be talked to."""


class CertificateMismatch(AuthError):
    """Whoever answered at the control URL is not who the token names. The token was not sent."""


class ServerDate:
    """The last `Date` field seen. Unproven: good for a hint in a message about clocks, and for nothing else."""

    def __init__(self) -> None:
        self.skew_s: float | None = None

    def note(self, date: str | None) -> None:
        from email.utils import parsedate_to_datetime

        if date is not None:
            try:
                self.skew_s = time.time() - parsedate_to_datetime(date).timestamp()
            except ValueError:
                self.skew_s = None


async def exchange(
    method: str,
    url: str,
    context: ssl.SSLContext,
    server_date: ServerDate,
    most_bytes: int,
    *,
    body: bytes = b"",
    fields: dict[str, str] | None = None,
    proxy: Proxy | None = None,
) -> tuple[int, bytes]:
    """One request on a connection of its own; never follows a redirect. Raises `ControlUnreachable`, `CertificateMismatch`."""
    import aiohttp

    parts = urlsplit(url)
    of_proxy: tuple[type[Exception], ...] = proxy.errors() if proxy is not None else ()
    if proxy is not None and proxy.leads_to(parts.hostname or "", parts.port or 443):
        connector = proxy.connector(context)
    else:
        connector = aiohttp.TCPConnector(ssl=context, limit=1, force_close=True)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False) as session,
            session.request(method, url, data=body, headers=fields, allow_redirects=False) as response,
        ):
            server_date.note(response.headers.get("Date"))
            return response.status, await _read(response, most_bytes, url)
    except aiohttp.ClientConnectorCertificateError as error:
        raise certificate_problem(url, error.certificate_error, server_date) from None
    except aiohttp.ClientConnectorDNSError as error:
        raise ControlUnreachable(
            f"the name {error.host} of control URL {_base(url)} cannot be resolved",
            remedy="check the network and its DNS",
        ) from None
    except aiohttp.ClientConnectorError as error:
        why = error.os_error.strerror or str(error.os_error)
        raise ControlUnreachable(
            f"{_base(url)} cannot be reached ({why})",
            remedy="check that the server runs and that its port is open to this network",
        ) from None
    except of_proxy as error:
        assert proxy is not None
        told = proxy.explain(error, parts.hostname or "", parts.port or 443)
        raise ControlUnreachable(told.message, remedy=told.remedy) from None
    except (aiohttp.ClientError, OSError) as error:
        # `error` may quote what the peer sent, which is not for people; its kind says enough.
        raise ControlUnreachable(
            f"{_base(url)} broke the connection off ({type(error).__name__})",
            remedy="check that an edgetun server answers there, and not another one",
        ) from None


async def _read(response: aiohttp.ClientResponse, most_bytes: int, url: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(64 * 1024):
        size += len(part)
        if size > most_bytes:
            raise ProtocolError(f"{_base(url)} answered with more than {most_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


def certificate_problem(url: str, error: Exception, server_date: ServerDate) -> EdgetunError:
    """What a certificate that was not accepted means, for a person."""
    code = getattr(error, "verify_code", 0)
    base = _base(url)
    if code in (_X509_NOT_YET_VALID, _X509_EXPIRED):
        word = "is not valid yet" if code == _X509_NOT_YET_VALID else "has ended"
        skew_s = server_date.skew_s
        if skew_s is not None and abs(skew_s) > SKEW_WORTH_SAYING_S:
            return ControlUnreachable(
                f"the certificate of {base} {word} by this machine's clock, which differs from the server's by {skew_s:+.0f} s",
                remedy="set this machine's clock",
            )
        return ControlUnreachable(
            f"the certificate of {base} {word}", remedy="set this machine's clock, or ask who runs it"
        )
    if code in (_X509_HOSTNAME_MISMATCH, _X509_IP_MISMATCH):
        return ControlUnreachable(
            f"the certificate of {base} is not for that name",
            remedy="ask for a token with the server's right URL, or start the server with that name",
        )
    return CertificateMismatch(
        f"the certificate of {base} is not signed by the CA that this token trusts; the token was not sent",
        remedy="someone may be intercepting the connection (a proxy that opens TLS?)",
    )


def _base(url: str) -> str:
    return "/".join(url.split("/")[:3])
