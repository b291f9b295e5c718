"""Sessions over real links on loopback, once per engine: exchanges both ways, bulk, slow readers, drain, loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edgetun_core.errors import EdgetunError, SessionLost
from edgetun_core.http.message import ResponseHead
from edgetun_core.pki import DevelopmentCA, ServerIdentity, Trust
from edgetun_core.transport import engines
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.wire.hello import Hello, Welcome
from edgetun_core.wire.states import State
from support.exchanges import PEER, Answerer, Opened, Recorder
from support.wire import HELLO, OK, get


class Listener:
    def __init__(self) -> None:
        self.runners: list[SessionRunner] = []
        self.closed: list[EdgetunError | None] = []

    def on_session_open(self, runner: SessionRunner) -> None:
        self.runners.append(runner)

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        pass

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        self.closed.append(error)


class Tunnel:
    """An exit node and an agent, connected."""

    def __init__(self) -> None:
        self.edge_listener, self.agent_listener = Listener(), Listener()
        self.origin = Answerer()
        self.edge: SessionRunner
        self.agent: SessionRunner

    def visit(self, end: bool = True) -> Recorder:
        visitor = Recorder()
        self.edge.open(get(), PEER, end, visitor)
        return visitor


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the deadline is around it
            await asyncio.sleep(0.002)


@pytest.fixture(params=engines.ENGINES)
async def tunnel(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Tunnel]:
    authority = DevelopmentCA(tmp_path)
    identity = ServerIdentity(*authority.issue(("localhost", "127.0.0.1"), 3600))
    tunnel = Tunnel()
    listener = await engines.listen(
        request.param,
        "127.0.0.1",
        0,
        identity=identity,
        accept=lambda: SessionRunner.accepting(
            lambda hello, link: Welcome(node="n1", services=hello.services), Answerer(), tunnel.edge_listener
        ),
    )
    try:
        tunnel.agent = SessionRunner.dialling(HELLO, tunnel.origin, tunnel.agent_listener)
        await engines.dial(
            request.param,
            "127.0.0.1",
            listener.port,
            trust=Trust(authority.ca_pem),
            user=tunnel.agent,
            server_name="localhost",
        )
        await until(lambda: tunnel.agent_listener.runners and tunnel.edge_listener.runners)
        tunnel.edge = tunnel.edge_listener.runners[0]
        yield tunnel
    finally:
        tunnel.agent.close(None)
        await until(lambda: tunnel.agent_listener.closed)
        await listener.close()


async def test_many_exchanges_at_once_get_their_own_answers(tunnel: Tunnel):
    def answer(opened: Opened) -> None:
        opened.client.on_head(ResponseHead(200, ((b"x-target", opened.head.target),)), False)
        opened.client.on_data(opened.head.target * 100, True)

    tunnel.origin.at_open = answer
    visitors = [Recorder() for _ in range(500)]
    for index, visitor in enumerate(visitors):
        tunnel.edge.open(get(b"/%d" % index), PEER, True, visitor)
    await until(lambda: all(visitor.body for visitor in visitors))
    assert all(visitor.body == b"/%d" % index * 100 for index, visitor in enumerate(visitors))
    assert tunnel.edge.in_flight == 0


async def test_a_large_body_crosses_a_busy_session_whole(tunnel: Tunnel):
    body = bytes(range(256)) * 16 * 1024  # 4 MiB

    def answer(opened: Opened) -> None:
        opened.client.on_head(ResponseHead(200, ((b"content-length", b"%d" % len(body)),)), False)
        opened.client.on_data(body, True)

    tunnel.origin.at_open = answer
    visitors = [tunnel.visit() for _ in range(3)]
    await until(lambda: all(len(visitor.body) == len(body) for visitor in visitors))
    assert all(visitor.body == body for visitor in visitors)


async def test_a_slow_reader_stops_the_sender_and_lets_it_go_on_later(tunnel: Tunnel):
    visitor = Recorder()
    sink = tunnel.edge.open(get(), PEER, True, visitor)
    sink.pause_response()
    await until(lambda: tunnel.origin.opened)
    opened = tunnel.origin.opened[0]
    opened.client.on_head(OK, False)
    pushed = 0
    while ("pause",) not in opened.calls:
        opened.client.on_data(bytes(32 * 1024), False)
        pushed += 32 * 1024
        assert pushed <= 1024 * 1024
        await asyncio.sleep(0)
    sink.resume_response()
    await until(lambda: opened.calls[-1] == ("resume",))
    opened.client.on_data(b"", True)
    await until(lambda: visitor.calls[-1][-1] is True)
    assert len(visitor.body) == pushed


async def test_a_drain_lets_the_exchange_in_flight_finish(tunnel: Tunnel):
    visitor = tunnel.visit()
    await until(lambda: tunnel.origin.opened)
    tunnel.agent.drain(10.0, "going home")
    await until(lambda: tunnel.edge.state is State.DRAINING)
    tunnel.origin.opened[0].client.on_head(OK, False)
    tunnel.origin.opened[0].client.on_data(bytes(100_000), True)
    await until(lambda: tunnel.edge_listener.closed and tunnel.agent_listener.closed)
    assert tunnel.edge_listener.closed == tunnel.agent_listener.closed == [None]
    assert len(visitor.body) == 100_000


async def test_a_link_that_breaks_resets_what_was_in_flight(tunnel: Tunnel):
    visitor = tunnel.visit()
    await until(lambda: tunnel.origin.opened)
    assert tunnel.agent.link is not None
    tunnel.agent.link.abort()
    await until(lambda: tunnel.agent_listener.closed)
    assert tunnel.origin.opened[0].calls[-1][0] == "reset"
    tunnel.edge.close(None)
    assert isinstance(visitor.error, SessionLost)


async def test_the_reason_of_a_close_arrives(tunnel: Tunnel):
    tunnel.edge.close(EdgetunError("the lease of this machine ended"))
    await until(lambda: tunnel.agent_listener.closed)
    assert str(tunnel.agent_listener.closed[0]) == "the lease of this machine ended"


async def test_the_round_trip_is_known(tunnel: Tunnel):
    await until(lambda: tunnel.edge.rtt_s is not None and tunnel.agent.ping_rtt_s is not None)
    assert 0 < tunnel.edge.rtt_s < 5
    assert isinstance(tunnel.edge.hello, Hello)
