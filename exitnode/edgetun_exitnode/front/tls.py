"""The TLS front: handshakes under our own count and deadline, then HTTP/1.1 as on the plain front.

The connection is accepted in the clear and turned into TLS by `start_tls`, so that an unfinished handshake takes a counted place
and can be dropped. That is the one task a visitor's connection costs, and it ends with the handshake.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

from edgetun_core.http.message import Peer
from edgetun_exitnode.front.certificates import CertificateStore, sni_of
from edgetun_exitnode.front.context import FrontContext
from edgetun_exitnode.front.h1 import H1Connection
from edgetun_exitnode.front.servers import Front, peer_of

_log = logging.getLogger(__name__)

_RELOAD_EVERY_S = 5.0
_SHUTDOWN_S = 30.0


class TlsFront(Front):
    """A listener for TLS. Certificates are chosen by server name and looked after while it runs."""

    scheme = b"https"
    checks_host = True
    can_half_close = False  # a TLS connection closes as a whole

    def __init__(self, context: FrontContext, sockets: list[socket.socket], certificates: CertificateStore) -> None:
        super().__init__(context, sockets)
        self._certificates = certificates
        self._handshakes: dict[asyncio.Transport, asyncio.Task[None]] = {}
        self._reload_at = self.now + _RELOAD_EVERY_S

    def _protocol(self) -> asyncio.Protocol:
        return _Accepted(self)

    def approves(self, peer: Peer, authority: bytes) -> bool:
        """RFC 9110 §7.4: a host other than the one the connection was made for only if one certificate vouches for both."""
        sni = peer.sni
        if not sni:
            return True
        host = authority.decode("ascii", "replace")
        if not host.endswith("]"):
            host = host.rpartition(":")[0] or host
        host = host.rstrip(".")
        return host == sni or self._certificates.covers_both(sni, host)

    def accepted(self, transport: asyncio.Transport) -> None:
        """A TCP connection came; starts the handshake if there is room."""
        if self.draining or not self.admits(peer_of(transport)[0], len(self.connections) + len(self._handshakes)):
            self.counters.connections_refused += 1
            transport.abort()
            return
        transport.pause_reading()
        self._handshakes[transport] = self._loop.create_task(self._shake_hands(transport))

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        connection = H1Connection(self)
        connection.wait_for_transport()
        self.counters.tls_handshakes += 1
        try:
            secured = await self._loop.start_tls(
                transport,
                connection,
                self._certificates.context,
                server_side=True,
                ssl_handshake_timeout=self.limits.tls_handshake_s,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except (OSError, ssl.SSLError) as error:
            self.counters.tls_handshake_failures += 1
            _log.debug("TLS handshake failed: %s", error)
            transport.abort()
            return
        finally:
            self._handshakes.pop(transport, None)
            self._notice_empty()
        if secured is None or secured.is_closing() or connection.closing:
            return
        address, port = peer_of(transport)
        sni = sni_of(secured.get_extra_info("ssl_object"))
        connection.transport = secured
        connection.peer = Peer(address, port, b"https", b"1.1", sni, self.local_of(transport))
        self.register(connection)
        connection.transport_is_there()

    def _is_empty(self) -> bool:
        return not self.connections and not self._handshakes

    def _make_room(self) -> bool:
        # A handshake under way is the cheapest thing to lose, and the first thing that a flood leaves behind.
        if len(self._handshakes) * 2 > self.limits.max_connections:
            oldest, task = next(iter(self._handshakes.items()))
            task.cancel()
            oldest.abort()
            self.counters.connections_evicted += 1
            return True
        return super()._make_room()

    def _tick(self) -> None:
        super()._tick()
        if self.now >= self._reload_at:
            self._reload_at = self.now + _RELOAD_EVERY_S
            for problem in self._certificates.reload_changed():
                _log.warning("%s", problem)

    def close(self) -> None:
        super().close()
        for transport, task in tuple(self._handshakes.items()):
            task.cancel()
            transport.abort()
        self._handshakes.clear()


class _Accepted(asyncio.Protocol):
    """Stands in for the protocol until the handshake is over."""

    __slots__ = ("_front",)

    def __init__(self, front: TlsFront) -> None:
        self._front = front

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._front.accepted(transport)  # type: ignore[arg-type]
