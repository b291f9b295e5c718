"""Connects to an origin: TCP, TLS over it, or a unix socket, within a deadline, with errors that say what to do.

Not a hot path: connections are kept. A `localhost` origin is tried at ::1 and 127.0.0.1, because servers listen on either;
the address that answered last is tried first the next time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from edgetun_agent.origin.address import OriginAddress, parse_origin_url
from edgetun_core.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from edgetun_core.snapshot import OriginRule

STAGGER_S = 0.25
"""How long one address may stay silent before the next is tried beside it (RFC 8305 §5)."""
RESOLVED_FOR_S = 10.0

P = TypeVar("P", bound=asyncio.Protocol)
Connected = tuple[asyncio.Transport, P]


class OriginDialler:
    """Opens connections to one origin."""

    def __init__(self, rule: OriginRule, alpn: Sequence[str] = ("http/1.1",)) -> None:
        self.rule = rule
        self._alpn = list(alpn)
        self.address: OriginAddress = parse_origin_url(rule.url)
        self._tls: ssl.SSLContext | None = None
        self._hosts: tuple[str, ...] = ()
        self._resolved_until = 0.0

    async def connect(self, factory: Callable[[], P]) -> P:
        """A connected protocol made by `factory`; raises `UpstreamUnreachable` or `UpstreamTimeout` that name the origin."""
        loop = asyncio.get_running_loop()
        timeout_s = self.rule.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                if self.address.unix_path:
                    _, protocol = await loop.create_unix_connection(factory, self.address.unix_path)
                    return protocol
                return await self._connect_tcp(loop, factory)
        except TimeoutError as error:
            # ETIMEDOUT is an OSError too, and a TimeoutError: both mean that nothing came back.
            raise UpstreamTimeout(
                f"{self.rule.url} did not accept a connection within {timeout_s:g} s",
                remedy="see that the server runs and is not overloaded, or give another origin",
            ) from error
        except (OSError, ssl.SSLError) as error:
            raise explain_refusal(self.rule, error) from error

    async def _connect_tcp(self, loop: asyncio.AbstractEventLoop, factory: Callable[[], P]) -> P:
        context = self._tls_context() if self.address.is_tls else None
        server_name = (self.rule.tls_server_name or self.address.host) if context is not None else None
        hosts = await self._addresses(loop)

        async def attempt(host: str) -> Connected[P]:
            return await loop.create_connection(
                factory, host, self.address.port, ssl=context, server_hostname=server_name
            )

        if len(hosts) == 1:
            return (await attempt(hosts[0]))[1]
        winner, protocol = await _race_addresses(hosts, attempt)
        if winner != hosts[0]:
            self._hosts = (winner, *(host for host in hosts if host != winner))
        return protocol

    async def _addresses(self, loop: asyncio.AbstractEventLoop) -> tuple[str, ...]:
        if self._hosts and loop.time() < self._resolved_until:
            return self._hosts
        host = self.address.host
        if self.address.is_localhost:
            # Not asked of the resolver: it costs a thread, and some name only one of the two.
            self._hosts, self._resolved_until = ("::1", "127.0.0.1"), float("inf")
        elif _is_literal(host):
            self._hosts, self._resolved_until = (host,), float("inf")
        else:
            found = await loop.getaddrinfo(host, self.address.port, type=socket.SOCK_STREAM)
            fresh = tuple(dict.fromkeys(str(info[4][0]) for info in found))
            liked = self._hosts[0] if self._hosts and self._hosts[0] in fresh else fresh[0]
            self._hosts = (liked, *(other for other in fresh if other != liked))
            self._resolved_until = loop.time() + RESOLVED_FOR_S
        return self._hosts

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            rule = self.rule
            try:
                context = ssl.create_default_context(cafile=rule.tls_ca_file or None)
            except (OSError, ssl.SSLError) as error:
                raise UpstreamUnreachable(
                    f'origin {rule.url}: the CA file "{rule.tls_ca_file}" cannot be read ({error})',
                    remedy="give a file with PEM certificates",
                ) from error
            if not rule.tls_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols(self._alpn)
            self._tls = context
        return self._tls


async def _race_addresses(hosts: tuple[str, ...], attempt: Callable[[str], Awaitable[Connected[P]]]) -> tuple[str, P]:
    """Tries addresses in order, the next as soon as one fails or is silent for `STAGGER_S`; the first to connect wins."""
    waiting = list(hosts)
    running: dict[asyncio.Future[Connected[P]], str] = {}
    refusal: OSError | None = None
    try:
        while waiting or running:
            if waiting:
                host = waiting.pop(0)
                running[asyncio.ensure_future(attempt(host))] = host
            done, _ = await asyncio.wait(
                running, timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                host = running.pop(task)
                try:
                    _, protocol = task.result()
                except OSError as error:
                    # A refusal says more to a person than the other family's "no such address".
                    if refusal is None or isinstance(error, ConnectionRefusedError | ssl.SSLError):
                        refusal = error
                else:
                    return host, protocol
        assert refusal is not None
        raise refusal
    finally:
        for task in running:
            if not task.cancel() and task.exception() is None:
                task.result()[0].abort()


def _is_literal(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


def explain_refusal(rule: OriginRule, error: OSError) -> UpstreamError:
    """The error a visitor and the laptop's owner read when a connection to the origin fails."""
    url = rule.url
    if isinstance(error, ssl.SSLCertVerificationError):
        return UpstreamUnreachable(
            f"the certificate of {url} is not trusted ({error.verify_message or error.reason})",
            remedy="give the CA that signed it (tls.caFile), its name (tls.serverName), or turn verification off for this origin",
        )
    if isinstance(error, ssl.SSLError):
        return UpstreamUnreachable(
            f"{url} does not speak TLS ({error.reason or error})", remedy="use http:// when the server is plain HTTP"
        )
    if isinstance(error, socket.gaierror):
        return UpstreamUnreachable(
            f"the host of {url} cannot be resolved ({error.strerror})", remedy="correct the origin's URL"
        )
    if isinstance(error, FileNotFoundError):
        return UpstreamUnreachable(f"{url} does not exist", remedy="start the server or give another --origin")
    if isinstance(error, PermissionError):
        return UpstreamUnreachable(f"{url} may not be opened", remedy="let this user read and write the socket")
    if error.errno == errno.EMFILE:
        return UpstreamUnreachable(
            f"no file descriptor is left to connect to {url}", remedy="raise the limit (ulimit -n)"
        )
    return UpstreamUnreachable(
        f"nothing answers at {url} ({_plain(error)})", remedy="start the server or give another --origin"
    )


def _plain(error: OSError) -> str:
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno).lower()
    return str(error)
