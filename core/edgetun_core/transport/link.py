"""The seam between the tunnel protocol and what carries it: a link is a handful of ordered byte streams to one peer.

An engine (QUIC by qh3, QUIC by aioquic, TLS over TCP, later WebSocket) implements `Link` and calls a `LinkUser`. The
protocol above never sees a socket; the engine never sees a frame. Everything runs on one event loop.

Flow: `write` never blocks and never refuses; the engine says `on_lane_paused` when more than `HIGH_WATER_BYTES` of a lane
wait to be sent, and `on_lane_resumed` below `LOW_WATER_BYTES`. The user stops producing for that lane meanwhile. The
protocol's credit bounds what can arrive, so an engine hands up whatever it receives at once.
"""

from __future__ import annotations

from typing import Protocol

from edgetun_core.errors import EdgetunError

HIGH_WATER_BYTES = 512 * 1024
LOW_WATER_BYTES = 128 * 1024

ALPN = "edgetun/1"
"""The ALPN protocol id of a session's transport, on TLS and on QUIC alike."""


class Link(Protocol):
    """One transport connection (or the few that make one), with lanes numbered from 0."""

    transport: str
    """`"quic"`, `"tls"`; what people see in the display, the metrics and `kubectl get agents`."""
    engine: str
    """`"qh3"`, `"aioquic"`, `"tls"`."""

    @property
    def lanes(self) -> int:
        """How many lanes are open now; lane 0 carries control. A lane once open stays open as long as the link."""
        ...

    @property
    def bulk_from(self) -> int:
        """Lanes from this number on are for bulk; equal to `lanes` when the link has none."""
        ...

    @property
    def peer_address(self) -> tuple[str, int]:
        """The peer's IP address and port as last seen."""
        ...

    @property
    def rtt_s(self) -> float | None:
        """The transport's smoothed round-trip estimate in seconds, if it has one."""
        ...

    def write(self, lane: int, data: bytes) -> None:
        """Sends bytes on a lane, in order. After the link closed it does nothing."""

    def close(self, code: int, reason: str) -> None:
        """Closes in good order after what was written is sent (bounded by 1 s); `on_closed` follows. Idempotent."""

    def abort(self) -> None:
        """Drops the link at once; `on_closed` follows. Idempotent."""


class DatagramLink(Link, Protocol):
    """A link that also carries datagrams: unordered, each arrives whole or not at all (RFC 9221)."""

    @property
    def max_datagram_bytes(self) -> int:
        """The most that one datagram carries; 0 when the peer takes none."""
        ...

    def write_datagrams(self, datagrams: list[bytes]) -> int:
        """Sends datagrams when congestion lets it; returns how many older ones a full queue lost for them."""


class DatagramUser(Protocol):
    """A `LinkUser` that takes datagrams."""

    def on_datagram(self, data: bytes) -> None:
        """One datagram of the peer."""


class PathUser(Protocol):
    """A `LinkUser` that wants to know what the path does to packets."""

    def on_path(self, *, is_lossy: bool) -> None:
        """Packets are lost at random, or hardly one of the last thousands was; now and then, when there is traffic to tell by."""


class LinkUser(Protocol):
    """What an engine calls."""

    def on_open(self, link: Link) -> None:
        """The link is up: handshake done, peer verified (by the dialler), lanes open."""

    def on_data(self, lane: int, data: bytes) -> None:
        """Bytes of one lane, in order."""

    def on_lane_paused(self, lane: int) -> None:
        """Too much waits to be sent on the lane."""

    def on_lane_resumed(self, lane: int) -> None:
        """The lane takes more again."""

    def on_closed(self, error: EdgetunError | None) -> None:
        """The link is gone; None when it was closed in good order. Called once, and nothing after it."""
