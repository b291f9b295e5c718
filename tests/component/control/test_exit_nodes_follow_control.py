"""Two exit nodes follow a control over real mTLS, without Kubernetes: a stub says whose ServiceAccount token is good."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.control_stream import STREAM_PATH, Drain, Move, decode_from_node, snapshot_digest
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import EdgetunError
from edgetun_core.fleet_identity import ExitNodeName, inner_name
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.snapshot import Snapshot
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.control.follow import Follower
from edgetun_exitnode.control.identity import IdentityRefused, NodeIdentity
from edgetun_exitnode.control.linked_node import LinkedNode
from edgetun_exitnode.node import ExitNode
from support.following import TOKEN, Control, Published
from support.origin_server import ScriptedOrigin, answering, response, scripted_origin
from support.visitors import Visitor
from support.waiting import eventually
from support.whole import HOST, TUNNEL, credential, snapshot


class Edge:
    """One exit node that follows control."""

    def __init__(self, name: str, url: str, trust: Trust, folder: Path) -> None:
        self.name, self.folder = name, folder
        token_file = folder / "token"
        folder.mkdir(exist_ok=True)
        token_file.write_text(TOKEN)
        self.identity = NodeIdentity(
            url, trust, token_file, ExitNodeName("pool", "here", name), ["127.0.0.1"], state=folder / "state"
        )
        self.ahead_s = 0.0
        self.node = ExitNode(name, wall_clock=lambda: time.time() + self.ahead_s)
        self.follower = Follower(
            LinkedNode(self.node), self.identity, folder / "state", rng=random.Random(1), retry_s=(0.05, 0.2)
        )
        self.node.acceptor.on_change = self.follower.sessions_changed

    async def start(self) -> None:
        self.identity.resume()
        self.follower.resume()
        self.http = (await self.node.listen_http("127.0.0.1", 0)).port
        self.follower.start()
        await asyncio.wait_for(self.identity.ready.wait(), 10)
        assert self.identity.server is not None
        tls, quic = await self.node.listen_tunnel("127.0.0.1", 0, self.identity.server)
        self.endpoint = Endpoint("127.0.0.1", tls, quic, self.name, inner_name("pool", "here"))

    async def close(self) -> None:
        await self.follower.close()
        await self.node.close()


class Scene:
    def __init__(self, control: Control, edges: list[Edge], ca: DevelopmentCA, stack: AsyncExitStack) -> None:
        self.control, self.edges, self.ca, self._stack = control, edges, ca, stack

    async def agent(self, url: str, **how: str) -> Agent:
        present = snapshot(url)
        self.control.publish(msgspec.structs.replace(present, version=self.control.published.present.version + 1))
        origins = Origins(present.tunnels, probe=False)
        agent = Agent(
            endpoints=[edge.endpoint for edge in self.edges],
            trust=Trust(self.ca.ca_pem),
            hello=lambda session_id: Hello(
                agent_id=how.get("agent_id", "laptop"),
                session_id=session_id,
                credential=credential(how.get("agent_id", "laptop"), how.get("token_id", "t1")),
                services=(TUNNEL,),
            ),
            handler=origins,
        )
        self._stack.push_async_callback(origins.close)
        self._stack.push_async_callback(agent.close)
        await eventually(self.are_current)
        agent.start()
        await eventually(lambda: len(agent.sessions) == 2)
        return agent

    def are_current(self) -> bool:
        wanted = snapshot_digest(self.control.published.region_snapshot("pool", "here"))
        return all(edge.follower.digest == wanted for edge in self.edges)

    async def status(self, edge: Edge) -> int:
        visitor = await Visitor.to(edge.http)
        try:
            return (await visitor.ask("/", host=HOST)).status
        finally:
            await visitor.close()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with _scene(tmp_path) as found:
        yield found


@asynccontextmanager
async def _scene(folder: Path) -> AsyncIterator[Scene]:
    ca = DevelopmentCA(folder / "ca")
    control = Control(ca, folder, Published(Snapshot(1, "pool", "here")))
    async with AsyncExitStack() as stack:
        assert ca.ca_pem
        await control.start()
        stack.push_async_callback(control.stop)
        edges = [Edge(f"n{n}", control.url, Trust(ca.ca_pem), folder / f"n{n}") for n in (1, 2)]
        for edge in edges:
            stack.push_async_callback(edge.close)
            await edge.start()
        await eventually(lambda: all(edge.follower.is_connected for edge in edges))
        yield Scene(control, edges, ca, stack)


@pytest.fixture
async def origin() -> AsyncIterator[ScriptedOrigin]:
    async with scripted_origin(answering(response())) as server:
        yield server


async def test_both_nodes_serve_what_control_publishes_and_report_their_sessions(
    scene: Scene, origin: ScriptedOrigin
) -> None:
    await scene.agent(origin.url)
    assert [await scene.status(edge) for edge in scene.edges] == [200, 200]
    await eventually(lambda: len(scene.control.heard.opened) >= 2)
    told = {(info.agent_id, info.token_id, info.services) for info in scene.control.heard.opened}
    assert told == {("laptop", "t1", 1)}
    assert {info.transport for info in scene.control.heard.opened} <= {"quic", "tls"}
    assert sum(len(node.sessions) for node in scene.control.fleet) == 2


async def test_control_away_serving_goes_on_sessions_reconnect_and_nothing_is_lost(
    scene: Scene, origin: ScriptedOrigin
) -> None:
    agent = await scene.agent(origin.url)
    await scene.control.stop()
    await eventually(lambda: not any(edge.follower.is_connected for edge in scene.edges))
    assert [await scene.status(edge) for edge in scene.edges] == [200, 200]
    # a session that breaks meanwhile comes back without control: its credential is checked offline
    (broken,) = scene.edges[0].node.acceptor.runners
    assert broken.link is not None
    broken.link.abort()
    acceptor = scene.edges[0].node.acceptor
    await eventually(lambda: len(acceptor.runners) == 1 and acceptor.runners != [broken])
    assert await scene.status(scene.edges[0]) == 200
    applied = [edge.follower.snapshots_applied for edge in scene.edges]

    await scene.control.start()  # another replica as far as anybody can tell: it remembers nothing
    await eventually(lambda: all(edge.follower.is_connected for edge in scene.edges))
    await eventually(lambda: sum(len(node.sessions) for node in scene.control.fleet) == 2)
    assert [edge.follower.snapshots_applied for edge in scene.edges] == applied, "the same content was sent again"
    assert len(agent.sessions) == 2
    scene.control.publish(msgspec.structs.replace(scene.control.published.present, version=99, tunnels=()))
    await eventually(scene.are_current)
    assert await scene.status(scene.edges[0]) == 404


async def test_control_away_a_dying_exit_node_is_replaced_by_the_other(scene: Scene, origin: ScriptedOrigin) -> None:
    agent = await scene.agent(origin.url)
    await scene.control.stop()
    dying, other = scene.edges
    await eventually(lambda: not any(edge.follower.is_connected for edge in scene.edges))
    for runner in list(dying.node.acceptor.runners):
        assert runner.link is not None
        runner.link.abort()
    await dying.close()
    await eventually(lambda: [view.node for view in agent.sessions] == ["n2", "n2"], 30)
    assert await scene.status(other) == 200
    assert agent.counters.sessions_opened >= 3


async def test_control_down_for_an_hour_agents_reconnect_with_the_credential_that_they_have(
    scene: Scene, origin: ScriptedOrigin
) -> None:
    agent = await scene.agent(origin.url)
    await scene.control.stop()
    await eventually(lambda: not any(edge.follower.is_connected for edge in scene.edges))
    for edge in scene.edges:
        edge.ahead_s = 5400.0  # the credential, good for an hour, ended half an hour ago, and nobody could renew it
    opened = [edge.node.acceptor.opened_total for edge in scene.edges]
    for edge in scene.edges:
        for runner in list(edge.node.acceptor.runners):
            runner.close(EdgetunError("cut for the test"))
    await eventually(lambda: [edge.node.acceptor.opened_total for edge in scene.edges] > opened)
    await eventually(lambda: len(agent.sessions) == 2)
    assert [await scene.status(edge) for edge in scene.edges] == [200, 200]
    # Control is back: what has ended counts no longer, and a renewal can be had.
    await scene.control.start()
    await eventually(lambda: all(edge.follower.is_connected for edge in scene.edges))
    refused = [edge.node.acceptor.refused_total for edge in scene.edges]
    for edge in scene.edges:
        for runner in list(edge.node.acceptor.runners):
            runner.close(EdgetunError("cut for the test"))
    await eventually(lambda: all(e.node.acceptor.refused_total > r for e, r in zip(scene.edges, refused, strict=True)))


async def test_a_revoked_token_loses_exactly_its_sessions_within_two_seconds(
    scene: Scene, origin: ScriptedOrigin
) -> None:
    kept = await scene.agent(origin.url, agent_id="kept", token_id="t1")
    gone = await scene.agent(origin.url, agent_id="gone", token_id="t2")
    await eventually(lambda: sum(len(node.sessions) for node in scene.control.fleet) == 4)
    began = time.monotonic()
    present = scene.control.published.present
    scene.control.publish(msgspec.structs.replace(present, version=present.version + 1, revoked_tokens=("t2",)))
    await eventually(lambda: not gone.sessions, 2.0)
    assert time.monotonic() - began < 2.0
    assert len(kept.sessions) == 2
    await eventually(lambda: {info.token_id for info in scene.control.heard.closed} == {"t2"})


async def test_a_node_that_starts_while_control_is_away_serves_the_last_snapshot_and_lets_agents_in(
    scene: Scene, origin: ScriptedOrigin
) -> None:
    await scene.agent(origin.url)
    edge = scene.edges[0]
    await eventually((edge.folder / "state" / "last-snapshot").exists)
    digest = edge.follower.digest
    await eventually(lambda: edge.follower._last_good.read("pool", "here")[1] == digest)  # type: ignore[index]
    await scene.control.stop()
    await edge.close()
    again = Edge("n1", scene.control.url, Trust(scene.ca.ca_pem), edge.folder)
    try:
        await again.start()
        assert again.follower.digest == digest
        assert not again.follower.is_connected
        assert again.node.router.table.find(HOST.encode()) is not None
    finally:
        await again.close()


async def test_sessions_are_moved_and_nodes_drained_by_order_without_cutting_anything(
    scene: Scene, origin: ScriptedOrigin
) -> None:
    agent = await scene.agent(origin.url)
    await eventually(lambda: sum(len(node.sessions) for node in scene.control.fleet) == 2)
    node = scene.control.fleet.nodes[ExitNodeName("pool", "here", "n1")]
    (session_id,) = node.sessions
    scene.control.fleet.order(node, Move((session_id,), 5.0, "moved for the test"))
    await eventually(lambda: session_id not in node.sessions)
    await eventually(lambda: len([view for view in agent.sessions if not view.is_draining]) == 2)
    scene.control.fleet.order(node, Drain(reason="emptied"))
    await eventually(lambda: not node.sessions and node.load.is_draining)
    await eventually(lambda: {view.node for view in agent.sessions} == {"n2"})


async def test_a_control_and_an_exit_node_of_other_versions_understand_each_other(
    scene: Scene, origin: ScriptedOrigin
) -> None:
    """Either may send messages of kinds, and fields, that the other knows nothing of."""
    agent = await scene.agent(origin.url)
    node = scene.control.fleet.nodes[ExitNodeName("pool", "here", "n1")]
    edge = scene.edges[0]
    connects = edge.follower.connects
    await eventually(lambda: node.sessions)
    node.send(msgspec.msgpack.encode({"type": "weather", "temperature": 21}))
    (session_id,) = node.sessions
    order = {"type": "move", "session_ids": [session_id], "deadline_s": 5.0, "by": {"whom": "a later version"}}
    node.send(msgspec.msgpack.encode(order))
    await eventually(lambda: session_id not in node.sessions)
    # and the other way: an exit node that is ahead, on the stream that stands
    scene.control.fleet.received(node, decode_from_node(msgspec.msgpack.encode({"type": "weather"})))
    later = {"type": "presence", "load": {"sessions": 7, "gpus": 1}, "mood": "fine"}
    scene.control.fleet.received(node, decode_from_node(msgspec.msgpack.encode(later)))
    assert node.load.sessions == 7
    await eventually(lambda: len([view for view in agent.sessions if not view.is_draining]) == 2)
    assert await scene.status(scene.edges[1]) == 200
    assert edge.follower.connects == connects, "nobody hung up"


async def test_nobody_follows_without_a_certificate_and_nobody_gets_one_without_the_right_account(
    scene: Scene, tmp_path: Path
) -> None:
    trust = Trust(scene.ca.ca_pem)
    for token, region, names in (
        ("another", "here", ()),
        (TOKEN, "elsewhere", ()),
        (TOKEN, "here", ("control.example",)),
    ):
        (tmp_path / "token").write_text(token)
        name = ExitNodeName("pool", region, "n9")
        with pytest.raises(IdentityRefused):
            await NodeIdentity(scene.control.url, trust, tmp_path / "token", name, names).ensure()
    connector = aiohttp.TCPConnector(ssl=trust.ssl_context(("http/1.1",)))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(scene.control.url + STREAM_PATH) as answer,
    ):
        assert answer.status == 403
        assert (await answer.json())["reason"] == "NotAnExitNode"
    stranger = DevelopmentCA(tmp_path / "other-ca")
    context = trust.ssl_context(("http/1.1",))
    cert, key = tmp_path / "cert", tmp_path / "key"
    pair = stranger.issue(["n1"])
    cert.write_bytes(pair[0])
    key.write_bytes(pair[1])
    context.load_cert_chain(cert, key)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await session.get(scene.control.url + STREAM_PATH)


async def test_an_exit_node_that_leaves_before_its_stream_begins_is_no_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.control.stop()
    await eventually(lambda: not any(edge.follower.is_connected for edge in scene.edges))
    left = []
    prepare = web.WebSocketResponse.prepare

    async def prepare_late(self: web.WebSocketResponse, request: web.BaseRequest) -> object:
        if len(left) < 2:
            left.append(request)
            assert request.transport is not None
            request.transport.abort()
            await asyncio.sleep(0.01)
        return await prepare(self, request)

    monkeypatch.setattr(web.WebSocketResponse, "prepare", prepare_late)
    await scene.control.start()
    await eventually(lambda: all(edge.follower.is_connected for edge in scene.edges), 30)
    assert len(left) == 2
    assert not [record for record in caplog.records if record.exc_info], caplog.text


async def test_a_certificate_is_renewed_at_half_its_life_and_the_listener_shows_the_new_one(
    scene: Scene, tmp_path: Path
) -> None:
    now = [time.time()]
    (tmp_path / "token").write_text(TOKEN)
    identity = NodeIdentity(
        scene.control.url,
        Trust(scene.ca.ca_pem),
        tmp_path / "token",
        ExitNodeName("pool", "here", "n5"),
        ["127.0.0.1"],
        clock=lambda: now[0],
    )
    server = await identity.ensure()
    first, version = server.cert_pem, server.version
    now[0] += 11 * 3600
    assert await identity.ensure() is server
    assert server.cert_pem == first
    now[0] += 2 * 3600
    await identity.ensure()
    assert server.cert_pem != first
    assert server.version == version + 1
