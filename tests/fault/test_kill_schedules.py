"""Random kill schedules over a fleet of real processes, and what must hold whatever is killed.

EDGETUN_CHAOS_SEED=7 EDGETUN_CHAOS_SECONDS=120 pytest tests/fault/test_kill_schedules.py

repeats one schedule, or makes a long one. A failure prints the seed, the schedule and what was done when.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from support.chaos.carrying_out import OUT_OF_REACH, CarryingOut, Ways
from support.chaos.history import SMALL, History, Rules, check, summary
from support.chaos.origin import Accountant, accountant
from support.chaos.schedule import AGENT, CONTROL, EXIT_NODE, Schedule, generate
from support.chaos.visitors import Crowd, Place, kinds_answered
from support.cluster import ControlPlane
from support.fleet import AgentPlan, Fleet
from support.operator import crds
from support.visitors import Visitor
from support.waiting import eventually

SEEDS = [int(seed) for seed in os.environ.get("EDGETUN_CHAOS_SEED", "28").split(",")]
SECONDS = float(os.environ.get("EDGETUN_CHAOS_SECONDS", "6"))
VISITORS = int(os.environ.get("EDGETUN_CHAOS_VISITORS", "8"))
TTL_S = 1.0
STALE_S = {"pair": 2.0}
DEADLINE_S = 30.0
"""Silence is noticed after 15 s, and then the request may be made elsewhere."""
HEALTHY_S = 60.0
"""After the schedule: a start on a busy machine, 15 s of silence, and the backoff that grew meanwhile."""
AGENTS = (AgentPlan("alpha", ("solo-a", "pair"), 1), AgentPlan("beta", ("solo-b", "pair"), 2))
TUNNELS = ("solo-a", "solo-b", "pair")
TARGETS = {"exit-1": EXIT_NODE, "exit-2": EXIT_NODE, "alpha": AGENT, "beta": AGENT, "control": CONTROL}

pytestmark = pytest.mark.timeout(600 + (5 * SECONDS + DEADLINE_S + HEALTHY_S) * len(SEEDS))


class Scene:
    def __init__(self, fleet: Fleet, ways: Ways, origins: list[Accountant], history: History) -> None:
        self.fleet, self.ways, self.origins, self.history = fleet, ways, origins, history
        self.complaint = ""
        """What was the last thing to become healthy."""
        self.place = Place(
            {node: (fleet.address[node], fleet.http_port[node]) for node in fleet.nodes},
            {name: fleet.host(name) for name in TUNNELS},
        )

    async def is_healthy(self) -> bool:
        """Everything answers everywhere, and control has both exit nodes."""
        try:
            found = await self._unhealthy()
        except (OSError, EOFError, TimeoutError) as error:
            found = repr(error)
        if found:
            self.complaint = found
            await asyncio.sleep(0.2)
        return not found

    async def _unhealthy(self) -> str:
        for address, port in self.place.nodes.values():
            for host in self.place.hosts.values():
                visitor = await Visitor.to(port, host=address)
                try:
                    answer = await visitor.ask("/small?size=10", host=host)
                finally:
                    visitor.leave()
                if answer.status != 200:
                    return f"{host} at {address}: {answer.status} {answer.body[:300]!r}"
        sessions = [
            await asyncio.to_thread(self.fleet.members[one.name].metric, "edgetun_agent_sessions") for one in AGENTS
        ]
        nodes = await asyncio.to_thread(self.fleet.members["control"].metric, "edgetun_control_exit_nodes")
        if sessions != [one.sessions for one in AGENTS] or nodes != len(self.fleet.nodes):
            return f"agents' sessions {sessions}, exit nodes at control {nodes}"
        return ""


@pytest.fixture
async def scene(cluster: ControlPlane, tmp_path: Path) -> AsyncIterator[Scene]:
    history = History()
    async with AsyncExitStack() as stack:
        origins = [await stack.enter_async_context(accountant(name, history.served, TTL_S)) for name in TUNNELS]
        unique = secrets.token_hex(4)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"chaos-{unique}"}}
        await asyncio.to_thread(cluster.install_crds, crds())
        await asyncio.to_thread(cluster.client.create, namespace)
        stack.push_async_callback(asyncio.to_thread, cluster.client.delete, namespace)
        fleet = Fleet(cluster, f"chaos-{unique}", f"p{unique}", tmp_path)
        stack.push_async_callback(asyncio.to_thread, fleet.__exit__)
        ways = await stack.enter_async_context(Ways(fleet))
        tunnels = {
            origin.tunnel: {
                "origin": {"url": f"http://127.0.0.1:{origin.port}"},
                "reconnectGrace": "2s",
                "cache": {"staleIfError": f"{STALE_S.get(origin.tunnel, 0.0):g}s"},
            }
            for origin in origins
        }
        await asyncio.to_thread(fleet.start, tunnels, AGENTS, is_by_way=True)
        yield Scene(fleet, ways, origins, history)


async def test_whatever_is_killed_answers_are_right_nobody_waits_too_long_and_all_is_well_again(scene: Scene) -> None:
    await eventually(scene.is_healthy, HEALTHY_S, "the fleet serves before anything is done to it")
    for seed in SEEDS:
        await _run(scene, generate(seed, SECONDS, TARGETS))


async def _run(scene: Scene, schedule: Schedule) -> None:
    scene.history.visits.clear()
    scene.history.served.clear()
    scene.complaint = ""
    crowd = Crowd(scene.place, scene.history, seed=schedule.seed, count=VISITORS, deadline_s=DEADLINE_S)
    problems: list[str] = []
    async with CarryingOut(scene.fleet, scene.ways) as carrying_out:
        crowd.start()
        try:
            await carrying_out.run(schedule)
        finally:
            await crowd.stop()
        ended = time.monotonic()
        for what, condition in (
            ("everything is healthy again", scene.is_healthy),
            ("nothing is open at an origin", lambda: all(one.ended is not None for one in scene.history.served)),
        ):
            try:
                await eventually(condition, HEALTHY_S, what)
            except AssertionError as error:
                problems.append(f"{error}; {scene.complaint}")
    healthy_s = time.monotonic() - ended
    problems += check(scene.history, Rules(TTL_S, STALE_S))
    for member in scene.fleet.members.values():
        problems += member.unexpected(excused=(OUT_OF_REACH,) if member.name in {one.name for one in AGENTS} else ())
    print(f"seed {schedule.seed}: healthy after {healthy_s:.1f} s ({scene.complaint}); {summary(scene.history)}")
    if len(scene.history.visits) < 20 or SMALL not in set(kinds_answered(scene.history)):
        problems.append(f"hardly anybody was answered, which proves nothing: {summary(scene.history)}")
    if problems:
        pytest.fail(
            "\n".join((
                f"{len(problems)} things that must not be:", *problems[:30], "", "the schedule:", str(schedule), "",
                "what was done (time of day):", *carrying_out.done, "", summary(scene.history), scene.fleet.said(),
            )),
            pytrace=False,
        )  # fmt: skip
