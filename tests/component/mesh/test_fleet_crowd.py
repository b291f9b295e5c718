"""A crowd over five exit nodes reaches the laptop as one request per lifetime, also while the owner dies."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edgetun_core.process import raise_open_files_limit
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.mesh.ownership import rank_owners
from support.mesh import Meshed, MeshNode, meshed
from support.origin_server import ScriptedConnection, scripted_origin
from support.requirements import missing
from support.waiting import eventually
from support.whole import HOST, snapshot

VISITORS = int(os.environ.get("EDGETUN_FLEET_VISITORS", "2000"))
"""All five nodes, control, the agent and the laptop share one event loop here. Two thousand leave it air to breathe on a busy machine;
with EDGETUN_FLEET_VISITORS=10000 on a quiet one it is the whole crowd."""
SPARE_FILES = 2_000
NODES = 5
TTL_S = 1.0
CROWD_S = 1.5


Result = dict[str, Any]
"""What `edgetun load --json` prints."""


@asynccontextmanager
async def crowd(node: MeshNode, visitors: int) -> AsyncIterator[asyncio.Task[Result]]:
    """Visitors of one node, in a process of their own; the task ends with how many got which status."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "edgetun",
        *("load", f"http://{HOST}/page", "--connect", f"127.0.0.1:{node.http}", "--i-own-this-host", "--json"),
        *("--visitors", str(visitors), "--within", f"{CROWD_S}s", "--timeout", "30s"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def result() -> Result:
        out, _ = await process.communicate()
        return json.loads(out) if out else {}  # nothing came of it when it was ended

    task = asyncio.create_task(result())
    try:
        yield task
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait((task,))


@pytest.mark.parametrize("dies", [False, True], ids=["all live", "the owner dies"])
async def test_a_crowd_over_five_nodes_is_one_request_per_lifetime(tmp_path: Path, dies: bool) -> None:
    if raise_open_files_limit() < VISITORS + SPARE_FILES:
        missing(f"a limit of {VISITORS + SPARE_FILES} open files (ulimit -Hn)")
    asked: list[float] = []

    async def serve(connection: ScriptedConnection) -> None:
        while await connection.request():
            asked.append(time.monotonic())
            await asyncio.sleep(0.05)
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")

    async with scripted_origin(serve) as origin:
        rule = CacheRule(mode="override", ttl_s=TTL_S)
        obey = snapshot(origin.url, cache=rule, collapse=CollapseRule(enabled=True))
        async with meshed(tmp_path, obey, NODES) as scene:
            holders = scene.nodes[:3]
            await scene.agent(*holders)
            await eventually(lambda: all(len(one.holders()) >= 2 for one in scene.nodes))
            assert all(status == 200 for status in [await scene.status(one, "/warm") for one in scene.nodes])
            asked.clear()
            got = await _send_crowds(scene, holders, dies, asked)
    wanted = VISITORS - (VISITORS // NODES if dies else 0)
    assert got == {"200": wanted}, "a visitor of a node that lives was not answered"
    # Nobody is asked again before the last answer's time is over; where the one who asked for all is gone, the nodes that hold
    # sessions may each have to find that out.
    early = sum(later - before < TTL_S for before, later in itertools.pairwise(asked))
    assert early <= (2 if dies else 0), [round(at - asked[0], 3) for at in asked]


async def _send_crowds(scene: Meshed, holders: list[MeshNode], dies: bool, asked: list[float]) -> dict[str, int]:
    """What the visitors of all nodes that live got."""
    each = VISITORS // NODES
    async with (
        crowd(scene.nodes[0], each) as a,
        crowd(scene.nodes[1], each) as b,
        crowd(scene.nodes[2], each) as c,
        crowd(scene.nodes[3], each) as d,
        crowd(scene.nodes[4], each) as e,
    ):
        living = list(zip(scene.nodes, (a, b, c, d, e), strict=True))
        if dies:
            await eventually(lambda: asked)
            keys = await eventually(
                lambda: [key for node in scene.nodes for key in node.node.store.resources if b"/page" in key]
            )
            owner = rank_owners(keys[0], [one.name for one in holders])[0]
            dead = next(one for one in holders if one.name == owner)
            living = [(node, task) for node, task in living if node is not dead]
            await dead.kill()
        got: dict[str, int] = {}
        for _, task in living:
            result = await asyncio.wait_for(task, 60)
            assert result["errors"] == {}, result["error_examples"]
            for status, count in result["statuses"].items():
                got[status] = got.get(status, 0) + count
        return got
