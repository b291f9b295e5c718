"""What only TLS links promise: connections join safely, and the port is shared with other protocols."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edgetun_core.errors import ProtocolError, SessionLost
from edgetun_core.pki import DevelopmentCA
from edgetun_core.transport import tls, tls_dial, tls_listen
from edgetun_core.transport.link import ALPN
from support.links import Place, Recorder, eventually


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def place(ca: DevelopmentCA) -> AsyncIterator[Place]:
    place = Place("tls", "tls", ca)
    yield place
    await place.leave()


class RawConnection:
    """A TLS connection whose bytes the test chooses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, place: Place, alpn: list[str] | None = None) -> RawConnection:
        context = place.ca.trust.ssl_context([ALPN] if alpn is None else alpn)
        return cls(*await asyncio.open_connection("127.0.0.1", place.listener.port, ssl=context))

    def preamble(self, lane: int, link_id: bytes, token: bytes, *, magic: bytes = tls.MAGIC, version: int = 1) -> None:
        self.writer.write(tls.PREAMBLE.pack(magic, version, lane, link_id, token))

    async def is_dropped(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(), 5) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass


async def test_a_stolen_link_id_lets_nobody_join(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_dial._Dialling, "open_bulk", lambda self, link: None)  # the place is still free
    await place.listen()
    near = await place.dial()
    await eventually(lambda: place.accepted and place.accepted[0].link)
    thief = await RawConnection.open(place)
    thief.preamble(tls.BULK, near.link.link_id, os.urandom(32))
    assert await thief.is_dropped()
    await thief.close()
    impostor = await RawConnection.open(place)
    impostor.preamble(tls.REGULAR, near.link.link_id, near.link.token)
    goodbye = await asyncio.wait_for(impostor.reader.read(), 5)
    assert b"in use" in goodbye
    await impostor.close()
    assert place.accepted[0].link.lanes == 1
    near.link.write(0, b"x")
    await eventually(lambda: near.received.get(0) == b"x")
    owner = await RawConnection.open(place)
    owner.preamble(tls.BULK, near.link.link_id, near.link.token)
    assert await asyncio.wait_for(owner.reader.readexactly(5), 5) == tls.JOINED
    await owner.close()


async def test_a_link_without_a_bulk_lane_works(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_dial._Dialling, "open_bulk", lambda self, link: None)
    await place.listen()
    near = await place.dial()
    near.link.write(0, b"x")
    await eventually(lambda: near.received.get(0) == b"x")
    assert near.link.lanes == near.link.bulk_from == 1


async def test_a_bulk_lane_that_overtakes_its_lane_0_waits_for_it(place: Place) -> None:
    await place.listen()
    link_id, token = os.urandom(16), os.urandom(32)
    bulk = await RawConnection.open(place)
    bulk.preamble(tls.BULK, link_id, token)
    await asyncio.sleep(0.02)
    regular = await RawConnection.open(place)
    regular.preamble(tls.REGULAR, link_id, token)
    assert await asyncio.wait_for(bulk.reader.readexactly(5), 5) == tls.JOINED
    assert place.accepted[0].link.lanes == 2
    await bulk.close()
    await regular.close()
    await eventually(lambda: place.accepted[0].closed)
    assert isinstance(place.accepted[0].error, SessionLost)


async def test_connections_that_say_nothing_are_bounded_and_dropped(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_listen, "MAX_UNJOINED", 3)
    monkeypatch.setattr(tls_listen, "JOIN_TIMEOUT_S", 0.3)
    await place.listen()
    silent = [await RawConnection.open(place) for _ in range(3)]
    silent[0].preamble(tls.BULK, os.urandom(16), os.urandom(32))
    await eventually(lambda: len(place.listener._unjoined) == 3)
    one_more = await RawConnection.open(place)
    assert await one_more.is_dropped()
    assert place.listener.refused == 1
    for connection in silent:
        assert await connection.is_dropped()
    assert not place.listener._unjoined
    assert not place.listener._early_bulk
    for connection in (*silent, one_more):
        await connection.close()
    await place.pair()


async def test_links_that_come_all_at_once_are_let_in_a_few_at_a_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_listen, "MOST_HANDSHAKES", 3)
    monkeypatch.setattr(tls_listen, "DAWDLING_S", 60.0)  # a machine under load is not taken for a client that dawdles
    await place.listen(handshake_timeout_s=60.0)
    server = place.listener._server
    dialled = asyncio.gather(*(place.dial() for _ in range(20)))
    most = 0
    while not dialled.done():
        most = max(most, len(server._shaking))
        await asyncio.sleep(0)
    await dialled
    assert 1 <= most <= 3
    await eventually(lambda: place.listener.links == 20)
    assert server.refused_total == place.listener.refused == 0


async def test_a_preamble_of_another_kind_is_refused(place: Place) -> None:
    await place.listen()
    stranger = await RawConnection.open(place)
    stranger.preamble(tls.REGULAR, bytes(16), bytes(32), magic=b"GET ")
    assert await stranger.is_dropped()
    await stranger.close()
    future = await RawConnection.open(place)
    future.preamble(tls.REGULAR, bytes(16), bytes(32), version=9)
    assert b"version 9 is not spoken here" in await asyncio.wait_for(future.reader.read(), 5)
    await future.close()
    assert place.accepted == []


async def test_a_note_that_is_too_long_ends_the_link(place: Place) -> None:
    await place.listen()
    peer = await RawConnection.open(place)
    peer.preamble(tls.REGULAR, bytes(16), bytes(32))
    peer.writer.write(b"\x00\x00\x00\x02ok" + b"\xff\xff\xff\xff")
    await eventually(lambda: place.accepted and place.accepted[0].closed)
    assert place.accepted[0].received == {0: b"ok"}
    assert isinstance(place.accepted[0].error, ProtocolError)
    await peer.close()


async def test_chunks_may_be_split_anywhere(place: Place) -> None:
    await place.listen()
    user = Recorder()
    link = tls.TlsLink(user, bytes(16), bytes(32), lambda _: None)
    link.opened = True
    lane = tls.LaneConnection(0)
    lane._link = link
    stream = b"".join(
        len(chunk).to_bytes(4, "big") + chunk for chunk in (b"", b"a", b"bc" * 50, b"", b"d" * 1000, b"e")
    ) + tls.goodbye(4, "why")
    for size in (1, 2, 3, 5, 7, 100, len(stream)):
        user.received.clear()
        link._closing = False
        for start in range(0, len(stream), size):
            lane.data_received(stream[start : start + size])
        assert user.received == {0: b"a" + b"bc" * 50 + b"d" * 1000 + b"e"}
        assert str(link._remote_error) == "why"
        if link._deadline is not None:
            link._deadline.cancel()


def tls_in_memory() -> weakref.WeakSet[ssl.SSLObject]:
    gc.collect()
    return weakref.WeakSet(kept for kept in gc.get_objects() if isinstance(kept, ssl.SSLObject))


async def test_a_dial_that_is_cancelled_in_its_handshake_is_freed(place: Place) -> None:
    before = tls_in_memory()  # what ended a moment ago may linger, and goes at its own time
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        tasks = [asyncio.create_task(place.dial(port=hole.getsockname()[1])) for _ in range(5)]
        await eventually(lambda: len(tls_in_memory() - before) == 5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()  # their tracebacks
        del task
        await eventually(lambda: not tls_in_memory() - before)


class Greeter(asyncio.Protocol):
    """Stands for the visitors' front."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(b"hello from " + self.name)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())
        self.transport.close()


async def test_other_protocols_share_the_port(place: Place) -> None:
    await place.listen(
        other_protocols={"http/1.1": lambda: Greeter(b"http/1.1"), "": lambda: Greeter(b"nobody in particular")}
    )
    for alpn, name in (["http/1.1"], b"http/1.1"), ([], b"nobody in particular"):
        visitor = await RawConnection.open(place, alpn)
        visitor.writer.write(b"shout")
        assert await asyncio.wait_for(visitor.reader.read(), 5) == b"hello from " + name + b"SHOUT"
        await visitor.close()
    await place.pair()


async def test_who_speaks_nothing_that_is_spoken_here_is_dropped(place: Place) -> None:
    await place.listen(other_protocols={"http/1.1": lambda: Greeter(b"http/1.1")})
    for alpn in (["h2"], []):
        visitor = await RawConnection.open(place, alpn)
        assert await visitor.is_dropped()
        await visitor.close()


async def test_visitors_may_be_shown_another_certificate_by_name(place: Place) -> None:
    shop = place.ca.identity(["shop.example"]).ssl_context([ALPN, "http/1.1"])
    await place.listen(
        other_protocols={"http/1.1": lambda: Greeter(b"http/1.1")},
        select_context=lambda name: shop if name == "shop.example" else None,
    )
    context = place.ca.trust.ssl_context(["http/1.1"])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", place.listener.port, ssl=context, server_hostname="shop.example"
    )
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
    writer.write(b"bye")
    await asyncio.wait_for(reader.read(), 5)
    await RawConnection(reader, writer).close()
    await place.pair()
    await place.pair(server_name="shop.example")


async def test_a_bulk_lane_that_comes_while_the_link_closes_does_not_join(place: Place) -> None:
    """Its loss would reach the dialler before the reason of the close."""
    await place.listen()
    link_id, token = os.urandom(16), os.urandom(32)
    regular, bulk = await RawConnection.open(place), await RawConnection.open(place)
    regular.preamble(tls.REGULAR, link_id, token)
    await eventually(lambda: place.accepted and place.accepted[0].link is not None)
    place.accepted[0].link.close(4, "no")
    bulk.preamble(tls.BULK, link_id, token)
    assert await bulk.is_dropped(), "it was told that it had joined"
    await regular.close()
    await bulk.close()
