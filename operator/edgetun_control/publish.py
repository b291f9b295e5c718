"""From the store to the exit nodes: compiles what the store holds into a snapshot, and hands it on whenever it changed.

Changes that come together are compiled together. A compilation that fails leaves the tunnels as they were, but never holds a
revocation back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from edgetun_control.compile_state import Compiled, compile_state
from edgetun_control.store import Store, StoreState, decide_ended_tokens, ended_since
from edgetun_core.credentials import TokenRecord
from edgetun_core.snapshot import Snapshot, TunnelRule

log = logging.getLogger("edgetun.control.publish")

GATHER_S: Final = 0.02
"""How long changes are gathered before they are compiled, so that 1,000 agents at once are not 1,000 compilations."""
SETTLE_TIMEOUT_S: Final = 10.0
LONGEST_SLEEP_S: Final = 60.0
"""Between looks at the clock for tokens that end by themselves."""


class Publisher:
    """Owns the current snapshot. `start` compiles the first one; subscribers get every later one, in order."""

    def __init__(
        self,
        store: Store,
        *,
        pool: str = "default",
        region: str = "default",
        clock: Callable[[], float] = time.time,
        compiler: Callable[[StoreState, str, str, float], Compiled] = compile_state,
    ) -> None:
        self._store = store
        self._pool = pool
        self._region = region
        self._clock = clock
        self._compiler = compiler
        # In milliseconds, so that a restarted server counts on above what it counted before.
        self._snapshot = Snapshot(version=int(clock() * 1000), pool=pool, region=region)
        self._compiled = Compiled()
        self._rules_of: tuple[TunnelRule, ...] = ()
        self._rules: dict[str, TunnelRule] = {}
        self._subscribers: list[Callable[[Snapshot], None]] = []
        self._wanted = 0
        self._done = 0
        self._dirty = asyncio.Event()
        self._settled = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._stop_watching: Callable[[], None] = lambda: None

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def manifest_tunnels(self) -> dict[str, tuple[str, ...]]:
        """The tunnels of manifests that are served: id -> hostnames."""
        return self._compiled.manifest_tunnels

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong in the store, a line each, for the person who keeps it."""
        return self._compiled.problems

    def manifest_tunnels_of(self, token: TokenRecord) -> dict[str, tuple[str, ...]]:
        """A folder holds few tunnels: all of them."""
        return self._compiled.manifest_tunnels

    async def changed(self, timeout_s: float, token: TokenRecord | None = None) -> None:
        """Returns when another snapshot is published, or after the time; a folder holds few tunnels, whosever they are."""
        changed = asyncio.Event()
        first = self._snapshot
        stop = self.subscribe(lambda snapshot: changed.set() if snapshot is not first else None)
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            stop()

    def rule(self, tunnel_id: str) -> TunnelRule | None:
        """What is served as this tunnel."""
        if self._rules_of is not self._snapshot.tunnels:
            self._rules_of = self._snapshot.tunnels
            self._rules = {rule.id: rule for rule in self._rules_of}
        return self._rules.get(tunnel_id)

    def problem_of(self, tunnel_id: str) -> str:
        """The first problem of one tunnel; empty when there is none."""
        return self._compiled.problem_by_tunnel.get(tunnel_id, "")

    def subscribe(self, subscriber: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Calls with the present snapshot now and with every later one; returns what ends that."""
        self._subscribers.append(subscriber)
        subscriber(self._snapshot)

        def stop() -> None:
            with contextlib.suppress(ValueError):
                self._subscribers.remove(subscriber)

        return stop

    async def start(self) -> None:
        """Compiles and publishes what the store holds, then follows it."""
        self._stop_watching = self._store.watch(self._changed)
        self._task = asyncio.create_task(self._follow(), name="publish snapshots")
        self._changed()
        await self.settled()

    async def close(self) -> None:
        """Publishes no more. Idempotent."""
        self._stop_watching()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def settled(self) -> None:
        """Returns when everything that changed before this call is published (or has failed to compile)."""
        wanted = self._wanted
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT_S), self._settled:
                await self._settled.wait_for(lambda: self._done >= wanted)

    def _changed(self) -> None:
        self._wanted += 1
        # At once and without compiling: a revocation waits for nothing.
        self._publish()
        self._dirty.set()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._sleep_s()):
                    await self._dirty.wait()
                    await asyncio.sleep(GATHER_S)
            self._dirty.clear()
            wanted = self._wanted
            try:
                compiled = await asyncio.to_thread(
                    self._compiler, self._store.state, self._pool, self._region, self._clock()
                )
            except Exception:
                log.exception("the tunnels could not be compiled; serving on with those of before")
                self._publish()
            else:
                for line in compiled.problems:
                    if line not in self._compiled.problems:
                        log.warning("%s", line)
                self._compiled = compiled
                self._publish()
            self._done = wanted
            async with self._settled:
                self._settled.notify_all()

    def _publish(self) -> None:
        state = self._store.state
        now = self._clock()
        candidate = msgspec.structs.replace(
            self._snapshot,
            tunnels=self._compiled.tunnels,
            pool_rule=self._compiled.pool_rule,
            credential_keys=tuple(key.public for key in state.signing_keys),
            revoked_tokens=decide_ended_tokens(state, now),
        )
        if candidate == self._snapshot:
            return
        self._snapshot = msgspec.structs.replace(candidate, version=self._snapshot.version + 1)
        for subscriber in tuple(self._subscribers):
            subscriber(self._snapshot)

    def _sleep_s(self) -> float:
        """Until the next token ends by itself."""
        now = self._clock()
        coming = [ends for record in self._store.state.tokens.values() if (ends := ended_since(record)) > now]
        return max(0.05, min([LONGEST_SLEEP_S, *(ends - now for ends in coming)]))
