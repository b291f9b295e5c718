"""What the driver asks of a QUIC library's connection, and what every connection of ours is set to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from edgetun_core.transport.udp import Address

IDLE_TIMEOUT_S: Final = 30.0
MAX_DATA_BYTES: Final = 16 * 1024 * 1024
MAX_STREAM_DATA_BYTES: Final = 8 * 1024 * 1024
"""What a peer may have under way out of order; in order, the protocol's credit is the bound."""
MAX_PACKET_BYTES: Final = 1500
MAX_DATAGRAM_FRAME_BYTES: Final = 65_535
SMALLEST_PACKET_BYTES: Final = 1200
"""What every path that carries QUIC carries (RFC 9000 §14)."""
DIAL_PACKET_BYTES: Final = 1452
"""What a dialler tries first: Ethernet's 1,500 less the headers of IPv6 and UDP."""
PACKET_SIZES: Final = (DIAL_PACKET_BYTES, 1350, SMALLEST_PACKET_BYTES)
"""What a listener sends on a new connection: the largest of these that the dialler's first datagram had."""
BLACK_HOLE_PROBES: Final = 3
"""So many probe timeouts in a row mean that the path carries no large packets any more (RFC 8899 §4.3)."""
CID_BYTES: Final = 8
STATELESS_RESET: Final = "stateless reset"
"""The reason of a connection that the peer knows nothing of any more."""
LOSSY_CID_BYTES: Final = 12
"""A dialler whose own connection id is this long says: the path loses packets, send by a controller that bears it."""
SAFE_DATAGRAM_BYTES: Final = 1_150
"""What fits a packet on the smallest path that QUIC knows (1,200 bytes), with 20-byte connection ids and every header. Neither library
tells what its path takes at the moment, and one that is given more than that never sends anything again."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a connection ended: an application's code (`is_application`) or one of QUIC's own (RFC 9000 §20)."""

    code: int
    reason: str
    is_application: bool


class Sink(Protocol):
    """Whom a connection tells its events."""

    def handshake_done(self, alpn: str | None) -> None: ...
    def stream_data(self, stream_id: int, data: bytes) -> None: ...
    def stream_ended(self, stream_id: int) -> None: ...
    def datagram(self, data: bytes) -> None: ...
    def cid_issued(self, cid: bytes) -> None: ...
    def cid_retired(self, cid: bytes) -> None: ...


class Resumable(Protocol):
    """A connection that remembers whether its session was resumed."""

    is_resumed: bool


def pass_on(event: Any, kinds: Any, connection: Resumable, sink: Sink) -> None:
    """Tells a sink of an event; `kinds` is the library's module of events, whose names are the same in both. Hot path."""
    match event:
        case kinds.StreamDataReceived():
            if event.data:
                sink.stream_data(event.stream_id, event.data)
            if event.end_stream:
                sink.stream_ended(event.stream_id)
        case kinds.DatagramFrameReceived():
            sink.datagram(event.data)
        case kinds.HandshakeCompleted():
            connection.is_resumed = event.session_resumed
            sink.handshake_done(event.alpn_protocol)
        case kinds.ConnectionIdIssued():
            sink.cid_issued(event.connection_id)
        case kinds.ConnectionIdRetired():
            sink.cid_retired(event.connection_id)
        case kinds.StreamReset() | kinds.StopSendingReceived():
            sink.stream_ended(event.stream_id)


class BareConnection(Protocol):
    """One library's connection, without sockets and clocks, and whatever its streams carry."""

    def take(self, data: bytes, segment: int, address: Address, now: float) -> None:
        """Datagrams of one sender, laid end to end, each of `segment` bytes but the last."""

    def transmit(self, now: float, send: Callable[[list[bytes], Address], None]) -> None:
        """Sends what may be sent now."""

    def has_settled(self) -> bool:
        """Everything written was sent and acknowledged."""
        ...

    def end(self, code: int, reason: str) -> None:
        """Sends CONNECTION_CLOSE with the next transmit."""

    @property
    def ended(self) -> Ended | None: ...
    @property
    def peer(self) -> Address: ...
    @property
    def rtt_s(self) -> float | None: ...
    def get_timer(self) -> float | None: ...
    def handle_timer(self, now: float) -> None: ...
    def let_go(self) -> None:
        """All is over and nothing will be called but properties: frees what is large, which the garbage collector would find late."""


class Connection(BareConnection, Protocol):
    """A connection as a link drives it."""

    host_cid: bytes
    is_resumed: bool
    """The handshake went by a ticket of an earlier one (RFC 8446 §2.2)."""

    def connect(self, addr: Address, now: float) -> None: ...
    def set_reset_token(self, token: bytes) -> None:
        """A listener's, before the first `take`: what ends the dialler's side when it comes without a connection (RFC 9000 §10.3)."""

    def pump(self, sink: Sink) -> None:
        """Tells every event that waits."""

    def send_stream_data(self, stream_id: int, data: bytes) -> None: ...
    def send_datagram_frame(self, data: bytes) -> None: ...
    @property
    def takes_datagrams(self) -> bool:
        """Whether the peer does (RFC 9221 §3)."""
        ...

    @property
    def room_bytes(self) -> int:
        """What the congestion window still takes."""
        ...

    @property
    def may_migrate(self) -> bool:
        """The handshake is confirmed; no address may change before (RFC 9000 §9)."""
        ...

    @property
    def probes_unanswered(self) -> int:
        """Probe timeouts since the last acknowledgement (RFC 9002 §6.2)."""
        ...

    @property
    def packet_bytes(self) -> int:
        """The largest UDP payload that the path is thought to carry."""
        ...

    @property
    def losses(self) -> tuple[int, int]:
        """Packets sent and packets lost so far; about, where a datagram holds several."""
        ...

    def unsent(self, stream_id: int) -> int:
        """Bytes of a stream that were never sent."""
        ...

    @property
    def is_congested(self) -> bool:
        """The congestion window has no room for another packet; acknowledgements are to come."""
        ...
