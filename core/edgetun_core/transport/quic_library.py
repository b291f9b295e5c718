"""The QUIC libraries by name, each imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from edgetun_core.errors import ConfigError
from edgetun_core.pki import ServerIdentity, Trust
from edgetun_core.transport.quic_connection import Connection
from edgetun_core.transport.tickets import Tickets

LOSSY_ENGINE: Final = "aioquic"
"""Whose congestion control bears random loss (congestion.py)."""


class Library(Protocol):
    """What `quic_qh3.py` and `quic_aioquic.py` offer as modules."""

    def server_configuration(self, identity: ServerIdentity) -> Any: ...
    def accept(
        self, configuration: Any, original_destination_cid: bytes, *, packet_bytes: int, tickets: Tickets
    ) -> Connection: ...
    def dialled(
        self,
        trust: Trust,
        server_name: str,
        *,
        cid_bytes: int = ...,
        packet_bytes: int = ...,
        ticket: Any = ...,
        on_ticket: Callable[[Any], None] | None = ...,
    ) -> Connection: ...


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
