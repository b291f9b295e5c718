"""Claims: change by change they say what the whole set says, and nobody gets what is kept for another namespace."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgetun_core.api.exitpool import AllowedNamespaces, ExitPool, ExitPoolSpec, Region
from edgetun_core.api.meta import Metadata
from edgetun_core.api.reservation import ClaimedBy, HostnameReservation, HostnameReservationSpec, reservation_name
from edgetun_core.api.tunnel import Origin, PoolChoice, Tunnel, TunnelSpec
from edgetun_core.claims import Claims, TunnelVerdict
from edgetun_core.compile import Plan

HOSTS = ("a.example.com", "b.example.com", "*.example.com", "x.a.example.com", "*.a.example.com")
NAMES = ("p", "q", "r")
SPACES = ("team-a", "team-b")


def tunnel(name: str, space: str, hosts: list[str], day: int = 1, pool: str = "default") -> Tunnel:
    return Tunnel(
        metadata=Metadata(name=name, namespace=space, creation_timestamp=f"2026-01-0{day}T00:00:00Z"),
        spec=TunnelSpec(hostnames=hosts, origin=Origin(url="http://localhost:1"), pool=PoolChoice(name=pool)),
    )


def exit_pool(name: str, domains: list[str], names: list[str]) -> ExitPool:
    allowed = AllowedNamespaces(from_="Selector", names=names) if names else AllowedNamespaces()
    return ExitPool(
        metadata=Metadata(name=name),
        spec=ExitPoolSpec(regions=[Region(name="eu")], domains=domains, allowed_namespaces=allowed),
    )


def reservation(host: str, space: str, name: str, policy: Any) -> HostnameReservation:
    return HostnameReservation(
        metadata=Metadata(name=reservation_name(host)),
        spec=HostnameReservationSpec(
            hostname=host, claimed_by=ClaimedBy(namespace=space, tunnel=name), reclaim_policy=policy
        ),
    )


hosts = st.lists(st.sampled_from(HOSTS), min_size=1, max_size=3, unique=True)
spaces = st.sampled_from(SPACES)
pools = st.sampled_from(["default", "other"])
changes = st.one_of(
    st.builds(tunnel, st.sampled_from(NAMES), spaces, hosts, st.integers(1, 4), pools),
    st.builds(exit_pool, pools, st.sampled_from([["*"], ["*.example.com"]]), st.sampled_from([[], ["team-a"]])),
    st.builds(
        reservation,
        st.sampled_from(HOSTS),
        spaces,
        st.sampled_from(NAMES),
        st.sampled_from(["Delete", "Retain"]),
    ),
    st.tuples(st.just("drop"), st.integers(0, 30)),
)


def put(claims: Claims, resource: Any) -> set[str]:
    match resource:
        case Tunnel():
            return claims.put_tunnel(resource)
        case ExitPool():
            return claims.put_pool(resource)
    return claims.put_reservation(resource)


def drop(claims: Claims, resource: Any) -> set[str]:
    match resource:
        case Tunnel():
            return claims.drop_tunnel(resource.id)
        case ExitPool():
            return claims.drop_pool(resource.id)
    return claims.drop_reservation(resource.spec.hostname)


def every_verdict(claims: Claims) -> dict[str, TunnelVerdict]:
    return {tunnel_id: claims.verdict(tunnel_id) for tunnel_id in claims.by_seniority()}


@given(st.lists(changes, max_size=25))
@settings(max_examples=150)
def test_change_by_change_comes_to_the_same_as_the_whole_set_and_names_every_tunnel_that_it_changed(
    steps: list[Any],
) -> None:
    claims = Claims(namespaces={})
    there: dict[str, Any] = {}
    before: dict[str, TunnelVerdict] = {}
    for step in steps:
        if isinstance(step, tuple):
            if not there:
                continue
            key = sorted(there)[step[1] % len(there)]
            affected = drop(claims, there.pop(key))
        else:
            there[step.ref] = step
            affected = put(claims, step)
        fresh = Claims(namespaces={})
        for resource in there.values():
            put(fresh, resource)
        after = every_verdict(claims)
        assert after == every_verdict(fresh)
        assert {each for each in after if after[each] != before.get(each)} <= affected
        before = after


@given(st.lists(changes.filter(lambda change: not isinstance(change, tuple)), max_size=25))
@example(
    [
        exit_pool("default", ["*"], []),
        tunnel("p", "team-a", ["a.example.com"]),
        reservation("a.example.com", "team-a", "p", "Delete"),
        reservation("*.example.com", "team-b", "p", "Retain"),
    ]
)
@settings(max_examples=150)
def test_nobody_serves_what_is_kept_for_another_namespace(resources: list[Any]) -> None:
    there = list({resource.ref: resource for resource in resources}.values())
    plan = Plan(there, namespaces={})
    kept = {
        each.spec.hostname: each.spec.claimed_by.namespace
        for each in there
        if isinstance(each, HostnameReservation) and each.spec.reclaim_policy == "Retain"
    }
    asked = {(each.id, hostname) for each in there if isinstance(each, Tunnel) for hostname in each.spec.hostnames}
    own = {  # under `Delete` a name is its claimant's for as long as that asks for it, whoever keeps the names around it
        each.spec.hostname: each.spec.claimed_by.namespace
        for each in there
        if isinstance(each, HostnameReservation)
        and (f"{each.spec.claimed_by.namespace}/{each.spec.claimed_by.tunnel}", each.spec.hostname) in asked
    }
    for rule in plan.rules:
        space = rule.id.partition("/")[0]
        for hostname in rule.hostnames:
            assert kept.get(hostname, space) == space
            assert own.get(hostname, space) == space
            if hostname not in kept and hostname not in own:
                for name, owner in kept.items():
                    is_related = name.partition(".")[2] == hostname.partition(".")[2] and (
                        name.startswith("*.") != hostname.startswith("*.")
                    )
                    assert not is_related or owner == space
    names = [hostname for rule in plan.rules for hostname in rule.hostnames]
    assert len(names) == len(set(names))


def test_who_has_the_name_keeps_it_until_its_tunnel_and_reservation_are_gone() -> None:
    claims = Claims(namespaces={})
    claims.put_pool(exit_pool("default", ["*"], []))
    claims.put_tunnel(tunnel("holder", "team-a", ["a.example.com"], day=3))
    claims.put_reservation(reservation("a.example.com", "team-a", "holder", "Retain"))
    assert "team-b/older" in claims.put_tunnel(tunnel("older", "team-b", ["a.example.com"], day=1))
    assert claims.holder("a.example.com") == "team-a/holder"
    assert claims.drop_tunnel("team-a/holder") == {"team-b/older"}
    assert claims.holder("a.example.com") == ""
    (problem,) = claims.verdict("team-b/older").problems
    assert problem.reason == "HostnameReserved"
    assert "reserved by Tunnel team-a/holder" in problem.message
    assert "release of HostnameReservation a.example.com" in problem.message
    assert claims.drop_reservation("a.example.com") == {"team-b/older"}
    assert claims.verdict("team-b/older").hostnames == ("a.example.com",)


def test_labels_of_a_namespace_open_and_close_a_pool() -> None:
    claims = Claims(namespaces={"team-a": {}})
    selector = AllowedNamespaces(from_="Selector", match_labels={"edge": "public"})
    spec = ExitPoolSpec(regions=[Region(name="eu")], domains=["*"], allowed_namespaces=selector)
    claims.put_pool(ExitPool(metadata=Metadata(name="default"), spec=spec))
    claims.put_tunnel(tunnel("shop", "team-a", ["a.example.com"]))
    (problem,) = claims.verdict("team-a/shop").problems
    assert (problem.field, problem.reason) == ("spec.pool.name", "NamespaceNotAllowed")
    assert claims.put_namespace("team-a", {"edge": "public", "more": "1"}) == {"team-a/shop"}
    assert claims.verdict("team-a/shop").hostnames == ("a.example.com",)
    assert claims.put_namespace("team-a", {"edge": "public", "more": "1"}) == set()
    claims.put_namespace("team-a", {})
    assert claims.verdict("team-a/shop").hostnames == ()


def test_files_without_a_cluster_know_no_labels_and_no_namespace_of_edgetuns_own() -> None:
    for allowed, is_served in (
        (AllowedNamespaces(from_="Same"), True),
        (AllowedNamespaces(from_="Selector", match_labels={"edge": "public"}), True),
        (AllowedNamespaces(from_="Selector", names=["team-a"]), True),
        (AllowedNamespaces(from_="Selector", names=["team-b"]), False),
    ):
        spec = ExitPoolSpec(regions=[Region(name="eu")], domains=["*"], allowed_namespaces=allowed)
        pool = ExitPool(metadata=Metadata(name="default"), spec=spec)
        assert bool(list(Plan([pool, tunnel("shop", "team-a", ["a.example.com"])]).rules)) is is_served


@given(st.sampled_from(["*.", "", "wildcard.", "wildcardx.", "wildcardxx.", "wildcard-x."]), st.integers(0, 2))
def test_a_reservations_name_tells_one_hostname(prefix: str, more: int) -> None:
    every = [f"{p}{'a.' * n}test" for p in ("*.", "", "wildcard.", "wildcardx.", "wildcardxx.") for n in range(3)]
    assert len({reservation_name(host) for host in [*every, "wildcard", "wildcardx"]}) == len(every) + 2
    host = f"{prefix}{'a.' * more}test"
    assert Metadata(name=reservation_name(host)).name == reservation_name(host)
