"""What a visitor of a TCP tunnel and the service behind it may rely on, whatever carries the session."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from edgetun_agent.serve import Origins
from edgetun_core.errors import ProtocolError
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.http.stream import TCP, build_stream_head
from edgetun_core.proxy_protocol import Endpoints, read_proxy_header, render_proxy_v2
from edgetun_core.snapshot import LimitRule, OriginRule, PoolRule, StreamRule, TunnelRule
from support.exchanges import Recorder
from support.streams import Serve, Service, echo, free_port, local_service, reset_by, stream_snapshot, within
from support.visitors import until
from support.whole import IN_PROCESS, Whole, whole

ENGINES = ["tls", "qh3", IN_PROCESS]


class Open(Protocol):
    def __call__(self, serve: Serve, **more: Any) -> AbstractAsyncContextManager[tuple[int, Whole, Service]]: ...


def opener(folder: Path, engine: str) -> Open:
    @asynccontextmanager
    async def open_tunnel(
        serve: Serve, proxy_protocol: str = "", pool: PoolRule | None = None, grace_s: float = 2.0, **stream: Any
    ) -> AsyncIterator[tuple[int, Whole, Service]]:
        port = free_port()
        async with local_service(serve) as service:
            rule = StreamRule("tcp", port, **stream)
            obey = stream_snapshot(service.url, rule, proxy_protocol=proxy_protocol, pool=pool, grace_s=grace_s)
            async with whole(folder, engine, obey) as stands:
                assert not await stands.node.listen_streams("127.0.0.1")
                yield port, stands, service

    return open_tunnel


@pytest.fixture(params=ENGINES)
def tunnel(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens a TCP tunnel over one engine to a service that follows a script."""
    return opener(tmp_path, request.param)


@pytest.fixture
def local(tmp_path: Path) -> Open:
    """The same where it does not matter what carries the session."""
    return opener(tmp_path, IN_PROCESS)


async def visitor(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def test_bytes_go_both_ways_and_each_side_ends_on_its_own(tunnel: Open) -> None:
    ended_first = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\n")  # a service that speaks first
        assert await reader.read() == b"all of it"  # returns at the visitor's end
        ended_first.set()
        writer.write(b"and an answer after it")
        writer.write_eof()

    async with tunnel(serve) as (port, stands, _):
        reader, writer = await visitor(port)
        assert await within(reader.readline()) == b"220 ready\n"
        writer.write(b"all of it")
        writer.write_eof()
        assert await within(reader.read()) == b"and an answer after it"
        assert ended_first.is_set()
        writer.close()
        await until(lambda: not stands.node.streams.connections, 10.0)
        await until(lambda: stands.origins.in_flight == 0, 10.0)
        plan = stands.node.streams.plans.plans["team/shop"]
        assert plan.state.open == 0
        assert (plan.state.counters.bytes_in, plan.state.counters.bytes_out) == (9, 32)


async def test_a_service_that_ends_first_is_still_sent_to(tunnel: Open) -> None:
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        got.append(await reader.read())

    async with tunnel(serve) as (port, _, _service):
        reader, writer = await visitor(port)
        assert await within(reader.read()) == b"bye"
        writer.write(b"late words")
        writer.write_eof()
        await until(lambda: got == [b"late words"], 10.0)
        writer.close()


async def test_a_visitors_reset_is_a_reset_at_the_service(tunnel: Open) -> None:
    outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        try:
            outcome.set_result(await reader.read())
        except ConnectionResetError as error:
            outcome.set_result(error)

    async with tunnel(serve) as (port, stands, _):
        reader, writer = await visitor(port)
        assert await within(reader.readexactly(5)) == b"hello"
        reset_by(writer)
        assert isinstance(await within(outcome), ConnectionResetError)
        await until(lambda: stands.origins.in_flight == 0, 10.0)
        assert stands.node.streams.plans.plans["team/shop"].state.counters.reset_by_visitor == 1


async def test_a_services_reset_is_a_reset_at_the_visitor(tunnel: Open) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        reset_by(writer)

    async with tunnel(serve) as (port, _, _service):
        reader, writer = await visitor(port)
        writer.write(b"die")
        with pytest.raises(ConnectionResetError):
            await within(reader.read())


async def test_a_service_that_resets_after_its_end_is_no_silence(tunnel: Open) -> None:
    """One direction is over, and the other one breaks: the visitor hears of it instead of sending into nowhere."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        await reader.readexactly(4)
        reset_by(writer)

    async with tunnel(serve) as (port, stands, _):
        reader, writer = await visitor(port)
        assert await within(reader.read()) == b"bye"
        for _ in range(200):  # a connection that both ends have ended is noticed to be gone when it is written to
            if not stands.node.streams.connections:
                break
            writer.write(b"more")
            await asyncio.sleep(0.05)
        assert not stands.node.streams.connections
        assert stands.node.streams.plans.plans["team/shop"].state.counters.reset_by_origin == 1
        writer.close()


async def test_a_hundred_megabytes_arrive_whole_and_a_slow_reader_holds_little(tunnel: Open) -> None:
    size = 100 * 1024 * 1024
    piece = bytes(range(256)) * 256

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(size // len(piece)):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
        await reader.read()

    async with tunnel(serve) as (port, stands, _):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port))
        counters = stands.node.streams.plans.plans["team/shop"].state.counters
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        async def has_stalled() -> bool:
            seen = counters.bytes_out
            await asyncio.sleep(0.3)
            return 0 < seen == counters.bytes_out

        for _ in range(50):
            if await has_stalled():
                break
        else:
            pytest.fail("the service was never paused")
        assert counters.bytes_out < 24 * 1024 * 1024  # socket buffers, write buffer and credit, and not the 100 MB
        digest, read = hashlib.sha256(), 0
        while data := await asyncio.wait_for(loop.sock_recv(sock, 1 << 20), 30):
            digest.update(data)
            read += len(data)
        sock.close()
        assert read == size
        assert digest.digest() == hashlib.sha256(piece * (size // len(piece))).digest()
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kb < 64 * 1024 + size // 1024  # the comparison above makes the whole once


async def test_the_service_learns_who_the_visitor_is(tunnel: Open) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"hello"))
        writer.write_eof()

    for version in ("v1", "v2"):
        async with tunnel(serve, proxy_protocol=version) as (port, _, _service):
            reader, writer = await visitor(port)
            mine = writer.get_extra_info("sockname")
            writer.write(b"hello")
            assert await within(reader.read()) == b""
            header = read_proxy_header(heads[-1])
            assert header is not None
            assert header.endpoints == Endpoints("127.0.0.1", mine[1], "127.0.0.1", port)
            assert heads[-1][header.size_bytes :] == b"hello"
            writer.close()
    assert heads[0].startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")


async def test_a_load_balancer_that_is_trusted_says_who_the_visitor_is(local: Open) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readline())
        writer.write(heads[-1])
        writer.write_eof()

    trusting = PoolRule(trusted_proxies=("127.0.0.0/8",))
    async with local(serve, proxy_protocol="v1", pool=trusting) as (port, stands, _):
        reader, writer = await visitor(port)
        header = render_proxy_v2(Endpoints("203.0.113.7", 4711, "198.51.100.1", 5432))
        for at in range(len(header)):  # however it is cut
            writer.write(header[at : at + 1])
            await writer.drain()
        assert await within(reader.readline()) == b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 5432\r\n"
        writer.close()
        # Whoever is trusted must say it; a stranger's first bytes are never taken for the truth.
        reader, writer = await visitor(port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await within(reader.read())
        assert stands.node.streams.wrong_headers == 1
        assert len(heads) == 1


async def test_a_header_of_a_stranger_is_data(local: Open) -> None:
    async with local(echo) as (port, _, _service):
        reader, writer = await visitor(port)
        said = render_proxy_v2(Endpoints("203.0.113.7", 4711, "198.51.100.1", 5432))
        writer.write(said)
        writer.write_eof()
        assert await within(reader.read()) == said
        writer.close()


async def test_a_connection_without_a_byte_for_too_long_is_reset(local: Open) -> None:
    async with local(echo, idle_timeout_s=0.5) as (port, stands, _):
        reader, _writer = await visitor(port)
        with pytest.raises(ConnectionResetError):
            await within(reader.read())
        assert stands.node.streams.plans.plans["team/shop"].state.counters.idle == 1
        await until(lambda: stands.origins.in_flight == 0, 10.0)


async def test_what_still_waits_for_a_visitor_who_has_said_its_last_has_its_time_from_then_on(local: Open) -> None:
    sent = 0
    is_enough = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while not is_enough.is_set():
            writer.write(bytes(16 * 1024))
            sent += 16 * 1024
            await writer.drain()
            await asyncio.sleep(0.001)  # little is under way when it stops
        writer.write_eof()
        await reader.read()

    async with local(serve) as (port, stands, _):
        reader, writer = await visitor(port)
        streams = stands.node.streams
        await until(lambda: bool(streams.connections), 10.0)
        (connection,) = streams.connections
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: connection._transport.get_write_buffer_size() > 0, 10.0)
        is_enough.set()
        await until(lambda: connection._output_done, 10.0)
        assert connection._transport.get_write_buffer_size() > 0
        connection.active -= 2 * streams.limits.write_stall_s  # for that long nobody has said or taken anything
        writer.write_eof()
        await until(lambda: connection._input_done, 10.0)
        connection.check_deadline(streams.now + streams.limits.sweep_s, 10.0)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await within(reader.read())) == sent
        writer.close()


async def test_more_connections_than_the_tunnel_takes_are_reset_and_the_others_go_on(local: Open) -> None:
    async with local(echo, max_connections=2) as (port, stands, _):
        kept = [await visitor(port) for _ in range(2)]
        for reader, writer in kept:
            writer.write(b"a")
            assert await within(reader.readexactly(1)) == b"a"
        reader, writer = await visitor(port)
        with pytest.raises(ConnectionResetError):
            await within(reader.read())
        for reader, writer in kept:
            writer.write(b"b")
            assert await within(reader.readexactly(1)) == b"b"
        kept[0][1].close()
        state = stands.node.streams.plans.plans["team/shop"].state
        await until(lambda: state.open == 1, 10.0)
        reader, writer = await visitor(port)
        writer.write(b"c")
        assert await within(reader.readexactly(1)) == b"c"
        assert state.counters.refused == 1
        writer.close()
        kept[1][1].close()


@pytest.mark.parametrize(
    ("rules", "taken"),
    [
        ({"allow_from": ("127.0.0.0/8",)}, {"127.0.0.1", "127.0.0.2"}),
        ({"allow_from": ("127.0.0.2/32", "2001:db8::/32")}, {"127.0.0.2"}),
        ({"deny_from": ("127.0.0.2/32",)}, {"127.0.0.1"}),
        ({"allow_from": ("127.0.0.0/8",), "deny_from": ("127.0.0.1/32",)}, {"127.0.0.2"}),
    ],
)
async def test_who_is_not_let_in_is_reset_before_the_service_hears_of_it(
    local: Open, rules: dict[str, tuple[str, ...]], taken: set[str]
) -> None:
    async with local(echo, **rules) as (port, stands, service):
        got = set()
        for address in ("127.0.0.1", "127.0.0.2"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            try:
                writer.write(b"hello")
                assert await within(reader.readexactly(5)) == b"hello"
                got.add(address)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            writer.transport.abort()
        assert got == taken
        assert len(service.connections) == len(taken)
        assert stands.node.streams.plans.plans["team/shop"].state.counters.refused == 2 - len(taken)


async def test_it_is_the_visitor_named_by_a_trusted_load_balancer_who_is_let_in_or_not(local: Open) -> None:
    trusting = PoolRule(trusted_proxies=("127.0.0.0/8",))
    async with local(echo, pool=trusting, allow_from=("203.0.113.0/24",)) as (port, _, service):
        for source, is_taken in (("203.0.113.7", True), ("198.51.100.7", False)):
            reader, writer = await visitor(port)
            writer.write(render_proxy_v2(Endpoints(source, 4711, "198.51.100.1", 5432)) + b"hello")
            if is_taken:
                assert await within(reader.readexactly(5)) == b"hello"
            else:
                with pytest.raises(ConnectionResetError):
                    await within(reader.read())
            writer.transport.abort()
        assert len(service.connections) == 1


async def test_an_address_connects_no_more_often_than_it_may(local: Open) -> None:
    async with local(echo, limits=LimitRule(requests_per_second=0.001, burst=2)) as (port, _, _service):
        for _ in range(2):
            reader, writer = await visitor(port)
            writer.write(b"a")
            assert await within(reader.readexactly(1)) == b"a"
            writer.close()
        reader, writer = await visitor(port)
        with pytest.raises(ConnectionResetError):
            await within(reader.read())


async def test_a_service_that_is_not_there_resets_and_a_laptop_that_is_not_either(tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    obey = stream_snapshot(f"tcp://127.0.0.1:{nobody}", StreamRule("tcp", port), grace_s=0.2)
    async with whole(tmp_path, "tls", obey) as stands:
        await stands.node.listen_streams("127.0.0.1")
        reader, _ = await visitor(port)
        with pytest.raises(ConnectionResetError):
            await within(reader.read())
        (client,) = stands.origins.clients
        assert client.health.state.value == "down"
        assert f"nothing answers at tcp://127.0.0.1:{nobody}" in client.health.last_error
        assert stands.agent is not None
        await stands.agent.close()
        await until(lambda: not stands.node.acceptor.runners, 10.0)
        reader, _ = await visitor(port)
        with pytest.raises(ConnectionResetError):
            await within(reader.read())
        assert stands.node.router.table.plans["team/shop"].counters.no_session == 1


async def test_listeners_follow_the_snapshot_and_a_taken_port_keeps_no_other_from_serving(local: Open) -> None:
    async with local(echo) as (port, stands, service):
        taken, free = socket.socket(), free_port()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        node = stands.node

        def obey(wanted: int, version: int) -> None:
            node.apply(stream_snapshot(service.url, StreamRule("tcp", wanted), version=version))

        reader, writer = await visitor(port)
        writer.write(b"a")
        assert await within(reader.readexactly(1)) == b"a"
        obey(free, 2)  # another port: the old one closes, and so do the connections that came over it
        await until(lambda: node.streams.ports == [("tcp", free)] and not node.streams._starting, 10.0)
        with pytest.raises(ConnectionResetError):
            await within(reader.read())
        with pytest.raises(ConnectionRefusedError):
            await visitor(port)
        reader, writer = await visitor(free)
        writer.write(b"b")
        assert await within(reader.readexactly(1)) == b"b"
        writer.close()
        obey(busy, 3)
        assert "is taken by another program" in str(node.streams.problems["tcp", busy])
        taken.close()
        await until(lambda: node.streams.ports == [("tcp", busy)] and not node.streams.problems, 15.0)
        reader, writer = await visitor(busy)
        writer.write(b"c")
        assert await within(reader.readexactly(1)) == b"c"
        writer.close()


async def test_a_drain_lets_connections_end_by_themselves(local: Open) -> None:
    async with local(echo) as (port, stands, _):
        reader, writer = await visitor(port)
        writer.write(b"a")
        assert await within(reader.readexactly(1)) == b"a"
        draining = asyncio.create_task(stands.node.drain(15.0))
        await until(lambda: stands.node.is_draining and not stands.node.streams.ports, 10.0)
        writer.write(b"b")
        assert await within(reader.readexactly(1)) == b"b"
        writer.close()
        await within(draining)


async def test_either_version_refuses_what_it_does_not_carry_in_words(tmp_path: Path) -> None:
    """A service for TCP that is asked for HTTP, as an older exit node would; and one for HTTP that is asked for TCP."""
    stream = stream_snapshot("tcp://127.0.0.1:9", StreamRule("tcp", 1))
    origins = Origins(
        [*stream.tunnels, TunnelRule("team/web", ("w.test",), (OriginRule("o", "http://127.0.0.1:9"),), ())]
    )
    peer = Peer("192.0.2.1", 1, b"http")
    asked = Recorder()
    origins.open(RequestHead(b"GET", b"http", b"w.test", b"/", (), None, "team/shop"), peer, True, asked)
    assert isinstance(asked.error, ProtocolError)
    assert "tunnel team/shop#default carries TCP, and this is GET" in str(asked.error)
    asked = Recorder()
    origins.open(build_stream_head(TCP, "team/web", Endpoints("192.0.2.1", 1, "192.0.2.2", 2)), peer, False, asked)
    assert isinstance(asked.error, ProtocolError)
    assert "an origin cannot be asked to CONNECT" in str(asked.error)
    await origins.close()
