"""Several agents serve one tunnel: by weight, the least busy first, and one on standby when the others are gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from edgetun_exitnode.sessions.registry import PICKS_PER_CHOICE
from support.origin_server import Script, ScriptedConnection, response, scripted_origin
from support.paths import Site, site
from support.visitors import until
from support.whole import HOST, snapshot

DEADLINE_S = 15.0


def naming(name: bytes, release: asyncio.Event | None = None) -> Script:
    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            if release is not None and b"/slow" in head.splitlines()[0]:
                await release.wait()
            await connection.send(response(name))

    return script


async def answers(stands: Site, count: int) -> Counter[bytes]:
    visitor = await stands.visitor()
    got = Counter([(await visitor.ask(host=HOST)).body for _ in range(count)])
    await visitor.close()
    return got


async def test_requests_are_shared_by_weight(tmp_path: Path) -> None:
    async with (
        scripted_origin(naming(b"large")) as large,
        scripted_origin(naming(b"small")) as small,
        site(tmp_path, snapshot(large.url)) as stands,
    ):
        stands.agent(snapshot(large.url), quic_port=stands.quic_port, agent_id="large", weight=3)
        stands.agent(snapshot(small.url), tls_port=stands.tls_port, agent_id="small")
        await until(lambda: len(stands.node.registry.sessions) == 2, DEADLINE_S)
        # Whole rounds of choices: three of four go to the one that weighs three times as much.
        got = await answers(stands, 8 * PICKS_PER_CHOICE)
        assert got == {b"large": 6 * PICKS_PER_CHOICE, b"small": 2 * PICKS_PER_CHOICE}


async def test_a_busy_agent_gets_nothing_while_another_is_idle(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with (
        scripted_origin(naming(b"one", release)) as one,
        scripted_origin(naming(b"two", release)) as two,
        site(tmp_path, snapshot(one.url)) as stands,
    ):
        stands.agent(snapshot(one.url), quic_port=stands.quic_port, agent_id="one")
        await until(lambda: len(stands.node.registry.sessions) == 1, DEADLINE_S)
        busy = await stands.visitor()
        busy.send(b"GET /slow HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        await until(lambda: stands.node.acceptor.runners[0].in_flight == 1, DEADLINE_S)
        stands.agent(snapshot(two.url), quic_port=stands.quic_port, agent_id="two")
        await until(lambda: len(stands.node.registry.sessions) == 2, DEADLINE_S)
        assert await answers(stands, 3 * PICKS_PER_CHOICE) == {b"two": 3 * PICKS_PER_CHOICE}
        release.set()
        assert (await busy.answer()).body == b"one"
        await busy.close()


@pytest.mark.parametrize("cut", ["stopped", "lost"])
async def test_an_agent_on_standby_serves_only_while_the_others_are_gone(tmp_path: Path, cut: str) -> None:
    async with (
        scripted_origin(naming(b"main")) as main,
        scripted_origin(naming(b"spare")) as spare,
        site(tmp_path, snapshot(main.url)) as stands,
    ):
        stands.agent(snapshot(spare.url), quic_port=stands.quic_port, agent_id="spare", standby=True)
        await until(lambda: len(stands.node.registry.sessions) == 1, DEADLINE_S)
        assert await answers(stands, 2) == {b"spare": 2}, "there is no other"
        agent = stands.agent(snapshot(main.url), tls_port=stands.tls_port, agent_id="main")
        await until(lambda: len(stands.node.registry.sessions) == 2, DEADLINE_S)
        assert await answers(stands, 3 * PICKS_PER_CHOICE) == {b"main": 3 * PICKS_PER_CHOICE}
        if cut == "stopped":
            await agent.drain(5.0)
        else:
            runner = next(one for one in stands.node.acceptor.runners if one.transport == "tls")
            await agent._stop_slots()  # it does not come back
            assert runner.link is not None
            runner.link.abort()
        await until(lambda: len(stands.node.registry.sessions) == 1, DEADLINE_S)
        assert await answers(stands, 3) == {b"spare": 3}


async def test_two_sessions_of_one_agent_share_its_load(tmp_path: Path) -> None:
    async with scripted_origin(naming(b"x")) as origin, site(tmp_path, snapshot(origin.url)) as stands:
        stands.agent(snapshot(origin.url), quic_port=stands.quic_port, sessions=2)
        await until(lambda: len(stands.node.registry.sessions) == 2, DEADLINE_S)
        await answers(stands, 4 * PICKS_PER_CHOICE)
        assert [one.exchanges_opened for one in stands.node.acceptor.runners] == [2 * PICKS_PER_CHOICE] * 2
