"""Visitors who come while no session is up: they wait within bounds, and then get stale content, the standby, or a 503 that says when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from edgetun_agent.connect import Agent
from edgetun_core.snapshot import CacheRule, CollapseRule, Snapshot
from edgetun_exitnode.pipeline.forward import MAX_HELD_BYTES
from edgetun_exitnode.sessions import registry
from support.origin_server import ScriptedConnection, ScriptedOrigin, response, scripted_origin
from support.paths import Site, site
from support.visitors import Visitor, until
from support.whole import HOST, TUNNEL, snapshot

DEADLINE_S = 15.0
LONG_S = 60.0
"""A grace that no test comes to the end of."""
GET = b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"


async def serving(connection: ScriptedConnection) -> None:
    """Says how long the body was."""
    while head := await connection.request():
        size = next(
            (int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length")), 0
        )
        body = await connection.read(size)
        await connection.send(response(b"%d bytes" % len(body)))


def graceful(origin: ScriptedOrigin, grace_s: float, **rules: object) -> Snapshot:
    made = snapshot(origin.url, **rules)
    return msgspec.structs.replace(
        made, tunnels=tuple(msgspec.structs.replace(one, reconnect_grace_s=grace_s) for one in made.tunnels)
    )


@asynccontextmanager
async def abandoned(folder: Path, obey: Snapshot) -> AsyncIterator[tuple[Site, Agent]]:
    """A tunnel whose agent served and is gone."""
    async with site(folder, obey) as stands:
        agent = stands.agent(obey, tls_port=stands.tls_port)
        await until(lambda: len(stands.node.registry.sessions) == 1, DEADLINE_S)
        yield stands, agent


async def leave(stands: Site, agent: Agent) -> None:
    await agent.close()
    await until(lambda: not stands.node.registry.sessions, DEADLINE_S)


def waiting(stands: Site) -> int:
    return stands.node.registry.pool(TUNNEL).waiting


async def test_who_comes_meanwhile_waits_and_is_answered_by_the_agent_that_comes_back(tmp_path: Path) -> None:
    body = bytes(range(256)) * (4 * MAX_HELD_BYTES // 256)
    async with scripted_origin(serving) as origin:
        obey = graceful(origin, LONG_S)
        async with abandoned(tmp_path, obey) as (stands, agent):
            await leave(stands, agent)
            reader, writer = await stands.visitor(), await stands.visitor()
            reader.send(GET)
            writer.send(b"POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: %d\r\n\r\n" % len(body), body)
            await until(lambda: waiting(stands) == 2, DEADLINE_S)
            stands.agent(obey, tls_port=stands.tls_port)
            assert (await reader.answer()).body == b"0 bytes"
            # Far more than is held while nobody is there: the visitor was paused, and nothing of it is lost.
            assert (await writer.answer(b"POST")).body == b"%d bytes" % len(body)
            assert waiting(stands) == 0
            await reader.close()
            await writer.close()


async def test_as_many_wait_as_may_and_one_more_is_told_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_WAITING", 3)
    async with scripted_origin(serving) as origin:
        obey = graceful(origin, LONG_S)
        async with abandoned(tmp_path, obey) as (stands, agent):
            await leave(stands, agent)
            visitors = [await stands.visitor() for _ in range(3)]
            for visitor in visitors:
                visitor.send(GET)
            await until(lambda: waiting(stands) == 3, DEADLINE_S)
            late = await stands.visitor()
            answer = await late.ask(host=HOST)
            assert (answer.status, answer.fields["retry-after"]) == (503, "5")
            visitors.pop().leave()  # one who leaves makes room
            await until(lambda: waiting(stands) == 2, DEADLINE_S)
            stands.agent(obey, tls_port=stands.tls_port)
            assert [(await visitor.answer()).status for visitor in visitors] == [200, 200]
            await close(late, *visitors)


async def test_when_the_grace_is_over_it_is_503_with_retry_after(tmp_path: Path) -> None:
    async with scripted_origin(serving) as origin, abandoned(tmp_path, graceful(origin, 0.3)) as (stands, agent):
        await leave(stands, agent)
        visitor = await stands.visitor()
        answer = await visitor.ask(host=HOST)
        assert (answer.status, answer.fields["retry-after"]) == (503, "5")
        assert b"NoAgentConnected" in answer.body or b"no agent connected" in answer.body
        await visitor.close()


async def test_when_the_grace_is_over_what_is_stored_is_served_stale(tmp_path: Path) -> None:
    stale = {
        "cache": CacheRule(mode="override", ttl_s=0.01, stale_if_error_s=600.0),
        "collapse": CollapseRule(enabled=True),
    }
    async with (
        scripted_origin(serving) as origin,
        abandoned(tmp_path, graceful(origin, 0.3, **stale)) as (
            stands,
            agent,
        ),
    ):
        visitor = await stands.visitor()
        assert (await visitor.ask(host=HOST)).status == 200
        await leave(stands, agent)
        await asyncio.sleep(0.05)  # it is fresh no more
        again = await visitor.ask(host=HOST)
        assert (again.status, again.body) == (200, b"0 bytes")
        assert "age" in again.fields
        assert "fwd-status=503" in again.fields["cache-status"] or "stale" in again.fields["cache-status"]
        other = await visitor.ask("/never-asked", host=HOST)
        assert other.status == 503
        await visitor.close()


async def test_where_an_agent_is_on_standby_nobody_waits(tmp_path: Path) -> None:
    async with scripted_origin(serving) as origin:
        obey = graceful(origin, LONG_S)
        async with abandoned(tmp_path, obey) as (stands, agent):
            stands.agent(obey, tls_port=stands.tls_port, agent_id="spare", standby=True)
            await until(lambda: len(stands.node.registry.sessions) == 2, DEADLINE_S)
            await agent.close()
            await until(lambda: len(stands.node.registry.sessions) == 1, DEADLINE_S)
            visitor = await stands.visitor()
            assert (await visitor.ask(host=HOST)).status == 200
            assert waiting(stands) == 0
            await visitor.close()


async def close(*visitors: Visitor) -> None:
    for visitor in visitors:
        await visitor.close()
