"""An exit node that stands still, as a process of its own that is stopped: who waits for it, and who is asked instead."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from edgetun_exitnode.mesh import outliers
from support.mesh import Meshed, meshed
from support.node_process import node_process
from support.origin_server import answering, response, scripted_origin
from support.waiting import eventually
from support.whole import HOST, snapshot


async def test_a_node_that_stands_still_is_left_out_within_seconds_and_taken_back_when_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers, "OUT_FIRST_S", 1.0)
    async with (
        scripted_origin(answering(response())) as origin,
        meshed(tmp_path, snapshot(origin.url), 2) as scene,
        node_process(scene.control, tmp_path / "process", "still") as still,
    ):
        here, other = scene.nodes
        await eventually(lambda: still.name in here.mesh.holders.peers)
        await scene.agent(other, still)
        await eventually(lambda: here.holders() == sorted((other.name, still.name)))
        visitors = [await scene.visitor(here) for _ in range(8)]
        for visitor in visitors:
            visitor.timeout_s = 20
        while here.mesh.peer(still.name).runner is None or here.mesh.peer(other.name).runner is None:
            assert (await visitors[0].ask("/", host=HOST)).status == 200
        answers = await asyncio.gather(*(visitor.ask("/", host=HOST) for visitor in visitors))
        assert {answer.status for answer in answers} == {200}

        still.stop()
        began = time.monotonic()
        answers = await asyncio.gather(*(visitor.ask("/", host=HOST) for visitor in visitors))
        assert {answer.status for answer in answers} == {200}, "what waited for the node that stands still was given up"
        # more visitors until the node is known to be one to leave out
        await eventually(lambda: _ask_and_see(scene, here.mesh.outliers.is_out(still.name)), 20)
        assert time.monotonic() - began < 20
        for visitor in visitors:
            visitor.timeout_s = 5
            assert (await visitor.ask("/", host=HOST)).status == 200

        still.go_on()
        await eventually(lambda: not here.mesh.outliers.is_out(still.name), 30)
        assert {await scene.status(here) for _ in range(5)} == {200}


async def _ask_and_see(scene: Meshed, is_out: bool) -> bool:
    assert await scene.status(scene.nodes[0]) == 200
    return is_out


@pytest.mark.parametrize("still_s", [0.9, 1.8], ids=["a probe is answered late", "a probe is not answered in time"])
async def test_a_node_that_stood_still_itself_blames_nobody(tmp_path: Path, still_s: float) -> None:
    async with (
        scripted_origin(answering(response(b"from the laptop"))) as origin,
        meshed(tmp_path, snapshot(origin.url), 3) as scene,
    ):
        one, two, three = scene.nodes
        await scene.agent(one, two)
        assert await scene.status(three, "/") == 200
        peer = next(found for found in map(three.mesh.peer, (one.name, two.name)) if found.runner is not None)
        await eventually(lambda: not peer.is_probing, 20.0)
        await three.mesh._probe(peer)  # it has shown how quick it can be
        for _ in range(3):
            await eventually(lambda: not peer.is_probing, 20.0)
            peer.is_probing = True
            probe = asyncio.create_task(three.mesh._probe(peer))
            for _turn in range(2):
                await asyncio.sleep(0)  # it is asked, and then everybody's loop, which is this one, stands still
            time.sleep(still_s)  # noqa: ASYNC251
            await probe
        assert three.mesh.outliers.ejected_total == 0
        assert await scene.status(three, "/") == 200
