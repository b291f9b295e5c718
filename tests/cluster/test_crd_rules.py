"""Every rule that one object can break is refused by the API server, with the message that the CRD has for it.

Bounds of durations and sizes are broken by what is worked out from the rule; all others have a row below, and a rule without
a row fails. What the API server refuses, `edgetun validate` refuses too.
"""

from __future__ import annotations

import re

import pytest

from edgetun_core.api.load import parse_resource
from support.cluster import ControlPlane
from support.kube_client import ApiError, Object
from support.manifests import Site, put, read_crds, rule_sites

SITES = dict(site_and_rule for crd in read_crds() for site_and_rule in rule_sites(crd))

BASES: dict[str, Object] = {
    "Tunnel": {
        "metadata": {"name": "rules", "namespace": "default"},
        "spec": {"hostnames": ["rules.example.com"], "origin": {"url": "http://localhost:3000"}},
    },
    "ExitPool": {
        "metadata": {"name": "rules"},
        "spec": {"regions": [{"name": "eu"}], "domains": ["*.example.com"]},
    },
    "AgentToken": {"metadata": {"name": "rules", "namespace": "default"}, "spec": {"tunnels": ["shop"]}},
    "Agent": {"metadata": {"name": "rules", "namespace": "default"}, "spec": {"agentId": "a1", "token": "team"}},
    "HostnameReservation": {
        "metadata": {"name": "rules.example.com"},
        "spec": {"hostname": "rules.example.com", "claimedBy": {"namespace": "team-a", "tunnel": "shop"}},
    },
}

ROUTE = {"path": {"prefix": "/a"}}

BREAKS: list[tuple[str, str, str, str, object]] = [
    # kind, where the rule stands, its message, where what breaks it is put, what breaks it
    ("AgentToken", ".spec", "a tunnel is listed twice", ".spec.tunnels", ["a", "a"]),
    ("ExitPool", "", "an exit pool's name has at most 30 characters and no '.'", ".metadata.name", "a" * 31),
    ("ExitPool", ".spec", "a domain is listed twice", ".spec.domains", ["*.a.example", "*.a.example"]),
    ("ExitPool", ".spec", "say either replicas or autoscaling", ".spec", {"replicas": 2, "autoscaling": {}}),
    (
        "ExitPool",
        ".spec",
        "service.nodePorts has no effect without type NodePort",
        ".spec.service",
        {"nodePorts": {"https": 30443}},
    ),
    (
        "ExitPool",
        ".spec",
        "nodePorts of a region has no effect without type NodePort",
        ".spec.regions",
        [{"name": "eu", "service": {"nodePorts": {"https": 30443}}}],
    ),
    (
        "ExitPool",
        ".spec",
        "service.nodePorts cannot be the same for several regions",
        ".spec",
        {
            "regions": [{"name": "eu"}, {"name": "us"}],
            "service": {"type": "NodePort", "nodePorts": {"tunnel": 30743}},
        },
    ),
    (
        "ExitPool",
        ".spec.regions[]",
        "say either replicas or autoscaling",
        ".spec.regions",
        [{"name": "eu", "replicas": 2, "autoscaling": {}}],
    ),
    (
        "ExitPool",
        ".spec.regions[].autoscaling",
        "minReplicas is more than maxReplicas",
        ".spec.regions",
        [{"name": "eu", "autoscaling": {"minReplicas": 11}}],
    ),
    (
        "ExitPool",
        ".spec.autoscaling",
        "minReplicas is more than maxReplicas",
        ".spec.autoscaling",
        {"minReplicas": 3, "maxReplicas": 2},
    ),
    (
        "ExitPool",
        ".spec.certificates[]",
        "say one of certFile and keyFile, secretName, issuerRef",
        ".spec.certificates",
        [{"certFile": "cert.pem"}],
    ),
    (
        "ExitPool",
        ".spec.certificates[]",
        "hostnames are for issuerRef only",
        ".spec.certificates",
        [{"secretName": "tls", "hostnames": ["a.example.com"]}],
    ),
    (
        "ExitPool",
        ".spec.allowedNamespaces",
        "names or matchLabels go with from Selector, and only with it",
        ".spec.allowedNamespaces",
        {"names": ["team-a"]},
    ),
    (
        "HostnameReservation",
        "",
        "the name of a reservation is its hostname, with wildcard for *",
        ".metadata.name",
        "another.example.com",
    ),
    (
        "Tunnel",
        ".spec.origin",
        "protocol h2c needs an http:// or unix:// url; h2 and auto need https://",
        ".spec.origin",
        {"url": "https://localhost:1", "protocol": "h2c"},
    ),
    (
        "Tunnel",
        ".spec.origins[]",
        "protocol h2c needs an http:// or unix:// url; h2 and auto need https://",
        ".spec.origins",
        [{"name": "a", "url": "http://localhost:1", "protocol": "h2"}],
    ),
    ("Tunnel", ".spec", "say either origin or origins", ".spec.origins", [{"name": "a", "url": "http://localhost:1"}]),
    ("Tunnel", ".spec", "an http tunnel needs a hostname", ".spec.hostnames", []),
    ("Tunnel", ".spec", "a hostname is listed twice", ".spec.hostnames", ["a.example.com", "a.example.com"]),
    (
        "Tunnel",
        ".spec",
        "a route names an origin that spec.origins does not have",
        ".spec.routes",
        [{**ROUTE, "origin": "b"}],
    ),
    ("Tunnel", ".spec", "two routes have the same path", ".spec.routes", [ROUTE, {"path": {"prefix": "/a/"}}]),
    ("Tunnel", ".spec", "cache.mode override needs a ttl above zero", ".spec.cache", {"mode": "override"}),
    (
        "Tunnel",
        ".spec",
        "cache.mode override of a route needs a ttl above zero",
        ".spec.routes",
        [{**ROUTE, "cache": {"mode": "override"}}],
    ),
    ("Tunnel", ".spec", "ttl, statuses and ignoreNoStore need cache.mode override", ".spec.cache", {"ttl": "5s"}),
    (
        "Tunnel",
        ".spec",
        "ttl, statuses and ignoreNoStore of a route need cache.mode override",
        ".spec.routes",
        [{**ROUTE, "cache": {"statuses": [200]}}],
    ),
    ("Tunnel", ".spec", "limits.burst needs limits.ratePerVisitor", ".spec.limits", {"burst": 5}),
    (
        "Tunnel",
        ".spec",
        "limits.burst of a route needs limits.ratePerVisitor",
        ".spec.routes",
        [{**ROUTE, "limits": {"burst": 5}}],
    ),
    (
        "Tunnel",
        ".spec.pool.regions",
        "a region is in both allow and deny; keep it in one",
        ".spec.pool",
        {"regions": {"allow": ["eu"], "deny": ["eu"]}},
    ),
    (
        "Tunnel",
        ".spec.pool.regions",
        "the spare region is not among the regions that may serve the tunnel",
        ".spec.pool",
        {"regions": {"allow": ["eu"], "spare": "us"}},
    ),
    (
        "Tunnel",
        ".spec.routes[]",
        "stripPrefix needs path.prefix",
        ".spec.routes",
        [{"path": {"exact": "/a"}, "stripPrefix": True}],
    ),
    ("Tunnel", ".spec.routes[].path", "say either prefix or exact", ".spec.routes", [{"path": {}}]),
    (
        "Tunnel",
        ".spec",
        "say either tcp or udp; two tunnels can share a port number",
        ".spec",
        {"tcp": {"port": 5432}, "udp": {"port": 53}},
    ),
    (
        "Tunnel",
        ".spec",
        "hostnames go with tcp.passthrough, and a port has none",
        ".spec",
        {"tcp": {"port": 5432}, "origin": {"url": "tcp://localhost:5432"}},
    ),
    (
        "Tunnel",
        ".spec",
        "origin.url does not fit: tcp:// goes with tcp, udp:// with udp, http:// and https:// with neither",
        ".spec.origin",
        {"url": "tcp://localhost:5432"},
    ),
    (
        "Tunnel",
        ".spec",
        "tcp:// and udp:// are for a single origin",
        ".spec.origins",
        [{"name": "a", "url": "udp://localhost:53"}],
    ),
    (
        "Tunnel",
        ".spec",
        "origin.proxyProtocol is for tcp (v1, v2) and udp (v2)",
        ".spec.origin",
        {"url": "http://localhost:3000", "proxyProtocol": "v2"},
    ),
    (
        "Tunnel",
        ".spec",
        "origins, routes, cache, collapse, headers, forceHttps and health are for HTTP and have no effect with tcp or udp",
        ".spec",
        {"tcp": {"passthrough": True}, "origin": {"url": "tcp://localhost:5432"}, "forceHttps": True},
    ),
    ("Tunnel", ".spec.tcp", "say either port or passthrough: true", ".spec.tcp", {}),
    (
        "ExitPool",
        ".spec.ports",
        "at most 250 ports in all",
        ".spec.ports",
        {"tcp": [{"from": 1000, "to": 1200}], "udp": [{"from": 1000, "to": 1200}]},
    ),
    ("ExitPool", ".spec.ports.tcp[]", "to is below from", ".spec.ports", {"tcp": [{"from": 9, "to": 8}]}),
    ("ExitPool", ".spec.ports.udp[]", "to is below from", ".spec.ports", {"udp": [{"from": 9, "to": 8}]}),
    (
        "ExitPool",
        ".spec.ports.tcp[]",
        "exit nodes need ports 80, 443, 7443, 8080, 8443, 9090 themselves",
        ".spec.ports",
        {"tcp": [{"from": 79, "to": 81}]},
    ),
    (
        "ExitPool",
        ".spec.ports.udp[]",
        "exit nodes need ports 80, 443, 7443, 8080, 8443, 9090 themselves",
        ".spec.ports",
        {"udp": [{"from": 443}]},
    ),
]

ON_CHANGE = {Site("HostnameReservation", ".spec.hostname", "hostname cannot be changed")}

REQUIRED: dict[
    str, Object
] = {  # what must stand beside a value of these lists and objects, or the schema refuses it first
    ".spec.origins[]": {"name": "a", "url": "http://localhost:1"},
    ".spec.origins[].health": {"path": "/healthz"},
    ".spec.origin.health": {"path": "/healthz"},
    ".spec.routes[]": ROUTE,
    ".spec.regions[]": {"name": "eu"},
    ".spec.tcp": {"port": 5432},
    ".spec.udp": {"port": 53},
}


def beyond(rule: str) -> str | None:
    """A value that a bound refuses, or None for rules that are no bounds."""
    if bound := re.fullmatch(r"duration\(self\) (>|>=|<=) duration\('(\d+)([hms])'\)", rule):
        operator, number, unit = bound[1], int(bound[2]), bound[3]
        return {">": "0s", ">=": "1ms", "<=": f"{number}{unit}1ms"}[operator]
    if bound := re.search(r"quantity\('(\d+)'\)\) (>=|<=) 0$", rule):
        return str(int(bound[1]) + (1 if bound[2] == "<=" else -1))
    return None


BOUNDS = {site: value for site, rule in SITES.items() if (value := beyond(rule)) is not None}


def base(kind: str) -> Object:
    return {"apiVersion": "edgetun.dev/v1alpha1", "kind": kind, **BASES[kind]}


def with_required(obj: Object, path: str) -> Object:
    """The object with what the parents of `path` cannot be without."""
    for parent, needed in REQUIRED.items():
        if path.startswith(parent + "."):
            for name, value in needed.items():
                obj = put(obj, f"{parent}.{name}", value)
    return obj


def refusal(cluster: ControlPlane, obj: Object) -> ApiError:
    with pytest.raises(ApiError) as refused:
        cluster.client.create(obj, dry_run=True)
    assert refused.value.status == 422, refused.value
    return refused.value


def assert_refused_for(error: ApiError, site: Site) -> None:
    """One cause has the rule's field and message."""
    field = site.path.replace("[]", "[0]").lstrip(".")
    assert any(said.endswith(site.message) and where in {field, field or "<nil>"} for where, said in error.causes), (
        f"wanted {site.message!r} at {field!r}, got {error.causes}"
    )


@pytest.mark.parametrize("kind", BASES)
def test_what_the_refusals_start_from_is_accepted(crds: list[Object], cluster: ControlPlane, kind: str) -> None:
    assert cluster.client.create(base(kind), dry_run=True)["kind"] == kind
    assert parse_resource(base(kind))[1] == ()


@pytest.mark.parametrize(("kind", "path", "message", "where", "value"), BREAKS, ids=[f"{b[0]}: {b[2]}" for b in BREAKS])
def test_a_broken_rule_is_refused_with_its_message(
    crds: list[Object], cluster: ControlPlane, kind: str, path: str, message: str, where: str, value: object
) -> None:
    assert Site(kind, path, message) in SITES
    broken = base(kind)
    if where == ".spec":
        assert isinstance(value, dict)
        broken = {**broken, "spec": {**broken["spec"], **value}}
    else:
        broken = put(broken, where, value)
    assert_refused_for(refusal(cluster, broken), Site(kind, path, message))
    assert parse_resource(broken)[1] != (), "edgetun validate accepts it"


@pytest.mark.parametrize("site", BOUNDS, ids=lambda site: f"{site.kind}{site.path}: {site.message}")
def test_a_bound_is_refused_with_its_message(crds: list[Object], cluster: ControlPlane, site: Site) -> None:
    broken = put(with_required(base(site.kind), site.path), site.path, BOUNDS[site])
    assert_refused_for(refusal(cluster, broken), site)
    assert parse_resource(broken)[1] != (), "edgetun validate accepts it"


def test_a_reserved_hostname_cannot_be_changed(crds: list[Object], cluster: ControlPlane, apply, unique: str) -> None:
    name = f"{unique}.example.com"
    spec = {"hostname": name, "claimedBy": {"namespace": "team-a", "tunnel": "shop"}}
    stored = apply({**base("HostnameReservation"), "metadata": {"name": name}, "spec": spec})
    with pytest.raises(ApiError, match="hostname cannot be changed"):
        cluster.client.patch(stored, {"spec": {"hostname": f"other-{name}"}})
    handed_over = cluster.client.patch(stored, {"spec": {"claimedBy": {"namespace": "team-b"}}})
    assert handed_over["spec"]["claimedBy"] == {"namespace": "team-b", "tunnel": "shop"}


def test_every_rule_of_the_crds_has_a_test() -> None:
    tested = {Site(kind, path, message) for kind, path, message, *_ in BREAKS} | set(BOUNDS) | ON_CHANGE
    assert set(SITES) - tested == set()
    assert tested - set(SITES) == set()


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("shop.example.com", "shop.example.com"),
        ("*.example.com", "wildcard.example.com"),
        ("wildcard.example.com", "wildcardx.example.com"),
        ("wildcardx.example.com", "wildcardxx.example.com"),
    ],
)
def test_no_two_hostnames_share_a_reservation(
    crds: list[Object], cluster: ControlPlane, hostname: str, name: str
) -> None:
    spec = {"hostname": hostname, "claimedBy": {"namespace": "team-a", "tunnel": "shop"}}
    accepted = {**base("HostnameReservation"), "metadata": {"name": name}, "spec": spec}
    cluster.client.create(accepted, dry_run=True)
    assert parse_resource(accepted)[1] == ()
