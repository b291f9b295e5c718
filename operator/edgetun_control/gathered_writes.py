"""Writes to the API server that are gathered for a moment and tried again when they fail: of one thing there is one, however often it changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, TypeVar

from edgetun_cluster.errors import ClusterError

K = TypeVar("K")

GATHER_S: Final = 0.5


class GatheredWrites(Generic[K]):
    """`mark` what is to be written; `run` is the owner's background task, and never ends by itself."""

    def __init__(
        self,
        write: Callable[[K], Awaitable[None]],
        describe: Callable[[K], str],
        log: logging.Logger,
        *,
        concurrent: int,
        again_s: float,
    ) -> None:
        """`write` may raise ClusterError, and is tried again after `again_s`; `describe` names a thing for the log."""
        self._write = write
        self._describe = describe
        self._log = log
        self._turns = asyncio.Semaphore(concurrent)
        self._again_s = again_s
        self._marked: dict[K, None] = {}
        self._wake = asyncio.Event()
        self.failures_total = 0

    def mark(self, key: K) -> None:
        """To be written soon."""
        self._marked[key] = None
        self._wake.set()

    async def run(self) -> None:
        """Writes what is marked."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            marked, self._marked = self._marked, {}
            await self.write(marked)

    async def write(self, keys: Iterable[K]) -> None:
        """Writes these now; returns when each was tried once."""
        await asyncio.gather(*map(self._write_one, keys))

    async def _write_one(self, key: K) -> None:
        log = self._log
        async with self._turns:
            try:
                await self._write(key)
            except ClusterError as error:
                self.failures_total += 1
                if self.failures_total == 1 or self.failures_total % 100 == 0:
                    log.warning("%s could not be written: %s; trying again", self._describe(key), error)
                asyncio.get_running_loop().call_later(self._again_s, self.mark, key)
            except Exception:
                # The edge of a task: one thing that cannot be shown must not keep the others from it.
                log.exception("%s could not be shown", self._describe(key))
