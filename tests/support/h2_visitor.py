"""A visitor on a real socket who speaks HTTP/2 by hand: sends the frames a test wants, and reads one by one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable

from jh2.hpack import Decoder

from edgetun_core.http.h2 import PREFACE
from edgetun_core.http.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    build_window_update,
    frame,
)
from support.h2_frames import GET, Frame, headers, settings, split_frames


class Response:
    """What came on one stream so far."""

    def __init__(self) -> None:
        self.heads: list[list[tuple[bytes, bytes]]] = []
        self.body = b""
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> int:
        """Of the final head."""
        for head in self.heads:
            status = int(dict(head)[b":status"])
            if status >= 200:
                return status
        raise AssertionError(f"there is no final head: {self.heads}, reset {self.reset}")

    @property
    def fields(self) -> dict[bytes, bytes]:
        return next(dict(head) for head in self.heads if int(dict(head)[b":status"]) >= 200)


class H2Visitor:
    """One connection. Every read has a deadline. SETTINGS and PING are acknowledged unless `is_polite` is False."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, scheme: bytes, timeout_s: float = 15.0
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.timeout_s = timeout_s
        self.is_polite = True
        self.frames: list[Frame] = []
        self.responses: dict[int, Response] = {}
        self.goaways: list[Frame] = []
        self.is_over = False
        self.get = (GET[0], (b":scheme", scheme), GET[2], GET[3])
        self._rest = b""
        self._block = b""
        self._decoder = Decoder()
        self._decoder.max_header_list_size = 1 << 22

    @classmethod
    async def to(
        cls, port: int, *, tls: ssl.SSLContext | None = None, server_name: str | None = None, greet: bool = True
    ) -> H2Visitor:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=server_name)
        visitor = cls(reader, writer, scheme=b"https" if tls is not None else b"http")
        if greet:
            visitor.send(PREFACE + settings())
        return visitor

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            with contextlib.suppress(ConnectionError):
                self.writer.write(piece)

    def ask(self, stream_id: int, *fields: tuple[bytes, bytes], path: bytes = b"/", end: bool = True) -> None:
        """Begins a GET, or with `end=False` a POST whose body is to follow."""
        method = self.get[0] if end else (b":method", b"POST")
        self.send(headers(stream_id, method, *self.get[1:3], (b":path", path), *fields, end=end))

    def open_windows(self, stream_id: int = 0, size: int = 1 << 30) -> None:
        self.send(build_window_update(0, size))
        if stream_id:
            self.send(build_window_update(stream_id, size))

    async def read_some(self) -> bool:
        """Takes what comes next; False when the connection has ended."""
        if self.is_over:
            return False
        async with asyncio.timeout(self.timeout_s):
            try:
                data = await self.reader.read(65536)
            except (ConnectionError, ssl.SSLError):
                data = b""
        if not data:
            self.is_over = True
            return False
        found, self._rest = split_frames(self._rest + data)
        for one in found:
            self.frames.append(one)
            self._take(one)
        return True

    def _take(self, one: Frame) -> None:
        if one.kind in (SETTINGS, PING) and not one.flags & ACK and self.is_polite:
            self.send(SETTINGS_ACK if one.kind == SETTINGS else frame(PING, ACK, 0, one.payload))
        elif one.kind == GOAWAY:
            self.goaways.append(one)
        elif one.kind in (HEADERS, CONTINUATION):
            self._block += one.payload
            if one.kind == HEADERS and one.flags & END_STREAM:
                self.response(one.stream_id).ended = True
            if one.flags & END_HEADERS:
                decoded = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(self._block, raw=True)]
                self._block = b""
                self.response(one.stream_id).heads.append(decoded)
        elif one.kind == DATA:
            response = self.response(one.stream_id)
            response.body += one.payload
            response.ended = response.ended or bool(one.flags & END_STREAM)
        elif one.kind == RST_STREAM:
            self.response(one.stream_id).reset = one.code

    def response(self, stream_id: int) -> Response:
        return self.responses.setdefault(stream_id, Response())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Reads until something is so; fails when the connection ends before."""
        while not condition():
            if not await self.read_some():
                raise AssertionError(f"the connection ended: {self.frames[-5:]}")

    async def answer(self, stream_id: int) -> Response:
        """The whole response on a stream, or its reset."""
        response = self.response(stream_id)
        await self.until(lambda: response.ended or response.reset is not None)
        return response

    async def fetch(self, stream_id: int, *fields: tuple[bytes, bytes], path: bytes = b"/") -> Response:
        self.ask(stream_id, *fields, path=path)
        return await self.answer(stream_id)

    async def roundtrip(self) -> None:
        """Waits until everything sent so far was read by the other side."""
        mark = b"roundtri"
        self.send(frame(PING, 0, 0, mark))
        count = len(self.frames)
        await self.until(lambda: any(f.kind == PING and f.payload == mark for f in self.frames[count:]))

    async def goaway(self) -> Frame:
        """The GOAWAY that ends the connection; reads to its end."""
        while await self.read_some():
            pass
        assert self.goaways, f"the connection ended without GOAWAY: {self.frames}"
        return self.goaways[-1]

    def leave(self) -> None:
        self.writer.transport.abort()
