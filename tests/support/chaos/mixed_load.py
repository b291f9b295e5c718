"""Everything that people do to a tunnel, at a modest pace and for as long as one likes: the load of the soak.

One `MixedLoad` in an event loop. What is answered wrongly is a failure with its reason; what is merely not answered (an agent has just
been cut off) is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from support.chaos.origin import FILE
from support.chaos.pages import Unreadable, read
from support.h2_visitor import H2Visitor
from support.h3_client import h3_visitor
from support.visitors import Answer, Visitor

PATIENCE_S = 40.0
KEYS = 300
"""So few that all are stored soon: a cache that fills looks like a leak."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the load goes: (address, port) of every exit node's HTTP; HTTPS is on 127.0.0.1; `host` of the HTTP tunnel."""

    http: tuple[tuple[str, int], ...]
    https_port: int
    tcp: tuple[tuple[str, int], ...]
    udp: tuple[tuple[str, int], ...]
    host: str


class Wrong(Exception):
    """An answer that is not what was asked for."""


class MixedLoad:
    """`start`, let it run, `stop`. `done`, `undone` (by kind and why) and `wrong` say how it went."""

    def __init__(self, doors: Doors, seed: int = 1) -> None:
        self._doors = doors
        self._rng = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self.done: Counter[str] = Counter()
        self.undone: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._tls = ssl.create_default_context()
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE
        self._tls.set_alpn_protocols(["h2"])

    def start(self) -> None:
        # what, how many at one time, pause between two (s)
        plan: tuple[tuple[Callable[[], Awaitable[None]], int, float], ...] = (
            (self.connection_churn, 3, 0.1),
            (self.http2_churn, 1, 0.5),
            (self.http3_churn, 1, 2.0),
            (self.aborted_download, 1, 0.4),
            (self.resumed_download, 1, 1.0),
            (self.whole_download, 1, 1.0),
            (self.event_stream, 4, 0.5),
            (self.websocket, 3, 0.5),
            (self.post, 1, 0.3),
            (self.large_post, 1, 10.0),
            (self.cached_crowd, 1, 3.0),
            (self.many_keys, 1, 0.15),
            (self.tcp_echo, 1, 0.4),
            (self.tcp_reset, 1, 1.0),
            (self.udp_echo, 1, 0.3),
        )
        for what, count, pause_s in plan:
            self._tasks += [asyncio.create_task(self._repeat(what, pause_s)) for _ in range(count)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, what: Callable[[], Awaitable[None]], pause_s: float) -> None:
        name = what.__name__
        while True:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await what()
                self.done[name] += 1
            except Wrong as error:
                self.wrong.append(f"{name}: {error}")
            except (OSError, EOFError, TimeoutError, AssertionError, aiohttp.ClientError) as error:
                self.undone[f"{name}: {type(error).__name__}"] += 1
            await asyncio.sleep(self._rng.uniform(0.2, 1.8) * pause_s)

    async def _visitor(self) -> Visitor:
        address, port = self._rng.choice(self._doors.http)
        visitor = await Visitor.to(port, host=address)
        visitor.timeout_s = PATIENCE_S
        return visitor

    async def _ask(self, target: str, *lines: str, body: bytes = b"", wanted: int = 200) -> Answer:
        visitor = await self._visitor()
        try:
            method = "POST" if body else "GET"
            lines = (*lines, f"Content-Length: {len(body)}") if body else lines
            visitor.send(
                "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {self._doors.host}", *lines, "", "")).encode(), body
            )
            answer = await visitor.answer()
        finally:
            visitor.leave()
        return _expected(answer, target, wanted)

    # ---- HTTP

    async def connection_churn(self) -> None:
        _page(await self._ask("/small?size=2000"), "/small?size=2000")

    async def http2_churn(self) -> None:
        visitor = await H2Visitor.to(self._doors.https_port, tls=self._tls, server_name=self._doors.host)
        try:
            visitor.get = (*visitor.get[:2], (b":authority", self._doors.host.encode()), visitor.get[3])
            visitor.open_windows()
            for stream_id in (1, 3, 5):
                response = await visitor.fetch(stream_id, path=b"/small?size=3000")
                if response.status == 200:
                    _whole(response.body, "/small?size=3000")
        finally:
            visitor.leave()

    async def http3_churn(self) -> None:
        async with h3_visitor(self._doors.https_port, server_name=self._doors.host) as visitor:
            answer = await visitor.ask("/small?size=3000", host=self._doors.host)
            if answer.status == 200:
                _whole(answer.body, "/small?size=3000")

    async def aborted_download(self) -> None:
        visitor = await self._visitor()
        try:
            target = self._rng.choice(("/large?size=2000000", "/leaving", f"/{FILE}"))
            visitor.send(f"GET {target} HTTP/1.1\r\nHost: {self._doors.host}\r\n\r\n".encode())
            await visitor.head()
            await visitor.read(self._rng.randrange(1, 5_000))
        finally:
            if self._rng.random() < 0.5:
                visitor.break_off()
            else:
                visitor.leave()

    async def resumed_download(self) -> None:
        visitor = await self._visitor()
        try:
            visitor.send(f"GET /{FILE} HTTP/1.1\r\nHost: {self._doors.host}\r\n\r\n".encode())
            head = await visitor.head()
            if head.status != 200:
                raise ConnectionError(f"status {head.status}")
            first = await visitor.read(self._rng.randrange(1_000, 300_000))
        finally:
            visitor.leave()
        rest = await self._ask(
            f"/{FILE}", f"Range: bytes={len(first)}-", f"If-Range: {head.fields['etag']}", wanted=206
        )
        if f'"{hashlib.sha256(first + rest.body).hexdigest()}"' != head.fields["etag"]:
            raise Wrong(f"the two parts of a file do not fit together: {len(first)} + {len(rest.body)} bytes")

    async def whole_download(self) -> None:
        _page(await self._ask("/large?size=1000000"), "/large?size=1000000")

    async def event_stream(self) -> None:
        visitor = await self._visitor()
        try:
            visitor.send(
                f"GET /events HTTP/1.1\r\nHost: {self._doors.host}\r\nAccept: text/event-stream\r\n\r\n".encode()
            )
            if (await visitor.head()).status != 200:
                raise ConnectionError("no stream")
            for _ in range(self._rng.randrange(3, 40)):
                await visitor.reader.readuntil(b"\n\n\r\n")
        finally:
            visitor.leave()

    async def websocket(self) -> None:
        address, port = self._rng.choice(self._doors.http)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://{address}:{port}/ws", headers={"Host": self._doors.host}) as socket,
        ):
            for number in range(self._rng.randrange(2, 20)):
                await socket.send_str(f"message {number}")
                message = await socket.receive(PATIENCE_S)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise ConnectionError(f"the WebSocket ended: {message.type}")
                if message.data != f"message {number}":
                    raise Wrong(f"another message came back: {message.data!r}")
                await asyncio.sleep(0.3)

    async def post(self) -> None:
        await self._post(self._rng.randrange(1, 60_000))

    async def large_post(self) -> None:
        await self._post(4_000_000)

    async def _post(self, size: int) -> None:
        sent = self._rng.randbytes(size)
        page = _page(await self._ask("/echo?size=50", body=sent), "/echo?size=50")
        if page != hashlib.sha256(sent).hexdigest():
            raise Wrong(f"the origin got something else than the {size} bytes sent")

    async def cached_crowd(self) -> None:
        target = f"/cached/crowd-{self._rng.randrange(5)}?size=20000"
        answers = await asyncio.gather(*(self._ask(target) for _ in range(40)), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            _page(answer, target)

    async def many_keys(self) -> None:
        target = f"/cached/{self._rng.randrange(KEYS)}?size=4000"
        _page(await self._ask(target), target)

    # ---- TCP and UDP

    async def tcp_echo(self) -> None:
        reader, writer = await asyncio.open_connection(*self._rng.choice(self._doors.tcp))
        try:
            sent = self._rng.randbytes(self._rng.randrange(1, 200_000))
            writer.write(sent)
            writer.write_eof()
            if await reader.read(-1) != sent:
                raise ConnectionError("a TCP connection was cut")
        finally:
            writer.transport.abort()

    async def tcp_reset(self) -> None:
        address, port = self._rng.choice(self._doors.tcp)
        visitor = await Visitor.to(port, host=address)
        visitor.send(b"x" * 1000)
        await visitor.read(10)
        visitor.break_off()

    async def udp_echo(self) -> None:
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(answered), remote_addr=self._rng.choice(self._doors.udp)
        )
        try:
            for number in range(3):
                transport.sendto(b"datagram %d" % number)
            async with asyncio.timeout(5):
                await answered
        finally:
            transport.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answered: asyncio.Future[bytes]) -> None:
        self._answered = answered

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._answered.done():
            self._answered.set_result(data)


def _expected(answer: Answer, target: str, wanted: int) -> Answer:
    if answer.status in (502, 503, 504):
        raise ConnectionError(f"status {answer.status}")
    if answer.status != wanted:
        raise Wrong(f"{target}: status {answer.status}")
    return answer


def _page(answer: Answer, target: str) -> str:
    return _whole(answer.body, target)


def _whole(body: bytes, target: str) -> str:
    """What the page says it took."""
    try:
        page = read(body)
    except Unreadable as error:
        raise Wrong(str(error)) from None
    if page.target != target:
        raise Wrong(f"{target} was asked for, {page.target} came")
    return page.took


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._transport.sendto(data, addr)  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def echo_services() -> AsyncIterator[tuple[int, int]]:
    """A TCP service and a UDP service that send back what they get; their ports."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Echo, local_addr=("127.0.0.1", 0))
    try:
        yield server.sockets[0].getsockname()[1], transport.get_extra_info("sockname")[1]
    finally:
        server.close()
        transport.close()
