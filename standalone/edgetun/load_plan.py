"""What a load test is to do: who arrives when, at which URL, and what counts as too long. Pure but for `resolve`.

A plan is checked when it is made: what is wrong with it is a `ConfigError` that names the flag.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from edgetun_core.errors import ConfigError, UpstreamUnreachable

OWNS_HOST_FLAG: Final = "--i-own-this-host"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Crowd:
    """`visitors` people arrive evenly within `within_s`, each on a connection of their own.

    Each asks `requests` times, one after the other, and then stays connected until the last one was answered, as browsers
    do (`hold`), or leaves at once.
    """

    visitors: int = 10_000
    within_s: float = 2.0
    requests: int = 1
    hold: bool = True


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`concurrency` visitors on keep-alive connections, each asking again as soon as it was answered."""

    concurrency: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """`rate` requests a second, whether or not earlier ones were answered, over at most `concurrency` connections."""

    rate: float
    concurrency: int
    duration_s: float


Arrivals = Crowd | ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A load test, complete.

    `connect` is the host and port to dial whatever the URL says. `trust_pem` are certificates to trust besides the
    system's, `insecure` verifies nothing. `owns_host` allows a host that is not this machine.
    """

    url: str
    arrivals: Arrivals = Crowd()
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    timeout_s: float = 10.0
    connect: tuple[str, int] | None = None
    trust_pem: str = ""
    insecure: bool = False
    owns_host: bool = False

    def __post_init__(self) -> None:
        _check_arrivals(self.arrivals)
        if self.timeout_s <= 0:
            raise ConfigError(f"--timeout {self.timeout_s:g}s is not positive", remedy="10s is usual")
        if _TOKEN.fullmatch(self.method) is None or self.method == "CONNECT":
            raise ConfigError(f"--method {self.method!r} cannot be sent", remedy="GET, HEAD, POST, PUT ... can")
        for name, value in self.headers:
            if _TOKEN.fullmatch(name) is None or _FIELD_VALUE.fullmatch(value) is None:
                raise ConfigError(
                    f"--header {name + ': ' + value!r} is not a header field", remedy='write "Name: value"'
                )
            if name.lower() in {"content-length", "transfer-encoding", "connection"}:
                raise ConfigError(f"--header {name} would break the framing", remedy="it is set from --body")
        _split_url(self.url)

    @property
    def connections(self) -> int:
        """How many connections must be able to be open at once."""
        arrivals = self.arrivals
        if not isinstance(arrivals, Crowd):
            return arrivals.concurrency
        # Visitors who leave at once overlap as long as the server makes them wait, which nobody knows beforehand.
        return arrivals.visitors if arrivals.hold else min(arrivals.visitors, 1_000)

    def request(self) -> bytes:
        """The request, as every visitor sends it."""
        _, _, _, authority, target = _split_url(self.url)
        given = {name.lower() for name, _ in self.headers}
        fields = [] if "host" in given else [("Host", authority)]
        if "user-agent" not in given:
            fields.append(("User-Agent", "edgetun-load"))
        if "accept" not in given:
            fields.append(("Accept", "*/*"))
        fields.extend(self.headers)
        if self.body or self.method in {"POST", "PUT", "PATCH"}:
            fields.append(("Content-Length", str(len(self.body))))
        head = f"{self.method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
        return head.encode("latin-1") + b"\r\n" + self.body


@dataclass(frozen=True, slots=True)
class Target:
    """Where visitors dial, and how: `family` and `address` as `socket.connect` takes them; `tls` is None for http."""

    family: socket.AddressFamily
    address: tuple[str, int]
    tls: ssl.SSLContext | None
    server_name: str


def due(arrivals: Crowd | OpenLoop, elapsed_s: float) -> int:
    """How many requests have been due `elapsed_s` after the start; the first is due at 0."""
    if elapsed_s < 0:
        return 0
    if isinstance(arrivals, OpenLoop):
        return min(total(arrivals), int(elapsed_s * arrivals.rate) + 1)
    if arrivals.within_s <= 0:
        return arrivals.visitors
    return min(arrivals.visitors, int(elapsed_s * arrivals.visitors / arrivals.within_s) + 1)


def due_at(arrivals: Crowd | OpenLoop, number: int) -> float:
    """When request or visitor `number` (from 0) is due, in seconds after the start."""
    if isinstance(arrivals, OpenLoop):
        return number / arrivals.rate
    return number * arrivals.within_s / arrivals.visitors


def total(arrivals: Crowd | OpenLoop) -> int:
    """How many arrivals there will be."""
    if isinstance(arrivals, OpenLoop):
        return max(1, int(arrivals.rate * arrivals.duration_s))
    return arrivals.visitors


async def resolve(plan: LoadPlan) -> Target:
    """Finds the address to dial; of several, the first that accepts a connection.

    `localhost` and `*.localhost` are this machine without asking any server (RFC 6761 §6.3). Raises `ConfigError` when the
    name is unknown, nothing answers, or the host is somebody else's.
    """
    scheme, url_host, url_port, _, _ = _split_url(plan.url)
    host, port = plan.connect or (url_host, url_port)
    addresses = await _addresses(host, port)
    if not plan.owns_host and any(not ipaddress.ip_address(ip.partition("%")[0]).is_loopback for _, ip in addresses):
        raise ConfigError(
            f"{host} is {addresses[0][1]}, not this machine: a load test against a host whose owner has not agreed is an attack",
            remedy=f"if it is yours, say so with {OWNS_HOST_FLAG}",
        )
    failures: list[str] = []
    for family, ip in addresses:
        try:
            await _probe(family, (ip, port), plan.timeout_s)
        except OSError as error:
            failures.append(f"{ip} port {port}: {os.strerror(error.errno).lower() if error.errno else 'no answer'}")
            continue
        return Target(family, (ip, port), _tls(plan) if scheme == "https" else None, url_host)
    raise UpstreamUnreachable(
        f"nothing answers at {plan.url} ({'; '.join(failures)})", remedy="is the server running, and is the port right?"
    )


def _check_arrivals(arrivals: Arrivals) -> None:
    if isinstance(arrivals, Crowd):
        if arrivals.visitors < 1 or arrivals.requests < 1:
            raise ConfigError("--visitors and --requests must be at least 1")
        if arrivals.within_s < 0:
            raise ConfigError(f"--within {arrivals.within_s:g}s is negative", remedy="0s means all at once")
        return
    if arrivals.concurrency < 1:
        raise ConfigError("--concurrency must be at least 1")
    if arrivals.duration_s <= 0:
        raise ConfigError(f"--duration {arrivals.duration_s:g}s is not positive", remedy="10s is usual")
    if isinstance(arrivals, OpenLoop) and arrivals.rate <= 0:
        raise ConfigError(f"--rate {arrivals.rate:g} is not positive", remedy="it is in requests per second")


def _split_url(url: str) -> tuple[str, str, int, str, str]:
    """Scheme, host, port, authority (for `Host`) and target of a URL."""
    remedy = "write it as http://HOST:PORT/PATH or https://..."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL ({error})", remedy=remedy) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"{url!r} is not an http or https URL", remedy=remedy)
    if parts.username is not None:
        raise ConfigError(
            f"the URL for {parts.hostname} holds a password", remedy='send it with --header "Authorization: ..."'
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if _TARGET.fullmatch(target) is None:
        raise ConfigError(f"the path {target!r} holds characters that a URL cannot", remedy="percent-encode them")
    try:
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
    except UnicodeError:
        raise ConfigError(f"{parts.hostname!r} is not a host name", remedy=remedy) from None
    default = 443 if parts.scheme == "https" else 80
    bracketed = f"[{host}]" if ":" in host else host
    authority = bracketed if port in {None, default} else f"{bracketed}:{port}"
    return parts.scheme, host, default if port is None else port, authority, target


async def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, host)]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"the name {host} is not known ({error.strerror})", remedy="is it spelled right?") from None
    addresses = [(family, str(address[0])) for family, _, _, _, address in found]
    return list(dict.fromkeys(addresses))


async def _probe(family: socket.AddressFamily, address: tuple[str, int], timeout_s: float) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, address), timeout_s)


def _tls(plan: LoadPlan) -> ssl.SSLContext:
    if plan.insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context()
    if plan.trust_pem:
        try:
            context.load_verify_locations(cadata=plan.trust_pem)
        except ssl.SSLError as error:
            raise ConfigError(f"--cacert holds no certificate that can be read ({error.reason})") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def read_trust(path: str) -> str:
    """The text of a `--cacert` file."""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--cacert {path} cannot be read ({error})") from None
