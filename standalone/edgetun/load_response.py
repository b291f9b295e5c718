"""Reads the responses of one connection, strictly, and remembers of each what a load test asks about.

Sans-I/O. It shares no code with edgetun's own HTTP parser on purpose: it is the judge of what that one's servers send.
RFC 9112 §6.3 decides how a body ends. Hot path: a repeated head of up to 4 KiB costs one dictionary lookup.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final, Protocol

from edgetun_core.errors import ProtocolError
from edgetun_core.memo import Memo

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_TRAILER_BYTES: Final = 16 * 1024
MAX_CHUNK_LINE_BYTES: Final = 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?", re.ASCII)
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)", re.ASCII)
_DIGITS = re.compile(rb"[0-9]{1,18}", re.ASCII)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?", re.ASCII)
_BODY_UNTIL_CLOSE: Final = -2
_BODY_CHUNKED: Final = -1


class BadResponse(ProtocolError):
    """The server sent something that is not one well-formed HTTP/1.1 response."""


class CutShort(ProtocolError):
    """The connection ended before the response did."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class ResponseInfo:
    """What the head says, shared by all responses with the same head; `length` as in §6.3, or chunked, or until close."""

    __slots__ = ("cache", "keep_alive", "length", "status")

    def __init__(self, status: int, length: int, keep_alive: bool, cache: str) -> None:
        self.status = status
        self.length = length
        self.keep_alive = keep_alive
        self.cache = cache


def classify_cache_status(value: bytes) -> str:
    """The outcome at the cache nearest to the visitor, in one word, from `Cache-Status` (RFC 9211).

    `hit`, `collapsed`, or the reason it was forwarded for: `miss`, `stale`, `bypass`, `method` ...; `other` when the field
    says none of that.
    """
    # Later members are nearer to the visitor (§2). Quoted strings may hold commas, so they go first.
    nearest = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", value).rsplit(b",", 1)[-1]
    parameters = {}
    for part in nearest.split(b";")[1:]:
        name, _, argument = part.strip().partition(b"=")
        parameters[name.strip().lower()] = argument.strip().lower()
    if b"collapsed" in parameters and parameters[b"collapsed"] != b"?0":
        return "collapsed"
    if b"hit" in parameters and parameters[b"hit"] != b"?0":
        return "hit"
    forwarded = parameters.get(b"fwd", b"")
    return {b"uri-miss": "miss", b"vary-miss": "miss"}.get(forwarded, forwarded.decode("latin-1") or "other")


def parse_head(block: bytes, *, head_request: bool) -> ResponseInfo:
    """Parses status line and fields; `block` ends with the empty line. Raises `BadResponse`."""
    lines = block[:-4].split(b"\r\n")
    status_line = _STATUS_LINE.fullmatch(lines[0])
    if status_line is None:
        raise BadResponse(f"not an HTTP/1.1 status line: {_shown(lines[0])}")
    minor, status = int(status_line[1]), int(status_line[2])
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    options: list[bytes] = []
    cache: list[bytes] = []
    for line in lines[1:]:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadResponse(f"not a field line: {_shown(line)}")
        name, text = field[1].lower(), field[2].strip(b" \t")
        if name == b"content-length":
            lengths.update(part.strip(b" \t") for part in text.split(b","))
        elif name == b"transfer-encoding":
            codings += [part.strip(b" \t").lower() for part in text.split(b",")]
        elif name == b"connection":
            options += [part.strip(b" \t").lower() for part in text.split(b",")]
        elif name == b"cache-status":
            cache.append(text)
    keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
    return ResponseInfo(
        status,
        _body_length(status, lengths, codings, head_request=head_request),
        keep_alive,
        classify_cache_status(b", ".join(cache)) if cache else "",
    )


def _body_length(status: int, lengths: set[bytes], codings: list[bytes], *, head_request: bool) -> int:
    """RFC 9112 §6.3; both framings at once are refused, as they are how responses are split."""
    if codings and lengths:
        raise BadResponse("both Transfer-Encoding and Content-Length")
    if len(lengths) > 1 or any(_DIGITS.fullmatch(length) is None for length in lengths):
        raise BadResponse(f"Content-Length {_shown(b', '.join(sorted(lengths)))}")
    if head_request or status < 200 or status in {204, 304}:
        if codings and status != 304 and not head_request:
            raise BadResponse(f"Transfer-Encoding in a {status}")
        return 0
    if codings:
        if codings != [b"chunked"]:
            raise BadResponse(f"Transfer-Encoding {_shown(b', '.join(codings))}")
        return _BODY_CHUNKED
    return int(next(iter(lengths))) if lengths else _BODY_UNTIL_CLOSE


def _shown(data: bytes) -> str:
    return repr(data[:60])[1:] + ("..." if len(data) > 60 else "")


_AT_HEAD, _AT_LENGTH, _AT_CLOSE, _AT_CHUNK_LINE, _AT_CHUNK, _AT_CHUNK_END, _AT_TRAILERS, _AT_REST = range(8)


class ResponseReader:
    """Reads one response after the other; between two of them the server may send nothing.

    `begin()` for each request, `feed(data)` until it returns True, `end()` when the server closed. Then `info`, `digest` (8 bytes
    that stand for the body) and `body_bytes` describe the response. Holds at most 64 KiB, whatever the body's size.
    """

    __slots__ = ("_buffer", "_hash", "_head_request", "_left", "_memo", "_state", "body_bytes", "digest", "info")

    def __init__(self, memo: Memo[bytes, ResponseInfo]) -> None:
        self._memo = memo
        self._buffer = b""
        self._hash: _Hash | None = None
        self._left = 0
        self._head_request = False
        self._state = _AT_REST
        self.info: ResponseInfo | None = None
        self.digest = b""
        self.body_bytes = 0

    def begin(self, *, head_request: bool) -> None:
        self._state = _AT_HEAD
        self._head_request = head_request
        self.info = None
        self.body_bytes = 0

    def feed(self, data: bytes) -> bool:
        """Takes bytes from the server; True when the response is complete. Raises `BadResponse`."""
        while True:
            if self._state == _AT_HEAD:
                if self._buffer:
                    data = self._buffer + data
                end = data.find(b"\r\n\r\n") + 4
                if end < 4:
                    if len(data) > MAX_HEAD_BYTES:
                        raise BadResponse(f"a head of more than {MAX_HEAD_BYTES} bytes")
                    if data and not b"HTTP/1.".startswith(data[:7]) and not data.startswith(b"HTTP/1."):
                        raise BadResponse(f"not an HTTP/1.1 response: {_shown(data)}")
                    self._buffer = data
                    return False
                self._buffer = b""
                info = self._parse(data[:end])
                data = data[end:]
                if info.status < 200:
                    if info.status == 101:
                        raise BadResponse("101 Switching Protocols, which was not asked for")
                    continue
                self.info = info
                length = info.length
                if length >= 0 and len(data) == length:  # the common case: all of it in one piece
                    self.body_bytes = length
                    self.digest = blake2b(data, digest_size=8).digest()
                    self._state = _AT_REST
                    return True
                self._hash = blake2b(digest_size=8)
                self._left = max(0, length)
                self._state = _AT_LENGTH if length >= 0 else _AT_CHUNK_LINE if length == _BODY_CHUNKED else _AT_CLOSE
            if not data and self._state != _AT_LENGTH:
                return False
            if self._state == _AT_LENGTH:
                data = self._take(data)
                if self._left:
                    return False
                return self._finish(data)
            if self._state == _AT_CLOSE:
                self._left = len(data)
                self._take(data)
                return False
            if self._state == _AT_REST:
                raise BadResponse(f"{len(data)} bytes that no request asked for: {_shown(data)}")
            rest = self._feed_chunked(data)
            if rest is None:
                return False
            if self._state == _AT_REST:
                return self._finish(rest)
            data = rest

    def end(self) -> bool:
        """The server closed. True when that completes the response; raises `CutShort` when it breaks one off."""
        if self._state == _AT_CLOSE:
            return self._finish(b"")
        if self._state == _AT_REST:
            return False
        if self.info is None:
            raise CutShort("closed before a response" if not self._buffer else "closed in the middle of a head")
        raise CutShort(f"closed after {self.body_bytes} bytes of the body")

    @property
    def is_at_rest(self) -> bool:
        return self._state == _AT_REST

    def _parse(self, block: bytes) -> ResponseInfo:
        key = block if not self._head_request else b"HEAD" + block
        info = self._memo.get(key)
        if info is None:
            info = parse_head(block, head_request=self._head_request)
            if len(block) <= 4096:
                self._memo.put(key, info)
        return info

    def _take(self, data: bytes) -> bytes:
        """Counts body bytes, up to what is left of the body or chunk; returns what follows."""
        piece = data if len(data) <= self._left else data[: self._left]
        self._left -= len(piece)
        self.body_bytes += len(piece)
        assert self._hash is not None
        self._hash.update(piece)
        return data[len(piece) :]

    def _feed_chunked(self, data: bytes) -> bytes | None:
        """One step of RFC 9112 §7.1; returns what follows, or None when more is needed."""
        if self._state == _AT_CHUNK:
            data = self._take(data)
            if not self._left:
                self._state = _AT_CHUNK_END
            return data or None
        data = self._buffer + data
        self._buffer = b""
        if self._state == _AT_CHUNK_END:
            if len(data) < 2:
                self._buffer = data
                return None
            if data[:2] != b"\r\n":
                raise BadResponse(f"a chunk does not end where its size says: {_shown(data)}")
            self._state = _AT_CHUNK_LINE
            return data[2:] or None
        line, separator, rest = data.partition(b"\r\n")
        limit = MAX_CHUNK_LINE_BYTES if self._state == _AT_CHUNK_LINE else MAX_TRAILER_BYTES
        if len(line) > limit:
            raise BadResponse(f"a chunk's line of more than {limit} bytes")
        if not separator:
            self._buffer = data
            return None
        if self._state == _AT_CHUNK_LINE:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise BadResponse(f"not a chunk size: {_shown(line)}")
            self._left = int(size[1], 16)
            self._state = _AT_CHUNK if self._left else _AT_TRAILERS
            return rest or None
        if not line:
            self._state = _AT_REST
            return rest
        if _FIELD.fullmatch(line) is None:
            raise BadResponse(f"not a trailer field: {_shown(line)}")
        return rest or None

    def _finish(self, rest: bytes) -> bool:
        if rest:
            raise BadResponse(f"{len(rest)} bytes beyond the end of the body: {_shown(rest)}")
        assert self._hash is not None
        self.digest = self._hash.digest()
        self._hash = None
        self._state = _AT_REST
        return True
