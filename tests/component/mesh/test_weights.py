"""Weight and standby over several exit nodes: real nodes, real control, real agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgetun_core.control_stream import PeerChange
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.mesh import mesh as mesh_module
from support.mesh import Meshed, MeshNode, meshed
from support.origin_server import ScriptedConnection, ScriptedOrigin, scripted_origin
from support.waiting import eventually
from support.whole import HOST, TUNNEL, snapshot


async def echo(connection: ScriptedConnection) -> None:
    while head := await connection.request():
        lines = head.lower().split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
        body = await connection.read(length) if length else head.split(b" ", 2)[1]
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture
async def origin() -> AsyncIterator[ScriptedOrigin]:
    async with scripted_origin(echo) as server:
        yield server


@pytest.fixture
async def scene(tmp_path: Path, origin: ScriptedOrigin) -> AsyncIterator[Meshed]:
    async with meshed(tmp_path, snapshot(origin.url), 3) as found:
        yield found


def shares(node: MeshNode) -> dict[str, int]:
    return {one: node.mesh.holders.share(TUNNEL, one) for one in node.holders()}


async def knows(node: MeshNode, wanted: dict[MeshNode, int]) -> None:
    expected = {one.name: share for one, share in wanted.items()}
    await eventually(lambda: shares(node) == expected, what=f"{node.name} knows {expected}, now {shares(node)}")


def asked(scene: Meshed) -> dict[str, int]:
    """Requests that each agent was given, by any node."""
    found: dict[str, int] = {}
    for one in scene.nodes:
        for runner in one.node.acceptor.runners:
            assert runner.hello is not None
            found[runner.hello.agent_id] = found.get(runner.hello.agent_id, 0) + runner.exchanges_opened
    return found


async def test_a_standby_serves_only_while_no_node_has_better(scene: Meshed) -> None:
    here, office, _ = scene.nodes
    await scene.agent(here, agent_id="spare", weight=2, standby=True)
    visitor = await scene.visitor(here)
    assert (await visitor.ask("/alone", host=HOST)).body == b"/alone"
    assert asked(scene) == {"spare": 1}

    primary = await scene.agent(office, agent_id="server")
    await knows(here, {office: 1})
    await knows(office, {here: -2})
    assert [(await visitor.ask("/", host=HOST)).status for _ in range(5)] == [200] * 5
    visitor.send(f"POST /x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\n".encode(), b"body")
    assert (await visitor.answer(b"POST")).body == b"body"
    assert await scene.status(office) == 200
    assert asked(scene) == {"spare": 1, "server": 7}
    assert (here.relayed, office.relayed) == (6, 0)

    await primary.close()
    assert [(await visitor.ask("/", host=HOST)).status for _ in range(5)] == [200] * 5, "before the news, and after"
    await knows(here, {})
    assert asked(scene) == {"spare": 6}


async def test_a_standby_takes_over_when_the_node_with_better_dies_without_a_word(scene: Meshed) -> None:
    here, office, _ = scene.nodes
    await scene.agent(here, agent_id="spare", standby=True)
    await scene.agent(office, agent_id="server")
    await knows(here, {office: 1})
    visitor = await scene.visitor(here)
    assert (await visitor.ask("/", host=HOST)).status == 200
    assert here.relayed == 1
    await office.kill()
    assert [(await visitor.ask("/", host=HOST)).status for _ in range(10)] == [200] * 10
    assert asked(scene)["spare"] == 10


async def test_two_standbys_that_each_take_the_other_for_better_do_not_send_a_visitor_round(scene: Meshed) -> None:
    here, other, third = scene.nodes
    await scene.agent(here, agent_id="one", standby=True)
    await scene.agent(other, agent_id="two", standby=True)
    await knows(here, {other: -1})
    await knows(other, {here: -1})
    for node, wrong in ((here, other), (other, here)):
        node.mesh.holders.answered(TUNNEL, wrong.name, node.mesh.clock(), 5)
    assert await scene.status(here) == 200
    assert (here.relayed, other.relayed) == (1, 0)
    assert asked(scene) == {"one": 0, "two": 1}
    await knows(third, {here: -1, other: -1})
    assert await scene.status(third) == 200, "which sends to one of them, and that to the other, and no further"
    assert here.relayed + other.relayed == 2


async def test_a_node_without_a_session_shares_out_by_weight_and_asks_no_standby(scene: Meshed) -> None:
    here, light, heavy = scene.nodes
    spare = await scene.node()
    await scene.agent(light, agent_id="laptop", weight=1)
    await scene.agent(heavy, agent_id="server", weight=2)
    await scene.agent(heavy, agent_id="another", weight=1)
    await scene.agent(spare, agent_id="spare", weight=100, standby=True)
    await knows(here, {light: 1, heavy: 3, spare: -100})
    visitor = await scene.visitor(here)
    for _ in range(2):  # both are dialled, and one may be reached before the other
        assert (await visitor.ask("/", host=HOST)).status == 200
        await eventually(lambda: here.mesh.links == 2)
    before = asked(scene)
    for _ in range(80):
        assert (await visitor.ask("/", host=HOST)).status == 200
    taken = {one: count - before[one] for one, count in asked(scene).items()}
    assert 18 <= taken["laptop"] <= 22, taken
    assert taken["spare"] == 0


async def test_keys_are_owned_by_nodes_with_a_primary_and_all_agree(scene: Meshed, origin: ScriptedOrigin) -> None:
    first, second, third = scene.nodes
    await scene.publish(
        snapshot(origin.url, cache=CacheRule(mode="override", ttl_s=60.0), collapse=CollapseRule(enabled=True))
    )

    def owners() -> list[list[str]]:
        return [sorted(one.mesh.remote(TUNNEL).candidates()) for one in scene.nodes]

    await scene.agent(first, second, agent_id="spare", standby=True)
    both = sorted((first.name, second.name))
    await eventually(lambda: owners() == [both] * 3, what="standbys own keys where nobody has better")
    primary = await scene.agent(third, agent_id="server")
    await eventually(lambda: owners() == [[third.name], [third.name], []], what="the one with a primary owns all")
    visitors = [await scene.visitor(one) for one in scene.nodes]
    bodies = await asyncio.gather(*(visitor.ask("/page", host=HOST) for visitor in visitors for _ in range(1)))
    assert {answer.status for answer in bodies} == {200}
    assert asked(scene) == {"spare": 0, "server": 1}
    await primary.close()
    await eventually(lambda: owners() == [both] * 3)
    assert [(await visitor.ask("/page", host=HOST)).status for visitor in visitors] == [200] * 3


async def test_an_older_control_tells_no_shares_and_all_are_primaries(
    scene: Meshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, one, other = scene.nodes

    def older(
        node: str, relay: object, opened: tuple[str, ...], closed: tuple[str, ...], is_draining: bool, shares: object
    ) -> PeerChange:
        return PeerChange(node, relay, opened, closed, is_draining)  # type: ignore[arg-type]

    monkeypatch.setattr("edgetun_control.exits.peers.PeerChange", older)
    await scene.agent(one, agent_id="spare", standby=True)
    await scene.agent(other, agent_id="server", weight=3)
    await knows(here, {one: 1, other: 1})
    assert [await scene.status(here) for _ in range(6)] == [200] * 6
    assert await scene.status(one) == 200


async def test_while_control_is_away_a_standby_asks_who_has_better(
    scene: Meshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_module, "ASK_FOR_PRIMARY_S", 0.2)
    here, office, third = scene.nodes
    await scene.agent(here, agent_id="spare", standby=True)
    await knows(third, {here: -1})
    await scene.control.stop()
    await eventually(lambda: not any(one.mesh.holders.is_complete for one in scene.nodes))
    # What the others tell in that time is lost on its way, so that asking alone can help.
    for node in (here, third):
        monkeypatch.setattr(node.mesh, "_hear", lambda *_: None)
    await scene.agent(office, agent_id="server", weight=4)
    visitor = await scene.visitor(here)

    async def is_relayed() -> bool:
        assert (await visitor.ask("/", host=HOST)).status == 200
        return here.relayed > 0

    for _ in range(200):
        if await is_relayed():
            break
        await asyncio.sleep(0.05)
    assert here.relayed > 0
    assert shares(here) == {office.name: 4}
