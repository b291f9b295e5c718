"""The server name that a TLS client asks for, read from its ClientHello without touching the connection. Pure (RFC 8446 §4.1.2).

Whatever is not a ClientHello, or a broken one, is not ours to judge: `NotClientHello` leaves it to the TLS front, which answers
with the right alert.
"""

from __future__ import annotations

import re
from typing import Final

MAX_HELLO_BYTES: Final = 16 * 1024 + 4 + 5 * 16
"""A ClientHello of 16 KiB and the records that it may be cut into; browsers send 500 to 2,000 bytes."""

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_NAME: Final = re.compile(rb"[A-Za-z0-9_*-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


class NotClientHello(Exception):
    """The bytes are no ClientHello."""


def read_server_name(data: bytes) -> str | None:
    """The name in lower case, `""` when the client names none; None while more bytes are needed. Raises `NotClientHello`."""
    message = _join_records(data)
    if message is None:
        if len(data) >= MAX_HELLO_BYTES:
            raise NotClientHello
        return None
    reader = _Reader(message)
    reader.skip(2 + 32)  # legacy_version, random
    reader.skip(reader.number(1))  # legacy_session_id
    reader.skip(reader.number(2))  # cipher_suites
    reader.skip(reader.number(1))  # legacy_compression_methods
    if reader.is_done:
        return ""  # TLS 1.2 without extensions
    extensions = _Reader(reader.take(reader.number(2)))
    while not extensions.is_done:
        kind = extensions.number(2)
        body = extensions.take(extensions.number(2))
        if kind == _SERVER_NAME:
            return _read_names(_Reader(body))
    return ""


def _read_names(extension: _Reader) -> str:
    """RFC 6066 §3: a list, of which host names are the only kind there is."""
    names = _Reader(extension.take(extension.number(2)))
    while not names.is_done:
        kind = names.number(1)
        name = names.take(names.number(2))
        if kind == _HOST_NAME:
            if len(name) > 255 or not _NAME.fullmatch(name):
                raise NotClientHello
            return name.decode("ascii").lower().removesuffix(".")
    return ""


def _join_records(data: bytes) -> bytes | None:
    """The body of the first handshake message; None while it is not whole."""
    message = b""
    position = 0
    while True:
        head = data[position : position + 5]
        if head and (head[0] != _HANDSHAKE or (len(head) > 1 and head[1] != 3)):
            raise NotClientHello
        if len(head) < 5:
            return None
        size = int.from_bytes(head[3:5], "big")
        if not 0 < size <= 16 * 1024:
            raise NotClientHello
        message += data[position + 5 : position + 5 + size]
        position += 5 + size
        if message and message[0] != _CLIENT_HELLO:
            raise NotClientHello
        if len(message) >= 4:
            wanted = int.from_bytes(message[1:4], "big")
            if wanted > MAX_HELLO_BYTES:
                raise NotClientHello
            if len(message) >= 4 + wanted:
                return message[4 : 4 + wanted]
        if position >= len(data):
            return None


class _Reader:
    """Takes a message apart from its front; what is too short is no ClientHello."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at >= len(self._data)

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise NotClientHello
        self._at += size
        return taken

    def skip(self, size: int) -> None:
        self.take(size)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")
