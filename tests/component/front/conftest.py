"""A front on a free port of the loopback, with deadlines short enough for tests, on both event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

import pytest
import uvloop

from edgetun_core.http.exchange import Handler
from edgetun_exitnode.front.context import FrontContext, FrontLimits
from edgetun_exitnode.front.servers import Front, serve_http
from support.handlers import ScriptedHandler
from support.visitors import Visitor


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if "test_h3_" in item.nodeid and "test_h3_requests" not in item.nodeid:
        return {"uvloop": uvloop.new_event_loop}  # a socket's readiness is all that HTTP/3 asks of a loop
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


QUICK = FrontLimits(sweep_s=0.05, linger_s=0.3)

StartFront = Callable[..., Awaitable[Front]]
Connect = Callable[..., Awaitable[Visitor]]


@pytest.fixture
async def start_front() -> AsyncIterator[StartFront]:
    fronts: list[Front] = []

    async def start(
        handler: Handler | None = None, clock: Callable[[], float] = time.monotonic, **limits: object
    ) -> Front:
        context = FrontContext(handler or ScriptedHandler(), replace(QUICK, **limits), clock=clock)  # type: ignore[arg-type]
        front = await serve_http(context, "127.0.0.1", 0)
        fronts.append(front)
        return front

    yield start
    for front in fronts:
        await front.drain(0.0)
        assert not front.connections
        assert front.held_bytes == 0
        assert front.counters.connections_open == 0


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    visitors: list[Visitor] = []

    async def to(port: int, **options: object) -> Visitor:
        visitor = await Visitor.to(port, **options)  # type: ignore[arg-type]
        visitors.append(visitor)
        return visitor

    yield to
    for visitor in visitors:
        visitor.leave()
    await asyncio.sleep(0)
