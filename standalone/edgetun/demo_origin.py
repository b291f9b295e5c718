"""A small real local server to stand behind the crowd of `edgetun demo`: the laptop's side of the story.

It is what a developer's server is: one process, no cache, 150 ms of work per page. Run alone with
`python -m edgetun.demo_origin [PORT]`.

    /             a page that says when it was made; 150 ms of work
    /api/time     the same as JSON, at once
    /events       server-sent events, a tick a second
    /slow?s=5     a page after so many seconds, 30 at most
    /stats        how many requests came, by path; not counted itself
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs, urlsplit

WORK_S: Final = 0.15
_MAX_HEAD_BYTES: Final = 16 * 1024
_IDLE_S: Final = 60.0
_LONGEST_SLOW_S: Final = 30.0
_MAX_PATHS: Final = 100  # paths counted by name; the rest together

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>A laptop behind a crowd</title>
<style>body{{font:18px/1.5 system-ui;max-width:36em;margin:4em auto;padding:0 1em}}time{{font-weight:600}}</style>
<h1>Hello from the laptop</h1>
<p>This page was made at <time>{now}</time>, in {work_ms} ms of work, as request number {number} of this server.</p>
<p>Reload it as often as you like: within the cache's second, everybody sees the same page.</p>
</html>
"""


class DemoOrigin:
    """The server and what it counted: `requests` in all, `by_path`, `peak` how many at once."""

    def __init__(self, *, work_s: float = WORK_S) -> None:
        self.work_s = work_s
        self.requests = 0
        self.in_flight = 0
        self.peak = 0
        self.by_path: Counter[str] = Counter()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listens; `port` is then the port, chosen by the system when 0 was asked for."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=_MAX_HEAD_BYTES, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stops listening and cuts what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (
            ConnectionError,
            TimeoutError,
            asyncio.CancelledError,  # from close()
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; True when another may follow on the connection."""
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _IDLE_S)
        request_line, _, fields = head.partition(b"\r\n")
        words = request_line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            await _respond(writer, 400, "text/plain", "not an HTTP/1 request\n")
            return False
        method, target = words[0], urlsplit(words[1].decode("latin-1"))
        lowered = fields.lower()
        keep_alive = words[2] == b"HTTP/1.1" and b"\r\nconnection: close" not in b"\r\n" + lowered
        if b"\r\ncontent-length:" in b"\r\n" + lowered or b"transfer-encoding:" in lowered:
            keep_alive = False  # it reads no bodies, so what follows would be taken for a request
        if target.path == "/stats":
            await _respond(writer, 200, "application/json", json.dumps(self.stats()) + "\n", store="no-store")
            return keep_alive
        number = self._count(target.path)
        try:
            is_head = method == b"HEAD"
            if method not in {b"GET", b"HEAD"} and target.path != "/api/time":
                await _respond(writer, 405, "text/plain", "only GET and HEAD\n", extra="Allow: GET, HEAD\r\n")
            elif target.path == "/":
                await self._work(self.work_s)
                await _respond(
                    writer, 200, "text/html; charset=utf-8", self._page(self.work_s, number), is_head=is_head
                )
            elif target.path == "/slow":
                await self._work(_seconds(target.query))
                await _respond(
                    writer, 200, "text/html; charset=utf-8", self._page(_seconds(target.query), number), is_head=is_head
                )
            elif target.path == "/api/time":
                body = json.dumps({"now": _now(), "request": number}) + "\n"
                await _respond(writer, 200, "application/json", body, is_head=is_head)
            elif target.path == "/events":
                await self._tick(writer, is_head=is_head)
                return False
            else:
                await _respond(
                    writer, 404, "text/plain", "there is /, /api/time, /events and /slow?s=5\n", is_head=is_head
                )
        finally:
            self.in_flight -= 1
        return keep_alive

    def stats(self) -> dict[str, object]:
        return {"requests": self.requests, "peak": self.peak, "by_path": dict(self.by_path)}

    def _count(self, path: str) -> int:
        self.requests += 1
        self.by_path[path if path in self.by_path or len(self.by_path) < _MAX_PATHS else "(others)"] += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        return self.requests

    async def _work(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _page(self, work_s: float, number: int) -> str:
        return _PAGE.format(now=_now(), work_ms=round(work_s * 1000), number=number)

    async def _tick(self, writer: asyncio.StreamWriter, *, is_head: bool) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        number = 0
        while not is_head:
            number += 1
            writer.write(f"id: {number}\ndata: {_now()}\n\n".encode())
            await writer.drain()
            await asyncio.sleep(1)


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")


def _seconds(query: str) -> float:
    try:
        return min(_LONGEST_SLOW_S, max(0.0, float(parse_qs(query).get("s", ["5"])[0])))
    except ValueError:
        return 5.0


_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


async def _respond(
    writer: asyncio.StreamWriter,
    status: int,
    content_type: str,
    body: str,
    *,
    is_head: bool = False,
    store: str = "",
    extra: str = "",
) -> None:
    payload = body.encode()
    caching = f"Cache-Control: {store}\r\n" if store else ""
    writer.write(
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n{caching}{extra}"
        f"Content-Length: {len(payload)}\r\n\r\n".encode()
        + (b"" if is_head else payload)
    )
    await writer.drain()


async def serve(port: int) -> None:
    """Runs until cancelled; prints the URL."""
    origin = DemoOrigin()
    await origin.start(port=port)
    print(f"http://127.0.0.1:{origin.port}/", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await origin.close()


def main() -> int:
    try:
        asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
