"""Sessions over paths that lose packets: no stream waits for another's packets, and the congestion control suits the path."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgetun_agent.connect import LOSES_PACKETS
from support.bad_path import body_of, impaired
from support.impairment import GOOD, Impairment
from support.visitors import until
from support.whole import HOST

ENGINES = ["qh3", "aioquic"]


@pytest.mark.parametrize("engine", ENGINES)
async def test_small_answers_do_not_wait_for_a_download_that_recovers_from_loss(tmp_path: Path, engine: str) -> None:
    async with impaired(tmp_path, engine, Impairment(loss=0.05, delay_s=0.005), seed=3) as here:
        download = await here.visitor()
        download.send(b"GET /bytes/100000000 HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode())
        assert (await download.head()).status == 200
        await download.read(100_000)
        small = await here.visitor()
        for _ in range(10):
            assert (await small.ask(host=HOST)).body == b"ok"
            await download.read(1000)  # it goes on meanwhile
        assert here.path.up.lost + here.path.down.lost > 0
        download.leave()
        await small.close()


async def test_a_path_that_loses_packets_gets_the_congestion_control_for_it_and_nothing_is_cut(tmp_path: Path) -> None:
    async with impaired(tmp_path, "qh3", GOOD, seed=3) as here:
        assert here.engines == ["qh3"]
        events = await here.visitor()
        events.send(b"GET /events HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode())
        assert (await events.head()).status == 200
        slow = asyncio.create_task(here.ask("/slowly/1000000"))
        here.path.set(Impairment(loss=0.05))
        sizes = 0
        while here.engines != ["aioquic"]:
            assert len((await here.ask("/bytes/100000")).body) == 100_000
            sizes += 1
            assert sizes < 100
        assert "aioquic" in [runner.engine for runner in here.node.acceptor.runners]  # which sends, too
        assert (await here.ask("/bytes/300000")).body == body_of(300_000)
        body = body_of(300_000)
        assert (await here.upload(body)).status == 200
        assert (await slow).body == body_of(1_000_000)  # on the session that it began on
        before = await events.read(2000)
        assert before.count(b"data: ") > 50
        events.leave()


async def test_what_one_session_learns_of_a_path_holds_for_the_others_that_have_the_same(tmp_path: Path) -> None:
    """The other one sends next to nothing, so that it would never find out by itself."""
    async with impaired(tmp_path, "qh3", GOOD, seed=3, sessions=2) as here:
        await until(lambda: here.engines == ["qh3", "qh3"], 20.0)
        session = here.agent._sessions[0]
        assert session.runner is not None
        session.on_path(session.runner, is_lossy=True)
        assert [one.leaving_for for one in here.agent._sessions] == [LOSES_PACKETS] * 2
        await until(lambda: here.engines == ["aioquic", "aioquic"], 20.0)
        assert (await here.ask("/bytes/300000")).body == body_of(300_000)


async def test_a_path_that_is_clean_again_gets_the_fast_engine_back(tmp_path: Path) -> None:
    async with impaired(tmp_path, "qh3", Impairment(loss=0.05)) as here:
        endpoint = here.agent.endpoints[0]
        sizes = 0
        while here.engines != ["aioquic"]:
            await here.ask("/bytes/100000")
            sizes += 1
            assert sizes < 100
        here.path.set(GOOD)
        session = next(one for one in here.agent._sessions if not one.leaving_for)
        assert session.runner is not None
        session.on_path(session.runner, is_lossy=False)
        assert not session.leaving_for  # it was lossy a moment ago
        session.is_lossy = None
        here.agent.losses(endpoint).lossy_until = 0.0  # ten minutes later
        session.on_path(session.runner, is_lossy=False)
        await until(lambda: here.engines == ["qh3"], 20.0)
        assert (await here.ask("/")).body == b"ok"
