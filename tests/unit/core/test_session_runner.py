"""The runner on a link made of two lists: writes per loop tick, timers, and whose bugs end what."""

from __future__ import annotations

import asyncio
import logging

import pytest

from edgetun_core.errors import Draining, EdgetunError, NoSession, SessionLost
from edgetun_core.transport.link import Link
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.wire.hello import Hello, Refusal, Welcome
from edgetun_core.wire.states import State
from support.exchanges import PEER, Answerer, Recorder
from support.wire import HELLO, OK, get


class PairedLink:
    """One end of a link in memory; what is written arrives at the other in the loop's next tick."""

    transport = "memory"
    engine = "memory"
    peer_address = ("192.0.2.9", 4000)
    rtt_s = None

    def __init__(self, user: SessionRunner, lanes: int = 2, bulk_from: int = 2) -> None:
        self.user = user
        self.lanes = lanes
        self.bulk_from = bulk_from
        self.other: PairedLink
        self.writes: list[tuple[int, int]] = []
        self.closed_with: tuple[int, str] | None = None
        self.is_over = False

    def write(self, lane: int, data: bytes) -> None:
        self.writes.append((lane, len(data)))
        if self.closed_with is None:
            asyncio.get_running_loop().call_soon(self.other.arrive, lane, data)

    def arrive(self, lane: int, data: bytes) -> None:
        if not self.is_over:
            self.user.on_data(lane, data)

    def close(self, code: int, reason: str) -> None:
        if self.closed_with is None:
            self.closed_with = (code, reason)
            loop = asyncio.get_running_loop()
            loop.call_soon(self.end, None)
            loop.call_soon(self.other.end, None)

    def abort(self) -> None:
        self.close(0, "aborted")

    def end(self, error: EdgetunError | None) -> None:
        if not self.is_over:
            self.is_over = True
            self.user.on_closed(error)


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def on_session_open(self, runner: SessionRunner) -> None:
        self.heard.append(("open", runner))

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        self.heard.append(("draining", deadline_s))

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        self.heard.append(("closed", error))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.heard]


class Two:
    """Both ends, not connected yet."""

    def __init__(self, welcome: Welcome | Refusal | None = None, hello: Hello = HELLO) -> None:
        self.welcome = welcome or Welcome(node="n1")
        self.edge_ear, self.agent_ear = Ear(), Ear()
        self.edge_handler, self.agent_handler = Answerer(), Answerer()
        self.edge = SessionRunner.accepting(self.decide, self.edge_handler, self.edge_ear)
        self.agent = SessionRunner.dialling(hello, self.agent_handler, self.agent_ear)
        self.edge_link, self.agent_link = PairedLink(self.edge), PairedLink(self.agent)
        self.edge_link.other, self.agent_link.other = self.agent_link, self.edge_link

    def decide(self, hello: Hello, link: Link) -> Welcome | Refusal:
        assert link is self.edge_link
        return self.welcome

    async def connect(self) -> Two:
        self.edge.on_open(self.edge_link)
        self.agent.on_open(self.agent_link)
        await rest()
        return self

    def visit(self, end: bool = True) -> Recorder:
        visitor = Recorder()
        self.edge.open(get(), PEER, end, visitor)
        return visitor


async def rest() -> None:
    """Lets the loop turn until what was written has arrived and been answered."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_session_opens_and_carries_an_exchange():
    two = await Two().connect()
    assert two.edge_ear.heard == [("open", two.edge)]
    assert two.agent_ear.heard == [("open", two.agent)]
    assert two.edge.hello.agent_id == "laptop"
    assert two.agent.welcome.node == "n1"
    visitor = two.visit()
    await rest()
    two.agent_handler.opened[0].client.on_head(OK, True)
    await rest()
    assert visitor.status == 200
    assert two.agent_handler.opened[0].peer.address == "192.0.2.9"
    assert (two.edge.exchanges_opened, two.agent.exchanges_served, two.edge.in_flight) == (1, 1, 0)
    assert two.edge.counters.bytes_out == two.agent.counters.bytes_in > 0
    assert (two.edge.transport, two.edge.engine, two.edge.state) == ("memory", "memory", State.OPEN)
    assert two.edge.rtt_s is not None


async def test_what_happens_in_one_tick_leaves_in_one_write_per_lane():
    two = await Two().connect()
    before = len(two.edge_link.writes)
    for _ in range(20):
        two.visit()
    await asyncio.sleep(0)
    assert len(two.edge_link.writes) == before + 1


async def test_large_payloads_leave_in_the_same_write_as_what_is_around_them():
    two = await Two().connect()
    two.visit()
    await rest()
    before = len(two.agent_link.writes)
    client = two.agent_handler.opened[0].client
    client.on_head(OK, False)
    client.on_data(b"small", False)
    client.on_data(bytes(60_000), False)
    client.on_data(b"small", True)
    await asyncio.sleep(0)
    sizes = [size for _, size in two.agent_link.writes[before:]]
    assert len(sizes) == 1
    assert sizes[0] > 60_010


async def test_the_refusal_is_known_to_the_agent():
    two = await Two(Refusal(code=0x05, reason="full", retry_after_s=9.0)).connect()
    assert two.agent_ear.names == ["closed"]
    assert two.agent.refusal.retry_after_s == 9.0
    assert two.edge_link.closed_with == (0x05, "full")
    assert two.agent.state is two.edge.state is State.CLOSED


async def test_closing_tells_the_peer_and_closes_the_link():
    two = await Two().connect()
    visitor = two.visit()
    await rest()
    two.edge.close(EdgetunError("enough"))
    two.edge.close(EdgetunError("twice"))
    assert two.edge_ear.names == ["open", "closed"]
    assert isinstance(visitor.error, SessionLost)
    await rest()
    assert two.agent_ear.names == ["open", "closed"]
    assert str(two.agent_ear.heard[1][1]) == "enough"
    assert two.edge_link.is_over
    assert two.agent_link.is_over


async def test_a_drain_finishes_what_is_in_flight_and_closes():
    two = await Two().connect()
    visitor = two.visit()
    await rest()
    two.agent.drain(10.0, "going home")
    await rest()
    assert two.edge_ear.names == ["open", "draining"]
    assert isinstance(two.visit().error, Draining)
    two.agent_handler.opened[0].client.on_head(OK, True)
    await rest()
    assert visitor.status == 200
    assert two.edge_ear.heard[-1] == two.agent_ear.heard[-1] == ("closed", None)
    assert two.edge_link.is_over


async def test_a_drain_ends_at_its_deadline():
    two = await Two().connect()
    visitor = two.visit()
    await rest()
    two.edge.drain(0.05, "")
    async with asyncio.timeout(5):
        while two.agent_ear.names[-1] != "closed":  # noqa: ASYNC110 - the deadline is around it
            await asyncio.sleep(0.01)
    assert isinstance(visitor.error, SessionLost)


async def test_a_silent_peer_is_given_up_by_the_timer():
    two = await Two(Welcome(ping_interval_s=0.02, dead_after_s=0.1)).connect()
    two.agent_link.write = lambda lane, data: None  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        while two.edge_ear.names[-1] != "closed":  # noqa: ASYNC110 - the deadline is around it
            await asyncio.sleep(0.01)
    assert isinstance(two.edge_ear.heard[-1][1], SessionLost)


async def test_pings_keep_an_idle_session():
    two = await Two(Welcome(ping_interval_s=0.02, dead_after_s=0.2)).connect()
    await asyncio.sleep(0.5)
    assert two.edge.state is two.agent.state is State.OPEN
    two.edge.close(None)
    await rest()


async def test_nothing_can_be_opened_before_the_link_is():
    two = Two()
    assert isinstance(two.visit().error, NoSession)
    two.edge.close(None)
    assert two.edge_ear.heard == [("closed", None)]
    two.edge.on_open(two.edge_link)
    assert two.edge_link.closed_with is not None


async def test_hostile_bytes_close_the_session_and_the_link():
    two = await Two().connect()
    two.edge_link.arrive(0, b"\xff" * 64)
    await rest()
    assert two.edge_link.closed_with[0] == 0x03
    assert "unknown kind" in two.edge_link.closed_with[1] or "bytes" in two.edge_link.closed_with[1]
    assert two.edge_ear.names[-1] == "closed"


async def test_a_bug_in_a_handler_is_logged_and_the_session_goes_on(caplog: pytest.LogCaptureFixture):
    two = await Two().connect()

    def fail(_: object) -> None:
        raise ZeroDivisionError("oops")

    two.agent_handler.at_open = fail
    visitor = two.visit()
    with caplog.at_level(logging.ERROR):
        await rest()
    assert "oops" in caplog.text
    assert visitor.names() == ["reset"]
    assert two.agent.counters.bugs == 1
    assert two.agent.state is State.OPEN


@pytest.mark.parametrize("callback", ["on_session_open", "on_session_closed"])
async def test_a_bug_in_a_listener_closes_the_session_and_not_the_loop(callback: str, caplog: pytest.LogCaptureFixture):
    two = Two()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("oops")

    setattr(two.edge_ear, callback, fail)
    with caplog.at_level(logging.ERROR):
        await two.connect()
        two.edge.close(None)
        await rest()
    assert "oops" in caplog.text
    assert two.edge.state is State.CLOSED
    assert two.edge_link.is_over


async def test_a_bug_in_deciding_refuses_the_agent(caplog: pytest.LogCaptureFixture):
    two = Two()
    two.decide = None  # type: ignore[method-assign, assignment]
    two.edge._decide = lambda hello, link: 1 // 0  # type: ignore[assignment, return-value]
    with caplog.at_level(logging.ERROR):
        await two.connect()
    assert two.agent_ear.names == ["closed"]
    assert "see its log" in two.agent.refusal.reason
