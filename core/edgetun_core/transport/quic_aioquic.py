"""QUIC by aioquic: the reference engine, readable to the last line and slow; the one to compare with when in doubt."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable
from hmac import compare_digest
from typing import Any, cast

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicProtocolVersion

from edgetun_core.pki import ServerIdentity, Trust
from edgetun_core.transport import congestion
from edgetun_core.transport.link import ALPN
from edgetun_core.transport.path_mtu import BlackHole
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
from edgetun_core.transport.udp import Address

NAME = "aioquic"
CONGESTION_CONTROL = congestion.NAME


class AioquicConnection(QuicConnection):
    """The driver's `Connection`."""

    _large_packets = 0
    is_resumed = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._hole = BlackHole()

    def set_reset_token(self, token: bytes) -> None:
        self._host_cids[0].stateless_reset_token = token

    def take(self, data: bytes, segment: int, address: Address, now: float) -> None:
        token = self._peer_cid.stateless_reset_token
        for start in range(0, len(data), segment):
            datagram = data[start : start + segment]
            if token and compare_digest(datagram[-len(token) :], token) and self._close_event is None:
                self._reset()
                return
            self.receive_datagram(datagram, address, now)

    def _reset(self) -> None:
        """The peer knows nothing of this connection any more (RFC 9000 §10.3.1, also why the comparison takes as long whatever came);
        the library does not look."""
        self._close_event = events.ConnectionTerminated(
            error_code=QuicErrorCode.NO_ERROR, frame_type=QuicFrameType.PADDING, reason_phrase=STATELESS_RESET
        )
        self._close_end()

    def pump(self, sink: Sink) -> None:
        while (event := self.next_event()) is not None:
            pass_on(event, events, self, sink)

    def transmit(self, now: float, send: Callable[[list[bytes], Address], None]) -> None:
        if not self._network_paths:
            return
        batch: list[bytes] = []
        last: Address | None = None
        for datagram, address in self.datagrams_to_send(now):
            if last is not None and address != last:
                send(batch, last)
                batch = []
            last = address
            batch.append(datagram)
            if len(datagram) > SMALLEST_PACKET_BYTES:
                self._large_packets += 1
        if last is not None:
            send(batch, last)
            if self._large_packets and self._hole.is_there(
                self._large_packets, self.losses[1], self._loss._rtt_smoothed, now
            ):
                self._max_datagram_size = SMALLEST_PACKET_BYTES

    def handle_timer(self, now: float) -> None:
        """Also takes a path for one of the smallest packets when large ones vanish."""
        super().handle_timer(now)
        if self._max_datagram_size > SMALLEST_PACKET_BYTES and self._loss._pto_count >= (
            BLACK_HOLE_PROBES if self._handshake_complete else 1
        ):
            self._max_datagram_size = SMALLEST_PACKET_BYTES

    @property
    def may_migrate(self) -> bool:
        return self._handshake_confirmed

    @property
    def probes_unanswered(self) -> int:
        return self._loss._pto_count

    @property
    def packet_bytes(self) -> int:
        return self._max_datagram_size

    @property
    def losses(self) -> tuple[int, int]:
        controller = self._loss._cc
        return (controller.sent, controller.lost) if isinstance(controller, congestion.RateController) else (0, 0)

    def unsent(self, stream_id: int) -> int:
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    @property
    def is_congested(self) -> bool:
        loss = self._loss
        return loss.bytes_in_flight + MAX_PACKET_BYTES > loss.congestion_window

    @property
    def takes_datagrams(self) -> bool:
        return (self._remote_max_datagram_frame_size or 0) > MAX_PACKET_BYTES

    @property
    def room_bytes(self) -> int:
        return self._loss.congestion_window - self._loss.bytes_in_flight

    def let_go(self) -> None:
        pass  # it is Python through and through, and nothing of it large

    def has_settled(self) -> bool:
        return all(stream.sender._buffer_start == stream.sender._buffer_stop for stream in self._streams.values())

    def end(self, code: int, reason: str) -> None:
        self.close(error_code=code, frame_type=None, reason_phrase=reason)

    @property
    def ended(self) -> Ended | None:
        event = self._close_event
        if event is None:
            return None
        return Ended(int(event.error_code), event.reason_phrase, event.frame_type is None)

    @property
    def peer(self) -> Address:
        return cast("Address", self.get_peer_address() or ("", 0))

    @property
    def rtt_s(self) -> float | None:
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else None


def server_configuration(identity: ServerIdentity) -> QuicConfiguration:
    """What every connection of a listener shares; made again when the identity changes."""
    configuration = _configuration(is_client=False)
    with tempfile.NamedTemporaryFile() as file:  # the library reads certificates from files only
        file.write(identity.cert_pem)
        file.flush()
        with tempfile.NamedTemporaryFile() as key_file:  # 0600
            key_file.write(identity.key_pem)
            key_file.flush()
            configuration.load_cert_chain(file.name, key_file.name)
    return configuration


def client_configuration(trust: Trust, server_name: str) -> QuicConfiguration:
    """Of one connection of a dialler."""
    configuration = _configuration(is_client=True)
    configuration.server_name = server_name
    if trust.insecure:
        configuration.verify_mode = ssl.CERT_NONE
    elif trust.ca_pem is not None:
        configuration.cadata = trust.ca_pem
    else:
        paths = ssl.get_default_verify_paths()
        configuration.cafile, configuration.capath = paths.cafile, paths.capath
    return configuration


def connection(**options: Any) -> AioquicConnection:
    """One end of a connection; the options are the library's."""
    return AioquicConnection(**options)


def _configuration(*, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        idle_timeout=IDLE_TIMEOUT_S,
        max_data=MAX_DATA_BYTES,
        max_stream_data=MAX_STREAM_DATA_BYTES,
        max_datagram_frame_size=MAX_DATAGRAM_FRAME_BYTES,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        congestion_control_algorithm=CONGESTION_CONTROL,
    )
