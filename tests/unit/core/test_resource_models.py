"""The models: what is accepted, what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.load import load_text, parse_resource
from edgetun_core.api.meta import Metadata
from edgetun_core.api.model import ApiModel, RuledModel
from edgetun_core.api.policies import CachePolicy, LimitPolicy, overlay
from edgetun_core.api.tunnel import Origin, Tunnel, TunnelSpec


def tunnel(**spec: Any) -> dict[str, Any]:
    spec.setdefault("hostnames", ["shop.example.com"])
    if "origins" not in spec:
        spec.setdefault("origin", {"url": "http://localhost:3000"})
    return {
        "apiVersion": "edgetun.dev/v1alpha1",
        "kind": "Tunnel",
        "metadata": {"name": "shop"},
        "spec": {name: value for name, value in spec.items() if value is not None},
    }


def pool(**spec: Any) -> dict[str, Any]:
    spec.setdefault("regions", [{"name": "eu-west"}])
    spec.setdefault("domains", ["*"])
    return {
        "apiVersion": "edgetun.dev/v1alpha1",
        "kind": "ExitPool",
        "metadata": {"name": "public"},
        "spec": spec,
    }


def told(data: dict[str, Any]) -> list[str]:
    """What a person reads, without the resource's name in front."""
    resource, problems = parse_resource(data)
    assert (resource is None) == bool(problems)
    return [f"{problem.field}: {problem.message}" for problem in problems]


def test_the_smallest_tunnel_has_defaults_for_everything_else() -> None:
    resource, problems = parse_resource(tunnel())
    assert problems == ()
    assert isinstance(resource, Tunnel)
    assert resource.ref == "Tunnel default/shop"
    assert resource.spec.protocol == "http"
    assert resource.spec.pool.name == "default"
    assert resource.spec.reconnect_grace == 5.0
    assert resource.spec.cache == CachePolicy()


def test_python_code_builds_resources_with_its_own_names_and_numbers() -> None:
    built = Tunnel(
        metadata=Metadata(name="shop"),
        spec=TunnelSpec(
            hostnames=["shop.localhost"],
            origin=Origin(url="http://localhost:3000", max_connections=5),
            cache=CachePolicy(mode="override", ttl=1.5),
            limits=LimitPolicy(rate_per_visitor=10.0),
        ),
    )
    assert built.spec.cache.ttl == 1.5


def test_a_resource_written_out_is_read_back() -> None:
    data = tunnel(cache={"mode": "override", "ttl": "1s", "maxObjectBytes": "2Mi"}, limits={"ratePerVisitor": "10/m"})
    first, _ = parse_resource(data)
    assert first is not None
    again, problems = parse_resource(first.model_dump(by_alias=True, exclude_none=True))
    assert problems == ()
    assert again == first


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("Shop.Example.com", "write shop.example.com"),
        ("http://shop.example.com/", "write shop.example.com"),
        ("shop.example.com:443", "write shop.example.com"),
        ("shop.example.com.", "write shop.example.com"),
        (" shop.example.com", "write shop.example.com"),
        ("bücher.example", "write xn--bcher-kva.example"),
        ("127.0.0.1", "a hostname is a name"),
        ("::1", "a hostname is a name"),
        ("[::1]:80", "a hostname is a name"),
        ("*", "write *.example.com"),
        ("a.*.example.com", "write *.example.com"),
        ("*shop.example.com", "write *.example.com"),
        ("*.*.example.com", "write *.example.com"),
        ("-a.example.com", "write a name such as"),
        ("a..example.com", "write a name such as"),
        ("under_score.example.com", "write a name such as"),
        ("x" * 64 + ".example.com", "write a name such as"),
        (".".join(["abcdefg"] * 33), "write a name such as"),
        ("", "write a name such as"),
        ("a\n", "write a"),
    ],
)
def test_a_hostname_that_no_visitor_sends_is_refused_with_its_remedy(host: str, remedy: str) -> None:
    (message,) = told(tunnel(hostnames=[host]))
    assert message.startswith("spec.hostnames[0]: ")
    assert remedy in message


@pytest.mark.parametrize(
    "host", ["localhost", "shop.localhost", "*.localhost", "xn--bcher-kva.example", "1.example.com", "a" * 63]
)
def test_a_hostname_as_visitors_send_it_is_accepted(host: str) -> None:
    assert told(tunnel(hostnames=[host])) == []


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("api", "write it with a leading '/'"),
        ("/api?x=1", "holds no query"),
        ("/a b", "percent-encoded"),
        ("/%zz", "percent-encoded"),
        ("/ü", "percent-encoded"),
        ("/a/../b", "are resolved before paths are compared"),
        ("/a//b", "write one '/'"),
        ("/%61dmin", "is compared as /admin; write it so"),
        ("/caf%c3%a9", "is compared as /caf%C3%A9; write it so"),
    ],
)
def test_a_path_that_would_never_match_is_refused_with_its_remedy(path: str, remedy: str) -> None:
    (message,) = told(tunnel(routes=[{"path": {"prefix": path}}]))
    assert message.startswith("spec.routes[0].path.prefix: ")
    assert remedy in message


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("localhost:3000", "write http://localhost:3000"),
        ("3000", "write http://localhost:3000"),
        ("ftp://x", "is not an origin"),
        ("tcp://localhost:5432", "add tcp: {port: 5432} to spec"),
        ("tcp://localhost", "write tcp://localhost:5432"),
        ("udp://localhost:53/x", "write udp://localhost:5432"),
        ("http://", "does not name a host"),
        ("http://user:pw@localhost", "holds no user and password"),
        ("http://localhost:99999", "a port is a number from 1 to 65535"),
        ("http://localhost:0", "a port is a number from 1 to 65535"),
        ("http://localhost:abc", "does not name a host"),
        ("http://localhost/?a=1", "has no query"),
        ("http://local host", "has a character that a URL cannot hold"),
        ("http://localhost/a/../b", "are resolved"),
        ("unix://app.sock", "write unix:///run/app.sock"),
        ("unix:///run/", "write unix:///run/app.sock"),
    ],
)
def test_an_origin_that_cannot_be_dialled_is_refused_with_its_remedy(url: str, remedy: str) -> None:
    (message,) = told(tunnel(origin={"url": url}))
    assert message.startswith("spec.origin.url: ")
    assert remedy in message
    assert "pw" not in message.replace("pwd", "")


@pytest.mark.parametrize(
    "url",
    ["http://localhost:3000", "https://[::1]:3443/base/", "http://my_host", "unix:///run/app.sock", "http://10.0.0.1"],
)
def test_an_origin_that_can_be_dialled_is_accepted(url: str) -> None:
    assert told(tunnel(origin={"url": url})) == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("hostname", "hostnames"),
        ("force_https", "forceHttps"),
        ("ORIGIN", "origin"),
        ("reconectGrace", "reconnectGrace"),
    ],
)
def test_an_unknown_field_says_the_closest_known_one(written: str, meant: str) -> None:
    assert told(tunnel(**{written: True})) == [f"spec.{written}: is not a field; did you mean {meant}?"]


def test_an_unknown_field_like_none_that_exists_says_those_there_are() -> None:
    (message,) = told(tunnel(collapse={"zzzzzz": 1}))
    assert message == "spec.collapse.zzzzzz: is not a field; there are enabled, notCollapsible, patience"


@pytest.mark.parametrize("name", ["access", "waf", "mocks", "shadow", "failover", "webhooks"])
def test_a_field_that_is_planned_says_that_it_is_not_available_yet(name: str) -> None:
    assert told(tunnel(**{name: {"enabled": True}})) == [f"spec.{name}: is not available in this version; remove it"]


@pytest.mark.parametrize("protocol", ["grpc", "h2c"])
def test_a_protocol_of_the_origin_is_told_where_it_belongs(protocol: str) -> None:
    (message,) = told(tunnel(protocol=protocol))
    assert message.startswith(f'spec.protocol: "{protocol}" is not a choice; an http tunnel carries it: ')
    assert message.endswith("write protocol: h2c in spec.origin")


def models(of: type[ApiModel]) -> set[type[ApiModel]]:
    found = {of}
    for below in of.__subclasses__():
        found |= models(below)
    return found


@pytest.mark.parametrize("model", sorted(models(ApiModel), key=lambda model: model.__name__), ids=lambda m: m.__name__)
def test_every_field_is_described_and_no_reserved_name_is_in_use(model: type[ApiModel]) -> None:
    names = {field.alias for field in model.model_fields.values()}
    assert not names & model.reserved
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no description"


@pytest.mark.parametrize(
    "model", sorted(models(RuledModel), key=lambda model: model.__name__), ids=lambda m: m.__name__
)
def test_every_rule_has_its_cel_and_its_message(model: type[RuledModel]) -> None:
    for rule in model.rules:
        # Where a list has a key, the schema says it.
        assert "self" in rule.cel or rule.message.endswith("have the same name")
        assert rule.message
        assert rule.cel.count("(") == rule.cel.count(")")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"origin": None}, "spec.origin: is missing; add origin: {url: http://localhost:3000}"),
        (
            {"origin": {"url": "http://a"}, "origins": [{"name": "b", "url": "http://b"}]},
            "spec.origins: stands beside origin; keep one of them",
        ),
        ({"hostnames": []}, "spec.hostnames: names no host; add one, such as shop.example.com"),
        (
            {"hostnames": ["a.b", "c.d", "a.b"]},
            'spec.hostnames[2]: "a.b" is there already as hostnames[0]; remove one of them',
        ),
        (
            {"origins": [{"name": "a", "url": "http://a"}, {"name": "a", "url": "http://b"}]},
            'spec.origins[1].name: "a" is there already as origins[0]; remove one of them',
        ),
        (
            {"origins": [{"name": "a", "url": "http://a"}], "routes": [{"path": {"prefix": "/x"}, "origin": "b"}]},
            'spec.routes[0].origin: "b" is not an origin of this tunnel; write a, or add it to spec.origins',
        ),
        (
            {"routes": [{"path": {"prefix": "/x"}}, {"path": {"prefix": "/x/"}}]},
            'spec.routes[1].path: prefix "/x" is the path of routes[0] too; merge the two routes',
        ),
        (
            {"routes": [{"path": {}}]},
            "spec.routes[0].path: says neither prefix nor exact; write {prefix: /api} or {exact: /api}",
        ),
        (
            {"routes": [{"path": {"prefix": "/a", "exact": "/b"}}]},
            "spec.routes[0].path: says both prefix and exact; keep one, or write two routes",
        ),
        (
            {"routes": [{"path": {"exact": "/a"}, "stripPrefix": True}]},
            "spec.routes[0].stripPrefix: has no prefix to strip; write path.prefix, or remove stripPrefix",
        ),
        (
            {"cache": {"mode": "override"}},
            "spec.cache.mode: override needs a ttl above zero; add ttl: 1s, or write mode: respect",
        ),
        (
            {"cache": {"ttl": "1s"}},
            "spec.cache.ttl: has no effect with mode respect; add mode: override, or remove it",
        ),
        (
            {"routes": [{"path": {"prefix": "/x"}, "cache": {"ignoreNoStore": True}}]},
            "spec.routes[0].cache.ignoreNoStore: has no effect with mode respect; add mode: override, or remove it",
        ),
        (
            {"limits": {"burst": 5}},
            "spec.limits.burst: has no effect without a rate; add ratePerVisitor: 10/s, or remove burst",
        ),
        (
            {"pool": {"regions": {"allow": ["eu"], "deny": ["us", "eu"]}}},
            'spec.pool.regions.deny[1]: "eu" is also in allow; keep it in one of them',
        ),
    ],
)
def test_a_rule_over_several_fields_tells_where_it_broke(spec: dict[str, Any], message: str) -> None:
    assert told(tunnel(**spec)) == [message]


def test_a_route_may_say_only_what_differs_from_the_tunnel() -> None:
    cache = {"mode": "override", "ttl": "1s"}
    routes = [
        {"path": {"prefix": "/a"}, "cache": {"ttl": "1h"}},
        {"path": {"prefix": "/b"}, "cache": {"mode": "disabled"}},
        {"path": {"prefix": "/c"}, "limits": {"burst": 3}},
    ]
    assert told(tunnel(cache=cache, limits={"ratePerVisitor": "1/s"}, routes=routes)) == []


def test_an_overlay_changes_what_was_said_and_nothing_else() -> None:
    base = CachePolicy(mode="override", ttl=1.0, allow_cookies=True)
    assert overlay(base, CachePolicy(ttl=5.0)) == CachePolicy(mode="override", ttl=5.0, allow_cookies=True)
    assert overlay(base, CachePolicy(allow_cookies=False)).allow_cookies is False
    assert overlay(base, CachePolicy()) is base


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "TE",
        "Trailer",
        "Keep-Alive",
        "Via",
        "Expect",
    ],
)
@pytest.mark.parametrize("place", ["remove", "set", "add"])
def test_header_rules_cannot_touch_framing_connection_or_host(name: str, place: str) -> None:
    change: Any = [name] if place == "remove" else {name: "x"}
    (message,) = told(tunnel(headers={"request": {place: change}}))
    assert f'"{name}" belongs to the connection and cannot be changed by rules' in message


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        ({"X A": "x"}, "is not a field name"),
        ({":path": "x"}, "is not a field name"),
        ({"": "x"}, "is not a field name"),
        ({"X-A": "a\r\nX-B: b"}, "printable ASCII on one line"),
        ({"X-A": "a\x00"}, "printable ASCII on one line"),
        ({"X-A": "ü"}, "printable ASCII on one line"),
        ({"X-A": " a"}, "begins or ends with a blank"),
        ({"X-A": 5}, "5 is not text; put it in quotes"),
        ({"X-A": "1", "x-a": "2"}, '"x-a" is the same field as "X-A"; write it once'),
        ({"X-A": "x" * 5000}, "is too long; write at most 4096 characters"),
    ],
)
def test_a_header_rule_that_would_break_a_message_is_refused(headers: dict[str, Any], part: str) -> None:
    (message,) = told(tunnel(headers={"response": {"set": headers}}))
    assert part in message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"forceHttps": "true"}, 'spec.forceHttps: "true" is neither true nor false; write true or false, without quotes'),
        ({"hostnames": "a.b"}, "spec.hostnames: is not a list; write [a.b], or one entry per line that begins with '- '"),
        ({"origin": "http://x"}, "spec.origin: is not a mapping; write fields below it, such as {url: http://localhost:3000}"),
        ({"origin": {}}, "spec.origin.url: is missing; add url: http://localhost:3000"),
        ({"cache": {"ttl": 5}}, "spec.cache.ttl: 5 is not a duration; write 2s, 500ms or 1m"),
        ({"cache": {"ttl": "9000h"}}, 'spec.cache.ttl: "9000h" is too large; the most is 8760h'),
        ({"cache": {"mode": "off"}}, 'spec.cache.mode: "off" is not a choice; write respect, override or disabled'),
        ({"cache": {"statuses": [99]}}, "spec.cache.statuses[0]: 99 is too small; the least is 200"),
        ({"cache": {"ignoreQuery": ["a*b"]}}, 'spec.cache.ignoreQuery[0]: "a*b" is not a query parameter; write its name, such as gclid or utm_*'),
        ({"cache": {"maxObjectBytes": "0"}}, 'spec.cache.maxObjectBytes: "0" is too small; the least is 1'),
        ({"collapse": {"patience": "0s"}}, 'spec.collapse.patience: "0s" is too small; write more than 0s'),
        ({"limits": {"maxConcurrentRequests": 1.5}}, "spec.limits.maxConcurrentRequests: 1.5 is not a whole number; write digits without quotes"),
        ({"limits": {"ratePerVisitor": 5}}, "spec.limits.ratePerVisitor: 5 is not a rate; write 100/s, 600/m or 10/h"),
        ({"hostnames": [f"a{i}.b" for i in range(65)]}, "spec.hostnames: has 65 entries; write at most 64"),
        ({"hostnames": [["a"]]}, "spec.hostnames[0]: is a list where text should be; write one value"),
        ({"origin": {"url": "http://x", "hostHeader": "a b"}}, 'spec.origin.hostHeader: "a b" is not a host; write preserve, origin, or a host such as app.internal:8080'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_its_remedy(spec: dict[str, Any], message: str) -> None:
    assert told(tunnel(**spec)) == [message]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"regions": []}, "spec.regions: has no entry; write at least one, such as [{name: eu-west}]"),
        ({"regions": [{"name": "a"}, {"name": "a"}]}, 'spec.regions[1].name: "a" is there already as regions[0]; remove one of them'),
        ({"regions": [{"name": "x" * 25}]}, f'spec.regions[0].name: "{"x" * 25}" is too long; write at most 24 characters'),
        ({"domains": ["a.b", "a.b"]}, 'spec.domains[1]: "a.b" is there already as domains[0]; remove one of them'),
        ({"domains": ["10.0.0.1"]}, 'spec.domains[0]: "10.0.0.1" is an address; a domain is a name, such as shop.example.com'),
        ({"externalDns": {}}, "spec.externalDns: is not available in this version; remove it"),
        ({"certificates": [{"certFile": "a.pem"}]}, "spec.certificates[0].keyFile: is missing; add keyFile: certs/shop.key"),
        ({"limits": {"maxConnections": 0}}, "spec.limits.maxConnections: 0 is too small; the least is 1"),
        ({"limits": {"maxRequestHeadBytes": "1k"}}, 'spec.limits.maxRequestHeadBytes: "1k" is too small; the least is 4Ki'),
    ],
)  # fmt: skip
def test_a_wrong_exit_pool_is_told_with_its_remedy(spec: dict[str, Any], message: str) -> None:
    assert told(pool(**spec)) == [message]


@pytest.mark.parametrize("name", ["x" * 31, "a.b"])
def test_a_pool_is_named_so_that_services_can_be_named_after_it(name: str) -> None:
    data = pool() | {"metadata": {"name": name}}
    (message,) = told(data)
    assert "is no name for an exit pool; write at most 30 characters without '.'" in message


@pytest.mark.parametrize("name", ["Shop", "shop_1", "-a", "a-", "", "a..b", "x" * 254, "a\n"])
def test_a_name_that_kubernetes_would_refuse_is_refused(name: str) -> None:
    (message,) = told(tunnel() | {"metadata": {"name": name}})
    assert message.startswith("metadata.name: ")
    assert "is not a name; write lower-case letters" in message


def test_what_a_cluster_writes_is_accepted() -> None:
    data = tunnel()
    data["metadata"] |= {
        "uid": "u",
        "generation": 2,
        "resourceVersion": "5",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{"manager": "kubectl"}],
        "ownerReferences": [{"kind": "X"}],
        "finalizers": ["x"],
        "labels": {"a": "b"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }
    data["status"] = {"conditions": []}
    assert told(data) == []


def test_snake_case_is_not_a_second_way_to_write_yaml() -> None:
    text = b"apiVersion: edgetun.dev/v1alpha1\nkind: Tunnel\nmetadata: {name: a}\nspec: {hostnames: [a.b], origin: {url: 'http://x', host_header: origin}}\n"
    (problem,) = load_text(text, "t.yaml").problems
    assert problem.render() == "t.yaml:4: spec.origin.host_header: is not a field; did you mean hostHeader?"


def test_models_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CachePolicy().ttl = 5.0  # type: ignore[misc]


@pytest.mark.parametrize("kind", [Tunnel, ExitPool])
def test_the_schema_has_no_unions_that_a_structural_schema_cannot_say(kind: type[ApiModel]) -> None:
    def look(schema: Any, path: str) -> None:
        if isinstance(schema, dict):
            arms = schema.get("anyOf", [])
            assert len([arm for arm in arms if arm.get("type") != "null"]) <= 1, f"{path} is a union"
            assert "oneOf" not in schema, path
            for name, value in schema.items():
                look(value, f"{path}.{name}")
        elif isinstance(schema, list):
            for value in schema:
                look(value, path)

    look(kind.model_json_schema(by_alias=True), kind.__name__)
