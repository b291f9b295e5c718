"""Listening for QUIC links: one UDP socket, datagrams told apart by their destination connection id.

Bounds: at most `MAX_HALF_OPEN` handshakes at a time, each until the handshake deadline; at most `max_links` links (one more is
told so and closed); an unknown datagram costs a dictionary look-up. `_admits` is where address validation by Retry
(RFC 9000 §8.1.2) belongs when half-open handshakes get many.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from edgetun_core.errors import Draining, EdgetunError, LimitExceeded, ProtocolError, SessionLost
from edgetun_core.pki import ServerIdentity
from edgetun_core.transport.failures import describe_listen_error
from edgetun_core.transport.link import ALPN, LinkUser
from edgetun_core.transport.quic_driver import CLOSE_TIMEOUT_S, QuicLink
from edgetun_core.transport.quic_library import library
from edgetun_core.transport.udp import Address, UdpSocket, bind_udp, split_segments

log = logging.getLogger("edgetun.transport")

MAX_HALF_OPEN: Final = 1000
LINGER_S: Final = 1.0
"""How long a closed connection's last packet is repeated for a peer that did not hear it (RFC 9000 §10.2)."""
MAX_FAREWELLS: Final = 8

QUIC_VERSION: Final = 1
MIN_INITIAL_BYTES: Final = 1200
CID_BYTES: Final = 8


class _Farewell:
    """Stands where a link stood, for a moment."""

    __slots__ = ("datagrams", "left")

    def __init__(self, datagrams: list[bytes]) -> None:
        self.datagrams = datagrams
        self.left = MAX_FAREWELLS


class QuicListener:
    """The endpoint of every link that came over one socket."""

    def __init__(
        self,
        engine: str,
        sock: socket.socket,
        identity: ServerIdentity,
        accept: Callable[[], LinkUser],
        *,
        max_links: int,
        handshake_timeout_s: float,
    ) -> None:
        self.refused = 0
        """Links and handshakes turned away because a bound was reached."""
        self._engine = engine
        self._library = library(engine)
        self._identity = identity
        self._identity_version = -1
        self._configuration: Any = None
        self._accept = accept
        self._max_links = max_links
        self._handshake_timeout_s = handshake_timeout_s
        self._routes: dict[bytes, QuicLink | _Farewell] = {}
        self._cids: dict[QuicLink, list[bytes]] = {}
        self._half_open: dict[QuicLink, asyncio.TimerHandle] = {}
        self._established: dict[QuicLink, None] = {}
        self._touched: dict[QuicLink, None] = {}
        self._lingering: dict[asyncio.TimerHandle, None] = {}
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._all_gone: asyncio.Future[None] | None = None
        self._prepare()
        self._udp = UdpSocket(sock, self._on_datagrams, self._on_batch_end, self._on_error)
        self.host, self.port = self._udp.local_address

    @property
    def links(self) -> int:
        return len(self._established)

    @property
    def udp_buffer_bytes(self) -> int:
        """The kernel's receive buffer; less than 7.5 MB means loss at high speed."""
        return self._udp.buffer_bytes

    @property
    def udp_dropped(self) -> int:
        """Datagrams that could not be sent."""
        return self._udp.dropped

    def _prepare(self) -> None:
        if self._identity_version != self._identity.version:
            self._configuration = self._library.server_configuration(self._identity)
            self._identity_version = self._identity.version

    # --- called by the socket

    def _on_datagrams(self, data: bytes, segment: int, address: Address) -> None:
        cid = _destination_cid(data, 0)
        route = self._routes.get(cid)
        if len(data) > segment and (
            not isinstance(route, QuicLink) or _destination_cid(data, (len(data) - 1) // segment * segment) != cid
        ):
            for datagram in split_segments(data, segment):
                self._on_datagrams(datagram, len(datagram), address)
            return
        if isinstance(route, QuicLink):
            self._touched[route] = None
            route.take(data, segment, address, time.monotonic())
        elif route is not None:
            if route.left > 0:
                route.left -= 1
                self._udp.send(list(route.datagrams), address)
        elif data[0] & 0x80 and len(data) >= MIN_INITIAL_BYTES:
            self._first_contact(data, cid, address)

    def _on_batch_end(self) -> None:
        touched = self._touched
        if touched:
            self._touched = {}
            for link in touched:
                link.pump()

    def _on_error(self, error: OSError) -> None:
        """A datagram to one of many peers was refused; that peer's timers notice."""

    def _first_contact(self, data: bytes, cid: bytes, address: Address) -> None:
        version = int.from_bytes(data[1:5], "big")
        if version != QUIC_VERSION:
            if version != 0:
                self._udp.send([_version_negotiation(data)], address)
            return
        is_initial = data[0] & 0x30 == 0
        if not is_initial or len(cid) < CID_BYTES or not self._admits():
            return
        self._prepare()
        connection = self._library.accept(self._configuration, cid)
        link = QuicLink(self._engine, connection, self, None, is_dialler=False)
        self._half_open[link] = self._loop.call_later(self._handshake_timeout_s, self._too_slow, link)
        self._cids[link] = []
        self.cid_issued(link, cid)
        self.cid_issued(link, connection.host_cid)
        self._touched[link] = None
        link.take(data, len(data), address, time.monotonic())

    def _admits(self) -> bool:
        if self._closing:
            return False
        if len(self._half_open) >= MAX_HALF_OPEN:
            self.refused += 1
            return False
        return True

    def _too_slow(self, link: QuicLink) -> None:
        link.fail(SessionLost("the handshake took too long"))

    # --- called by the links

    @property
    def is_blocked(self) -> bool:
        return self._udp.is_blocked

    def send(self, datagrams: list[bytes], address: Address) -> None:
        self._udp.send(datagrams, address)

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._udp.when_writable(callback)

    def handshake_done(self, link: QuicLink, alpn: str | None) -> EdgetunError | None:
        if alpn != ALPN:
            return ProtocolError(f"this port speaks {ALPN}")
        if len(self._established) >= self._max_links:
            self.refused += 1
            return LimitExceeded("this exit node holds as many links as it may")
        deadline = self._half_open.pop(link, None)
        if deadline is not None:
            deadline.cancel()
        self._established[link] = None
        link.open_for(self._accept())
        return None

    def cid_issued(self, link: QuicLink, cid: bytes) -> None:
        self._routes[cid] = link
        self._cids[link].append(cid)

    def cid_retired(self, link: QuicLink, cid: bytes) -> None:
        if self._routes.get(cid) is link:
            del self._routes[cid]
            self._cids[link].remove(cid)

    def link_ended(self, link: QuicLink, error: EdgetunError | None) -> None:
        deadline = self._half_open.pop(link, None)
        if deadline is not None:
            deadline.cancel()
        self._established.pop(link, None)
        cids = self._cids.pop(link, [])
        if link.farewell and not self._closing:
            farewell = _Farewell(link.farewell)
            for cid in cids:
                self._routes[cid] = farewell
            handle: asyncio.TimerHandle | None = None

            def forget() -> None:
                for cid in cids:
                    if self._routes.get(cid) is farewell:
                        del self._routes[cid]
                if handle is not None:
                    self._lingering.pop(handle, None)

            handle = self._loop.call_later(LINGER_S, forget)
            self._lingering[handle] = None
        else:
            for cid in cids:
                self._routes.pop(cid, None)
        if not self._cids and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    async def close(self) -> None:
        self._closing = True
        for link in list(self._half_open):
            link.abort()
        if self._cids:
            self._all_gone = self._loop.create_future()
            for link in list(self._established):
                link.close(Draining.presentation.close_code, "the listener is closing")
            if self._cids:
                await asyncio.wait([self._all_gone], timeout=CLOSE_TIMEOUT_S + 1)
        for handle in self._lingering:
            handle.cancel()
        self._routes.clear()
        self._udp.close()
        await asyncio.sleep(0)  # `on_closed` of the last link


async def listen_quic(
    engine: str,
    host: str,
    port: int,
    identity: ServerIdentity,
    accept: Callable[[], LinkUser],
    *,
    max_links: int,
    handshake_timeout_s: float,
    reuse_port: bool,
) -> QuicListener:
    """See `engines.listen`."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host or "::", port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        sock = bind_udp(family, address, reuse_port=reuse_port)
    except OSError as error:
        raise describe_listen_error(error, host, port, "UDP") from error
    try:
        return QuicListener(
            engine, sock, identity, accept, max_links=max_links, handshake_timeout_s=handshake_timeout_s
        )
    except BaseException:
        sock.close()
        raise


def _destination_cid(data: bytes, start: int) -> bytes:
    """The destination connection id of the datagram at `start` (RFC 9000 §17.2, §17.3); ours have 8 bytes."""
    if data[start] & 0x80:
        size = data[start + 5] if len(data) > start + 5 else 0
        return data[start + 6 : start + 6 + size]
    return data[start + 1 : start + 1 + CID_BYTES]


def _version_negotiation(data: bytes) -> bytes:
    """Which version is spoken here (RFC 9000 §17.2.1); the ids are the client's, turned round."""
    destination_end = 6 + data[5]
    source_end = destination_end + 1 + data[destination_end] if destination_end < len(data) else destination_end
    return b"".join(
        (
            bytes((0x80 | os.urandom(1)[0],)),
            bytes(4),
            data[destination_end:source_end],
            data[5:destination_end],
            QUIC_VERSION.to_bytes(4, "big"),
        )
    )
