"""Exit nodes that reach each other badly, or not all of them: nobody waits without an end, nothing turns in circles, nothing is sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from edgetun_core.snapshot import CacheRule, CollapseRule, Snapshot
from edgetun_exitnode.mesh import calls, mesh, outliers, siblings
from edgetun_exitnode.mesh.ownership import rank_owners
from support.impairment.tcp_path import TcpPath, tcp_path
from support.impairment.wire import GOOD, Impairment
from support.mesh import Meshed, MeshNode, meshed
from support.origin_server import ScriptedConnection, ScriptedOrigin, scripted_origin
from support.waiting import eventually
from support.whole import HOST, snapshot

HOLE = Impairment(is_black_hole=True)


class Origin:
    """Counts what it was asked, by method and path."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def serve(self, connection: ScriptedConnection) -> None:
        while head := await connection.request():
            method, path, _ = head.decode().split(" ", 2)
            self.asked.append(f"{method} {path}")
            if method == "POST":
                await connection.read(4)
            if path == "/never":
                await asyncio.sleep(60)
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.fixture
def told() -> Origin:
    return Origin()


@pytest.fixture
async def origin(told: Origin) -> AsyncIterator[ScriptedOrigin]:
    async with scripted_origin(told.serve) as server:
        yield server


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


@pytest.fixture(autouse=True)
def _short_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "PROBE_S", 0.2)
    monkeypatch.setattr(calls, "CALL_TIMEOUT_S", 0.8)
    monkeypatch.setattr(outliers, "OUT_FIRST_S", 0.5)
    monkeypatch.setattr(siblings, "ROUND_S", 10.0)  # a machine with other work may take its time


def cached(url: str) -> Snapshot:
    return snapshot(url, cache=CacheRule(mode="override", ttl_s=60.0), collapse=CollapseRule(enabled=True))


async def lead_through(stack: AsyncExitStack, here: MeshNode, there: MeshNode) -> TcpPath:
    """From now on `here` dials `there` by a way that the test can spoil; `there` has no other way to `here` than that."""
    relay = here.mesh.holders.peers[there.name]
    path = await stack.enter_async_context(tcp_path(relay.tls_port))
    here.mesh.holders.peers[there.name] = msgspec.structs.replace(relay, tls_port=path.port)
    there.mesh.holders.peers[here.name] = msgspec.structs.replace(there.mesh.holders.peers[here.name], tls_port=1)
    return path


async def knows(node: MeshNode, *holders: MeshNode) -> None:
    await eventually(lambda: node.holders() == sorted(one.name for one in holders), what=f"{node.name} knows holders")


async def ask(scene: Meshed, node: MeshNode, path: str, method: str = "GET") -> int:
    visitor = await scene.visitor(node)
    visitor.timeout_s = 30
    body = "\r\nContent-Length: 4\r\n\r\nbody" if method == "POST" else "\r\n\r\n"
    visitor.send(f"{method} {path} HTTP/1.1\r\nHost: {HOST}{body}".encode())
    return (await visitor.answer(method.encode())).status


async def test_a_peer_behind_a_black_hole_is_waited_for_only_so_long_then_left_out_and_taken_back_when_it_is_over(
    tmp_path: Path, origin: ScriptedOrigin, told: Origin, stack: AsyncExitStack
) -> None:
    async with meshed(tmp_path, snapshot(origin.url), 3) as scene:
        here, lost, other = scene.nodes
        path = await lead_through(stack, here, lost)
        await scene.agent(lost)
        await knows(here, lost)
        assert await ask(scene, here, "/") == 200
        await scene.agent(other, agent_id="another")
        await knows(here, lost, other)
        while here.mesh.peer(other.name).runner is None:
            assert await ask(scene, here, "/") == 200
        waiting = asyncio.gather(*(ask(scene, here, "/never", "POST") for _ in range(4)))
        await eventually(lambda: told.asked.count("POST /never") == 4)
        assert lost.node.exchanges_in_flight, "some are on the way that is cut"
        path.set(HOLE)
        answers = asyncio.gather(*(ask(scene, here, "/get") for _ in range(8)))
        assert set(await answers) == {200}, "a safe request was given up with the peer it waited for"
        await eventually(lambda: here.mesh.outliers.is_out(lost.name), 30)
        # What has a body is not sent again: whose way was cut is told so, the others wait on.
        await eventually(lambda: not lost.node.exchanges_in_flight or not here.mesh.peer(lost.name).runners, 30)
        assert told.asked.count("POST /never") == 4
        assert await ask(scene, here, "/post", "POST") == 200
        assert told.asked.count("POST /post") == 1
        path.set(GOOD)
        await eventually(lambda: not here.mesh.outliers.is_out(lost.name), 30)
        assert await ask(scene, here, "/") == 200
        waiting.cancel()
        await asyncio.wait((waiting,))


async def test_a_body_goes_to_a_holder_that_lives_and_to_one_alone(
    tmp_path: Path, origin: ScriptedOrigin, told: Origin
) -> None:
    async with meshed(tmp_path, snapshot(origin.url), 3) as scene:
        here, first, second = scene.nodes
        await scene.agent(first)
        await knows(here, first)
        begun = asyncio.create_task(ask(scene, here, "/never", "POST"))
        await eventually(lambda: told.asked == ["POST /never"])
        await scene.agent(second, agent_id="another")
        await knows(here, first, second)
        await first.kill()
        assert await begun == 502, "it may have been carried out, so nobody else is asked"
        assert told.asked == ["POST /never"]
        for number in range(5):
            assert await ask(scene, here, f"/{number}", "POST") == 200
        assert told.asked == ["POST /never", *(f"POST /{number}" for number in range(5))]
        assert here.mesh.dials_failed <= 1


async def test_a_slow_peer_is_left_out_and_probed_until_it_is_quick_again(
    tmp_path: Path, origin: ScriptedOrigin, stack: AsyncExitStack
) -> None:
    async with meshed(tmp_path, snapshot(origin.url), 3) as scene:
        here, slow, other = scene.nodes
        path = await lead_through(stack, here, slow)
        await scene.agent(slow, other)
        await knows(here, slow, other)
        while here.mesh.peer(slow.name).runner is None or here.mesh.peer(other.name).runner is None:
            assert await ask(scene, here, "/") == 200
        record = here.mesh.outliers._records
        await eventually(
            lambda: slow.name in record and 0 < record[slow.name].best_s < 0.05, 30, "it is known as quick"
        )
        path.set(Impairment(delay_s=0.3))

        async def is_out() -> bool:
            assert await ask(scene, here, "/") == 200
            return here.mesh.outliers.is_out(slow.name)

        await eventually(is_out, 30)
        assert here.mesh.peer(slow.name).runner is not None, "slow is not lost"
        opened = here.mesh.peer(slow.name).runner.exchanges_opened - here.mesh.peer(slow.name).probes  # type: ignore[union-attr]
        assert {await ask(scene, here, "/") for _ in range(10)} == {200}
        now = here.mesh.peer(slow.name).runner.exchanges_opened - here.mesh.peer(slow.name).probes  # type: ignore[union-attr]
        assert now - opened <= 1, "what is left out was asked"
        path.set(GOOD)
        await eventually(lambda: not here.mesh.outliers.is_out(slow.name), 30)


async def test_nodes_of_which_two_do_not_reach_each_other_answer_all_and_ask_the_laptop_once(
    tmp_path: Path, origin: ScriptedOrigin, told: Origin, stack: AsyncExitStack
) -> None:
    """A reaches B, B reaches C, A does not reach C, which owns the key: B has no copy, and finds C's."""
    async with meshed(tmp_path, cached(origin.url), 3) as scene:
        a, b, c = scene.nodes
        path = await lead_through(stack, a, c)
        path.is_refusing = True
        await scene.agent(b, c)
        await knows(a, b, c)
        await knows(b, c)
        await knows(c, b)
        paths = [f"/{number}" for number in range(8)]
        for each in paths:
            assert await ask(scene, c, each) == 200
        for each in paths:
            assert await ask(scene, a, each) == 200
        assert sorted(told.asked) == [f"GET {each}" for each in paths]
        of_c = [key for key in a.node.store.resources if rank_owners(key, [b.name, c.name])[0] == c.name]
        assert of_c
        assert a.mesh.links == 1
        # And what nobody has stored: each side fetches it once at most, whoever asks how often.
        answers = await asyncio.gather(*(ask(scene, node, "/new/" + each[1:]) for each in paths for node in (a, b, c)))
        assert set(answers) == {200}
        assert all(told.asked.count(f"GET /new/{each[1:]}") <= 2 for each in paths)
        assert a.relayed <= 4 * len(paths)


async def test_where_only_a_third_node_reaches_the_holder_a_visitor_is_told_soon_and_nothing_turns_in_circles(
    tmp_path: Path, origin: ScriptedOrigin, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with meshed(tmp_path, snapshot(origin.url), 3) as scene:
        a, b, c = scene.nodes
        path = await lead_through(stack, a, c)
        path.is_refusing = True
        monkeypatch.setattr(a.mesh, "_learn", lambda node, relay: None)  # B tells an address that leads past the path
        await scene.agent(c)
        await knows(a, c)
        await knows(b, c)
        assert await ask(scene, b, "/") == 200
        assert await ask(scene, a, "/") == 503
        assert (a.relayed, b.relayed) == (0, 1)
        path.is_refusing = False

        async def is_answered() -> bool:
            return await ask(scene, a, "/") == 200

        await eventually(is_answered, 30)
