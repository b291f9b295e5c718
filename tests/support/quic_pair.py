"""Two of qh3's connections over a path in memory, by a clock of their own: the same seed is the same run, in milliseconds."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from edgetun_core.pki import DevelopmentCA
from edgetun_core.transport import quic_qh3_server
from edgetun_core.transport.link import ALPN
from edgetun_core.transport.quic_endpoint import FirstContact
from edgetun_core.transport.quic_library import accept_connection, dial_connection, library
from edgetun_core.transport.tickets import Tickets
from edgetun_core.transport.udp import Address

DELAY_S: Final = 0.01
DIALLER: Final = ("127.0.0.1", 1000)
LISTENER: Final = ("127.0.0.1", 2000)
ANY_SIZE: Final = 9999


class Told:
    """What a connection told: bytes by stream."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_full = False
        self.bytes_of: Counter[int] = Counter()

    def handshake_done(self, alpn: str | None) -> None:
        self.is_open = True

    def stream_data(self, stream_id: int, data: bytes, is_end: bool = False) -> None:
        self.bytes_of[stream_id] += len(data)

    def stream_ended(self, stream_id: int) -> None: ...
    def stream_reset(self, stream_id: int, code: int) -> None: ...
    def stop_sending(self, stream_id: int, code: int) -> None: ...
    def datagram(self, data: bytes) -> None: ...
    def cid_issued(self, cid: bytes) -> None: ...
    def cid_retired(self, cid: bytes) -> None: ...


class Side:
    """One end, and its way to the other."""

    def __init__(self) -> None:
        self.quic: Any = None
        self.told = Told()
        self.largest = ANY_SIZE
        """Larger datagrams of this side vanish."""
        self.lost_share = 0.0
        self.is_stopped = False
        self.inbox: list[bytes] = []
        """What came in meanwhile."""


class QuicPair:
    """`dialler` and `listener` after their handshake; `visitor` makes the listener's one that of HTTP/3."""

    def __init__(self, folder: Path, rng: random.Random, *, visitor: bool = False) -> None:
        authority = DevelopmentCA(folder)
        self._identity = authority.identity(["localhost"])
        self._is_visitor = visitor
        self._way: list[tuple[float, int, Side, bytes, Address]] = []
        self._count = 0
        self._rng = rng
        self.now = 100.0
        self.address: Address = DIALLER
        """The dialler's, as the listener sees it."""
        self.lost: set[Address] = set()
        """What is sent to these is lost."""
        self.wanted: Counter[tuple[Side, int]] = Counter()
        self.dialler, self.listener = Side(), Side()
        self.dialler.quic = dial_connection(library("qh3"), authority.trust, "localhost", packet_bytes=1452)
        self.dialler.quic.connect(LISTENER, self.now)
        self.transmit(self.dialler)
        while not (self.dialler.told.is_open and self.listener.told.is_open):
            self.go_on(0.05)

    def other(self, side: Side) -> Side:
        return self.listener if side is self.dialler else self.dialler

    def write(self, side: Side, stream_id: int, size_bytes: int) -> None:
        side.quic.send_stream_data(stream_id, bytes(size_bytes))
        self.wanted[side, stream_id] += size_bytes
        self.transmit(side)

    def move(self, address: Address, *, keeps_the_old: bool = False) -> None:
        """The dialler sends from there now, at once."""
        if not keeps_the_old:
            self.lost.add(self.address)
        self.address = address
        self.ping(self.dialler)

    def ping(self, side: Side) -> None:
        side.quic.send_ping(0)
        self.transmit(side)

    @property
    def is_all_there(self) -> bool:
        return all(self.other(side).told.bytes_of[stream] == size for (side, stream), size in self.wanted.items())

    def finish(self, within_s: float) -> bool:
        """Whether all that was written arrives within the time."""
        until = self.now + within_s
        while self.now < until and not self.is_all_there:
            self.go_on(0.25)
        return self.is_all_there

    def go_on(self, for_s: float) -> None:
        until = self.now + for_s
        while (at := self._next()) < until:
            self.now = max(self.now + 1e-5, at)
            touched = [side for side in (self.dialler, self.listener) if self._has_timed_out(side)]
            while self._way and self._way[0][0] <= self.now:
                _, _, side, datagram, sender = heapq.heappop(self._way)
                if side.is_stopped:
                    side.inbox.append(datagram)
                else:
                    self._take(side, datagram, sender)
                    touched.append(side)
            for side in dict.fromkeys(touched):
                side.quic.pump(side.told)
                self.transmit(side)
        self.now = until

    def resume(self, side: Side) -> None:
        """The end of a stop: everything that waited comes at once."""
        side.is_stopped = False
        for datagram in side.inbox:
            self._take(side, datagram, self.address if side is self.listener else LISTENER)
        side.inbox.clear()
        side.quic.pump(side.told)
        self.transmit(side)

    def _next(self) -> float:
        timers = [
            side.quic.get_timer()
            for side in (self.dialler, self.listener)
            if side.quic is not None and not side.is_stopped
        ]
        return min([*(at for at in timers if at is not None), *(entry[0] for entry in self._way[:1]), float("inf")])

    def _has_timed_out(self, side: Side) -> bool:
        if side.quic is None or side.is_stopped:
            return False
        at = side.quic.get_timer()
        if at is None or at > self.now:
            return False
        side.quic.handle_timer(self.now)
        return True

    def _take(self, side: Side, datagram: bytes, sender: Address) -> None:
        if side.quic is None:
            side.quic = self._accepted(datagram)
        side.quic.take(datagram, len(datagram), sender, self.now)

    def _accepted(self, datagram: bytes) -> Any:
        end = 6 + datagram[5]
        cid = datagram[6:end]
        if not self._is_visitor:
            made = library("qh3").server_configuration(self._identity)
            configuration = replace(made, max_datagram_size=len(datagram))
            return accept_connection(library("qh3"), configuration, cid, tickets=Tickets())
        certificate = quic_qh3_server.shown(self._identity)
        self._server = quic_qh3_server.Server(
            alpn=ALPN,
            idle_timeout_s=30.0,
            max_data_bytes=768 * 1024,
            max_stream_data_bytes=512 * 1024,
            choose=lambda name: certificate,
            reset_token=lambda cid: bytes(16),
        )
        client_cid = datagram[end + 1 : end + 1 + datagram[end]]
        return self._server.accept(FirstContact(cid, cid, b"", client_cid, len(datagram)))

    def transmit(self, side: Side) -> None:
        if side.is_stopped:
            return
        there = self.other(side)

        def send(datagrams: list[bytes], address: Address) -> None:
            for datagram in datagrams:
                is_gone = there is self.dialler and address in self.lost
                if is_gone or len(datagram) > side.largest or self._rng.random() < side.lost_share:
                    continue
                self._count += 1
                sender = self.address if side is self.dialler else LISTENER
                heapq.heappush(self._way, (self.now + DELAY_S, self._count, there, datagram, sender))

        side.quic.transmit(self.now, send)
