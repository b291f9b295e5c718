"""Dialling a QUIC link: one connected UDP socket per link, every address of the host in turn."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Hashable
from functools import partial
from typing import Any, Final

from edgetun_core.errors import EdgetunError, ProtocolError, SessionLost, UpstreamUnreachable
from edgetun_core.pki import Trust
from edgetun_core.transport.failures import describe_dial_error, describe_quic_end
from edgetun_core.transport.link import ALPN, LinkUser
from edgetun_core.transport.quic_connection import (
    CID_BYTES,
    DIAL_PACKET_BYTES,
    LOSSY_CID_BYTES,
    SMALLEST_PACKET_BYTES,
    Connection,
)
from edgetun_core.transport.quic_driver import QuicLink
from edgetun_core.transport.quic_library import LOSSY_ENGINE, dial_connection, library
from edgetun_core.transport.tickets import Remembered
from edgetun_core.transport.udp import Address, UdpSocket, forbid_fragments

REBIND_FROM_PROBES: Final = 2
REBIND_EVERY_S: Final = 1.0
ADDRESS_IS_GONE: Final = frozenset(
    {errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH}
)
"""What the kernel says when a socket's own address or way is no more."""
SMALL_FOR_S: Final = 600.0
MAX_SMALL_PATHS: Final = 1000
REFUSED_FOR_S: Final = 1.0
"""A peer whose host says "nobody listens there" for this long, with nothing heard meanwhile, is gone."""


class SmallPaths:
    """Hosts to which packets of `DIAL_PACKET_BYTES` did not get through, so that the next dial does not wait to find that out."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def packet_bytes(self, host: str, now: float) -> int:
        """With what size to begin."""
        return DIAL_PACKET_BYTES if self._until.get(host, 0.0) <= now else SMALLEST_PACKET_BYTES

    def found(self, host: str, now: float) -> None:
        """The first flight was too large for a host."""
        if self.packet_bytes(host, now) == DIAL_PACKET_BYTES:
            self._until = {each: until for each, until in self._until.items() if until > now}
            if len(self._until) < MAX_SMALL_PATHS:
                self._until[host] = now + SMALL_FOR_S


small_paths = SmallPaths()
remembered = Remembered()


class DialledQuicLink(QuicLink):
    """A link whose socket is its own and can be replaced."""

    __slots__ = ("_dialled",)

    def __init__(self, engine: str, connection: Any, dialled: _DialledEndpoint, user: LinkUser) -> None:
        is_lossy = len(connection.host_cid) == LOSSY_CID_BYTES
        super().__init__(engine, connection, dialled, user, is_dialler=True, is_lossy=is_lossy)
        self._dialled = dialled

    @property
    def udp_buffer_bytes(self) -> int:
        """The kernel's receive buffer of this link's socket."""
        return self._dialled.udp_buffer_bytes

    def rebind(self) -> None:
        """Goes on from a new local address, as after a change of network (RFC 9000 §9); raises `OSError`."""
        self._dialled.rebind()

    def _on_timer(self) -> None:
        super()._on_timer()
        if not self._ended and self.may_migrate and self._quic.probes_unanswered >= REBIND_FROM_PROBES:
            self._dialled.look_for_another_way()

    @property
    def may_migrate(self) -> bool:
        """Whether the peer would follow to another address."""
        return self._quic.may_migrate


class _DialledEndpoint:
    def __init__(self, family: int, address: Address, up: asyncio.Future[None]) -> None:
        self._family = family
        self._address = address
        self._up = up
        self._link: DialledQuicLink | None = None
        self._heard = False
        self._refused_since = 0.0
        self._rebound_at = 0.0
        self.rebindings = 0
        self._udp = self._open()

    def _open(self) -> UdpSocket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            forbid_fragments(sock)
            sock.connect(self._address)
        except BaseException:
            sock.close()
            raise
        return UdpSocket(sock, self._on_datagrams, self._on_batch_end, self._on_error)

    def start(self, engine: str, connection: Any, user: LinkUser) -> DialledQuicLink:
        self._link = link = DialledQuicLink(engine, connection, self, user)
        link.start(self._address)
        return link

    def rebind(self) -> None:
        fresh = self._open()
        self._udp.close()
        self._udp = fresh
        if self._link is not None:
            self._link.transmit()

    def look_for_another_way(self) -> None:
        """Nothing comes back, or nothing can be sent: this machine's address may be another by now, or a NAT may have forgotten the old one.

        A fresh socket has the address that the kernel would choose now, and asks the NAT for a new binding.
        """
        now = time.monotonic()
        if now - self._rebound_at < REBIND_EVERY_S:
            return
        self._rebound_at = now
        try:
            self.rebind()
        except OSError:
            pass  # no network at all; the next probe looks again
        else:
            self.rebindings += 1

    @property
    def udp_buffer_bytes(self) -> int:
        return self._udp.buffer_bytes

    # --- called by the socket

    def _on_datagrams(self, data: bytes, segment: int, address: Address) -> None:
        self._refused_since = 0.0
        if self._link is not None:
            self._link.take(data, segment, address, time.monotonic())

    def _on_batch_end(self) -> None:
        if self._link is not None:
            self._link.pump()

    def _on_error(self, error: OSError) -> None:
        link = self._link
        if error.errno != errno.ECONNREFUSED:
            if error.errno in ADDRESS_IS_GONE and link is not None and link.may_migrate:
                asyncio.get_running_loop().call_soon(self.look_for_another_way)
            return  # a network that is away for a moment; QUIC's timers decide
        if link is None or not link.is_established:
            if not self._up.done():
                self._up.set_exception(error)
            return
        # Anybody on the path could forge it (RFC 9000 §14.2.1), so once is not enough.
        now = time.monotonic()
        if not self._refused_since:
            self._refused_since = now
        elif now - self._refused_since > REFUSED_FOR_S:
            link.fail(SessionLost(f"nobody listens at UDP {link.peer_address[0]}:{link.peer_address[1]} any more"))

    # --- called by the link

    @property
    def is_blocked(self) -> bool:
        return self._udp.is_blocked

    def send(self, datagrams: list[bytes], address: Address) -> None:
        self._udp.send(datagrams, address)

    def when_writable(self, callback: Any) -> None:
        self._udp.when_writable(callback)

    def handshake_done(self, link: QuicLink, alpn: str | None) -> EdgetunError | None:
        if alpn != ALPN:
            return ProtocolError(
                f"UDP {self._address[0]}:{self._address[1]} does not speak {ALPN}",
                remedy="check that host and port are an exit node's",
            )
        if not self._up.done():
            self._up.set_result(None)
        return None

    def cid_issued(self, link: QuicLink, cid: bytes) -> None: ...
    def cid_retired(self, link: QuicLink, cid: bytes) -> None: ...

    def link_ended(self, link: QuicLink, error: EdgetunError | None) -> None:
        if not self._up.done():
            self._up.set_exception(error or SessionLost("the link was closed before it was open"))
        self._udp.close()


async def dial_quic(
    engine: str,
    host: str,
    port: int,
    trust: Trust,
    user: LinkUser,
    timeout_s: float,
    server_name: str | None,
    *,
    is_lossy: bool = False,
) -> DialledQuicLink:
    """See `engines.dial`."""
    engine = LOSSY_ENGINE if is_lossy else engine
    packets = library(engine)
    cid_bytes = LOSSY_CID_BYTES if is_lossy else CID_BYTES
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    name = server_name or host
    try:
        async with asyncio.timeout(timeout_s):
            found = await resolve(host, port)
    except (OSError, TimeoutError) as error:
        raise describe_dial_error(error, host, port, name, timeout_s) from error
    failure: EdgetunError | None = None
    for position, (family, address) in enumerate(found):
        share_s = (until - loop.time()) / (len(found) - position)
        try:
            peer = (engine, address[0], port, name, trust)
            connection = dial_connection(
                packets,
                trust,
                name,
                cid_bytes=cid_bytes,
                packet_bytes=small_paths.packet_bytes(address[0], time.monotonic()),
                ticket=remembered.take(peer, time.monotonic()),
                on_ticket=partial(_remember, peer),
            )
            link = await _dial_one(connection, engine, family, address, (host, port), user, share_s, name)
            if connection.packet_bytes < DIAL_PACKET_BYTES:
                small_paths.found(address[0], time.monotonic())
            return link
        except UpstreamUnreachable as error:
            failure = error
    assert failure is not None
    raise failure


def _remember(peer: Hashable, ticket: Any) -> None:
    ticket.max_early_data_size = None  # nothing is sent early
    remembered.put(peer, ticket, time.monotonic())


async def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """`(family, address)` of a host, in the order in which to try them. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    return [(family, address) for family, _, _, _, address in found]


async def _dial_one(
    connection: Connection,
    engine: str,
    family: int,
    address: Any,
    asked: tuple[str, int],
    user: LinkUser,
    timeout_s: float,
    name: str,
) -> DialledQuicLink:
    loop = asyncio.get_running_loop()
    up: asyncio.Future[None] = loop.create_future()
    try:
        endpoint = _DialledEndpoint(family, address, up)
    except OSError as error:
        raise describe_dial_error(error, *asked, name, timeout_s) from error
    link = endpoint.start(engine, connection, user)
    try:
        async with asyncio.timeout(timeout_s):
            await up
    except TimeoutError:
        if link.is_open:  # up in the very tick in which time ran out
            return link
        link.abort()
        raise UpstreamUnreachable(
            f"UDP {asked[0]}:{asked[1]} did not answer within {timeout_s:.1f} s",
            remedy="UDP may be blocked on the way; the tls engine goes over TCP",
        ) from None
    except OSError as error:
        link.abort()
        raise describe_dial_error(error, *asked, name, timeout_s, kind="UDP ") from error
    except EdgetunError as error:
        if link.ended_by is None:
            raise
        raise describe_quic_end(link.ended_by, *asked, name) from error
    except asyncio.CancelledError:
        link.abort()
        raise
    return link
