"""Listening sockets for visitors: addresses bound with the options that accepted connections inherit."""

from __future__ import annotations

import errno
import socket

from edgetun_core.errors import AddressUnavailable, ConfigError


def bind_sockets(host: str, port: int, *, reuse_port: bool = False, dead_after_s: float = 75.0) -> list[socket.socket]:
    """Binds every address of `host` (`""` or `"*"`: all interfaces) to one port; port 0 chooses a free one.

    Accepted connections inherit keep-alive and, on Linux, the time after which a peer that acknowledges nothing counts as
    dead. Raises OSError.
    """
    if host in ("", "*"):
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            wanted = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(_bind(family, (address[0], wanted), host == "::", reuse_port, dead_after_s))
            except OSError as error:
                # A name such as localhost may have an address of a family that this machine does not offer.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if not sockets and host == "::":
            sockets.append(_bind(socket.AF_INET, ("0.0.0.0", port), False, reuse_port, dead_after_s))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise missing or OSError(errno.EADDRNOTAVAIL, f"{host} has no address")
    return sockets


def bind_udp_sockets(host: str, port: int) -> list[socket.socket]:
    """The same for UDP: one socket per address of `host`."""
    if host in ("", "*"):
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            wanted = sockets[0].getsockname()[1] if sockets else port
            sock = socket.socket(family, socket.SOCK_DGRAM)
            try:
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
                sock.bind((address[0], wanted))
            except OSError as error:
                sock.close()
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
            else:
                sockets.append(sock)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise missing or OSError(errno.EADDRNOTAVAIL, f"{host} has no address")
    return sockets


def explain(error: OSError, host: str, port: int, flag: str) -> ConfigError:
    """Why an address cannot be listened on, and what to do; `flag` is the one that chooses the port."""
    if isinstance(error, socket.gaierror):
        return ConfigError(f'--listen: "{host}" is not an address of this machine', remedy="write 127.0.0.1 or 0.0.0.0")
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            return AddressUnavailable(
                f"{place} is taken by another program", remedy=f"stop that one, or choose another port with {flag}"
            )
        case errno.EACCES | errno.EPERM:
            return AddressUnavailable(
                f"{place} may not be listened on by this user",
                remedy=f"choose a port above 1023 with {flag}, or allow it (root, or CAP_NET_BIND_SERVICE)",
            )
        case errno.EADDRNOTAVAIL:
            return AddressUnavailable(
                f"{host} is not an address of this machine", remedy="choose another with --listen"
            )
        case _:
            return AddressUnavailable(
                f"{place} cannot be listened on ({error.strerror or error})", remedy=f"choose another port with {flag}"
            )


def _bind(
    family: int, address: tuple[object, int], dual_stack: bool, reuse_port: bool, dead_after_s: float
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
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
