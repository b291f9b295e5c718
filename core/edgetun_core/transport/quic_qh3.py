"""QUIC by qh3: the default engine, its packets made and read by Rust.

Beyond the library's public interface this uses its packet core for two things, both worth measurable time in bulk: a GRO
buffer goes in as it came from the kernel, and datagrams are polled without per-packet logging hooks in between.
"""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Callable, MutableSequence
from typing import Any, Final, cast

from qh3 import tls
from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import QuicProtocolVersion
from qh3.quic.tls_bridge import QuicTlsBridge

from edgetun_core.errors import SessionLost
from edgetun_core.pki import ServerIdentity, Trust
from edgetun_core.transport.link import ALPN
from edgetun_core.transport.path_mtu import BlackHole
from edgetun_core.transport.peer_address import PeerAddress
from edgetun_core.transport.quic_connection import (
    BLACK_HOLE_PROBES,
    IDLE_TIMEOUT_S,
    MAX_DATA_BYTES,
    MAX_DATAGRAM_FRAME_BYTES,
    MAX_PACKET_BYTES,
    MAX_STREAM_DATA_BYTES,
    SMALLEST_PACKET_BYTES,
    STATELESS_RESET,
    Ended,
    Sink,
    pass_on,
)
from edgetun_core.transport.quic_qh3_settled import Settled
from edgetun_core.transport.quic_qh3_shrink import Shrink
from edgetun_core.transport.udp import Address

NAME = "qh3"

JOIN_FROM_EVENTS: Final = 64
"""More events than this in one burst are pieces of a packet each; a burst of whole reads makes up to 16."""

PACKETS_TAKEN: Final = 2
"""Where the packet core's report has the number of packets that were authentic."""

NO_ROOM: Final = "packet builder capacity exhausted"
"""The packet core's word for a frame that fits no packet that may be sent now. It keeps the frame and its place."""
POLLS_WITHOUT_ROOM: Final = 4
"""So often in a row before the connection is given up: an address that is not validated yet has room for little, the others have more."""


class Qh3Connection(QuicConnection):
    """The driver's `Connection`.

    Counts for itself what may be sent to an address that is not validated yet (RFC 9000 §8.1): the library counts a client's
    padding behind its Initial packet for nothing, and then fails instead of waiting.

    A listener's connection tells the library one address of the peer for good, and follows it by itself (`peer_address.py`). The library
    knows four addresses at most per connection, drops what comes from a fifth, and does not go back to one that it left.
    """

    _is_capped = False
    _is_settled = False
    _shrink: Shrink | None = None
    _large_packets = 0
    is_resumed = False
    _last_rtt_s: float | None = None
    _sent_packets = 0
    _received_bytes = 0
    _sent_bytes = 0
    _held: list[tuple[bytes, Address]]
    _hole: BlackHole
    _told: Address
    _where: PeerAddress
    _reset_token: bytes | None = None

    def set_reset_token(self, token: bytes) -> None:
        self._reset_token = token

    def _create_tls(self, remote_source_cid: bytes | None) -> Any:
        bridge = super()._create_tls(remote_source_cid)
        if self._reset_token is not None:
            bridge.stateless_reset_token = self._reset_token
            bridge.tls.handshake_extensions = [
                (tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS, bridge.serialize_transport_parameters())
            ]
            self._reset_token = None
        return bridge

    def _create_core(self, remote_addr: Address, initial_dcid: bytes, now: float) -> None:
        retry = self._retry_source_connection_id
        self._held = []
        self._hole = BlackHole()
        self._told = remote_addr
        self._where = PeerAddress(remote_addr)
        if retry is None:
            self._retry_source_connection_id = b""  # makes the library take the address for validated
        super()._create_core(remote_addr, initial_dcid, now)
        self._retry_source_connection_id = retry

    def _drain_tls(self) -> None:
        super()._drain_tls()
        if self._handshake_complete and not self._is_client and type(self._tls) is QuicTlsBridge:
            settled = Settled(self._tls)
            self._applied_transport_parameters = settled.remote_transport_parameters  # type: ignore[assignment]
            self._tls = settled  # type: ignore[assignment]

    def take(self, data: bytes, segment: int, address: Address, now: float) -> None:
        core = self._core
        if core is None or not self._handshake_complete:
            self._received_bytes += len(data)
            for start in range(0, len(data), segment):
                self.receive_datagram(data[start : start + segment], address, now)
            return
        if self._is_client:
            core.receive_gro_buffer(data, segment, address, now)
        else:
            if not self._is_settled:
                self._settle()
            report = core.receive_gro_buffer(data, segment, self._told, now)
            if report[PACKETS_TAKEN] and (self._where.is_proving or address != self._where.current):
                probe = self._where.heard(address, len(data), now)
                if probe:
                    core.send_ping(probe)
        self._drain_core()

    def _settle(self) -> None:
        """Goes on from where the library followed the peer to by itself."""
        assert self._core is not None
        self._is_settled = True
        if self._told != self._core.active_path[2]:
            self._told = self._core.active_path[2]
            self._where = PeerAddress(self._told)

    def pump(self, sink: Sink) -> None:
        waiting = self._events
        if len(waiting) > JOIN_FROM_EVENTS:
            self._join_pieces(waiting)
        while waiting:
            self._events = []  # type: ignore[assignment]
            for event in waiting:
                if type(event) is events.PingAcknowledged:
                    self._where.acknowledged(event.uid)
                else:
                    pass_on(event, events, self, sink)
            waiting = self._events

    @staticmethod
    def _join_pieces(waiting: MutableSequence[events.QuicEvent]) -> None:
        """Makes one event of many: a sender that takes its streams in turn gives each stream one packet's worth at a time."""
        streams: dict[int, list[bytes]] = {}
        others: list[events.QuicEvent] = []
        for event in waiting:
            if type(event) is events.StreamDataReceived and not event.end_stream and not others:
                streams.setdefault(event.stream_id, []).append(event.data)
            else:
                others.append(event)  # and all behind it, so that nothing overtakes it
        waiting.clear()
        for stream_id, pieces in streams.items():
            waiting.append(events.StreamDataReceived(b"".join(pieces), False, stream_id))
        waiting.extend(others)

    def transmit(self, now: float, send: Callable[[list[bytes], Address], None]) -> None:
        if self._core is None:
            return
        poll = self._poll
        if self._held or not (self._handshake_complete or self._is_client):
            self._transmit_limited(now, send)
            return
        datagram = poll(now)
        if datagram is None:
            return
        address = datagram[1]
        batch = [self._first_flight(datagram[0]) if self._is_client and not self._handshake_complete else datagram[0]]
        while (datagram := poll(now)) is not None:
            if datagram[1] != address:  # a path is being probed
                self._send(batch, address, now, send)
                address = datagram[1]
                batch = []
            batch.append(datagram[0])
            self._sent_packets += 1
            if len(datagram[0]) > SMALLEST_PACKET_BYTES:
                self._large_packets += 1
        self._sent_packets += 1
        self._send(batch, address, now, send)
        if self._large_packets and not self._is_capped and self._handshake_complete:
            core = self._core
            if self._hole.is_there(self._large_packets, core.loss_total, core.smoothed_rtt or 0.0, now):
                self._cap()

    def _poll(self, now: float) -> tuple[bytes, Address] | None:
        """The packet core's next datagram. Raises SessionLost when it can make none any more."""
        core, shrink = self._core, self._shrink
        assert core is not None
        for _ in range(POLLS_WITHOUT_ROOM):
            try:
                if shrink is None:
                    return cast("tuple[bytes, Address] | None", core.poll_transmit(now))
                datagram, is_safe = shrink.poll(core, now)
            except RuntimeError as error:
                if str(error) != NO_ROOM:
                    raise
                continue
            if is_safe:
                self._shrink = None
                self._lower()
            return datagram
        raise SessionLost("the QUIC library has a frame that is too large for every packet")

    def _first_flight(self, datagram: bytes) -> bytes:
        """An Initial packet's datagram made as large as packets are to be, so that it tries the path; the library fills it to 1,200 only.

        Bytes behind the last packet mean nothing (RFC 9000 §12.2).
        """
        is_initial = datagram[0] & 0xB0 == 0x80
        return datagram.ljust(self.packet_bytes, b"\0") if is_initial else datagram

    def _send(
        self, batch: list[bytes], told: Address, now: float, send: Callable[[list[bytes], Address], None]
    ) -> None:
        """Sends what the library has for an address that it was told."""
        if self._is_client or told != self._told:
            send(batch, told)
            return
        where = self._where
        if where.is_proving:
            batch = where.allowed(batch, now)
            if not batch:
                return
        send(batch, where.current)

    def handle_timer(self, now: float) -> None:
        """Also takes a path for one of the smallest packets when large ones vanish, which the library does for first flights only."""
        super().handle_timer(now)
        core = self._core
        if core is None or self._is_capped or core.active_path[5] <= SMALLEST_PACKET_BYTES:
            return
        if core.pto_count >= (BLACK_HOLE_PROBES if self._handshake_complete else 1):
            self._cap()

    def _cap(self) -> None:
        """Goes on with the smallest packets as soon as no frame waits that was cut for larger ones."""
        if self._transport_parameters_applied:
            self._is_capped = True
            if self._handshake_complete:
                self._shrink = Shrink(self._core)
            else:  # what there is until then is cut for the smallest packets
                self._lower()

    def _lower(self) -> None:
        """The library lowers its packets' size to what the peer says it takes, whenever it says so."""
        parameters = None if self._tls is None else self._tls.remote_transport_parameters
        assert parameters is not None
        parameters.max_udp_payload_size = SMALLEST_PACKET_BYTES
        self._applied_transport_parameters = None
        self._drain_tls()

    def _transmit_limited(self, now: float, send: Callable[[list[bytes], Address], None]) -> None:
        """At most three times what came in; the rest is held until more comes, or the handshake is through."""
        while (polled := self._poll(now)) is not None:
            self._held.append((polled[0], polled[1]))
        while self._held:
            size = len(self._held[0][0])
            if not self._handshake_complete and self._sent_bytes + size > 3 * self._received_bytes:
                break
            self._sent_bytes += size
            datagram, address = self._held.pop(0)
            send([datagram], address)

    @property
    def may_migrate(self) -> bool:
        return self._handshake_confirmed

    @property
    def probes_unanswered(self) -> int:
        return 0 if self._core is None else self._core.pto_count

    @property
    def packet_bytes(self) -> int:
        return SMALLEST_PACKET_BYTES if self._core is None else self._core.active_path[5]

    @property
    def losses(self) -> tuple[int, int]:
        return self._sent_packets, 0 if self._core is None else self._core.loss_total

    def unsent(self, stream_id: int) -> int:
        return self.get_send_buffer_size(stream_id)

    @property
    def is_congested(self) -> bool:
        core = self._core
        return core is not None and core.bytes_in_flight + MAX_PACKET_BYTES > core.congestion_window

    @property
    def takes_datagrams(self) -> bool:
        return (self._remote_max_datagram_frame_size or 0) > MAX_PACKET_BYTES

    @property
    def room_bytes(self) -> int:
        core = self._core
        return 0 if core is None else core.congestion_window - core.bytes_in_flight

    def has_settled(self) -> bool:
        return self._core is None or (self._core.bytes_in_flight == 0 and self.get_send_buffer_size() == 0)

    def let_go(self) -> None:
        """The packet core and the keys are memory of Rust's, some 40 KiB, that Python's garbage collector does not see."""
        self._remote_addr, self._last_rtt_s = self.peer, self.rtt_s
        self._core = None
        bridge, self._tls = self._tls, None
        if type(bridge) is QuicTlsBridge:
            vars(bridge.tls).clear()  # its callbacks are methods of this connection
            vars(bridge).clear()
        self._session_ticket_fetcher = self._session_ticket_handler = None

    def end(self, code: int, reason: str) -> None:
        self.close(error_code=code, frame_type=None, reason_phrase=reason)

    @property
    def ended(self) -> Ended | None:
        event = self._close_event
        if event is None:
            return None
        reason = str(event.reason_phrase)
        if not reason and event.frame_type is None and self._core is not None and self._core.state == "terminated":
            return Ended(0, STATELESS_RESET, False)  # a peer that closes is drained first
        if "unacceptable" in reason:
            reason = self._what_is_wrong_with_certificate() or reason
        return Ended(int(event.error_code), reason, event.frame_type is None)

    def _what_is_wrong_with_certificate(self) -> str:
        """The library has one text for many cases; the two that a person can mend are told apart here."""
        certificate, wanted = self.get_peercert(), self._configuration.server_name
        if certificate is None or wanted is None:
            return ""
        if not certificate.not_valid_before <= time.time() <= certificate.not_valid_after:
            return "the certificate is expired or not yet valid"
        try:
            names = {":".join(f"{byte:02x}" for byte in ipaddress.ip_address(wanted).packed)}
        except ValueError:
            names = {wanted.lower(), "*." + wanted.lower().partition(".")[2]}
        found = (name.decode("latin-1").lower() for name in certificate.get_subject_alt_names())
        if any(name[name.find("(") + 1 : name.rfind(")")] in names for name in found):
            return ""
        return "the certificate is not for this name"

    @property
    def peer(self) -> Address:
        if self._core is not None:
            told: Address = self._core.active_path[2]
            return self._where.current if told == self._told and not self._is_client else told
        return cast("Address", self._remote_addr or ("", 0))

    @property
    def rtt_s(self) -> float | None:
        return self._last_rtt_s if self._core is None else self._core.smoothed_rtt


def server_configuration(identity: ServerIdentity) -> QuicConfiguration:
    """What every connection of a listener shares; made again when the identity changes."""
    configuration = _configuration(is_client=False)
    configuration.load_cert_chain(identity.cert_pem, identity.key_pem)
    return configuration


def client_configuration(trust: Trust, server_name: str) -> QuicConfiguration:
    """Of one connection of a dialler."""
    configuration = _configuration(is_client=True)
    configuration.server_name = server_name
    if trust.insecure:
        configuration.verify_mode = ssl.CERT_NONE
    else:
        configuration.cadata = trust.ca_pem
    return configuration


def connection(**options: Any) -> Qh3Connection:
    """One end of a connection; the options are the library's."""
    made = Qh3Connection(**options)
    made._events = []  # type: ignore[assignment] # an empty deque is ten times as large
    return made


def _configuration(*, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        idle_timeout=IDLE_TIMEOUT_S,
        max_data=MAX_DATA_BYTES,
        max_stream_data=MAX_STREAM_DATA_BYTES,
        max_datagram_frame_size=MAX_DATAGRAM_FRAME_BYTES,
        supported_versions=[QuicProtocolVersion.VERSION_1],
    )
