"""What exit nodes say of ports that they cannot have, on its way into the status of Tunnels: replicas, nodes that go, and entries that nobody keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from edgetun_cluster.errors import ClusterError
from edgetun_cluster.kinds import Key, Kind, Object
from edgetun_control import gathered_writes, ports
from edgetun_control.exits.fleet import FollowingNode
from edgetun_control.ports import PortBook
from edgetun_core.control_stream import Feed, History, NodeHello, NodeLoad
from edgetun_core.fleet_identity import ExitNodeName
from support.waiting import eventually

DB, QUEUE = Key("team", "db"), Key("team", "queue")
TAKEN = "TCP port 5432: is taken by another program"


class Tunnels:
    """The API server's part: entries of `portsUnavailable`, each with the field manager that applied it."""

    def __init__(self, *keys: Key) -> None:
        self.entries: dict[Key, dict[str, list[Object]]] = {key: {} for key in keys}
        self.writes = 0
        self.refuses = 0

    async def apply_status(self, kind: Kind, obj: Object, status: Object, *, manager: str) -> Object | None:
        if self.refuses:
            self.refuses -= 1
            raise ClusterError("the API server is away")
        entries = self.entries.get(Key(obj["metadata"]["namespace"], obj["metadata"]["name"]))
        if entries is None:
            return None
        self.writes += 1
        entries.pop(manager, None)
        if status:
            entries[manager] = status["portsUnavailable"]
        return obj

    def shown(self) -> Iterator[tuple[Key, Mapping[str, Any]]]:
        for key, managers in self.entries.items():
            if managers:
                yield key, {"portsUnavailable": [one for entries in managers.values() for one in entries]}

    def nodes(self, key: Key) -> list[str]:
        return [one["node"] for _, status in self.shown() if _ == key for one in status["portsUnavailable"]]


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def following(name: str, **told: str) -> FollowingNode:
    """An exit node on a stream; `told`: tunnels of the namespace `team` whose port it cannot have."""
    full = ExitNodeName("pool", "here", name)
    node = FollowingNode(full, NodeHello(*full), Feed(History()), lambda _: None, lambda _: None)
    node.ports = {f"team/{tunnel}": why for tunnel, why in told.items()}
    return node


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered_writes, "GATHER_S", 0.0)
    monkeypatch.setattr(ports, "TRY_AGAIN_S", 0.01)


@pytest.fixture
async def replicas() -> AsyncIterator[tuple[Tunnels, Clock, PortBook, PortBook]]:
    """Two replicas of control on one cluster."""
    tunnels, clock = Tunnels(DB, QUEUE), Clock()
    books = [
        PortBook(tunnels, tunnels.shown, clock=clock, refresh_s=100, forget_s=300, sweep_every_s=0.01)  # type: ignore[arg-type]
        for _ in range(2)
    ]
    for book in books:
        book.start()
    yield tunnels, clock, *books
    for book in books:
        await book.close()


Replicas = tuple[Tunnels, Clock, PortBook, PortBook]


async def test_nodes_of_different_replicas_stand_side_by_side_and_go_when_the_port_is_free(replicas: Replicas) -> None:
    tunnels, _, first, second = replicas
    first.told(following("n1", db=TAKEN))
    second.told(following("n2", db=TAKEN, queue=TAKEN))
    await eventually(lambda: sorted(tunnels.nodes(DB)) == ["n1", "n2"] and tunnels.nodes(QUEUE) == ["n2"])
    second.told(following("n2", queue=TAKEN))
    await eventually(lambda: tunnels.nodes(DB) == ["n1"])
    assert tunnels.nodes(QUEUE) == ["n2"]
    first.told(following("n1"))
    await eventually(lambda: not tunnels.nodes(DB))


async def test_nothing_is_written_while_all_ports_can_be_had_or_nothing_changes(replicas: Replicas) -> None:
    tunnels, clock, first, _ = replicas
    first.told(following("n1"))
    first.told(following("n1"))
    await asyncio.sleep(0.1)
    assert tunnels.writes == 0
    for _ in range(3):
        first.told(following("n1", db=TAKEN))
    await eventually(lambda: tunnels.nodes(DB) == ["n1"])
    await asyncio.sleep(0.1)
    assert tunnels.writes == 1
    clock.now += 150
    await eventually(lambda: tunnels.writes == 2, what="it is said again that the node says so")


async def test_a_node_that_comes_to_another_replica_with_its_port_takes_back_what_it_said(replicas: Replicas) -> None:
    tunnels, _, first, second = replicas
    node = following("n1", db=TAKEN)
    first.told(node)
    await eventually(lambda: tunnels.nodes(DB) == ["n1"])
    first.left(node)
    second.told(following("n1"))
    await eventually(lambda: not tunnels.nodes(DB))


async def test_a_drained_node_leaves_nothing_and_a_dead_one_is_forgotten_by_any_replica(replicas: Replicas) -> None:
    tunnels, clock, first, _ = replicas
    drained, dead = following("n1", db=TAKEN), following("n2", db=TAKEN)
    first.told(drained)
    first.told(dead)
    await eventually(lambda: sorted(tunnels.nodes(DB)) == ["n1", "n2"])
    drained.load = NodeLoad(is_draining=True)
    first.left(drained)
    first.left(dead)
    await eventually(lambda: tunnels.nodes(DB) == ["n2"])
    await first.close()  # the replica that it followed is gone too
    clock.now += 200
    await asyncio.sleep(0.1)
    assert tunnels.nodes(DB) == ["n2"], "its stream may only be broken"
    clock.now += 200
    await eventually(lambda: not tunnels.nodes(DB))


async def test_an_api_server_that_is_away_loses_nothing_and_who_is_no_tunnel_is_passed_over(replicas: Replicas) -> None:
    tunnels, _, first, _ = replicas
    tunnels.refuses = 3
    first.told(following("n1", db=TAKEN, adhoc=TAKEN))
    await eventually(lambda: tunnels.nodes(DB) == ["n1"])
    assert first.failures_total == 3
