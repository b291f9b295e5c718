"""Copies of responses at other exit nodes: the owner of a key that was another's until lately looks there before it asks the laptop.

Every node caches what its visitors got, for as long as the owner might. So when an owner dies, or a new holder takes a part of the
keys, what the new owner lacks is mostly stored beside it, and the laptop need not be asked again before its time. remote.py
knows when; here is the asking. Keys that are wanted within `GATHER_S` go into one call to each of up to 16 peers: those that hold the
tunnel or did, and those with which a session stands, so that nobody dials around the world for a page that nobody has. The first that
has a copy is enough. When nobody has one, the answer is there with the slowest peer's, or after `ROUND_S`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import Handler
from edgetun_exitnode.cache.store import Store
from edgetun_exitnode.mesh.calls import Fresh, Wanted, ask_stored

GATHER_S: Final = 0.002
ROUND_S: Final = 0.25
"""A visitor waits this long at most for what others may have; then the laptop is asked."""
MOST_KEYS: Final = 256
"""Keys in one call; what is wanted beyond that within `GATHER_S` is fetched at once."""
MOST_KEY_BYTES: Final = 2_048
"""Longer keys are not looked for."""

Found = Callable[[Handler | None], None]
"""Takes the session with a node that has a copy; None: nobody has."""


class Peers(Protocol):
    """What is asked of the mesh."""

    clock: Callable[[], float]

    def nodes_to_ask(self, holders: Iterable[str]) -> list[str]:
        """Of these nodes and of those with which a session stands, some that may be reached; bounded."""

    async def reach(self, node: str) -> Handler | None: ...
    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None: ...


class Siblings:
    """The asking and the answering of one node."""

    def __init__(self, peers: Peers, store: Store) -> None:
        self._peers = peers
        self._store = store
        self._wanted: dict[bytes, list[Found]] = {}
        self._holders: dict[str, None] = {}
        """Nodes that hold, or held, the tunnels of what is wanted."""
        self.asked_total = 0
        self.found_total = 0

    def find(self, key: bytes, holders: Iterable[str], found: Found) -> None:
        """Looks for a node that has a fresh copy, first among `holders`; `found` is called once, perhaps at once."""
        waiting = self._wanted.get(key)
        if waiting is not None:
            waiting.append(found)
        elif len(self._wanted) >= MOST_KEYS or len(key) > MOST_KEY_BYTES:
            found(None)
        else:
            if not self._wanted:
                asyncio.get_running_loop().call_later(GATHER_S, self._begin)
            self._wanted[key] = [found]
            self._holders.update(dict.fromkeys(holders))

    def answer(self, wanted: Wanted) -> Fresh:
        """What this node could answer by itself, of what it has in memory."""
        now, resources = self._peers.clock(), self._store.resources
        fresh_s: list[float] = []
        for key in wanted.keys[:MOST_KEYS]:
            resource = resources.get(key)
            entries = resource.variants.values() if resource is not None else ()
            fresh_s.append(max((max(0.0, entry.response.fresh_until - now) for entry in entries), default=0.0))
        return Fresh(tuple(fresh_s))

    def _begin(self) -> None:
        wanted, self._wanted = self._wanted, {}
        holders, self._holders = self._holders, {}
        nodes = self._peers.nodes_to_ask(holders)
        self.asked_total += len(wanted)
        if nodes:
            self._peers.begin(self._round(wanted, nodes), "look for copies")
        else:
            self._give_up(wanted)

    async def _round(self, wanted: dict[bytes, list[Found]], nodes: list[str]) -> None:
        try:
            async with asyncio.timeout(ROUND_S):
                await asyncio.gather(*(self._ask(node, wanted) for node in nodes))
        except TimeoutError:
            pass
        finally:
            self._give_up(wanted)

    async def _ask(self, node: str, wanted: dict[bytes, list[Found]]) -> None:
        session = await self._peers.reach(node)
        keys = tuple(wanted)
        if session is None or not keys:
            return
        try:
            fresh = await ask_stored(session, Wanted(keys))
        except EdgetunError:
            return  # others may know
        for key, left_s in zip(keys, fresh.fresh_s, strict=False):
            if left_s > 0:
                waiting = wanted.pop(key, [])
                self.found_total += bool(waiting)
                for found in waiting:
                    found(session)

    def _give_up(self, wanted: dict[bytes, list[Found]]) -> None:
        while wanted:
            _, waiting = wanted.popitem()
            for found in waiting:
                found(None)
