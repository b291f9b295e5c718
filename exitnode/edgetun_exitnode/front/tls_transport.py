"""TLS between a visitor's socket and its connection: the transport of HTTP/1.1 and HTTP/2 over TLS.

The event loops bring their own, which holds a buffer of 256 KiB, a task's context and timers per connection: 25 KB more of
memory each, and a tenth of a handshake. Here a connection costs what OpenSSL takes. Hot path: what one read brings is decrypted,
answered, encrypted and written in one piece; the session ticket leaves with the first answer if that comes within the read.

Bounds: nothing is kept here but what a paused connection has received and not read (the transport below is paused then).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from edgetun_core.proxy_protocol import Endpoints

if TYPE_CHECKING:
    from edgetun_exitnode.front.tls import TlsFront

_RECORD_BYTES: Final = 16_384
"""The most that one record holds (RFC 8446 §5.1), and so what one read of OpenSSL gives."""


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """The protocol of a socket's transport, and the transport of the connection above it."""

    __slots__ = (
        *("_app", "_decrypt", "_encrypt", "_incoming", "_is_partial", "_is_reading", "_outgoing", "_paused", "_raw"),
        *("begun", "front", "is_closing_down", "is_open", "tls", "told"),
    )

    def __init__(self, front: TlsFront, context: ssl.SSLContext, told: Endpoints | None = None) -> None:
        self.front = front
        self.told = told
        """What a trusted proxy said of the visitor."""
        self.begun = front.now
        self.is_open = False
        """The handshake is done, and neither side has ended the connection."""
        self.is_closing_down = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # Without the Python layer of `SSLObject`, which costs a call for each read and write.
        inner = getattr(self.tls, "_sslobj", self.tls)
        self._decrypt: Callable[[int], bytes] = inner.read
        self._encrypt: Callable[[bytes | bytearray | memoryview], int] = inner.write
        self._app: Any = None
        self._raw: asyncio.Transport | None = None
        self._is_reading = False
        self._is_partial = True
        """OpenSSL may hold the beginning of a record: what is pending says nothing of its length then."""
        self._paused = False

    # What the transport below calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = transport  # type: ignore[assignment]
        if self.is_closing_down:
            self.abort()

    def data_received(self, data: bytes) -> None:
        if self.is_closing_down:
            return
        self._incoming.write(data)
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
        self.is_closing_down = True
        was_open, self.is_open = self.is_open, False
        app, self._app = self._app, None
        if app is not None:
            app.connection_lost(exc)
        elif not was_open:
            self.front.handshake_over(self, failed=True)

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
            self.front.handshake_failed(error)
            if self._raw is not None:
                self._raw.close()
            return False
        self.is_open = True
        self.front.handshake_over(self, failed=False)
        self._app = self.front.make_connection()
        self._app.connection_made(self)
        return True

    def _read(self) -> None:
        """Decrypts and passes on what came, unless reading is paused."""
        incoming, decrypt = self._incoming, self._decrypt
        try:
            # What is asked for always holds a record's whole plaintext, which is never longer than the record: OpenSSL keeps no rest.
            while (size := incoming.pending) and not self._paused and self.is_open:
                data = decrypt(size if size < _RECORD_BYTES and not self._is_partial else _RECORD_BYTES)
                self._is_partial = False
                if not data:  # close_notify (RFC 8446 §6.1)
                    self._app.eof_received()
                    self.close()
                    return
                self._app.data_received(data)
        except ssl.SSLWantReadError:
            self._is_partial = True
        except ssl.SSLError:
            self.abort()

    def _flush(self) -> None:
        if self._outgoing.pending and self._raw is not None:
            self._raw.write(self._outgoing.read())

    # What the connection above calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_open or not data:
            return
        try:
            self._encrypt(data)
        except ssl.SSLError:
            self.abort()
            return
        if not self._is_reading or self._outgoing.pending > _RECORD_BYTES:
            self._flush()

    def close(self) -> None:
        """Says the last, and closes when it is sent."""
        if self.is_closing_down:
            return
        self.is_closing_down = True
        if self.is_open:
            self.is_open = False
            try:
                self.tls.unwrap()
            except ssl.SSLError:
                pass  # the visitor's own last word is not waited for
        self._flush()
        if self._raw is not None:
            self._raw.close()

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
                if self._incoming.pending:
                    asyncio.get_running_loop().call_soon(self._read_on)

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

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self.tls
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert self._raw is not None
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        return False
