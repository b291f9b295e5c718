"""An HTTP/3 connection without sockets and without a QUIC library: events go in by hand, what is sent is kept by stream."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

from edgetun_core.http.exchange import Handler
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.http.multiplexed import ReceivedRequest, read_request
from edgetun_core.http.qpack import SectionDecoder
from edgetun_core.transport.quic_connection import Ended
from edgetun_exitnode.front.context import FrontContext, FrontLimits
from edgetun_exitnode.front.h3 import H3Connection
from edgetun_exitnode.front.h3_exchange import H3Exchange
from edgetun_exitnode.front.h3_response import date_line
from edgetun_exitnode.front.memos import REMEMBERED_BYTES, KnownRequests


class StubQuic:
    """Takes what a connection sends. `unsent_of` is what the library would still hold, by stream; a test sets it."""

    server_name = "shop.example"
    peer = ("192.0.2.1", 40000)
    rtt_s = 0.01
    is_gone = False

    def __init__(self) -> None:
        self.sent: dict[int, bytearray] = defaultdict(bytearray)
        self.order: list[tuple[int, int]] = []
        self.ended_streams: set[int] = set()
        self.resets: dict[int, int] = {}
        self.stops: dict[int, int] = {}
        self.unsent_of: dict[int, int] = defaultdict(int)
        self.keeps = False
        """Whether what is sent stays unsent, as when the network takes nothing."""
        self.is_held_back = False
        self.ended: Ended | None = None
        self.closed: tuple[int, str] | None = None
        self.pings = 0

    def send(self, sid: int, data: bytes | memoryview, is_end: bool) -> None:
        assert sid not in self.ended_streams, "sent after the end"
        assert sid not in self.resets, "sent after a reset"
        self.sent[sid] += data
        self.order.append((sid, len(data)))
        if self.keeps:
            self.unsent_of[sid] += len(data)
        if is_end:
            self.ended_streams.add(sid)

    def reset(self, sid: int, code: int) -> bool:
        self.resets.setdefault(sid, code)
        return True

    def stop(self, sid: int, code: int) -> bool:
        self.stops.setdefault(sid, code)
        return True

    def unsent(self, sid: int) -> int:
        return self.unsent_of[sid]

    get_send_buffer_size = unsent

    def unsent_bytes(self) -> int:
        return sum(self.unsent_of.values())

    def ping(self) -> None:
        self.pings += 1

    def end(self, code: int, reason: str) -> None:
        self.closed = code, reason

    def transmit(self, now: float, send: Any) -> None:
        pass

    def pump(self, sink: Any) -> None:
        pass

    def get_timer(self) -> None:
        return None

    def let_go(self) -> None:
        pass

    def has_settled(self) -> bool:
        return True


class StubFront:
    """As much of a front as a connection asks for."""

    host, port = "127.0.0.1", 443
    scheme = b"https"
    is_blocked = False

    def __init__(self, handler: Handler, limits: FrontLimits | None = None) -> None:
        self.context = FrontContext(handler, limits)
        self.limits = self.context.limits
        self.h1_limits = self.limits.h1
        self.counters = self.context.counters
        self.max_section_bytes = self.h1_limits.max_head_bytes + 32 * self.h1_limits.max_fields
        self.known = KnownRequests(REMEMBERED_BYTES)
        self.now = 1000.0
        self.ping_s = 25.0
        self.date_line = date_line(b"Wed, 25 Nov 2026 22:00:00 GMT")
        self.held_bytes = 0
        self.later: list[Any] = []
        self.gone: list[H3Connection] = []
        self._decoder = SectionDecoder(self.max_section_bytes)

    def connection(self) -> tuple[H3Connection, StubQuic]:
        """One whose handshake is through."""
        quic = StubQuic()
        made = H3Connection(cast("Any", quic), cast("Any", self))
        made.handshake_done("h3")
        return made, quic

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        return self._decoder.decode(block)

    def read_head(self, block: bytes) -> ReceivedRequest:
        return read_request(self.decode(block), self.scheme, self.h1_limits)

    def early_head(self, parsed: ReceivedRequest, is_end: bool) -> RequestHead | None:
        return None

    def approves(self, peer: Peer, authority: bytes) -> bool:
        return True

    def flush_later(self, exchange: H3Exchange) -> None:
        self.later.append(exchange.flush)

    def release_later(self, exchange: H3Exchange) -> None:
        self.later.append(exchange.release)

    def pump_later(self, connection: H3Connection) -> None:
        pass

    def run_later(self) -> None:
        later, self.later = self.later, []
        for call in later:
            call()

    def handshake_done(self, connection: H3Connection) -> None:
        pass

    def moved(self, connection: H3Connection, before: str) -> None:
        pass

    def cid_issued(self, connection: H3Connection, cid: bytes) -> None:
        pass

    def cid_retired(self, connection: H3Connection, cid: bytes) -> None:
        pass

    def link_ended(self, connection: H3Connection, error: Exception | None) -> None:
        self.gone.append(connection)

    def send(self, datagrams: list[bytes], address: Any) -> None:
        pass

    def when_writable(self, callback: Any) -> None:
        pass
