"""Visitors who write down what they asked and what they got. In the test's own event loop; each has a connection per exit node."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from edgetun_core.errors import EdgetunError
from support.chaos.history import CACHED, KINDS, LARGE, LEAVING, POST, SMALL, History, Visit
from support.chaos.pages import Page, Unreadable, read
from support.visitors import Visitor

CACHED_PAGES = 3
WEIGHTS = {SMALL: 5, LARGE: 2, POST: 3, CACHED: 5, LEAVING: 1}
PAUSE_S = (0.01, 0.12)


@dataclass(frozen=True, slots=True)
class Place:
    """Where visitors can go: addresses and ports of exit nodes by name, hosts of tunnels by name."""

    nodes: Mapping[str, tuple[str, int]]
    hosts: Mapping[str, str]


class Crowd:
    """`count` visitors, from `start` until `stop`. Everything goes into `history`."""

    def __init__(self, place: Place, history: History, *, seed: int, count: int, deadline_s: float) -> None:
        self._place = place
        self._history = history
        self._deadline_s = deadline_s
        self._numbers = itertools.count(1)
        self._is_over = False
        self._rngs = [random.Random(f"{seed} {number}") for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._visit_on(rng)) for rng in self._rngs]

    async def stop(self) -> None:
        """Lets every request under way end, and raises what went wrong in a visitor itself."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _visit_on(self, rng: random.Random) -> None:
        connections: dict[str, Visitor] = {}
        try:
            while not self._is_over:
                await self.visit(connections, rng)
                await asyncio.sleep(rng.uniform(*PAUSE_S))
        finally:
            for connection in connections.values():
                connection.leave()

    async def visit(self, connections: dict[str, Visitor], rng: random.Random) -> Visit:
        """One request, written down."""
        node, tunnel = rng.choice(list(self._place.nodes)), rng.choice(list(self._place.hosts))
        kind = rng.choices(KINDS, [WEIGHTS[each] for each in KINDS])[0]
        number = next(self._numbers)
        sent = rng.randbytes(rng.randrange(1, 60_000)) if kind == POST else b""
        target = _target(kind, number, rng)
        status: int | None = None
        page: Page | None = None
        flaw = error = ""
        began = time.time()
        connection = connections.pop(node, None)
        try:
            async with asyncio.timeout(self._deadline_s):
                if connection is None:
                    address, port = self._place.nodes[node]
                    connection = await Visitor.to(port, host=address)
                    connection.timeout_s = self._deadline_s * 2  # the deadline is here
                connection.send(_head(kind, target, self._place.hosts[tunnel], sent), sent)
                if kind == LEAVING:
                    status = (await connection.head()).status
                    if status == 200:
                        await connection.read(rng.randrange(1, 3000))
                    connection.leave()
                    connection = None
                else:
                    answer = await connection.answer()
                    status = answer.status
                    if status == 200:
                        page, flaw = _read(answer.body)
                    if answer.fields.get("connection", "").lower() == "close":
                        connection.leave()
                    else:
                        connections[node] = connection
                    connection = None
        except TimeoutError:
            error = "no answer before the deadline"
        except (OSError, EOFError, EdgetunError, asyncio.LimitOverrunError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        finally:
            if connection is not None:
                with suppress(OSError):
                    connection.leave()
        visit = Visit(
            number, kind, tunnel, target, node, began, time.time(), self._deadline_s, status, page, flaw, error,
            hashlib.sha256(sent).hexdigest() if kind == POST else "",
        )  # fmt: skip
        self._history.visits.append(visit)
        return visit


def _target(kind: str, number: int, rng: random.Random) -> str:
    match kind:
        case "cached":
            return f"/cached/{rng.randrange(CACHED_PAGES)}?size={20_000}"
        case "large":
            return f"/large?visit={number}&size={rng.randrange(100_000, 1_500_000)}"
        case "post":
            return f"/echo?visit={number}&size=100"
    return f"/{kind}?visit={number}&size={rng.randrange(1, 8_000)}"


def _head(kind: str, target: str, host: str, sent: bytes) -> bytes:
    lines = [f"{'POST' if kind == POST else 'GET'} {target} HTTP/1.1", f"Host: {host}"]
    if kind == POST:
        lines.append(f"Content-Length: {len(sent)}")
    return "\r\n".join((*lines, "", "")).encode()


def _read(data: bytes) -> tuple[Page | None, str]:
    try:
        return read(data), ""
    except Unreadable as error:
        return None, str(error)


def kinds_answered(history: History) -> Iterator[str]:
    """The kinds of which at least one visit was answered with 200."""
    return (kind for kind in KINDS if any(v.kind == kind and v.status == 200 and not v.error for v in history.visits))
