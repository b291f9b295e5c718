"""HTTP behind a load balancer that says by PROXY protocol whose connection it brings: plain, over TLS, and TLS unopened."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from edgetun_core.pki import DevelopmentCA
from edgetun_core.proxy_protocol import V2_SIGNATURE, Endpoints, render_proxy_v1, render_proxy_v2
from edgetun_core.snapshot import OriginRule, PoolRule, Snapshot, StreamRule, TunnelRule
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontLimits
from edgetun_exitnode.node import NodeLimits
from support.origin_server import ScriptedConnection, response, scripted_origin
from support.streams import local_service, within
from support.visitors import until
from support.whole import HOST, IN_PROCESS, Whole, snapshot, whole

SAID = Endpoints("203.0.113.7", 4711, "198.51.100.1", 443)
TRUSTING = PoolRule(trusted_proxies=("127.0.0.1/32",))
ASK = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


async def tell(connection: ScriptedConnection) -> None:
    """Answers with whom the exit node takes for the visitor."""
    while head := await connection.request():
        lines = head.lower().split(b"\r\n")
        told = next(line for line in lines if line.startswith(b"x-forwarded-for:"))
        await connection.send(response(told.partition(b":")[2].strip()))


@asynccontextmanager
async def edge(folder: Path, *more: TunnelRule, pool: PoolRule = TRUSTING, **limits: float) -> AsyncIterator[Whole]:
    async with scripted_origin(tell) as origin:
        told: Snapshot = snapshot(origin.url)
        told = msgspec.structs.replace(told, tunnels=(*told.tunnels, *more), pool_rule=pool)
        async with whole(folder, IN_PROCESS, told, limits=NodeLimits(FrontLimits(**limits))) as stands:  # type: ignore[arg-type]
            yield stands


async def plain(port: int, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await within(reader.readuntil(b"203.0.113.7"))
    writer.close()
    assert isinstance(answer, bytes)
    return answer


async def test_a_trusted_proxy_says_who_the_visitor_is(tmp_path: Path) -> None:
    async with edge(tmp_path) as stands:
        for header in (render_proxy_v1(SAID), render_proxy_v2(SAID)):
            assert b" 200 " in await plain(stands.port, header + ASK)
            assert b" 200 " in await plain(stands.port, header[:9], header[9:], ASK[:20], ASK[20:])
        (front,) = stands.node.fronts
        await until(lambda: not front.connections, 10.0)
        assert not front.preludes  # type: ignore[attr-defined]


async def test_one_that_says_nothing_or_nonsense_is_not_served(tmp_path: Path) -> None:
    async with edge(tmp_path, head_s=0.4, sweep_s=0.1) as stands:
        for words in (ASK, b"PROXY TCP4 nonsense\r\n" + ASK, b"PROXY "):
            reader, writer = await asyncio.open_connection("127.0.0.1", stands.port)
            writer.write(words)
            try:
                assert await within(reader.read()) == b""
            except ConnectionResetError:
                pass
            writer.close()


async def test_its_health_checks_are_its_own(tmp_path: Path) -> None:
    async with edge(tmp_path) as stands:
        reader, writer = await asyncio.open_connection("127.0.0.1", stands.port)
        writer.write(V2_SIGNATURE + b"\x20\x00\x00\x00" + ASK)
        assert (await within(reader.readuntil(b"127.0.0.1"))).startswith(b"HTTP/1.1 200")  # type: ignore[attr-defined]
        writer.close()


async def test_a_strangers_header_is_no_request(tmp_path: Path) -> None:
    async with edge(tmp_path, pool=PoolRule(trusted_proxies=("192.0.2.0/24",))) as stands:
        reader, writer = await asyncio.open_connection("127.0.0.1", stands.port)
        writer.write(render_proxy_v1(SAID) + ASK)
        assert (await within(reader.read())).startswith(b"HTTP/1.1 400")  # type: ignore[attr-defined]
        writer.close()


@pytest.mark.parametrize("with_passthrough", [False, True])
async def test_the_header_stands_before_tls_too(tmp_path: Path, with_passthrough: bool) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readline())
        writer.write_eof()

    async with local_service(serve) as service:
        rule = OriginRule("default", service.url, proxy_protocol="v1")
        database = TunnelRule("team/db", ("db.example.com",), (rule,), (), stream=StreamRule("tcp"))
        async with edge(tmp_path, *([database] if with_passthrough else [])) as stands:
            stands.node.registry.add(stands.node.registry.sessions[0], ["team/shop", "team/db"])
            await stands.node.listen_streams("127.0.0.1")
            ca = DevelopmentCA(tmp_path / "ca")
            front = await stands.node.listen_https(
                "127.0.0.1", 0, CertificateStore(development=ca, may_issue=lambda _: True)
            )
            context = ssl.create_default_context(cadata=ca.ca_pem.decode())

            def visit(name: str) -> bytes:
                with socket.create_connection(("127.0.0.1", front.port), 20) as sock:
                    sock.sendall(render_proxy_v2(SAID))
                    with context.wrap_socket(sock, server_hostname=name) as tls:
                        tls.sendall(ASK)
                        data = b""
                        while b"203.0.113.7" not in data and (piece := tls.recv(65536)):
                            data += piece
                        return data

            assert (await asyncio.to_thread(visit, HOST)).startswith(b"HTTP/1.1 200")
            if with_passthrough:
                with pytest.raises(OSError):  # the service behind is none for TLS; it is told who comes all the same
                    await asyncio.to_thread(visit, "db.example.com")
                assert heads == [b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n"]
            await until(lambda: not front.connections, 10.0)
            assert not front._handshakes
            assert front.addresses._counts == {}
