"""A QUIC service behind a UDP tunnel: handshakes, streams and bulk of a real client, over each kind of session."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration

from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import StreamRule
from support.streams import free_port, stream_snapshot
from support.whole import IN_PROCESS, whole


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = await reader.read()
    writer.write(data)
    writer.write_eof()


def _take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    task = asyncio.get_running_loop().create_task(_echo(reader, writer))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Task[None]] = set()


@pytest.mark.parametrize("engine", ["tls", "qh3", IN_PROCESS])
async def test_a_quic_service_answers_through_the_tunnel(engine: str, tmp_path: Path) -> None:
    ca = DevelopmentCA(tmp_path / "service-ca")
    identity = ca.identity(["localhost"])
    (tmp_path / "cert.pem").write_bytes(identity.cert_pem)
    (tmp_path / "key.pem").write_bytes(identity.key_pem)
    own = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    own.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    inner = free_port(socket.SOCK_DGRAM)
    service = await serve("127.0.0.1", inner, configuration=own, stream_handler=_take)
    try:
        port = free_port(socket.SOCK_DGRAM)
        obey = stream_snapshot(f"udp://127.0.0.1:{inner}", StreamRule("udp", port))
        async with whole(tmp_path, engine, obey, sessions=1) as stands:
            await stands.node.listen_streams("127.0.0.1")
            mine = QuicConfiguration(is_client=True, alpn_protocols=["echo"], verify_mode=ssl.CERT_REQUIRED)
            mine.load_verify_locations(cadata=ca.ca_pem)
            mine.server_name = "localhost"
            async with asyncio.timeout(40), connect("127.0.0.1", port, configuration=mine) as client:
                for size in (10, 200_000):
                    reader, writer = await client.create_stream()
                    data = bytes(range(256)) * (size // 256 + 1)
                    writer.write(data)
                    writer.write_eof()
                    assert await reader.read() == data
            counters = stands.node.streams.plans.plans["team/shop"].state.counters
            assert counters.datagrams_in > 100
            assert counters.datagrams_too_large == 0
    finally:
        service.close()
        for task in tuple(_tasks):
            task.cancel()
