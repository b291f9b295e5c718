"""What a listener's qh3 connection needs of its TLS once the handshake is done.

The library keeps the whole of it for as long as the connection lasts: the key schedule, the extensions, the lists of what might have
been agreed on, with queues and callbacks around them, some 12 KB. A client's handshake goes on (tickets come), a server's does not.
"""

from __future__ import annotations

from typing import Any, Final

from qh3.quic.packet import QuicErrorCode
from qh3.quic.tls_bridge import QuicTlsBridge, QuicTlsBridgeError
from qh3.tls import AlertDescription, Epoch

_PARAMETERS: Final = (
    "ack_delay_exponent",
    "active_connection_id_limit",
    "disable_active_migration",
    "initial_max_data",
    "initial_max_stream_data_bidi_local",
    "initial_max_stream_data_bidi_remote",
    "initial_max_stream_data_uni",
    "initial_max_streams_bidi",
    "initial_max_streams_uni",
    "max_ack_delay",
    "max_datagram_frame_size",
    "max_idle_timeout",
    "max_udp_payload_size",
    "stateless_reset_token",
)


class _Parameters:
    """The peer's transport parameters, as far as the library applies them (again, when they were changed here)."""

    __slots__ = _PARAMETERS

    def __init__(self, parameters: Any) -> None:
        for name in _PARAMETERS:
            setattr(self, name, getattr(parameters, name))


class Settled:
    """Stands for the library's `QuicTlsBridge` and its `Context` after the handshake."""

    __slots__ = ("cipher_suite", "early_data_accepted", "peer_certificate", "remote_transport_parameters", "version")

    ech_accepted = False
    ech_retry_configs = None
    handshake_complete = True
    remembered_transport_parameters = None

    def __init__(self, bridge: QuicTlsBridge) -> None:
        """Takes what is needed, and lets the rest go."""
        self.version = bridge.version
        self.cipher_suite = bridge.cipher_suite
        self.early_data_accepted = bridge.tls.early_data_accepted
        self.peer_certificate = bridge.peer_certificate
        assert bridge.remote_transport_parameters is not None
        self.remote_transport_parameters = _Parameters(bridge.remote_transport_parameters)
        vars(bridge.tls).clear()  # its callbacks are methods of the bridge and of the connection
        vars(bridge).clear()

    @property
    def tls(self) -> Settled:
        return self

    @property
    def peer_certificate_chain(self) -> list[Any]:
        return []

    def next_traffic_secret(self) -> None:
        """There are no more."""

    def next_crypto_data(self) -> None:
        """There is no more."""

    def next_event(self) -> None:
        """There are no more."""

    def receive_crypto(self, epoch: Epoch, data: bytes, offset: int | None = None, *, version: int) -> None:
        """A client has nothing to say in TLS after its Finished (RFC 9001 §4.1.3, §6)."""
        raise QuicTlsBridgeError(
            QuicErrorCode.CRYPTO_ERROR + int(AlertDescription.unexpected_message), "unexpected message"
        )
