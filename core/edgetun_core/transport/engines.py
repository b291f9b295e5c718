"""The engines behind the link seam, by name, each imported only when it is used.

`qh3` (QUIC, the default), `aioquic` (QUIC, the reference) and `tls` (TLS 1.3 over TCP) keep one contract, which
`tests/conformance/test_transport_contract.py` holds them to.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from edgetun_core.errors import ConfigError
from edgetun_core.pki import DevelopmentCA, ServerIdentity, Trust, fingerprint
from edgetun_core.transport.link import Link, LinkUser
from edgetun_core.transport.way import Way

__all__ = [
    "DEFAULT_MAX_LINKS",
    "ENGINES",
    "DevelopmentCA",
    "Listener",
    "ServerIdentity",
    "Trust",
    "dial",
    "fingerprint",
    "listen",
]

ENGINES = ("qh3", "aioquic", "tls")

HANDSHAKE_TIMEOUT_S = 5.0
DEFAULT_MAX_LINKS = 10_000


class Listener(Protocol):
    """A listening socket and the links that came over it."""

    host: str
    port: int

    @property
    def links(self) -> int:
        """How many links are open."""
        ...

    async def close(self) -> None:
        """Stops listening, closes every link in good order (bounded by about 1 s) and returns when all are gone."""


async def dial(
    engine: str,
    host: str,
    port: int,
    *,
    trust: Trust,
    user: LinkUser,
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
    server_name: str | None = None,
    way: Way | None = None,
    is_lossy: bool = False,
) -> Link:
    """Opens a link; `user.on_open` has been called when this returns.

    `server_name` is the name or IP address that the certificate must carry, `host` when it is None. `way` is for `tls`:
    QUIC always goes directly, since no proxy in use carries UDP. `is_lossy` is for QUIC over a path that loses packets at random:
    the link is aioquic's, whose congestion control bears that, and the listener is asked for the same. Raises
    `UpstreamUnreachable` (nothing there, or no answer within `timeout_s`), `AuthError` (certificate not trusted or for another
    name) or `ProtocolError` (not an edgetun listener); after any of these `user` was never called.
    """
    match engine:
        case "tls":
            from edgetun_core.transport.tls_dial import dial_tls

            return await dial_tls(host, port, trust, user, timeout_s, server_name, way)
        case "qh3" | "aioquic":
            from edgetun_core.transport.quic_dial import dial_quic

            return await dial_quic(engine, host, port, trust, user, timeout_s, server_name, is_lossy=is_lossy)
        case _:
            raise _unknown(engine)


async def listen(
    engine: str,
    host: str,
    port: int,
    *,
    identity: ServerIdentity,
    accept: Callable[[], LinkUser],
    max_links: int = DEFAULT_MAX_LINKS,
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    reuse_port: bool = False,
    other_protocols: Mapping[str, Callable[[], asyncio.Protocol]] | None = None,
    select_context: Callable[[str | None], ssl.SSLContext | None] | None = None,
    state: Path | None = None,
) -> Listener:
    """Listens for links; `port` 0 takes a free one. `accept` makes the user of each link that comes up.

    `tls` only: `other_protocols` maps other ALPN ids to protocol factories that share the port (`""`: clients that sent no
    ALPN), and `select_context` may choose another certificate by SNI name (None: `identity`'s). QUIC only: in the folder `state`
    links are noted, so that the next process can end them when this one is killed. Raises `ConfigError` when the
    address cannot be used.
    """
    match engine:
        case "tls":
            from edgetun_core.transport.tls_listen import listen_tls

            return await listen_tls(
                host,
                port,
                identity,
                accept,
                max_links=max_links,
                handshake_timeout_s=handshake_timeout_s,
                reuse_port=reuse_port,
                other_protocols=other_protocols or {},
                select_context=select_context,
            )
        case "qh3" | "aioquic":
            if other_protocols or select_context:
                raise ConfigError(f"engine {engine} cannot share its port with other protocols", remedy="use tls")
            from edgetun_core.transport.quic_listen import listen_quic

            return await listen_quic(
                engine,
                host,
                port,
                identity,
                accept,
                max_links=max_links,
                handshake_timeout_s=handshake_timeout_s,
                reuse_port=reuse_port,
                state=state,
            )
        case _:
            raise _unknown(engine)


def _unknown(engine: str) -> ConfigError:
    return ConfigError(f'there is no transport engine "{engine}"', remedy=f"choose one of {', '.join(ENGINES)}")
