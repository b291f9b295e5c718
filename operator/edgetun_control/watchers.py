"""Who waits for news of which namespaces: a change wakes those whom it may concern, and lets the thousand others sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


class Watchers:
    """`wait` for news, `wake` when there are some."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        """By namespace; those who wait for any under the empty name."""

    def __len__(self) -> int:
        return len(set().union(*self._waiting.values()))

    async def wait(self, namespaces: Iterable[str] | None, timeout_s: float) -> None:
        """Returns when somebody wakes one of the namespaces (None: any of them), or after the time."""
        names = tuple(namespaces) if namespaces is not None else ("",)
        woken = asyncio.get_running_loop().create_future()
        for name in names:
            self._waiting.setdefault(name, set()).add(woken)
        try:
            await asyncio.wait((woken,), timeout=timeout_s)
        finally:
            for name in names:
                waiting = self._waiting.get(name)
                if waiting is not None:
                    waiting.discard(woken)
                    if not waiting:
                        del self._waiting[name]

    def wake(self, namespaces: Iterable[str] | None = None) -> None:
        """Wakes whoever waits for one of the namespaces; without any given, everybody."""
        names = (*namespaces, "") if namespaces is not None else tuple(self._waiting)
        for name in names:
            for woken in self._waiting.get(name, ()):
                if not woken.done():
                    woken.set_result(None)
