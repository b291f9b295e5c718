"""A path by QUIC through a NAT that forgets: the agent finds out how long it may be silent, and falls back when it was too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from edgetun_agent.connect import Agent
from edgetun_core.errors import SessionLost
from edgetun_core.wire.hello import Hello, Refusal, Welcome
from support.impairment.udp_path import UdpPath, udp_path
from support.impairment.wire import Impairment
from support.origin_server import answering, response, scripted_origin
from support.paths import Site, site
from support.waiting import eventually
from support.whole import HOST, snapshot

DEADLINE_S = 40.0


@asynccontextmanager
async def behind_a_nat(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forget_after_s: float, **welcome: float
) -> AsyncIterator[tuple[Site, Agent, UdpPath]]:
    """A tunnel whose only session goes through a NAT; the exit node's welcome says how quick everything is."""
    async with (
        scripted_origin(answering(response(b"hello"), response(b"again"))) as origin,
        site(folder, snapshot(origin.url)) as stands,
        udp_path(stands.quic_port) as path,
    ):
        path.forget_after_s = forget_after_s
        acceptor = stands.node.acceptor
        decide = acceptor.decide

        def quick(hello: Hello, link: object) -> Welcome | Refusal:
            answer = decide(hello, link)  # type: ignore[arg-type]
            return msgspec.structs.replace(answer, **welcome) if isinstance(answer, Welcome) else answer

        monkeypatch.setattr(acceptor, "decide", quick)
        agent = stands.agent(snapshot(origin.url), quic_port=path.port)
        await agent.connected(DEADLINE_S)
        yield stands, agent, path


def interval_s(agent: Agent) -> float:
    return agent.sessions[0].keep_alive_s


@pytest.mark.parametrize("engine", ["qh3"])
async def test_the_silence_grows_to_its_bound_where_nothing_forgets_and_a_dead_peer_is_still_noticed(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behind_a_nat(tmp_path, monkeypatch, 1e9, ping_interval_s=0.1, dead_after_s=3.0) as (_, agent, path):
        await eventually(lambda: interval_s(agent) == pytest.approx(2.0), DEADLINE_S)
        assert agent.bindings_lost == 0
        session = agent._sessions[0]
        path.set(Impairment(is_black_hole=True))
        began = time.monotonic()
        await session.until(lambda: session.is_over)
        assert isinstance(session.error, SessionLost)
        assert time.monotonic() - began < 3.0 + DEADLINE_S


async def test_a_nat_that_forgets_is_found_out_and_visitors_get_through_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behind_a_nat(tmp_path, monkeypatch, 0.7, ping_interval_s=0.15, dead_after_s=12.0) as held:
        stands, agent, path = held
        session = agent._sessions[0]
        # 0.15, 0.3, 0.6, then 1.2: too long, and the exit node's view of the agent's address shows it.
        await eventually(lambda: agent.bindings_lost >= 1, DEADLINE_S)
        assert path.rebindings >= 1
        await eventually(lambda: 0 < interval_s(agent) < 0.7, DEADLINE_S)
        visitor = await stands.visitor()
        assert (await visitor.ask(host=HOST)).body == b"hello"
        await asyncio.sleep(0)
        assert not session.is_over, "a forgotten binding costs no session"
        assert agent.counters.reconnects == 0
        await visitor.close()


async def test_the_exit_node_does_not_keep_a_silent_path_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with behind_a_nat(tmp_path, monkeypatch, 1e9, ping_interval_s=0.1, dead_after_s=30.0) as (_, agent, path):
        await eventually(lambda: interval_s(agent) > 3.0, DEADLINE_S)
        before, began = path.down.carried, time.monotonic()
        await eventually(lambda: time.monotonic() - began > 1.0)
        # With pings of its own every 0.1 s over four lanes it would send ten packets and more.
        assert path.down.carried - before < 8
