"""An origin for large bodies, cheap enough not to be what is measured: `GET /N` sends N zero bytes, `PUT` swallows and answers.

python bench/bulk_origin.py PORT
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

_CHUNK = bytes(256 * 1024)


class Connection(asyncio.BufferedProtocol):
    """One connection; bodies are written as far as the transport takes them, and read into one buffer."""

    def __init__(self) -> None:
        self._buffer = bytearray(512 * 1024)
        self._view = memoryview(self._buffer)
        self._head = b""
        self._to_send = 0
        self._to_read = 0
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        transport.set_write_buffer_limits(1024 * 1024)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        if self._to_read:
            self._swallow(nbytes)
            return
        self._head += bytes(self._view[:nbytes])
        head, separator, rest = self._head.partition(b"\r\n\r\n")
        if not separator:
            return
        self._head = b""
        if head.startswith((b"PUT", b"POST")):
            length = re.search(rb"(?i)content-length:\s*(\d+)", head)
            self._to_read = int(length[1]) if length else 0
            if b"100-continue" in head.lower():
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._swallow(len(rest))
            return
        size = re.match(rb"GET /(\d+)", head)
        self._to_send = int(size[1]) if size else 1
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self._to_send)
        self._pump()

    def _swallow(self, count: int) -> None:
        self._to_read -= count
        if self._to_read <= 0:
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def _pump(self) -> None:
        while self._to_send and not self._is_paused:
            piece = _CHUNK if self._to_send >= len(_CHUNK) else _CHUNK[: self._to_send]
            self._to_send -= len(piece)
            self._transport.write(piece)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._pump()


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
