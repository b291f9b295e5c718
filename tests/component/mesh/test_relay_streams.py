"""TCP and UDP tunnels at exit nodes that hold no session of theirs: connections and flows are relayed like any other exchange."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from edgetun_core.snapshot import StreamRule
from support.mesh import ADDRESS, meshed
from support.streams import free_port, local_service, reset_by, stream_snapshot, within
from support.waiting import eventually


async def test_a_connection_at_another_exit_node_keeps_half_close_reset_and_the_visitors_address(
    tmp_path: Path,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.readline()  # the PROXY protocol header
        if (await reader.readline()) == b"die\n":
            reset_by(writer)
            return
        await reader.read()
        writer.write(said)
        writer.write_eof()

    async with local_service(serve) as service:
        port = free_port()
        obey = stream_snapshot(service.url, StreamRule("tcp", port), proxy_protocol="v1")
        async with meshed(tmp_path, obey, 2) as scene:
            here, holder = scene.nodes
            await here.node.listen_streams(ADDRESS)
            await scene.agent(holder)
            await eventually(lambda: here.holders() == [holder.name], what="the holder is known")
            reader, writer = await asyncio.open_connection(ADDRESS, port)
            mine = writer.get_extra_info("sockname")[1]
            writer.write(b"hello\n" + b"x" * 1_000_000)
            writer.write_eof()
            assert await within(reader.read()) == f"PROXY TCP4 {ADDRESS} {ADDRESS} {mine} {port}\r\n".encode()
            writer.close()
            assert here.relayed == 1
            reader, writer = await asyncio.open_connection(ADDRESS, port)
            writer.write(b"die\n")
            with pytest.raises(ConnectionResetError):
                await within(reader.read())
            writer.close()


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)  # type: ignore[attr-defined]


class _Visitor(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.put_nowait(data)


async def test_datagrams_at_another_exit_node_keep_their_borders(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    service, _ = await loop.create_datagram_endpoint(_Echo, local_addr=(ADDRESS, 0))
    port = free_port(socket.SOCK_DGRAM)
    obey = stream_snapshot(f"udp://{ADDRESS}:{service.get_extra_info('sockname')[1]}", StreamRule("udp", port))
    async with meshed(tmp_path, obey, 2) as scene:
        here, holder = scene.nodes
        await here.node.listen_streams(ADDRESS)
        await scene.agent(holder)
        await eventually(lambda: here.holders() == [holder.name], what="the holder is known")
        transport, visitor = await loop.create_datagram_endpoint(_Visitor, remote_addr=(ADDRESS, port))
        for size in (1, 1200, 9000):
            data = bytes([size & 0xFF]) * size
            for _ in range(8):
                transport.sendto(data)
                try:
                    async with asyncio.timeout(3):
                        while await visitor.got.get() != data:
                            pass  # an answer to an earlier try
                    break
                except TimeoutError:
                    continue
            else:
                pytest.fail(f"no answer to {size} bytes")
        assert here.relayed >= 1
        transport.close()
    service.close()
