"""A purge on its way through the fleet: this node first, then every peer, twice.

Twice, because a node that has purged may take the old response from an owner that has not yet. When all have purged once, owners ask
the origin; so what the second round leaves behind is new. A peer passes the order on to those that its sender did not know of.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

import msgspec

from edgetun_core.errors import EdgetunError
from edgetun_core.fleet_identity import ExitNodeName
from edgetun_core.http.exchange import Handler
from edgetun_core.purge import PurgeOrder, PurgeReport
from edgetun_exitnode.mesh.calls import Purging, send_purge
from edgetun_exitnode.mesh.holders import Holders

log = logging.getLogger("edgetun.exitnode.mesh")

ROUNDS: Final = 2
AT_ONCE: Final = 32
MOST_REMEMBERED: Final = 1_000
MOST_NAMED: Final = 5
"""Nodes that could not be reached and stand in the report by name."""


class Peers(Protocol):
    """What is asked of the mesh."""

    name: ExitNodeName
    holders: Holders

    async def reach(self, node: str) -> Handler | None: ...
    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None: ...


class Spreading:
    """Purges of one node, begun here or passed on."""

    def __init__(self, peers: Peers, purge: Callable[[PurgeOrder], PurgeReport]) -> None:
        self._peers = peers
        self._purge = purge
        self._seen: OrderedDict[str, None] = OrderedDict()

    async def begin(self, order: PurgeOrder) -> PurgeReport:
        """Purges here and everywhere; tells who could not be reached."""
        nodes = tuple(self._peers.holders.peers)
        report = self._purge(order)
        number = secrets.token_hex(8)
        purged, reached = report.purged, set[str]()
        for turn in range(ROUNDS):
            purging = Purging(order, f"{number}.{turn}", (str(self._peers.name), *nodes))
            self._remember(purging.number)
            if turn:
                self._purge(order)
            answers = await self._send(nodes, purging)
            purged += sum(answer.purged for answer in answers.values())
            reached = set(answers) if not turn else reached & set(answers)
        unreached = [node for node in nodes if node not in reached]
        problems = list(report.problems)
        if unreached:
            named = ", ".join(unreached[:MOST_NAMED]) + (" and others" if len(unreached) > MOST_NAMED else "")
            problems.append(f"{len(unreached)} of {len(nodes) + 1} exit nodes were not reached: {named}")
        return msgspec.structs.replace(report, purged=purged, problems=tuple(problems), nodes=len(reached) + 1)

    def take(self, sender: str, purging: Purging) -> PurgeReport:
        """Another node's order: carried out once, and passed on to those that its sender does not know."""
        if purging.number in self._seen:
            return PurgeReport()
        self._remember(purging.number)
        report = self._purge(purging.order)
        known = {*purging.known, sender, str(self._peers.name)}
        more = tuple(node for node in self._peers.holders.peers if node not in known)
        if more:
            onward = msgspec.structs.replace(purging, known=(*sorted(known), *more))
            self._peers.begin(self._pass_on(more, onward), "pass a purge on")
        return report

    async def _pass_on(self, nodes: tuple[str, ...], purging: Purging) -> None:
        await self._send(nodes, purging)

    def _remember(self, number: str) -> None:
        self._seen[number] = None
        while len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)

    async def _send(self, nodes: Iterable[str], purging: Purging) -> dict[str, PurgeReport]:
        """The reports of those that were reached."""
        turn = asyncio.Semaphore(AT_ONCE)
        found: dict[str, PurgeReport] = {}

        async def one(node: str) -> None:
            async with turn:
                session = await self._peers.reach(node)
                if session is None:
                    return
                try:
                    found[node] = await send_purge(session, purging)
                except EdgetunError as error:
                    log.warning("exit node %s did not purge: %s", node, error)

        await asyncio.gather(*(one(node) for node in nodes))
        return found
