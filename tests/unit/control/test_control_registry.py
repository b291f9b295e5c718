"""Who may serve what: the decision, case by case."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_control.adhoc import build_adhoc_tunnel
from edgetun_control.readable_names import readable_name
from edgetun_control.registry import (
    MAX_SERVICES,
    Ground,
    Refused,
    Registered,
    adhoc_tunnel_id,
    decide_registration,
)
from edgetun_control.store import Claim
from edgetun_core.api.names import check_hostname
from edgetun_core.credentials import TokenRecord
from edgetun_core.enrollment import AdHocTunnel, EnrollRequest

NOW = 1_000.0
GROUND = Ground(
    domain="tunnel.test",
    own_hostnames=frozenset({"edge.tunnel.test"}),
    manifest_tunnels={
        "team-a/shop": ("shop.example.com", "www.example.com"),
        "team-a/previews": ("*.preview.tunnel.test",),
        "team-b/api": ("api.tunnel.test",),
    },
)
ANYTHING = TokenRecord("t1", "")


def ask(host=None, *, want=(), agent="laptop", url="http://localhost:3000", **more):
    adhoc = AdHocTunnel(url, host=host, **more) if host is not None else None
    return EnrollRequest(agent, want=tuple(want), adhoc=adhoc)


def decide(request, token=ANYTHING, ground=GROUND, now=NOW):
    return decide_registration(request, token, ground, now)


def held(hostname, token_id, ground=GROUND):
    claim = Claim(hostname, token_id, "other", AdHocTunnel("http://localhost:1"), 1.0)
    return Ground(ground.domain, ground.own_hostnames, ground.manifest_tunnels, {**ground.claims, hostname: claim})


def reason(answer):
    assert isinstance(answer, Refused), answer
    return answer.reason


def test_no_wishes_get_every_manifest_tunnel_that_the_token_allows():
    assert decide(ask()) == Registered(("team-a/previews", "team-a/shop", "team-b/api"))
    assert decide(ask(), TokenRecord("t", "", tunnels=("team-b/*",))) == Registered(("team-b/api",))


def test_a_token_for_hostnames_serves_only_tunnels_all_of_whose_names_it_may_have():
    assert decide(ask(), TokenRecord("t", "", hostnames=("*.example.com",))) == Registered(("team-a/shop",))
    assert reason(decide(ask(), TokenRecord("t", "", hostnames=("shop.example.com",)))) == "NothingToServe"


def test_a_tunnel_that_is_not_there_and_one_that_is_not_allowed_are_told_in_the_same_words():
    token = TokenRecord("t", "", tunnels=("team-a/*",))
    absent, forbidden = decide(ask(want=["team-c/x"]), token), decide(ask(want=["team-b/api"]), token)
    assert reason(absent) == reason(forbidden) == "TunnelNotServed"
    assert absent.message.replace("team-c/x", "") == forbidden.message.replace("team-b/api", "")


def test_wishes_may_be_patterns_and_come_out_once():
    answer = decide(ask(want=["team-a/*", "team-a/shop"]))
    assert answer == Registered(("team-a/previews", "team-a/shop"))


def test_an_agent_with_a_host_of_its_own_does_not_get_the_manifests_unless_it_asks():
    answer = decide(ask("web"))
    assert answer.services == ("token-t1/web.tunnel.test",)
    both = decide(ask("web", want=["team-b/api"]))
    assert both.services == ("team-b/api", "token-t1/web.tunnel.test")


@pytest.mark.parametrize(
    ("host", "hostname"),
    [
        ("web", "web.tunnel.test"),
        ("Web", "web.tunnel.test"),
        ("web.tunnel.test", "web.tunnel.test"),
        ("web.tunnel.test.", "web.tunnel.test"),
    ],
)
def test_a_single_label_goes_under_the_servers_domain(host, hostname):
    answer = decide(ask(host))
    assert answer.claim.hostname == hostname
    assert adhoc_tunnel_id(answer.claim) in answer.services


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("web.example.com", "NameNotAllowed"),  # outside the domain
        ("a.b.tunnel.test", "NameNotAllowed"),  # not directly under it
        ("tunnel.test", "NameTaken"),  # the domain itself
        ("edge", "NameTaken"),  # the server's own
        ("api", "NameTaken"),  # a manifest's
        ("*.tunnel.test", "NameNotAllowed"),
        ("*", "NameNotAllowed"),
        ("web_1", "InvalidRequest"),
        ("-web", "InvalidRequest"),
        ("192.0.2.1", "InvalidRequest"),
        ("../../etc/passwd", "InvalidRequest"),
        ("a" * 64, "InvalidRequest"),
        (".".join(["a" * 60] * 4), "InvalidRequest"),
    ],
)
def test_names_that_a_token_without_patterns_may_not_have(host, why):
    assert reason(decide(ask(host))) == why


def test_a_pattern_allows_names_outside_the_domain_and_only_those():
    token = TokenRecord("t", "", hostnames=("*.example.net", "shop.tunnel.test"))
    assert decide(ask("www.example.net"), token).claim.hostname == "www.example.net"
    assert decide(ask("shop"), token).claim.hostname == "shop.tunnel.test"
    assert reason(decide(ask("web"), token)) == "NameNotAllowed"
    assert "*.example.net" in decide(ask("web"), token).message


def test_a_token_for_certain_tunnels_makes_none_of_its_own():
    assert reason(decide(ask("web"), TokenRecord("t", "", tunnels=("team-a/*",)))) == "NameNotAllowed"


def test_a_claimed_name_is_its_tokens_and_keeps_its_age():
    ground = held("web.tunnel.test", "t1")
    assert decide(ask("web"), ground=ground).claim.created == 1.0
    refused = decide(ask("web"), TokenRecord("t2", ""), ground)
    assert (refused.reason, refused.message) == ("NameTaken", "the name web.tunnel.test belongs to another token")
    assert "t1" not in refused.message


def test_a_name_under_a_manifests_wildcard_is_the_administrators():
    token = TokenRecord("t", "", hostnames=("*",))
    assert reason(decide(ask("x.preview.tunnel.test"), token)) == "NameTaken"


def test_a_wildcard_put_up_later_takes_no_name_from_whoever_has_it():
    ground = held("x.preview.tunnel.test", "t")
    token = TokenRecord("t", "", hostnames=("*",))
    assert decide(ask("x.preview.tunnel.test"), token, ground).claim is not None
    assert reason(decide(ask("shop.example.com"), token, held("shop.example.com", "t"))) == "NameTaken"


def test_without_a_domain_a_full_and_allowed_hostname_is_needed():
    ground = Ground()
    assert reason(decide(ask("web"), ground=ground)) == "NoDomain"
    assert reason(decide(ask(""), ground=ground)) == "NoDomain"
    assert reason(decide(ask("web.example.com"), ground=ground)) == "NameNotAllowed"
    assert decide(ask("web.example.com"), TokenRecord("t", "", hostnames=("*",)), ground).claim is not None


def test_a_generated_name_is_the_same_every_time_and_differs_by_token_and_agent():
    def name(token="t1", agent="laptop", ground=GROUND):
        return decide(ask("", agent=agent), TokenRecord(token, ""), ground).claim.hostname

    assert name() == name()
    assert len({name(), name(token="t2"), name(agent="desktop")}) == 3
    taken = held(name(), "t2")
    other = name(ground=taken)
    assert other != name()
    assert other == name(ground=taken)


def test_a_generated_name_is_kept_although_the_token_holds_it_already():
    first = decide(ask("")).claim
    again = decide(ask(""), ground=Ground("tunnel.test", claims={first.hostname: first}))
    assert again.claim == first


@given(st.binary(min_size=8, max_size=64))
def test_every_generated_name_is_a_hostname(digest):
    name = readable_name(digest)
    assert check_hostname(f"{name}.tunnel.test")
    assert len(name) <= 24


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (TokenRecord("t", "", revoked=1.0), "TokenRevoked"),
        (TokenRecord("t", "", expires=NOW - 86400), "TokenExpired"),
        (TokenRecord("t", "", expires=NOW), "TokenExpired"),
    ],
)
def test_a_token_that_ended_gets_nothing(token, why):
    assert reason(decide(ask(), token)) == why


@pytest.mark.parametrize(
    "request_",
    [
        ask(agent=""),
        ask(agent="a" * 64),
        ask(agent="a b"),
        ask(agent="a\n"),
        ask(want=["x"] * 201),
        ask(want=["x" * 400]),
        ask("web", url="ftp://x"),
        ask("web", url="http://user:hunter2@x"),
        ask("web", url="http://x\r\nX: y"),
        ask("web", host_header="a\r\nb: c"),
        ask("web", cache_ttl_s=-1),
        ask("web", cache_ttl_s=float("nan")),
        ask("web", cache_ttl_s=float("inf")),
    ],
)
def test_impossible_requests_are_refused_in_words(request_):
    answer = decide(request_)
    assert reason(answer) == "InvalidRequest"
    assert "hunter2" not in answer.message


def test_more_tunnels_than_one_agent_can_serve_are_refused_and_not_cut_off():
    many = Ground(manifest_tunnels={f"team/{number}": (f"h{number}.test",) for number in range(MAX_SERVICES + 1)})
    assert reason(decide(ask(), ground=many)) == "TooManyTunnels"


hosts = st.one_of(st.text(max_size=40), st.sampled_from(["web", "api", "*", "a.b", "WEB.tunnel.test"]))


@given(
    host=st.none() | hosts,
    want=st.lists(st.sampled_from(["*", "team-a/*", "team-b/api", "x"]), max_size=3),
    tunnels=st.lists(st.sampled_from(["*", "team-a/*"]), max_size=2),
    hostnames=st.lists(st.sampled_from(["*", "*.example.com", "*.tunnel.test"]), max_size=2),
    url=st.sampled_from(["http://localhost:3000", "unix:///run/a.sock", "https://x/y", "nope"]),
    ttl=st.sampled_from([0.0, 1.0, 0.001]),
)
def test_whatever_is_asked_nothing_is_given_that_the_token_may_not_have(host, want, tunnels, hostnames, url, ttl):
    token = TokenRecord("t1", "", tunnels=tuple(tunnels), hostnames=tuple(hostnames))
    answer = decide(ask(host, want=want, url=url, cache_ttl_s=ttl), token)
    if isinstance(answer, Refused):
        assert answer.reason
        assert answer.message
        return
    for service in answer.services:
        if service in GROUND.manifest_tunnels:
            assert token.may_serve_tunnel(service)
            assert all(token.may_serve_hostname(name) for name in GROUND.manifest_tunnels[service])
        else:
            assert service == adhoc_tunnel_id(answer.claim)
    if answer.claim is not None:
        name = answer.claim.hostname
        assert name not in GROUND.own_hostnames
        assert not any(name in names for names in GROUND.manifest_tunnels.values())
        assert name.endswith(".tunnel.test") or token.may_serve_hostname(name)
        # What is accepted can also be served.
        tunnel = build_adhoc_tunnel(answer.claim, "default")
        assert tunnel.id == adhoc_tunnel_id(answer.claim)
        assert tunnel.spec.cache.ttl == ttl
        assert msgspec.json.decode(msgspec.json.encode(answer.claim), type=Claim) == answer.claim


PORTS = {"tcp": range(20000, 20003), "udp": range(30000, 30001)}


def with_ports(*claims: Claim, manifests=None) -> Ground:
    tunnels = {**GROUND.manifest_tunnels, **(manifests or {})}
    return Ground(
        GROUND.domain,
        GROUND.own_hostnames,
        tunnels,
        {claim.hostname: claim for claim in claims},
        lambda kind: PORTS[kind],
    )


def tcp(host="", *, agent="laptop", **more):
    return ask(host, agent=agent, url="tcp://localhost:5432", **more)


def claimed(answer) -> Claim:
    assert isinstance(answer, Registered), answer
    assert answer.claim is not None
    return answer.claim


def test_a_tcp_tunnel_of_an_agent_gets_a_port_and_keeps_it():
    first = claimed(decide(tcp(), ground=with_ports()))
    assert first.tunnel.port == 20000
    again = claimed(decide(tcp(), ground=with_ports(first)))
    assert again.tunnel.port == 20000
    second = claimed(decide(tcp(agent="other"), ground=with_ports(first)))
    assert second.tunnel.port == 20001
    built = build_adhoc_tunnel(second, "default")
    assert (built.spec.port_name, built.spec.hostnames) == ("tcp/20001", [])


def test_a_port_that_is_asked_for_is_given_when_it_is_free_and_allowed():
    assert claimed(decide(tcp(port=20002), ground=with_ports())).tunnel.port == 20002
    assert reason(decide(tcp(port=20003), ground=with_ports())) == "PortNotAllowed"
    taken = claimed(decide(tcp(port=20002, agent="other"), ground=with_ports()))
    assert reason(decide(tcp(port=20002), ground=with_ports(taken))) == "PortTaken"
    manifests = {"team-a/db": ("tcp/20001",)}
    assert reason(decide(tcp(port=20001), ground=with_ports(manifests=manifests))) == "PortTaken"


def test_without_ports_or_when_all_are_taken_it_is_said():
    assert reason(decide(tcp(), ground=GROUND)) == "NoPorts"
    manifests = {f"team-a/{port}": (f"tcp/{port}",) for port in PORTS["tcp"]}
    assert reason(decide(tcp(), ground=with_ports(manifests=manifests))) == "NoPorts"


def test_a_tcp_tunnel_with_a_host_passes_tls_through():
    claim = claimed(decide(tcp("db"), ground=with_ports()))
    assert (claim.hostname, claim.tunnel.port) == ("db.tunnel.test", 0)
    built = build_adhoc_tunnel(claim, "default")
    assert built.spec.tcp is not None
    assert built.spec.tcp.passthrough
    assert built.spec.hostnames == ["db.tunnel.test"]


def test_a_udp_tunnel_has_a_port_only():
    request_ = ask("", url="udp://localhost:53", proxy_protocol="v2")
    claim = claimed(decide(request_, ground=with_ports()))
    assert claim.tunnel.port == 30000
    built = build_adhoc_tunnel(claim, "default")
    assert built.spec.port_name == "udp/30000"
    assert built.spec.origin is not None
    assert built.spec.origin.proxy_protocol == "v2"


@pytest.mark.parametrize(
    "request_",
    [
        ask("", port=20000),
        ask("", proxy_protocol="v1"),
        tcp("db", port=20000),
        tcp(port=70000),
        tcp(proxy_protocol="v3"),
        tcp(cache_ttl_s=1.0),
        ask("dns", url="udp://localhost:53"),
        ask("", url="udp://localhost:53", proxy_protocol="v1"),
    ],
)
def test_impossible_streams_are_refused_in_words(request_):
    assert reason(decide(request_, ground=with_ports())) == "InvalidRequest"


def test_a_token_for_hostnames_serves_no_ports():
    ground = with_ports(manifests={"team-a/db": ("tcp/20001",)})
    served = decide(ask(), TokenRecord("t", "", hostnames=("*.example.com",)), ground)
    assert served == Registered(("team-a/shop",))
    assert decide(ask(want=["team-a/db"]), TokenRecord("t", "", tunnels=("team-a/*",)), ground) == Registered(
        ("team-a/db",)
    )
