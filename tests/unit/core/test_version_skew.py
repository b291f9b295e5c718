"""One version of skew between operator, control, exit node and agent: what either end may leave out, and may add.

The previous version knows fewer fields, the next one more. So no message may come to need a field that it did not need, or stop
sending one that was needed: `REQUIRED` is what the first version needs, and changes only by fields leaving both ends over two versions.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from edgetun_control import store
from edgetun_core import enrollment, snapshot
from edgetun_core.api.load import parse_resource
from edgetun_core.control_stream import Unknown, decode_from_control, decode_from_node, messages
from edgetun_core.credentials import session_credential
from edgetun_core.errors import ProtocolError
from edgetun_core.wire import heads, hello

REQUIRED = {
    "AdHocTunnel": {"origin_url"},
    "Probe": {"pool", "region"},
    "EnrollRequest": {"agent_id"},
    "Endpoint": {"host", "tls_port", "quic_port"},
    "Offer": {"pool", "region", "endpoints"},
    "EnrollResponse": {"credential", "endpoints", "tunnels", "renew_after_s", "expires_in_s", "server_time"},
    "RefusalBody": {"reason", "message"},
    "OriginRule": {"name", "url"},
    "TunnelRule": {"id", "hostnames", "origins", "routes"},
    "CredentialKey": {"key_id", "public"},
    "Snapshot": {"version", "pool", "region"},
    "IdentityRequest": {"pool", "region", "node", "csr_pem"},
    "IdentityAnswer": {"cert_pem", "ca_pem", "expires_in_s"},
    "NodeHello": {"pool", "region", "node"},
    "Ack": {"version", "digest"},
    "SessionInfo": {"session_id", "agent_id", "token_id", "transport", "since"},
    "Full": {"snapshot", "digest"},
    "Delta": {"base", "digest", "version"},
    "Standing": {"version", "digest"},
    "Move": {"session_ids"},
    "SessionCredential": {"key_id", "agent_id", "token_id", "services", "issued", "expires"},
    "Claim": {"hostname", "token_id", "agent_id", "tunnel", "created"},
    "_Request": {"method", "scheme", "authority", "target", "protocol", "service", "fields"},
    "_Response": {"status", "fields"},
}
"""Fields without a default, by message, in the first version. Kinds of messages that came later may need what they like."""

NEED_NOTHING = {
    "CacheRule",
    "Close",
    "CollapseRule",
    "Drain",
    "HeaderRules",
    "Hello",
    "LimitRule",
    "NodeLoad",
    "PoolRule",
    "Presence",
    "Refusal",
    "Resync",
    "RouteRule",
    "VisitorAddress",
    "Welcome",
    "Windows",
}
"""Messages of the first version that need no field."""


def structs() -> Iterator[type[Struct]]:
    for module in (enrollment, snapshot, messages, hello, session_credential, store, heads):
        for _, found in sorted(inspect.getmembers(module, inspect.isclass)):
            if issubclass(found, Struct) and found is not Struct and found.__module__ == module.__name__:
                yield found


MESSAGES = [found for found in structs() if found.__name__ != "_Kind"]


@pytest.mark.parametrize("name", sorted({*REQUIRED, *NEED_NOTHING}))
def test_no_message_needs_more_or_less_than_the_version_before(name: str) -> None:
    shapes = [shape for shape in MESSAGES if shape.__name__ == name]
    assert shapes, f"{name}: the version before sends it still"
    for shape in shapes:
        needed = {field.name for field in msgspec.structs.fields(shape) if field.required}
        assert needed == REQUIRED.get(name, set()), f"{name}: give new fields a default, and keep what was needed"


def sample(kind: Any) -> Any:
    """A value of a field's type, as it travels."""
    match msgspec.inspect.type_info(kind):
        case msgspec.inspect.StrType():
            return "x"
        case msgspec.inspect.BytesType():
            return b"x" * 32
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            return 1
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.StructType(cls=cls):
            return least(cls)
        case _:
            return None if "None" in str(kind) else ()


def least(shape: type[Struct]) -> dict[str, Any]:
    """What the oldest version says: only what is required."""
    found = {field.encode_name: sample(field.type) for field in msgspec.structs.fields(shape) if field.required}
    config = shape.__struct_config__
    return ({config.tag_field: config.tag} if config.tag_field else {}) | found


@pytest.mark.parametrize(
    "shape", [shape for shape in MESSAGES if not shape.__struct_config__.array_like], ids=lambda shape: shape.__name__
)
def test_names_of_a_later_version_are_passed_over_and_those_of_an_older_one_suffice(shape: type[Struct]) -> None:
    old = least(shape)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=shape)
    later = old | {"from_a_later_version": {"deeply": ["nested", 1]}}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(later), type=shape) == read
    if b"" not in {type(value)() for value in old.values() if isinstance(value, bytes)}:
        assert msgspec.json.decode(msgspec.json.encode(later), type=shape) == read


@pytest.mark.parametrize(
    "shape", [shape for shape in MESSAGES if shape.__struct_config__.array_like], ids=lambda shape: shape.__name__
)
def test_elements_that_a_later_version_appends_are_passed_over(shape: type[Struct]) -> None:
    old = list(least(shape).values())
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=shape)
    whole = [*old, *msgspec.structs.astuple(read)[len(old) :]]
    later = msgspec.msgpack.decode(msgspec.msgpack.encode([*whole, {"from": "a later version"}]), type=shape)
    assert msgspec.structs.astuple(later) == msgspec.structs.astuple(read)


def test_messages_of_kinds_that_came_later_are_passed_over_and_known_ones_are_still_checked() -> None:
    later = msgspec.msgpack.encode({"type": "weather", "temperature": 21})
    assert decode_from_control(later) == decode_from_node(later) == Unknown("weather")
    for damaged in ({"type": "full", "digest": 5}, {"type": 7}, {}, ["type", "weather"]):
        with pytest.raises(ProtocolError):
            decode_from_control(msgspec.msgpack.encode(damaged))
    with pytest.raises(ProtocolError):
        decode_from_node(msgspec.msgpack.encode({"type": "ack", "version": "soon"}))


def test_fields_of_later_definitions_are_passed_over_by_who_reads_from_an_api_server_and_no_file_may_have_them() -> (
    None
):
    later = {
        "kind": "Tunnel",
        "apiVersion": "edgetun.dev/v1alpha1",
        "metadata": {"name": "shop", "namespace": "team-a"},
        "spec": {
            "hostnames": ["shop.example.com"],
            "origin": {"url": "http://localhost:3000", "warmth": {"degrees": 21}},
            "mood": "fine",
            "routes": [{"path": {"prefix": "/a"}, "cache": {"mode": "disabled", "flavour": "sweet"}}],
        },
    }
    untouched = copy.deepcopy(later)
    passed_over: set[str] = set()
    tunnel, problems = parse_resource(later, passed_over=passed_over)
    assert tunnel is not None
    assert problems == ()
    assert passed_over == {"spec.mood", "spec.origin.warmth", "spec.routes.cache.flavour"}
    assert later == untouched
    plain, problems = parse_resource(later)
    assert plain is None
    assert {problem.reason for problem in problems} == {"UnknownField"}
    later["spec"]["hostnames"] = 5  # type: ignore[index]
    broken, problems = parse_resource(later, passed_over=set())
    assert broken is None
    assert [problem.field for problem in problems] == ["spec.hostnames"]
