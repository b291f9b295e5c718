"""One visitor of a load test: a non-blocking connection, TCP or TLS, that asks and is answered by callbacks.

Hot path, on the event loop's own thread: no task, future or transport for a visitor, since ten thousand of them arrive
within two seconds. The socket is registered with the loop directly, and TLS runs over memory buffers.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from time import perf_counter
from typing import Final, Protocol

from edgetun.histogram import Histogram
from edgetun.load_plan import Target
from edgetun.load_response import BadResponse, CutShort, ResponseInfo, ResponseReader
from edgetun_core.memo import Memo

_RECEIVE_BYTES: Final = 256 * 1024
_TLS_WRITE_BYTES: Final = 64 * 1024

_KINDS: Final[dict[int, str]] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ECONNABORTED: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EADDRNOTAVAIL: "no free port",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
}


def error_kind(error: BaseException) -> str:
    """One word or two for what went wrong; the key under which errors are counted."""
    if isinstance(error, BadResponse):
        return "bad response"
    if isinstance(error, CutShort):
        return "cut short"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "certificate"
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, OSError):
        return _KINDS.get(error.errno or 0, "other")
    return "other"


class VisitorListener(Protocol):
    """Whom a visitor tells; every call may ask again or close from within."""

    def on_answer(self, visitor: Visitor, info: ResponseInfo) -> None: ...

    def on_failure(self, visitor: Visitor, error: Exception) -> None: ...

    def on_left(self, visitor: Visitor, error: Exception | None) -> None:
        """The connection ended while nothing was asked: the server may, and `error` is None or a reset; or it sent
        bytes that nobody had asked for, a `BadResponse`."""


class Venue:
    """What all visitors of one run share: the loop, where to dial, the request, one receive buffer, known heads.

    `connections` counts those that were made, TLS included, `open` those that stand; `connecting` is how long they took.
    """

    __slots__ = (
        "buffer",
        "connecting",
        "connections",
        "head_request",
        "listener",
        "loop",
        "memo",
        "open",
        "peak_open",
        "request",
        "target",
        "view",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Target,
        request: bytes,
        listener: VisitorListener,
        *,
        head_request: bool = False,
    ) -> None:
        self.loop = loop
        self.target = target
        self.request = request
        self.listener = listener
        self.head_request = head_request
        self.memo: Memo[bytes, ResponseInfo] = Memo(512)
        self.buffer = bytearray(_RECEIVE_BYTES)
        self.view = memoryview(self.buffer)
        self.connecting = Histogram()
        self.connections = 0
        self.open = 0
        self.peak_open = 0

    def opened(self, dialled: float) -> None:
        self.connections += 1
        self.open += 1
        if self.open > self.peak_open:
            self.peak_open = self.open
        self.connecting.record(int((perf_counter() - dialled) * 1e6))


class Visitor:
    """A connection and at most one request in flight on it.

    `scheduled` is when the request should have started (`time.perf_counter`; the clock of uvloop is cached and in whole
    milliseconds), `started` when it did; `left` is the owner's, the requests that a crowd's visitor has still to make. After `close()` nothing is called back.
    """

    __slots__ = (
        "_fd",
        "_incoming",
        "_is_reading",
        "_is_ready",
        "_is_writing",
        "_outgoing",
        "_plain",
        "_raw",
        "_sock",
        "_tls",
        "_venue",
        "dialled",
        "is_asking",
        "left",
        "reader",
        "scheduled",
        "started",
    )

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._sock: socket.socket | None = None
        self._fd = -1
        self._is_reading = False
        self._is_writing = False
        self._plain: memoryview | None = None
        self._raw: memoryview | None = None
        self._tls: ssl.SSLObject | None = None
        self._is_ready = False
        self.reader = ResponseReader(venue.memo)
        self.is_asking = False
        self.dialled = 0.0
        self.scheduled = 0.0
        self.started = 0.0
        self.left = 0

    @property
    def is_open(self) -> bool:
        return self._sock is not None

    @property
    def can_ask(self) -> bool:
        """True when the connection stands and nothing is in flight on it."""
        return self._is_ready and not self.is_asking

    def ask(self, scheduled: float, now: float) -> None:
        """Sends the request, dialling first when there is no connection. Failures are told to the listener."""
        self.scheduled = scheduled
        self.started = now
        self.is_asking = True
        self.reader.begin(head_request=self._venue.head_request)
        try:
            if self._sock is None:
                self._dial(now)
            else:
                self._send_request()
        except (OSError, BadResponse) as error:
            self._fail(error)

    def close(self) -> None:
        """Ends the connection at once; nothing is called back after it."""
        self.is_asking = False
        sock, self._sock = self._sock, None
        if sock is None:
            return
        loop = self._venue.loop
        if self._is_reading:
            loop.remove_reader(self._fd)
        if self._is_writing:
            loop.remove_writer(self._fd)
        if self._is_ready:
            self._venue.open -= 1
        self._is_reading = self._is_writing = self._is_ready = False
        self._plain = self._raw = self._tls = None
        sock.close()

    def fail(self, error: Exception) -> None:
        """For the owner's deadline: ends the request as if `error` had happened on the connection."""
        self._fail(error)

    # -- the connection ------------------------------------------------------------------------------------------

    def _dial(self, now: float) -> None:
        target = self._venue.target
        self.dialled = now
        sock = socket.socket(target.family, socket.SOCK_STREAM)
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        code = sock.connect_ex(target.address)
        if code == 0:
            self._connected()
        elif code == errno.EINPROGRESS:
            self._watch_writable()
        else:
            raise OSError(code, os.strerror(code))

    def _connected(self) -> None:
        venue = self._venue
        assert self._sock is not None
        # A request in several writes (TLS, a body) must not wait for the acknowledgement of the first one.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._is_reading = True
        venue.loop.add_reader(self._fd, self._readable)
        context = venue.target.tls
        if context is None:
            self._is_ready = True
            venue.opened(self.dialled)
            self._send_request()
            return
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=venue.target.server_name)
        self._shake_hands()

    def _shake_hands(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush_tls()
            return
        except ssl.SSLError:
            self._flush_tls()  # the alert, so that the server knows why
            raise
        self._is_ready = True
        self._venue.opened(self.dialled)
        self._send_request()

    # -- writing -------------------------------------------------------------------------------------------------

    def _send_request(self) -> None:
        request = self._venue.request
        if self._tls is None:
            assert self._sock is not None
            try:
                sent = self._sock.send(request)
            except BlockingIOError:
                sent = 0
            if sent < len(request):
                self._raw = memoryview(request)[sent:]
                self._watch_writable()
            return
        self._plain = memoryview(request)
        self._flush_tls()

    def _flush_tls(self) -> None:
        """Encrypts what is to be sent, a piece at a time, as far as the socket takes it."""
        assert self._tls is not None
        while True:
            if self._plain is not None and self._is_ready and not self._outgoing.pending:
                written = self._tls.write(self._plain[:_TLS_WRITE_BYTES])
                self._plain = self._plain[written:] if written < len(self._plain) else None
            if self._raw is None:
                if not self._outgoing.pending:
                    return
                self._raw = memoryview(self._outgoing.read())
            if not self._flush_raw():
                return

    def _flush_raw(self) -> bool:
        """True when everything was taken; else goes on when the socket is writable."""
        assert self._sock is not None
        assert self._raw is not None
        try:
            sent = self._sock.send(self._raw)
        except BlockingIOError:
            sent = 0
        if sent < len(self._raw):
            self._raw = self._raw[sent:]
            self._watch_writable()
            return False
        self._raw = None
        return True

    def _watch_writable(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            self._venue.loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        try:
            assert self._sock is not None
            self._is_writing = False
            self._venue.loop.remove_writer(self._fd)
            if not self._is_reading:  # the connection attempt has ended
                code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
                self._connected()
            elif (self._raw is None or self._flush_raw()) and self._tls is not None:
                self._flush_tls()
        except (OSError, BadResponse) as error:
            self._fail(error)

    # -- reading -------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        sock, venue = self._sock, self._venue
        assert sock is not None
        try:
            count = sock.recv_into(venue.buffer)
            if self._tls is not None:
                self._read_tls(count)
            elif count:
                self._feed(bytes(venue.view[:count]))
            else:
                self._ended()
        except BlockingIOError:
            return
        except (OSError, BadResponse, CutShort) as error:
            self._fail(error)

    def _read_tls(self, count: int) -> None:
        tls = self._tls
        assert tls is not None
        if count:
            self._incoming.write(self._venue.view[:count])
        else:
            self._incoming.write_eof()
        if not self._is_ready:
            self._shake_hands()
            if not self._is_ready:
                return
        while self._tls is tls:
            try:
                data = tls.read(_RECEIVE_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLEOFError:
                # Without close_notify a body that ends with the connection may have been cut off (RFC 9112 §9.8).
                if not self.is_asking:
                    self._ended()
                    return
                raise CutShort("the TLS connection ended without close_notify") from None
            if not data:
                self._ended()
                return
            self._feed(data)
        if self._tls is tls and self._outgoing.pending:
            self._flush_tls()

    def _feed(self, data: bytes) -> None:
        if self.reader.feed(data):
            self._answered()

    def _answered(self) -> None:
        info = self.reader.info
        assert info is not None
        self.is_asking = False
        if not info.keep_alive or self._raw is not None or self._plain is not None:
            # An answer before the request was sent whole: the connection cannot be used again.
            self.close()
        self._venue.listener.on_answer(self, info)

    def _ended(self) -> None:
        if not self.is_asking:
            self.close()
            self._venue.listener.on_left(self, None)
            return
        if self.reader.end():
            self.close()
            self._answered()

    def _fail(self, error: Exception) -> None:
        was_asking = self.is_asking
        self.close()
        if was_asking:
            self._venue.listener.on_failure(self, error)
        else:
            self._venue.listener.on_left(self, error)
