"""TLS that stays unopened on the HTTPS port: by the server name it goes to its tunnel, and everything else as ever."""

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
from edgetun_core.snapshot import OriginRule, RouteRule, StreamRule, TunnelRule
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontLimits
from edgetun_exitnode.node import NodeLimits
from support.streams import Service, echo, local_service, stream_snapshot, within
from support.visitors import until
from support.whole import IN_PROCESS, Whole, whole

DB = "db.example.com"


@pytest.fixture
def service_ca(tmp_path: Path) -> DevelopmentCA:
    """The local service's own: the exit node has none of its keys."""
    return DevelopmentCA(tmp_path / "service-ca")


def client(ca: DevelopmentCA) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca.ca_pem.decode())


@asynccontextmanager
async def a_tls_service(ca: DevelopmentCA) -> AsyncIterator[Service]:
    server = await asyncio.start_server(_echo_tls, "127.0.0.1", 0, ssl=ca.identity([DB]).ssl_context())
    try:
        yield Service(server.sockets[0].getsockname()[1], [])
    finally:
        server.close()


async def _echo_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(b"db says " + data)
    except ConnectionError:
        pass
    writer.close()


@asynccontextmanager
async def edge(
    folder: Path, service: Service, ca: DevelopmentCA, engine: str = IN_PROCESS, **limits: float
) -> AsyncIterator[tuple[int, Whole]]:
    """An HTTPS front with a tunnel for `DB` that stays closed, and an HTTP tunnel beside it."""
    snapshot = stream_snapshot(service.url, StreamRule("tcp"), hostnames=(DB, "*.db.example.com"))
    web = TunnelRule("team/web", ("shop.example.com",), (OriginRule("o", "http://127.0.0.1:9"),), (RouteRule(),), 0.1)
    snapshot = msgspec.structs.replace(snapshot, tunnels=(*snapshot.tunnels, web))
    async with whole(folder, engine, snapshot, limits=NodeLimits(FrontLimits(**limits))) as stands:  # type: ignore[arg-type]
        await stands.node.listen_streams("127.0.0.1")
        front = await stands.node.listen_https(
            "127.0.0.1", 0, CertificateStore(development=ca, may_issue=lambda _: True)
        )
        yield front.port, stands


async def say(port: int, name: str, context: ssl.SSLContext, words: bytes) -> bytes:
    reader, writer = await within(  # type: ignore[misc]
        asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    )
    writer.write(words)
    answer = await within(reader.read(1000))
    writer.close()
    assert isinstance(answer, bytes)
    return answer


@pytest.mark.parametrize("engine", ["tls", "qh3", IN_PROCESS])
async def test_a_name_that_passes_through_meets_the_services_own_certificate(
    tmp_path: Path, service_ca: DevelopmentCA, engine: str
) -> None:
    edge_ca = DevelopmentCA(tmp_path / "edge-ca")
    async with a_tls_service(service_ca) as service, edge(tmp_path, service, edge_ca, engine) as (port, stands):
        assert await say(port, DB, client(service_ca), b"hello") == b"db says hello"
        with pytest.raises(ssl.SSLCertVerificationError):
            await say(port, DB, client(edge_ca), b"hello")
        # Beside it, on the same port, the edge's own certificate and HTTP.
        answer = await say(
            port, "shop.example.com", client(edge_ca), b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 50")
        (front,) = (front for front in stands.node.fronts if front.scheme == b"https")
        await until(lambda: not stands.node.streams.connections and not front.connections, 10.0)
        assert front.addresses._counts == {}


async def test_a_client_hello_in_pieces_is_waited_for_without_spinning(
    tmp_path: Path, service_ca: DevelopmentCA
) -> None:
    async with a_tls_service(service_ca) as service, edge(tmp_path, service, service_ca) as (port, _):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client(service_ca).wrap_bio(incoming, outgoing, server_hostname=DB)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(0, len(hello), 100):
            writer.write(hello[at : at + 100])
            await writer.drain()
            await asyncio.sleep(0.01)
        while True:
            incoming.write(await within(reader.read(65536)))  # type: ignore[arg-type]
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        writer.write(outgoing.read())
        tls.write(b"whole")
        writer.write(outgoing.read())
        for _ in range(10):
            try:
                assert tls.read() == b"db says whole"
                break
            except ssl.SSLWantReadError:
                incoming.write(await within(reader.read(65536)))  # type: ignore[arg-type]
        writer.close()


async def test_who_says_nothing_is_dropped_in_time_and_who_leaves_at_once(
    tmp_path: Path, service_ca: DevelopmentCA
) -> None:
    async with (
        a_tls_service(service_ca) as service,
        edge(tmp_path, service, service_ca, tls_handshake_s=0.5, sweep_s=0.1) as (port, stands),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")  # the beginning of a record, and no more
        with pytest.raises(ConnectionResetError):  # what it said was never read
            await within(reader.read())
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03")
        writer.close()
        (front,) = (front for front in stands.node.fronts if front.scheme == b"https")
        await until(lambda: front._unsorted == 0, 10.0)  # type: ignore[attr-defined]
        assert front.addresses._counts == {}


async def test_the_service_gets_every_byte_of_the_client_hello(tmp_path: Path, service_ca: DevelopmentCA) -> None:
    async with local_service(echo) as service, edge(tmp_path, service, service_ca) as (port, _):
        outgoing = ssl.MemoryBIO()
        tls = client(service_ca).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=f"one.{DB}")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(hello)
            reader, writer = await asyncio.open_connection(sock=sock.dup())
            assert await within(reader.readexactly(len(hello))) == hello
            writer.close()
