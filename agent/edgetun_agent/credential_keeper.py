"""Keeping a session credential alive: renewal at half its life, retries with jitter, and a clock that laptops cannot stop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import EdgetunError

if TYPE_CHECKING:
    from edgetun_agent.enroll import Enrollment

RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
WALL_CLOCK_CHECK_S: Final = 15.0


class CredentialKeeper:
    """Holds the current enrollment and renews it at half its life, for as long as `run` runs.

    A renewal that fails is tried again with full jitter between 1 s and 60 s; meanwhile `current()` stays what it was, and
    sessions that stand are not touched. Time is taken from the wall clock too, since the other one stops while a laptop sleeps.
    """

    def __init__(
        self,
        enrollment: Enrollment,
        ask_again: Callable[[], Awaitable[Enrollment]],
        *,
        on_renewed: Callable[[Enrollment], None] = lambda _: None,
        on_failed: Callable[[EdgetunError], None] = lambda _: None,
        rng: random.Random | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._current = enrollment
        self._ask_again = ask_again
        self._on_renewed = on_renewed
        self._on_failed = on_failed
        self._rng = rng if rng is not None else random.Random()  # noqa: S311  # jitter, not a secret
        self._wall_clock = wall_clock
        self._since = wall_clock()
        self._hurry = asyncio.Event()

    def current(self) -> Enrollment:
        """The last good enrollment; its credential may be over when control was away for long."""
        return self._current

    @property
    def is_expired(self) -> bool:
        """Whether the credential has ended by this machine's clock."""
        return self._wall_clock() - self._since >= self._current.expires_in_s

    def renew_soon(self) -> None:
        """Asks for a renewal now, as when an exit node says that the credential has ended.

        While one is being made it is that one: control is not asked again at its end, nor sooner when it fails.
        """
        self._hurry.set()

    async def run(self) -> None:
        """Renews until it is cancelled."""
        while True:
            await self._until_due()
            await self._renew()

    async def _until_due(self) -> None:
        waited_s = 0.0
        while True:
            left_s = self._current.renew_after_s - max(waited_s, self._wall_clock() - self._since)
            if left_s <= 0:
                return
            slice_s = min(left_s, WALL_CLOCK_CHECK_S)
            if await self._hurried(slice_s):
                return
            waited_s += slice_s

    async def _renew(self) -> None:
        attempt = 0
        while True:
            try:
                renewed = await self._ask_again()
            except EdgetunError as error:
                self._hurry.clear()
                self._on_failed(error)
                await self._hurried(decide_retry_delay_s(attempt, self._rng))
                attempt += 1
            else:
                self._hurry.clear()
                self._current = renewed
                self._since = self._wall_clock()
                self._on_renewed(renewed)
                return

    async def _hurried(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._hurry.wait()
        except TimeoutError:
            return False
        return True


def decide_retry_delay_s(attempt: int, rng: random.Random) -> float:
    """Full jitter over an exponential bound of 1 s to 60 s, but never less than a quarter of the first bound."""
    bound_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** min(attempt, 16))
    return max(RETRY_FIRST_S / 4, rng.uniform(0, bound_s))
