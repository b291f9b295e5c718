"""Agents are replaced under live event streams, WebSockets, slow uploads and a large download: nothing is cut."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgetun_agent.connect import Agent
from support.origin_server import ScriptedConnection, response, scripted_origin
from support.paths import Site, site
from support.visitors import Visitor, until
from support.whole import HOST, snapshot

DEADLINE_S = 30.0
DOWNLOAD_BYTES = 1024**3
PIECE = bytes(range(256)) * 4096  # 1 MiB
UPLOAD_BYTES = 5 * 1024**2


class Origin:
    """Answers by path; a stream, a WebSocket and the end of a download last until `is_replaced` is set."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.is_replaced = asyncio.Event()
        self.begun: set[str] = set()

    async def __call__(self, connection: ScriptedConnection) -> None:
        while head := await connection.request():
            target = head.split(b" ", 2)[1].decode()
            self.begun.add(target)
            match target:
                case "/events":
                    await connection.send(
                        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
                    )
                    number = 0
                    while not self.is_replaced.is_set():
                        await connection.send(b"data: %d\n\n" % number)
                        number += 1
                        await asyncio.sleep(0.02)
                    await connection.send(b"data: end\n\n")
                    connection.end()
                    return
                case "/ws":
                    await connection.send(
                        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
                    )
                    while data := await connection.read(1):
                        await connection.send(data)
                        if data == b"\n":
                            connection.end()
                            return
                case "/upload":
                    got = await connection.read(UPLOAD_BYTES)
                    await connection.send(response(self.name + b" %d" % sum(got[:: 64 * 1024])))
                case "/download":
                    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % DOWNLOAD_BYTES)
                    for piece in range(DOWNLOAD_BYTES // len(PIECE)):
                        if piece == DOWNLOAD_BYTES // len(PIECE) // 2:
                            await self.is_replaced.wait()
                        await connection.send(PIECE)
                case _:
                    await connection.send(response(self.name))


async def begin(visitor: Visitor, target: str, *lines: str) -> None:
    method = "POST" if target == "/upload" else "GET"
    visitor.send("\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {HOST}", *lines, "", "")).encode())


async def read_download(visitor: Visitor) -> int:
    assert (await visitor.head()).status == 200
    got = 0
    while got < DOWNLOAD_BYTES:
        size = min(len(PIECE), DOWNLOAD_BYTES - got)
        assert await visitor.read(size) == PIECE[:size]
        got += size
    return got


async def replace_agent(stands: Site, old: Agent, port: dict[str, int], url: str) -> None:
    """As a Deployment rolls: the new one is there before the old one goes."""
    new = stands.agent(snapshot(url), **port)
    await new.connected(DEADLINE_S)
    await old.drain(DEADLINE_S)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", ["quic", "tls"])
async def test_an_agent_is_replaced_and_cuts_nothing(kind: str, tmp_path: Path) -> None:
    before, after = Origin(b"before"), Origin(b"after")
    async with (
        scripted_origin(before) as old_origin,
        scripted_origin(after) as new_origin,
        site(tmp_path, snapshot(old_origin.url)) as stands,
    ):
        port = {"quic_port": stands.quic_port} if kind == "quic" else {"tls_port": stands.tls_port}
        old = stands.agent(snapshot(old_origin.url), **port)
        await old.connected(DEADLINE_S)
        events, socket, upload, download, plain = [await stands.visitor() for _ in range(5)]
        await begin(events, "/events")
        await begin(socket, "/ws", "Upgrade: websocket", "Connection: Upgrade")
        assert (await socket.head()).status == 101
        await begin(upload, "/upload", f"Content-Length: {UPLOAD_BYTES}")
        body = bytes(range(256)) * (UPLOAD_BYTES // 256)
        upload.send(body[: UPLOAD_BYTES // 2])
        await begin(download, "/download")
        reading = asyncio.create_task(read_download(download))
        await until(lambda: before.begun == {"/events", "/ws", "/upload", "/download"}, DEADLINE_S)

        replacing = asyncio.create_task(replace_agent(stands, old, port, new_origin.url))
        statuses, said = set(), []
        while not said or said[-1] != b"after":  # visitors come all the while
            answer = await plain.ask(host=HOST)
            statuses.add(answer.status)
            said.append(answer.body)
            await asyncio.sleep(0.01)
        assert statuses == {200}
        assert set(said) <= {b"before", b"after"}
        socket.send(b"x")
        assert await socket.read(1) == b"x"
        assert not replacing.done(), "the old agent waits for what it began"

        before.is_replaced.set()
        socket.send(b"\n")
        assert await socket.read(1) == b"\n"
        await socket.close()
        upload.send(body[UPLOAD_BYTES // 2 :])
        answered = await upload.answer()
        assert (answered.status, answered.body) == (200, b"before %d" % sum(body[:: 64 * 1024]))
        streamed = (await events.answer()).body.split(b"\n\n")
        assert streamed == [*(b"data: %d" % number for number in range(len(streamed) - 2)), b"data: end", b""]
        assert await reading == DOWNLOAD_BYTES
        await replacing
        assert [(await plain.ask(host=HOST)).body for _ in range(5)] == [b"after"] * 5
        for visitor in (events, upload, download, plain):
            await visitor.close()
