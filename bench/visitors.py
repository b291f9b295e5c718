"""Visitors who keep their connections and ask again as soon as they are answered; measured once all of them have been answered.

A tunnel that needs many round trips for a visitor's first byte is slow at the beginning only; over a slow link that would be all that a
short run sees. So the beginning is timed apart.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import uvloop
from harness import BenchError, Running

CONNECT_AGAIN_S = 0.2


@dataclass(slots=True)
class Asked:
    """What visitors saw. `ready` of them had an answer before the measurement began, `ready_s` after the first one came."""

    seconds: float
    ready: int = 0
    ready_s: float = 0.0
    broken: int = 0
    """Connections that were closed on a visitor."""
    took_ms: list[float] = field(default_factory=list)

    @property
    def rps(self) -> float:
        return len(self.took_ms) / self.seconds

    def percentile(self, share: float) -> float:
        """Of the answers' times in ms; 0 when there was none."""
        took = sorted(self.took_ms)
        return took[min(len(took) - 1, int(len(took) * share))] if took else 0.0


class _Visitor(asyncio.Protocol):
    def __init__(self, crowd: _Crowd, request: bytes, body_bytes: int) -> None:
        self._crowd = crowd
        self._request = request
        self._body_bytes = body_bytes
        self._seen = b""
        self._asked_at = 0.0
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, separator, body = self._seen.partition(b"\r\n\r\n")
        if not separator or len(body) < self._body_bytes:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self._crowd.wrong = self._crowd.wrong or head[:60]
            self._transport.abort()
            return
        self._seen = b""
        self.answers += 1
        self._crowd.answered(self, time.perf_counter() - self._asked_at)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.lost(self)

    def leave(self) -> None:
        self._transport.abort()


class _Crowd:
    def __init__(self, running: Running, count: int, body_bytes: int) -> None:
        self._running = running
        self._count = count
        self._body_bytes = body_bytes
        self._request = f"GET /{body_bytes} HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode()
        self._there: set[_Visitor] = set()
        self._asked: Asked | None = None
        self._leaving = False
        self.all_there = asyncio.Event()
        self.ready = 0
        self.broken = 0
        self.wrong = b""

    async def come(self) -> None:
        for _ in range(self._count):
            await self._one()

    async def _one(self) -> None:
        made = await asyncio.get_running_loop().create_connection(
            lambda: _Visitor(self, self._request, self._body_bytes), "127.0.0.1", self._running.port
        )
        self._there.add(made[1])

    def answered(self, visitor: _Visitor, took_s: float) -> None:
        if visitor.answers == 1:
            self.ready += 1
            if self.ready == self._count:
                self.all_there.set()
        if self._asked is not None:
            self._asked.took_ms.append(took_s * 1000)

    def lost(self, visitor: _Visitor) -> None:
        self._there.discard(visitor)
        if self._leaving:
            return
        if visitor.answers:
            self.ready -= 1
        self.broken += 1
        if self._asked is not None:
            self._asked.broken += 1
        asyncio.get_running_loop().call_later(CONNECT_AGAIN_S, self._again)

    def _again(self) -> None:
        if not self._leaving:
            self._task = asyncio.get_running_loop().create_task(self._one())

    def measure(self, asked: Asked | None) -> None:
        self._asked = asked

    def leave(self) -> None:
        self._leaving = True
        for visitor in self._there:
            visitor.leave()


async def _keep_asking(running: Running, count: int, body_bytes: int, seconds: float, patience_s: float) -> Asked:
    crowd = _Crowd(running, count, body_bytes)
    asked = Asked(seconds)
    begin = time.perf_counter()
    try:
        await crowd.come()
        try:
            async with asyncio.timeout(patience_s):
                await crowd.all_there.wait()
        except TimeoutError:
            pass
        asked.ready, asked.ready_s = crowd.ready, time.perf_counter() - begin
        crowd.measure(asked)
        await asyncio.sleep(seconds)
        crowd.measure(None)
    finally:
        crowd.leave()
        await asyncio.sleep(0)
    if crowd.wrong:
        raise BenchError(f"answered {crowd.wrong!r}")
    if not asked.took_ms:
        raise BenchError(f"no answer within {seconds:g} s; {asked.ready} of {count} visitors had one before")
    return asked


def keep_asking(running: Running, *, count: int, body_bytes: int, seconds: float, patience_s: float) -> Asked:
    """`count` visitors for `seconds`, once each had an answer or `patience_s` has gone by. The origin gives `/N` N bytes."""
    return uvloop.run(_keep_asking(running, count, body_bytes, seconds, patience_s))
