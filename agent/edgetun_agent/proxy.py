"""Out through a proxy: HTTP CONNECT or SOCKS5, for control and for sessions over TLS alike. QUIC cannot take it.

Inside it is TLS to control and to exit nodes as ever, so the proxy sees names and ports and nothing else.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from edgetun_core.errors import ConfigError, UpstreamUnreachable
from edgetun_core.quantities import quoted

if TYPE_CHECKING:
    import aiohttp
    from python_socks import ProxyType

PORTS: Final = {"http": 3128, "socks5": 1080, "socks5h": 1080}
LOCAL: Final = ("localhost", "127.0.0.0/8", "::1")
"""Never asked of a proxy: it would reach its own machine."""


class ProxyFailed(UpstreamUnreachable):
    """The proxy is not there, or does not connect to where it was asked to."""


class Proxy:
    """A `Way` by one proxy to all that `no_proxy` does not name.

    `url` is `http://` or `socks5://`, with `USER:PASSWORD@` where it wants one; `no_proxy` holds
    names (with all below them), addresses, networks (`10.0.0.0/8`), each with `:PORT` or not, or `*`. Raises `ConfigError`.
    """

    def __init__(self, url: str, no_proxy: Iterable[str] = ()) -> None:
        if "://" not in url:
            url = f"http://{url}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _unreadable() from None
        scheme = parts.scheme.lower()
        if scheme not in PORTS:
            raise ConfigError(
                f"a proxy of kind {quoted(scheme)} cannot be used",
                remedy="write http://HOST:PORT or socks5://HOST:PORT",
            )
        if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise _unreadable()
        self.scheme = "socks5" if scheme == "socks5h" else scheme
        self.host = parts.hostname
        self.port = port or PORTS[scheme]
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password or "") if parts.username else None
        self._direct = tuple(entry for entry in (*LOCAL, *(item.strip().lower() for item in no_proxy)) if entry)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    __repr__ = __str__

    def leads_to(self, host: str, port: int) -> bool:
        """Whether this address is asked of the proxy."""
        return not any(_matches(entry, host.lower().rstrip("."), port) for entry in self._direct)

    async def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """A socket on which the proxy has connected to the address. Raises `ProxyFailed`."""
        from python_socks.async_.asyncio import Proxy as Client

        client = Client(self._kind, self.host, self.port, self._user, self._password, rdns=True)
        failures: tuple[type[Exception], ...] = (*self.errors(), OSError, EOFError)
        try:
            sock = await client.connect(host, port, timeout=timeout_s)
        except failures as error:
            raise self.explain(error, host, port) from None
        sock.setblocking(False)
        return sock

    @staticmethod
    def errors() -> tuple[type[Exception], ...]:
        """What the libraries raise for the proxy's sake."""
        import aiohttp_socks
        import python_socks

        theirs = (aiohttp_socks.ProxyError, aiohttp_socks.ProxyConnectionError, aiohttp_socks.ProxyTimeoutError)
        return (python_socks.ProxyError, python_socks.ProxyConnectionError, python_socks.ProxyTimeoutError, *theirs)

    def explain(self, error: Exception, host: str, port: int) -> ProxyFailed:
        """Such an error in words for a person."""
        import aiohttp_socks
        import python_socks

        match error:
            case python_socks.ProxyError() | aiohttp_socks.ProxyError():
                return ProxyFailed(
                    f"proxy {self} does not connect to {host}:{port} ({_first_line(error)})",
                    remedy="check user and password in --proxy, ask who runs the proxy to allow it, or name the host in --no-proxy",
                )
            case TimeoutError() | aiohttp_socks.ProxyTimeoutError():
                return ProxyFailed(
                    f"proxy {self} did not connect to {host}:{port} in time", remedy="check --proxy or HTTPS_PROXY"
                )
            case _:
                return ProxyFailed(
                    f"proxy {self} cannot be reached ({_first_line(error)})", remedy="check --proxy or HTTPS_PROXY"
                )

    def connector(self, context: ssl.SSLContext) -> aiohttp.BaseConnector:
        """The same for a client of HTTP."""
        from aiohttp_socks import ProxyConnector

        return ProxyConnector(
            self.host,
            self.port,
            self._kind,
            self._user,
            self._password,
            rdns=True,
            ssl=context,
            limit=1,
            force_close=True,
        )

    @property
    def _kind(self) -> ProxyType:
        from python_socks import ProxyType

        return ProxyType.SOCKS5 if self.scheme == "socks5" else ProxyType.HTTP


def _unreadable() -> ConfigError:
    # The text may hold a password: it is not repeated.
    return ConfigError(
        "the proxy's URL cannot be read", remedy="write http://HOST:PORT or socks5://USER:PASSWORD@HOST:PORT"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether one entry of NO_PROXY names an address."""
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    if _address(entry) is not None:
        return address == _address(entry)
    name, colon, its_port = entry.rpartition(":")
    if colon and its_port.isdigit():
        if int(its_port) != port:
            return False
        entry = name
    if _address(entry) is not None:
        return address == _address(entry)
    entry = entry.removeprefix("*").removeprefix(".")
    return host == entry or host.endswith(f".{entry}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
