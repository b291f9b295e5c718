"""Where control's own port is shut, or a proxy opens every TLS, an agent registers in a WebSocket to the visitors' port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgetun_core.pki import DevelopmentCA
from support.serving import Server, start_server


@contextmanager
def opened_on_the_way(folder: Path, to_port: int) -> Iterator[tuple[int, list[bytes]]]:
    """A proxy that opens TLS with a certificate of its own; its port, and what it read of the agents."""
    read: list[bytes] = []
    loop = asyncio.new_event_loop()
    started: list[asyncio.Server] = []
    ready = threading.Event()
    identity = DevelopmentCA(folder / "proxy-ca").identity(["127.0.0.1"])

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to_port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, seen: list[bytes]) -> None:
            try:
                while data := await source.read(65536):
                    seen.append(data)
                    target.write(data)
                    await target.drain()
            except OSError:
                pass
            target.close()

        await asyncio.gather(copy(reader, far_writer, read), copy(far_reader, writer, []))

    async def start() -> None:
        started.append(await asyncio.start_server(carry, "127.0.0.1", 0, ssl=identity.ssl_context(())))
        ready.set()

    async def stop() -> None:
        started[0].close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop)
    assert ready.wait(10)
    try:
        yield started[0].sockets[0].getsockname()[1], read
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("server")
    with start_server(state) as command:
        yield Server(command, state)


def a_closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_an_agent_registers_through_a_proxy_that_opens_tls(server: Server, tmp_path: Path) -> None:
    token = server.token("--url", f"https://127.0.0.1:{a_closed_port()}")
    with opened_on_the_way(tmp_path, server.port) as (port, read):
        flags = ("--origin", f"127.0.0.1:{server.port}", "--host", "by-door", "--door", f"https://127.0.0.1:{port}")
        with server.agent(token, tmp_path / "agent", *flags) as agent:
            agent.line("registered in a WebSocket to the visitors' port", 40)
            agent.line("ready in", 40)
            assert agent.stop() == 0
        whole = b"".join(read)
        assert b"Upgrade: websocket" in whole
        assert token.encode() not in whole, "the TLS inside is control's own"
        assert b"Bearer" not in whole


def test_where_neither_works_both_are_told_and_the_token_stays_here(server: Server, tmp_path: Path) -> None:
    closed, door = a_closed_port(), a_closed_port()
    token = server.token("--url", f"https://127.0.0.1:{closed}")
    flags = ("--origin", "127.0.0.1:9", "--door", f"https://127.0.0.1:{door}")
    with server.agent(token, tmp_path / "agent", *flags) as agent:
        assert agent.ended() == 4, agent.said
        assert f"127.0.0.1:{closed}" in agent.said
        assert f"no WebSocket to https://127.0.0.1:{door}" in agent.said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--door", "nowhere"), "is not a URL"),
        (("--door", "https://127.0.0.1:1", "--transport", "tls"), "--transport tls allows none"),
    ],
)
def test_a_door_that_cannot_be_is_told(server: Server, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    token = server.token()
    with server.agent(token, tmp_path / "agent", "--origin", "127.0.0.1:9", *flags) as agent:
        assert agent.ended() == 2
        assert said in agent.said
