"""What a visitor of a UDP tunnel and the service behind it may rely on, whatever carries the session."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from edgetun_core.proxy_protocol import Endpoints, read_proxy_header
from edgetun_core.snapshot import StreamRule
from support.streams import free_port, stream_snapshot
from support.visitors import until
from support.whole import IN_PROCESS, TUNNEL, Whole, whole

ENGINES = ["tls", "qh3", "aioquic", IN_PROCESS]
LARGEST = 65_507

Answer = Callable[[bytes], list[bytes]]


class UdpService(asyncio.DatagramProtocol):
    """A local service that answers each datagram by a function; keeps what came, and from where."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.got: list[bytes] = []
        self.sources: set[tuple[str, int]] = set()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.append(data)
        self.sources.add(addr[:2])
        for answer in self.answer(data):
            self.transport.sendto(answer, addr)


class Visitor(asyncio.DatagramProtocol):
    """One UDP socket of a visitor."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        pass

    @property
    def port(self) -> int:
        return int(self.transport.get_extra_info("sockname")[1])

    def say(self, data: bytes) -> None:
        self.transport.sendto(data)

    async def hear(self) -> bytes:
        return await asyncio.wait_for(self.got.get(), 15)

    async def ask(self, data: bytes, try_s: float = 3.0) -> bytes:
        """Says it until there is an answer, as who speaks UDP does."""
        for _ in range(30):
            while not self.got.empty():  # an answer to an earlier try
                self.got.get_nowait()
            self.say(data)
            try:
                return await asyncio.wait_for(self.got.get(), try_s)
            except TimeoutError:
                continue
        raise AssertionError(f"no answer to {data[:50]!r}")


class Tunnel:
    def __init__(self, port: int, stands: Whole, service: UdpService) -> None:
        self.port = port
        self.stands = stands
        self.service = service
        self._visitors: list[Visitor] = []

    async def visitor(self) -> Visitor:
        loop = asyncio.get_running_loop()
        _, visitor = await loop.create_datagram_endpoint(Visitor, remote_addr=("127.0.0.1", self.port))
        self._visitors.append(visitor)
        return visitor

    def close(self) -> None:
        for visitor in self._visitors:
            visitor.transport.close()

    @property
    def counters(self) -> Any:
        return self.stands.node.streams.plans.plans[TUNNEL].state.counters

    @property
    def flows(self) -> int:
        return self.stands.node.streams.plans.plans[TUNNEL].state.open

    def ways(self) -> dict[str, int]:
        """How datagrams went from the exit node to agents."""
        found = [runner.datagrams for runner in self.stands.node.acceptor.runners]
        names = ("by_datagram", "in_halves", "by_lane", "dropped", "late")
        return {name: sum(getattr(one, name) for one in found if one is not None) for name in names}


class Open(Protocol):
    def __call__(self, answer: Answer, **more: Any) -> AbstractAsyncContextManager[Tunnel]: ...


def opener(folder: Path, engine: str) -> Open:
    @asynccontextmanager
    async def open_tunnel(
        answer: Answer, proxy_protocol: str = "", host: str = "127.0.0.1", url_host: str = "127.0.0.1", **stream: Any
    ) -> AsyncIterator[Tunnel]:
        loop = asyncio.get_running_loop()
        transport, service = await loop.create_datagram_endpoint(lambda: UdpService(answer), local_addr=(host, 0))
        port = free_port(socket.SOCK_DGRAM)
        url = f"udp://{url_host}:{transport.get_extra_info('sockname')[1]}"
        obey = stream_snapshot(url, StreamRule("udp", port, **stream), proxy_protocol=proxy_protocol)
        async with whole(folder, engine, obey, sessions=1) as stands:
            assert not await stands.node.listen_streams("127.0.0.1")
            tunnel = Tunnel(port, stands, service)
            yield tunnel
            tunnel.close()
        transport.close()

    return open_tunnel


@pytest.fixture(params=ENGINES)
def tunnel(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return opener(tmp_path, request.param)


@pytest.fixture
def local(tmp_path: Path) -> Open:
    return opener(tmp_path, IN_PROCESS)


def echo(data: bytes) -> list[bytes]:
    return [b"re: " + data]


async def test_datagrams_go_both_ways_and_find_their_visitor(tunnel: Open) -> None:
    async with tunnel(echo) as stands:
        first, second = await stands.visitor(), await stands.visitor()
        assert await first.ask(b"one") == b"re: one"
        assert await second.ask(b"two") == b"re: two"
        for number in range(50):
            assert await first.ask(b"%d" % number) == b"re: %d" % number
        assert len(stands.service.sources) == 2  # a socket per flow, so that answers find their visitor
        assert stands.flows == 2
        assert first.got.empty()
        assert second.got.empty()


async def test_datagrams_of_every_size_arrive_whole_or_are_told(tunnel: Open) -> None:
    async with tunnel(lambda data: [data]) as stands:
        visitor = await stands.visitor()
        for size in (1, 500, 1144, 1145, 1146, 1200, 1400, 2286, 2287, 2400, 9000, LARGEST):
            data = bytes([size & 0xFF]) * size
            assert await visitor.ask(data) == data, size
        ways = stands.ways()
        if ways["by_datagram"]:  # QUIC: small ones beside the lanes, middling ones in halves, the rest on a lane
            assert ways["in_halves"] > 0
            assert ways["by_lane"] > 0
        assert stands.counters.datagrams_too_large == 0


async def test_a_datagram_larger_than_the_tunnel_takes_is_counted_and_not_sent(local: Open) -> None:
    async with local(lambda data: [b"x" * 600, b"y" * 10], max_datagram_bytes=512) as stands:
        visitor = await stands.visitor()
        visitor.say(b"z" * 513)
        assert await visitor.ask(b"small") == b"y" * 10
        assert stands.service.got == [b"small"] * len(stands.service.got)
        assert stands.counters.datagrams_too_large >= 2


async def test_the_service_learns_who_the_visitor_is_in_every_datagram(tunnel: Open) -> None:
    async with tunnel(lambda data: [b"ok"], proxy_protocol="v2") as stands:
        visitor = await stands.visitor()
        for _ in range(2):
            assert await visitor.ask(b"hello") == b"ok"
        for data in stands.service.got:
            header = read_proxy_header(data)
            assert header is not None
            assert header.endpoints == Endpoints("127.0.0.1", visitor.port, "127.0.0.1", stands.port)
            assert data[13] == 0x12  # a datagram over IPv4
            assert data[header.size_bytes :] == b"hello"


async def test_a_flow_that_is_silent_is_forgotten_and_begins_anew(tunnel: Open) -> None:
    async with tunnel(echo, idle_timeout_s=0.6) as stands:
        visitor = await stands.visitor()
        assert await visitor.ask(b"a") == b"re: a"
        await until(lambda: stands.flows == 0, 10.0)
        await until(lambda: stands.stands.origins.in_flight == 0, 10.0)
        assert stands.counters.idle == 1
        assert await visitor.ask(b"b") == b"re: b"
        assert len(stands.service.sources) == 2


async def test_datagrams_of_who_is_not_let_in_reach_nobody(local: Open) -> None:
    async with local(echo, deny_from=("127.0.0.1/32",)) as stands:
        visitor = await stands.visitor()
        visitor.say(b"hello")
        await until(lambda: stands.counters.refused >= 1, 10.0)
        assert stands.flows == 0
        assert stands.service.got == []


async def test_more_flows_than_the_tunnel_takes_are_dropped_and_the_others_go_on(local: Open) -> None:
    async with local(echo, max_connections=2) as stands:
        kept = [await stands.visitor() for _ in range(2)]
        for visitor in kept:
            assert await visitor.ask(b"a") == b"re: a"
        one_more = await stands.visitor()
        one_more.say(b"b")
        await until(lambda: stands.counters.refused == 1, 10.0)
        assert await kept[0].ask(b"c") == b"re: c"
        assert one_more.got.empty()
        assert stands.counters.dropped == 1


async def test_localhost_is_both_its_addresses(local: Open) -> None:
    async with local(echo, host="::1", url_host="localhost") as stands:
        visitor = await stands.visitor()
        assert await visitor.ask(b"a", 0.5) == b"re: a"
        (client,) = stands.stands.origins.clients
        assert client.health.state.value == "up"


async def test_a_service_that_is_not_there_shows_and_is_found_when_it_comes(local: Open) -> None:
    port = free_port(socket.SOCK_DGRAM)
    loop = asyncio.get_running_loop()
    async with local(echo) as stands:
        rule = StreamRule("udp", stands.port)
        stands.stands.node.apply(stream_snapshot(f"udp://127.0.0.1:{port}", rule, version=2))
        stands.stands.origins.update(stream_snapshot(f"udp://127.0.0.1:{port}", rule, version=2).tunnels)
        visitor = await stands.visitor()
        visitor.say(b"a")
        (client,) = stands.stands.origins.clients
        await until(lambda: client.health.state.value == "down", 10.0)
        transport, _ = await loop.create_datagram_endpoint(lambda: UdpService(echo), local_addr=("127.0.0.1", port))
        assert await visitor.ask(b"b") == b"re: b"
        assert client.health.state.value == "up"
        transport.close()


async def test_a_session_that_is_lost_loses_its_flows_and_the_next_datagram_begins_another(tmp_path: Path) -> None:
    async with opener(tmp_path, "qh3")(echo) as stands:
        visitor = await stands.visitor()
        assert await visitor.ask(b"a") == b"re: a"
        for runner in stands.stands.node.acceptor.runners:
            assert runner.link is not None
            runner.link.abort()
        await until(lambda: stands.flows == 0, 10.0)
        assert await visitor.ask(b"b") == b"re: b"


async def test_a_flood_is_bounded_and_counted_and_others_are_served(tunnel: Open) -> None:
    async with tunnel(lambda data: [data] if data == b"other" else []) as stands:
        flood, other = await stands.visitor(), await stands.visitor()
        assert await other.ask(b"other") == b"other"
        sent = 4000
        for number in range(sent):
            flood.say(b"x" * 1000)
            if number % 200 == 0:
                await asyncio.sleep(0)
        assert await other.ask(b"other", 0.5) == b"other"
        await until(lambda: stands.counters.datagrams_in > 100, 10.0)
        arrived = sum(data == b"x" * 1000 for data in stands.service.got)
        assert 0 < arrived <= sent


async def test_a_drain_does_not_wait_for_flows_and_they_go_on_over_another_session(tmp_path: Path) -> None:
    async with opener(tmp_path, "tls")(echo) as stands:
        visitor = await stands.visitor()
        assert await visitor.ask(b"a") == b"re: a"
        assert stands.stands.agent is not None
        old = stands.stands.node.acceptor.runners[0]
        old.drain(30.0, "a test drains it")
        await until(lambda: old not in stands.stands.node.acceptor.runners, 10.0)
        assert await visitor.ask(b"b") == b"re: b"
