"""An HTTP/2 origin under a test's hand, by another implementation than ours (jh2)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import jh2.config  # type: ignore[import-untyped]
import jh2.connection  # type: ignore[import-untyped]
import jh2.events  # type: ignore[import-untyped]
import jh2.settings  # type: ignore[import-untyped]

from support.visitors import until

DEADLINE_S = 20.0


class H2Stream:
    """One request as the origin sees it; a handler reads `body` and answers."""

    def __init__(self, connection: H2ServerConnection, number: int, fields: list[tuple[bytes, bytes]]) -> None:
        self.connection = connection
        self.number = number
        self.fields = dict(fields)
        self.all_fields = fields
        self.trailers: dict[bytes, bytes] | None = None
        self.reset_code: int | None = None
        self.changed = asyncio.Event()
        self.received: list[bytes] = []
        self.ended = False

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def body(self) -> bytes:
        """The whole request body."""
        await self.until(lambda: self.ended)
        return b"".join(self.received)

    def head(self, status: int, *fields: tuple[bytes, bytes], end: bool = False) -> None:
        self.connection.h2.send_headers(self.number, [(b":status", b"%d" % status), *fields], end_stream=end)
        self.connection.flush()

    async def data(self, data: bytes, end: bool = False) -> None:
        h2 = self.connection.h2
        while data or end:
            room = min(h2.local_flow_control_window(self.number), h2.max_outbound_frame_size)
            if room <= 0 and data:
                self.changed.clear()
                await asyncio.wait_for(self.changed.wait(), DEADLINE_S)
                continue
            piece, data = data[:room], data[room:]
            h2.send_data(self.number, piece, end_stream=end and not data)
            self.connection.flush()
            if not data:
                return

    def end_with(self, *trailers: tuple[bytes, bytes]) -> None:
        self.connection.h2.send_headers(self.number, list(trailers), end_stream=True)
        self.connection.flush()

    def reset(self, code: int) -> None:
        self.connection.h2.reset_stream(self.number, code)
        self.connection.flush()

    async def answer(self, body: bytes = b"hello", *fields: tuple[bytes, bytes], status: int = 200) -> None:
        self.head(status, (b"content-length", b"%d" % len(body)), *fields)
        await self.data(body, end=True)


Handler = Callable[[H2Stream], Awaitable[None]]


class H2ServerConnection:
    def __init__(self, origin: H2Origin, writer: asyncio.StreamWriter, settings: dict[int, int]) -> None:
        self.origin = origin
        self.writer = writer
        self.h2 = jh2.connection.H2Connection(jh2.config.H2Configuration(client_side=False, header_encoding=None))
        self.h2.local_settings = jh2.settings.Settings(
            client=False, initial_values={jh2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 100, **settings}
        )
        self.streams: dict[int, H2Stream] = {}
        self.goaways = 0
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.writer.is_closing():
            self.writer.write(data)

    def go_away(self, last: int) -> None:
        """GOAWAY, as a frame of our own: the library would let nothing follow."""
        self.writer.write(b"\0\0\x08\x07\0\0\0\0\0" + last.to_bytes(4, "big") + bytes(4))

    def handle(self, event: Any) -> None:
        kind = type(event).__name__
        stream = self.streams.get(getattr(event, "stream_id", 0))
        if kind == "RequestReceived":
            stream = self.streams[event.stream_id] = H2Stream(
                self, event.stream_id, [(bytes(name), bytes(value)) for name, value in event.headers]
            )
            self.origin.streams.append(stream)
            self.origin.run(stream)
        elif kind == "ConnectionTerminated":
            self.goaways += 1
        elif kind == "WindowUpdated":
            for each in self.streams.values():
                each.changed.set()
        if stream is None:
            return
        if kind == "DataReceived":
            stream.received.append(bytes(event.data))
            if self.origin.takes_data:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif kind == "TrailersReceived":
            stream.trailers = {bytes(name): bytes(value) for name, value in event.headers}
        elif kind == "StreamEnded":
            stream.ended = True
        elif kind == "StreamReset":
            stream.reset_code = int(event.error_code)
        stream.changed.set()


class H2Origin:
    def __init__(self, handler: Handler) -> None:
        self.url = ""
        self.handler = handler
        self.streams: list[H2Stream] = []
        self.connections: list[H2ServerConnection] = []
        self.errors: list[BaseException] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.takes_data = True

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: dict[int, int], data: bytes = b""
    ) -> None:
        """Serves one connection; `data` is what was read of it already."""
        connection = H2ServerConnection(self, writer, settings)
        self.connections.append(connection)
        data = data or await reader.read(65536)
        while data:
            for event in connection.h2.receive_data(data):
                connection.handle(event)
            connection.flush()
            data = await reader.read(65536)

    def run(self, stream: H2Stream) -> None:
        task = asyncio.get_running_loop().create_task(self._run(stream))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self, stream: H2Stream) -> None:
        try:
            await self.handler(stream)
        except (asyncio.CancelledError, ConnectionError):
            pass
        except BaseException as error:
            self.errors.append(error)

    async def until(self, condition: Callable[[], object]) -> None:
        await until(lambda: bool(condition()), DEADLINE_S)


@asynccontextmanager
async def h2_origin(
    handler: Handler,
    *,
    tls: ssl.SSLContext | None = None,
    unix: str = "",
    port: int = 0,
    settings: dict[int, int] | None = None,
) -> AsyncIterator[H2Origin]:
    """Listens with prior knowledge, or over TLS; what a handler raises fails the test at the end."""
    origin = H2Origin(handler)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        origin.tasks.add(task)
        try:
            await origin.serve(reader, writer, settings or {})
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            origin.tasks.discard(task)
            writer.close()

    if unix:
        server = await asyncio.start_unix_server(serve, unix)
        origin.url = f"unix://{unix}"
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
        origin.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield origin
    finally:
        server.close()
        tasks = list(origin.tasks)
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            if tasks:
                await asyncio.wait(tasks)
    if origin.errors:
        raise origin.errors[0]
