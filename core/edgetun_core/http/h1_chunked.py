"""The chunked transfer coding (RFC 9112 §7.1), both ways.

Decoding is strict: exact CRLFs, bare hexadecimal sizes, bounded extensions and trailers. Hot path: a piece that lies within one
chunk is handed on without a copy.
"""

from __future__ import annotations

import re
from typing import Final

from edgetun_core.http.h1_syntax import VALUE, H1Error, H1Limits, parse_fields
from edgetun_core.http.message import Fields

# Extensions may stand there (§7.1.1) and mean nothing to us. Fifteen digits stay below 2**60.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;" + VALUE + rb"*+)?\r\n")
_MAX_SIZE_LINE = 256
_MAX_EXTENSIONS = 8 * 1024
"""Bytes of extensions over a whole body: extensions are the cheapest way to make a reader work for nothing."""
_MAX_TRAILERS = 8 * 1024
_TRAILER_LIMITS = H1Limits(max_fields=64)

LAST_CHUNK: Final = b"0\r\n\r\n"

FORBIDDEN_TRAILERS: Final = frozenset(
    (
        # Framing and routing, request modifiers, authentication, content description, response control (RFC 9110 §6.5.1).
        *(
            b"transfer-encoding",
            b"content-length",
            b"host",
            b"trailer",
            b"te",
            b"connection",
            b"keep-alive",
            b"upgrade",
        ),
        *(b"proxy-connection", b"http2-settings", b"via", b"forwarded", b"max-forwards", b"expect", b"range"),
        *(b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-real-ip"),
        *(b"cache-control", b"pragma", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"),
        *(b"if-range", b"authorization", b"proxy-authorization", b"www-authenticate", b"proxy-authenticate", b"cookie"),
        *(b"set-cookie", b"age", b"expires", b"date", b"location", b"retry-after", b"vary", b"warning"),
        *(b"content-encoding", b"content-type", b"content-range", b"content-location", b"cdn-cache-control"),
    )
)

_SIZE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)


class ChunkedDecoder:
    """Takes bytes off the wire, gives pieces of the body. One per message.

    `done` when the last chunk and the trailer section were read; then `trailers` holds the fields that a trailer may have
    and `rest` what came after the message. At most one size line or trailer section is held back (8 KiB).
    """

    __slots__ = ("_extensions", "_held", "_left", "_state", "done", "rest", "trailers")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        self._held = b""
        self._extensions = 0
        self.done = False
        self.trailers: Fields = ()
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the pieces of the body in `data`, none of them empty; raises H1Error when the coding is broken."""
        if self._state == _DATA and len(data) < self._left:
            self._left -= len(data)
            return [data] if data else []
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        at = 0
        end = len(data)
        while at < end:
            state = self._state
            if state == _SIZE:
                at = self._read_size(data, at)
            elif state == _DATA:
                take = min(self._left, end - at)
                pieces.append(data[at : at + take])
                at += take
                self._left -= take
                if not self._left:
                    self._state = _DATA_END
            elif state == _DATA_END:
                if end - at < 2:
                    if data[at] != 0x0D:
                        raise H1Error("a chunk is longer than its size (RFC 9112 §7.1)")
                    self._held = data[at:]
                    break
                if data[at : at + 2] != b"\r\n":
                    raise H1Error("a chunk is longer than its size (RFC 9112 §7.1)")
                at += 2
                self._state = _SIZE
            elif state == _TRAILERS:
                at = self._read_trailers(data, at)
            else:
                self.rest += data[at:]
                break
        return pieces

    def _read_size(self, data: bytes, at: int) -> int:
        match = _SIZE_LINE.match(data, at, at + _MAX_SIZE_LINE)
        if match is None:
            self._hold_size_line(data, at)
            return len(data)
        size = int(match[1], 16)
        self._extensions += match.end() - match.end(1) - 2
        if self._extensions > _MAX_EXTENSIONS:
            raise H1Error("too many chunk extensions", status=413)
        if size:
            self._left = size
            self._state = _DATA
        else:
            self._state = _TRAILERS
        return match.end()

    def _hold_size_line(self, data: bytes, at: int) -> None:
        """Keeps the beginning of a size line for later; H1Error when it can no longer become one."""
        held = data[at:]
        # With the missing rest supplied, whatever can still become a size line is one.
        for rest in (b"\n", b"\r\n", b"0\r\n"):
            if len(held) + len(rest) <= _MAX_SIZE_LINE and _SIZE_LINE.fullmatch(held + rest):
                self._held = held
                return
        if len(held) < _MAX_SIZE_LINE and re.fullmatch(rb"[0-9A-Fa-f]{1,15}[ \t]+", held):
            self._held = held  # white space before an extension
            return
        raise H1Error("a chunk size is malformed (RFC 9112 §7.1)")

    def _read_trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            section, after = b"", at + 2
        else:
            found = data.find(b"\r\n\r\n", at, at + _MAX_TRAILERS)
            if found < 0:
                if len(data) - at >= _MAX_TRAILERS:
                    raise H1Error("the trailer section is too large", status=431)
                if data[at : at + 1] == b"\r" and len(data) - at > 1:
                    raise H1Error("a CR stands without LF (RFC 9112 §2.2)")
                self._held = data[at:]
                return len(data)
            section, after = data[at : found + 2], found + 4
        fields = parse_fields(section, _TRAILER_LIMITS)
        self.trailers = tuple(field for field in fields if field[0] not in FORBIDDEN_TRAILERS)
        self._state = _DONE
        self.done = True
        self.rest = data[after:]
        return len(data)


def encode_chunk(data: bytes) -> bytes:
    """One chunk; `data` is not empty (an empty one would end the body)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def render_trailers(fields: Fields) -> bytes:
    """The last chunk and the trailer section, which end a chunked body (§7.1.2). What a trailer may not carry is left out."""
    lines = [b"%b: %b\r\n" % field for field in fields if field[0] not in FORBIDDEN_TRAILERS]
    return b"0\r\n" + b"".join(lines) + b"\r\n"
