"""An exchange that is over leaves nothing for the garbage collector: its pauses are what a busy edge would notice."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_core.transport.engines import dial
from edgetun_core.transport.quic_qh3 import Qh3Connection
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.front.certificates import CertificateStore
from support.edge import edge
from support.h2_visitor import H2Visitor
from support.h3_client import h3_visitor
from support.origin_server import ScriptedConnection, answering, response, scripted_origin
from support.visitors import until
from support.whole import HOST, Whole, snapshot, whole

REQUESTS = 200
WEBSOCKET_ID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def _ours() -> Counter[str]:
    kinds = (type(thing) for thing in gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("edgetun"))


@pytest.mark.parametrize("engine", ["tls", "qh3"])
@pytest.mark.parametrize("stored", [False, True], ids=["passed through", "answered from store"])
async def test_finished_exchanges_leave_no_cycles(tmp_path: Path, engine: str, stored: bool) -> None:
    answer = response(b"hello", b"Date: Sun, 06 Nov 1994 08:49:37 GMT")
    cache = CacheRule(mode="override", ttl_s=60.0) if stored else CacheRule()
    async with (
        scripted_origin(answering(answer)) as origin,
        whole(tmp_path, engine, snapshot(origin.url, cache=cache, collapse=CollapseRule())) as stands,
    ):
        visitor = await stands.visitor()
        for _ in range(20):  # memos fill, connections open
            await visitor.ask("/", host=HOST)
        await asyncio.sleep(0.05)
        gc.collect()
        gc.disable()
        try:
            before = _ours()
            for _ in range(REQUESTS):
                assert (await visitor.ask("/", host=HOST)).status == 200
            await asyncio.sleep(0.05)
            left = {name: count for name, count in (_ours() - before).items() if count > REQUESTS // 10}
        finally:
            gc.enable()
        assert left == {}
        await visitor.close()


async def test_responses_that_are_superseded_leave_no_cycles(tmp_path: Path) -> None:
    """A page that is made anew every second is made 86,400 times a day."""
    answer = response(b"hello " * 500, b"Content-Type: text/html")
    rule = CacheRule(mode="override", ttl_s=0.01)
    async with (
        scripted_origin(answering(answer)) as origin,
        whole(tmp_path, "tls", snapshot(origin.url, cache=rule, collapse=CollapseRule())) as stands,
    ):
        visitor = await stands.visitor()
        hits = 0

        async def ask_anew() -> None:
            nonlocal hits
            await asyncio.sleep(0.02)
            for _ in range(4):
                answered = await visitor.ask("/", "Accept-Encoding: gzip", host=HOST)
                assert answered.status == 200
                hits += "; hit" in answered.fields["cache-status"]

        for _ in range(5):
            await ask_anew()
        await asyncio.sleep(0.05)
        gc.collect()
        gc.disable()
        try:
            before, hits = _ours(), 0
            for _ in range(ROUNDS):
                await ask_anew()
            assert hits >= ROUNDS // 2  # heads were rendered
            await asyncio.sleep(0.05)
            stands.node._memos.verdicts.clear()  # as a minute does
            left = {name: count for name, count in (_ours() - before).items() if count >= ROUNDS // 2}
        finally:
            gc.enable()
        assert left == {}
        await visitor.close()


ROUNDS = 12
"""Each leaves next to nothing, or so many of what it left."""


class Doors(NamedTuple):
    """Where visitors come in, and what they come over."""

    stands: Whole
    https_port: int
    tls: dict[str, ssl.SSLContext]


async def endless(connection: ScriptedConnection) -> None:
    """Begins a body that does not end, or an upgraded connection that repeats what it is sent."""
    while head := await connection.request():
        if b"upgrade: websocket" in head.lower():
            await connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
            key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
            accept = base64.b64encode(hashlib.sha1(key.split()[1] + WEBSOCKET_ID).digest())
            await connection.send(b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept)
            while data := await connection.reader.read(1000):
                await connection.send(data)
            return
        if b"/whole " in head:
            await connection.send(response(b"hello"))
            continue
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))


async def _break_off_h1(doors: Doors) -> None:
    visitor = await doors.stands.visitor()
    visitor.send(f"GET /endless HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    await visitor.head()
    visitor.break_off()


async def _upgrade_h1(doors: Doors) -> None:
    visitor = await doors.stands.visitor()
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    visitor.send(f"GET /ws HTTP/1.1\r\nHost: {HOST}\r\n{upgrade}\r\n\r\n".encode())
    assert (await visitor.head()).status == 101
    visitor.send(b"something")
    assert await visitor.read(9) == b"something"
    visitor.leave()


async def _one_h1_over_tls(doors: Doors) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", doors.https_port, ssl=doors.tls["http/1.1"], server_hostname=HOST
    )
    writer.write(f"GET /whole HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read(-1)).endswith(b"hello")
    writer.transport.abort()


async def _break_off_h2(doors: Doors) -> None:
    visitor = await H2Visitor.to(doors.https_port, tls=doors.tls["h2"], server_name=HOST)
    visitor.get = (*visitor.get[:2], (b":authority", HOST.encode()), visitor.get[3])
    visitor.ask(1, path=b"/endless")
    while not (1 in visitor.responses and visitor.responses[1].body):
        assert await visitor.read_some()
    visitor.leave()


async def _break_off_h3(doors: Doors) -> None:
    async with h3_visitor(doors.https_port, server_name=HOST) as visitor:
        assert (await visitor.ask("/whole", host=HOST)).status == 200
        await visitor.head(visitor.open("GET", "/endless", host=HOST))


@pytest.mark.parametrize("visit", [_break_off_h1, _upgrade_h1, _one_h1_over_tls, _break_off_h2, _break_off_h3])
async def test_visitors_who_go_leave_no_cycles(
    tmp_path: Path, visit: Callable[[Doors], Coroutine[None, None, None]]
) -> None:
    """A TLS or QUIC connection in a cycle is 20 to 300 KiB that the collector does not see, and so does not hurry to free."""
    files = tmp_path / "crt", tmp_path / "key"
    for file, pem in zip(files, DevelopmentCA(tmp_path / "visitors").issue([HOST]), strict=True):
        file.write_bytes(pem)
    tls = {alpn: ssl.create_default_context() for alpn in ("http/1.1", "h2")}
    for alpn, context in tls.items():
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([alpn])
    async with scripted_origin(endless) as origin, whole(tmp_path, "tls", snapshot(origin.url)) as stands:
        front = await stands.node.listen_https("127.0.0.1", 0, CertificateStore([files]), http3=True)
        doors = Doors(stands, front.port, tls)
        before: Counter[str] = Counter()

        def left() -> dict[str, int]:
            return {name: count for name, count in (_ours() - before).items() if count >= ROUNDS // 2}

        for _ in range(3):  # memos fill
            await visit(doors)
        await asyncio.sleep(0.3)
        gc.collect()
        gc.disable()
        try:
            before.update(_ours())
            for _ in range(ROUNDS):
                await visit(doors)
            await until(lambda: not left(), 20.0)  # whoever is gone is noticed in a moment
        except TimeoutError:
            pytest.fail(f"{ROUNDS} visits left {left()}")
        finally:
            gc.enable()


def _large() -> dict[str, int]:
    """What holds memory of C or Rust: TLS connections, and QUIC connections with their packet core."""
    kept = gc.get_objects()
    return {
        "TLS": sum(isinstance(one, ssl.SSLObject) for one in kept),
        "QUIC": sum(isinstance(one, Qh3Connection) and one._core is not None for one in kept),
    }


class _Laptop:
    """Hears of a session's end, and takes no requests."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        raise AssertionError("nobody asks for anything here")

    def on_session_open(self, runner: SessionRunner) -> None:
        self.is_open.set()

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        pass

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        pass


@pytest.mark.parametrize("engine", ["tls", "qh3"])
async def test_sessions_that_end_leave_no_connection_in_memory(tmp_path: Path, engine: str) -> None:
    ca = DevelopmentCA(tmp_path)
    kind = "tls" if engine == "tls" else "quic"
    async with edge(ca.identity(["127.0.0.1"]), kind) as node:
        gc.collect()
        gc.disable()
        try:
            before = _large()
            for number in range(ROUNDS):
                laptop = _Laptop()
                hello = Hello(agent_id="laptop", session_id=f"s{number}", credential="c", services=("team/shop",))
                runner = SessionRunner.dialling(hello, laptop, laptop)
                await dial(engine, "127.0.0.1", node.listeners[kind].port, trust=Trust(ca.ca_pem), user=runner)
                async with asyncio.timeout(20.0):
                    await laptop.is_open.wait()
                ends = (runner, node.open[0])
                await until(
                    lambda links=[end.link for end in ends]: all(link and link.lanes > 1 for link in links), 20.0
                )  # type: ignore[misc]
                assert _large() != before  # it would be seen
                ends[number % 2].close(None)
                await until(lambda: not node.open, 20.0)
            await until(lambda: _large() == before, 20.0)
        except TimeoutError:
            pytest.fail(f"{ROUNDS} sessions left {_large()}, before there was {before}")
        finally:
            gc.enable()
