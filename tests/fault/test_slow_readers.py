"""A visitor who reads slowly pauses the origin itself, whatever the visitor speaks; measured where the origin writes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode.front.certificates import CertificateStore
from support.h2_frames import headers
from support.h2_visitor import H2Visitor
from support.h3_client import h3_visitor
from support.origin_server import ScriptedConnection, scripted_origin
from support.visitors import Visitor
from support.whole import HOST, Whole, snapshot, whole

PAGE_BYTES = 16 * 1024 * 1024
H3_PAGE_BYTES = 8 * 1024 * 1024
"""For a client in pure Python."""
MOST = 0.75
"""Of the page: what the kernel's buffers on the way take, and some 3 MiB of credit and buffers of ours."""
PIECE = bytes(range(256)) * 256


class Origin:
    """Sends a large page as fast as it is taken."""

    def __init__(self, page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self.sent = 0

    async def __call__(self, connection: ScriptedConnection) -> None:
        connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.page_bytes)
        while self.sent < self.page_bytes:
            await connection.send(PIECE)
            self.sent += len(PIECE)
        await connection.rest()

    async def is_paused(self) -> None:
        """Returns when it has sent something and could send nothing more for a while."""
        async with asyncio.timeout(30):
            last = -1
            while not self.sent or self.sent != last:
                last = self.sent
                await asyncio.sleep(0.4)


Paused = Callable[[], Awaitable[None]]


async def http1(stands: Whole, folder: Path, paused: Paused) -> int:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", stands.port))
    visitor = Visitor(*await asyncio.open_connection(sock=sock, limit=4096), timeout_s=40.0)
    visitor.send(b"GET /big HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode())
    assert (await visitor.head()).status == 200
    await paused()
    got = 0
    async with asyncio.timeout(40):
        while got < PAGE_BYTES and (data := await visitor.reader.read(1 << 20)):
            got += len(data)
    visitor.leave()
    return got


async def http2(stands: Whole, folder: Path, paused: Paused) -> int:
    visitor = await H2Visitor.to(stands.port)
    visitor.timeout_s = 40.0
    target = ((b":scheme", b"http"), (b":authority", HOST.encode()), (b":path", b"/big"))
    visitor.send(headers(1, (b":method", b"GET"), *target))
    response = visitor.response(1)
    await visitor.until(lambda: bool(response.heads))
    await paused()  # its windows are what they were at the start
    got = 0
    visitor.open_windows(1)
    while not response.ended:
        assert await visitor.read_some()
        got, response.body = got + len(response.body), b""
        visitor.frames.clear()
    assert response.status == 200
    visitor.leave()
    return got + len(response.body)


async def http3(stands: Whole, folder: Path, paused: Paused) -> int:
    ca = DevelopmentCA(folder / "web")
    front = await stands.node.listen_https(
        "127.0.0.1", 0, CertificateStore(development=ca, may_issue=lambda name: True), http3=True
    )
    async with h3_visitor(front.port, server_name=HOST, ca_pem=ca.ca_pem) as visitor:
        visitor.timeout_s = 40.0
        give = visitor._quic._write_stream_limits, visitor._quic._write_connection_limits
        # acknowledges what comes, and gives no more credit
        visitor._quic._write_stream_limits = visitor._quic._write_connection_limits = lambda *_, **__: None  # type: ignore[method-assign, misc, assignment]
        sid = visitor.open(path="/big", host=HOST)
        answer = await visitor.head(sid)
        await paused()
        assert len(answer.body) <= 2 * 1024 * 1024
        visitor._quic._write_stream_limits, visitor._quic._write_connection_limits = give  # type: ignore[method-assign]
        await visitor.ping()  # something to send, and with it the limits
        answer = await visitor.answer(sid)
        assert answer.status == 200
        return len(answer.body)


@pytest.mark.parametrize(
    ("engine", "read"),
    [("tls", http1), ("qh3", http2), ("tls", http3)],
    ids=["http1-tls", "http2-quic", "http3-tls"],
)
async def test_a_slow_reader_pauses_the_origin_and_then_gets_everything(
    tmp_path: Path, engine: str, read: Callable[[Whole, Path, Paused], Awaitable[int]]
) -> None:
    page_bytes = H3_PAGE_BYTES if read is http3 else PAGE_BYTES
    serve = Origin(page_bytes)
    async with scripted_origin(serve) as origin, whole(tmp_path, engine, snapshot(origin.url), sessions=1) as stands:

        async def paused() -> None:
            await serve.is_paused()
            assert serve.sent < MOST * page_bytes

        assert await read(stands, tmp_path, paused) == page_bytes
        assert serve.sent == page_bytes
