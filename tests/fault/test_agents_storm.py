"""Agents by the hundred lose their exit node at once, and come back: spread out, each after few attempts, and all of them.

EDGETUN_STORM_AGENTS=1000 pytest -s tests/fault/test_agents_storm.py

makes it a thousand (the default is a fifth of that, and TLS alone, for time) and prints figures.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from edgetun_agent.backoff import FIRST_BOUND_S
from edgetun_core.credentials import ClusterToken
from edgetun_core.errors import UpstreamUnreachable
from edgetun_core.process import raise_open_files_limit
from support.chaos.many_agents import LightAgent, most_within
from support.commands import Command, run
from support.serving import start_server
from support.streams import free_port
from support.visitors import Visitor
from support.waiting import eventually

AGENTS = int(os.environ.get("EDGETUN_STORM_AGENTS", "200"))
TRANSPORTS = ("tls", "auto") if "EDGETUN_STORM_AGENTS" in os.environ else ("tls",)
TUNNELS = 10
TRIES = 12
BACK_WITHIN_S = 90.0 if AGENTS <= 200 else 300.0
"""The backoff's longest wait, and a busy machine."""
DOWN_S = 3.0
BUSIEST_SECOND = 0.5
"""Of all attempts while the exit node was away, the share that may be meant for one second."""
BUSIEST_TENTH = 0.8
"""Of the attempts that led to a session, the share that may be meant for the same tenth of a second. Without jitter it is all of them."""


pytestmark = pytest.mark.timeout(500 + 2 * AGENTS)


class Scene:
    """`edgetun serve`, which is control and exit node, and all agents."""

    def __init__(self, folder: Path, ports: dict[str, int], transport: str) -> None:
        self.folder, self.ports, self.transport = folder, ports, transport
        self.agents: list[LightAgent] = []
        self.command: Command | None = None

    def start(self) -> None:
        flags = [f"--{name}={port}" for name, port in self.ports.items() if name != "metrics"]
        self.command = start_server(
            self.folder, *flags, "--http-port", str(self.ports["http-port"]),
            f"--metrics=127.0.0.1:{self.ports['metrics']}",
        )  # fmt: skip

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['metrics']}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def is_stuck(self) -> bool:
        """Whether the event loop of the exit node does not react: `/healthz` asks it, once that is there."""
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.ports['metrics']}/healthz", timeout=20).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False
        return False

    async def status(self, number: int = 0) -> int:
        visitor = await Visitor.to(self.ports["http-port"])
        visitor.timeout_s = 20.0
        try:
            return (await visitor.ask("/", host=f"t{number}.localhost")).status
        finally:
            visitor.leave()

    @property
    def connected(self) -> int:
        return sum(agent.is_connected for agent in self.agents)


async def _timed(asking: Awaitable[int]) -> tuple[int, float]:
    began = monotonic()
    return await asking, monotonic() - began


def _manifest(number: int, origin_port: int) -> str:
    return (
        f"apiVersion: edgetun.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: t{number}, namespace: storm}}\n"
        f"spec: {{hostnames: [t{number}.localhost], origin: {{url: 'http://127.0.0.1:{origin_port}'}}}}\n"
    )


@asynccontextmanager
async def storm_scene(folder: Path, transport: str) -> AsyncIterator[Scene]:
    raise_open_files_limit()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (EOFError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    (folder / "tunnels").mkdir(parents=True)
    for number in range(TUNNELS):
        text = _manifest(number, server.sockets[0].getsockname()[1])
        (folder / "tunnels" / f"t{number}.yaml").write_text(text)
    scene = Scene(folder, {name: free_port() for name in ("http-port", "tunnel-port", "metrics")}, transport)
    scene.start()
    try:
        assert scene.command is not None
        await asyncio.to_thread(scene.command.line, "register at", 120)
        yield scene
    finally:
        await asyncio.gather(*(agent.close() for agent in scene.agents))
        scene.command.__exit__(None, None, None)
        server.close()


async def _register_all(scene: Scene) -> None:
    made = await asyncio.to_thread(
        run, "edgetun", "token", "create", "--state", str(scene.folder), "--tunnel", "storm/*"
    )
    assert made.ended() == 0, made.said
    token = ClusterToken.parse(made.out.strip())
    at_once = asyncio.Semaphore(8)

    async def begin(number: int) -> None:
        agent = LightAgent(token, f"agent-{number}", [f"storm/t{number % TUNNELS}"], scene.transport)  # type: ignore[arg-type]
        scene.agents.append(agent)
        async with at_once:
            for left in reversed(range(TRIES)):
                try:
                    await agent.start()
                    break
                except UpstreamUnreachable:  # a busy machine; a supervisor would start the agent again
                    if not left:
                        raise

    await asyncio.gather(*(begin(number) for number in range(AGENTS)))
    await eventually(lambda: scene.connected == AGENTS, 2 * BACK_WITHIN_S, "all are connected for the first time")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_all_come_back_spread_out_after_their_exit_node_was_killed(tmp_path: Path, transport: str) -> None:
    async with storm_scene(tmp_path / "state", transport) as scene:
        began = monotonic()
        await _register_all(scene)
        registered_s = monotonic() - began
        at_once = [agent for agent in scene.agents if len(agent.record.attempts) == 1]
        """Their backoff begins anew; whose first attempts failed goes on with longer pauses."""
        for agent in scene.agents:
            agent.record.attempts.clear()
            agent.record.pauses.clear()
            agent.record.registrations = 0
        assert scene.command is not None
        killed = monotonic()
        scene.command.process.kill()
        await asyncio.to_thread(scene.command.ended)
        scene.command.__exit__(None, None, None)
        await eventually(lambda: scene.connected == 0, 60, "all have noticed")
        noticed_s = monotonic() - killed
        await asyncio.sleep(max(0.0, DOWN_S - noticed_s))
        scene.start()
        await asyncio.to_thread(scene.command.line, "register at", 120)
        up = monotonic()
        stuck, answers = 0, []
        while scene.connected < AGENTS and monotonic() - up < BACK_WITHIN_S:
            stuck += await asyncio.to_thread(scene.is_stuck)
            answers.append(await _timed(scene.status()))
            await asyncio.sleep(0.25)
        back_s = monotonic() - up
        wins = [agent.record.won for agent in scene.agents]
        attempts = [len(agent.record.attempts) for agent in scene.agents]
        after = sum(at > up for agent in scene.agents for at in agent.record.attempts)
        meant = [begun + length_s for agent in scene.agents for begun, length_s in agent.record.pauses]
        first = [agent.record.pauses[0][1] for agent in at_once]
        share = most_within(meant, 1.0) / len(meant)
        returning = most_within(wins, 0.1) / AGENTS
        failures = Counter(failure[:80] for agent in scene.agents for failure in agent.failures)
        print(
            f"{AGENTS} agents over {transport}: registered in {registered_s:.1f} s, noticed within {noticed_s:.1f} s; down for "
            f"{up - killed:.1f} s, all back {back_s:.1f} s later; attempts {statistics.mean(attempts):.1f} each, {max(attempts)} at most, "
            f"{after} after it was up; busiest second {share:.0%} of all, "
            f"busiest tenth of a second {returning:.0%} of the returns; "
            f"visitors meanwhile waited {max((waited_s for _, waited_s in answers), default=0):.2f} s at most, {stuck} times stuck; registrations "
            f"{sum(agent.record.registrations for agent in scene.agents)}; {failures}"
        )
        assert scene.connected == AGENTS, f"{scene.connected} of {AGENTS} are back after {BACK_WITHIN_S:g} s"
        assert max(first) <= FIRST_BOUND_S
        assert most_within(first, FIRST_BOUND_S / 5) <= 0.4 * AGENTS, (
            "the first attempts are not spread over their interval"
        )
        assert share <= BUSIEST_SECOND, "a thundering herd"
        assert returning <= BUSIEST_TENTH, "they come back in the same moment"
        assert after <= 2 * AGENTS, "those who found the exit node there were sent away"
        assert {status for status, _ in answers} <= {200, 503}
        assert await asyncio.to_thread(scene.metric, "edgetun_sessions_refused_total") == 0
        assert await asyncio.to_thread(scene.metric, "edgetun_sessions") == AGENTS
        for number in range(TUNNELS):
            assert await scene.status(number) == 200
