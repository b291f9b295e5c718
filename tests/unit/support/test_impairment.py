"""The bad network of the tests does what it says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from support.impairment import Impairment, Wire
from support.impairment.packet_path import packet_path, what_is_missing_for_packets
from support.impairment.tcp_path import tcp_path
from support.impairment.udp_path import udp_path
from support.requirements import missing
from support.waiting import eventually, wait_for


def arrivals(wire: Wire, count: int = 1000, *, size: int = 1000, every_s: float = 0.001) -> list[float | None]:
    return [wire.carry(size, number * every_s) for number in range(count)]


def test_the_same_seed_loses_the_same_packets_and_about_as_many_as_it_should() -> None:
    first, again, other = (arrivals(Wire(Impairment(loss=0.1), seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert 60 < first.count(None) < 140


def test_a_delay_holds_every_packet_and_jitter_keeps_their_order() -> None:
    times = arrivals(Wire(Impairment(delay_s=0.05, jitter_s=0.01)))
    assert all(at is not None and 0.05 <= at - number * 0.001 < 0.0601 for number, at in enumerate(times))
    assert times == sorted(times)  # type: ignore[type-var]


def test_reordered_packets_overtake() -> None:
    times = [at for at in arrivals(Wire(Impairment(delay_s=0.05, reorder=0.1))) if at is not None]
    assert 50 < sum(later < earlier for earlier, later in itertools.pairwise(times)) < 150


def test_a_rate_spaces_packets_and_its_queue_is_bounded() -> None:
    wire = Wire(Impairment(rate_bytes_s=100_000, queue_bytes=10_000))
    times = [wire.carry(1000, 0.0) for _ in range(20)]
    kept = [at for at in times if at is not None]
    assert kept == pytest.approx([0.01 * (number + 1) for number in range(11)])
    assert wire.overflowed == 9


def test_what_is_too_large_and_what_meets_a_black_hole_is_counted() -> None:
    wire = Wire(Impairment(mtu_bytes=1280))
    assert wire.carry(1280, 0.0) == 0.0
    assert wire.carry(1281, 0.0) is None
    wire.impairment = Impairment(is_black_hole=True)
    assert wire.carry(1, 0.0) is None
    assert (wire.carried, wire.too_large, wire.lost) == (1, 1, 1)


class EchoUdp(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.peers: list[object] = []

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr) -> None:
        self.peers.append(addr)
        self.transport.sendto(data, addr)


class Client(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[bytes] = []

    def datagram_received(self, data: bytes, addr) -> None:
        self.got.append(data)


async def test_a_udp_path_carries_holds_up_and_rebinds() -> None:
    loop = asyncio.get_running_loop()
    server, echo = await loop.create_datagram_endpoint(EchoUdp, local_addr=("127.0.0.1", 0))
    async with udp_path(server.get_extra_info("sockname")[1]) as path:
        client, told = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", path.port))
        try:
            client.sendto(b"one")
            await eventually(lambda: told.got == [b"one"])
            await path.rebind()
            client.sendto(b"two")
            await eventually(lambda: told.got == [b"one", b"two"])
            assert echo.peers[0] != echo.peers[1]
            path.set(Impairment(is_black_hole=True))
            client.sendto(b"lost")
            await eventually(lambda: path.up.lost == 1)
            path.set(Impairment(delay_s=0.02))
            client.sendto(b"late")
            await eventually(lambda: told.got == [b"one", b"two", b"late"])
        finally:
            client.close()
            server.close()


@contextlib.asynccontextmanager
async def echo_tcp() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_tcp_path_holds_bytes_in_a_black_hole_and_lets_them_go_on() -> None:
    async with echo_tcp() as port, tcp_path(port) as path:
        reader, writer = await asyncio.open_connection("127.0.0.1", path.port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        path.set(Impairment(is_black_hole=True))
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.readexactly(3)
        path.set(Impairment())
        assert await reader.readexactly(3) == b"two"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_a_tcp_path_resets_and_refuses() -> None:
    async with echo_tcp() as port, tcp_path(port) as path:
        reader, writer = await asyncio.open_connection("127.0.0.1", path.port)
        writer.write(b"one")
        await reader.readexactly(3)
        path.reset_all()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        path.is_refusing = True
        reader, writer = await asyncio.open_connection("127.0.0.1", path.port)
        assert await reader.read() == b""
        writer.close()


def test_a_packet_path_shows_loss_and_delay_to_the_kernel_itself() -> None:
    reason = what_is_missing_for_packets()
    if reason:
        missing(reason)
    send = (
        "import socket,time\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(5)\n"
        "for n in range(200):s.sendto(b'%d'%n,('10.77.0.1',9))\n"
        "c=socket.create_connection(('10.77.0.1',7000),10);t=time.monotonic();c.sendall(b'x');assert c.recv(1)==b'x'\n"
        "assert time.monotonic()-t>=0.02\n"
    )
    serve = (
        "import socket\n"
        "s=socket.create_server(('10.77.0.1',7000));print('ready',flush=True)\n"
        "c,_=s.accept();c.settimeout(20);c.sendall(c.recv(1))\n"
    )
    with packet_path(Impairment(loss=0.05, delay_s=0.01)) as path:
        server = subprocess.Popen([*path.near.enter, sys.executable, "-c", serve], stdout=subprocess.PIPE)
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"ready\n"
            subprocess.run([*path.far.enter, sys.executable, "-c", send], check=True, timeout=40)
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
        counts = path.counts()
        assert counts["up"]["carried"] + counts["up"]["lost"] >= 200
        assert counts["up"]["lost"] > 0
    gone = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    wait_for(lambda: path.near.namespace not in gone and path.far.namespace not in gone)
