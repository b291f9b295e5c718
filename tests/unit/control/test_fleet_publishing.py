"""Change by change, control publishes what compiling the whole set would, and exit nodes end with it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetun_cluster.kinds import EXIT_POOL, HOSTNAME_RESERVATION, TUNNEL, Object, key_of
from edgetun_control.exits.fleet import Fleet
from edgetun_control.publish_fleet import KEPT_CHANGES, FleetPublisher
from edgetun_control.stores.kubernetes import KubernetesStore
from edgetun_core.api.load import parse_resource
from edgetun_core.api.reservation import reservation_name
from edgetun_core.compile import compile_region
from edgetun_core.control_stream import Ack, NodeHello, Resync, decode_from_control, snapshot_digest
from edgetun_core.credentials import TokenRecord
from edgetun_core.fleet_identity import ExitNodeName
from edgetun_core.http.exchange import CLOSED
from edgetun_core.snapshot import RouteRule, Snapshot, TunnelRule
from edgetun_exitnode.control.intake import Intake
from edgetun_exitnode.observe.counters import TunnelCounters
from edgetun_exitnode.pipeline.router import PlanBuilder, RouteChain, RouteTable

POOLS = ("default", "other")
REGIONS = ("eu", "us")
HOSTS = ("a.example.com", "b.example.com", "*.example.com", "c.elsewhere.org")
SPACES = ("team-a", "team-b")

tunnels = st.fixed_dictionaries(
    {
        "kind": st.just("Tunnel"),
        "name": st.sampled_from("pqr"),
        "namespace": st.sampled_from(SPACES),
        "spec": st.fixed_dictionaries(
            {
                "hostnames": st.lists(st.sampled_from(HOSTS), min_size=1, max_size=2, unique=True),
                "origin": st.sampled_from([{"url": "http://localhost:1"}, {"url": "http://localhost:2"}]),
                "pool": st.fixed_dictionaries(
                    {"name": st.sampled_from(POOLS), "regions": st.sampled_from([{}, {"deny": ["us"]}])}
                ),
            }
        ),
    }
)
pools = st.fixed_dictionaries(
    {
        "kind": st.just("ExitPool"),
        "name": st.sampled_from(POOLS),
        "spec": st.fixed_dictionaries(
            {
                "regions": st.just([{"name": name} for name in REGIONS]),
                "domains": st.sampled_from([["*"], ["*.example.com"]]),
                "allowedNamespaces": st.sampled_from([{"from": "All"}, {"from": "Selector", "names": ["team-a"]}]),
                "limits": st.sampled_from([{}, {"maxConnections": 7}]),
            }
        ),
    }
)
reservations = st.builds(
    lambda host, space, name, policy: {
        "kind": "HostnameReservation",
        "name": reservation_name(host),
        "spec": {"hostname": host, "claimedBy": {"namespace": space, "tunnel": name}, "reclaimPolicy": policy},
    },
    st.sampled_from(HOSTS),
    st.sampled_from(SPACES),
    st.sampled_from("pqr"),
    st.sampled_from(["Delete", "Retain"]),
)
changes = st.one_of(tunnels, pools, reservations, st.tuples(st.sampled_from(["drop", "status"]), st.integers(0, 30)))


class World:
    """What an API server would hold, told to a store without one."""

    def __init__(self, store: KubernetesStore) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self._informers = {
            TUNNEL.kind: store.tunnels,
            EXIT_POOL.kind: store.pools,
            HOSTNAME_RESERVATION.kind: store.reservations,
        }
        self._version = 0

    def put(self, kind: str, name: str, spec: Any, namespace: str = "") -> None:
        key = kind, namespace, name
        before = self.objects.get(key)
        self._version += 1
        meta: Object = {"name": name, "uid": f"u-{kind}-{name}", "generation": 1, "resourceVersion": str(self._version)}
        # Every other one the oldest, so that names pass on to newer and to older tunnels.
        meta["creationTimestamp"] = f"2026-01-01T00:{self._version % 60:02}:00Z"
        if namespace:
            meta["namespace"] = namespace
        obj = {"apiVersion": "edgetun.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}
        if before is not None:
            meta["generation"] = before["metadata"]["generation"] + (before["spec"] != spec)
            meta["creationTimestamp"] = before["metadata"]["creationTimestamp"]
        self.objects[key] = obj
        self._tell(obj)

    def write_status(self, index: int) -> None:
        if self.objects:
            obj = list(self.objects.values())[index % len(self.objects)]
            self._version += 1
            obj["metadata"]["resourceVersion"] = str(self._version)
            obj["status"] = {"observedGeneration": self._version}
            self._tell(obj)

    def drop(self, index: int) -> None:
        if self.objects:
            key = list(self.objects)[index % len(self.objects)]
            gone = self.objects.pop(key)
            informer: Any = self._informers[key[0]]
            informer._remove(key_of(gone))

    def _tell(self, obj: Object) -> None:
        informer: Any = self._informers[obj["kind"]]
        informer._put(msgspec.json.decode(msgspec.json.encode(obj)))

    def compiled(self, pool: str, region: str) -> Snapshot:
        """From scratch."""
        found: list[Any] = []
        for obj in self.objects.values():
            plain = {name: value for name, value in obj.items() if name != "status"}
            resource, problems = parse_resource(plain)
            assert resource is not None, problems
            found.append(resource)
        return compile_region(found, pool, region, 0)[0]


class Handler:
    def __init__(self, rule: TunnelRule, route: RouteRule) -> None:
        self.rule, self.route = rule, route

    def open(self, *_: object) -> object:
        return CLOSED


class Node:
    """An exit node as far as snapshots go: stream, intake, table. It answers at once, or later."""

    def __init__(self, fleet: Fleet, pool: str, region: str) -> None:
        self.intake = Intake(pool, region)
        self.table = RouteTable(0, {})
        self.applied: Snapshot | None = None
        self.built = 0
        self._builder = PlanBuilder(self._build)
        self._unread: list[bytes] = []
        self._fleet = fleet
        name = ExitNodeName(pool, region, "n1")
        self.following = fleet.attach(name, NodeHello(*name), self._unread.append, lambda _: None)

    def _build(self, rule: TunnelRule, route: RouteRule, counters: TunnelCounters) -> RouteChain:
        self.built += 1
        handler: Any = Handler(rule, route)
        return RouteChain(handler, handler)

    def read(self) -> None:
        while self._unread:
            taken = self.intake.take(decode_from_control(self._unread.pop(0)))
            assert not isinstance(taken.reply, Resync)
            if taken.apply is not None:
                change = taken.change if taken.change is not None and taken.change.base is self.applied else None
                self.table = self._builder.build(taken.apply, self.table, change)
                self.applied = taken.apply
            assert isinstance(taken.reply, Ack)
            self._fleet.received(self.following, taken.reply)


def served(table: RouteTable) -> dict[bytes, TunnelRule]:
    return {host: plan.rule for hosts in (table.exact, table.wildcard) for host, plan in hosts.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(changes, max_size=25), st.integers(0, 2**32))
def test_what_is_published_change_by_change_is_what_the_whole_set_compiles_to(steps: list[Any], seed: int) -> None:
    asyncio.run(_publish(steps, random.Random(seed)))


async def _publish(steps: list[Any], rng: random.Random) -> None:
    store = KubernetesStore(None, "edgetun-system")  # type: ignore[arg-type]
    publisher = FleetPublisher(store)
    world = World(store)
    await publisher.start()
    fleet = Fleet(publisher, lambda: 0.0)
    publisher.subscribe(fleet.published)
    nodes = [Node(fleet, "default", "eu"), Node(fleet, "default", "us")]
    for step in steps:
        match step:
            case ("drop", index):
                world.drop(index)
            case ("status", index):
                world.write_status(index)
            case _:
                world.put(step["kind"], step["name"], step["spec"], step.get("namespace", ""))
        if rng.random() < 0.6:
            publisher._publish()
        if rng.random() < 0.5:
            rng.choice(nodes).read()
        if rng.random() < 0.1:
            old = nodes.pop(rng.randrange(len(nodes)))
            fleet.detach(old.following)
            nodes.append(Node(fleet, old.following.name.pool, old.following.name.region))
    publisher._publish()
    for node in nodes:
        node.read()
        name = node.following.name
        wanted = world.compiled(name.pool, name.region)
        present = publisher.region_snapshot(name.pool, name.region)
        assert present.tunnels == wanted.tunnels
        assert present.pool_rule == wanted.pool_rule
        assert node.applied is not None
        assert node.applied.tunnels == wanted.tunnels
        assert node.intake.digest == snapshot_digest(present) == snapshot_digest(node.applied)
        assert node.following.feed.is_current
        assert served(node.table) == served(PlanBuilder(node._build).build(wanted, RouteTable(0, {})))
        assert set(node.table.plans) == {rule.id for rule in wanted.tunnels}
    await publisher.close()


def tunnel(number: int, port: int = 1) -> dict[str, Any]:
    spec = {"hostnames": [f"t{number}.example.com"], "origin": {"url": f"http://localhost:{port}"}}
    return {"kind": "Tunnel", "name": f"t{number}", "namespace": "team-a", "spec": spec}


async def test_one_change_among_many_is_looked_at_alone_and_a_status_not_at_all() -> None:
    store = KubernetesStore(None, "edgetun-system")  # type: ignore[arg-type]
    publisher = FleetPublisher(store)
    world = World(store)
    world.put("ExitPool", "default", {"regions": [{"name": "eu"}], "domains": ["*"]})
    for number in range(500):
        world.put(**tunnel(number))
    await publisher.start()
    fleet = Fleet(publisher, lambda: 0.0)
    publisher.subscribe(fleet.published)
    node = Node(fleet, "default", "eu")
    node.read()
    assert node.built == 500
    messages = fleet.messages_sent
    looked_at: list[str] = []
    look_at = publisher._look_at
    publisher._look_at = lambda one: looked_at.append(one) or look_at(one)  # type: ignore[method-assign, func-returns-value]
    world.write_status(7)  # one of a tunnel
    world.write_status(0)  # the pool's
    publisher._publish()
    assert looked_at == []
    assert fleet.messages_sent == messages
    before = publisher.region_snapshot("default", "eu")
    world.put(**tunnel(123, port=2))
    publisher._publish()
    node.read()
    assert looked_at == ["team-a/t123"]
    assert node.built == 501
    after = publisher.region_snapshot("default", "eu")
    others = [(one, other) for one, other in zip(before.tunnels, after.tunnels, strict=True) if one is not other]
    assert [one.id for _, one in others] == ["team-a/t123"]
    await publisher.close()


async def test_what_changed_is_remembered_for_a_while_and_then_not_made_up() -> None:
    store = KubernetesStore(None, "edgetun-system")  # type: ignore[arg-type]
    publisher = FleetPublisher(store)
    world = World(store)
    world.put("ExitPool", "default", {"regions": [{"name": "eu"}], "domains": ["*"]})
    await publisher.start()
    first = publisher.region_snapshot("default", "eu").version
    assert publisher.changed_since(first) == frozenset()
    for number in range(KEPT_CHANGES):
        world.put(**tunnel(number))
        publisher._publish()
    assert publisher.changed_since(first) == {f"team-a/t{number}" for number in range(KEPT_CHANGES)}
    second = publisher.region_snapshot("default", "eu").version
    world.put(**tunnel(1000))
    publisher._publish()
    assert publisher.changed_since(first) is None
    assert publisher.changed_since(second) == {"team-a/t1000"}
    assert publisher.changed_since(first - 1) is None
    await publisher.close()


async def test_only_those_whom_a_change_may_concern_hear_of_it() -> None:
    store = KubernetesStore(None, "edgetun-system")  # type: ignore[arg-type]
    publisher = FleetPublisher(store)
    world = World(store)
    world.put("ExitPool", "default", {"regions": [{"name": "eu"}], "domains": ["*"]})
    world.put(**tunnel(1))
    await publisher.start()
    fleet = Fleet(publisher, lambda: 0.0)
    publisher.subscribe(fleet.published)
    node = Node(fleet, "default", "eu")
    node.read()

    async def who_hears() -> set[str]:
        heard: set[str] = set()
        waiting = {}
        for name, patterns in (("a", ("team-a/*",)), ("b", ("team-b/x",)), ("all", ("*",)), ("nobody's", ())):
            token = TokenRecord(name, "", tunnels=patterns)
            waiting[name] = asyncio.ensure_future(publisher.changed(60.0, token))
        waiting["any"] = asyncio.ensure_future(publisher.changed(60.0))
        await asyncio.sleep(0)
        publisher._publish()
        for _ in range(5):
            await asyncio.sleep(0)
        for name, task in waiting.items():
            if task.done():
                heard.add(name)
            task.cancel()
        return heard

    everybody = {"a", "b", "all", "nobody's", "any"}
    world.put(**tunnel(1, port=2))
    assert await who_hears() == everybody - {"b"}
    published, messages = publisher.published_total, fleet.messages_sent
    # What comes to nothing: a status, and a reservation that says what holds anyway.
    world.write_status(1)
    claimed_by = {"namespace": "team-a", "tunnel": "t1"}
    reservation = {"hostname": "t1.example.com", "claimedBy": claimed_by, "reclaimPolicy": "Retain"}
    world.put("HostnameReservation", reservation_name("t1.example.com"), reservation)
    assert await who_hears() == set()
    assert (publisher.published_total, fleet.messages_sent) == (published, messages)
    # A pool's limits concern its exit nodes, and everybody may be placed elsewhere.
    world.put("ExitPool", "default", {"regions": [{"name": "eu"}], "domains": ["*"], "limits": {"maxConnections": 7}})
    assert await who_hears() == everybody
    node.read()
    assert node.applied is not None
    assert node.applied.pool_rule.max_connections == 7
    await publisher.close()


async def test_a_change_costs_no_sorting_of_all_tunnels_whoever_follows() -> None:
    store = KubernetesStore(None, "edgetun-system")  # type: ignore[arg-type]
    publisher = FleetPublisher(store)
    world = World(store)
    world.put("ExitPool", "default", {"regions": [{"name": "eu"}, {"name": "us"}], "domains": ["*"]})
    for number in range(50):
        world.put(**tunnel(number))
    await publisher.start()
    fleet = Fleet(publisher, lambda: 0.0)
    publisher.subscribe(fleet.published)
    nodes = [Node(fleet, "default", region) for region in REGIONS]
    for node in nodes:
        node.read()
    wholes: list[str] = []
    whole = publisher.region_snapshot
    publisher.region_snapshot = lambda pool, region: wholes.append(region) or whole(pool, region)  # type: ignore[method-assign, func-returns-value]
    for number in range(10):
        world.put(**tunnel(number, port=2))
        publisher._publish()
        for node in nodes:
            node.read()
    assert wholes == []
    for node in nodes:
        region = node.following.name.region
        assert node.applied is not None
        assert node.applied.tunnels == whole("default", region).tunnels
    await publisher.close()
