"""Does to a fleet what a schedule says, with every action in a task of its own."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import Self

from support.chaos.schedule import AT_ONCE, BLACK_HOLE, KILL, PAUSE, Action, Schedule
from support.fleet import Fleet, Member
from support.impairment import GOOD, Impairment
from support.impairment.tcp_path import TcpPath, tcp_path
from support.impairment.udp_path import UdpPath, udp_path

OUT_OF_REACH = 4
"""An agent that comes while control or every exit node is down gives up in the end; whoever supervises it starts it again."""
SUPERVISE_EVERY_S = 0.3
STARTED_WITHIN_S = 30.0


class Ways:
    """A path for TCP and one for UDP between agents and each exit node."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._stack = AsyncExitStack()
        self._paths: dict[str, tuple[TcpPath, UdpPath]] = {}

    async def __aenter__(self) -> Self:
        for node in self._fleet.nodes:
            address, port = self._fleet.address[node], self._fleet.way_port[node]
            target = self._fleet.tunnel_port[node]
            self._paths[node] = (
                await self._stack.enter_async_context(tcp_path(target, host=address, port=port)),
                await self._stack.enter_async_context(udp_path(target, host=address, port=port)),
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def set(self, node: str, weather: Impairment) -> None:
        for path in self._paths[node]:
            path.set(weather)

    def reset(self, node: str) -> None:
        """Every TCP connection of agents to this node is reset."""
        self._paths[node][0].reset_all()

    async def rebind(self, node: str) -> None:
        """A NAT forgets: agents come from other UDP ports."""
        await self._paths[node][1].rebind()


class CarryingOut:
    """Runs a schedule; from its begin to its end (the `with`) agents that gave up are started again.

    An action begins when it is due, the target is past its last start, and not more than `AT_ONCE` targets suffer: on a busy
    machine, where a start takes seconds, a schedule takes longer instead of leaving nobody alive.
    """

    def __init__(self, fleet: Fleet, ways: Ways) -> None:
        self._fleet, self._ways = fleet, ways
        self.done: list[str] = []
        """What was done and when, as it was, for a failure's report."""
        self._began = time.monotonic()
        self._targets = {name: asyncio.Lock() for name in fleet.members}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._ending: set[Member] = set()
        """Those who are down on purpose, whatever their last exit code was."""
        self._supervising: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._supervising = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._supervising is not None
        self._supervising.cancel()
        with suppress(asyncio.CancelledError):
            await self._supervising

    async def run(self, schedule: Schedule) -> None:
        """Whatever happens, everybody runs and every way is open afterwards."""
        self._began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for action in schedule.actions:
                    await asyncio.sleep(max(0.0, action.at_s - (time.monotonic() - self._began)))
                    await self._at_once.acquire()
                    group.create_task(self._act(action))
            await asyncio.sleep(max(0.0, schedule.seconds - (time.monotonic() - self._began)))
        finally:
            await self._heal()

    async def _heal(self) -> None:
        for node in self._fleet.nodes:
            self._ways.set(node, GOOD)
        for member in self._fleet.members.values():
            if member.is_paused:
                member.resume()
            if member.has_ended:
                await asyncio.to_thread(member.start)

    async def _act(self, action: Action) -> None:
        member = self._fleet.members[action.target]
        try:
            async with self._targets[action.target]:
                self._note(f"{action.kind} {action.target}")
                if action.kind == BLACK_HOLE:
                    self._ways.set(action.target, Impairment(is_black_hole=True))
                    await asyncio.sleep(action.lasts_s)
                    self._ways.set(action.target, GOOD)
                elif action.kind == PAUSE:
                    member.pause()
                    await asyncio.sleep(action.lasts_s)
                    member.resume()
                else:
                    await self._end_and_start(action, member)
                self._note(f"{action.kind} {action.target} is over")
        finally:
            self._at_once.release()

    async def _end_and_start(self, action: Action, member: Member) -> None:
        self._ending.add(member)
        if action.kind == KILL:
            member.kill()
        else:
            member.stop()
        await asyncio.gather(asyncio.sleep(action.lasts_s), asyncio.to_thread(member.gone))
        await asyncio.to_thread(member.start)
        self._ending.discard(member)
        # an agent may have to be started more than once: see `_supervise`
        with suppress(AssertionError):
            await asyncio.to_thread(member.ready, STARTED_WITHIN_S)

    async def _supervise(self) -> None:
        """As systemd or a kubelet does: an agent that gave up is started again. Others that end by themselves are the checker's."""
        while True:
            await asyncio.sleep(SUPERVISE_EVERY_S)
            for member in self._fleet.members.values():
                if (
                    member not in self._ending
                    and member.has_ended
                    and member.command.process.returncode == OUT_OF_REACH
                ):
                    self._note(f"{member.name} gave up and is started again")
                    await asyncio.to_thread(member.start)

    def _note(self, what: str) -> None:
        self.done.append(f"{time.monotonic() - self._began:.2f} ({time.time():.2f}) {what}")
