"""Links over TLS 1.3 and TCP: one connection for lane 0, one for bulk (lane 1), joined by the listener.

How it is dialled is in `tls_dial.py`, how it is accepted in `tls_listen.py`.
Hot path: a write costs one 4-byte head and one `transport.write`, a read one slice. No task and no future per message.

On the wire, inside TLS: the dialler begins each connection with a preamble (`PREAMBLE`: magic, version, lane, link id,
token). The token is known to the dialler alone, so a link id that was seen somewhere lets nobody join. The listener answers
the bulk lane's preamble with `JOINED`; until then the dialler does not count that lane. After the preamble, both directions are
chunks: a big-endian u32, whose low 31 bits are a length, then that many bytes. With the top bit set it is a note of the transport:
`GOODBYE` (u16 code, reason) before a close in good order, which a killed process cannot forge, or `JOINED`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from edgetun_core.errors import (
    EdgetunError,
    ProtocolError,
    SessionLost,
    error_from_code,
)
from edgetun_core.transport.link import HIGH_WATER_BYTES, LOW_WATER_BYTES, LinkUser

PREAMBLE: Final = struct.Struct(">4sBB2x16s32s")
MAGIC: Final = b"EGTN"
VERSION: Final = 1
REGULAR, BULK = 0, 1

NOTE_BIT: Final = 0x8000_0000
NOTE_GOODBYE, NOTEJOINED = 1, 2
MAX_NOTE_BYTES: Final = 1024
JOIN_BY_WRITELINES_BYTES: Final = 32 * 1024
"""From this size on a chunk is not copied behind its head."""

CLOSE_TIMEOUT_S: Final = 1.0

_U32: Final = struct.Struct(">I")
_GOODBYE: Final = struct.Struct(">IBH")
JOINED: Final = struct.pack(">IB", NOTE_BIT | 1, NOTEJOINED)
_TCP_INFO_RTT: Final = struct.Struct("=68xI")


class TlsLink:
    """A link of one or two TLS connections; see `Link` for the contract."""

    __slots__ = (
        "_closing",
        "_connections",
        "_deadline",
        "_ended",
        "_expected",
        "_gone",
        "_lanes",
        "_loop",
        "_peer",
        "_remote_error",
        "_user",
        "_writers",
        "link_id",
        "on_gone",
        "opened",
        "token",
    )

    transport = "tls"
    engine = "tls"

    def __init__(self, user: LinkUser, link_id: bytes, token: bytes, on_gone: Callable[[TlsLink], None]) -> None:
        self.link_id = link_id
        self.token = token
        self.on_gone = on_gone
        self.opened = False
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._connections: list[LaneConnection] = []
        self._writers: list[asyncio.Transport] = []
        self._lanes = 0
        self._peer: tuple[str, int] = ("", 0)
        self._closing = False
        self._ended = False
        self._gone = False
        self._expected = 0
        self._remote_error: EdgetunError | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def lanes(self) -> int:
        return self._lanes

    @property
    def is_closing(self) -> bool:
        """Whether the end of the link has been said, by either side."""
        return self._closing

    @property
    def bulk_from(self) -> int:
        return BULK

    @property
    def peer_address(self) -> tuple[str, int]:
        return self._peer

    @property
    def rtt_s(self) -> float | None:
        if self._ended or not self._writers or not hasattr(socket, "TCP_INFO"):
            return None
        try:
            info = self._writers[0].get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            return float(_TCP_INFO_RTT.unpack_from(info)[0]) / 1e6
        except (OSError, AttributeError, struct.error):
            return None

    @property
    def peer_certificate(self) -> Mapping[str, Any] | None:
        """What the peer showed and the handshake verified, as `ssl.getpeercert` tells it; None when it showed none."""
        return self._writers[0].get_extra_info("peercert") if self._writers else None

    def unsent_bytes(self, lane: int) -> int:
        """How much of a lane waits to be handed to the kernel."""
        return 0 if self._ended else self._writers[lane].get_write_buffer_size()

    def write(self, lane: int, data: bytes) -> None:
        if self._closing:
            return
        size = len(data)
        if size < JOIN_BY_WRITELINES_BYTES:
            self._writers[lane].write(_U32.pack(size) + data)
        else:
            self._writers[lane].writelines((_U32.pack(size), data))

    def close(self, code: int, reason: str) -> None:
        if self._closing:
            return
        self._closing = True
        note = goodbye(code, reason)
        for writer in self._writers:
            writer.write(note)
            writer.close()
        self._deadline = self._loop.call_later(CLOSE_TIMEOUT_S, self._drop)

    def abort(self) -> None:
        if self._ended:
            return
        self._end(SessionLost("the link was dropped on this side"))

    # --- called by the connections

    def add(self, connection: LaneConnection, writer: asyncio.Transport) -> None:
        """A lane is up; lane 0 opens the link."""
        writer.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=LOW_WATER_BYTES)
        self._connections.append(connection)
        self._expected += 1
        if connection.lane == REGULAR:
            self._writers.append(writer)
            self._lanes += 1
            self._peer = peer_address(writer)
            self.opened = True
            self._user.on_open(self)
        elif self._closing:
            writer.abort()
        else:
            self._writers.append(writer)
            self._lanes += 1

    def received(self, lane: int, data: bytes) -> None:
        if not self._ended:
            self._user.on_data(lane, data)

    def paused(self, lane: int) -> None:
        if not self._closing:
            self._user.on_lane_paused(lane)

    def resumed(self, lane: int) -> None:
        if not self._closing:
            self._user.on_lane_resumed(lane)

    def said_goodbye(self, lane: int, code: int, reason: str) -> None:
        """The peer closes in good order; the link ends when its other connection has come to its end too."""
        if lane < len(self._writers):
            self._writers[lane].close()
        if self._closing:
            return
        self._closing = True
        if code:
            self._remote_error = error_from_code(code, reason)
        self._deadline = self._loop.call_later(CLOSE_TIMEOUT_S, self._drop)

    def broken(self, error: EdgetunError) -> None:
        """The peer broke the rules of the preamble or of the chunks."""
        self._end(error)

    def lost(self, connection: LaneConnection, cause: Exception | None) -> None:
        self._expected -= 1
        if not self._closing:
            detail = f" ({cause})" if cause is not None and str(cause) else ""
            self._end(SessionLost(f"the TLS connection to {self._peer[0]} broke off{detail}"))
        elif self._expected == 0:
            self._end(self._remote_error)
        if self._expected == 0 and not self._gone:
            self._gone = True
            self._writers.clear()  # with OpenSSL's state, which is not left to the garbage collector
            self.on_gone(self)

    def _drop(self) -> None:
        self._end(self._remote_error)

    def _end(self, error: EdgetunError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._closing = True
        if self._deadline is not None:
            self._deadline.cancel()
        for connection in self._connections:
            connection.drop()
        if self.opened:
            # Not from within the user's own call to `abort` or `write`.
            self._loop.call_soon(self._user.on_closed, error)


class LaneConnection(asyncio.Protocol):
    """One TLS connection as a lane of a link: takes chunks apart and tells notes from data."""

    __slots__ = ("_left", "_link", "_partial", "_transport", "lane")

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self._link: TlsLink | None = None
        self._transport: asyncio.Transport | None = None
        self._left = 0
        self._partial = b""

    def attach(self, link: TlsLink, transport: asyncio.Transport) -> None:
        """The lane belongs to `link` from now on."""
        self._link = link
        self._transport = transport
        link.add(self, transport)

    def data_received(self, data: bytes) -> None:
        link = self._link
        assert link is not None
        left = self._left
        size = len(data)
        if left and size <= left:  # in the middle of a big chunk
            self._left = left - size
            link.received(self.lane, data)
            return
        if self._partial:
            data = self._partial + data
            size = len(data)
            self._partial = b""
        position = 0
        while position < size:
            if left:
                chunk = data[position : position + left]
                position += len(chunk)
                left -= len(chunk)
                link.received(self.lane, chunk)
                continue
            if size - position < 4:
                self._partial = data[position:]
                break
            (length,) = _U32.unpack_from(data, position)
            if length & NOTE_BIT:
                length &= ~NOTE_BIT
                if length > MAX_NOTE_BYTES or length == 0:
                    link.broken(ProtocolError(f"a note of {length} bytes on lane {self.lane}"))
                    return
                if size - position - 4 < length:
                    self._partial = data[position:]
                    break
                self._note(link, data[position + 4 : position + 4 + length])
                position += 4 + length
                continue
            left = length
            position += 4
        self._left = left

    def _note(self, link: TlsLink, note: bytes) -> None:
        if note[0] == NOTE_GOODBYE and len(note) >= 3:
            link.said_goodbye(self.lane, int.from_bytes(note[1:3], "big"), note[3:].decode("utf-8", "replace"))
        # An unknown note is from a later version and skipped.

    def eof_received(self) -> None:
        return None

    def pause_writing(self) -> None:
        if self._link is not None:
            self._link.paused(self.lane)

    def resume_writing(self) -> None:
        if self._link is not None:
            self._link.resumed(self.lane)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._link is not None:
            self._link.lost(self, exc)

    def drop(self) -> None:
        """Drops the connection; `connection_lost` follows."""
        if self._transport is not None:
            self._transport.abort()


def tune(transport: asyncio.Transport) -> None:
    """No delay for small writes, and a dead peer is noticed by the kernel too."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 30_000)):
        option = getattr(socket, name, None)
        if option is not None:
            options.append((socket.IPPROTO_TCP, option, value))
    for level, option, value in options:
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            pass  # the connection works without


def peer_address(transport: asyncio.BaseTransport) -> tuple[str, int]:
    """IP address and port of the other end."""
    name = transport.get_extra_info("peername")
    return (str(name[0]), int(name[1])) if name else ("", 0)


def goodbye(code: int, reason: str) -> bytes:
    """The note that says why its sender closes."""
    text = reason.encode()[: MAX_NOTE_BYTES - 3].decode("utf-8", "ignore").encode()
    return _GOODBYE.pack(NOTE_BIT | (3 + len(text)), NOTE_GOODBYE, code & 0xFFFF) + text
