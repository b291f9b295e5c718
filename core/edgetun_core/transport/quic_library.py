"""The QUIC libraries by name, each imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from edgetun_core.errors import ConfigError
from edgetun_core.pki import ServerIdentity, Trust
from edgetun_core.transport.quic_connection import CID_BYTES, SMALLEST_PACKET_BYTES, Connection
from edgetun_core.transport.tickets import Tickets

LOSSY_ENGINE: Final = "aioquic"
"""Whose congestion control bears random loss (congestion.py)."""


class Library(Protocol):
    """What `quic_qh3.py` and `quic_aioquic.py` offer as modules. Configurations are the library's own, with the same names in both."""

    def server_configuration(self, identity: ServerIdentity) -> Any: ...
    def client_configuration(self, trust: Trust, server_name: str) -> Any: ...
    def connection(self, **options: Any) -> Connection: ...


def library(engine: str) -> Library:
    """The library of an engine's name."""
    match engine:
        case "qh3":
            from edgetun_core.transport import quic_qh3

            return cast("Library", quic_qh3)
        case "aioquic":
            from edgetun_core.transport import quic_aioquic

            return cast("Library", quic_aioquic)
        case _:
            raise ConfigError(f'there is no QUIC engine "{engine}"', remedy="choose qh3 or aioquic")


def accept_connection(
    packets: Library, configuration: Any, original_destination_cid: bytes, *, tickets: Tickets
) -> Connection:
    """The listener's side of a connection that begins. `configuration` is the library's, for all connections of one packet size."""
    return packets.connection(
        configuration=configuration,
        original_destination_connection_id=original_destination_cid,
        session_ticket_fetcher=tickets.take_any,
        session_ticket_handler=tickets.put,
    )


def dial_connection(
    packets: Library,
    trust: Trust,
    server_name: str,
    *,
    cid_bytes: int = CID_BYTES,
    packet_bytes: int = SMALLEST_PACKET_BYTES,
    ticket: Any = None,
    on_ticket: Callable[[Any], None] | None = None,
) -> Connection:
    """The dialler's side."""
    configuration = packets.client_configuration(trust, server_name)
    configuration.max_datagram_size = packet_bytes
    configuration.session_ticket = ticket
    configuration.connection_id_length = cid_bytes
    return packets.connection(configuration=configuration, session_ticket_handler=on_ticket)
