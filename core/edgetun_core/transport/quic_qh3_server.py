"""qh3 for a server of many short streams: the certificate by server name, tickets used once, early data, few calls per packet.

Beyond `quic_qh3.py` this reads the packet core's events without the library's event objects in between, and leaves them there
while the user has no room: the core widens a stream's and the connection's receive window when an event is taken, and not
before. So not taking them is the flow control that the library has no call for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol

from qh3 import tls
from qh3._hazmat import Buffer
from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnectionError
from qh3.quic.crypto import CIPHER_SUITES, derive_key_iv_hp
from qh3.quic.packet import QuicProtocolVersion

from edgetun_core.pki import ServerIdentity
from edgetun_core.transport.quic_endpoint import FirstContact
from edgetun_core.transport.quic_qh3 import Qh3Connection
from edgetun_core.transport.tickets import Tickets
from edgetun_core.transport.udp import Address

MAX_PACKET_BYTES: Final = 1452
"""Ethernet's 1500 less IPv6's and UDP's heads; what a client's first datagram shows the path to carry is used up to here."""
MAX_STREAMS: Final = 100
"""Requests that a client may have open: the library's number, which it announces itself."""
_MIN_PACKET_BYTES: Final = 1200
_INITIAL_SALT: Final = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
"""RFC 9001 §5.2, QUIC version 1."""


class Shown(NamedTuple):
    """A certificate as the library wants it."""

    certificate: Any
    chain: list[Any]
    private_key: Any


def shown(identity: ServerIdentity) -> Shown:
    """Reads an identity for the library; keep the result, it takes a while."""
    configuration = QuicConfiguration(is_client=False)
    configuration.load_cert_chain(identity.cert_pem, identity.key_pem)
    return Shown(configuration.certificate, configuration.certificate_chain, configuration.private_key)


class ServerSink(Protocol):
    """Whom a connection tells its events; it is asked for `is_full` before each."""

    is_full: bool

    def handshake_done(self, alpn: str | None) -> None: ...
    def stream_data(self, stream_id: int, data: bytes, is_end: bool) -> None: ...
    def stream_reset(self, stream_id: int, code: int) -> None: ...
    def stop_sending(self, stream_id: int, code: int) -> None: ...
    def cid_issued(self, cid: bytes) -> None: ...
    def cid_retired(self, cid: bytes) -> None: ...


class Server:
    """What the connections of one front share."""

    def __init__(
        self,
        *,
        alpn: str,
        idle_timeout_s: float,
        max_data_bytes: int,
        max_stream_data_bytes: int,
        choose: Callable[[str], Shown | None],
        reset_token: Callable[[bytes], bytes],
    ) -> None:
        """`choose` gives the certificate for a server name (lower case, or empty), or None for a name that is not served.

        `reset_token` gives the stateless reset token of a connection id.
        """
        self.choose = choose
        self.reset_token = reset_token
        self.tickets = Tickets()
        self._base = QuicConfiguration(
            is_client=False,
            alpn_protocols=[alpn],
            idle_timeout=idle_timeout_s,
            max_data=max_data_bytes,
            max_stream_data=max_stream_data_bytes,
            supported_versions=[QuicProtocolVersion.VERSION_1],
        )
        self._by_size: dict[int, QuicConfiguration] = {}

    def accept(self, first: FirstContact) -> Qh3ServerConnection:
        """A connection that begins."""
        size = max(_MIN_PACKET_BYTES, min(first.size_bytes, MAX_PACKET_BYTES))
        configuration = self._by_size.get(size)
        if configuration is None:
            # The library wants a certificate from the start; the client's hello says which one it really is.
            any_one = self.choose("") or self.choose("localhost")
            assert any_one is not None, "a front without any certificate"
            configuration = self._by_size[size] = replace(
                self._base,
                max_datagram_size=size,
                certificate=any_one.certificate,
                certificate_chain=any_one.chain,
                private_key=any_one.private_key,
            )
        return Qh3ServerConnection(self, configuration, first)


class _UnrecognizedName(tls.Alert):
    description = tls.AlertDescription.unrecognized_name


class _OneEvent:
    """Stands in for the packet core to give the library one event."""

    def __init__(self, core: Any, event: tuple[Any, ...]) -> None:
        self._core = core
        self._event: tuple[Any, ...] | None = event

    def next_event(self) -> tuple[Any, ...] | None:
        event, self._event = self._event, None
        return event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


class Qh3ServerConnection(Qh3Connection):
    """One connection. `server_name` is known when the first event is told."""

    _is_capped = True
    """Its packets' size stays: the library follows a visitor to another host only while that is as it was at first."""

    def __init__(self, server: Server, configuration: QuicConfiguration, first: FirstContact) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=first.original_cid,
            retry_source_connection_id=first.retry_cid or None,
            session_ticket_fetcher=self._fetch_ticket,
            session_ticket_handler=server.tickets.put,
        )
        self._server = server
        self.server_name = ""
        self._is_client_nameless = not first.client_cid
        if self._is_client_nameless:
            self.host_cid = first.cid
        if first.retry_cid:
            self._received_bytes = 1 << 40  # the address is validated: nothing to count

    @property
    def early_data_accepted(self) -> bool:
        """The client's first flight carried requests that were taken (RFC 9001 §4.6)."""
        return self._tls is not None and self._tls.tls.early_data_accepted

    def _create_core(self, remote_addr: Address, initial_dcid: bytes, now: float) -> None:
        if not self._is_client_nameless:
            super()._create_core(remote_addr, initial_dcid, now)
            return
        # Browsers choose a connection id of no length. The core would go on to send to the id that the client had chosen for
        # us, so it is told of none; then it takes only packets to an id of ours, so ours is what the client chose; and the
        # keys of the Initial packets, which follow from that id (RFC 9001 §5.2), are put in from here.
        super()._create_core(remote_addr, b"", now)
        core = self._core
        assert core is not None
        suite = tls.CipherSuite.AES_128_GCM_SHA256
        hp_name, aead_name = CIPHER_SUITES[suite]
        secret = tls.hkdf_extract(256, _INITIAL_SALT, initial_dcid)
        for direction, label in (("receive", b"client in"), ("send", b"server in")):
            own = tls.hkdf_expand_label(256, secret, label, b"", 32)
            keys = derive_key_iv_hp(cipher_suite=suite, secret=own, version=QuicProtocolVersion.VERSION_1)
            core.install_packet_key(
                direction,
                int(tls.Epoch.INITIAL),
                (aead_name.decode(), hp_name.decode()),
                *keys,
                0,
                own,
                QuicProtocolVersion.VERSION_1,
            )

    def _create_tls(self, remote_source_cid: bytes | None) -> Any:
        bridge = super()._create_tls(remote_source_cid)
        # The library learns an id that is there, and takes one of no length (browsers choose it) for not known.
        bridge.remote_initial_source_connection_id = b""
        context = bridge.tls
        bridge.stateless_reset_token = self._server.reset_token(self.host_cid)
        context.handshake_extensions = [
            (tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS, bridge.serialize_transport_parameters())
        ]
        handle = context._server_handle_hello

        def choose_and_handle(input_buf: Buffer, *output_bufs: Buffer) -> None:
            name = (tls.pull_client_hello(input_buf).server_name or "").lower().rstrip(".")
            input_buf.seek(0)
            found = self._server.choose(name)
            if found is None:
                raise _UnrecognizedName(f"no certificate for {name!r}")
            self.server_name = name
            context._server_name = name  # stands in the ticket
            context.certificate, context.certificate_chain, context.certificate_private_key = found
            handle(input_buf, *output_bufs)

        context._server_handle_hello = choose_and_handle
        return bridge

    def _fetch_ticket(self, ticket_id: bytes) -> tls.SessionTicket | None:
        found: tls.SessionTicket | None = self._server.tickets.take(ticket_id, self.server_name)
        return found

    def take(self, data: bytes, segment: int, address: Address, now: float) -> None:
        """Another port of the same host is followed at once. Another host answers the library's PATH_CHALLENGE first: unlike an
        acknowledgement, that answer cannot be made up by a visitor who has packets sent to somebody else."""
        if not self._handshake_complete or address[0] == self._where.current[0]:
            super().take(data, segment, address, now)
            return
        self._core.receive_gro_buffer(data, segment, address, now)  # type: ignore[union-attr]
        self._settle()

    def _drain_core(self) -> None:
        if not self._handshake_complete:
            super()._drain_core()  # afterwards `pump` does

    def pump(self, sink: ServerSink) -> None:  # type: ignore[override]
        """Tells events until there is none, or the sink has no room."""
        if self._events:
            self._pump_told(sink)
        if not self._handshake_complete:
            return
        core = self._core
        assert core is not None
        next_event = core.next_event
        while not sink.is_full:
            event = next_event()
            if event is None:
                return
            kind = event[0]
            if kind == "stream_data":
                sink.stream_data(event[1], event[2], event[3])
            elif kind != "stream_finished":
                self._core = _OneEvent(core, event)  # type: ignore[assignment]
                try:
                    super()._drain_core()
                finally:
                    self._core = core
                if self._events:
                    self._pump_told(sink)

    def _pump_told(self, sink: ServerSink) -> None:
        waiting = self._events
        while waiting and not sink.is_full:
            event = waiting.popleft()
            match event:
                case events.StreamDataReceived():
                    sink.stream_data(event.stream_id, event.data, event.end_stream)
                case events.StreamReset():
                    sink.stream_reset(event.stream_id, event.error_code)
                case events.StopSendingReceived():
                    sink.stop_sending(event.stream_id, event.error_code)
                case events.HandshakeCompleted():
                    sink.handshake_done(event.alpn_protocol)
                case events.ConnectionIdIssued():
                    sink.cid_issued(event.connection_id)
                case events.ConnectionIdRetired():
                    sink.cid_retired(event.connection_id)

    @property
    def is_held_back(self) -> bool:
        """The congestion window or the pacer lets nothing out now; more is sent without anyone's doing."""
        if self.is_congested:
            return True
        timer = self._core.get_timer() if self._core is not None else None
        return timer is not None and timer[0] == "pacing"

    @property
    def is_gone(self) -> bool:
        """The peer closed, also when that event still waits behind others."""
        return self._core is not None and self._core.state in ("draining", "terminated")

    # --- sending

    def send(self, stream_id: int, data: bytes | memoryview, is_end: bool) -> None:
        """Hands bytes to the library, which keeps a copy until they are acknowledged."""
        if self._handshake_complete:
            self._core.send_stream(stream_id, data, is_end)  # type: ignore[union-attr]
        else:
            self.send_stream_data(stream_id, bytes(data), is_end)

    def unsent_bytes(self) -> int:
        """Bytes of all streams that were never sent."""
        return self.get_send_buffer_size()

    def reset(self, stream_id: int, code: int) -> bool:
        """Ends the sending side of a stream abruptly; False when it had ended."""
        try:
            self.reset_stream(stream_id, code)
        except QuicConnectionError:  # the library's way to say that the stream, or all, is over
            return False
        return True

    def stop(self, stream_id: int, code: int) -> bool:
        """Asks the peer to send no more on a stream; False when it had ended."""
        try:
            self.stop_stream(stream_id, code)
        except QuicConnectionError:
            return False
        return True

    def ping(self) -> None:
        """Keeps the connection alive on both sides."""
        self.send_ping(0)
