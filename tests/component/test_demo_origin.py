"""The demo's origin is a real server that counts what reaches it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from edgetun.demo_origin import DemoOrigin
from edgetun.load import run_load
from edgetun.load_plan import Crowd, LoadPlan


@pytest.fixture
async def origin() -> AsyncIterator[DemoOrigin]:
    server = DemoOrigin(work_s=0.02)
    await server.start()
    yield server
    await server.close()


async def ask(origin: DemoOrigin, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", origin.port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_every_request_is_worked_on_and_counted(origin: DemoOrigin) -> None:
    result = await run_load(LoadPlan(f"http://localhost:{origin.port}/", Crowd(40, 0, requests=2)))
    assert result.is_clean
    assert (origin.requests, origin.in_flight, origin.by_path) == (80, 0, {"/": 80})
    assert result.distinct_bodies == 80
    assert result.latency.minimum >= 20_000
    assert origin.peak > 1


async def test_statistics_do_not_count_themselves(origin: DemoOrigin) -> None:
    await ask(origin, b"GET /api/time HTTP/1.0\r\n\r\n")
    answer = await ask(origin, b"GET /stats HTTP/1.0\r\n\r\n")
    assert b"no-store" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"requests": 1, "peak": 1, "by_path": {"/api/time": 1}}


async def test_events_come_at_once_and_one_after_the_other(origin: DemoOrigin) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", origin.port)
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1)
    assert b"text/event-stream" in head
    assert (await asyncio.wait_for(reader.readuntil(b"\n\n"), 1)).startswith(b"id: 1\ndata: ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"200"),
        (b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n", b"200"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"GET /nothing HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /slow?s=0 HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /slow?s=0.01 HTTP/1.0\r\n\r\n", b"200"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
async def test_it_answers_as_a_server_should(origin: DemoOrigin, request_: bytes, status: bytes) -> None:
    answer = await ask(origin, request_)
    assert answer.startswith(b"HTTP/1.1 " + status)
    if request_.startswith(b"HEAD"):
        assert answer.endswith(b"\r\n\r\n")


async def test_closing_cuts_what_is_open() -> None:
    server = DemoOrigin()
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /slow?s=30 HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(5):
        while not server.in_flight:  # noqa: ASYNC110 - it has no event for that
            await asyncio.sleep(0.01)
    await asyncio.wait_for(server.close(), 5)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
