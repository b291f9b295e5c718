"""A UDP socket that many QUIC connections share: datagrams told apart by their destination connection id.

Bounds: at most `MAX_HALF_OPEN` handshakes at a time, each until the handshake deadline; beyond `retry_from` of them a client
first proves its address (Retry, RFC 9000 §8.1.2), when the endpoint was given tokens for that; an unknown datagram costs a
dictionary look-up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from edgetun_core.errors import EdgetunError, SessionLost
from edgetun_core.transport.quic_peer import QuicPeer
from edgetun_core.transport.quic_retry import RetryTokens, initial_token, retry_packet
from edgetun_core.transport.udp import Address, UdpSocket, split_segments

MAX_HALF_OPEN: Final = 1000
RETRY_FROM: Final = 128
LINGER_S: Final = 1.0
"""How long a closed connection's last packet is repeated for a peer that did not hear it (RFC 9000 §10.2)."""
MAX_FAREWELLS: Final = 8

QUIC_VERSION: Final = 1
MIN_INITIAL_BYTES: Final = 1200
CID_BYTES: Final = 8
MAX_CID_BYTES: Final = 20


class FirstContact(NamedTuple):
    """What a client's first datagram says. `retry_cid` is empty when there was no Retry; the path carries `size_bytes`."""

    cid: bytes
    """Where it went: the id that the client chose for us, or that our Retry did."""
    original_cid: bytes
    """Where the client's very first datagram went."""
    retry_cid: bytes
    client_cid: bytes
    """The client's own id; browsers' is empty."""
    size_bytes: int


class _Farewell:
    """Stands where a connection stood, for a moment."""

    __slots__ = ("datagrams", "left")

    def __init__(self, datagrams: list[bytes]) -> None:
        self.datagrams = datagrams
        self.left = MAX_FAREWELLS


P = TypeVar("P", bound=QuicPeer[Any, Any])


class QuicEndpoint(Generic[P]):
    """The socket side of every connection that came over one socket; a subclass makes them and lets them in."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        handshake_timeout_s: float,
        max_half_open: int = 0,
        tokens: Callable[[], RetryTokens] | None = None,
        retry_from: int = RETRY_FROM,
    ) -> None:
        self.refused = 0
        """Connections and handshakes turned away because a bound was reached."""
        self.retries_sent = 0
        self._handshake_timeout_s = handshake_timeout_s
        self._max_half_open = max_half_open or MAX_HALF_OPEN
        self._tokens = tokens
        self._retry_from = retry_from
        self._routes: dict[bytes, P | _Farewell] = {}
        self._cids: dict[P, list[bytes]] = {}
        self._half_open: dict[P, asyncio.TimerHandle] = {}
        self._touched: dict[P, None] = {}
        self._lingering: dict[asyncio.TimerHandle, None] = {}
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._all_gone: asyncio.Future[None] | None = None
        self._udp = UdpSocket(sock, self._on_datagrams, self._on_batch_end, self._on_error)
        self.host, self.port = self._udp.local_address

    @property
    def udp_buffer_bytes(self) -> int:
        """The kernel's receive buffer; less than 7.5 MB means loss at high speed."""
        return self._udp.buffer_bytes

    @property
    def udp_dropped(self) -> int:
        """Datagrams that could not be sent."""
        return self._udp.dropped

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return len(self._half_open)

    # --- called by the socket

    def _on_datagrams(self, data: bytes, segment: int, address: Address) -> None:
        cid = _destination_cid(data, 0)
        route = self._routes.get(cid)
        if len(data) > segment and (
            route is None
            or route.__class__ is _Farewell
            or _destination_cid(data, (len(data) - 1) // segment * segment) != cid
        ):
            for datagram in split_segments(data, segment):
                self._on_datagrams(datagram, len(datagram), address)
            return
        if route is None:
            if not data[0] & 0x80:
                self._unknown(cid, len(data), address)
            elif len(data) >= MIN_INITIAL_BYTES:
                self._first_contact(data, cid, address)
        elif isinstance(route, _Farewell):
            if route.left > 0:
                route.left -= 1
                self._udp.send(list(route.datagrams), address)
        else:
            self._touched[route] = None
            route.take(data, segment, address, time.monotonic())

    def _on_batch_end(self) -> None:
        touched = self._touched
        if touched:
            self._touched = {}
            for connection in touched:
                connection.pump()

    def _on_error(self, error: OSError) -> None:
        """A datagram to one of many peers was refused; that peer's timers notice."""

    def _unknown(self, cid: bytes, size_bytes: int, address: Address) -> None:
        """A packet of a connection that is none of ours: of one that ended, or of another process."""

    def _first_contact(self, data: bytes, cid: bytes, address: Address) -> None:
        version = int.from_bytes(data[1:5], "big")
        if version != QUIC_VERSION:
            if version != 0:
                self._udp.send([_version_negotiation(data)], address)
            return
        is_initial = data[0] & 0x30 == 0
        if not is_initial or not CID_BYTES <= len(cid) <= MAX_CID_BYTES or not self._admits(address):
            return
        client_cid = data[7 + data[5] : 7 + data[5] + data[6 + data[5]]]
        original_cid, retry_cid = cid, b""
        if self._tokens is not None:
            token = initial_token(data)
            if token is None:
                return
            opened = self._tokens().open(address, token, time.time()) if token else None
            if opened is not None:
                original_cid, retry_cid = opened
            if opened is None or retry_cid != cid:
                if retry_cid or (token and len(self._half_open) >= self._retry_from):
                    return  # a client takes one Retry and no second (RFC 9000 §17.2.5.2)
                # A client without an id of its own keeps the one that it chose for us, which must be as long as ours; if not,
                # a Retry gives it one.
                if len(self._half_open) >= self._retry_from or (not client_cid and len(cid) != CID_BYTES):
                    self._send_retry(client_cid, cid, address)
                    return
        connection, host_cid = self._make(FirstContact(cid, original_cid, retry_cid, client_cid, len(data)))
        self._half_open[connection] = self._loop.call_later(self._handshake_timeout_s, self._too_slow, connection)
        self._cids[connection] = []
        self.cid_issued(connection, cid)
        if host_cid != cid:
            self.cid_issued(connection, host_cid)
        self._touched[connection] = None
        connection.take(data, len(data), address, time.monotonic())

    def _send_retry(self, client_cid: bytes, cid: bytes, address: Address) -> None:
        assert self._tokens is not None
        if len(client_cid) > MAX_CID_BYTES:
            return
        retry_cid = os.urandom(CID_BYTES)
        token = self._tokens().make(address, cid, retry_cid, time.time())
        self.retries_sent += 1
        self._udp.send([retry_packet(client_cid, retry_cid, cid, token)], address)

    def _make(self, first: FirstContact) -> tuple[P, bytes]:
        """A connection that begins, and the connection id it chose."""
        raise NotImplementedError

    def _admits(self, address: Address) -> bool:
        if self._closing:
            return False
        if len(self._half_open) >= self._max_half_open:
            self.refused += 1
            return False
        return True

    def _too_slow(self, connection: P) -> None:
        connection.fail(SessionLost("the handshake took too long"))

    # --- called by the connections

    @property
    def is_blocked(self) -> bool:
        return self._udp.is_blocked

    def send(self, datagrams: list[bytes], address: Address) -> None:
        self._udp.send(datagrams, address)

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._udp.when_writable(callback)

    def _no_longer_half_open(self, connection: P) -> None:
        deadline = self._half_open.pop(connection, None)
        if deadline is not None:
            deadline.cancel()

    def cid_issued(self, connection: P, cid: bytes) -> None:
        self._routes[cid] = connection
        self._cids[connection].append(cid)

    def cid_retired(self, connection: P, cid: bytes) -> None:
        if self._routes.get(cid) is connection:
            del self._routes[cid]
            self._cids[connection].remove(cid)

    def link_ended(self, connection: P, error: EdgetunError | None) -> None:
        self._no_longer_half_open(connection)
        cids = self._cids.pop(connection, [])
        if connection.farewell and not self._closing:
            farewell = _Farewell(connection.farewell)
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

    async def _wait_all_gone(self, timeout_s: float) -> None:
        if self._cids and timeout_s > 0:
            self._all_gone = self._loop.create_future()
            await asyncio.wait([self._all_gone], timeout=timeout_s)

    def _close_socket(self) -> None:
        for handle in self._lingering:
            handle.cancel()
        self._routes.clear()
        self._udp.close()


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
