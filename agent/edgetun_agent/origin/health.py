"""Whether an origin is there: what requests experience, and a look of our own when there are none.

The state is pure; `OriginProbe` is its thin shell. Health is shown and told; it never refuses a request.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from edgetun_core.errors import EdgetunError, UpstreamBroken, UpstreamError, UpstreamTimeout
from edgetun_core.http.message import Fields, ResponseHead

if TYPE_CHECKING:
    from edgetun_agent.origin.record import OriginRecord


class HealthState(Enum):
    """What is known of an origin."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(slots=True)
class OriginHealth:
    """The state that is shown. `since` is monotonic seconds; `last_error` stays after the origin came back."""

    state: HealthState = HealthState.UNKNOWN
    since: float = 0.0
    last_error: str = ""
    last_error_at: float = 0.0

    def answered(self, now: float) -> bool:
        """The origin did something right; True when that is news."""
        if self.state is HealthState.UP:
            return False
        self.state, self.since = HealthState.UP, now
        return True

    def unreachable(self, error: str, now: float) -> bool:
        """The origin cannot be connected to, or fails its health check; True when that is news."""
        self.failed(error, now)
        if self.state is HealthState.DOWN:
            return False
        self.state, self.since = HealthState.DOWN, now
        return True

    def failed(self, error: str, now: float) -> None:
        """A request failed, which alone does not make an origin down."""
        self.last_error, self.last_error_at = error, now


PROBE_AGAIN_S = 2.0
"""How often a down origin is looked at, so that a restarted server shows soon."""


def decide_probe_delay(state: HealthState, interval_s: float, chance: float) -> float:
    """Seconds to the next look; `chance` in [0, 1) spreads agents that started together by a tenth."""
    base = min(PROBE_AGAIN_S, interval_s) if state is HealthState.DOWN else interval_s
    return base * (0.95 + 0.1 * chance)


class OriginProbe:
    """Looks at an origin every `health_interval_s`: asks `health_path` when it is set, and connects otherwise.

    A connect is spared while requests show that the origin answers.
    """

    def __init__(self, client: OriginRecord, chance: Callable[[], float] = random.random) -> None:
        self._client = client
        self._chance = chance
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts looking, at once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        rule = self._client.rule
        seen = -1
        while True:
            answered = self._client.counters.answered
            if rule.health_path:
                await self._ask(rule.health_path)
            elif answered == seen or self._client.health.state is not HealthState.UP:
                await self._connect()
            seen = answered
            await asyncio.sleep(decide_probe_delay(self._client.health.state, rule.health_interval_s, self._chance()))

    async def _connect(self) -> None:
        try:
            await self._client.reach()
        except UpstreamError as error:
            self._client.saw_unreachable(error)
        else:
            self._client.saw_answer()

    async def _ask(self, path: str) -> None:
        answer = _Answer(asyncio.get_running_loop().create_future())
        sink = self._client.probe(path, answer)
        try:
            async with asyncio.timeout(self._client.rule.response_timeout_s):
                status = await answer.status
        except TimeoutError:
            sink.reset(UpstreamTimeout("health check"))
            self._client.saw_unreachable(
                UpstreamTimeout(f"{self._client.url}: the health check {path} was not answered in time")
            )
        except EdgetunError as error:
            self._client.saw_unreachable(error)
        else:
            if status < 400:
                self._client.saw_answer()
            else:
                self._client.saw_unreachable(
                    UpstreamBroken(f"{self._client.url}: the health check {path} answered {status}")
                )


class _Answer:
    """Waits for a status; takes the body and drops it."""

    def __init__(self, status: asyncio.Future[int]) -> None:
        self.status = status

    def on_interim(self, head: ResponseHead) -> None:
        pass

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if not self.status.done():
            self.status.set_result(head.status)

    def on_data(self, data: bytes, end: bool) -> None:
        pass

    def on_trailers(self, fields: Fields) -> None:
        pass

    def on_reset(self, error: EdgetunError) -> None:
        if not self.status.done():
            self.status.set_exception(error)

    def pause_request(self) -> None:
        pass

    def resume_request(self) -> None:
        pass
