"""The queue of what is to be reconciled: each item at most once, never twice at one time, later and later while it fails.

Level-triggered: an item says only which object to look at. What is added while it is being worked on is worked on once more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, NamedTuple

from edgetun_cluster.backoff import Backoff
from edgetun_cluster.kinds import Key
from edgetun_core.errors import EdgetunError

log = logging.getLogger(__name__)

FAILURE_S: Final = (0.5, 120.0)
"""First and longest wait after a failure."""
COALESCE_S: Final = 0.05
"""A change is looked at this long after it came, together with those that came with it."""

ItemKind = Literal["System", "ExitPool", "Tunnel", "AgentToken", "HostnameReservation"]


class Item(NamedTuple):
    """What to reconcile."""

    kind: ItemKind
    key: Key


Reconcile = Callable[[Item], Awaitable["float | None"]]
"""Reconciles one item; returns after how many seconds it wants to be asked again, if at all."""


class WorkQueue:
    """Runs on one event loop."""

    def __init__(self, *, coalesce_s: float = COALESCE_S) -> None:
        self.done = 0
        self.failed = 0
        self.seconds = 0.0
        self._coalesce_s = coalesce_s
        self._ready: asyncio.Queue[Item] = asyncio.Queue()
        self._waiting: dict[Item, tuple[float, asyncio.TimerHandle]] = {}
        self._queued: set[Item] = set()
        self._active: set[Item] = set()
        self._again: set[Item] = set()
        self._backoffs: dict[Item, Backoff] = {}

    def __len__(self) -> int:
        """Items that are to be looked at now or are being looked at."""
        return len(self._queued) + len(self._active)

    @property
    def failing(self) -> int:
        """Items whose last try failed."""
        return len(self._backoffs)

    def add(self, item: Item, delay_s: float | None = None) -> None:
        """Asks for an item, soon or after a while. The earlier of two wishes counts."""
        delay_s = self._coalesce_s if delay_s is None else delay_s
        if item in self._queued:
            return
        if item in self._active and delay_s <= self._coalesce_s:
            self._again.add(item)
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + delay_s
        waiting = self._waiting.get(item)
        if waiting is not None:
            if waiting[0] <= at:
                return
            waiting[1].cancel()
        self._waiting[item] = (at, loop.call_later(delay_s, self._due, item))

    def _due(self, item: Item) -> None:
        self._waiting.pop(item, None)
        if item in self._active:
            self._again.add(item)
        elif item not in self._queued:
            self._queued.add(item)
            self._ready.put_nowait(item)

    async def run(self, reconcile: Reconcile, workers: int) -> None:
        """Works until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._work(reconcile), name=f"reconcile {number}")

    async def _work(self, reconcile: Reconcile) -> None:
        while True:
            item = await self._ready.get()
            self._queued.discard(item)
            self._active.add(item)
            began = time.monotonic()
            try:
                again_s = await reconcile(item)
            except EdgetunError as error:
                again_s = self._failed(item)
                log.warning("%s %s: %s; trying again in %.1f s", item.kind, item.key, error, again_s)
            except Exception:
                # The edge of a task: one object that we cannot handle must not keep the others from being handled.
                again_s = self._failed(item)
                log.exception("%s %s: reconcile failed; trying again in %.1f s", item.kind, item.key, again_s)
            else:
                self._backoffs.pop(item, None)
            finally:
                self._active.discard(item)
                self.done += 1
                self.seconds += time.monotonic() - began
            if item in self._again:
                self._again.discard(item)
                self.add(item)
            elif again_s is not None:
                self.add(item, again_s)

    def _failed(self, item: Item) -> float:
        self.failed += 1
        return self._backoffs.setdefault(item, Backoff(*FAILURE_S)).next_s()
