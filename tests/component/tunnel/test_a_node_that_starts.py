"""Agents that come before an exit node has heard what it needs to let them in are back soon after it has."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgetun_core.credentials import SigningKey
from edgetun_core.snapshot import Snapshot
from support.origin_server import ScriptedConnection, response, scripted_origin
from support.paths import site
from support.visitors import until
from support.whole import HOST, snapshot

DEADLINE_S = 15.0


async def greet(connection: ScriptedConnection) -> None:
    while await connection.request():
        await connection.send(response(b"hello"))


def with_another_key(obey: Snapshot) -> Snapshot:
    return msgspec.structs.replace(obey, credential_keys=(SigningKey("k0", bytes([7]) * 32).public,))


@pytest.mark.parametrize("before", ["no snapshot", "a snapshot from before the key"])
async def test_an_agent_that_was_too_early_is_let_in_as_soon_as_the_node_knows(before: str, tmp_path: Path) -> None:
    async with scripted_origin(greet) as origin:
        obey = snapshot(origin.url)
        async with site(tmp_path, None if before == "no snapshot" else with_another_key(obey)) as stands:
            agent = stands.agent(obey, tls_port=stands.tls_port)
            await until(lambda: stands.node.acceptor.refused_total >= 1, DEADLINE_S)
            assert not agent.is_connected
            stands.node.apply(obey)
            await until(lambda: agent.is_connected, DEADLINE_S)
            visitor = await stands.visitor()
            assert (await visitor.ask(host=HOST)).body == b"hello"
            await visitor.close()
