"""Visitors at exit nodes that hold no session of their tunnel: real nodes, real control, real agents, mTLS between all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgetun_core.fleet_identity import exit_node_of
from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode.mesh import mesh
from edgetun_exitnode.mesh.kept import FILE_NAME
from support.mesh import ADDRESS, Meshed, MeshNode, meshed
from support.origin_server import ScriptedConnection, ScriptedOrigin, scripted_origin
from support.visitors import Visitor
from support.waiting import eventually
from support.whole import HOST, TUNNEL, snapshot


class Origin:
    """Answers what it was asked; keeps heads and bodies."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def serve(self, connection: ScriptedConnection) -> None:
        while head := await connection.request():
            self.heads.append(head)
            path = head.split(b" ", 2)[1]
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            body = await connection.read(length) if length else b""
            if path == b"/held":
                await self.hold.wait()
            if path == b"/big":
                body = b"x" * 3_000_000
            answer = body or path
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    def field(self, name: str) -> list[str]:
        lines = self.heads[-1].decode("latin-1").split("\r\n")
        return [line.partition(":")[2].strip() for line in lines if line.lower().startswith(name.lower() + ":")]


@pytest.fixture
def told() -> Origin:
    return Origin()


@pytest.fixture
async def origin(told: Origin) -> AsyncIterator[ScriptedOrigin]:
    async with scripted_origin(told.serve) as server:
        yield server


@pytest.fixture
async def scene(tmp_path: Path, origin: ScriptedOrigin) -> AsyncIterator[Meshed]:
    async with meshed(tmp_path, snapshot(origin.url), 3) as found:
        yield found


async def knows(node: MeshNode, *holders: MeshNode) -> None:
    await eventually(lambda: node.holders() == sorted(one.name for one in holders), what=f"{node.name} knows holders")


async def test_a_node_without_a_session_answers_by_one_that_holds_it(scene: Meshed, told: Origin) -> None:
    here, holder, _ = scene.nodes
    await scene.agent(holder)
    await knows(here, holder)
    visitor = await scene.visitor(here)
    answer = await visitor.ask("/a?b=c", "X-Forwarded-For: 203.0.113.9", "Traceparent: 00-1-2-01", host=HOST)
    assert (answer.status, answer.body) == (200, b"/a?b=c")
    assert (here.relayed, holder.relayed) == (1, 0)
    # the origin sees the visitor, as if they had come to the holder, and nothing of the relay
    assert told.field("x-forwarded-for") == ["127.0.0.1"]
    assert told.field("forwarded") == [f"for=127.0.0.1;host={HOST};proto=http"]
    assert told.field("via") == ["1.1 edgetun"]
    assert told.field("traceparent") == ["00-1-2-01"]
    assert told.field("cdn-loop") == [f'edgetun; tunnel="{TUNNEL}"']


async def test_bodies_pass_both_ways_whole(scene: Meshed) -> None:
    here, holder, _ = scene.nodes
    await scene.agent(holder)
    await knows(here, holder)
    visitor = await scene.visitor(here)
    body = bytes(range(256)) * 4_000
    visitor.send(f"POST /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode(), body)
    assert (await visitor.answer(b"POST")).body == body
    assert len((await visitor.ask("/big", host=HOST)).body) == 3_000_000


async def test_a_local_session_is_used_and_no_other_node_asked(scene: Meshed) -> None:
    here, other, _ = scene.nodes
    await scene.agent(here, other)
    await knows(here, other)
    assert [await scene.status(here) for _ in range(5)] == [200] * 5
    assert here.relayed == 0
    assert here.mesh.links == 0


async def test_a_dead_holder_is_skipped_within_one_failed_try(scene: Meshed) -> None:
    here, first, second = scene.nodes
    await scene.agent(first, second)
    await knows(here, first, second)
    assert await scene.status(here) == 200
    visitor = await scene.visitor(here)
    await first.kill()
    for _ in range(20):
        assert (await visitor.ask("/", host=HOST)).status == 200
    assert here.mesh.dials_failed <= 1


async def test_a_safe_request_whose_holder_dies_before_it_answered_is_asked_again_elsewhere(
    scene: Meshed, told: Origin
) -> None:
    here, first, second = scene.nodes
    await scene.agent(first)
    await knows(here, first)
    told.hold.clear()
    visitor = await scene.visitor(here)
    visitor.timeout_s = 15
    asking = asyncio.create_task(visitor.ask("/held", host=HOST))
    await eventually(lambda: len(told.heads) == 1)
    await scene.agent(second, agent_id="another")
    await knows(here, first, second)
    await first.kill()
    told.hold.set()
    assert (await asking).status == 200
    assert len(told.heads) == 2


async def test_a_draining_node_is_relayed_to_no_more_and_relays_what_it_still_gets(scene: Meshed, told: Origin) -> None:
    leaving, holder, here = scene.nodes
    agent = await scene.agent(leaving, sessions=1)
    await knows(here, leaving)
    assert await scene.status(here) == 200
    old = await scene.visitor(leaving)
    assert (await old.ask("/", host=HOST)).status == 200
    told.hold.clear()
    slow = await scene.visitor(here)
    slow.timeout_s = 15
    held = asyncio.create_task(slow.ask("/held", host=HOST))
    await eventually(lambda: len(told.heads) == 3)

    await scene.agent(holder, agent_id="another")
    await knows(here, leaving, holder)
    draining = asyncio.create_task(leaving.drain(10.0))
    await eventually(lambda: here.holders() == [holder.name])
    await eventually(lambda: not leaving.node.registry.shares())
    # a visitor who keeps the connection to the leaving node is answered through the other one
    old.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    with suppress(asyncio.IncompleteReadError):
        assert (await old.answer()).status == 200
    assert [await scene.status(here) for _ in range(5)] == [200] * 5
    # what was relayed there before ends there
    assert not held.done()
    told.hold.set()
    assert (await held).status == 200
    await draining
    assert await scene.status(here) == 200
    assert agent is not None


async def test_a_new_node_is_ready_only_with_snapshot_and_presence_and_answers_its_first_visitor(scene: Meshed) -> None:
    await scene.agent(scene.nodes[0])
    await knows(scene.nodes[1], scene.nodes[0])
    new = await scene.node()
    await eventually(lambda: new.is_ready)
    assert new.node.readiness()[1]["presence"] is True
    assert new.holders() == [scene.nodes[0].name], "ready, and does not know who holds the tunnel"
    assert await scene.status(new) == 200


async def test_control_away_nodes_ask_each_other_and_one_that_restarts_remembers_whom(scene: Meshed) -> None:
    here, first, second = scene.nodes
    await scene.agent(first)
    await knows(here, first)
    assert await scene.status(here) == 200
    await eventually((here.settings.state / FILE_NAME).exists)
    await eventually(lambda: second.name.encode() in (here.settings.state / FILE_NAME).read_bytes())
    await scene.control.stop()
    await eventually(lambda: not any(one.mesh.holders.is_complete for one in scene.nodes))
    # the only holder goes, and the agent comes to a node that nobody was told of
    await first.kill()
    await scene.agent(second, agent_id="another")
    assert await scene.status(here) == 200
    assert here.mesh.asked_total >= 1 or here.holders() == [second.name]
    await here.close()
    again = MeshNode("n1", scene.control, here.settings.state.parent)
    try:
        await again.start()
        assert again.is_ready
        assert await scene.status(again) == 200
    finally:
        await again.close()


async def test_a_tunnel_that_nobody_holds_is_told_so_after_one_round_of_asking(
    scene: Meshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "ASK_AGAIN_FIRST_S", 30.0)
    here = scene.nodes[0]
    pool = here.node.registry.pool(TUNNEL)
    pool._lost_at -= 60  # the laptop has been off for a minute
    assert await scene.status(here) == 503
    asked = here.mesh.asked_total
    assert asked == 1
    assert [await scene.status(here) for _ in range(3)] == [503] * 3
    assert here.mesh.asked_total == asked, "the same was asked again at once"


async def test_two_nodes_that_believe_each_other_to_hold_it_turn_in_no_circle(scene: Meshed) -> None:
    here, other, third = scene.nodes
    for one in scene.nodes:
        one.node.registry.pool(TUNNEL)._lost_at -= 60
        for another in scene.nodes:
            one.mesh.holders.answered(TUNNEL, another.name, one.mesh.clock())
    assert await scene.status(here) == 503
    assert here.relayed <= 3
    assert other.relayed + third.relayed <= 6


async def test_who_shows_no_certificate_of_the_fleet_gets_no_session(scene: Meshed, tmp_path: Path) -> None:
    node = scene.nodes[0]
    assert node.mesh.relay is not None
    port = node.mesh.relay.tls_port
    trust = ssl.create_default_context(cadata=scene.control.ca.ca_pem.decode())
    trust.set_alpn_protocols(["edgetun/1"])
    stranger = DevelopmentCA(tmp_path / "stranger")
    cert, key = stranger.issue(["n1"])
    (tmp_path / "pair.pem").write_bytes(key + cert)
    with_cert = ssl.create_default_context(cadata=scene.control.ca.ca_pem.decode())
    with_cert.set_alpn_protocols(["edgetun/1"])
    with_cert.load_cert_chain(tmp_path / "pair.pem")
    for context in (trust, with_cert):
        visitor = await Visitor.to(port, tls=context, server_name="here.pool.exit.edgetun.internal", host=ADDRESS)
        visitor.send(b"EGTN" + bytes(52))
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await visitor.reader.readexactly(1)  # who got in would be told that transport version 0 is not spoken
        visitor.writer.transport.abort()
    assert node.mesh.links == 0
    # an agent's port gives no way in either: what comes there is of no exit node
    assert exit_node_of(None) is None


async def test_nodes_of_two_replicas_of_control_find_each_other_by_what_agents_statuses_say(
    scene: Meshed, origin: ScriptedOrigin, tmp_path: Path
) -> None:
    from edgetun_control.agents import parse_relay, render_relay
    from support.following import Control

    other = Control(scene.control.ca, scene.control.folder, scene.control.published)
    await other.start()
    try:
        far = await scene.node(other)
        await eventually(lambda: far.is_ready)
        here = scene.nodes[0]
        await scene.agent(far)
        assert here.holders() == []
        node = next(iter(other.fleet))
        assert node.hello.relay is not None
        said = parse_relay(render_relay(node.name, node.hello.relay))
        assert said is not None
        scene.control.fleet.shown("team/laptop", {said[0]: (said[1], 1)}, frozenset({TUNNEL}))
        await knows(here, far)
        assert await scene.status(here) == 200
        scene.control.fleet.shown("team/laptop", {}, frozenset())
        await eventually(lambda: far.name not in here.mesh.holders.peers)
    finally:
        await other.stop()
