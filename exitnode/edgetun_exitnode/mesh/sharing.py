"""Rates that hold for the whole fleet: what visitors were given here is told to the node that keeps the account of their tunnel.

The account of a tunnel's rates is its owner's by rendezvous hashing, like a cache key. At most one report to an owner is under
way; the next one leaves when it is answered and there is something to tell: at once when somebody used much, otherwise after a
tenth of a second. An owner that cannot be reached changes nothing: each node then counts for itself until another one owns the account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import Handler
from edgetun_exitnode.mesh.calls import Levels, Spending, send_spending
from edgetun_exitnode.pipeline.limits import RateLimit

GATHER_S: Final = 0.1
URGENT_S: Final = 0.002
"""Between two reports that are urgent: what comes within is told together."""
MOST_TOLD: Final = 500
"""Visitors of one limit in one report."""


class Accounts(Protocol):
    """What is asked of the mesh."""

    clock: Callable[[], float]

    def account_of(self, tunnel: str) -> str | None:
        """The node that keeps the account of a tunnel's rates; None when it is this one, or nobody else is there."""

    async def reach(self, node: str) -> Handler | None: ...
    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None: ...


class Sharing:
    """The rates of one node."""

    def __init__(self, accounts: Accounts, rates: Mapping[str, RateLimit]) -> None:
        self._accounts = accounts
        self._rates = rates
        self._timer: asyncio.TimerHandle | None = None
        self._is_urgent = False
        self._under_way: set[str] = set()
        self.reports_total = 0

    def wake(self, is_urgent: bool) -> None:
        """Something was given; called per request, so it does little."""
        if self._timer is not None:
            if self._is_urgent or not is_urgent:
                return
            self._timer.cancel()
        self._is_urgent = is_urgent
        self._timer = asyncio.get_running_loop().call_later(URGENT_S if is_urgent else GATHER_S, self._report)

    def close(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self, spending: Spending) -> Levels:
        """Another node's report, where this node keeps the account. Limits that are not known here are passed over."""
        now = self._accounts.clock()
        left: dict[str, dict[str, float]] = {}
        for name, visitors in spending.spent.items():
            rate = self._rates.get(name)
            if rate is not None:
                left[name] = {visitor: rate.spend(visitor, given, now) for visitor, given in visitors.items()}
        return Levels(left)

    def _report(self) -> None:
        self._timer = None
        told: dict[str, dict[str, dict[str, float]]] = {}
        for name, rate in self._rates.items():
            if not rate.untold:
                continue
            owner = self._accounts.account_of(name.partition(" ")[0])
            if owner is None:
                rate.untold.clear()
            elif owner not in self._under_way:
                told.setdefault(owner, {})[name] = rate.take_untold(MOST_TOLD)
        for owner, spent in told.items():
            self._under_way.add(owner)
            self._accounts.begin(self._tell(owner, spent), f"tell {owner} what visitors used")

    async def _tell(self, owner: str, spent: dict[str, dict[str, float]]) -> None:
        levels = None
        try:
            session = await self._accounts.reach(owner)
            if session is not None:
                self.reports_total += 1
                levels = await send_spending(session, Spending(spent))
        except EdgetunError:
            pass  # each node counts for itself meanwhile
        finally:
            self._under_way.discard(owner)
        now = self._accounts.clock()
        for name, visitors in spent.items():
            rate = self._rates.get(name)
            if rate is None:
                continue
            if levels is None:
                rate.give_back(visitors)
            else:
                for visitor, left in levels.left.get(name, {}).items():
                    rate.settle(visitor, left, now)
        if any(rate.untold for rate in self._rates.values()):
            self.wake(levels is not None)
