"""TLS between a socket and the connection above it, by OpenSSL itself and without the event loop's layer.

The loops' own holds a buffer of 256 KiB, a context and timers per connection: some 27 KB of memory each, and a tenth of a handshake.
Here a connection costs what OpenSSL takes for its state. Visitors come over it, and the links of sessions. Hot path: what one read
brings is decrypted, answered, encrypted and written in one piece; a session ticket leaves with the first answer if that comes within the read.

What OpenSSL reads from and writes to is one pair of memory BIOs per thread, which every connection holds in its turn (`_Desk`): a pair of
its own would keep 3 KB for as long as the connection lasts.

Bounds: nothing is kept here but what a paused connection has received and not read (the transport below is paused then).
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

_RECORD_BYTES: Final = 16_384
"""The most that one record holds (RFC 8446 §5.1), and so what one read of OpenSSL gives."""
_PLAIN_BYTES: Final = 256 * 1024
"""The most that is handed up at once; what one read of a socket brings is no more."""


class TlsOwner(Protocol):
    """Who began a handshake and hears how it ends: one of the two is called, once."""

    def handshake_done(self, transport: TlsTransport) -> asyncio.BaseProtocol:
        """The connection that is above from now on; `connection_made` is called next."""
        ...

    def handshake_failed(self, transport: TlsTransport, error: Exception | None) -> None:
        """The connection is gone; `error` is None when the other end just left."""


class TlsTransport(asyncio.Transport, asyncio.BaseProtocol):
    """The protocol of a socket's transport, and the transport of the connection above it."""

    __slots__ = (
        *(
            "_app",
            "_desk",
            "_error",
            "_inner",
            "_is_at_end",
            "_is_partial",
            "_is_reading",
            "_owner",
            "_paused",
            "_raw",
        ),
        *("_unread", "is_closing_down", "is_open", "tls"),
    )

    def __init__(self, owner: TlsOwner, context: ssl.SSLContext, *, server_name: str | None = None) -> None:
        """`server_name` makes it the client's end."""
        self.is_open = False
        """The handshake is done, and neither side has ended the connection."""
        self.is_closing_down = False
        self._owner: TlsOwner | None = owner
        self._desk = desk = _of_thread.desk
        self.tls = context.wrap_bio(
            desk.incoming, desk.outgoing, server_side=server_name is None, server_hostname=server_name
        )
        # Without the Python layer of `SSLObject`, which costs a call for each read and write.
        self._inner: Any = getattr(self.tls, "_sslobj", self.tls)
        self._app: Any = None
        self._raw: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._is_reading = False
        self._is_partial = True
        """OpenSSL may hold the beginning of a record: what is pending says nothing of its length then."""
        self._is_at_end = False
        """The other end has said its last, or something wrong (`_error`); whoever is above does not know it yet."""
        self._paused = False
        self._unread = b""
        """What came, and was not decrypted when another connection had its turn."""

    # What the transport below calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = transport  # type: ignore[assignment]
        if self.is_closing_down:
            self.abort()
        elif not self.tls.server_side:
            self._desk.turn_to(self)
            self._shake_hands()
            self._flush()

    def data_received(self, data: bytes | memoryview) -> None:
        """Hot path: takes what one read brought."""
        if self.is_closing_down:
            return
        desk = self._desk
        if desk.holder is not self:
            desk.turn_to(self)
        desk.incoming.write(data)
        self._is_reading = True
        try:
            if not self.is_open and not self._shake_hands():
                return
            self._read()
        finally:
            self._is_reading = False
            self._flush()

    def eof_received(self) -> bool:
        if self.is_open:
            self._app.eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._desk.leave(self)
        self._unread = b""
        self.is_closing_down = True
        self.is_open = False
        app, self._app = self._app, None
        owner, self._owner = self._owner, None
        error = exc or self._error
        self._error = None
        if app is not None:
            app.connection_lost(error)
        elif owner is not None:
            owner.handshake_failed(self, error)

    def pause_writing(self) -> None:
        if self._app is not None:
            self._app.pause_writing()

    def resume_writing(self) -> None:
        if self._app is not None:
            self._app.resume_writing()

    # The handshake and reading.

    def _shake_hands(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self.is_closing_down = True
            self._error = error
            if self._raw is not None:
                self._raw.close()
            return False
        owner, self._owner = self._owner, None
        assert owner is not None
        self.is_open = True
        self._app = owner.handshake_done(self)
        self._app.connection_made(self)
        return True

    def _read(self) -> None:
        """Decrypts and passes on what came, unless reading is paused."""
        desk = self._desk
        incoming, read = desk.incoming, self._inner.read
        try:
            # Whoever is above may have written to other connections, which had the desk meanwhile.
            while not self._paused and self.is_open and (desk.holder is self or self._unread or self._is_at_end):
                if desk.holder is not self:
                    desk.turn_to(self)
                    continue
                size = incoming.pending
                if self._is_at_end:
                    if self._error is not None:
                        self.abort()
                        return
                    data = b""
                elif size > _RECORD_BYTES:
                    data = self._read_many(b"")
                    if not data:
                        continue
                elif size:
                    # What is asked for always holds a record's whole plaintext, which is never longer than the record: OpenSSL keeps no rest.
                    data = read(size if not self._is_partial else _RECORD_BYTES)
                    self._is_partial = False
                    if data and incoming.pending:
                        data = self._read_many(data)
                else:
                    return
                if not data:  # close_notify (RFC 8446 §6.1)
                    self._app.eof_received()
                    self._is_at_end = True
                    self.close()
                    return
                self._app.data_received(data)
        except ssl.SSLWantReadError:
            self._is_partial = True
        except ssl.SSLError as error:
            self._error = error
            self.abort()

    def _read_many(self, first: bytes) -> bytes:
        """The records of one read together: each by itself would cost whoever is above a call and a copy."""
        desk = self._desk
        incoming, read, plain = desk.incoming, self._inner.read, desk.plain
        at = len(first)
        plain[:at] = first
        try:
            while at <= _PLAIN_BYTES - _RECORD_BYTES and incoming.pending:
                count = read(_RECORD_BYTES, plain[at:])
                self._is_partial = False
                if not count:
                    self._is_at_end = True
                    break
                at += count
        except ssl.SSLWantReadError:
            self._is_partial = True
            if not at:
                raise
        except ssl.SSLError as error:
            self._error = error
            self._is_at_end = True  # what came before is good
        return bytes(plain[:at])

    def _flush(self) -> None:
        desk = self._desk
        if desk.holder is self and desk.outgoing.pending and self._raw is not None:
            self._raw.write(desk.outgoing.read())

    # What the connection above calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_open or not data:
            return
        desk = self._desk
        if desk.holder is not self:
            desk.turn_to(self)
        try:
            self._inner.write(data)
        except ssl.SSLError as error:
            self._error = error
            self.abort()
            return
        if not self._is_reading or desk.outgoing.pending > _RECORD_BYTES:
            self._flush()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Writes pieces of which one is large: a record for a small one costs less than a copy."""
        if not self.is_open:
            return
        desk = self._desk
        if desk.holder is not self:
            desk.turn_to(self)
        write = self._inner.write
        try:
            for data in list_of_data:
                if data:
                    write(data)
        except ssl.SSLError as error:
            self._error = error
            self.abort()
            return
        self._flush()

    def close(self) -> None:
        """Says the last, and closes when it is sent."""
        if self.is_closing_down:
            return
        self.is_closing_down = True
        was_open, self.is_open = self.is_open, False
        if was_open:
            self._desk.turn_to(self)
            try:
                self.tls.unwrap()
            except ssl.SSLError:
                pass  # the other end's own last word is not waited for
            self._flush()
        self._unread = b""
        raw = self._raw
        if raw is not None:
            if was_open and not self._is_at_end and not raw.is_closing():
                self._close_raw(raw)
            else:
                raw.close()

    def _close_raw(self, raw: asyncio.Transport) -> None:
        """We have said our last, and the other end has not."""
        raw.close()

    def abort(self) -> None:
        self.is_closing_down = True
        self.is_open = False
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        return self.is_closing_down or self._raw is None or self._raw.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        if self._raw is not None and not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if self._raw is not None and not self._raw.is_closing():
                self._raw.resume_reading()
                at_desk = self._desk.holder is self and self._desk.incoming.pending
                if self._unread or at_desk or self._is_at_end:
                    asyncio.get_running_loop().call_soon(self._read_on)

    def is_reading(self) -> bool:
        return not self._paused and not self.is_closing()

    def _read_on(self) -> None:
        """Goes on with what had come before reading was paused."""
        if self.is_open and not self._is_reading:
            self._is_reading = True
            try:
                self._read()
            finally:
                self._is_reading = False
                self._flush()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._app = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._app  # type: ignore[no-any-return]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self.tls
        if name == "peercert":
            return self.tls.getpeercert() if self._raw is not None else default
        if name == "sslcontext":
            return self.tls.context
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert self._raw is not None
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        return False

    # Turns at the desk.

    def put_away(self, unread: bytes) -> None:
        """Another connection has its turn; this is what was not decrypted yet."""
        if not self.is_closing_down:
            self._unread = unread

    def take_up(self) -> bytes:
        """It is this connection's turn again."""
        unread, self._unread = self._unread, b""
        return unread

    def write_raw(self, data: bytes) -> None:
        """Sends what OpenSSL had written before another connection had its turn."""
        if self._raw is not None:
            self._raw.write(data)


class LinkTls(TlsTransport, asyncio.BufferedProtocol):
    """One for much data: what the socket brings is read into the desk's buffer, and not into a new one each time.

    A close waits for the other end to have read all, `linger_s` at most.
    """

    __slots__ = ("_linger_s", "_timer")

    def __init__(
        self, owner: TlsOwner, context: ssl.SSLContext, *, linger_s: float, server_name: str | None = None
    ) -> None:
        super().__init__(owner, context, server_name=server_name)
        self._linger_s = linger_s
        self._timer: asyncio.TimerHandle | None = None

    def _close_raw(self, raw: asyncio.Transport) -> None:
        """Reads on and drops it: with unread bytes the kernel would reset the connection, and what was said last might not arrive."""
        if not raw.can_write_eof():
            raw.close()
            return
        raw.write_eof()
        if self._paused:
            self._paused = False
            raw.resume_reading()
        self._timer = asyncio.get_running_loop().call_later(self._linger_s, raw.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._desk.raw

    def buffer_updated(self, nbytes: int) -> None:
        """Hot path: takes what one read brought."""
        self.data_received(self._desk.raw[:nbytes])


class _Desk:
    """What the TLS connections of a thread read from and write to, one at a time.

    Whoever needs it takes it; what the one before has left goes with that one: what OpenSSL wrote to its socket, what it did not read
    yet to where it waits. Between two callbacks of the loop nearly always nothing is left.
    """

    __slots__ = ("holder", "incoming", "outgoing", "plain", "raw")

    def __init__(self) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.plain = memoryview(bytearray(_PLAIN_BYTES))
        """What long reads are decrypted into; filled and emptied within one call of the loop."""
        self.raw = memoryview(bytearray(_PLAIN_BYTES))
        """What sockets are read into."""
        self.holder: TlsTransport | None = None

    def turn_to(self, transport: TlsTransport) -> None:
        """Gives the desk to a connection."""
        while (before := self.holder) is not transport:
            self.holder = transport
            written = self.outgoing.read()
            unread = self.incoming.read()
            if before is not None and unread:
                before.put_away(unread)
            waiting = transport.take_up()
            if waiting:
                self.incoming.write(waiting)
            if before is not None and written:
                before.write_raw(written)  # which may pause somebody, who writes to a third connection: hence the loop

    def leave(self, transport: TlsTransport) -> None:
        """The connection is gone, and with it what it had here."""
        if self.holder is transport:
            self.holder = None
            self.outgoing.read()
            self.incoming.read()


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.desk = _Desk()


_of_thread: Final = _OfThread()


class Opening:
    """A handshake that somebody waits for. `done` gives the transport, or the error that it failed with."""

    __slots__ = ("_make", "done")

    def __init__(self, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self._make = make
        self.done: asyncio.Future[TlsTransport] = asyncio.get_running_loop().create_future()

    def handshake_done(self, transport: TlsTransport) -> asyncio.BaseProtocol:
        """See `TlsOwner`."""
        if not self.done.done():
            self.done.set_result(transport)
        return self._make()

    def handshake_failed(self, transport: TlsTransport, error: Exception | None) -> None:
        """See `TlsOwner`."""
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("closed in the handshake"))
