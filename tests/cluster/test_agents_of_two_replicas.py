"""Two replicas of control write one agent's status, on a real API server: neither takes back what the other knows better."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from edgetun_cluster.client import Cluster
from edgetun_cluster.connection import connect
from edgetun_cluster.kinds import AGENT, Key, Kind, Object
from edgetun_control.agents import AgentBook, Shown, agent_name
from edgetun_control.exits.fleet import FollowingNode
from edgetun_control.gathered_writes import GATHER_S
from edgetun_control.placement import Placed
from edgetun_control.stores.kubernetes import KubernetesStore
from edgetun_core.control_stream import NodeHello, SessionInfo
from edgetun_core.credentials import TokenRecord
from edgetun_core.enrollment import Endpoint, EnrollRequest
from edgetun_core.fleet_identity import ExitNodeName
from support.cluster import ControlPlane
from support.operator import crds, token
from support.waiting import eventually

TOKEN = TokenRecord("token-id", "hash")
REQUEST = EnrollRequest("laptop")


class OneToken:
    """As much of a store as the book asks for."""

    def __init__(self, obj: Object) -> None:
        self._key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
        self.tokens = self

    def get(self, name: str, namespace: str) -> None:
        """Nothing is remembered of it, so the API server is asked."""

    def key_of_token(self, token_id: str) -> Key | None:
        return self._key

    def note_sessions_token(self, token_id: str) -> bool:
        return True


@contextlib.asynccontextmanager
async def replica(kubeconfig: Path, obj: Object) -> AsyncIterator[AgentBook]:
    async with Cluster(await connect(kubeconfig)) as api:
        book = AgentBook(api, cast("KubernetesStore", OneToken(obj)))
        book.start()
        try:
            yield book
        finally:
            await book.close()


def exit_node(region: str, relay: Endpoint | None = None) -> FollowingNode:
    hello = NodeHello("default", region, f"exit-{region}", relay=relay)
    nothing: Any = None
    return FollowingNode(ExitNodeName("default", region, f"exit-{region}"), hello, nothing, nothing, nothing)


def session(name: str, weight: int = 1, *, standby: bool = False) -> SessionInfo:
    tunnels = ("team/shop",)
    return SessionInfo(name, "laptop", TOKEN.id, "quic", time.time(), tunnels=tunnels, weight=weight, standby=standby)


@pytest.mark.parametrize("moved_by", ["the other", "the same"])
async def test_where_an_agent_was_placed_last_stands(
    cluster: ControlPlane, kubeconfig: Path, namespace: str, moved_by: str
) -> None:
    await asyncio.to_thread(cluster.install_crds, crds())
    made = cluster.client.apply(token(namespace, "laptops"))
    async with replica(kubeconfig, made) as first, replica(kubeconfig, made) as second:
        name = agent_name(made["metadata"]["name"], "laptop")

        def status() -> dict[str, Any]:
            found = cluster.client.get(AGENT.api_version, AGENT.kind, name, namespace) or {}
            return found.get("status") or {}

        first.registered(REQUEST, TOKEN, ("team/shop",), Placed((), placed="default/eu"))
        first.session_opened(exit_node("eu"), session("a"))
        await eventually(lambda: status().get("nodes") == ["exit-eu"])
        assert status()["placed"] == "default/eu"

        mover, other = (second, first) if moved_by == "the other" else (first, second)
        mover.registered(REQUEST, TOKEN, ("team/shop",), Placed((), placed="default/us"))
        mover.session_opened(exit_node("us"), session("b"))
        # The other has something to write when it hears of that, and writes after it.
        await asyncio.sleep(0.6 * GATHER_S)
        other.session_opened(exit_node("ap"), session("c"))
        await eventually(lambda: status().get("nodes") == ["exit-ap", "exit-eu", "exit-us"])
        await eventually(lambda: status().get("region") == "us")
        assert status()["placed"] == "default/us"
        await asyncio.sleep(2 * GATHER_S)  # nobody writes back what was
        assert status()["placed"] == "default/us"
        assert status()["region"] == "us"
        assert {agent.placed for book in (first, second) for agent in book.whereabouts()} == {frozenset({"default/us"})}


async def test_replicas_tell_each_other_of_weight_and_standby(
    cluster: ControlPlane, kubeconfig: Path, namespace: str
) -> None:
    await asyncio.to_thread(cluster.install_crds, crds())
    made = cluster.client.apply(token(namespace, "laptops"))
    here, there = (exit_node(region, Endpoint(f"10.0.0.{n}", 7445, 0)) for n, region in enumerate(("eu", "us"), 1))
    async with replica(kubeconfig, made) as first, replica(kubeconfig, made) as second:
        name = agent_name(made["metadata"]["name"], "laptop")
        shown: dict[str, dict[str, int]] = {"first": {}, "second": {}}

        def show(key: str) -> Shown:
            def take(agent: str, holders: dict[ExitNodeName, tuple[Endpoint, int]], tunnels: frozenset[str]) -> None:
                if agent == f"{namespace}/{name}":  # and not of a test before, whose namespace is being deleted
                    shown[key] = {one.node: share for one, (_, share) in holders.items()}

            return take

        first.on_shown, second.on_shown = show("first"), show("second")

        async def both_know(wanted: dict[str, int]) -> None:
            await eventually(lambda: shown == {"first": wanted, "second": wanted}, 30)

        def shares() -> Any:
            found = cluster.client.get(AGENT.api_version, AGENT.kind, name, namespace) or {}
            return (found.get("status") or {}).get("shares")

        first.session_opened(here, session("a"))
        await both_know({"exit-eu": 1})
        assert shares() is None, "written where there is nothing to tell"
        second.session_opened(there, session("b", 3))
        second.session_opened(there, session("c", 3))
        await both_know({"exit-eu": 1, "exit-us": 6})
        assert shares() == [1, 6]
        # started anew, on standby: first here, then there
        first.session_closed(here, session("a"))
        first.session_opened(here, session("d", 3, standby=True))
        await both_know({"exit-eu": -3, "exit-us": 6})
        for gone in ("b", "c"):
            second.session_closed(there, session(gone, 3))
        second.session_opened(there, session("e", 3, standby=True))
        await both_know({"exit-eu": -3, "exit-us": -3})
        first.session_closed(here, session("d"))
        await both_know({"exit-us": -3})


async def test_what_another_replica_overwrote_before_a_write_returned_is_written_again(
    cluster: ControlPlane, kubeconfig: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(cluster.install_crds, crds())
    made = cluster.client.apply(token(namespace, "laptops"))
    async with Cluster(await connect(kubeconfig)) as other, replica(kubeconfig, made) as book:
        name = agent_name(made["metadata"]["name"], "laptop")
        heard = asyncio.Event()

        def take(agent: str, holders: dict[ExitNodeName, tuple[Endpoint, int]], tunnels: frozenset[str]) -> None:
            if agent == f"{namespace}/{name}" and not holders and tunnels:
                heard.set()

        book.on_shown = take
        apply_status = Cluster.apply_status

        async def overtaken(self: Cluster, kind: Kind, obj: Object, status: Any, *, manager: str) -> Object | None:
            written = await apply_status(self, kind, obj, status, manager=manager)
            if not heard.is_set():
                theirs = {**status, "nodes": ["exit-us"], "relays": [], "serves": ["team/shop"]}
                await apply_status(other, kind, obj, theirs, manager=manager)
                async with asyncio.timeout(20):
                    await heard.wait()
            return written

        monkeypatch.setattr(Cluster, "apply_status", overtaken)
        book.session_opened(exit_node("eu", Endpoint("10.0.0.1", 7445, 0)), session("a"))

        def nodes() -> Any:
            found = cluster.client.get(AGENT.api_version, AGENT.kind, name, namespace) or {}
            return (found.get("status") or {}).get("nodes")

        await eventually(lambda: heard.is_set() and nodes() == ["exit-eu", "exit-us"], 30)
