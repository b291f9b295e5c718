"""A handler that does as a test tells it, per path, and remembers what it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead


class Asked:
    """One exchange as the answering side has it: what came of the request, and the client to answer to."""

    def __init__(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> None:
        self.head = head
        self.peer = peer
        self.client = client
        self.body = bytearray()
        self.trailers: Fields = ()
        self.ended = end
        self.error: EdgetunError | None = None
        self.is_paused = False
        self.pauses = 0
        self.on_body: Callable[[Asked], None] | None = None
        self._changed = asyncio.Event()

    # The request's side.

    def send_data(self, data: bytes, end: bool) -> None:
        assert not self.ended, "data after the end"
        assert data or end, "an empty piece"
        self.body += data
        self.ended = end
        self._tell()

    def send_trailers(self, fields: Fields) -> None:
        assert not self.ended, "trailers after the end"
        self.trailers = fields
        self.ended = True
        self._tell()

    def reset(self, error: EdgetunError) -> None:
        assert self.error is None, "reset twice"
        self.error = error
        self._tell()

    def pause_response(self) -> None:
        self.is_paused = True
        self.pauses += 1
        self._tell()

    def resume_response(self) -> None:
        self.is_paused = False
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        if self.on_body is not None:
            self.on_body(self)

    async def until(self, condition: Callable[[Asked], bool], timeout_s: float = 5.0) -> None:
        """Waits for something to be so; fails after the deadline."""
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    # The response's side, in short.

    def answer(self, status: int = 200, body: bytes = b"", *fields: tuple[bytes, bytes], length: bool = True) -> None:
        """A whole response at once."""
        if length:
            fields = (*fields, (b"content-length", str(len(body)).encode()))
        self.client.on_head(ResponseHead(status, fields), not body)
        if body:
            self.client.on_data(body, True)

    def begin(self, status: int = 200, *fields: tuple[bytes, bytes]) -> None:
        """A head, with a body to follow."""
        self.client.on_head(ResponseHead(status, fields), False)


def hello(asked: Asked) -> None:
    """Answers within `open`."""
    asked.answer(200, b"hello " + asked.head.target)


def wait(asked: Asked) -> None:
    """Answers nothing; the test does."""


def echo(asked: Asked) -> None:
    """Answers with the request's body when it is there."""

    def when_ended(asked: Asked) -> None:
        if asked.ended and asked.error is None:
            asked.on_body = None
            asked.answer(200, bytes(asked.body), *((b"x-trailer-" + name, value) for name, value in asked.trailers))

    asked.on_body = when_ended
    when_ended(asked)


class ScriptedHandler:
    """Chooses a script by path (without query); `default` for the rest. `asked` keeps every exchange in order."""

    def __init__(self, default: Callable[[Asked], None] = hello, **paths: Callable[[Asked], None]) -> None:
        self.default = default
        self.paths = {b"/" + name.encode(): script for name, script in paths.items()}
        self.asked: list[Asked] = []
        self._came = asyncio.Event()

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        asked = Asked(head, peer, end, client)
        self.asked.append(asked)
        self._came.set()
        self.paths.get(head.target.partition(b"?")[0], self.default)(asked)
        return asked

    async def request(self, number: int = 0, timeout_s: float = 5.0) -> Asked:
        """The exchange with this number, waiting for it if need be."""
        async with asyncio.timeout(timeout_s):
            while len(self.asked) <= number:
                self._came.clear()
                await self._came.wait()
        return self.asked[number]
