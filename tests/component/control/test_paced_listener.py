"""Agents that come all at once are let in a few at a time; whoever dawdles keeps nobody waiting."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgetun_control.accepting import PacedListener
from edgetun_core.pki import DevelopmentCA, Trust
from support.waiting import eventually


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


@asynccontextmanager
async def listening(folder: Path, **how: float) -> AsyncIterator[tuple[PacedListener, Callable[[], ssl.SSLContext]]]:
    ca = DevelopmentCA(folder / "ca")
    context = ca.identity(["127.0.0.1"]).ssl_context(("http/1.1",))
    listener = PacedListener(Echo, context, **how)  # type: ignore[arg-type]
    await listener.start("127.0.0.1", 0)
    try:
        yield listener, lambda: Trust(ca.ca_pem).ssl_context(("http/1.1",))
    finally:
        await listener.close()


async def ask(listener: PacedListener, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context)
    writer.write(b"hello")
    answer = await reader.read(100)
    writer.close()
    return answer


async def test_many_at_once_are_all_served_and_few_shake_hands_at_one_time(tmp_path: Path) -> None:
    async with listening(tmp_path, most_handshakes=4, dawdling_s=30.0) as (listener, trust):
        context = trust()
        asked = [asyncio.create_task(ask(listener, context)) for _ in range(60)]
        most = 0
        while not all(task.done() for task in asked):
            most = max(most, len(listener._counted))
            await asyncio.sleep(0)
        assert [task.result() for task in asked] == [b"hello"] * 60
        assert 1 <= most <= 4
        assert listener.accepted_total == 60
        await eventually(lambda: not listener._tasks and not listener._counted, 10)


async def test_those_who_dawdle_keep_nobody_waiting_and_are_dropped_with_the_listener(tmp_path: Path) -> None:
    async with listening(tmp_path, most_handshakes=3, dawdling_s=0.05) as (listener, trust):
        silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(9)]
        try:
            assert await asyncio.wait_for(ask(listener, trust()), 20) == b"hello"
            assert len(listener._tasks) == 9
            garbage = socket.create_connection(("127.0.0.1", listener.port))
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await eventually(lambda: listener.refused_total == 1, 10)
            garbage.close()
        finally:
            for sock in silent:
                sock.close()


async def test_no_more_than_so_many_wait_at_one_time(tmp_path: Path) -> None:
    async with listening(tmp_path, most_handshakes=3, most_pending=5, dawdling_s=0.01) as (listener, trust):
        silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(8)]
        await eventually(lambda: len(listener._tasks) == 5, 10)
        await asyncio.sleep(0.05)
        assert len(listener._tasks) == 5
        for sock in silent:
            sock.close()
        assert await asyncio.wait_for(ask(listener, trust()), 20) == b"hello"


async def test_a_port_that_is_taken_is_an_oserror_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listener = PacedListener(Echo, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        with pytest.raises(OSError, match="in use"):
            await listener.start("127.0.0.1", taken.getsockname()[1])
        assert listener._sockets == []
