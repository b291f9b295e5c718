"""An origin that keeps account: each request with its begin and its end. In the test's own event loop."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from support.chaos.history import Served
from support.chaos.pages import Page, body, length_bytes, pieces

ENDLESS_S = 30.0
FILE = "file"
FILE_BYTES = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20_000))
FILE_ETAG = f'"{hashlib.sha256(FILE_BYTES).hexdigest()}"'


class Accountant:
    """One tunnel's origin. Paths: `/small`, `/large`, `/echo`, `/cached/…`, `/leaving`, `/events`, `/ws`, `/file` (with ranges);
    `visit` and `size` are in the query. `served` may be any sequence with `append`."""

    def __init__(self, tunnel: str, served: list[Served], ttl_s: float) -> None:
        self.tunnel = tunnel
        self.port = 0
        self._served = served
        self._ttl_s = ttl_s
        self._serial = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        entry = Served(self.tunnel, request.method, request.path_qs, int(request.query.get("visit", 0)), time.time())
        self._served.append(entry)
        entry.was_cancelled = True
        try:
            response = await self._answer(request)
            entry.was_cancelled = False
        except ConnectionError:
            return web.Response()  # the agent has left; nobody reads this
        finally:
            entry.ended = time.time()
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self._serial += 1
        took = hashlib.sha256(await request.read()).hexdigest() if request.method == "POST" else ""
        size_bytes = int(request.query.get("size", 1000))
        page = Page(self.tunnel, request.path_qs, time.time(), size_bytes, self._serial, took)
        match request.path.split("/")[1]:
            case "cached":
                return web.Response(body=body(page), headers={"Cache-Control": f"public, max-age={self._ttl_s:g}"})
            case "large":
                return await self._stream(request, page)
            case "leaving":
                return await self._without_end(request)
            case "events":
                return await self._without_end(request, b"data: and so on\n\n", "text/event-stream", 0.25)
            case "ws":
                return await self._websocket(request)
            case "file":
                return self._file(request)
        return web.Response(body=body(page), headers={"Cache-Control": "no-store"})

    async def _stream(self, request: web.Request, page: Page) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-store"})
        if page.serial % 2:
            response.content_length = length_bytes(page)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        for number, piece in enumerate(pieces(page)):
            await response.write(piece)
            if number % 8 == 0:
                await asyncio.sleep(0.005)  # long enough to be met by what is done to the fleet
        await response.write_eof()
        return response

    async def _without_end(
        self, request: web.Request, piece: bytes = b"and so on " * 50, kind: str = "text/plain", every_s: float = 0.05
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-store", "Content-Type": kind})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(int(ENDLESS_S / every_s)):
            await response.write(piece)
            await asyncio.sleep(every_s)
        await response.write_eof()
        return response

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    def _file(self, request: web.Request) -> web.StreamResponse:
        """A file with a validator, whole or from a place on."""
        fields = {"ETag": FILE_ETAG, "Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
        start = request.http_range.start or 0
        if not start or request.headers.get("If-Range", FILE_ETAG) != FILE_ETAG:
            return web.Response(body=FILE_BYTES, headers=fields)
        size = len(FILE_BYTES)
        fields["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        return web.Response(status=206, body=FILE_BYTES[start:], headers=fields)


@asynccontextmanager
async def accountant(tunnel: str, served: list[Served], ttl_s: float) -> AsyncIterator[Accountant]:
    """Serves on loopback; `port` says where."""
    origin = Accountant(tunnel, served, ttl_s)
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_route("*", "/{rest:.*}", origin.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        origin.port = runner.addresses[0][1]
        yield origin
    finally:
        await runner.cleanup()
