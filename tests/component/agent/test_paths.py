"""Away from QUIC and back to it, on real sockets whose UDP a test blocks: what moves sessions, what does not, and what is shown of it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import pytest

from edgetun_agent import dialling, endpoints, race, udp_memory
from edgetun_agent.connect import Agent
from edgetun_agent.main import readiness
from edgetun_agent.metrics import collect_agent
from edgetun_agent.screen import session_rows
from edgetun_agent.serve import Origins
from edgetun_core.admin import start_admin
from edgetun_core.pki import DevelopmentCA, ServerIdentity
from edgetun_core.wire.hello import Hello, Welcome
from support.edge import TestEdge, edge
from support.exchanges import Answerer
from support.impairment.udp_path import UdpPath, udp_path
from support.impairment.wire import GOOD, Impairment
from support.waiting import eventually

DEADLINE_S = 30.0
BLACK_HOLE = Impairment(is_black_hole=True)


@asynccontextmanager
async def agent_of(authority: DevelopmentCA, node: TestEdge, path: UdpPath, sessions: int = 1) -> AsyncIterator[Agent]:
    """An agent that reaches the node's TLS as it is, and its QUIC by the path."""
    agent = Agent(
        endpoints=[node.endpoint(quic=path.port)],
        trust=authority.trust,
        hello=lambda session_id: Hello(agent_id="laptop", session_id=session_id, credential="c", services=("a/b",)),
        handler=Answerer(),
        sessions=sessions,
        rng=random.Random(1),
    )
    agent.start()
    try:
        yield agent
    finally:
        await agent.close()


@pytest.fixture
def head_start(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda seconds: monkeypatch.setattr(race.Race.__init__, "__defaults__", (seconds,))


def on(agent: Agent, transport: str) -> bool:
    views = agent.sessions
    return bool(views) and all(view.transport == transport and not view.is_draining for view in views)


def watchful(node: TestEdge) -> None:
    """Silence is noticed soon."""
    node.answer = lambda hello: Welcome(
        node="node-1", services=hello.services, server_time=time.time(), ping_interval_s=0.2, dead_after_s=1.5
    )


async def test_one_lost_packet_is_no_reason_for_tls(
    authority: DevelopmentCA, identity: ServerIdentity, head_start: Callable[[float], None]
) -> None:
    assert race.HEAD_START_S >= 2.0, "QUIC sends its first packet again after one second (RFC 9002 §6.2.2)"
    head_start(DEADLINE_S)  # a busy machine must not decide this
    async with edge(identity, "tls", "quic") as node, udp_path(node.endpoint().quic_port) as path:
        carry, seen = path.up.carry, []

        def lose_the_first(size_bytes: int, now: float) -> float | None:
            seen.append(size_bytes)
            return None if len(seen) == 1 else carry(size_bytes, now)

        path.up.carry = lose_the_first  # type: ignore[method-assign]
        async with agent_of(authority, node, path) as agent:
            await agent.connected(DEADLINE_S)
            assert on(agent, "quic")
            assert len(seen) > 1
            assert agent.counters.fallbacks == 0
            assert agent.sessions[0].path == "preferred"


async def test_blocked_udp_is_left_for_tls_and_taken_back_after_health_and_everybody_can_see_it(
    authority: DevelopmentCA,
    identity: ServerIdentity,
    head_start: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(udp_memory, "DEAD_FIRST_S", 0.4)
    monkeypatch.setattr(udp_memory, "HEALTHY_S", 0.9)
    monkeypatch.setattr("edgetun_agent.connect.PROBE_S", 1.0)
    head_start(0.2)
    origins = Origins([], probe=False)
    async with (
        edge(identity, "tls", "quic") as node,
        udp_path(node.endpoint().quic_port, BLACK_HOLE) as path,
        agent_of(authority, node, path, sessions=2) as agent,
    ):
        admin = start_admin("127.0.0.1", 0, lambda: collect_agent(agent, origins), lambda: readiness(agent))
        try:
            await eventually(lambda: on(agent, "tls") and len(agent.sessions) == 2, DEADLINE_S)
            assert agent.counters.fallbacks >= 1
            udp = agent.udp(agent.endpoints[0])
            assert udp.state == "fallback"
            ready = await asyncio.to_thread(answer_of, admin.port, "/readyz")
            assert [(one["transport"], one["state"]) for one in ready["paths"]] == [("tls", "fallback")] * 2
            assert ready["paths"][0]["changes_in_s"] >= 0
            assert ready["transports"] == ["tls"]
            shown = await asyncio.to_thread(answer_of, admin.port, "/metrics")
            assert 'edgetun_agent_paths{state="fallback"} 2.0' in shown
            assert 'edgetun_agent_paths{state="preferred"} 0.0' in shown
            assert "QUIC does not get through" in session_rows(agent)[0].note

            path.set(GOOD)
            await eventually(lambda: agent.sessions[0].path == "recovering", DEADLINE_S)
            answered_at = udp.healthy_since
            assert answered_at is not None
            assert "QUIC answers again, back to it in" in session_rows(agent)[0].note
            assert readiness(agent)[1]["paths"][0]["state"] == "recovering"
            assert on(agent, "tls"), "one answer is not health"
            await eventually(lambda: on(agent, "quic") and len(agent.sessions) == 2, DEADLINE_S)
            assert time.monotonic() - answered_at >= udp_memory.HEALTHY_S
            assert agent.counters.probes[True] >= udp_memory.PROBES_WHILE_HEALTHY - 1
            assert agent.counters.returns == 2
            assert agent.counters.reconnects == 0, "nothing was lost on the way"
            shown = await asyncio.to_thread(answer_of, admin.port, "/metrics")
            assert 'edgetun_agent_paths{state="preferred"} 2.0' in shown
            assert "edgetun_agent_transport_returns_total 2.0" in shown
            assert 'edgetun_agent_quic_probes_total{result="answered"}' in shown
            ready = await asyncio.to_thread(answer_of, admin.port, "/readyz")
            assert [one["state"] for one in ready["paths"]] == ["preferred"] * 2
            assert session_rows(agent)[0].note == ""
        finally:
            admin.close()
            await origins.close()


def answer_of(port: int, path: str) -> Any:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE_S) as answer:
            body = answer.read().decode()
    except HTTPError as error:
        body = error.read().decode()
    return json.loads(body) if path == "/readyz" else body


async def test_udp_blocked_in_the_middle_is_known_dead_when_the_next_session_is_opened(
    authority: DevelopmentCA,
    identity: ServerIdentity,
    head_start: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialled: list[str] = []
    dial = dialling.dial

    async def noted(engine: str, *args: Any, **options: Any) -> Any:
        dialled.append(engine)
        return await dial(engine, *args, **options)

    monkeypatch.setattr(dialling, "dial", noted)
    head_start(0.5)
    async with edge(identity, "tls", "quic") as node, udp_path(node.endpoint().quic_port) as path:
        watchful(node)
        async with agent_of(authority, node, path) as agent:
            # A busy machine may need more than the head start: then it comes back to QUIC no sooner than in half a minute.
            await agent.connected(DEADLINE_S)
            path.set(BLACK_HOLE)
            await eventually(lambda: on(agent, "tls"), DEADLINE_S)
            udp = agent.udp(agent.endpoints[0])
            assert udp.is_dead(time.monotonic())
            head_start(DEADLINE_S)
            hellos = len(node.hellos)
            dialled.clear()
            node.open[-1].link.abort()  # type: ignore[union-attr]
            await eventually(lambda: len(node.hellos) > hellos and on(agent, "tls"), DEADLINE_S)
            assert set(dialled) == {"tls"}, "TLS was dialled at once, and QUIC not at all"


async def test_a_path_that_came_and_went_has_to_be_well_for_longer(
    authority: DevelopmentCA,
    identity: ServerIdentity,
    head_start: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(udp_memory, "DEAD_FIRST_S", 0.1)
    monkeypatch.setattr(udp_memory, "HEALTHY_S", 0.4)
    head_start(0.2)
    async with (
        edge(identity, "tls", "quic") as node,
        udp_path(node.endpoint().quic_port, BLACK_HOLE) as path,
        agent_of(authority, node, path) as agent,
    ):
        udp = agent.udp(agent.endpoints[0])
        for _ in range(2):  # it failed, came back and failed again before this
            udp.lost_to_tls(time.monotonic(), 0.5)
            udp.opened()
        await eventually(lambda: on(agent, "tls"), DEADLINE_S)
        assert len(udp.failures) == 3
        path.set(GOOD)
        await eventually(lambda: agent.sessions[0].path == "recovering", DEADLINE_S)
        answered_at = udp.healthy_since
        assert answered_at is not None
        await eventually(lambda: on(agent, "quic"), DEADLINE_S)
        assert time.monotonic() - answered_at >= 2 * udp_memory.HEALTHY_S


async def test_the_last_session_goes_to_the_spare_region_and_all_do_while_nothing_else_works(
    authority: DevelopmentCA, identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "LOOK_AGAIN_S", 0.2)
    async with (
        edge(identity, "tls", name="near-1") as near,
        edge(identity, "tls", name="far-1") as far,
    ):
        agent = Agent(
            endpoints=[near.endpoint(), msgspec.structs.replace(far.endpoint(), spare=True)],
            trust=authority.trust,
            hello=lambda session_id: Hello(agent_id="laptop", session_id=session_id, credential="c", services=("a/b",)),
            handler=Answerer(),
            sessions=3,
            rng=random.Random(1),
        )
        agent.start()
        try:
            await eventually(lambda: (len(near.open), len(far.open)) == (2, 1), DEADLINE_S)
            port = await near.stop("tls")
            await eventually(lambda: len(far.open) == 3, DEADLINE_S)
            await near.listen("tls", identity, port)
            await eventually(lambda: (len(near.open), len(far.open)) == (2, 1), DEADLINE_S)
            hellos = len(near.hellos) + len(far.hellos)
            await asyncio.sleep(0.6)
            assert len(near.hellos) + len(far.hellos) == hellos, "and there it stays"
        finally:
            await agent.close()
