"""Shows in the status of Tunnels which exit nodes cannot listen on their port; the operator makes a condition of it.

Each exit node tells the whole list of its own whenever that changes. What it says of a tunnel is one entry of
`status.portsUnavailable`, applied under a field manager of that node's: so replicas of control that follow different nodes never meet.
An entry says when it was last seen. Whoever follows the node says it again every `REFRESH_S`; one that nobody has said for `FORGET_S`, since
its node died with the replica that followed it, is removed by any replica. Nothing is written while all ports can be had.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from edgetun_cluster.client import Cluster
from edgetun_cluster.kinds import TUNNEL, Key, Object
from edgetun_control.exits.fleet import FollowingNode
from edgetun_control.gathered_writes import GatheredWrites
from edgetun_core.api.conditions import parse_timestamp, timestamp
from edgetun_core.quantities import one_line

log = logging.getLogger("edgetun.control.ports")

REFRESH_S: Final = 120.0
FORGET_S: Final = 360.0
SWEEP_EVERY_S: Final = 30.0
TRY_AGAIN_S: Final = 5.0
MOST_MESSAGE: Final = 512
MOST_MANAGER: Final = 128
"""Characters of a field manager's name."""

Entry = tuple[Key, str]
"""A tunnel, and the node that cannot listen for it."""

Shown = Callable[[], Iterable[tuple[Key, Mapping[str, Any]]]]


class PortBook:
    """Hears what exit nodes say of their ports (`told`); `start` begins to write."""

    def __init__(
        self,
        cluster: Cluster,
        shown: Shown,
        *,
        clock: Callable[[], float] = time.time,
        refresh_s: float = REFRESH_S,
        forget_s: float = FORGET_S,
        sweep_every_s: float = SWEEP_EVERY_S,
    ) -> None:
        """`shown`: every Tunnel that has entries in its status, as the watch brought it."""
        self._cluster = cluster
        self._shown = shown
        self._clock = clock
        self._refresh_s = refresh_s
        self._forget_s = forget_s
        self._sweep_every_s = sweep_every_s
        self._told: dict[str, dict[Key, str]] = {}
        """By node: what it said last."""
        self._written_at: dict[Entry, float] = {}
        self._writes = GatheredWrites(self._write, _describe, log, concurrent=1, again_s=TRY_AGAIN_S)
        self._tasks: list[asyncio.Task[None]] = []
        self.writes_total = 0

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._writes.run(), name="write unavailable ports"),
            asyncio.create_task(self._sweep_now_and_then(), name="look at unavailable ports"),
        ]

    async def close(self) -> None:
        """Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()

    @property
    def failures_total(self) -> int:
        """Writes that failed."""
        return self._writes.failures_total

    # ---- what happens

    def told(self, node: FollowingNode) -> None:
        """A node said anew which ports it cannot have."""
        self._take(node.name.node, node.ports)

    def left(self, node: FollowingNode) -> None:
        """Its stream ended. One that had drained is gone; of the others nobody knows, and what they said stands for `FORGET_S`."""
        name = node.name.node
        if node.load.is_draining:
            self._take(name, {})
        for key in self._told.pop(name, {}):
            self._written_at.pop((key, name), None)

    def _take(self, node: str, ports: Mapping[str, str]) -> None:
        now = {_key_of(tunnel): one_line(message, MOST_MESSAGE) for tunnel, message in ports.items()}
        before = self._told.get(node)
        self._told[node] = now
        changed = [key for key in now if before is None or before.get(key) != now[key]]
        gone = [key for key in before or () if key not in now]
        if before is None:  # what it told another replica, or this one before it was started anew
            gone += [key for key, status in self._shown() if key not in now and node in _entries(status)]
        for key in (*changed, *gone):
            self._writes.mark((key, node))

    # ---- writing

    async def _write(self, entry: Entry) -> None:
        key, node = entry
        message = self._told.get(node, {}).get(key)
        now = self._clock()
        status: Object = {}
        if message is not None:
            status = {"portsUnavailable": [{"node": node, "message": message, "seen": timestamp(now)}]}
        elif entry not in self._written_at and not self._is_shown(entry):
            return
        named = {"metadata": {"name": key.name, "namespace": key.namespace}}
        manager = f"edgetun-control/{node}"[:MOST_MANAGER]
        # Of a Tunnel that is gone, or was never one (an agent asked for the port by itself), nothing can be shown.
        if await self._cluster.apply_status(TUNNEL, named, status, manager=manager) is not None:
            self.writes_total += 1
        if message is not None:
            self._written_at[entry] = now
        else:
            self._written_at.pop(entry, None)

    def _is_shown(self, entry: Entry) -> bool:
        return any(key == entry[0] and entry[1] in _entries(status) for key, status in self._shown())

    async def _sweep_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_every_s)
            now = self._clock()
            for node, ports in self._told.items():
                for key in ports:
                    if now - self._written_at.get((key, node), 0.0) >= self._refresh_s:
                        self._writes.mark((key, node))
            for key, status in list(self._shown()):
                for node, seen in _entries(status).items():
                    if key not in self._told.get(node, {}) and (node in self._told or now - seen > self._forget_s):
                        self._writes.mark((key, node))


def _describe(entry: Entry) -> str:
    return f"what port {entry[0]} lacks"


def _key_of(tunnel: str) -> Key:
    namespace, _, name = tunnel.partition("/")
    return Key(namespace, name)


def _entries(status: Mapping[str, Any]) -> dict[str, float]:
    """Nodes in a status, and when each was last seen; a time that cannot be read is long ago."""
    found: dict[str, float] = {}
    for one in status.get("portsUnavailable") or ():
        try:
            found[str(one.get("node"))] = parse_timestamp(str(one.get("seen")))
        except ValueError:
            found[str(one.get("node"))] = 0.0
    return found
