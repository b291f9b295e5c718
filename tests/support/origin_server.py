"""An origin that does exactly what a test tells it, byte by byte, so that it can misbehave; and a visitor to wait with."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from edgetun_core.errors import EdgetunError
from edgetun_core.http.message import Fields, ResponseHead
from support.exchanges import Recorder

DEADLINE_S = 10.0


class ScriptedConnection:
    """One connection as the origin's script holds it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        """0 for the first connection the origin accepted."""
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request head, blank line included; b"" when the connection ended instead."""
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    async def read(self, size: int) -> bytes:
        return await self.reader.readexactly(size)

    async def until(self, mark: bytes) -> bytes:
        return await self.reader.readuntil(mark)

    async def rest(self) -> bytes:
        """All bytes until the client's end."""
        return await self.reader.read(-1)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def end(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def closed(self) -> None:
        """Returns when the client has closed its side."""
        while await self.reader.read(64 * 1024):
            pass


Script = Callable[[ScriptedConnection], Awaitable[None]]


class ScriptedOrigin:
    """A listening origin. `connections` counts those accepted; `errors` holds what scripts raised."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connections = 0
        self.errors: list[BaseException] = []


@asynccontextmanager
async def scripted_origin(
    script: Script, *, tls: ssl.SSLContext | None = None, unix: str = "", host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[ScriptedOrigin]:
    """Listens, and runs `script` once per connection. What a script raises fails the test at the end."""
    origin = ScriptedOrigin("")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        connection = ScriptedConnection(origin.connections, reader, writer)
        origin.connections += 1
        try:
            await script(connection)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:
            origin.errors.append(error)
        finally:
            tasks.discard(task)
            writer.close()

    server: asyncio.Server
    if unix:
        server = await asyncio.start_unix_server(serve, unix)
        origin.url = f"unix://{unix}"
    else:
        server = await asyncio.start_server(serve, host, port, ssl=tls)
        bound = server.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        origin.url = f"{'https' if tls else 'http'}://{shown}:{bound}"
    try:
        yield origin
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)
    if origin.errors:
        raise origin.errors[0]


def response(body: bytes = b"hello", *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """A response with a content-length."""
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), lines, body)


def answering(*answers: bytes) -> Script:
    """A script that answers every request on a connection, in turn, the last answer again and again."""

    async def script(connection: ScriptedConnection) -> None:
        turn = 0
        while await connection.request():
            await connection.send(answers[min(turn, len(answers) - 1)])
            turn += 1

    return script


class Visitor(Recorder):
    """A recorder that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()
        self.over = False

    def _note(self, is_over: bool) -> None:
        assert not self.over, f"called back after the end: {self.names()}"
        self.over = is_over
        self._changed.set()

    def on_interim(self, head: ResponseHead) -> None:
        super().on_interim(head)
        self._note(False)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        super().on_head(head, end)
        self._note(end)

    def on_data(self, data: bytes, end: bool) -> None:
        assert data or end, "empty data in the middle"
        super().on_data(data, end)
        self._note(end)

    def on_trailers(self, fields: Fields) -> None:
        super().on_trailers(fields)
        self._note(True)

    def on_reset(self, error: EdgetunError) -> None:
        super().on_reset(error)
        self._note(True)

    def pause_request(self) -> None:
        super().pause_request()
        self._changed.set()

    def resume_request(self) -> None:
        super().resume_request()
        self._changed.set()

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Waits until the condition holds, looked at after every callback and every few milliseconds."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._changed.clear()
                try:
                    async with asyncio.timeout(0.01):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    async def ended(self) -> None:
        await self.until(lambda: self.over)
