"""A UDP socket that sends and receives many datagrams with one system call (Linux GSO and GRO), or one by one elsewhere.

Hot path: per readiness event up to `READ_BURST` receives, each up to 64 KB of one sender's datagrams; per send up to 64
datagrams of one size. What the kernel can do is tried when the socket is made; a route that refuses GSO turns it off for good.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from edgetun_core.transport import udp_health

log = logging.getLogger("edgetun.transport")

Address = tuple[str, int] | tuple[str, int, int, int]

READ_BURST: Final = 16
"""Receives per readiness event; the loop's other work comes between two bursts."""
READ_BYTES: Final = 65_535
READ_BURST_BYTES: Final = 512 * 1024
MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024
"""What waits while the kernel's buffer is full; beyond it datagrams are lost, as UDP's are, and QUIC sends them again."""
WANTED_BUFFER_BYTES: Final = 7_500_000
"""What QUIC implementations ask the kernel for, so that a burst at full speed fits (net.core.rmem_max, wmem_max)."""

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
PMTUDISC_PROBE: Final = 3
GSO_MAX_SEGMENTS: Final = 64
GSO_MAX_BYTES: Final = 65_000

_SEGMENT_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_GRO_SIZE.size)
_GSO_REFUSED: Final = frozenset({errno.EIO, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOPROTOOPT})

_told_small_buffer = False


class UdpSocket:
    """One bound UDP socket on the running loop.

    `on_datagrams(data, segment_bytes, address)` gets one or more datagrams of one sender, laid end to end, each of
    `segment_bytes` but the last; `on_batch_end()` follows the last of a burst. `on_error(error)` gets what the kernel reports.
    """

    __slots__ = (
        "_closed",
        "_connected",
        "_fd",
        "_gso",
        "_loop",
        "_max_queued_bytes",
        "_on_batch_end",
        "_on_datagrams",
        "_on_error",
        "_queue",
        "_queued_bytes",
        "_sock",
        "_waiting",
        "buffer_bytes",
        "dropped",
    )

    def __init__(
        self,
        sock: socket.socket,
        on_datagrams: Callable[[bytes, int, Address], None],
        on_batch_end: Callable[[], None],
        on_error: Callable[[OSError], None],
        *,
        wanted_buffer_bytes: int = WANTED_BUFFER_BYTES,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        """Takes the socket over: bound, and connected when it has one peer only. A buffer of 0 leaves the kernel's as it is."""
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._on_datagrams = on_datagrams
        self._on_batch_end = on_batch_end
        self._on_error = on_error
        self._connected = _is_connected(sock)
        self._gso = _has_gso(sock)
        _enable_gro(sock)
        self._queue: deque[tuple[list[bytes], Address]] = deque()
        self._queued_bytes = 0
        self._waiting: dict[Callable[[], None], None] = {}
        self._closed = False
        self.dropped = 0
        """Datagrams that the full queue did not take, or that the kernel refused."""
        self._max_queued_bytes = max_queued_bytes
        self.buffer_bytes = _grow_buffers(sock, wanted_buffer_bytes)
        """What the kernel gave for receiving; less than `WANTED_BUFFER_BYTES` means loss at high speed."""
        if wanted_buffer_bytes:
            udp_health.watch(sock)
        self._loop.add_reader(self._fd, self._readable)

    @property
    def local_address(self) -> tuple[str, int]:
        name = self._sock.getsockname()
        return name[0], name[1]

    @property
    def is_blocked(self) -> bool:
        """True while the kernel takes no more; `when_writable` tells the end of it."""
        return bool(self._queue)

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Calls back once when the queue is empty again."""
        self._waiting[callback] = None

    def send(self, datagrams: list[bytes], address: Address) -> None:
        """Sends all to one address, in order. The list is the socket's from now on."""
        if self._closed:
            return
        if self._queue:
            self._enqueue(datagrams, address)
            return
        sent = self._send_now(datagrams, address)
        if sent < len(datagrams):
            self._enqueue(datagrams[sent:], address)
            self._loop.add_writer(self._fd, self._writable)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._queue:
            self._loop.remove_writer(self._fd)
        self._queue.clear()
        self._waiting.clear()
        udp_health.leave(self._sock)
        self._sock.close()

    # --- sending

    def _send_now(self, datagrams: list[bytes], address: Address) -> int:
        """Returns how many the kernel took (or refused for good, which counts as lost)."""
        position = 0
        count = len(datagrams)
        while position < count:
            size = len(datagrams[position])
            end = position + 1
            if self._gso:
                # A run of one size, which a shorter one may end (it must be the last segment).
                limit = min(count, position + min(GSO_MAX_SEGMENTS, GSO_MAX_BYTES // size))
                while end < limit:
                    following = len(datagrams[end])
                    if following > size:
                        break
                    end += 1
                    if following < size:
                        break
            try:
                if end - position == 1:
                    if self._connected:
                        self._sock.send(datagrams[position])
                    else:
                        self._sock.sendto(datagrams[position], address)
                elif self._connected:
                    self._sock.sendmsg(datagrams[position:end], ((SOL_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(size)),))
                else:
                    self._sock.sendmsg(
                        datagrams[position:end], ((SOL_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(size)),), 0, address
                    )
            except (BlockingIOError, InterruptedError):
                return position
            except OSError as error:
                if end - position > 1 and error.errno in _GSO_REFUSED:
                    self._gso = False
                    log.info("udp: the route takes no segmentation offload (%s); sending one by one", error.strerror)
                    continue
                self.dropped += end - position
                # A probe for a larger path MTU is expected to be refused (RFC 8899).
                if error.errno != errno.EMSGSIZE:
                    self._on_error(error)
                    if self._closed:
                        return count
            position = end
        return count

    def _enqueue(self, datagrams: list[bytes], address: Address) -> None:
        size = sum(map(len, datagrams))
        if self._queued_bytes + size > self._max_queued_bytes:
            self.dropped += len(datagrams)
            return
        self._queue.append((datagrams, address))
        self._queued_bytes += size

    def _writable(self) -> None:
        queue = self._queue
        while queue:
            datagrams, address = queue[0]
            sent = self._send_now(datagrams, address)
            if self._closed:
                return
            if sent < len(datagrams):
                self._queued_bytes -= sum(map(len, datagrams[:sent]))
                queue[0] = (datagrams[sent:], address)
                return
            self._queued_bytes -= sum(map(len, datagrams))
            queue.popleft()
        self._loop.remove_writer(self._fd)
        waiting, self._waiting = self._waiting, {}
        for callback in waiting:
            callback()

    # --- receiving

    def _readable(self) -> None:
        receive = self._sock.recvmsg
        on_datagrams = self._on_datagrams
        taken = 0
        for _ in range(READ_BURST):
            try:
                data, ancillary, _flags, address = receive(READ_BYTES, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:  # ICMP: nobody listens there
                self._on_error(error)
                if self._closed:
                    return
                continue
            size = len(data)
            if size == 0:
                continue
            segment = size
            if ancillary:
                level, kind, value = ancillary[0]
                if level == SOL_UDP and kind == UDP_GRO and len(value) >= 4:
                    segment = _GRO_SIZE.unpack_from(value)[0] or size
            on_datagrams(data, segment, address)
            if self._closed:
                return
            taken += size
            if taken > READ_BURST_BYTES:
                break
        self._on_batch_end()


def split_segments(data: bytes, segment: int) -> list[bytes]:
    """The single datagrams of what `on_datagrams` got."""
    if len(data) <= segment:
        return [data]
    return [data[start : start + segment] for start in range(0, len(data), segment)]


def bind_udp(family: int, address: Any, *, reuse_port: bool = False) -> socket.socket:
    """A bound UDP socket. Raises `OSError`."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def forbid_fragments(sock: socket.socket) -> None:
    """Datagrams that are too large for the path are lost instead of cut (RFC 9000 §14), whatever the kernel remembers of the path."""
    for level, option, name in (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, "IPv4"),
        (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, "IPv6"),
    ):
        if name == "IPv6" and sock.family != socket.AF_INET6:
            continue
        try:
            sock.setsockopt(level, option, PMTUDISC_PROBE)
        except OSError:
            pass  # no Linux, or a socket of the other family: what is too large is found out by its loss all the same


def plain_address(address: Address) -> tuple[str, int]:
    """Host and port; an IPv4 peer of an IPv6 socket is shown as IPv4."""
    host = address[0]
    return (host[7:] if host.startswith("::ffff:") and "." in host else host), address[1]


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _enable_gro(sock: socket.socket) -> None:
    try:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:
        pass  # datagrams come one by one


def _has_gso(sock: socket.socket) -> bool:
    try:
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 1280)
        # Per message only: a size for the whole socket would cut every send.
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
    except OSError:
        return False
    return True


def _grow_buffers(sock: socket.socket, wanted_bytes: int) -> int:
    global _told_small_buffer
    if not wanted_bytes:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, wanted_bytes)
        except OSError:
            pass  # keeps what it has
    # Linux tells twice what may be used, to allow for its own book-keeping (socket(7)).
    given = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    if given < WANTED_BUFFER_BYTES and not _told_small_buffer:
        _told_small_buffer = True
        log.info(
            "udp: the kernel gives a receive buffer of %d KB where %d KB are good at high speed; raise net.core.rmem_max",
            given // 1000,
            WANTED_BUFFER_BYTES // 1000,
        )
    return given
