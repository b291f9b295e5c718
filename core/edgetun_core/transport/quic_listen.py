"""Listening for QUIC links: an endpoint (quic_endpoint.py) whose connections are sessions' links.

Bounds beyond the endpoint's: at most `max_links` links; one more is told so and closed. Packets of links that are none of ours are answered by
stateless resets, `RESETS_PER_LOOK` in `LOOK_EVERY_S`, when there is a state folder (`quic_left.py`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from edgetun_core.errors import Draining, EdgetunError, LimitExceeded, ProtocolError
from edgetun_core.pki import ServerIdentity
from edgetun_core.transport.failures import describe_listen_error
from edgetun_core.transport.link import ALPN, LinkUser
from edgetun_core.transport.quic_connection import LOSSY_CID_BYTES, PACKET_SIZES, SMALLEST_PACKET_BYTES
from edgetun_core.transport.quic_driver import QuicLink
from edgetun_core.transport.quic_endpoint import FirstContact, QuicEndpoint
from edgetun_core.transport.quic_left import FILE, LeftLinks
from edgetun_core.transport.quic_library import LOSSY_ENGINE, accept_connection, library
from edgetun_core.transport.quic_peer import CLOSE_TIMEOUT_S
from edgetun_core.transport.quic_retry import MAX_RESET_BYTES
from edgetun_core.transport.tickets import Tickets
from edgetun_core.transport.udp import Address, bind_udp, forbid_fragments

log = logging.getLogger("edgetun.transport")

TELL_AGAIN_AFTER_S: Final = (0.0, 0.1, 0.4)
TELL_AT_ONCE: Final = 200
TELL_PAUSE_S: Final = 0.02
"""So 10,000 links are told within a second."""
LOOK_EVERY_S: Final = 5.0
"""How long after a link's peer has another address a killed process would send its successor to the old one."""
RESETS_PER_LOOK: Final = 1000


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
        left: LeftLinks | None = None,
    ) -> None:
        """`left` is this listener's from now on."""
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
        self.resets_sent = 0
        self._left = left
        self._noted: dict[QuicLink, Address] = {}
        self._resets_left = RESETS_PER_LOOK
        self._look: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None
        super().__init__(sock, handshake_timeout_s=handshake_timeout_s)
        if left is not None:
            self._look_at_addresses()
            if left.found:
                self._telling = self._loop.create_task(self._tell_left(left), name="stateless resets")

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
        if self._left is not None:
            connection.set_reset_token(self._left.tokens.token(connection.host_cid))
        return QuicLink(engine, connection, self, None, is_dialler=False, is_lossy=is_lossy), connection.host_cid

    # --- what a process before this one left

    async def _tell_left(self, left: LeftLinks) -> None:
        """Ends the links of the process whose place this one takes. Told several times, since datagrams are lost."""
        for pause_s in TELL_AGAIN_AFTER_S:
            await asyncio.sleep(pause_s)
            for number, (address, cid) in enumerate(left.found, 1):
                self._reset(cid, MAX_RESET_BYTES + 1, address)
                if number % TELL_AT_ONCE == 0:
                    await asyncio.sleep(TELL_PAUSE_S)
        left.found.clear()

    def _reset(self, cid: bytes, size_bytes: int, address: Address) -> None:
        assert self._left is not None
        packet = self._left.tokens.packet(cid, size_bytes)
        if packet is not None:
            self.resets_sent += 1
            self.send([packet], address)

    def _unknown(self, cid: bytes, size_bytes: int, address: Address) -> None:
        if self._left is not None and self._resets_left > 0:
            self._resets_left -= 1
            self._reset(cid, size_bytes, address)

    def _look_at_addresses(self) -> None:
        assert self._left is not None
        self._look = self._loop.call_later(LOOK_EVERY_S, self._look_at_addresses)
        self._resets_left = RESETS_PER_LOOK
        for link, address in self._noted.items():
            if link.address != address:
                self._noted[link] = link.address
                self._left.note(link.cid, link.address)

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
        if self._left is not None:
            self._noted[link] = link.address
            self._left.note(link.cid, link.address)
        return None

    def link_ended(self, connection: QuicLink, error: EdgetunError | None) -> None:
        self._established.pop(connection, None)
        if self._left is not None and self._noted.pop(connection, None) is not None:
            self._left.forget(connection.cid)
        super().link_ended(connection, error)

    async def close(self) -> None:
        self._closing = True
        for link in list(self._half_open):
            link.abort()
        for link in list(self._established):
            link.close(Draining.presentation.close_code, "the listener is closing")
        await self._wait_all_gone(CLOSE_TIMEOUT_S + 1)
        if self._look is not None:
            self._look.cancel()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])
        self._close_socket()
        if self._left is not None:
            self._left.close()
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
    state: Path | None = None,
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
    left: LeftLinks | None = None
    try:
        left = None if state is None else _left_links(state)
        return QuicListener(
            engine, sock, identity, accept, max_links=max_links, handshake_timeout_s=handshake_timeout_s, left=left
        )
    except BaseException:
        sock.close()
        if left is not None:
            left.close()
        raise


def _left_links(state: Path) -> LeftLinks | None:
    """What the process before this one left; None, and nothing is noted, where that is not to be had."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        return LeftLinks(state / FILE)
    except BlockingIOError:
        log.info("another process with the state folder %s notes its QUIC links there", state)
    except OSError as error:
        log.warning("QUIC links are not noted, agents will be slow to see this process killed: %s", error)
    return None
