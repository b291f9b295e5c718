"""Many agents in one process: each registers with control and keeps its session as `edgetun-agent` does, without a process of its own.

What is written down is when each began an attempt and when it was connected; the wiring is `edgetun_agent.main`'s.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from edgetun_agent.connect import Agent
from edgetun_agent.dialling import Attempt
from edgetun_agent.enroll import CredentialKeeper
from edgetun_agent.placing import Placing, renew_while_cut_off
from edgetun_agent.race import Wanted
from edgetun_agent.serve import Origins
from edgetun_core.credentials import ClusterToken
from edgetun_core.enrollment import EnrollRequest
from edgetun_core.errors import EdgetunError
from edgetun_core.wire.hello import Hello


@dataclass(slots=True)
class Record:
    """Times on the monotonic clock. `pauses` are (begin, length) of every wait for the next attempt, as it was decided: what a busy
    machine adds is not in it. `won` is for when the attempt was meant that led to the present session.
    """

    attempts: list[float] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    won: float = 0.0
    connected_at: float = 0.0
    registrations: int = 0


class _Watched(Agent):
    """An agent whose attempts and pauses are written down."""

    def __init__(self, record: Record, **how: Any) -> None:
        super().__init__(**how)
        self.record = record
        for slot in self._slots:
            slot._pause = functools.partial(self._paused, slot._pause)  # type: ignore[method-assign]

    async def _paused(self, pause: Callable[[float], Awaitable[None]], delay_s: float) -> None:
        self.record.pauses.append((monotonic(), delay_s))
        await pause(delay_s)

    def attempt(self, *what: object) -> Attempt:  # type: ignore[override]
        self.record.attempts.append(monotonic())
        return super().attempt(*what)  # type: ignore[arg-type]

    def opened(self, attempt: Attempt) -> None:
        super().opened(attempt)
        began, length_s = self.record.pauses[-1] if self.record.pauses else (self.record.attempts[-1], 0.0)
        self.record.won = began + length_s
        self.record.connected_at = monotonic()


class LightAgent:
    """One of them. `start`, then `close`."""

    def __init__(self, token: ClusterToken, name: str, tunnels: Sequence[str], transport: Wanted) -> None:
        self.name = name
        self.record = Record()
        self._transport: Wanted = transport
        self._request = EnrollRequest(name, tuple(tunnels), None, "edgetun/storm", carries=("tcp", "udp"))
        self._placing = Placing(token, self._request, transport=transport)
        self._tasks: list[asyncio.Task[None]] = []
        self._origins: Origins | None = None
        self.agent: _Watched | None = None
        self.failures: list[str] = []

    @property
    def is_connected(self) -> bool:
        return self.agent is not None and self.agent.is_connected

    async def start(self) -> None:
        """Registers and begins to connect. An EdgetunError is raised, as it ends the process of an agent."""
        enrollment = await self._placing.enroll()
        self.record.registrations += 1
        self._origins = Origins(enrollment.tunnels, probe=False)
        keeper = CredentialKeeper(
            enrollment,
            self._renew,
            on_renewed=self._take,
            on_failed=lambda error: self.failures.append(str(error)),
        )
        self.agent = _Watched(
            self.record,
            endpoints=enrollment.endpoints,
            trust=enrollment.trust,
            hello=lambda session_id: Hello(
                agent_id=self.name,
                session_id=session_id,
                credential=keeper.current().credential,
                services=self._origins.services if self._origins is not None else (),
            ),
            handler=self._origins,
            on_refused=lambda _: keeper.renew_soon(),
            transport=self._transport,
            sessions=1,
            rng=random.Random(self.name),
        )
        self.agent.start()
        agent = self.agent
        self._tasks = [
            asyncio.create_task(keeper.run()),
            asyncio.create_task(self._placing.watch(keeper.renew_soon)),
            asyncio.create_task(renew_while_cut_off(lambda: agent.is_connected, keeper.renew_soon)),
        ]

    async def _renew(self):  # type: ignore[no-untyped-def]
        renewed = await self._placing.renew()
        self.record.registrations += 1
        return renewed

    def _take(self, renewed) -> None:  # type: ignore[no-untyped-def]
        assert self.agent is not None
        self.agent.update(renewed.endpoints, renewed.trust)
        self.agent.retry_now()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError, EdgetunError):
                await task
        if self.agent is not None:
            await self.agent.close()
        if self._origins is not None:
            await self._origins.close()


def most_within(times: Sequence[float], window_s: float) -> int:
    """The most of these moments that lie within any window of that length."""
    ordered = sorted(times)
    most = first = 0
    for index, at in enumerate(ordered):
        while at - ordered[first] > window_s:
            first += 1
        most = max(most, index - first + 1)
    return most
