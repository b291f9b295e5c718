"""An exit node small enough for a test: listeners, sessions that are let in or refused, and requests sent down them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import EdgetunError, NotFound
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.pki import ServerIdentity
from edgetun_core.transport.engines import Listener, listen
from edgetun_core.transport.link import Link
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.wire.hello import Hello, Refusal, Welcome


class _Nothing:
    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        client.on_reset(NotFound("an agent opens nothing here"))
        return CLOSED


class TestEdge:
    """The edge as a test sees it: who said hello, who is connected."""

    __test__ = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.hellos: list[Hello] = []
        self.open: list[SessionRunner] = []
        self.closed: list[tuple[SessionRunner, EdgetunError | None]] = []
        self.answer: Callable[[Hello], Welcome | Refusal] = lambda hello: Welcome(
            node=name, services=hello.services, server_time=time.time()
        )
        self.listeners: dict[str, Listener] = {}

    def decide(self, hello: Hello, link: Link) -> Welcome | Refusal:
        self.hellos.append(hello)
        return self.answer(hello)

    def accept(self) -> SessionRunner:
        return SessionRunner.accepting(self.decide, _Nothing(), self)

    def on_session_open(self, runner: SessionRunner) -> None:
        self.open.append(runner)

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        pass

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        if runner in self.open:
            self.open.remove(runner)
        self.closed.append((runner, error))

    @property
    def transports(self) -> list[str]:
        return [runner.transport for runner in self.open]

    async def listen(self, kind: str, identity: ServerIdentity, port: int = 0) -> None:
        engine = "tls" if kind == "tls" else "qh3"
        self.listeners[kind] = await listen(engine, "127.0.0.1", port, identity=identity, accept=self.accept)

    async def stop(self, kind: str) -> int:
        """Stops one listener and cuts its links; returns its port."""
        listener = self.listeners.pop(kind)
        port = listener.port
        await listener.close()
        return port

    def endpoint(self, *, tls: int | None = None, quic: int | None = None) -> Endpoint:
        """Where to connect; a port that is not given is the listener's, or 0 when there is none."""

        def port(kind: str, given: int | None) -> int:
            if given is not None:
                return given
            return self.listeners[kind].port if kind in self.listeners else 0

        return Endpoint("127.0.0.1", port("tls", tls), port("quic", quic), self.name)


@asynccontextmanager
async def edge(identity: ServerIdentity, *kinds: str, name: str = "node-1") -> AsyncIterator[TestEdge]:
    """An edge that listens on `kinds` (`"tls"`, `"quic"`)."""
    made = TestEdge(name)
    try:
        for kind in kinds:
            await made.listen(kind, identity)
        yield made
    finally:
        for runner in list(made.open):
            runner.close(None)
        await asyncio.gather(*(listener.close() for listener in made.listeners.values()))
