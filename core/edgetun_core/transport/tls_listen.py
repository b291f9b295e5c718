"""Listening for TLS links: joins connections into links, and hands connections of other protocols on.

Bounds: `MOST_HANDSHAKES` at a time, the others wait their turn; at most `MAX_UNJOINED` connections wait for their preamble or their lane 0, each for `JOIN_TIMEOUT_S` at most; at
most `max_links` links stand. One more is dropped, or told so.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from collections.abc import Callable, Mapping
from typing import Final, cast

from edgetun_core.accepting import PacedListener
from edgetun_core.errors import Draining, EdgetunError, LimitExceeded, ProtocolError
from edgetun_core.pki import ServerIdentity
from edgetun_core.transport.failures import describe_listen_error
from edgetun_core.transport.link import ALPN, LinkUser
from edgetun_core.transport.tls import (
    BULK,
    CLOSE_TIMEOUT_S,
    JOINED,
    MAGIC,
    PREAMBLE,
    REGULAR,
    VERSION,
    LaneConnection,
    TlsLink,
    goodbye,
    tune,
)

MOST_HANDSHAKES: Final = 64
DAWDLING_S: Final = 0.25
"""Agents are far away too: this and `MOST_HANDSHAKES` let in 256 a second of the slowest of them."""
PATIENCE: Final = 0.8
"""The share of a handshake's time that a connection may wait for its turn: the dialler's clock has been running since it came."""
MAX_UNJOINED: Final = 256
"""Connections per listener that wait for their preamble or for their lane 0; one more is dropped at once."""
JOIN_TIMEOUT_S: Final = 5.0


class TlsListener:
    """Accepts connections, joins them into links, and hands those of other protocols on."""

    def __init__(
        self,
        identity: ServerIdentity,
        accept: Callable[[], LinkUser],
        *,
        max_links: int,
        other_protocols: Mapping[str, Callable[[], asyncio.Protocol]],
        select_context: Callable[[str | None], ssl.SSLContext | None] | None,
        entrance: ssl.SSLContext | None = None,
    ) -> None:
        self.host = ""
        self.port = 0
        self.refused = 0
        """Connections dropped because a bound was reached."""
        self.accept = accept
        self.max_links = max_links
        self._identity = identity
        self._other_protocols = other_protocols
        self._select_context = select_context
        self._entrance = entrance
        self._alpn = (ALPN, *(name for name in other_protocols if name))
        self._links: dict[bytes, TlsLink] = {}
        self._unjoined: dict[_AcceptedConnection, None] = {}
        self._early_bulk: dict[bytes, _AcceptedConnection] = {}
        self._server: PacedListener | None = None
        self._closing = False
        self._all_gone: asyncio.Future[None] | None = None

    @property
    def links(self) -> int:
        return len(self._links)

    async def start(self, host: str, port: int, handshake_timeout_s: float, reuse_port: bool) -> None:
        # The callback belongs to this listener, the prepared contexts to whoever asks for the same protocols.
        entrance = self._entrance if self._entrance is not None else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        entrance.minimum_version = ssl.TLSVersion.TLSv1_3
        entrance.set_alpn_protocols(list(self._alpn))
        entrance.sni_callback = self._choose_context
        server = PacedListener(
            lambda: _AcceptedConnection(self),
            entrance,
            most_handshakes=MOST_HANDSHAKES,
            dawdling_s=DAWDLING_S,
            patience_s=PATIENCE * handshake_timeout_s,
            handshake_timeout_s=handshake_timeout_s,
            linger_s=CLOSE_TIMEOUT_S,
        )
        try:
            await server.start(host, port, reuse_port=reuse_port)
        except OSError as error:
            raise describe_listen_error(error, host, port, "TCP") from error
        self._server = server
        self.host, self.port = server.host, server.port

    def _choose_context(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        chosen = self._select_context(name) if self._select_context is not None else None
        connection.context = chosen if chosen is not None else self._identity.ssl_context(self._alpn)

    def factory_for(self, alpn: str | None) -> Callable[[], asyncio.Protocol] | None:
        """Who speaks this protocol, if it is not the tunnel's."""
        return self._other_protocols.get(alpn or "")

    def may_wait(self, connection: _AcceptedConnection) -> bool:
        """Counts a connection that is not joined yet; False when too many are."""
        if self._closing or len(self._unjoined) >= MAX_UNJOINED:
            self.refused += 1
            return False
        self._unjoined[connection] = None
        return True

    def waits_no_more(self, connection: _AcceptedConnection) -> None:
        self._unjoined.pop(connection, None)
        if connection.link_id and self._early_bulk.get(connection.link_id) is connection:
            del self._early_bulk[connection.link_id]

    def join(self, connection: _AcceptedConnection, lane: int, link_id: bytes, token: bytes) -> None:
        """A preamble has come; the connection becomes a lane, waits for its lane 0, or is refused."""
        link = self._links.get(link_id)
        if lane == REGULAR:
            if link is not None:
                connection.refuse(ProtocolError("this link id is in use"))
                return
            if len(self._links) >= self.max_links:
                self.refused += 1
                connection.refuse(LimitExceeded("this exit node holds as many links as it may"))
                return
            link = TlsLink(self.accept(), link_id, token, self._link_gone)
            self._links[link_id] = link
            early = self._early_bulk.get(link_id)
            connection.become(link, REGULAR)
            if early is not None:
                self._join_bulk(early, link, early.token)
        elif link is not None:
            self._join_bulk(connection, link, token)
        elif link_id in self._early_bulk:
            connection.drop()
        else:
            self._early_bulk[link_id] = connection

    def _join_bulk(self, connection: _AcceptedConnection, link: TlsLink, token: bytes) -> None:
        # A lane that joins a link on its way out would be told so and lost at once, and its loss would reach the dialler before
        # the reason of the close, which is under way on lane 0.
        if link.is_closing or link.lanes != BULK or not hmac.compare_digest(link.token, token):
            connection.drop()
        else:
            connection.become(link, BULK)

    def _link_gone(self, link: TlsLink) -> None:
        del self._links[link.link_id]
        if not self._links and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    async def close(self) -> None:
        self._closing = True
        if self._server is not None:
            await self._server.close()
        for connection in list(self._unjoined):
            connection.drop()
        if self._links:
            self._all_gone = asyncio.get_running_loop().create_future()
            for link in list(self._links.values()):
                link.close(Draining.presentation.close_code, "the listener is closing")
            await asyncio.wait([self._all_gone], timeout=CLOSE_TIMEOUT_S + 1)
        await asyncio.sleep(0)  # lets the loop close the listening socket


class _AcceptedConnection(asyncio.Protocol):
    """A connection until its preamble is read."""

    __slots__ = ("_deadline", "_listener", "_received", "_transport", "lane", "link_id", "token")

    def __init__(self, listener: TlsListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._deadline: asyncio.TimerHandle | None = None
        self.link_id = b""
        self.token = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast("asyncio.Transport", transport)
        self._transport = writer
        alpn = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        if alpn != ALPN:
            factory = self._listener.factory_for(alpn)
            if factory is None:
                writer.abort()
                return
            protocol = factory()
            writer.set_protocol(protocol)
            protocol.connection_made(writer)
            return
        tune(writer)
        if not self._listener.may_wait(self):
            writer.abort()
            return
        self._deadline = asyncio.get_running_loop().call_later(JOIN_TIMEOUT_S, self.drop)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self.link_id:  # a bulk lane whose lane 0 is not here yet; nobody sends on it before JOINED
            self.drop()
            return
        if len(self._received) < PREAMBLE.size:
            return
        magic, version, lane, link_id, token = PREAMBLE.unpack_from(self._received)
        if magic != MAGIC or lane not in (REGULAR, BULK):
            self.drop()
            return
        if version != VERSION:
            self.refuse(ProtocolError(f"transport version {version} is not spoken here, {VERSION} is"))
            return
        self._received = self._received[PREAMBLE.size :]
        self.link_id, self.token = link_id, token
        self._listener.join(self, lane, link_id, token)

    def become(self, link: TlsLink, lane: int) -> None:
        """Hands the transport to the lane's own protocol."""
        transport = self._transport
        assert transport is not None
        self._leave()
        self._transport = None
        protocol = LaneConnection(lane)
        transport.set_protocol(protocol)
        if lane == BULK:
            transport.write(JOINED)
        protocol.attach(link, transport)
        if self._received:
            protocol.data_received(self._received)
            self._received = b""

    def refuse(self, error: EdgetunError) -> None:
        """Says why, and closes."""
        transport = self._transport
        if transport is not None:
            transport.write(goodbye(error.presentation.close_code, str(error)))
            transport.close()
        self._leave()

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._leave()

    def _leave(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._listener.waits_no_more(self)


async def listen_tls(
    host: str,
    port: int,
    identity: ServerIdentity,
    accept: Callable[[], LinkUser],
    *,
    max_links: int,
    handshake_timeout_s: float,
    reuse_port: bool,
    other_protocols: Mapping[str, Callable[[], asyncio.Protocol]],
    select_context: Callable[[str | None], ssl.SSLContext | None] | None,
    entrance: ssl.SSLContext | None = None,
) -> TlsListener:
    """See `engines.listen`."""
    listener = TlsListener(
        identity,
        accept,
        max_links=max_links,
        other_protocols=other_protocols,
        select_context=select_context,
        entrance=entrance,
    )
    await listener.start(host, port, handshake_timeout_s, reuse_port)
    return listener
