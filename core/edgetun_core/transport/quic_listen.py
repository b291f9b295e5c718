"""Listening for QUIC links: an endpoint (quic_endpoint.py) whose connections are sessions' links.

Bounds beyond the endpoint's: at most `max_links` links; one more is told so and closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgetun_core.errors import Draining, EdgetunError, LimitExceeded, ProtocolError
from edgetun_core.pki import ServerIdentity
from edgetun_core.transport.failures import describe_listen_error
from edgetun_core.transport.link import ALPN, LinkUser
from edgetun_core.transport.quic_connection import LOSSY_CID_BYTES, PACKET_SIZES, SMALLEST_PACKET_BYTES
from edgetun_core.transport.quic_driver import QuicLink
from edgetun_core.transport.quic_endpoint import FirstContact, QuicEndpoint
from edgetun_core.transport.quic_library import LOSSY_ENGINE, accept_connection, library
from edgetun_core.transport.quic_peer import CLOSE_TIMEOUT_S
from edgetun_core.transport.tickets import Tickets
from edgetun_core.transport.udp import bind_udp, forbid_fragments


class QuicListener(QuicEndpoint[QuicLink]):
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
        self._engine = engine
        self._identity = identity
        self._identity_version = -1
        self._configurations: dict[str, dict[int, Any]] = {}
        """By engine and packet size: what a connection would keep for itself is 1.5 KB."""
        self._tickets: dict[str, Tickets] = {}
        """By engine; gone with the certificate that they stand for."""
        self._accept = accept
        self._max_links = max_links
        self._established: dict[QuicLink, None] = {}
        self._configuration(engine, SMALLEST_PACKET_BYTES)
        super().__init__(sock, handshake_timeout_s=handshake_timeout_s)

    @property
    def links(self) -> int:
        return len(self._established)

    def _configuration(self, engine: str, packet_bytes: int) -> Any:
        if self._identity_version != self._identity.version:
            self._configurations.clear()
            self._tickets.clear()
            self._identity_version = self._identity.version
        of_engine = self._configurations.get(engine)
        if of_engine is None:
            made = library(engine).server_configuration(self._identity)
            of_engine = self._configurations[engine] = {
                size: replace(made, max_datagram_size=size) for size in PACKET_SIZES
            }
        return of_engine[packet_bytes]

    def _make(self, first: FirstContact) -> tuple[QuicLink, bytes]:
        is_lossy = len(first.client_cid) == LOSSY_CID_BYTES
        engine = LOSSY_ENGINE if is_lossy else self._engine
        packet_bytes = next((size for size in PACKET_SIZES if size <= first.size_bytes), SMALLEST_PACKET_BYTES)
        connection = accept_connection(
            library(engine),
            self._configuration(engine, packet_bytes),
            first.original_cid,
            tickets=self._tickets.setdefault(engine, Tickets()),
        )
        return QuicLink(engine, connection, self, None, is_dialler=False, is_lossy=is_lossy), connection.host_cid

    # --- called by the links

    def handshake_done(self, link: QuicLink, alpn: str | None) -> EdgetunError | None:
        if alpn != ALPN:
            return ProtocolError(f"this port speaks {ALPN}")
        if len(self._established) >= self._max_links:
            self.refused += 1
            return LimitExceeded("this exit node holds as many links as it may")
        self._no_longer_half_open(link)
        self._established[link] = None
        link.open_for(self._accept())
        return None

    def link_ended(self, connection: QuicLink, error: EdgetunError | None) -> None:
        self._established.pop(connection, None)
        super().link_ended(connection, error)

    async def close(self) -> None:
        self._closing = True
        for link in list(self._half_open):
            link.abort()
        for link in list(self._established):
            link.close(Draining.presentation.close_code, "the listener is closing")
        await self._wait_all_gone(CLOSE_TIMEOUT_S + 1)
        self._close_socket()
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
        forbid_fragments(sock)
    except OSError as error:
        raise describe_listen_error(error, host, port, "UDP") from error
    try:
        return QuicListener(
            engine, sock, identity, accept, max_links=max_links, handshake_timeout_s=handshake_timeout_s
        )
    except BaseException:
        sock.close()
        raise
