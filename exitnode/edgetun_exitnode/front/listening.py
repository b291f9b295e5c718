"""Listening sockets for visitors: addresses bound with the options that accepted connections inherit."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from edgetun_core.errors import ConfigError


def bind_sockets(host: str, port: int, *, reuse_port: bool = False, dead_after_s: float = 75.0) -> list[socket.socket]:
    """Binds every address of `host` (`""` or `"*"`: all interfaces) to one port; port 0 chooses a free one.

    Accepted connections inherit keep-alive and, on Linux, the time after which a peer that acknowledges nothing counts as
    dead. Raises ConfigError that says what to do.
    """
    if host in ("", "*"):
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(
            f"cannot listen on {host}: {error.strerror}", remedy="give an address of this machine"
        ) from None
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            if port == 0 and sockets:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                sockets.append(_bind(family, address, host == "::", reuse_port, dead_after_s))
            except OSError as error:
                # A name such as localhost may have an address family that this machine does not offer.
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(addresses) > 1:
                    continue
                raise ConfigError(_explain(host, port, error), remedy=_remedy(error)) from None
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise ConfigError(f"cannot listen on {host}: this machine has no such address")
    return sockets


def _bind(
    family: int, address: Sequence[object], dual_stack: bool, reuse_port: bool, dead_after_s: float
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(dead_after_s * 1000))
        sock.setblocking(False)
        sock.bind(tuple(address))
    except BaseException:
        sock.close()
        raise
    return sock


def _explain(host: str, port: int, error: OSError) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken: something else listens on {where}"
    if error.errno == errno.EACCES:
        return f"not allowed to listen on {where}"
    return f"cannot listen on {where}: {os.strerror(error.errno or 0)}"


def _remedy(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "stop it or choose another port"
    if error.errno == errno.EACCES:
        return "choose a port from 1024 on, or grant CAP_NET_BIND_SERVICE"
    return "choose an address of this machine"
