"""The agent's sessions against an exit node in the test: real TLS and QUIC on loopback."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from edgetun_agent import connect as connect_module
from edgetun_agent import dialling as dialling_module
from edgetun_agent import endpoints as endpoints_module
from edgetun_agent import race as race_module
from edgetun_agent import udp_memory
from edgetun_agent.connect import Agent
from edgetun_agent.observe import SessionView, SilentListener
from edgetun_agent.serve import Origins
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import AuthError, Draining, EdgetunError, NotFound, UpstreamUnreachable
from edgetun_core.http.message import RequestHead
from edgetun_core.pki import DevelopmentCA, ServerIdentity
from edgetun_core.snapshot import OriginRule, RouteRule, TunnelRule
from edgetun_core.transport.link import LinkUser
from edgetun_core.wire.hello import Hello, Refusal, Welcome
from support.edge import TestEdge, edge
from support.exchanges import PEER, Answerer, request
from support.impairment import Impairment
from support.impairment.tcp_path import tcp_path
from support.impairment.udp_path import udp_path
from support.origin_server import DEADLINE_S, ScriptedConnection, Visitor, answering, response, scripted_origin

SERVICE = "team-a/shop"


class Told(SilentListener):
    """Keeps what the agent tells people."""

    def __init__(self) -> None:
        self.troubles: list[str] = []
        self.sessions: list[list[SessionView]] = []

    def on_trouble(self, message: str) -> None:
        self.troubles.append(message)

    def on_sessions_changed(self, sessions: list[SessionView]) -> None:
        self.sessions.append(sessions)


def hello(session_id: str) -> Hello:
    return Hello(agent_id="laptop", session_id=session_id, credential="secret", services=(SERVICE,))


@asynccontextmanager
async def agent_of(authority: DevelopmentCA, *endpoints: Endpoint, **options: Any) -> AsyncIterator[Agent]:
    agent = Agent(
        endpoints=endpoints,
        trust=authority.trust,
        **{"hello": hello, "handler": Answerer(), "rng": random.Random(1)} | options,
    )
    agent.start()
    try:
        yield agent
    finally:
        await agent.close()


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for lives on sockets
            await asyncio.sleep(0.005)


def dead_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def shop(head: RequestHead) -> RequestHead:
    return head.replace(service=SERVICE)


async def test_an_agent_keeps_two_sessions_to_one_exit_node_over_quic(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    async with edge(identity, "tls", "quic") as node, agent_of(authority, node.endpoint()) as agent:
        await agent.connected(DEADLINE_S)
        await eventually(lambda: len(node.open) == 2)
        assert node.transports == ["quic", "quic"]
        assert len({said.session_id for said in node.hellos}) == 2
        await eventually(lambda: len(agent.sessions) == 2)
        assert {(view.node, view.transport) for view in agent.sessions} == {("node-1", "quic")}
        assert agent.counters.sessions_opened == 2


async def test_two_exit_nodes_get_a_session_each(authority: DevelopmentCA, identity: ServerIdentity) -> None:
    async with (
        edge(identity, "tls", name="node-1") as one,
        edge(identity, "tls", name="node-2") as two,
        agent_of(authority, one.endpoint(), two.endpoint()),
    ):
        await eventually(lambda: len(one.open) == 1 and len(two.open) == 1)


async def test_requests_come_down_a_session_to_the_origin(authority: DevelopmentCA, identity: ServerIdentity) -> None:
    async with scripted_origin(answering(response(b"from the laptop"))) as origin, edge(identity, "quic") as node:
        rule = TunnelRule(SERVICE, ("shop.test",), (OriginRule("web", origin.url),), (RouteRule(),))
        origins = Origins([rule])
        try:
            async with agent_of(authority, node.endpoint(), handler=origins):
                await eventually(lambda: node.open)
                for service, body in ((SERVICE, b"from the laptop"), (SERVICE + "#web", b"from the laptop")):
                    visitor = Visitor()
                    node.open[0].open(request(b"/a").replace(service=service), PEER, True, visitor)
                    await visitor.ended()
                    assert (visitor.status, visitor.body) == (200, body)
                stranger = Visitor()
                node.open[0].open(request().replace(service="team-b/other"), PEER, True, stranger)
                await stranger.ended()
                assert isinstance(stranger.error, NotFound)
        finally:
            await origins.close()


async def test_tls_takes_over_when_udp_is_dead(
    authority: DevelopmentCA, identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race_module.Race.__init__, "__defaults__", (0.2,))
    async with edge(identity, "tls") as node, agent_of(authority, node.endpoint(quic=dead_udp_port())) as agent:
        await eventually(lambda: len(agent.sessions) == 2)
        assert set(node.transports) == {"tls"}
        assert len(node.hellos) == 2, "a transport that lost must not have said hello"
        assert agent.counters.fallbacks >= 1


class DeafLink:
    """A link whose peer never answers; keeps what is done to it."""

    engine = "fake"
    lanes = bulk_from = 1
    peer_address = ("192.0.2.1", 443)
    rtt_s = None

    def __init__(self, transport: str, user: LinkUser) -> None:
        self.transport = transport
        self.user = user
        self.done: list[str] = []

    def write(self, lane: int, data: bytes) -> None:
        self.done.append("write")

    def close(self, code: int, reason: str) -> None:
        self.abort()

    def abort(self) -> None:
        self.done.append("abort")
        asyncio.get_running_loop().call_soon(self.user.on_closed, None)


async def test_of_two_links_that_open_at_the_same_moment_only_one_says_hello(
    authority: DevelopmentCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[DeafLink] = []

    async def dial(engine: str, host: str, port: int, *, user: LinkUser, **_: Any) -> DeafLink:
        link = DeafLink("tls" if engine == "tls" else "quic", user)
        links.append(link)
        if len(links) == 2:
            for opened in links:
                asyncio.get_running_loop().call_soon(opened.user.on_open, opened)
        await asyncio.sleep(DEADLINE_S)
        return link

    monkeypatch.setattr(dialling_module, "dial", dial)
    monkeypatch.setattr(race_module.Race.__init__, "__defaults__", (0.01,))
    async with agent_of(authority, Endpoint("192.0.2.1", 443, 443), sessions=1):
        await eventually(lambda: len(links) == 2 and all(link.done for link in links))
        assert sorted(link.done for link in links) == [["abort"], ["write"]]


async def test_dead_udp_is_remembered_so_the_next_session_starts_with_tls(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    async with edge(identity, "tls") as node:
        # A head start that no test would survive: only what is remembered can be quick.
        endpoint = node.endpoint(quic=dead_udp_port())
        async with agent_of(authority, endpoint, sessions=1) as agent:
            agent.udp(endpoint).lost_to_tls(time.monotonic(), 0.5)
            await agent.connected(1.5)
            assert agent.sessions[0].transport == "tls"


async def test_quic_is_taken_back_when_udp_works_again(
    authority: DevelopmentCA, identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_memory, "DEAD_FIRST_S", 0.2)
    monkeypatch.setattr(udp_memory, "HEALTHY_S", 0.1)
    monkeypatch.setattr(race_module.Race.__init__, "__defaults__", (0.1,))
    port = dead_udp_port()
    async with (
        edge(identity, "tls") as node,
        agent_of(authority, node.endpoint(quic=port), sessions=1) as agent,
    ):
        await agent.connected(DEADLINE_S)
        assert node.transports == ["tls"]
        await node.listen("quic", identity, port)
        await eventually(lambda: node.transports == ["quic"])
        assert agent.is_connected
        assert node.hellos[0].session_id != node.hellos[-1].session_id, "the old one lived still"


@pytest.mark.parametrize("transport", ["quic", "tls"])
async def test_only_the_transport_that_was_asked_for_is_used(
    authority: DevelopmentCA, identity: ServerIdentity, transport: Any
) -> None:
    async with (
        edge(identity, "tls", "quic") as node,
        agent_of(authority, node.endpoint(), transport=transport) as agent,
    ):
        await eventually(lambda: len(agent.sessions) == 2)
        assert set(node.transports) == {transport}


@pytest.mark.parametrize("kind", ["quic", "tls"])
async def test_a_lost_session_comes_back_with_its_session_id(
    authority: DevelopmentCA, identity: ServerIdentity, kind: str
) -> None:
    async with edge(identity, kind) as node, agent_of(authority, node.endpoint(), sessions=1) as agent:
        await agent.connected(DEADLINE_S)
        first = node.hellos[0]
        assert node.open[0].link is not None
        node.open[0].link.abort()
        await eventually(lambda: len(node.hellos) == 2)
        await eventually(lambda: agent.is_connected)
        assert node.hellos[1].session_id == first.session_id
        assert agent.counters.reconnects == 1


async def test_an_agent_waits_for_an_exit_node_that_is_not_there_yet(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    told = Told()
    async with edge(identity, "tls") as node:
        port = await node.stop("tls")
        async with agent_of(authority, node.endpoint(tls=port), listener=told) as agent:
            await eventually(lambda: agent.counters.connect_failures >= 2)
            assert isinstance(agent.last_error, UpstreamUnreachable)
            assert not agent.is_connected
            assert len(told.troubles) == 1, "said once, not per attempt"
            await node.listen("tls", identity, port)
            await agent.connected(DEADLINE_S)


async def test_a_draining_exit_node_is_left_after_another_session_is_open(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    async def slow(connection: ScriptedConnection) -> None:
        await connection.request()
        await release.wait()
        await connection.send(response(b"finished"))

    release = asyncio.Event()
    async with (
        scripted_origin(slow) as origin,
        edge(identity, "tls", name="old") as old,
        edge(identity, "tls", name="new") as new,
    ):
        rule = TunnelRule(SERVICE, ("shop.test",), (OriginRule("web", origin.url),), (RouteRule(),))
        origins = Origins([rule], probe=False)
        try:
            async with agent_of(authority, old.endpoint(), new.endpoint(), handler=origins) as agent:
                await eventually(lambda: old.open and new.open)
                visitor = Visitor()
                leaving = old.open[0]
                leaving.open(shop(request()), PEER, True, visitor)
                await eventually(lambda: origins.in_flight == 1)
                leaving.drain(10.0, "a new version is being rolled out")
                await eventually(lambda: len(new.open) == 2)
                assert leaving in old.open, "the exchange under way keeps the old session"
                assert agent.is_connected
                ids = {said.session_id for said in new.hellos}
                assert old.hellos[0].session_id not in ids
                release.set()
                await visitor.ended()
                assert visitor.body == b"finished"
                await eventually(lambda: leaving not in old.open)
                assert agent.counters.reconnects == 0
        finally:
            await origins.close()


class Late(random.Random):
    """The last moment of every jitter."""

    def random(self) -> float:
        return 0.999


async def test_agents_with_another_session_leave_what_drains_spread_out(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    async with (
        edge(identity, "tls", name="old") as old,
        edge(identity, "tls", name="new") as new,
        agent_of(authority, old.endpoint(), new.endpoint(), rng=Late()) as agent,
    ):
        await eventually(lambda: old.open and new.open and len(agent.sessions) == 2)
        began = time.monotonic()
        old.open[0].drain(4.0, "a new version is being rolled out")
        await eventually(lambda: len(new.open) == 2)
        assert time.monotonic() - began >= 0.35, "a tenth of the deadline"
        assert agent.counters.reconnects == 0


async def test_an_agent_whose_only_session_drains_does_not_wait(
    authority: DevelopmentCA, identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(connect_module, "decide_drained_delay_s", lambda *_: waits.append(1.0) or 1.0)
    async with (
        edge(identity, "tls", name="old") as old,
        edge(identity, "tls", name="new") as new,
        agent_of(authority, old.endpoint(), new.endpoint(), sessions=1) as agent,
    ):
        await eventually(lambda: old.open or new.open)
        leaving, other = (old, new) if old.open else (new, old)
        leaving.open[0].drain(60.0, "a new version is being rolled out")
        await eventually(lambda: other.open and agent.is_connected)
        assert waits == []


async def test_a_node_that_drains_and_comes_back_is_used_again(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    async with edge(identity, "tls") as node, agent_of(authority, node.endpoint(), sessions=1) as agent:
        await agent.connected(DEADLINE_S)
        error = Draining("going away")
        answer, node.answer = (
            node.answer,
            lambda _: Refusal(code=error.presentation.close_code, reason=str(error), retry_after_s=0.01),
        )
        node.open[0].drain(0.2, "restart")
        await eventually(lambda: len(node.hellos) >= 3)
        node.answer = answer
        await eventually(lambda: agent.is_connected)


@pytest.mark.parametrize("withdrawn", ["after it refused", "while it was asked"])
async def test_an_exit_node_that_refused_a_session_is_used_when_it_is_offered_again(
    authority: DevelopmentCA, identity: ServerIdentity, withdrawn: str
) -> None:
    async with edge(identity, "tls", name="here") as here, edge(identity, "tls", name="back") as back:
        answer, error = back.answer, Draining("going away")
        both = here.endpoint(), back.endpoint()

        def refuse(_: Hello) -> Refusal:
            if withdrawn == "while it was asked":
                agent.update(both[:1], authority.trust)
            return Refusal(code=error.presentation.close_code, reason=str(error), retry_after_s=0.01)

        back.answer = refuse
        async with agent_of(authority, *both) as agent:
            await eventually(lambda: len(here.open) == len(agent.sessions) == 2)
            assert back.hellos
            agent.update(both[:1], authority.trust)
            back.answer = answer
            agent.update(both, authority.trust)
            await eventually(lambda: len(here.open) == len(back.open) == 1)
            assert agent.counters.reconnects == 0


async def test_an_exit_node_that_failed_is_tried_again_after_a_while_though_nobody_says_anything(
    authority: DevelopmentCA, identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints_module, "LOOK_AGAIN_S", 0.3)
    async with edge(identity, "tls", name="here") as here, edge(identity, "tls", name="back") as back:
        port = await back.stop("tls")
        async with agent_of(authority, here.endpoint(), back.endpoint(tls=port)) as agent:
            await eventually(lambda: len(here.open) == 2 and len(agent.sessions) == 2)
            await back.listen("tls", identity, port)
            await eventually(lambda: len(here.open) == len(back.open) == 1)
            assert agent.counters.reconnects == 0


async def test_an_exit_node_that_is_offered_while_a_session_is_on_its_way_elsewhere_is_not_forgotten(
    authority: DevelopmentCA, identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with edge(identity, "tls", name="here") as here, edge(identity, "tls", name="new") as new:
        dead = Endpoint("127.0.0.1", dead_udp_port(), 0, "dead")
        async with agent_of(authority, here.endpoint()) as agent:
            await eventually(lambda: len(agent.sessions) == 2)
            attempt = agent.attempt

            def offered_at_the_worst_time(endpoint: Endpoint, *more: Any) -> Any:
                if endpoint == here.endpoint() and new.endpoint() not in agent.endpoints:
                    agent.update((here.endpoint(), new.endpoint()), authority.trust)
                return attempt(endpoint, *more)

            monkeypatch.setattr(agent, "attempt", offered_at_the_worst_time)
            # The newest session leaves for one that is not there, and comes back; its old one stands until then.
            agent.update((here.endpoint(), dead), authority.trust)
            await eventually(lambda: len(here.open) == len(new.open) == 1)
            assert agent.counters.reconnects == 0


async def test_an_exit_node_that_drains_is_not_gone_back_to_until_it_is_offered_anew(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    async with edge(identity, "tls", name="here") as here, edge(identity, "tls", name="old") as old:
        both = here.endpoint(), old.endpoint()
        async with agent_of(authority, *both) as agent:
            await eventually(lambda: len(here.open) == len(old.open) == 1)
            old.open[0].drain(5.0, "a new version is being rolled out")
            await eventually(lambda: len(here.open) == 2 and not old.open)
            for _ in range(3):
                agent.update(both, authority.trust)  # control does not know yet
            await asyncio.sleep(0.2)
            assert len(old.hellos) == 1
            agent.update(both[:1], authority.trust)
            agent.update(both, authority.trust)
            await eventually(lambda: len(here.open) == len(old.open) == 1)


async def test_stopping_lets_requests_end_and_says_goodbye(authority: DevelopmentCA, identity: ServerIdentity) -> None:
    answerer = Answerer()
    async with edge(identity, "tls", "quic") as node, agent_of(authority, node.endpoint(), handler=answerer) as agent:
        await eventually(lambda: len(node.open) == 2)
        visitor = Visitor()
        runner = node.open[0]
        runner.open(shop(request()), PEER, True, visitor)
        await eventually(lambda: answerer.opened)
        stopping = asyncio.ensure_future(agent.drain(5.0))
        await eventually(lambda: runner not in node.open or runner.state.value == "draining")
        assert not stopping.done()
        late = Visitor()
        runner.open(shop(request()), PEER, True, late)
        assert isinstance(late.error, EdgetunError)
        from edgetun_core.http.message import ResponseHead

        answerer.opened[0].client.on_head(ResponseHead(204, ()), True)
        await visitor.ended()
        assert visitor.status == 204
        began = time.monotonic()
        await stopping
        assert time.monotonic() - began < 4
        await eventually(lambda: not node.open)
        assert [error for _, error in node.closed] == [None, None], "in good order"


async def test_stopping_does_not_wait_longer_than_the_deadline(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    answerer = Answerer()
    async with edge(identity, "tls") as node, agent_of(authority, node.endpoint(), handler=answerer) as agent:
        await agent.connected(DEADLINE_S)
        await eventually(lambda: node.open)
        visitor = Visitor()
        node.open[0].open(shop(request()), PEER, True, visitor)
        await eventually(lambda: answerer.opened)
        began = time.monotonic()
        await agent.drain(0.2)
        assert time.monotonic() - began < 5
        await visitor.ended()
        assert visitor.names() == ["reset"]


@pytest.mark.parametrize("transport", ["tls", "quic"])
async def test_stopping_with_nothing_under_way_does_not_wait_for_an_exit_node_that_is_gone_without_a_word(
    authority: DevelopmentCA, identity: ServerIdentity, caplog: pytest.LogCaptureFixture, transport: str
) -> None:
    async with edge(identity, transport) as node:
        there = node.endpoint()
        async with tcp_path(there.tls_port) as tcp, udp_path(there.quic_port) as udp:
            ports = (tcp.port, 0) if transport == "tls" else (0, udp.port)
            by_path = Endpoint("127.0.0.1", *ports, there.node, there.server_name)
            async with agent_of(authority, by_path, transport=transport) as agent:
                await eventually(lambda: len(agent.sessions) == 2)
                for path in (tcp, udp):
                    path.set(Impairment(is_black_hole=True))
                async with asyncio.timeout(12):  # silence is noticed after 15 s, and the drain may take 60
                    await agent.drain(60.0)
    assert "did not end within" not in caplog.text


async def test_a_refused_credential_is_said_and_not_tried_again_at_once(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    told = Told()
    refused: list[EdgetunError] = []
    async with edge(identity, "tls") as node:
        answer = node.answer
        node.answer = lambda _: Refusal(reason="the cluster token was revoked", retry_after_s=-1.0)
        async with agent_of(authority, node.endpoint(), listener=told, on_refused=refused.append, sessions=1) as agent:
            with pytest.raises(AuthError, match="revoked"):
                await agent.connected(DEADLINE_S)
            await asyncio.sleep(0.5)
            assert len(node.hellos) == 1
            assert [type(error) for error in refused] == [AuthError]
            assert "revoked" in told.troubles[0]
            node.answer = answer
            agent.retry_now()  # as after a renewal
            await agent.connected(DEADLINE_S)


async def test_a_session_closed_for_a_revoked_token_is_not_reopened_at_once(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    told = Told()
    async with (
        edge(identity, "tls") as node,
        agent_of(authority, node.endpoint(), listener=told, sessions=1) as agent,
    ):
        await agent.connected(DEADLINE_S)
        await eventually(lambda: node.open)
        node.open[0].close(AuthError("the cluster token was revoked", remedy="ask for a new token"))
        await eventually(lambda: told.troubles)
        assert "ask for a new token" in told.troubles[0]
        await asyncio.sleep(0.3)
        assert len(node.hellos) == 1


async def test_an_exit_node_that_nobody_vouches_for_is_refused(
    identity: ServerIdentity, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = DevelopmentCA(tmp_path_factory.mktemp("stranger"))
    async with edge(identity, "tls", "quic") as node, agent_of(stranger, node.endpoint()) as agent:
        with pytest.raises(AuthError, match="not trusted"):
            await agent.connected(DEADLINE_S)
        assert node.hellos == []


async def test_a_clock_that_is_wrong_is_said(authority: DevelopmentCA, identity: ServerIdentity) -> None:
    told = Told()
    async with edge(identity, "tls") as node:
        async with agent_of(authority, node.endpoint(), listener=told, wall_clock=lambda: time.time() + 90):
            await eventually(lambda: told.troubles)
        assert len(told.troubles) == 1
        assert "clock is 90 s ahead of that of node-1" in told.troubles[0]


async def test_a_tunnel_that_is_not_accepted_is_said(authority: DevelopmentCA, identity: ServerIdentity) -> None:
    told = Told()
    async with edge(identity, "tls") as node:
        node.answer = lambda _: Welcome(node="node-1", refused=((SERVICE, "reserved by team-b"),))
        async with agent_of(authority, node.endpoint(), listener=told):
            await eventually(lambda: told.troubles)
        assert told.troubles == [f'node-1 does not let this agent serve "{SERVICE}": reserved by team-b']


async def test_the_display_hears_of_sessions_as_they_come_and_go(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    told = Told()
    async with edge(identity, "quic") as node, agent_of(authority, node.endpoint(), listener=told, sessions=1) as agent:
        await agent.connected(DEADLINE_S)
        await eventually(lambda: told.sessions and told.sessions[-1])
        [view] = told.sessions[-1]
        assert (view.node, view.transport, view.is_draining) == ("node-1", "quic", False)
        await eventually(lambda: agent.sessions[0].rtt_s is not None)


async def test_sessions_are_opened_anew_when_what_they_serve_has_changed(
    authority: DevelopmentCA, identity: ServerIdentity
) -> None:
    services = [SERVICE]

    def current(session_id: str) -> Hello:
        return Hello(agent_id="laptop", session_id=session_id, credential="secret", services=tuple(services))

    async with edge(identity, "tls") as node, agent_of(authority, node.endpoint(), hello=current) as agent:
        await eventually(lambda: len(node.open) == 2)  # the agent may not know of both yet
        old = list(node.open)
        services.append("team-a/blog")
        agent.reopen("the tunnels to serve have changed")
        await eventually(lambda: len(node.open) == 2 and not set(old) & set(node.open))
        assert [said.services for said in node.hellos[2:]] == [(SERVICE, "team-a/blog")] * 2
        assert len({said.session_id for said in node.hellos}) == 4, "the old ones lived still"
        assert [error for _, error in node.closed] == [None, None]
        assert agent.counters.reconnects == 0


@pytest.fixture(autouse=True)
def _short_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_module, "LEAVE_WITHIN_S", 5.0)


def test_an_edge_is_not_collected_as_a_test() -> None:
    assert TestEdge.__test__ is False
