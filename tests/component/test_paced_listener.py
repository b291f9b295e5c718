"""Agents that come all at once are let in a few at a time; whoever dawdles, is silent or went away keeps nobody waiting."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import uvloop

from edgetun_core.accepting import PacedListener
from edgetun_core.pki import DevelopmentCA, Trust
from support.waiting import eventually


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

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


def dawdler(listener: PacedListener) -> socket.socket:
    """A client that takes a turn and does not go on."""
    client = socket.create_connection(("127.0.0.1", listener.port))
    client.sendall(b"\x16")
    return client


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
        dawdling = [dawdler(listener) for _ in range(9)]
        try:
            assert await asyncio.wait_for(ask(listener, trust()), 20) == b"hello"
            assert len(listener._tasks) == 9
            garbage = socket.create_connection(("127.0.0.1", listener.port))
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await eventually(lambda: listener.refused_total == 1, 10)
            garbage.close()
        finally:
            for sock in dawdling:
                sock.close()


async def test_those_who_say_nothing_take_no_turn(tmp_path: Path) -> None:
    async with listening(tmp_path, most_handshakes=1, dawdling_s=60.0) as (listener, trust):
        silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(5)]
        await eventually(lambda: len(listener._tasks) == 5, 10)
        assert await asyncio.wait_for(ask(listener, trust()), 20) == b"hello"
        assert not listener.refused_total
        for sock in silent:
            sock.close()
        await eventually(lambda: listener.refused_total == 5, 10)


async def test_who_waits_in_vain_is_turned_away_soon_and_the_next_is_served(tmp_path: Path) -> None:
    how = {"most_handshakes": 1, "dawdling_s": 60.0, "patience_s": 0.2, "handshake_timeout_s": 60.0}
    async with listening(tmp_path, **how) as (listener, trust):
        first = dawdler(listener)
        await eventually(lambda: listener._counted, 10)
        with pytest.raises(OSError):
            await asyncio.wait_for(ask(listener, trust()), 20)
        assert listener.refused_total == 1
        assert len(listener._counted) == 1, "the first has its turn still"
        first.close()
        await eventually(lambda: not listener._counted, 10)
        assert await asyncio.wait_for(ask(listener, trust()), 20) == b"hello"


async def test_who_went_away_while_it_waited_gets_no_handshake(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "edgetun.accepting")
    async with listening(tmp_path, most_handshakes=1, dawdling_s=60.0, patience_s=60.0) as (listener, trust):
        first, gone = dawdler(listener), dawdler(listener)
        await eventually(lambda: len(listener._tasks) == 2 and listener._counted, 10)
        gone.close()
        last = asyncio.create_task(ask(listener, trust()))
        await eventually(lambda: len(listener._tasks) == 3, 10)
        first.close()
        assert await asyncio.wait_for(last, 20) == b"hello"
        await eventually(lambda: listener.refused_total == 2, 10)
        assert sum("went away before its turn" in record.message for record in caplog.records) == 1


def test_it_does_the_same_on_uvloop(tmp_path: Path) -> None:
    """The loop of the processes, on which a file descriptor that was watched becomes a connection."""

    async def storm() -> list[bytes]:
        async with listening(tmp_path, most_handshakes=4) as (listener, trust):
            silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(9)]
            context = trust()
            answers = await asyncio.wait_for(asyncio.gather(*(ask(listener, context) for _ in range(60))), 60)
            shaking = dawdler(listener)
            await eventually(lambda: listener._shaking, 10)
            await asyncio.wait_for(listener.close(), 20)
            assert not listener._tasks
            assert not listener._shaking
            for sock in (*silent, shaking):
                assert sock.recv(1) == b"", "dropped with the listener"
                sock.close()
            return answers

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(storm()) == [b"hello"] * 60


async def test_it_is_not_the_client_that_dawdles_where_more_of_it_waits_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[socket.socket] = []

    async with listening(tmp_path, most_handshakes=1, dawdling_s=0.02) as (listener, _):

        async def late(sock: socket.socket, _: object) -> None:
            """A handshake for which the event loop has no time."""
            started.append(sock)
            listener._look_later(sock)
            await asyncio.sleep(60)

        monkeypatch.setattr(listener, "_shake_hands", late)
        clients = [dawdler(listener), dawdler(listener)]
        await eventually(lambda: len(listener._tasks) == 2 and listener._counted, 10)
        await asyncio.sleep(0.2)
        assert len(listener._counted) == len(started) == 1, "what the first one said has not been read"
        next(iter(listener._counted)).recv(1)
        await eventually(lambda: len(started) == 2, 10)
        for client in clients:
            client.close()


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


async def test_who_is_accepted_in_the_moment_of_the_close_is_closed_too(tmp_path: Path) -> None:
    async with listening(tmp_path) as (listener, _):
        with socket.create_connection(("127.0.0.1", listener.port)) as client:
            await eventually(lambda: listener._accept(listener._sockets[0]) or listener.accepted_total, 10)
            await listener.close()  # before the handshake's task had its first step
            client.settimeout(10)
            assert client.recv(1) == b""
