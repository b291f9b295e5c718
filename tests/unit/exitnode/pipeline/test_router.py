"""Hosts and paths choose routes; a new snapshot takes effect on heads seen before."""

from __future__ import annotations

import gc
import sys

import pytest

from edgetun_core.errors import NotFound
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.snapshot import OriginRule, RouteRule, Snapshot, SnapshotChange, TunnelRule
from edgetun_exitnode.pipeline.router import PlanBuilder, RouteChain, Router, RouteTable, host_of, normal_path
from support.exchanges import PEER, Answerer, Opened, Recorder, request


def tunnel(
    name: str, *hostnames: str, routes: tuple[RouteRule, ...] = (RouteRule(),), force_https: bool = False
) -> TunnelRule:
    origin = OriginRule("main", "http://localhost:3000")
    return TunnelRule(f"team/{name}", hostnames, (origin,), routes, force_https=force_https)


class Fleet:
    """A router whose routes answer with their own name."""

    def __init__(self) -> None:
        self.router = Router(https_port=8443)
        self.built: list[str] = []
        self.builder = PlanBuilder(self._build)

    def _build(self, rule: TunnelRule, route: RouteRule, counters: object) -> RouteChain:
        name = f"{rule.id}{route.path}"
        self.built.append(name)

        def say(opened: Opened) -> None:
            opened.client.on_data(name.encode(), True)

        stage = Answerer(say)
        return RouteChain(stage, stage)

    def apply(self, *tunnels: TunnelRule) -> None:
        snapshot = Snapshot(1, "default", "here", tunnels)
        self.router.table = self.builder.build(snapshot, self.router.table)

    def ask(self, head: RequestHead, peer: Peer = PEER) -> Recorder:
        visitor = Recorder()
        self.router.open(head, peer, True, visitor)
        return visitor


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"shop.example.com", b"shop.example.com"),
        (b"shop.example.com:8080", b"shop.example.com"),
        (b"shop.example.com.", b"shop.example.com"),
        (b"[::1]:8080", b"[::1]"),
        (b"127.0.0.1:80", b"127.0.0.1"),
    ],
)
def test_the_host_is_the_authority_without_port_and_trailing_dot(authority: bytes, host: bytes) -> None:
    assert host_of(authority) == host


def test_a_host_with_a_port_reaches_its_tunnel(fleet: Fleet) -> None:
    fleet.apply(tunnel("shop", "shop.example.com"))
    assert fleet.ask(request(host=b"shop.example.com:8443")).body == b"team/shop/"


def test_an_unknown_host_is_told_so(fleet: Fleet) -> None:
    fleet.apply(tunnel("shop", "shop.example.com"))
    visitor = fleet.ask(request(host=b"other.example.com"))
    assert isinstance(visitor.error, NotFound)
    assert "no tunnel serves other.example.com" in str(visitor.error)
    assert fleet.router.requests_without_tunnel == 1


def test_an_exact_host_wins_over_a_wildcard_which_covers_one_label(fleet: Fleet) -> None:
    fleet.apply(tunnel("any", "*.example.com"), tunnel("shop", "shop.example.com"))
    assert fleet.ask(request(host=b"shop.example.com")).body == b"team/shop/"
    assert fleet.ask(request(host=b"blog.example.com")).body == b"team/any/"
    assert isinstance(fleet.ask(request(host=b"a.b.example.com")).error, NotFound)
    assert isinstance(fleet.ask(request(host=b"example.com")).error, NotFound)
    assert isinstance(fleet.ask(request(host=b".example.com")).error, NotFound)


def test_the_first_route_that_matches_whole_segments_is_chosen(fleet: Fleet) -> None:
    routes = (RouteRule("/api/health", "exact"), RouteRule("/api"), RouteRule("/"))
    fleet.apply(tunnel("shop", "shop.example.com", routes=routes))
    assert fleet.ask(request(b"/api/health")).body == b"team/shop/api/health"
    assert fleet.ask(request(b"/api/health/x")).body == b"team/shop/api"
    assert fleet.ask(request(b"/api?x=/")).body == b"team/shop/api"
    assert fleet.ask(request(b"/apix")).body == b"team/shop/"
    assert fleet.ask(request(b"*", method=b"OPTIONS")).body == b"team/shop/"


@pytest.mark.parametrize(
    "target",
    [
        b"/admin",
        b"/public/../admin",
        b"/%61dmin",
        b"/./admin",
        b"/public/%2e%2e/admin",
        b"/%2E/admin",
        b"/../../admin",
        b"/admin/.",
    ],
)
def test_a_disguised_path_gets_the_policies_of_the_path_it_means(fleet: Fleet, target: bytes) -> None:
    fleet.apply(tunnel("shop", "shop.example.com", routes=(RouteRule("/admin"), RouteRule("/"))))
    assert fleet.ask(request(target)).body == b"team/shop/admin"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a/b/../c", b"/a/c"),
        (b"/a/b/..", b"/a/"),
        (b"/a%2fb", b"/a%2Fb"),
        (b"/a?b=/../c", b"/a"),
        (b"/.well-known/x", b"/.well-known/x"),
        (b"/a/...", b"/a/..."),
        (b"/%zz", b"/%zz"),
    ],
)
def test_paths_are_normalised_as_rfc_3986_says(target: bytes, path: bytes) -> None:
    assert normal_path(target) == path


def test_a_path_without_a_route_is_told_so(fleet: Fleet) -> None:
    fleet.apply(tunnel("shop", "shop.example.com", routes=(RouteRule("/api"),)))
    assert "no route for this path" in str(fleet.ask(request(b"/x")).error)


def test_a_new_snapshot_moves_heads_that_were_routed_before(fleet: Fleet) -> None:
    head = request()
    fleet.apply(tunnel("shop", "shop.example.com"))
    assert fleet.ask(head).body == b"team/shop/"
    fleet.apply(tunnel("new", "shop.example.com"))
    assert fleet.ask(head).body == b"team/new/"
    fleet.apply()
    assert isinstance(fleet.ask(head).error, NotFound)


def test_an_unchanged_tunnel_keeps_its_stages_over_a_snapshot(fleet: Fleet) -> None:
    fleet.apply(tunnel("shop", "shop.example.com"))
    fleet.apply(tunnel("shop", "shop.example.com"), tunnel("blog", "blog.example.com"))
    assert fleet.built == ["team/shop/", "team/blog/"]


def test_counters_outlive_a_change_of_the_tunnel(fleet: Fleet) -> None:
    fleet.apply(tunnel("shop", "shop.example.com"))
    fleet.ask(request())
    fleet.apply(tunnel("shop", "shop.example.com", routes=(RouteRule("/", "exact"), RouteRule("/"))))
    fleet.ask(request())
    assert fleet.router.table.plans["team/shop"].counters.requests == 2


def test_http_is_redirected_where_the_tunnel_forces_https(fleet: Fleet) -> None:
    fleet.apply(tunnel("shop", "shop.example.com", force_https=True))
    head = RequestHead(b"GET", b"http", b"shop.example.com:8080", b"/cart?x=1", ())
    visitor = fleet.ask(head)
    assert visitor.status == 308
    assert visitor.fields[b"location"] == b"https://shop.example.com:8443/cart?x=1"


def test_a_table_of_no_tunnels_finds_nothing() -> None:
    assert RouteTable(0, {}).find(b"example.com") is None


def test_a_name_passes_from_one_tunnel_to_another_in_one_change(fleet: Fleet) -> None:
    fleet.apply(tunnel("a", "one.test", "*.wild.test"), tunnel("b", "two.test"), tunnel("c", "three.test"))
    first = fleet.router.table
    base = Snapshot(1, "default", "here")
    after = Snapshot(2, "default", "here", (tunnel("b", "one.test", "*.wild.test"), tunnel("c", "three.test")))
    fleet.built.clear()
    change = SnapshotChange(base, frozenset({"team/a", "team/b"}))
    fleet.router.table = fleet.builder.build(after, first, change)
    assert fleet.built == ["team/b/"]
    assert fleet.ask(request(b"/", host=b"one.test")).body == b"team/b/"
    assert fleet.ask(request(b"/", host=b"x.wild.test")).body == b"team/b/"
    assert fleet.ask(request(b"/", host=b"three.test")).body == b"team/c/"
    assert isinstance(fleet.ask(request(b"/", host=b"two.test")).error or NotFound(""), NotFound)
    assert fleet.router.table.find(b"two.test") is None
    assert fleet.router.table.plans["team/c"] is first.plans["team/c"]
    assert first.find(b"two.test") is first.plans["team/b"], "a table that was built has changed"


def test_a_head_that_is_remembered_does_not_keep_the_table_of_its_time(fleet: Fleet) -> None:
    fleet.apply(tunnel("a", "one.test"))
    head = request(b"/", host=b"one.test")
    fleet.ask(head)
    before = fleet.router.table
    fleet.apply(tunnel("a", "one.test"), tunnel("b", "two.test"))
    gc.collect()
    frame = sys._getframe()
    assert [one for one in gc.get_referrers(before) if one is not frame] == []
    assert fleet.ask(head).body == b"team/a/"
