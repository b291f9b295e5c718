"""The cache of a fleet: one node owns a key, and the laptop is asked once for all of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgetun_core.purge import PurgeOrder
from edgetun_core.snapshot import CacheRule, CollapseRule, LimitRule
from edgetun_exitnode.mesh import siblings
from edgetun_exitnode.mesh.ownership import RelayedEntry, rank_owners
from support.mesh import Meshed, MeshNode, meshed
from support.origin_server import ScriptedConnection, ScriptedOrigin, scripted_origin
from support.visitors import Visitor
from support.waiting import eventually
from support.whole import HOST, TUNNEL, snapshot

NODES = 5


class Origin:
    """Counts by path; answers slowly enough for a crowd to gather."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fields = b""
        self.status = b"200 OK"
        self.delay_s = 0.05
        self.heads: list[bytes] = []

    async def serve(self, connection: ScriptedConnection) -> None:
        while head := await connection.request():
            path = head.split(b" ", 2)[1]
            self.asked.append(path.decode())
            self.heads.append(head)
            await asyncio.sleep(self.delay_s)
            if b'if-none-match: "v1"' in head.lower():
                await connection.send(b"HTTP/1.1 304 Not Modified\r\n" + self.fields + b"\r\n")
                continue
            body = path + b" %d" % len(self.asked)
            await connection.send(
                b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (self.status, len(body), self.fields, body)
            )


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings, "ROUND_S", 10.0)  # a machine with other work may take its time


@pytest.fixture
def told() -> Origin:
    return Origin()


@pytest.fixture
async def origin(told: Origin) -> AsyncIterator[ScriptedOrigin]:
    async with scripted_origin(told.serve) as server:
        yield server


def cached(url: str, **rule: object):  # type: ignore[no-untyped-def]
    given = {"mode": "override", "ttl_s": 60.0} | rule
    return snapshot(url, cache=CacheRule(**given), collapse=CollapseRule(enabled=True))  # type: ignore[arg-type]


@pytest.fixture
async def scene(tmp_path: Path, origin: ScriptedOrigin) -> AsyncIterator[Meshed]:
    async with meshed(tmp_path, cached(origin.url), NODES) as found:
        yield found


async def settled(scene: Meshed, *holders: MeshNode) -> None:
    for node in scene.nodes:
        wanted = sorted(one.name for one in holders if one is not node)
        await eventually(lambda: node.holders() == wanted, what=f"{node.name} knows holders")  # noqa: B023


async def ask_everywhere(nodes: list[MeshNode], scene: Meshed, path: str, each: int = 3) -> list[int]:
    return await asyncio.gather(*(scene.status(node, path) for node in nodes for _ in range(each)))


async def test_a_crowd_over_all_nodes_is_one_request_to_the_laptop(scene: Meshed, told: Origin) -> None:
    first, second, *_ = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    paths = [f"/{n}" for n in range(12)]
    for path in paths:
        assert set(await ask_everywhere(scene.nodes, scene, path)) == {200}
    assert sorted(told.asked) == sorted(paths)
    # and again, from every node's own store
    before = [node.relayed for node in scene.nodes]
    for path in paths:
        assert set(await ask_everywhere(scene.nodes, scene, path, 1)) == {200}
    assert len(told.asked) == len(paths)
    assert [node.relayed for node in scene.nodes] == before


async def test_every_visitor_gets_the_same_bytes_and_sees_how_they_came(scene: Meshed, told: Origin) -> None:
    first, second, *_ = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    answers = []
    for node in scene.nodes:
        visitor = await scene.visitor(node)
        answers.append(await visitor.ask("/same", host=HOST))
        answers.append(await visitor.ask("/same", host=HOST))
    assert {answer.body for answer in answers} == {b"/same 1"}
    assert all(re.search(r"edgetun; (hit|fwd=)", answer.fields["cache-status"]) for answer in answers)
    assert all(answer.fields["cache-status"].split(", ")[-1].startswith("edgetun; hit") for answer in answers[1::2])
    assert all("edgetun-freshness" not in answer.fields for answer in answers)
    assert len(told.asked) == 1


async def test_a_node_keeps_a_response_no_longer_than_its_owner(
    tmp_path: Path, origin: ScriptedOrigin, told: Origin
) -> None:
    told.fields = b'ETag: "v1"\r\n'
    async with meshed(tmp_path, cached(origin.url, ttl_s=100.0), 2) as scene:
        here, holder = scene.nodes
        await scene.agent(holder)
        await settled(scene, holder)
        assert await scene.status(holder, "/a") == 200
        (owned,) = holder.node.store.resources.values()
        assert owned.only is not None
        # the owner has had it for most of its time
        owned.only.response.timing = owned.only.response.timing.__class__(
            holder.mesh.clock() - 90.0, 0.0, 100.0, counts_from_arrival=True
        )
        owned.only.response.fresh_until = owned.only.response.timing.fresh_until
        owned.only.head_until = 0.0
        assert await scene.status(here, "/a") == 200
        (copied,) = here.node.store.resources.values()
        assert copied.only is not None
        left_s = copied.only.response.fresh_until - here.mesh.clock()
        assert 5.0 < left_s <= 10.0, "a full lifetime was added to the owner's"
        visitor = await scene.visitor(here)
        assert 90 <= int((await visitor.ask("/a", host=HOST)).fields["age"]) <= 95
        assert len(told.asked) == 1


async def test_what_is_taken_from_the_owner_in_its_last_instant_sends_nobody_to_the_laptop(
    scene: Meshed, told: Origin
) -> None:
    """Less than half a millisecond was told as none, as of what is each visitor's alone: then the node asked by its own session."""
    first, second, *_ = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    path = "/last"
    assert await scene.status(scene.nodes[2], path) == 200
    owner = first if first.node.store.resources else second
    here = second if owner is first else first
    (owned,) = owner.node.store.resources.values()
    assert owned.only is not None
    fresh_until = owned.only.response.fresh_until
    entry = owner.node.router.table.plans[TUNNEL].choose(path.encode()).relayed  # type: ignore[union-attr]
    assert isinstance(entry, RelayedEntry)
    # What the other node is told counts from here; the response stays fresh.
    entry._clock = lambda: fresh_until - 0.0003
    for _ in range(3):
        assert set(await ask_everywhere([here], scene, path, 5)) == {200}
        await asyncio.sleep(0.01)  # what it was told is over
    assert here.relayed, "the owner was not asked"
    assert told.asked == [path]


async def test_what_may_not_be_shared_goes_straight_to_a_session(scene: Meshed, told: Origin) -> None:
    told.fields = b"Cache-Control: private\r\n"
    first, second, other, *_ = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    for node in (first, second, other):
        assert [await scene.status(node, "/mine") for _ in range(3)] == [200] * 3
    assert len(told.asked) == 9


async def test_when_the_owner_dies_the_next_one_takes_its_keys_and_the_others_keep_theirs(
    scene: Meshed, told: Origin
) -> None:
    first, second, *others = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    paths = [f"/{n}" for n in range(10)]
    for path in paths:
        assert await scene.status(others[0], path) == 200
    assert len(told.asked) == 10
    of_first = list(first.node.store.resources)
    assert 0 < len(of_first) < 10
    await first.kill()
    scene.nodes.remove(first)
    for path in paths:
        assert set(await ask_everywhere(scene.nodes, scene, path, 1)) == {200}
    # those that the dead node owned are stored where they were asked for before, and come from there
    assert sorted(told.asked) == sorted(paths)
    assert sum(node.mesh.siblings.found_total for node in scene.nodes) == len(of_first)


async def test_keys_that_come_to_a_new_holder_bring_their_copies(scene: Meshed, told: Origin) -> None:
    first, second, *_, here, last = scene.nodes
    await scene.agent(first)
    await settled(scene, first)
    paths = [f"/{n}" for n in range(10)]
    for path in paths:
        assert await scene.status(here, path) == 200
    await scene.agent(second, agent_id="another")
    await settled(scene, first, second)
    for path in paths:
        assert await scene.status(last, path) == 200
    assert 0 < len(second.node.store.resources) < 10
    assert sorted(told.asked) == sorted(paths)


async def test_a_copy_of_before_a_write_is_not_taken_over(scene: Meshed, told: Origin) -> None:
    first, second, here, other, _ = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    bodies = {}
    of_first: list[int] = []
    for number in range(
        100, 200
    ):  # three digits, so that no path begins with another; each is one of the two holders' by chance
        for node in (here, other):
            visitor = await scene.visitor(node)
            bodies[number] = (await visitor.ask(f"/{number}", host=HOST)).body
        if any(b"/%d" % number in key for key in first.node.store.resources):
            of_first.append(number)
        if len(of_first) == 3:
            break
    assert of_first
    for number in of_first:
        visitor = await scene.visitor(here)
        visitor.send(f"POST /{number} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n".encode())
        assert (await visitor.answer(b"POST")).status == 200
    await first.kill()
    scene.nodes.remove(first)
    for number in of_first:
        visitor = await scene.visitor(here)
        answer = await visitor.ask(f"/{number}", host=HOST)
        assert answer.body != bodies[number], "what was before the write came from another node's cache"


async def test_a_fetch_whose_owner_dies_meanwhile_is_asked_of_the_next(scene: Meshed, told: Origin) -> None:
    first, second, here, *_ = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    told.delay_s = 0.5
    asking = asyncio.gather(*(scene.status(here, "/slow") for _ in range(20)))
    await eventually(lambda: told.asked == ["/slow"])
    owner = first if first.node.exchanges_in_flight else second
    await owner.kill()
    scene.nodes.remove(owner)
    assert set(await asking) == {200}
    assert len(told.asked) <= 2


async def test_an_owner_that_serves_stale_is_not_asked_by_each_visitor_anew(
    tmp_path: Path, origin: ScriptedOrigin, told: Origin
) -> None:
    async with meshed(tmp_path, cached(origin.url, ttl_s=0.2, stale_if_error_s=60.0), 2) as scene:
        here, holder = scene.nodes
        await scene.agent(holder)
        await settled(scene, holder)
        assert await scene.status(holder, "/a") == 200
        await asyncio.sleep(0.3)
        told.status = b"500 Internal Server Error"
        assert await ask_everywhere([here], scene, "/a", 10) == [200] * 10
        assert len(told.asked) <= 3


async def test_a_purge_begun_at_any_node_reaches_every_node(scene: Meshed, told: Origin) -> None:
    first, second, *_, last = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    assert set(await ask_everywhere(scene.nodes, scene, "/a", 1)) == {200}
    assert set(await ask_everywhere(scene.nodes, scene, "/b", 1)) == {200}
    assert len(told.asked) == 2
    report = await last.node.purge_everywhere(PurgeOrder(urls=(f"http://{HOST}/a",)))
    assert (report.nodes, report.purged, report.problems) == (NODES, NODES, ())
    assert set(await ask_everywhere(scene.nodes, scene, "/a", 1)) == {200}
    assert set(await ask_everywhere(scene.nodes, scene, "/b", 1)) == {200}
    assert told.asked == ["/a", "/b", "/a"]


async def test_a_purge_passes_on_to_nodes_that_only_others_know_and_names_those_it_did_not_reach(
    scene: Meshed, told: Origin
) -> None:
    first, second, third, *_, last = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    assert set(await ask_everywhere(scene.nodes, scene, "/a", 1)) == {200}
    last.mesh.holders.forget(third.name)  # as if it followed another replica, and had no session
    report = await last.node.purge_everywhere(PurgeOrder(tunnel=TUNNEL, everything=True))
    assert report.nodes == NODES - 1
    await eventually(lambda: not third.node.store.resources)
    await third.kill()
    report = await first.node.purge_everywhere(PurgeOrder(tunnel=TUNNEL, everything=True))
    assert report.nodes == NODES - 1
    assert report.problems == (f"1 of {NODES} exit nodes were not reached: {third.name}",)


async def test_a_write_through_one_node_is_seen_by_the_next_read_though_another_owns_the_key(
    scene: Meshed, told: Origin
) -> None:
    first, second, here, *_ = scene.nodes
    await scene.agent(first, second)
    await settled(scene, first, second)
    for number in range(6):
        path = f"/item/{number}"
        for node in (here, first, second):
            visitor = await scene.visitor(node)
            before = (await visitor.ask(path, host=HOST)).body
            visitor.send(f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n".encode())
            assert (await visitor.answer(b"POST")).status == 200
            assert (await visitor.ask(path, host=HOST)).body != before, "what was before the write came from a cache"


@pytest.mark.parametrize("visitors_at", [(1, 1, 1, 1), (6, 1, 0, 1)], ids=["even", "uneven"])
async def test_a_rate_holds_for_the_whole_fleet(
    tmp_path: Path, origin: ScriptedOrigin, told: Origin, visitors_at: tuple[int, ...]
) -> None:
    told.delay_s = 0.0
    obey = snapshot(origin.url, limits=LimitRule(requests_per_second=60.0, burst=30))
    async with meshed(tmp_path, obey, 4) as scene:
        await scene.agent(scene.nodes[0], scene.nodes[1])
        await settled(scene, scene.nodes[0], scene.nodes[1])
        # the links are up before the clock runs
        assert [await scene.status(node) for node in scene.nodes] == [200] * 4
        await eventually(lambda: sum(node.mesh.sharing.reports_total for node in scene.nodes) >= 2)
        visitors = [
            await scene.visitor(node) for node, many in zip(scene.nodes, visitors_at, strict=True) for _ in range(many)
        ]
        clock = asyncio.get_running_loop().time
        began = clock()
        statuses: list[int] = []

        async def keep_asking(visitor: Visitor) -> None:
            while clock() - began < 2.5:
                statuses.append((await visitor.ask("/", host=HOST)).status)

        await asyncio.gather(*(keep_asking(visitor) for visitor in visitors))
        allowed = 30 + 60.0 * (clock() - began)
        given = statuses.count(200)
        # each for itself would have given three or four times as much
        assert given <= 1.1 * allowed
        assert statuses.count(429) == len(statuses) - given
        if len(statuses) > 2 * allowed:  # asked often enough to take all that is allowed
            assert given >= 0.9 * allowed


def test_owners_are_spread_and_a_node_that_goes_moves_its_keys_alone() -> None:
    nodes = [f"pool/eu/n{n}" for n in range(5)]
    keys = [b"key %d" % n for n in range(2_000)]
    before = {key: rank_owners(key, nodes) for key in keys}
    for node in nodes:
        assert 300 < sum(ranked[0] == node for ranked in before.values()) < 500
    for key in keys:
        assert rank_owners(key, reversed(nodes)) == before[key]
        assert rank_owners(key, nodes[1:]) == [node for node in before[key] if node != nodes[0]]
