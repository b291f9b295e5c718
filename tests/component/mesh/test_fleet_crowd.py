"""A crowd over five exit nodes, each a process of its own, reaches the laptop as one request per lifetime, also while the owner dies."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import support.crowds
from edgetun_core.process import raise_open_files_limit
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.cache.key import build_key
from edgetun_exitnode.mesh.ownership import rank_owners
from support.mesh import Meshed, meshed
from support.node_process import NodeProcess, node_process
from support.origin_server import ScriptedConnection, scripted_origin
from support.requirements import missing
from support.visitors import Answer, Visitor
from support.waiting import eventually
from support.whole import HOST, TUNNEL, snapshot

VISITORS = int(os.environ.get("EDGETUN_FLEET_VISITORS", "5000"))
"""Of each crowd. With 10000 on a quiet machine it is the whole one."""
SPARE_FILES = 2_000
NODES, HOLDERS = 5, 3
TTL_S = 1.0
CROWD_S = 1.5


class Laptop:
    """Answers with the number of the request, after a moment; remembers when it was asked for what."""

    def __init__(self) -> None:
        self.asked: dict[str, list[float]] = {}

    async def serve(self, connection: ScriptedConnection) -> None:
        while head := await connection.request():
            times = self.asked.setdefault(head.split(b" ", 2)[1].decode(), [])
            times.append(time.monotonic())
            body = b"%d" % len(times)
            await asyncio.sleep(0.05)
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@asynccontextmanager
async def crowd(path: str, visitors: int, ports: list[int]) -> AsyncIterator[asyncio.Task[dict[str, Any]]]:
    """So many visitors at each of the ports, on their way when this is entered; the task ends with what they got, by port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", support.crowds.__file__, f"http://{HOST}{path}", str(visitors), str(CROWD_S), *map(str, ports)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"ready\n"
    task = asyncio.create_task(process.communicate(b"go\n"))

    async def result() -> dict[str, Any]:
        out, _ = await task
        return json.loads(out) if out else {}  # nothing came of it when it was ended

    found = asyncio.create_task(result())
    try:
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait((found,))


async def ask(node: NodeProcess, path: str) -> Answer:
    visitor = await Visitor.to(node.http)
    visitor.timeout_s = 30
    try:
        return await visitor.ask(path, host=HOST)
    finally:
        await visitor.close()


async def agree(nodes: list[NodeProcess], laptop: Laptop) -> None:
    """Waits until all nodes know the same holders: what all ask for at once is one request, for a dozen paths in a row."""
    in_a_row = 0
    async with asyncio.timeout(60):
        for number in itertools.count():
            path = f"/warm/{number}"
            answers = await asyncio.gather(*(ask(node, path) for node in nodes))
            assert {answer.status for answer in answers} == {200}
            in_a_row = in_a_row + 1 if len(laptop.asked[path]) == 1 else 0
            if in_a_row == 12:
                return


def owner_of(path: str, url: str, holders: list[NodeProcess]) -> NodeProcess:
    key = build_key(TUNNEL.encode(), b"http", HOST.encode(), path.encode(), f"main {url}".encode())
    first = rank_owners(key, [node.name for node in holders])[0]
    return next(node for node in holders if node.name == first)


async def kill_when_answered(owner: NodeProcess, others: list[NodeProcess], path: str, asked: list[float]) -> None:
    """Kills the owner in the middle of a lifetime: the last answer is with all others, and will be fresh for a while."""
    async with asyncio.timeout(100):
        while True:
            bodies = {answer.body for answer in await asyncio.gather(*(ask(node, path) for node in others))}
            if asked and bodies == {b"%d" % len(asked)} and time.monotonic() - asked[-1] < TTL_S * 0.7:
                break
            await asyncio.sleep(0.02)
    await owner.kill()


def early(asked: list[float]) -> list[float]:
    """Requests that came before the answer before them was old."""
    return [round(later - asked[0], 3) for before, later in itertools.pairwise(asked) if later - before < TTL_S]


async def send_crowd(
    path: str,
    nodes: list[NodeProcess],
    laptop: Laptop,
    dies: NodeProcess | None = None,
) -> None:
    """Every visitor of a node that lives is answered, and the laptop is asked once per lifetime."""
    each = VISITORS // NODES
    asked = laptop.asked.setdefault(path, [])
    async with crowd(path, each, [node.http for node in nodes]) as visitors:
        if dies is not None:
            await kill_when_answered(dies, [node for node in nodes if node is not dies], path, asked)
        got = await asyncio.wait_for(visitors, 120)
    for node in nodes:
        if node is not dies:
            assert got[str(node.http)] == {"statuses": {"200": each}, "errors": {}, "examples": {}}
    assert asked
    assert not early(asked), [round(at - asked[0], 3) for at in asked]
    assert sum(at - asked[0] < 2 * TTL_S for at in asked) <= 2


@pytest.mark.timeout(240)
async def test_a_crowd_over_five_nodes_is_one_request_per_lifetime_also_while_the_owner_dies(tmp_path: Path) -> None:
    if raise_open_files_limit() < VISITORS + SPARE_FILES:
        missing(f"a limit of {VISITORS + SPARE_FILES} open files (ulimit -Hn)")
    laptop = Laptop()
    async with scripted_origin(laptop.serve) as origin, AsyncExitStack() as stack:
        rule = CacheRule(mode="override", ttl_s=TTL_S)
        obey = snapshot(origin.url, cache=rule, collapse=CollapseRule(enabled=True))
        # All visitors come from one address.
        pool_rule = msgspec.structs.replace(obey.pool_rule, max_connections_per_address=0)
        obey = msgspec.structs.replace(obey, pool_rule=pool_rule)
        scene: Meshed = await stack.enter_async_context(meshed(tmp_path, obey, 0))
        processes = [node_process(scene.control, tmp_path / f"p{number}", f"p{number}") for number in range(NODES)]
        nodes = list(await asyncio.gather(*(stack.enter_async_context(each) for each in processes)))
        fleet = scene.control.fleet
        await eventually(lambda: sum(one.feed.is_current for one in fleet) == NODES, 60, "every node obeys")
        holders = nodes[:HOLDERS]
        await scene.agent(*holders)
        await eventually(lambda: len(scene.control.heard.opened) >= HOLDERS, 30)
        await agree(nodes, laptop)

        await send_crowd("/all-live", nodes, laptop)
        await send_crowd("/dies", nodes, laptop, dies=owner_of("/dies", origin.url, holders))
