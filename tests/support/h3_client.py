"""A visitor over HTTP/3: aioquic's client, whose streams a test may also fill with whatever bytes it wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pylsqpack
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import SessionTicket

from edgetun_core.http.h3_frames import encode_frame, encode_varint

Headers = Sequence[tuple[bytes, bytes]]


@dataclass
class Answer:
    """A response as it came; `interim` are the 1xx statuses before it."""

    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    interim: list[int] = field(default_factory=list)
    complete: bool = False
    pieces: int = 0


class Client(H3Connection):
    """Does not know that the answer to a HEAD, or a 304, has a content-length and no content."""

    def _check_content_length(self, stream: Any) -> None:
        pass


class NoH3(Client):
    """Opens none of the streams that HTTP/3 wants: the test does."""

    def _init_connection(self) -> None:
        # Ids that no test comes to: the library writes nothings to two of them.
        self._local_control_stream_id, self._local_encoder_stream_id, self._local_decoder_stream_id = 398, 402, 406


class H3Visitor(QuicConnectionProtocol):
    """One connection. Every wait has a deadline."""

    timeout_s = 15.0
    is_raw = False

    def __init__(self, quic: QuicConnection, stream_handler: Any = None) -> None:
        super().__init__(quic, stream_handler)
        self.h3 = (NoH3 if self.is_raw else Client)(quic)
        self.answers: dict[int, Answer] = {}
        self.resets: dict[int, int] = {}
        self.stops: dict[int, int] = {}
        self.ended: events.ConnectionTerminated | None = None
        self.handshake: events.HandshakeCompleted | None = None
        self.auto_read = True
        self._changed = asyncio.Event()
        self._encoder = pylsqpack.Encoder()

    def quic_event_received(self, event: events.QuicEvent) -> None:
        match event:
            case events.StreamReset():
                self.resets[event.stream_id] = event.error_code
            case events.StopSendingReceived():
                self.stops[event.stream_id] = event.error_code
            case events.ConnectionTerminated():
                self.ended = event
            case events.HandshakeCompleted():
                self.handshake = event
        for h3_event in self.h3.handle_event(event):
            self._take(h3_event)
        self._changed.set()

    def _take(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            answer = self.answers.setdefault(event.stream_id, Answer())
            found = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            if answer.status:
                answer.trailers = found
            else:
                status = int(found.pop(":status"))
                if status < 200:
                    answer.interim.append(status)
                else:
                    answer.status, answer.fields = status, found
            answer.complete = event.stream_ended
        elif isinstance(event, DataReceived):
            answer = self.answers.setdefault(event.stream_id, Answer())
            answer.body += event.data
            answer.pieces += 1
            answer.complete = event.stream_ended

    async def until(self, condition: Callable[[], Any], what: str = "") -> None:
        """Waits for something to be so; fails after the deadline, or when the connection ends meanwhile."""
        async with asyncio.timeout(self.timeout_s):
            while not condition():
                assert self.ended is None, f"{what}: the connection ended with {self.ended}"
                self._changed.clear()
                await self._changed.wait()

    # Requests.

    def next_stream(self) -> int:
        return self._quic.get_next_available_stream_id()

    def open(
        self,
        method: str = "GET",
        path: str = "/",
        *fields: tuple[str, str],
        host: str = "shop.example",
        end: bool = True,
    ) -> int:
        """Sends a request's head; returns its stream."""
        sid = self.next_stream()
        self.h3.send_headers(sid, request_headers(method, path, *fields, host=host), end_stream=end)
        self.transmit()
        return sid

    def send(self, sid: int, data: bytes, end: bool = False) -> None:
        self.h3.send_data(sid, data, end)
        self.transmit()

    async def answer(self, sid: int) -> Answer:
        """The whole response of a stream."""
        await self.until(lambda: self.answers.get(sid) is not None and self.answers[sid].complete, f"stream {sid}")
        return self.answers[sid]

    async def head(self, sid: int) -> Answer:
        """The response's head, and what came of its body."""
        await self.until(lambda: self.answers.get(sid) is not None and self.answers[sid].status, f"stream {sid}")
        return self.answers[sid]

    async def ask(
        self,
        path: str = "/",
        *fields: tuple[str, str],
        method: str = "GET",
        body: bytes = b"",
        host: str = "shop.example",
    ) -> Answer:
        """A whole request, and its whole response."""
        sid = self.open(method, path, *fields, host=host, end=not body)
        if body:
            self.send(sid, body, True)
        return await self.answer(sid)

    async def reset_code(self, sid: int) -> int:
        """The code with which the server reset a stream."""
        await self.until(lambda: sid in self.resets, f"stream {sid} is reset")
        return self.resets[sid]

    async def close_code(self) -> int:
        """The code with which the server closed the connection."""
        async with asyncio.timeout(self.timeout_s):
            while self.ended is None:
                self._changed.clear()
                await self._changed.wait()
        return int(self.ended.error_code)

    # Bytes as the test wants them.

    def raw(self, sid: int, data: bytes, end: bool = False) -> int:
        self._quic.send_stream_data(sid, data, end)
        self.transmit()
        return sid

    def block(self, headers: Headers) -> bytes:
        return bytes(self._encoder.encode(0, list(headers))[1])

    def headers_frame(self, headers: Headers) -> bytes:
        return encode_frame(1, self.block(headers))

    def control(self, *frames: bytes, settings: bytes | None = b"\x04\x00") -> int:
        """Opens a control stream, with SETTINGS unless told not to."""
        sid = self._quic.get_next_available_stream_id(is_unidirectional=True)
        return self.raw(sid, b"\x00" + (settings or b"") + b"".join(frames))

    def uni(self, kind: int, data: bytes = b"", end: bool = False) -> int:
        sid = self._quic.get_next_available_stream_id(is_unidirectional=True)
        return self.raw(sid, encode_varint(kind) + data, end)

    def cancel(self, sid: int, code: int = 0x10C) -> None:
        """As a browser does it when its user leaves."""
        self._quic.stop_stream(sid, code)
        try:
            self._quic.reset_stream(sid, code)
        except AssertionError:
            pass  # the request was sent whole
        self.transmit()


class RawVisitor(H3Visitor):
    is_raw = True


def request_headers(
    method: str = "GET", path: str = "/", *fields: tuple[str, str], host: str = "shop.example"
) -> list[tuple[bytes, bytes]]:
    return [
        (b":method", method.encode()),
        (b":scheme", b"https"),
        (b":authority", host.encode()),
        (b":path", path.encode()),
        *((name.encode(), value.encode("latin-1")) for name, value in fields),
    ]


def configuration(server_name: str, ca_pem: bytes | None = None, **more: Any) -> QuicConfiguration:
    made = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=server_name, **more)
    if ca_pem is None:
        made.verify_mode = ssl.CERT_NONE
    else:
        made.load_verify_locations(cadata=ca_pem)
    return made


@asynccontextmanager
async def h3_visitor(
    port: int,
    *,
    server_name: str = "shop.example",
    ca_pem: bytes | None = None,
    raw: bool = False,
    wait_connected: bool = True,
    tickets: Callable[[SessionTicket], None] | None = None,
    **more: Any,
) -> AsyncIterator[H3Visitor]:
    """A connection to 127.0.0.1; it is closed at the end."""
    quic = QuicConnection(configuration=configuration(server_name, ca_pem, **more), session_ticket_handler=tickets)
    transport, visitor = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: (RawVisitor if raw else H3Visitor)(quic), local_addr=("127.0.0.1", 0)
    )
    try:
        # Early data leaves with the first flight.
        visitor.connect(("127.0.0.1", port), transmit=wait_connected)
        if wait_connected:
            await visitor.wait_connected()
        yield visitor
    finally:
        visitor.close()  # without waiting for the end of the draining period
        transport.close()
