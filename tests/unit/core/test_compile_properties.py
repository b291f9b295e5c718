"""What the compiler promises for every set of resources."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from edgetun_core.api.exitpool import ExitPool, ExitPoolSpec, Region
from edgetun_core.api.meta import Metadata
from edgetun_core.api.policies import CachePolicy
from edgetun_core.api.tunnel import Origin, PoolChoice, RegionPolicy, Route, RoutePath, Tunnel, TunnelSpec
from edgetun_core.compile import Plan, compile_region
from edgetun_core.snapshot import CredentialKey, TunnelRule, decode_snapshot, encode_snapshot

HOSTS = ("a.example.com", "b.example.com", "*.example.com", "www.a.example.com", "c.test", "*.c.test")
REGIONS = ("eu", "us")
PATHS = ("/", "/a", "/a/b", "/ab", "/c")

pools = st.lists(
    st.builds(
        lambda name, domains: ExitPool(
            metadata=Metadata(name=name),
            spec=ExitPoolSpec(regions=[Region(name=region) for region in REGIONS], domains=domains),
        ),
        st.sampled_from(["default", "other"]),
        st.sampled_from([["*"], ["*.example.com"], ["c.test", "*.a.example.com", "*.example.com"]]),
    ),
    max_size=2,
    unique_by=lambda pool: pool.id,
)


def tunnels(dated: bool) -> st.SearchStrategy[list[Tunnel]]:
    stamp = st.integers(1, 5).map(lambda day: f"2026-01-0{day}T00:00:00Z") if dated else st.none()
    spec = st.builds(
        TunnelSpec,
        hostnames=st.lists(st.sampled_from(HOSTS), min_size=1, max_size=3, unique=True),
        pool=st.builds(
            PoolChoice,
            name=st.sampled_from(["default", "other", "missing"]),
            regions=st.builds(
                RegionPolicy,
                allow=st.lists(st.sampled_from(["eu"]), max_size=1),
                deny=st.lists(st.sampled_from(["us"]), max_size=1),
            ),
        ),
        origin=st.just(Origin(url="http://localhost:3000")),
        routes=st.lists(
            st.builds(
                lambda path, exact, disabled: Route(
                    path=RoutePath(exact=path) if exact else RoutePath(prefix=path),
                    cache=CachePolicy(mode="disabled") if disabled else CachePolicy(),
                ),
                st.sampled_from(PATHS),
                st.booleans(),
                st.booleans(),
            ),
            max_size=4,
            unique_by=lambda route: (route.path.match, route.path.normal),
        ),
    )
    one = st.builds(
        lambda name, created, spec: Tunnel(metadata=Metadata(name=name, creation_timestamp=created), spec=spec),
        st.sampled_from("pqrstu"),
        stamp,
        spec,
    )
    return st.lists(one, max_size=6, unique_by=lambda tunnel: tunnel.id)


@given(pools, tunnels(dated=True), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_with_timestamps_the_order_of_the_resources_means_nothing(
    pools: list[ExitPool], tunnels: list[Tunnel], rng: random.Random
) -> None:
    ordered = [*pools, *tunnels]
    shuffled = list(ordered)
    rng.shuffle(shuffled)
    assert compile_region(ordered, "default", "eu", 1) == compile_region(shuffled, "default", "eu", 1)


@given(pools, tunnels(dated=False))
def test_the_same_resources_give_the_same_bytes(pools: list[ExitPool], tunnels: list[Tunnel]) -> None:
    first, problems = compile_region([*pools, *tunnels], "default", "eu", 1)
    second, again = compile_region([*pools, *tunnels], "default", "eu", 1)
    assert encode_snapshot(first) == encode_snapshot(second)
    assert problems == again
    assert decode_snapshot(encode_snapshot(first)) == first


@given(pools, tunnels(dated=False))
def test_without_timestamps_the_first_in_the_files_holds_a_name(pools: list[ExitPool], tunnels: list[Tunnel]) -> None:
    by_pool = {pool.id: pool for pool in pools}
    served = {rule.id: rule for rule in Plan([*pools, *tunnels]).everything("x", "y", 1).tunnels}
    held: set[str] = set()
    for tunnel in tunnels:
        pool = by_pool.get(tunnel.spec.pool.name)
        got = served[tunnel.id].hostnames if tunnel.id in served else ()
        for hostname in tunnel.spec.hostnames:
            may = pool is not None and ("*" in pool.spec.domains or hostname in got or hostname in held)
            if may and "*" in (pool.spec.domains if pool else []):
                assert (hostname in got) == (hostname not in held)
        held.update(got)


@given(pools, tunnels(dated=True))
def test_no_name_is_served_twice_and_everything_left_out_has_a_problem(
    pools: list[ExitPool], tunnels: list[Tunnel]
) -> None:
    plan = Plan([*pools, *tunnels])
    rules = plan.everything("x", "y", 1).tunnels
    names = [hostname for rule in rules for hostname in rule.hostnames]
    assert len(names) == len(set(names))
    served = {(rule.id, hostname) for rule in rules for hostname in rule.hostnames}
    wrong = {problem.resource for problem in plan.problems if problem.severity == "error"}
    for tunnel in tunnels:
        for hostname in tunnel.spec.hostnames:
            assert (tunnel.id, hostname) in served or tunnel.ref in wrong


@given(pools, tunnels(dated=True))
def test_a_region_serves_its_pools_tunnels_that_allow_it_and_no_others(
    pools: list[ExitPool], tunnels: list[Tunnel]
) -> None:
    plan = Plan([*pools, *tunnels])
    specs = {tunnel.id: tunnel.spec for tunnel in tunnels}
    every = {rule.id for rule in plan.everything("x", "y", 1).tunnels}
    for pool in ("default", "other"):
        for region in REGIONS:
            got = {rule.id for rule in plan.snapshot(pool, region, 1).tunnels}
            policy = {name: specs[name].pool for name in every}
            assert got == {
                name
                for name, choice in policy.items()
                if choice.name == pool
                and region not in choice.regions.deny
                and (not choice.regions.allow or region in choice.regions.allow)
            }


def chosen(rule: TunnelRule, path: str) -> tuple[str, str]:
    """The first match, as an exit node takes it."""
    for route in rule.routes:
        prefix = route.path.rstrip("/")
        if route.match == "exact" and path == route.path:
            return ("exact", route.path)
        if route.match == "prefix" and (path == prefix or path.startswith(prefix + "/")):
            return ("prefix", route.path)
    raise AssertionError("no route; the last one covers everything")


@given(tunnels(dated=False), st.sampled_from([*PATHS, "/a/b/c", "/abc", "/zzz", "/a/"]))
def test_the_first_route_that_matches_is_the_most_specific(tunnels: list[Tunnel], path: str) -> None:
    pool = ExitPool(metadata=Metadata(name="default"), spec=ExitPoolSpec(regions=[Region(name="eu")], domains=["*"]))
    for rule in Plan([pool, *tunnels]).everything("x", "y", 1).tunnels:
        match, route = chosen(rule, path)
        if any(other.match == "exact" and other.path == path for other in rule.routes):
            assert match == "exact"
            continue
        for other in rule.routes:
            prefix = other.path.rstrip("/")
            if other.match == "prefix" and (path == prefix or path.startswith(prefix + "/")):
                assert len(other.path) <= len(route)


def test_keys_and_revocations_travel_with_the_snapshot() -> None:
    key = CredentialKey("k", b"x" * 32)
    snapshot, _ = compile_region([], "p", "r", 7, credential_keys=(key,), revoked_tokens=("b", "a"))
    assert (snapshot.version, snapshot.pool, snapshot.region) == (7, "p", "r")
    assert snapshot.credential_keys == (key,)
    assert snapshot.revoked_tokens == ("a", "b")


def test_a_tunnel_that_says_little_is_little_in_the_snapshot() -> None:
    pool = ExitPool(metadata=Metadata(name="default"), spec=ExitPoolSpec(regions=[Region(name="eu")], domains=["*"]))
    shop = Tunnel(
        metadata=Metadata(name="shop"), spec=TunnelSpec(hostnames=["a.b"], origin=Origin(url="http://localhost:3000"))
    )
    snapshot, _ = compile_region([pool, shop], "default", "eu", 1)
    assert len(encode_snapshot(snapshot)) < 250
