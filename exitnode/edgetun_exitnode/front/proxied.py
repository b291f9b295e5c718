"""A plain HTTP connection of a trusted proxy, until it has said by PROXY protocol whose it is; then the HTTP connection takes over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edgetun_core.http.message import Peer
from edgetun_core.proxy_protocol import ProxyHeaderError, read_proxy_header

if TYPE_CHECKING:
    from edgetun_exitnode.front.h1 import H1Connection
    from edgetun_exitnode.front.servers import Front

log = logging.getLogger(__name__)


class ProxiedConnection(asyncio.Protocol):
    """Stands before `connection`, whose transport it has, for as long as the header takes. Holds `MAX_HEADER_BYTES` and one read."""

    __slots__ = ("_all", "_connection", "_front", "_held", "_since")

    def __init__(self, front: Front, connection: H1Connection, everyone: set[ProxiedConnection]) -> None:
        self._front = front
        self._connection = connection
        self._held = bytearray()
        self._since = front.now
        self._all = everyone
        everyone.add(self)
        if len(everyone) > front.limits.max_connections:
            self.drop()

    def data_received(self, data: bytes) -> None:
        self._held += data
        transport = self._connection.transport
        try:
            header = read_proxy_header(bytes(self._held))
        except ProxyHeaderError as error:
            log.debug("a trusted proxy: %s", error)
            self._front.counters.connections_refused += 1
            self.drop()
            return
        if header is None:
            return
        self._all.discard(self)
        front, connection, told = self._front, self._connection, header.endpoints
        transport.set_protocol(connection)
        if told is not None:
            local = (told.destination, told.destination_port)
            peer = Peer(told.source, told.source_port, front.scheme, b"1.1", "", local)
        else:  # the proxy speaks for itself: a health check
            address, port = (transport.get_extra_info("peername") or ("", 0))[:2]
            peer = Peer(address, port, front.scheme, b"1.1", "", front.local_of(transport))
        front.welcome(connection, peer)
        rest = bytes(self._held[header.size_bytes :])
        if rest and not transport.is_closing():
            connection.data_received(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)

    def check_deadline(self, now: float) -> None:
        """Ends one that says nothing; called by the sweep."""
        if now - self._since > self._front.limits.head_s:
            self.drop()

    def drop(self) -> None:
        """Closes the connection."""
        self._connection.transport.abort()
