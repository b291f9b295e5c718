"""Dialling a TLS link: lane 0 first, the bulk lane beside it as soon as the link is up."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterable
from typing import Protocol, cast

from edgetun_core.errors import EdgetunError, ProtocolError
from edgetun_core.transport.failures import describe_dial_error
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
    peer_address,
    tune,
)
from edgetun_core.transport.tls_transport import LinkTls, Opening
from edgetun_core.transport.way import Way


class Trusting(Protocol):
    """Whom a dialler believes, and what it shows of itself: a `Trust`, or `PeerContexts` with a certificate of our own."""

    def ssl_context(self, alpn: Iterable[str] = ()) -> ssl.SSLContext: ...


class _DialledLane(LaneConnection):
    """The dialler's side: sends the preamble when TLS is up; the bulk lane waits for `JOINED`."""

    __slots__ = ("_for_link", "_waiting", "refused")

    def __init__(self, lane: int, link: TlsLink) -> None:
        super().__init__(lane)
        self._for_link = link
        self.refused: EdgetunError | None = None
        self._waiting: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast("asyncio.Transport", transport)
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        if chosen != ALPN:
            host, port = peer_address(writer)
            self.refused = ProtocolError(
                f"{host}:{port} does not speak {ALPN}", remedy="check that host and port are an exit node's"
            )
            writer.abort()
            return
        tune(writer)
        link = self._for_link
        writer.write(PREAMBLE.pack(MAGIC, VERSION, self.lane, link.link_id, link.token))
        if self.lane == REGULAR:
            self.attach(link, writer)
        else:
            self._waiting = writer

    def data_received(self, data: bytes) -> None:
        if self._waiting is not None:
            # Nothing else comes before JOINED, and a record this small is not split by any TLS implementation of ours;
            # if it is, the link goes on without its bulk lane.
            writer, self._waiting = self._waiting, None
            if not data.startswith(JOINED):
                writer.abort()
                return
            self.attach(self._for_link, writer)
            data = data[len(JOINED) :]
        if data:
            super().data_received(data)

    def give_up(self) -> None:
        """The link ended before the listener joined this lane."""
        if self._waiting is not None:
            self._waiting.abort()
            self._waiting = None


class _Dialling:
    """Opens the bulk lane beside a link that is up already, and never keeps it from closing."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext, name: str, timeout_s: float, way: Way | None
    ) -> None:
        self.host, self.port, self.context, self.name, self.timeout_s = host, port, context, name, timeout_s
        self._way = way if way is not None and way.leads_to(host, port) else None
        self._task: asyncio.Task[None] | None = None
        self._bulk: _DialledLane | None = None

    async def connect(self, lane: _DialledLane) -> None:
        """Raises `OSError` (also `ssl.SSLError`), `TimeoutError`, or what the way raises."""
        until = asyncio.get_running_loop().time() + self.timeout_s
        await self._handshake(await self._connect_tcp(until), lane, until)

    async def _connect_tcp(self, until: float) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        if self._way is not None:
            sock = await self._way.connect(self.host, self.port, max(0.01, until - loop.time()))
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
            return transport
        async with asyncio.timeout_at(until):
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        failure: Exception = OSError(f"{self.host} has no address")
        for position, (family, _, _, _, address) in enumerate(found):
            try:
                async with asyncio.timeout((until - loop.time()) / (len(found) - position)):
                    transport, _ = await loop.create_connection(
                        asyncio.Protocol, str(address[0]), int(address[1]), family=family, flags=socket.AI_NUMERICHOST
                    )
                return transport
            except (OSError, TimeoutError) as error:
                failure = error
        raise failure

    async def _handshake(self, plain: asyncio.Transport, lane: _DialledLane, until: float) -> None:
        opening = Opening(lambda: lane)
        transport = LinkTls(opening, self.context, server_name=self.name, linger_s=CLOSE_TIMEOUT_S)
        if plain.is_closing():
            raise ConnectionResetError("closed before the handshake")
        plain.set_protocol(transport)
        transport.connection_made(plain)
        try:
            async with asyncio.timeout_at(until):
                await opening.done
        except BaseException:
            transport.abort()
            raise

    def open_bulk(self, link: TlsLink) -> None:
        self._bulk = _DialledLane(BULK, link)
        self._task = asyncio.get_running_loop().create_task(self._open_bulk(self._bulk))

    async def _open_bulk(self, lane: _DialledLane) -> None:
        try:
            await self.connect(lane)
        except (OSError, TimeoutError, EdgetunError):
            pass  # a link without a bulk lane works

    def stop(self, link: TlsLink) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._bulk is not None:
            self._bulk.give_up()


async def dial_tls(
    host: str,
    port: int,
    trust: Trusting,
    user: LinkUser,
    timeout_s: float,
    server_name: str | None,
    way: Way | None = None,
) -> TlsLink:
    """See `engines.dial`."""
    name = server_name or host
    dialling = _Dialling(host, port, trust.ssl_context([ALPN]), name, timeout_s, way)
    link = TlsLink(user, os.urandom(16), os.urandom(32), dialling.stop)
    lane = _DialledLane(REGULAR, link)
    try:
        await dialling.connect(lane)
    except (OSError, TimeoutError) as error:
        if link.opened:  # up in the very tick in which time ran out
            return link
        raise describe_dial_error(error, host, port, name, timeout_s) from error
    except asyncio.CancelledError:
        link.abort()
        raise
    if lane.refused is not None:
        raise lane.refused
    dialling.open_bulk(link)
    return link
