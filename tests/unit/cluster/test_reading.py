"""What informers keep of ten thousand resources: read once per generation, and once in memory where they say the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgetun_cluster.client import Listing
from edgetun_cluster.errors import ResourceVersionGone
from edgetun_cluster.informer import Change, Informer
from edgetun_cluster.kinds import EXIT_POOL, TUNNEL, Object
from edgetun_cluster.reading import MOST_SHARED, compact_status, read_resource
from edgetun_control.stores.kubernetes import _see
from edgetun_core.api.load import parse_resource
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.compile import tunnel_rule

METADATA = ("name", "namespace", "uid", "generation")


def obj(name: str, **spec: Any) -> Object:
    spec = {
        "hostnames": [f"{name}.example.com"],
        # as the API server stores it: every default is written out
        "origin": {"url": "http://localhost:1", "timeouts": {"connect": "5s", "idle": "5m", "response": "60s"}},
        "cache": {"mode": "respect", "staleIfError": "30s"},
        "collapse": {"enabled": True, "patience": "30s"},
        **spec,
    }
    meta = {"name": name, "namespace": "team-a", "uid": name, "generation": 1, "annotations": {"a": "b" * 500}}
    raw = {"apiVersion": "edgetun.dev/v1alpha1", "kind": "Tunnel", "metadata": meta, "spec": spec}
    return msgspec.json.decode(msgspec.json.encode(raw), type=dict)


def read(raw: Object) -> Tunnel:
    found, problems = read_resource(TUNNEL, raw, METADATA)
    assert isinstance(found, Tunnel), problems
    return found


def test_blocks_that_say_the_same_are_held_once_and_others_are_not() -> None:
    one, two, other = read(obj("one")), read(obj("two")), read(obj("three", cache={"mode": "respect"}))
    assert one.spec.cache is two.spec.cache
    assert one.spec.collapse is two.spec.collapse
    assert one.spec.origin is two.spec.origin
    assert one.spec.limits is two.spec.limits, "not written at all"
    assert other.spec.cache is not one.spec.cache
    assert one.metadata.name == "one"
    assert one.spec.hostnames == ["one.example.com"]
    assert one.metadata.annotations == {}
    elsewhere = read(obj("four", origin={"url": "http://localhost:2", "timeouts": {"connect": "5s", "idle": "5m"}}))
    assert elsewhere.spec.origin is not None
    assert elsewhere.spec.origin.url == "http://localhost:2"


def test_a_block_is_the_same_only_with_the_same_fields_written_since_routes_are_laid_over_by_that() -> None:
    route = {"path": {"prefix": "/a"}, "cache": {"staleIfError": "0s"}}
    bare = {"path": {"prefix": "/a"}, "cache": {}}
    found = [read(obj(name, routes=[one])) for name, one in (("r1", bare), ("r2", route), ("r3", bare), ("r4", route))]
    for tunnel, wanted in zip(found, (30.0, 0.0, 30.0, 0.0), strict=True):
        assert tunnel_rule(tunnel).routes[0].cache.stale_if_error_s == wanted


def test_what_is_read_compiles_to_what_the_whole_object_does() -> None:
    raw = obj("same", routes=[{"path": {"exact": "/x"}, "limits": {"burst": 3, "ratePerVisitor": "2/s"}}])
    whole, problems = parse_resource(raw)
    assert isinstance(whole, Tunnel), problems
    for _ in range(3):
        assert tunnel_rule(read(raw)) == tunnel_rule(whole)


def condition(type_: str, at: int) -> dict[str, Any]:
    return {"type": type_, "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": str(at)}


def test_conditions_that_say_the_same_are_held_once_within_a_bound() -> None:
    one, two = ({"status": {"url": name, "conditions": [condition("Ready", 1)]}} for name in "ab")
    first, second = compact_status(one), compact_status(two)
    assert first == {"url": "a", "conditions": [condition("Ready", 1)]}
    assert first["conditions"][0] is second["conditions"][0]
    for at in range(MOST_SHARED + 10):
        assert compact_status({"status": {"conditions": [condition("Ready", at)]}})["conditions"] == [
            condition("Ready", at)
        ]
    assert compact_status({}) == {}
    odd: dict[str, Any] = {"conditions": [{"type": ["not", "text"]}, "no condition"]}
    assert compact_status({"status": odd}) == odd
    assert compact_status({"status": {"conditions": "none"}}) == {"conditions": "none"}


def test_an_informer_reads_a_spec_again_only_when_it_is_another_one() -> None:
    informer: Informer[Any] = Informer(
        None,  # type: ignore[arg-type]
        TUNNEL,
        parse=lambda raw: _see(TUNNEL, raw),
        parse_again=lambda raw, before: _see(TUNNEL, raw, before),
    )
    found: list[Change[Any]] = []
    informer.on_change(found.append)

    def put(version: str, **more: Any) -> Any:
        raw = obj("one", **more.pop("spec", {}))
        raw["metadata"] |= {"resourceVersion": version, **more}
        informer._put(raw)
        return found[-1].new.resource

    first = put("1")
    assert put("2", labels={"a": "b"}) is first
    changed = put("3", generation=2, spec={"hostnames": ["else.example.com"]})
    assert changed.spec.hostnames == ["else.example.com"]
    assert put("4", generation=2, uid="another", spec={"hostnames": ["again.example.com"]}).spec.hostnames == [
        "again.example.com"
    ], "another object of the same name"
    informer._put({**obj("one"), "metadata": {**obj("one")["metadata"], "resourceVersion": "4"}})
    assert len(found) == 4, "the same version twice is one change"


def test_only_pools_and_tokens_are_asked_for_their_status() -> None:
    raw = {**obj("one"), "status": {"url": "x"}}
    assert _see(TUNNEL, raw).status == {}
    pool = {"metadata": {"name": "p", "uid": "p"}, "spec": {"regions": [{"name": "eu"}]}, "status": {"available": 1}}
    assert _see(EXIT_POOL, pool).status == {"available": 1}


class Pages:
    """An API server that answers lists page by page, and fails where it is told to."""

    def __init__(self) -> None:
        self.pages: list[list[Object]] = []
        self.fails_before: int | None = None
        self.listed = 0
        self.in_between: list[int] = []
        self.look: Any = None

    async def pages_of(self) -> Any:
        for number, page in enumerate(self.pages):
            if number == self.fails_before:
                self.fails_before = None
                raise ResourceVersionGone(410, "Expired", "the continue token is too old")
            yield Listing(page, "7")
            self.in_between.append(self.look())
        self.listed += 1


async def test_a_list_is_taken_page_by_page_and_what_is_gone_goes_at_its_end() -> None:
    server = Pages()
    cluster: Any = type("Cluster", (), {"pages": lambda *_, **__: server.pages_of()})()
    informer: Informer[Object] = Informer(cluster, TUNNEL)
    server.look = lambda: len(informer)
    found: list[tuple[str, str]] = []
    informer.on_change(lambda change: found.append((change.type, change.key.name)))

    def version(name: str, number: int) -> Object:
        return {"metadata": {"name": name, "namespace": "team-a", "resourceVersion": str(number)}}

    server.pages = [[version("a", 1), version("b", 1)], [version("c", 1)]]
    await informer._list()
    assert server.in_between == [2, 3]
    assert informer.is_synced
    found.clear()
    server.pages = [[version("a", 1), version("b", 2)], [version("d", 1)]]
    server.fails_before = 1
    with pytest.raises(ResourceVersionGone):
        await informer._list()
    assert found == [("modified", "b")]
    assert set(informer.store) == {("team-a", name) for name in "abc"}, "what was not seen yet is not gone"
    await informer._list()
    assert found == [("modified", "b"), ("added", "d"), ("deleted", "c")]
