"""The TLS front: handshakes under our own count and deadline, then HTTP/2 or HTTP/1.1 as was agreed (ALPN).

Connections are accepted here and not by the loop's server: each takes a counted place from its first packet and can be dropped.
TLS itself is `edgetun_core.transport.tls_transport`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl

from edgetun_core.http.message import Peer
from edgetun_core.proxy_protocol import Endpoints
from edgetun_core.transport.tls_transport import TlsTransport
from edgetun_exitnode.front.addresses import normalise_address
from edgetun_exitnode.front.certificates import CertificateStore, sni_of
from edgetun_exitnode.front.context import FrontContext
from edgetun_exitnode.front.h1 import H1Connection
from edgetun_exitnode.front.h2 import H2Connection
from edgetun_exitnode.front.passthrough import Passthrough
from edgetun_exitnode.front.ports import StreamFronts
from edgetun_exitnode.front.servers import BACKLOG, Front, peer_of

_log = logging.getLogger(__name__)

_RELOAD_EVERY_S = 5.0
_ACCEPTED_AT_ONCE = 64
"""Connections taken in one go before the loop gets a turn."""
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class VisitorTls(TlsTransport):
    """A visitor's TLS connection."""

    __slots__ = ("begun", "told")

    def __init__(self, front: TlsFront, context: ssl.SSLContext, told: Endpoints | None) -> None:
        super().__init__(front, context)
        self.begun = front.now
        self.told = told
        """What a trusted proxy said of the visitor."""


class TlsFront(Front):
    """A listener for TLS. Certificates are chosen by server name and looked after while it runs."""

    scheme = b"https"
    checks_host = True
    takes_h2_unasked = False  # over TLS it is agreed by ALPN or not at all (RFC 9113 §3.2)
    can_half_close = False  # a TLS connection closes as a whole

    def __init__(
        self,
        context: FrontContext,
        sockets: list[socket.socket],
        certificates: CertificateStore,
        streams: StreamFronts | None = None,
    ) -> None:
        super().__init__(context, sockets)
        self._passthrough = (
            Passthrough(streams, self._begin_handshake, self._left_unopened, self.limits.tls_handshake_s)
            if streams is not None
            else None
        )
        self._certificates = certificates
        self._handshakes: dict[VisitorTls, str] = {}
        self._attaching: set[asyncio.Task[None]] = set()
        self._reload_at = self.now + _RELOAD_EVERY_S
        self._resting: set[socket.socket] = set()

    async def start(self) -> None:
        self._tick()
        for sock in self._sockets:
            sock.listen(BACKLOG)
            self._loop.add_reader(sock, self._accept, sock)

    def stop_accepting(self) -> None:
        self._resting.clear()
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock)
                sock.close()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                # Asking again at once would only spin; the sweep takes it up again.
                self._loop.remove_reader(listening)
                self._resting.add(listening)
                _log.warning("cannot accept visitors: %s; raise the limit of open files", error.strerror)
                return
            sock.setblocking(False)
            self._admit(sock, normalise_address(address[0]))

    def _admit(self, sock: socket.socket, address: str) -> None:
        proxy = address if self._passthrough is not None and self._passthrough.trusts(address) else ""
        if proxy:
            address = ""  # many visitors come from there; each is counted when it is known
        self.addresses.add(address)
        if not self.admits(address, len(self.connections) + len(self._handshakes) + self._unsorted):
            self.addresses.remove(address)
            self.counters.connections_refused += 1
            sock.close()
        elif self._passthrough is not None and (proxy or self._passthrough.is_needed):
            self._passthrough.take(sock, address, proxy, self.now)
        else:
            self._begin_handshake(sock, address)

    def _left_unopened(self, address: str) -> None:
        """A connection is no longer this front's: it goes to a tunnel as it is, or is gone."""
        self.addresses.remove(address)
        self._notice_empty()

    def _begin_handshake(self, sock: socket.socket, address: str, told: Endpoints | None = None) -> None:
        if told is not None:
            address = told.source
            self.addresses.add(address)
            if not self.admits(address, 0):
                self._left_unopened(address)
                self.counters.connections_refused += 1
                sock.close()
                return
        self.counters.tls_handshakes += 1
        transport = VisitorTls(self, self._certificates.context, told)
        self._handshakes[transport] = address
        task = self._loop.create_task(self._attach(transport, sock))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)

    async def _attach(self, transport: VisitorTls, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: transport, sock)
        except OSError as error:
            self.handshake_failed(transport, error)
        except BaseException:
            sock.close()
            raise

    def handshake_done(self, transport: TlsTransport) -> H1Connection:
        """What a connection begins as; `connected` is called next."""
        self._handshake_over(transport)
        return H1Connection(self)

    def handshake_failed(self, transport: TlsTransport, error: Exception | None) -> None:
        """See `TlsOwner`."""
        if error is not None:
            _log.debug("a TLS handshake failed: %s", error)
        if self._handshake_over(transport):
            self.counters.tls_handshake_failures += 1
            self._notice_empty()

    def _handshake_over(self, transport: TlsTransport) -> bool:
        """Gives the place of a handshake back; False when that was done before."""
        assert isinstance(transport, VisitorTls)
        address = self._handshakes.pop(transport, None)
        if address is None:
            return False
        self.addresses.remove(address)
        return True

    def connected(self, connection: H1Connection) -> None:
        """The handshake is done; the connection was admitted before it."""
        transport = connection.transport
        assert isinstance(transport, VisitorTls)
        told = transport.told
        address, port = peer_of(transport) if told is None else (told.source, told.source_port)
        local = self.local_of(transport) if told is None else (told.destination, told.destination_port)
        tls = transport.tls
        is_h2 = tls.selected_alpn_protocol() == "h2"
        peer = Peer(address, port, b"https", b"2" if is_h2 else b"1.1", sni_of(tls), local)
        if is_h2:
            agreed = H2Connection(self, transport, peer)
            transport.set_protocol(agreed)
            self.register(agreed)
            agreed.begin()
        else:
            connection.peer = peer
            self.register(connection)

    def approves(self, peer: Peer, authority: bytes) -> bool:
        return self._certificates.approves(peer.sni, authority)

    @property
    def _unsorted(self) -> int:
        return self._passthrough.waiting if self._passthrough is not None else 0

    def _is_empty(self) -> bool:
        return not self.connections and not self._handshakes and not self._unsorted

    def _make_room(self) -> bool:
        if self._unsorted * 2 > self.limits.max_connections and self._passthrough is not None:
            self.counters.connections_evicted += 1
            return self._passthrough.drop_oldest()
        # A handshake under way is the cheapest thing to lose, and the first thing that a flood leaves behind.
        if len(self._handshakes) * 2 > self.limits.max_connections:
            oldest = next(iter(self._handshakes))
            self.addresses.remove(self._handshakes.pop(oldest))
            oldest.abort()
            self.counters.connections_evicted += 1
            return True
        return super()._make_room()

    def _tick(self) -> None:
        super()._tick()
        for listening in self._resting:
            self._loop.add_reader(listening, self._accept, listening)
        self._resting.clear()
        if self._passthrough is not None:
            self._passthrough.sweep(self.now)
        late = self.now - self.limits.tls_handshake_s
        for transport in [one for one in self._handshakes if one.begun <= late]:
            transport.abort()
        if self.now >= self._reload_at:
            self._reload_at = self.now + _RELOAD_EVERY_S
            for problem in self._certificates.reload_changed():
                _log.warning("%s", problem)

    def close(self) -> None:
        super().close()
        if self._passthrough is not None:
            self._passthrough.close()
        for transport in tuple(self._handshakes):
            transport.abort()
