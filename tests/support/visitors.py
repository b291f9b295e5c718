"""A visitor on a real socket who sends exactly the bytes a test wants and reads responses one by one."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from edgetun_core.http.h1 import CHUNKED, UNTIL_CLOSE, ChunkedDecoder, parse_response
from edgetun_core.http.message import Fields


@dataclass
class Answer:
    """A response as the visitor got it."""

    status: int
    block: bytes
    body: bytes = b""
    trailers: Fields = ()
    fields: dict[str, str] = field(default_factory=dict)
    complete: bool = True


class Visitor:
    """One connection. Every read has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float = 5.0) -> None:
        self.reader = reader
        self.writer = writer
        self.timeout_s = timeout_s

    @classmethod
    async def to(
        cls,
        port: int,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        buffer_bytes: int = 64 * 1024,
    ) -> Visitor:
        reader, writer = await asyncio.open_connection(
            host, port, ssl=tls, server_hostname=server_name, limit=buffer_bytes
        )
        return cls(reader, writer)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)

    async def head(self) -> Answer:
        """The next response head, interim or final."""
        async with asyncio.timeout(self.timeout_s):
            block = await self.reader.readuntil(b"\r\n\r\n")
        lines = block.decode("latin-1").split("\r\n")[1:-2]
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(block[9:12]), block, fields=fields)

    async def answer(self, method: bytes = b"GET") -> Answer:
        """The next response with its body."""
        answer = await self.head()
        length = parse_response(answer.block, method).body_length
        async with asyncio.timeout(self.timeout_s):
            if length == CHUNKED:
                decoder = ChunkedDecoder()
                while not decoder.done:
                    line = await self.reader.readuntil(b"\r\n")
                    size = int(line, 16) if not decoder.feed(line) else 0
                    if size:
                        for piece in decoder.feed(await self.reader.readexactly(size + 2)):
                            answer.body += piece
                    else:
                        while not decoder.done:
                            decoder.feed(await self.reader.readuntil(b"\r\n"))
                answer.trailers = decoder.trailers
            elif length == UNTIL_CLOSE:
                answer.body = await self.reader.read(-1)
            else:
                answer.body = await self.reader.readexactly(length)
        return answer

    async def ask(self, target: str = "/", *lines: str, host: str = "a.example", method: str = "GET") -> Answer:
        """Sends a request without a body and reads its response."""
        head = "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""))
        self.send(head.encode("latin-1"))
        return await self.answer(method.encode())

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(self.timeout_s):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        received = b""
        async with asyncio.timeout(self.timeout_s):
            try:
                while data := await self.reader.read(65536):
                    received += data
            except (ConnectionError, ssl.SSLError):
                pass
        return received

    async def is_closed(self) -> bool:
        """Waits for the other side to end the connection, and says whether it did so without another byte."""
        return await self.rest() == b""

    def end(self) -> None:
        """Half-closes."""
        self.writer.write_eof()

    def leave(self) -> None:
        """Is gone, as when a browser's tab closes."""
        self.writer.transport.abort()

    def break_off(self) -> None:
        """Is gone with a TCP reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits until something is so; fails after the deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on but the state itself
            await asyncio.sleep(0.005)
