"""The bad network between real sockets: every kind of it, for datagrams and for byte streams, and the same again for the same seed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from support.impairment import GOOD, Impairment
from support.impairment.packet_path import packet_path, what_is_missing_for_packets
from support.impairment.tcp_path import TcpPath, tcp_path
from support.impairment.udp_path import UdpPath, udp_path
from support.requirements import missing
from support.waiting import eventually


class Ear(asyncio.DatagramProtocol):
    """Hears datagrams, in the order in which they come, and when."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.at: list[float] = []

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.heard.append(data)
        self.at.append(asyncio.get_running_loop().time())


@contextlib.asynccontextmanager
async def datagrams(
    weather: Impairment, seed: int = 1
) -> AsyncIterator[tuple[UdpPath, Ear, asyncio.DatagramTransport]]:
    """A path to an ear, and a socket to speak into it."""
    loop = asyncio.get_running_loop()
    target, ear = await loop.create_datagram_endpoint(Ear, local_addr=("127.0.0.1", 0))
    async with udp_path(target.get_extra_info("sockname")[1], weather, seed=seed) as path:
        mouth, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", path.port))
        try:
            yield path, ear, mouth
        finally:
            mouth.close()
            target.close()


async def say(path: UdpPath, mouth: asyncio.DatagramTransport, count: int) -> None:
    """Numbers, one at a time, so that none is lost to anything but the path."""
    for number in range(count):
        before = path.up.carried + path.up.lost
        mouth.sendto(b"%d" % number)
        await eventually(lambda before=before: path.up.carried + path.up.lost > before)  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.waiting.INTERVAL_S", 0.001)


async def test_datagrams_that_are_lost_are_the_same_for_the_same_seed() -> None:
    heard: list[list[bytes]] = []
    for seed in (3, 3, 4):
        async with datagrams(Impairment(loss=0.3), seed) as (path, ear, mouth):
            await say(path, mouth, 60)
            await eventually(lambda path=path, ear=ear: len(ear.heard) == path.up.carried)  # type: ignore[misc]
            heard.append(ear.heard)
    assert heard[0] == heard[1] != heard[2]
    assert 20 < len(heard[0]) < 60


async def test_datagrams_overtake_and_are_late() -> None:
    async with datagrams(Impairment(delay_s=0.3, reorder=0.2)) as (path, ear, mouth):
        began = asyncio.get_running_loop().time()
        await say(path, mouth, 40)
        await eventually(lambda: len(ear.heard) == 40)
        numbers = [int(one) for one in ear.heard]
        assert sorted(numbers) == list(range(40))
        assert any(other < one for one, other in itertools.pairwise(numbers))
        assert sum(at - began >= 0.3 for at in ear.at) >= 20


async def test_datagrams_that_are_too_large_or_too_many_are_lost() -> None:
    async with datagrams(Impairment(mtu_bytes=1232)) as (path, ear, mouth):
        mouth.sendto(bytes(1233))
        await eventually(lambda: path.up.too_large == 1)
        mouth.sendto(bytes(1232))
        await eventually(lambda: [len(one) for one in ear.heard] == [1232])
        path.set(Impairment(rate_bytes_s=5000, queue_bytes=3000))
        began = asyncio.get_running_loop().time()
        for _ in range(10):
            mouth.sendto(bytes(1000))
        await eventually(lambda: path.up.carried + path.up.overflowed == 11)
        assert path.up.overflowed >= 1
        await eventually(lambda: len(ear.heard) == path.up.carried)
        assert ear.at[-1] - began >= 0.2 * (path.up.carried - 1) - 0.01, "no faster than the rate"


@contextlib.asynccontextmanager
async def echo(weather: Impairment = GOOD) -> AsyncIterator[TcpPath]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with tcp_path(server.sockets[0].getsockname()[1], weather) as path:
        yield path
    server.close()


class Caller:
    """A connection through the path."""

    @classmethod
    async def to(cls, path: TcpPath) -> Caller:
        made = cls()
        made.reader, made.writer = await asyncio.open_connection("127.0.0.1", path.port)
        return made

    async def hears(self, data: bytes, within_s: float = 20.0) -> float:
        """Says something and waits until it is back; the seconds it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.writer.write(data)
        async with asyncio.timeout(within_s):
            assert await self.reader.readexactly(len(data)) == data
        return loop.time() - began

    async def hears_nothing(self, data: bytes) -> None:
        with pytest.raises(TimeoutError):
            await self.hears(data, 0.2)


async def test_a_byte_stream_is_late_and_no_faster_than_the_rate() -> None:
    async with echo(Impairment(delay_s=0.1)) as path:
        caller = await Caller.to(path)
        assert await caller.hears(b"x") >= 0.2
        path.set(Impairment(rate_bytes_s=1_000_000))
        assert await caller.hears(bytes(200_000)) >= 0.2
        caller.writer.close()


async def test_one_connection_stalls_and_the_others_go_on() -> None:
    async with echo() as path:
        first, second = await Caller.to(path), await Caller.to(path)
        for caller in (first, second):
            await caller.hears(b"x")
        path.stall(0)
        await first.hears_nothing(b"y")
        await second.hears(b"y")
        path.rebind()
        await second.hears_nothing(b"z")
        third = await Caller.to(path)
        await third.hears(b"z")
        path.stall(2, up=False)  # its answers are lost
        await third.hears_nothing(b"!")
        for caller in (first, second, third):
            caller.writer.close()


def test_packets_that_are_too_large_for_the_path_are_lost_and_the_kernel_says_so_of_its_own() -> None:
    reason = what_is_missing_for_packets()
    if reason:
        missing(reason)
    send = (
        "import socket\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
        "s.setsockopt(socket.IPPROTO_IP,10,2)\n"  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: no fragments
        "for size in (1300-28,1300-27):\n"
        "  s.sendto(bytes(size),('10.77.0.1',9))\n"
        "try:\n"
        "  s.sendto(bytes(1400-27),('10.77.0.1',9));print('sent')\n"
        "except OSError as error:print(error.errno)\n"
    )
    with packet_path(Impairment(mtu_bytes=1300), mtu_bytes=1400) as path:
        said = subprocess.run(
            [*path.far.enter, sys.executable, "-c", send], check=True, capture_output=True, text=True, timeout=40
        ).stdout
        assert said.strip() == "90"  # EMSGSIZE
        counts = path.counts()["up"]
        assert counts["too_large"] == 1
        assert counts["carried"] >= 1
