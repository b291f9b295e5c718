"""Where an origin is and what it is told: the url of an `OriginRule` taken apart once, when the rule arrives. Pure."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from edgetun_core.errors import ConfigError
from edgetun_core.snapshot import OriginRule

_TYPED = {"h2c": "http", "h2": "https"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class OriginAddress:
    """An origin's place.

    `authority` is what `Host` says when the rule asks for the origin's own; `prefix` goes before every target and never
    ends in a slash; `unix_path` is empty for TCP, `host` and `port` are for `unix://`.
    """

    url: str
    is_tls: bool
    host: str
    port: int
    unix_path: str
    authority: bytes
    prefix: bytes

    @property
    def is_localhost(self) -> bool:
        """`localhost` is two addresses, and a development server often listens on one of them only."""
        return self.host == "localhost"


def parse_origin_url(url: str) -> OriginAddress:
    """Takes `http://host:port/prefix`, `https://...`, `unix:///path.sock`, `tcp://host:port` or `udp://...` apart; raises `ConfigError`."""
    if any(char.isspace() or not char.isprintable() for char in url):
        raise ConfigError(
            f'origin "{url}": a character that no URL has',
            remedy="write 3000, http://localhost:3000 or unix:///app.sock",
        )
    parts = urlsplit(url)
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if parts.netloc or not path.startswith("/"):
            raise ConfigError(
                f'origin "{url}": a unix socket needs an absolute path', remedy="write unix:///path/to.sock"
            )
        return OriginAddress(url, False, "", 0, path, b"localhost", b"")
    if parts.scheme in ("tcp", "udp") and parts.path:
        raise ConfigError(f'origin "{url}": a {parts.scheme} service has no path', remedy="leave it out")
    if parts.scheme not in (*_DEFAULT_PORTS, "tcp", "udp"):
        raise ConfigError(
            f'origin "{url}": not an http://, https://, tcp://, udp:// or unix:// URL',
            remedy="write http://localhost:3000",
        )
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f'origin "{url}": {error}', remedy="write a port from 1 to 65535") from None
    if port == 0:
        raise ConfigError(f'origin "{url}": no server has port 0', remedy="write a port from 1 to 65535")
    host = (parts.hostname or "").rstrip(".")
    if not host:
        raise ConfigError(f'origin "{url}": no host', remedy="write http://localhost:3000")
    if parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f'origin "{url}": only host, port and path may stand in it', remedy="leave the rest out")
    default = _DEFAULT_PORTS.get(parts.scheme, 0)
    if not (port or default):
        raise ConfigError(f'origin "{url}": no port', remedy=f"write {parts.scheme}://localhost:5432")
    try:
        host = host if host.isascii() else host.encode("idna").decode("ascii")
        shown = f"[{host}]" if ":" in host else host
        authority = (shown if port is None or port == default else f"{shown}:{port}").encode("ascii")
        prefix = parts.path.rstrip("/").encode("ascii")
    except UnicodeError:
        raise ConfigError(f'origin "{url}": characters beyond ASCII', remedy="write them percent-encoded") from None
    return OriginAddress(url, parts.scheme == "https", host, port or default, "", authority, prefix)


def choose_authority(rule: OriginRule, address: OriginAddress) -> bytes | None:
    """The fixed `Host` that a rule's requests carry, or None when each keeps the visitor's."""
    if rule.host_header == "preserve":
        return None
    if rule.host_header == "origin":
        return address.authority
    return rule.host_header.encode("ascii", "strict")


class TypedOrigin(NamedTuple):
    """What a person typed for an origin; `protocol` is empty when nothing was said of it."""

    url: str
    protocol: str


def read_typed_origin(text: str) -> TypedOrigin:
    """A port, HOST:PORT, or a URL; `h2c://` and `h2://` say that the server speaks HTTP/2. Raises `ConfigError`."""
    if text.isascii() and text.isdigit():
        text = f"localhost:{text}"
    scheme, separator, rest = text.partition("://")
    protocol = ""
    if not separator:
        url = f"http://{text}"
    elif scheme in _TYPED:
        protocol, url = scheme, f"{_TYPED[scheme]}://{rest}"
    else:
        url = text
    parse_origin_url(url)
    return TypedOrigin(url, protocol)


def read_origin(text: str) -> str:
    """The url of what a person types for an origin. Raises `ConfigError`."""
    return read_typed_origin(text).url


def fit_protocol(protocol: str, url: str) -> str:
    """The protocol of a rule whose url was replaced: HTTP/2 stays HTTP/2, with TLS or without as the new url has it."""
    is_tls = url.startswith("https:")
    if protocol in ("h2", "h2c"):
        return "h2" if is_tls else "h2c"
    return "http1" if protocol == "auto" and not is_tls else protocol


def read_stream_origin(text: str, kind: str) -> str:
    """The same for a TCP or UDP service (`kind`): a port, HOST:PORT, `tcp://...`, and `unix:///path.sock` for TCP."""
    if text.isascii() and text.isdigit():
        text = f"localhost:{text}"
    url = text if "://" in text else f"{kind}://{text}"
    scheme = url.partition("://")[0]
    if scheme != kind and not (kind == "tcp" and scheme == "unix"):
        raise ConfigError(f'origin "{text}": not a {kind}:// URL', remedy=f"write a port, or {kind}://localhost:5432")
    parse_origin_url(url)
    return url


def read_host_header(text: str) -> str:
    """What a person types for the `Host` that the origin gets. Raises `ConfigError`."""
    if text in ("preserve", "origin") or _AUTHORITY.fullmatch(text):
        return text
    raise ConfigError(f'--host-header "{text}" is not a host', remedy="write preserve, origin, or a name as app.test")


def check_ca_file(path: str, flag: str) -> None:
    """Raises `ConfigError` when a CA file cannot be used: better at the start than at the first visitor."""
    if not path:
        return
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ConfigError(
            f"{flag} {path}: no PEM certificate in it", remedy="give the CA's certificate as PEM"
        ) from None
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}", remedy="check the path") from None
