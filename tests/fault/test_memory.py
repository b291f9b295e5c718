"""What passes through leaves nothing behind: big bodies, visitors who break off, and downloads that are resumed."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from edgetun_core.snapshot import CacheRule, CollapseRule
from support.origin_server import ScriptedConnection, scripted_origin
from support.requirements import missing
from support.visitors import Visitor, until
from support.whole import HOST, Whole, snapshot, whole

MIB = 1024 * 1024
PIECE = bytes(range(256)) * 1024

pytestmark = pytest.mark.timeout(240)


def resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        missing("memory is read from /proc")
    return pages * os.sysconf("SC_PAGE_SIZE")


async def mill(connection: ScriptedConnection) -> None:
    """Sends what `/SIZE` asks for, and counts what is uploaded."""
    while head := await connection.request():
        method, target, _ = head.split(b" ", 2)
        if method == b"POST":
            left = int(
                next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")).split()[1]
            )
            total = left
            while left and (data := await connection.reader.read(min(left, 256 * 1024))):
                left -= len(data)
            await connection.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%d" % (len(str(total - left)), total - left)
            )
            continue
        size = int(target[1:])
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for start in range(0, size, len(PIECE)):
            await connection.send(PIECE[: min(len(PIECE), size - start)])


class Gauge:
    """How far this process, both ends of the tunnel, the origin and the visitor in one, has grown since it was made."""

    def __init__(self) -> None:
        gc.collect()
        self._before = resident_bytes()
        self.most = 0

    def look(self) -> None:
        self.most = max(self.most, resident_bytes() - self._before)


async def download(visitor: Visitor, size: int, gauge: Gauge | None = None) -> None:
    visitor.send(b"GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n" % (size, HOST.encode()))
    assert (await visitor.head()).status == 200
    looked = got = 0
    while got < size:
        got += len(await visitor.reader.read(min(size - got, MIB)))
        if gauge is not None and got - looked >= 4 * MIB:
            looked = got
            gauge.look()


async def upload(visitor: Visitor, size: int, gauge: Gauge | None = None) -> None:
    visitor.send(b"POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n" % (HOST.encode(), size))
    for start in range(0, size, len(PIECE)):
        visitor.send(PIECE[: min(len(PIECE), size - start)])
        await visitor.writer.drain()
        if gauge is not None and not start % (4 * MIB):
            gauge.look()
    assert (await visitor.answer(b"POST")).body == b"%d" % size


@pytest.mark.parametrize(
    ("engine", "down_bytes", "up_bytes"), [("tls", 80 * MIB, 48 * MIB), ("qh3", 32 * MIB, 32 * MIB)]
)
async def test_what_passes_through_does_not_stay(tmp_path: Path, engine: str, down_bytes: int, up_bytes: int) -> None:
    async with scripted_origin(mill) as origin, whole(tmp_path, engine, snapshot(origin.url), sessions=1) as stands:
        visitor = await stands.visitor()
        visitor.timeout_s = 120.0
        for go in (download, upload):
            await go(visitor, 8 * MIB)
        gauge = Gauge()
        await download(visitor, down_bytes, gauge)
        await upload(visitor, up_bytes, gauge)
        gauge.look()
        assert gauge.most < 16 * MIB
        await visitor.close()


FILE_BYTES = 512 * 1024
FILE = random.Random(5).randbytes(FILE_BYTES)
PARTS = tuple(random.Random(6).randrange(1, FILE_BYTES) for _ in range(8))
"""Where downloads break off. Few: heads are remembered, and a new one each time would look like a leak up to that memory's bound."""
VISITORS = 32
REMEMBERED = {"ResponseHead", "PreparedResponse", "Verdict"}
"""Heads of parts of what is stored are made for each visitor, and the last 256 or so are remembered (`Memo`)."""
TOLERATED = 12
"""Of any kind, between one round and the next, in which there are 64 connections and requests: pools breathe."""


async def library(connection: ScriptedConnection) -> None:
    """One file, by ranges too."""
    while head := await connection.request():
        first = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"range: bytes="):
                first = int(line[len(b"range: bytes=") :].split(b"-")[0])
        status = (
            b"206 Partial Content\r\nContent-Range: bytes %d-%d/%d" % (first, FILE_BYTES - 1, FILE_BYTES)
            if first
            else b"200 OK"
        )
        await connection.send(
            b'HTTP/1.1 %s\r\nETag: "one"\r\nAccept-Ranges: bytes\r\nContent-Length: %d\r\n\r\n'
            % (status, FILE_BYTES - first)
        )
        for start in range(first, FILE_BYTES, 65536):
            await connection.send(FILE[start : start + 65536])


async def breaks_off_and_resumes(stands: Whole, chance: random.Random) -> None:
    """Reads a part, goes away in one of three ways, and comes back for the rest."""
    part = chance.choice(PARTS)
    visitor = await stands.visitor()
    visitor.timeout_s = 60.0
    visitor.send(b"GET /file HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode())
    assert (await visitor.head()).status == 200
    begin = await visitor.read(part)
    await chance.choice((leave, break_off, Visitor.close))(visitor)
    again = await stands.visitor()
    again.timeout_s = 60.0
    rest = await again.ask("/file", f"Range: bytes={part}-", 'If-Range: "one"', host=HOST)
    assert rest.status == 206
    assert begin + rest.body == FILE
    await again.close()


async def leave(visitor: Visitor) -> None:
    visitor.leave()


async def break_off(visitor: Visitor) -> None:
    visitor.break_off()


class Census:
    """What is alive: objects of our own classes by kind, file descriptors, tasks, memory."""

    def __init__(self) -> None:
        gc.collect()
        self.objects = Counter(
            f"{type(one).__module__}.{type(one).__qualname__}"
            for one in gc.get_objects()
            if str(type(one).__module__).startswith("edgetun")
        )
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.tasks = len(asyncio.all_tasks())
        self.resident_bytes = resident_bytes()


@pytest.mark.parametrize(
    ("engine", "is_cached"), [("tls", False), ("qh3", False), ("tls", True)], ids=["tls", "quic", "cached"]
)
async def test_connections_that_come_and_go_and_downloads_that_are_resumed_leave_nothing(
    tmp_path: Path, engine: str, is_cached: bool
) -> None:
    rules: dict[str, object] = (
        {"cache": CacheRule(mode="override", ttl_s=0.2), "collapse": CollapseRule()} if is_cached else {}
    )
    chance = random.Random(7)
    async with scripted_origin(library) as origin, whole(tmp_path, engine, snapshot(origin.url, **rules)) as stands:
        taken: list[Census] = []
        for _ in range(3):
            await asyncio.gather(*(breaks_off_and_resumes(stands, chance) for _ in range(VISITORS)))
            await until(lambda: not stands.node.exchanges_in_flight and not stands.origins.in_flight, 30.0)
            await until(lambda: not any(front.connections for front in stands.node.fronts), 30.0)
            taken.append(Census())
        warm, before, after = taken
        grown = {
            kind: (before.objects[kind], count)
            for kind, count in after.objects.items()
            if count > max(before.objects[kind], warm.objects[kind]) + TOLERATED
            and kind.rpartition(".")[2] not in REMEMBERED
        }
        assert not grown
        assert after.descriptors <= max(before.descriptors, warm.descriptors) + TOLERATED
        assert after.tasks <= max(before.tasks, warm.tasks) + TOLERATED
        assert after.resident_bytes < before.resident_bytes + 16 * MIB
