"""TCP and UDP in resources: either-or fields with words that say what to write, ports and who holds them."""

from __future__ import annotations

from typing import Any

import pytest

from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.load import parse_resource
from edgetun_core.api.streams import PoolPorts, PortRange, every_port, numbers
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.claims import Claims


def tunnel(name: str = "db", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "edgetun.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": name}, "spec": spec}


def told(data: dict[str, Any]) -> list[str]:
    resource, problems = parse_resource(data)
    assert (resource is None) == bool(problems)
    return [f"{problem.field}: {problem.message}" for problem in problems]


TCP = {"url": "tcp://localhost:5432"}
UDP = {"url": "udp://localhost:53"}
HTTP = {"url": "http://localhost:3000"}


@pytest.mark.parametrize(
    "spec",
    [
        {"tcp": {"port": 5432}, "origin": TCP},
        {"tcp": {"port": 5432}, "origin": {"url": "unix:///run/pg.sock", "proxyProtocol": "v1"}},
        {"tcp": {"passthrough": True}, "hostnames": ["db.example.com"], "origin": {**TCP, "proxyProtocol": "v2"}},
        {"udp": {"port": 53, "idleTimeout": "10s", "maxFlows": 5}, "origin": {**UDP, "proxyProtocol": "v2"}},
        {
            "tcp": {"port": 22, "allowFrom": ["203.0.113.0/24", "2001:db8::/32"], "denyFrom": ["203.0.113.66/32"]},
            "origin": TCP,
        },
        {"udp": {"port": 53, "allowFrom": [], "denyFrom": ["0.0.0.0/0"]}, "origin": UDP},
        {"tcp": {"port": 22}, "origin": TCP, "limits": {"ratePerVisitor": "5/s", "burst": 9}},
    ],
)
def test_what_a_stream_tunnel_can_say(spec: dict[str, Any]) -> None:
    assert told(tunnel(**spec)) == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"tcp": {}, "origin": TCP}, "spec.tcp: says neither port nor passthrough"),
        (
            {"tcp": {"port": 1, "passthrough": True}, "hostnames": ["a.b"], "origin": TCP},
            "spec.tcp.port: stands beside",
        ),
        ({"tcp": {"port": 0}, "origin": TCP}, "spec.tcp.port: "),
        ({"tcp": {"port": 1, "allowFrom": ["example.com"]}, "origin": TCP}, "spec.tcp.allowFrom[0]: "),
        ({"tcp": {"port": 1, "denyFrom": ["203.0.113.0/33"]}, "origin": TCP}, "spec.tcp.denyFrom[0]: "),
        ({"tcp": {"port": 1}, "udp": {"port": 1}, "origin": TCP}, "spec.udp: stands beside tcp; make two tunnels"),
        ({"tcp": {"passthrough": True}, "origin": TCP}, "spec.hostnames: names no host; passthrough tells"),
        ({"tcp": {"port": 1}, "hostnames": ["a.b"], "origin": TCP}, "spec.hostnames: has no effect with tcp.port"),
        ({"udp": {"port": 1}, "hostnames": ["a.b"], "origin": UDP}, "spec.hostnames: has no effect with udp.port"),
        ({"tcp": {"port": 1}, "origin": HTTP}, "write tcp://localhost:5432"),
        ({"udp": {"port": 1}, "origin": TCP}, "write udp://localhost:53"),
        ({"hostnames": ["a.b"], "origin": TCP}, "add tcp: {port: 5432} to spec"),
        ({"hostnames": ["a.b"], "origin": {**HTTP, "proxyProtocol": "v1"}}, "HTTP origins get Forwarded"),
        ({"udp": {"port": 1}, "origin": {**UDP, "proxyProtocol": "v1"}}, "write v2"),
        ({"tcp": {"port": 1}, "origin": TCP, "forceHttps": True}, "spec.forceHttps: is for HTTP"),
        ({"tcp": {"port": 1}, "origin": TCP, "cache": {"mode": "disabled"}}, "spec.cache: is for HTTP"),
        ({"tcp": {"port": 1}, "origin": TCP, "headers": {"request": {"remove": ["X"]}}}, "spec.headers: is for HTTP"),
        ({"udp": {"port": 1}, "origin": UDP, "routes": [{"path": {"prefix": "/"}}]}, "spec.routes: is for HTTP"),
        ({"tcp": {"port": 1}, "origin": TCP, "limits": {"maxRequestBodyBytes": "1Mi"}}, "maxRequestBodyBytes: is for"),
        ({"tcp": {"port": 1}, "origin": {**TCP, "health": {"path": "/"}}}, "spec.origin.health: is for HTTP"),
        ({"tcp": {"port": 1, "bandwidth": 1}, "origin": TCP}, "is not available in this version"),
    ],
)
def test_what_contradicts_itself_says_what_to_write(spec: dict[str, Any], words: str) -> None:
    said = told(tunnel(**spec))
    assert any(words in line for line in said), said


def pool(**spec: Any) -> dict[str, Any]:
    spec = {"regions": [{"name": "eu"}], "domains": ["*"], **spec}
    return {"apiVersion": "edgetun.dev/v1alpha1", "kind": "ExitPool", "metadata": {"name": "default"}, "spec": spec}


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ({"tcp": [{"from": 10, "to": 5}]}, "is below from; write {from: 5, to: 10}"),
        ({"tcp": [{"from": 440, "to": 450}]}, "holds port 443, which exit nodes need themselves"),
        ({"tcp": [{"from": 1000, "to": 1250}]}, "are 251 ports, and 250 are the most"),
        ({"sctp": [{"from": 1}]}, "is not available in this version"),
    ],
)
def test_ports_that_a_pool_cannot_give_away(ports: dict[str, Any], words: str) -> None:
    assert any(words in line for line in told(pool(ports=ports)))


def test_ports_of_a_pool() -> None:
    ports = PoolPorts(tcp=[PortRange(from_=20, to=22), PortRange(from_=21)], udp=[PortRange(from_=53)])
    assert numbers(ports.tcp) == [20, 21, 22]
    assert ports.allow("tcp", 22)
    assert not ports.allow("udp", 22)
    assert [str(each) for each in ports.tcp] == ["20-22", "21"]
    assert every_port().allow("udp", 65535)


def stream(name: str, kind: str, port: int, age: int, pool_name: str = "default") -> Tunnel:
    data = tunnel(name, **{kind: {"port": port}}, origin=TCP if kind == "tcp" else UDP, pool={"name": pool_name})
    data["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:{age:02}Z"
    resource, problems = parse_resource(data)
    assert isinstance(resource, Tunnel), problems
    return resource


def a_pool(name: str = "default", **ports: Any) -> ExitPool:
    data = pool(ports=ports)
    data["metadata"]["name"] = name
    resource, problems = parse_resource(data)
    assert isinstance(resource, ExitPool), problems
    return resource


def test_the_oldest_has_a_port_of_its_pool_and_passes_it_on_when_it_goes() -> None:
    claims = Claims()
    claims.put_pool(a_pool(tcp=[{"from": 20, "to": 29}], udp=[{"from": 20}]))
    claims.put_pool(a_pool("other", tcp=[{"from": 20}]))
    for each in (
        stream("young", "tcp", 20, 2),
        stream("old", "tcp", 20, 1),
        stream("udp", "udp", 20, 3),
        stream("elsewhere", "tcp", 20, 4, "other"),
        stream("outside", "tcp", 30, 5),
    ):
        claims.put_tunnel(each)
    got = {name: claims.verdict(f"default/{name}") for name in ("young", "old", "udp", "elsewhere", "outside")}
    assert {name: verdict.port for name, verdict in got.items()} == {
        "young": "",
        "old": "tcp/20",
        "udp": "udp/20",
        "elsewhere": "tcp/20",
        "outside": "",
    }
    assert [problem.reason for problem in got["young"].problems] == ["PortConflict"]
    assert "held by Tunnel default/old" in got["young"].problems[0].message
    assert [problem.reason for problem in got["outside"].problems] == ["PortNotAllowed"]
    assert got["old"].served == ("tcp/20",)
    assert got["young"].served == ()
    assert "default/young" in claims.drop_tunnel("default/old")
    assert claims.verdict("default/young").port == "tcp/20"
    assert "default/young" in claims.put_pool(a_pool(udp=[{"from": 20}]))
    assert claims.verdict("default/young").port == ""


def test_a_namespace_that_a_pool_does_not_serve_gets_no_port() -> None:
    claims = Claims(namespaces={"default": {}})
    data = pool(ports={"tcp": [{"from": 20}]}, allowedNamespaces={"from": "Selector", "names": ["team"]})
    resource, _ = parse_resource(data)
    assert isinstance(resource, ExitPool)
    claims.put_pool(resource)
    claims.put_tunnel(stream("db", "tcp", 20, 1))
    verdict = claims.verdict("default/db")
    assert verdict.served == ()
    assert [problem.reason for problem in verdict.problems] == ["NamespaceNotAllowed"]
