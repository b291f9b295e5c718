"""The HTTP/3 front: one UDP socket, its connections, their bounds and deadlines, and going away in good order.

As in the TCP fronts, everything that would cost a timer or a callback per connection or request is done for all of them here: one
sweep a second, one callback per loop tick for what was left to flush.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from email.utils import formatdate
from typing import Final

from edgetun_core.errors import ConfigError, Draining, EdgetunError
from edgetun_core.http.head_memo import HeadMemo
from edgetun_core.http.message import Field, Peer, RequestHead
from edgetun_core.http.multiplexed import ReceivedRequest, read_request
from edgetun_core.http.qpack import SectionDecoder
from edgetun_core.memo import Memo
from edgetun_core.transport.quic_endpoint import RETRY_FROM, FirstContact, QuicEndpoint
from edgetun_core.transport.quic_qh3_server import Server, Shown, shown
from edgetun_core.transport.quic_retry import ResetTokens, RetryTokens
from edgetun_core.transport.udp import Address, bind_udp, plain_address
from edgetun_exitnode.front.addresses import AddressCounts
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.clock import FrontClock
from edgetun_exitnode.front.context import FrontContext
from edgetun_exitnode.front.eviction import Evictor
from edgetun_exitnode.front.h3 import H3Connection
from edgetun_exitnode.front.h3_exchange import SAFE_METHODS, H3Exchange
from edgetun_exitnode.front.h3_response import date_line
from edgetun_exitnode.front.memos import REMEMBERED_BYTES, KnownRequests

_log = logging.getLogger(__name__)

ALPN: Final = "h3"
MAX_STREAM_DATA_BYTES: Final = 512 * 1024
MAX_DATA_BYTES: Final = 768 * 1024
"""What a visitor may have under way to us, of one request and of all; also what the library may keep of it out of order."""
_RESETS_PER_SWEEP: Final = 200
_TELL_EVERY_S: Final = 60.0
_FIELD_OVERHEAD_BYTES: Final = 32
"""What a field counts beside its bytes (RFC 9114 §4.2.2)."""


class H3Front(QuicEndpoint[H3Connection]):
    """A listener for HTTP/3; made by `serve_http3`."""

    scheme = b"https"

    def __init__(
        self,
        context: FrontContext,
        sock: socket.socket,
        certificates: CertificateStore,
        *,
        retry_from: int = RETRY_FROM,
    ) -> None:
        limits = context.limits
        self.context = context
        self.limits = limits
        self.h1_limits = limits.h1
        self.counters = context.counters
        self.max_section_bytes = limits.h1.max_head_bytes + _FIELD_OVERHEAD_BYTES * limits.h1.max_fields
        self.known: KnownRequests = HeadMemo(REMEMBERED_BYTES)
        """By the bytes of a whole stream: of requests that were one HEADERS frame."""
        self._heads: KnownRequests = HeadMemo(REMEMBERED_BYTES)
        self._clock = FrontClock(context.clock, limits.sweep_s)
        self.now = self._clock.now
        """The time of the last sweep, by the front's own clock."""
        self.date_line = b""
        self.draining = False
        self.held_bytes = 0
        self.ping_s = limits.keep_alive_s / 3
        self.connections: dict[H3Connection, None] = {}
        """Those whose handshake is through."""
        self.addresses = AddressCounts(limits.max_connections_per_address)
        self._certificates = certificates
        self._decoder = SectionDecoder(self.max_section_bytes)
        self._evictor: Evictor[H3Connection] = Evictor(lambda connection, _now: connection.idle_s)
        self._early: Memo[int, tuple[ReceivedRequest, RequestHead]] = Memo(256)
        self._unflushed: list[H3Exchange] = []
        self._unreleased: list[H3Exchange] = []
        self._unpumped: list[H3Connection] = []
        self._retry_tokens: RetryTokens | None = None
        self._retry_secret = os.urandom(32)
        self._resets: tuple[bytes, ResetTokens] | None = None
        self._resets_left = _RESETS_PER_SWEEP
        self.resets_sent = 0
        self._tripped_at = -_TELL_EVERY_S
        self._tripped = 0
        self._emptied: asyncio.Future[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._server = Server(
            alpn=ALPN,
            idle_timeout_s=limits.keep_alive_s,
            max_data_bytes=MAX_DATA_BYTES,
            max_stream_data_bytes=MAX_STREAM_DATA_BYTES,
            choose=self._choose,
            reset_token=lambda cid: self._reset_tokens().token(cid),
        )
        super().__init__(
            sock, handshake_timeout_s=limits.tls_handshake_s, tokens=self._tokens_for_retry, retry_from=retry_from
        )
        self._tick()

    # --- certificates and tokens

    def _choose(self, name: str) -> Shown | None:
        try:
            certificate = self._certificates.choose(name)
        except ConfigError as error:
            _log.warning("%s", error)
            return None
        if certificate is None:
            return None
        prepared = certificate.prepared
        if prepared is None:
            prepared = certificate.prepared = shown(certificate.identity)
        assert isinstance(prepared, Shown)
        return prepared

    def _tokens_for_retry(self) -> RetryTokens:
        """Sealed under a key derived of the first certificate's, which all nodes of a pool have; without one, under our own."""
        secret = self._certificates.shared_secret() or self._retry_secret
        if self._retry_tokens is None:
            self._retry_tokens = RetryTokens(secret)
        else:
            self._retry_tokens.renew(secret)
        return self._retry_tokens

    def _reset_tokens(self) -> ResetTokens:
        """From the same secret: a pool's node that is handed another's connection, or that was restarted, can end it at once."""
        secret = self._certificates.shared_secret() or self._retry_secret
        if self._resets is None or self._resets[0] != secret:
            self._resets = secret, ResetTokens(secret)
        return self._resets[1]

    def _unknown(self, cid: bytes, size_bytes: int, address: Address) -> None:
        if self._resets_left > 0:
            packet = self._reset_tokens().packet(cid, size_bytes)
            if packet is not None:
                self._resets_left -= 1
                self.resets_sent += 1
                self.send([packet], address)

    def tripped(self, error: Exception) -> None:
        """The library, or we, could not go on with what came in: told now and then, since visitors choose what comes in."""
        self._tripped += 1
        if self.now - self._tripped_at >= _TELL_EVERY_S:
            self._tripped_at = self.now
            _log.error(
                "HTTP/3: %d connections could not go on with what came in; the last:", self._tripped, exc_info=error
            )
            self._tripped = 0

    def approves(self, peer: Peer, authority: bytes) -> bool:
        """Whether a request for this authority may come on the peer's connection."""
        return self._certificates.approves(peer.sni, authority)

    # --- heads

    def decode(self, block: bytes) -> list[Field]:
        """A field section's fields. Raises H3Error or SectionTooLarge."""
        return self._decoder.decode(block)

    def read_head(self, block: bytes) -> ReceivedRequest:
        """A request's head by its block. Raises H3Error, SectionTooLarge, MalformedMessage or RequestRefused."""
        parsed = self._heads.get(block)
        if parsed is None:
            parsed = read_request(self._decoder.decode(block), self.scheme, self.h1_limits)
            self._heads.remember(block, parsed)
        return parsed

    def early_head(self, parsed: ReceivedRequest, is_end: bool) -> RequestHead | None:
        """The head as it may be taken from early data, with `Early-Data: 1` for the origin (RFC 8470 §5.1); None: it may not."""
        head = parsed.head
        if not is_end or head.method not in SAFE_METHODS or head.protocol is not None:
            return None
        known = self._early.get(id(parsed))
        if known is not None and known[0] is parsed:
            return known[1]
        fields = tuple(field for field in head.fields if field[0] != b"early-data")
        early = head.replace(fields=(*fields, (b"early-data", b"1")))
        self._early.put(id(parsed), (parsed, early))
        return early

    # --- connections (QuicEndpoint)

    def _make(self, first: FirstContact) -> tuple[H3Connection, bytes]:
        quic = self._server.accept(first)
        self.counters.tls_handshakes += 1
        return H3Connection(quic, self), quic.host_cid

    def _admits(self, address: Address) -> bool:
        if self.draining or not super()._admits(address):
            return False
        if self.addresses.is_over(plain_address(address)[0], 1) or not self._has_room():
            self.refused += 1
            self.counters.connections_refused += 1
            return False
        return True

    def _has_room(self) -> bool:
        if len(self._cids) < self.limits.max_connections:
            return True
        connection = self._evictor.choose(self.connections, self.now)
        if connection is None:
            return False
        self.counters.connections_evicted += 1
        connection.give_up("the edge needed the connection's place")
        return True

    def handshake_done(self, connection: H3Connection) -> None:
        """The connection counts from here on."""
        self._no_longer_half_open(connection)
        self.connections[connection] = None
        self.counters.connections_open += 1
        self.counters.connections_total += 1
        self.counters.http3_connections += 1
        self.addresses.add(connection.peer.address)
        if self.draining:
            connection.go_away()

    def moved(self, connection: H3Connection, before: str) -> None:
        """A connection's peer has another address now."""
        if connection in self.connections:
            self.counters.quic_migrations += 1
            self.addresses.remove(before)
            self.addresses.add(connection.peer.address)

    def link_ended(self, connection: H3Connection, error: EdgetunError | None) -> None:
        if connection in self.connections:
            del self.connections[connection]
            self.counters.connections_open -= 1
            self.addresses.remove(connection.peer.address)
        else:
            self.counters.tls_handshake_failures += 1
        super().link_ended(connection, error)
        if self._emptied is not None and not self._emptied.done() and not self._cids:
            self._emptied.set_result(None)

    # --- once a tick, once a second

    def flush_later(self, exchange: H3Exchange) -> None:
        """Has the exchange's head written at the end of this loop tick, unless a body comes before."""
        self._call_soon()
        self._unflushed.append(exchange)

    def release_later(self, exchange: H3Exchange) -> None:
        """Has what is held of the exchange's request passed on, outside of whoever calls now."""
        self._call_soon()
        self._unreleased.append(exchange)

    def pump_later(self, connection: H3Connection) -> None:
        """Has a connection go on with the events that it left waiting."""
        self._call_soon()
        self._unpumped.append(connection)

    def _call_soon(self) -> None:
        if not self._unflushed and not self._unreleased and not self._unpumped:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        unflushed, self._unflushed = self._unflushed, []
        unreleased, self._unreleased = self._unreleased, []
        unpumped, self._unpumped = self._unpumped, []
        for exchange in unflushed:
            exchange.flush()
        for exchange in unreleased:
            exchange.release()
        for connection in unpumped:
            connection.pump()

    def _tick(self) -> None:
        self._sweep = self._loop.call_later(self.limits.sweep_s, self._tick)
        context = self.context
        self.now = now = self._clock.tick()
        self._resets_left = _RESETS_PER_SWEEP
        self.date_line = date_line(formatdate(context.wall_clock(), usegmt=True).encode())
        for connection in tuple(self.connections):
            connection.sweep(now)

    # --- the end

    async def drain(self, deadline_s: float) -> None:
        """Takes no new connections, says GOAWAY on all, lets requests finish; what is left after `deadline_s` is dropped."""
        self.draining = True
        for connection in tuple(self.connections):
            connection.go_away()
        await self._wait_empty(deadline_s)
        self.close()
        await asyncio.sleep(0)

    def close(self) -> None:
        """Drops every connection at once and closes the socket."""
        if self._closing:
            return
        self.draining = True
        self._closing = True
        for connection in tuple(self._cids):
            connection.fail(Draining("the edge went away"))
        if self._sweep is not None:
            self._sweep.cancel()
        self._close_socket()

    async def _wait_empty(self, timeout_s: float) -> None:
        if not self._cids or timeout_s <= 0.0:
            return
        self._emptied = self._loop.create_future()
        try:
            await asyncio.wait_for(self._emptied, timeout_s)
        except TimeoutError:
            pass
        finally:
            self._emptied = None


def serve_http3(
    context: FrontContext, addresses: Sequence[tuple[str, int]], certificates: CertificateStore
) -> list[H3Front]:
    """Serves HTTP/3 on each of these addresses, where a TCP front listens already. Raises OSError when it cannot listen."""
    sockets: list[socket.socket] = []
    try:
        for host, port in addresses:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sockets.append(bind_udp(family, (host, port)))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return [H3Front(context, sock, certificates) for sock in sockets]
