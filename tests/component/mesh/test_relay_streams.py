"""TCP and UDP tunnels at exit nodes that hold no session of theirs: connections and flows are relayed like any other exchange."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from edgetun_core.snapshot import LimitRule, StreamRule
from edgetun_exitnode.front import ports
from support.mesh import ADDRESS, MeshNode, meshed
from support.streams import echo, free_port, local_service, reset_by, stream_snapshot, within
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


SECOND_ADDRESS = "127.0.0.2"
SLOW = LimitRule(requests_per_second=0.01, burst=8)
"""Nothing that matters comes back within a test."""


async def heard(node: MeshNode) -> None:
    """What this node gave was told to who keeps the account, and what is left was heard."""
    sharing = node.mesh.sharing
    await eventually(
        lambda: not any(rate.untold for rate in node.node.rates.values()) and not sharing._under_way,
        what="the fleet's account is heard",
    )


async def is_taken(address: str, port: int) -> bool:
    """Whether a connection is served, and not reset."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"hello")
        return bool(await within(reader.readexactly(5)))
    except (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.transport.abort()


async def test_a_rate_of_connections_holds_for_all_exit_nodes_together(tmp_path: Path) -> None:
    async with local_service(echo) as service:
        port = free_port()
        obey = stream_snapshot(service.url, StreamRule("tcp", port, limits=SLOW))
        async with meshed(tmp_path, obey, 2) as scene:
            first, second = scene.nodes
            await first.node.listen_streams(ADDRESS)
            await second.node.listen_streams(SECOND_ADDRESS)
            await scene.agent(first)
            await eventually(lambda: second.holders() == [first.name], what="the holder is known")
            assert [await is_taken(ADDRESS, port) for _ in range(SLOW.burst)] == [True] * SLOW.burst
            assert not await is_taken(ADDRESS, port)
            await heard(first)
            # The first at the other node may be given before it has heard of the others; by itself it would give eight.
            await is_taken(SECOND_ADDRESS, port)
            await heard(second)
            assert not await is_taken(SECOND_ADDRESS, port)
            assert second.node.streams.plans.plans["team/shop"].state.counters.refused


async def test_a_rate_of_flows_holds_for_all_exit_nodes_together(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    service, _ = await loop.create_datagram_endpoint(_Echo, local_addr=(ADDRESS, 0))
    port = free_port(socket.SOCK_DGRAM)
    obey = stream_snapshot(
        f"udp://{ADDRESS}:{service.get_extra_info('sockname')[1]}", StreamRule("udp", port, limits=SLOW)
    )
    async with meshed(tmp_path, obey, 2) as scene:
        first, second = scene.nodes
        await first.node.listen_streams(ADDRESS)
        await second.node.listen_streams(SECOND_ADDRESS)
        await scene.agent(first)
        await eventually(lambda: second.holders() == [first.name], what="the holder is known")

        async def new_flow(node: MeshNode, address: str) -> bool:
            """Sends from a port of its own until the node has counted it; whether it was let in."""
            counters = node.node.streams.plans.plans["team/shop"].state.counters
            before = counters.connections, counters.refused
            transport, _ = await loop.create_datagram_endpoint(_Visitor, remote_addr=(address, port))
            transport.sendto(b"x")
            await eventually(lambda: (counters.connections, counters.refused) != before, what="the datagram came")
            transport.close()
            return counters.connections > before[0]

        assert [await new_flow(first, ADDRESS) for _ in range(SLOW.burst + 1)] == [True] * SLOW.burst + [False]
        await heard(first)
        await new_flow(second, SECOND_ADDRESS)
        await heard(second)
        assert not await new_flow(second, SECOND_ADDRESS)
    service.close()


async def test_the_rate_of_a_tunnel_that_turns_to_another_kind_is_forgotten(tmp_path: Path) -> None:
    port = free_port()
    obey = stream_snapshot(f"tcp://{ADDRESS}:9", StreamRule("tcp", port, limits=SLOW))
    async with meshed(tmp_path, obey, 1) as scene:
        (node,) = scene.nodes
        assert list(node.node.rates) == ["team/shop stream tcp"]
        await scene.publish(stream_snapshot(f"udp://{ADDRESS}:9", StreamRule("udp", port, limits=SLOW)))
        assert list(node.node.rates) == ["team/shop stream udp"]
        await scene.publish(stream_snapshot(f"udp://{ADDRESS}:9", StreamRule("udp", port)))
        assert not node.node.rates


async def test_control_hears_which_port_a_node_cannot_have_and_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "TRY_AGAIN_S", 0.2)
    with socket.socket() as other:
        other.bind((ADDRESS, 0))
        other.listen()
        busy = other.getsockname()[1]
        obey = stream_snapshot(f"tcp://{ADDRESS}:9", StreamRule("tcp", busy))
        async with meshed(tmp_path, obey, 2) as scene:
            first, second = scene.nodes
            await first.node.listen_streams(ADDRESS)
            await second.node.listen_streams(SECOND_ADDRESS)

            def told() -> dict[str, dict[str, str]]:
                return {str(node.name): node.ports for node in scene.control.fleet}

            await eventually(lambda: bool(told()[first.name]), what="control hears of it")
            assert list(told()[first.name]) == ["team/shop"]
            assert f"TCP port {busy}" in told()[first.name]["team/shop"]
            assert "is taken by another program" in told()[first.name]["team/shop"]
            assert told()[second.name] == {}
            other.close()
            await eventually(lambda: told()[first.name] == {}, what="control hears that it is free")
            assert first.node.streams.ports == [("tcp", busy)]
