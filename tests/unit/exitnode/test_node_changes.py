"""An exit node that is told what changed ends as one that is given the whole, and touches nothing else on the way."""

from __future__ import annotations

import msgspec
import pytest

from edgetun_core.snapshot import (
    CacheRule,
    OriginRule,
    PoolRule,
    RouteRule,
    Snapshot,
    SnapshotChange,
    StreamRule,
    TunnelRule,
)
from edgetun_exitnode.node import ExitNode


def http(name: str, host: str = "") -> TunnelRule:
    origin = OriginRule("main", "http://localhost:3000")
    return TunnelRule(f"team/{name}", (host or f"{name}.test",), (origin,), (RouteRule(cache=CacheRule(ttl_s=1.0)),))


def tcp(name: str) -> TunnelRule:
    origin = OriginRule("main", "tcp://localhost:3000")
    return TunnelRule(f"team/{name}", (f"{name}.test",), (origin,), (), stream=StreamRule("tcp"))


def snapshot(*rules: TunnelRule, version: int = 1, **more: PoolRule) -> Snapshot:
    return Snapshot(version, "p", "r", tuple(sorted(rules, key=lambda rule: rule.id)), **more)


def state(node: ExitNode) -> tuple[object, ...]:
    table = node.router.table
    hosts = {host: plan.rule for names in (table.exact, table.wildcard) for host, plan in names.items()}
    streams = {name: plan.rule for name, plan in node.streams.plans.plans.items()}
    assert set(node.cache_stats) <= set(table.plans), "statistics of a tunnel that is gone"
    return hosts, set(table.plans), set(node.registry.services), streams


STEPS = [
    (snapshot(http("a"), http("b"), tcp("db")), {"team/b", "team/db"}),
    (snapshot(http("a"), http("b", "else.test"), tcp("db")), {"team/b"}),
    (snapshot(http("a"), tcp("b"), tcp("db")), {"team/b"}),
    (snapshot(http("a"), http("b")), {"team/b", "team/db"}),
    (snapshot(http("b"), pool_rule=PoolRule(max_connections_per_address=3)), {"team/a"}),
    (snapshot(), {"team/b"}),
]


async def test_step_by_step_it_ends_as_with_the_whole() -> None:
    node = ExitNode("n")
    base = snapshot(http("a"))
    node.apply(base)
    for after, changed in STEPS:
        whole = ExitNode("w")
        kept = {name: plan for name, plan in node.router.table.plans.items() if name not in changed}
        node.apply(after, SnapshotChange(base, frozenset(changed)))
        whole.apply(after)
        assert state(node) == state(whole)
        assert all(node.router.table.plans.get(name) is plan for name, plan in kept.items())
        base = after


@pytest.mark.parametrize("is_base", [True, False])
async def test_a_change_of_another_snapshot_than_the_present_one_is_not_believed(is_base: bool) -> None:
    node = ExitNode("n")
    present = snapshot(http("a"), http("b"))
    node.apply(present)
    base = present if is_base else msgspec.structs.replace(present)
    node.apply(snapshot(http("b"), http("c"), version=2), SnapshotChange(base, frozenset({"team/c"})))
    # Only the base's own change may leave out that team/a is gone.
    assert ("team/a" in node.router.table.plans) is is_base
    assert "team/c" in node.router.table.plans
