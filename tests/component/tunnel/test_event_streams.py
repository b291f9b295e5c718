"""Server-sent events through everything at once: cache, collapsing, compression, rules and limits, over every version of HTTP.

The origin sends an event only when the visitor has decoded the one before, so whatever holds an event back hangs here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import CacheRule, CollapseRule, CompressionRule, HeaderRules, LimitRule
from edgetun_exitnode.front.certificates import CertificateStore
from support.codings import Decoder
from support.h2_frames import headers
from support.h2_visitor import H2Visitor
from support.h3_client import h3_visitor
from support.origin_server import ScriptedConnection, scripted_origin
from support.whole import HOST, Whole, snapshot, whole

EVENTS = 20
WITHIN_S = 15.0
"""For all of them: one that waits a second for company is too late."""
EVERYTHING: dict[str, object] = {
    "cache": CacheRule(mode="override", ttl_s=10.0),
    "collapse": CollapseRule(),
    "compression": CompressionRule(types=("text/event-stream",)),
    "limits": LimitRule(requests_per_second=1000.0, max_request_body_bytes=1000, max_concurrent_requests=100),
    "request_headers": HeaderRules(set=(("x-edge", "1"),)),
    "response_headers": HeaderRules(remove=("server",), add=(("x-frame-options", "DENY"),)),
}
CODINGS = "gzip, br, zstd"


class Stream:
    """What a visitor has got of a stream, decoded; every event is told to the origin."""

    def __init__(self, seen: asyncio.Semaphore) -> None:
        self.events = 0
        self._seen = seen
        self._text = b""
        self._decoder: Decoder | None = None

    def take(self, fields: dict[str, str], data: bytes) -> None:
        assert fields["content-type"] == "text/event-stream"
        assert fields["x-frame-options"] == "DENY"
        if self._decoder is None:
            self._decoder = Decoder(fields["content-encoding"].encode())
        self._text += self._decoder.feed(data)
        *whole_events, self._text = self._text.split(b"\n\n")
        for event in whole_events:
            assert event == b"data: %d" % self.events
            self.events += 1
            self._seen.release()


async def http1(stands: Whole, folder: Path, stream: Stream) -> None:
    visitor = await stands.visitor()
    visitor.timeout_s = WITHIN_S
    visitor.send(f"GET /events HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {CODINGS}\r\n\r\n".encode())
    head = await visitor.head()
    while stream.events < EVENTS:
        size = int((await visitor.reader.readline()).strip(), 16)
        stream.take(head.fields, (await visitor.read(size + 2))[:-2])
    visitor.leave()


async def http2(stands: Whole, folder: Path, stream: Stream) -> None:
    visitor = await H2Visitor.to(stands.port)
    target = ((b":scheme", b"http"), (b":authority", HOST.encode()), (b":path", b"/events"))
    visitor.send(headers(1, (b":method", b"GET"), *target, (b"accept-encoding", CODINGS.encode())))
    response = visitor.response(1)
    while stream.events < EVENTS:
        await visitor.until(lambda: bool(response.body))
        fields = {name.decode(): value.decode() for name, value in response.fields.items()}
        data, response.body = response.body, b""
        stream.take(fields, data)
    visitor.leave()


async def http3(stands: Whole, folder: Path, stream: Stream) -> None:
    ca = DevelopmentCA(folder / "web")
    store = CertificateStore(development=ca, may_issue=lambda name: True)
    front = await stands.node.listen_https("127.0.0.1", 0, store, http3=True)
    async with h3_visitor(front.port, server_name=HOST, ca_pem=ca.ca_pem) as visitor:
        sid = visitor.open("GET", "/events", ("accept-encoding", CODINGS), host=HOST)
        answer = await visitor.head(sid)
        while stream.events < EVENTS:
            await visitor.until(lambda: bool(answer.body))
            data = bytes(answer.body)
            answer.body.clear()
            stream.take(answer.fields, data)
        visitor.cancel(sid)


@pytest.mark.parametrize("engine", ["tls", "qh3"])
@pytest.mark.parametrize("read", [http1, http2, http3], ids=["http1", "http2", "http3"])
async def test_every_event_arrives_at_once_with_every_feature_on(
    tmp_path: Path, engine: str, read: Callable[[Whole, Path, Stream], Awaitable[None]]
) -> None:
    seen = asyncio.Semaphore(0)
    is_cancelled = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        assert b"x-edge: 1" in (await connection.request()).lower()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nServer: me\r\n\r\n")
        for number in range(EVENTS):
            await connection.send(b"data: %d\n\n" % number)
            await seen.acquire()
        await connection.closed()
        is_cancelled.set()

    async with scripted_origin(script) as origin, whole(tmp_path, engine, snapshot(origin.url, **EVERYTHING)) as stands:
        stream = Stream(seen)
        async with asyncio.timeout(WITHIN_S):
            await read(stands, tmp_path, stream)
        async with asyncio.timeout(WITHIN_S):
            await is_cancelled.wait()  # a visitor who leaves cancels the request at the origin
