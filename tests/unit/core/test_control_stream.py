"""The stream between control and exit nodes: deltas that always fit, and a feed that keeps every node up to date."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetun_core.control_stream import (
    Ack,
    Delta,
    Feed,
    Full,
    History,
    NodeHello,
    Presence,
    Resync,
    Standing,
    apply_delta,
    decode_from_control,
    decode_from_node,
    diff_snapshots,
    encode,
    snapshot_digest,
)
from edgetun_core.control_stream.delta import MANY, DeltaMismatch, replace_rules
from edgetun_core.control_stream.feed import KEPT_SNAPSHOTS
from edgetun_core.errors import ProtocolError
from edgetun_core.snapshot import CredentialKey, OriginRule, PoolRule, RouteRule, Snapshot, TunnelRule, find_rule

NAMES = st.sampled_from([f"team/{name}" for name in "abcdefgh"])
TUNNELS = st.dictionaries(
    NAMES,
    st.builds(
        lambda port, hosts, grace: ((OriginRule("default", f"http://localhost:{port}"),), tuple(hosts), grace),
        st.integers(1, 3),
        st.lists(st.sampled_from(["a.example", "b.example"]), unique=True),
        st.sampled_from([5.0, 1.0]),
    ),
).map(
    lambda found: tuple(
        TunnelRule(name, hosts, origins, (RouteRule(),), grace)
        for name, (origins, hosts, grace) in sorted(found.items())
    )
)
SNAPSHOTS = st.builds(
    Snapshot,
    version=st.integers(0, 2**50),
    pool=st.just("default"),
    region=st.just("eu"),
    tunnels=TUNNELS,
    credential_keys=st.lists(st.builds(CredentialKey, st.sampled_from("kq"), st.binary(min_size=4, max_size=4))).map(
        tuple
    ),
    revoked_tokens=st.sets(st.sampled_from(["t1", "t2", "t3"])).map(lambda ids: tuple(sorted(ids))),
    pool_rule=st.builds(PoolRule, max_connections=st.sampled_from([15_000, 5])),
)


def big(count: int = 10_000) -> Snapshot:
    tunnels = tuple(
        TunnelRule(
            f"team-{n:05}/shop",
            (f"shop-{n:05}.example.com",),
            (OriginRule("default", "http://localhost:3000"),),
            (RouteRule(),),
        )
        for n in range(count)
    )
    return Snapshot(1, "default", "eu", tunnels, (CredentialKey("k1", bytes(32)),))


@given(SNAPSHOTS, SNAPSHOTS)
def test_a_delta_applied_to_the_old_snapshot_gives_the_new_one(old: Snapshot, new: Snapshot) -> None:
    base, digest = snapshot_digest(old), snapshot_digest(new)
    sent = decode_from_control(encode(diff_snapshots(old, new, base=base, digest=digest)))
    assert isinstance(sent, Delta)
    after = apply_delta(old, base, sent)
    assert after == new
    assert snapshot_digest(after) == digest


@given(SNAPSHOTS, SNAPSHOTS)
def test_the_digest_tells_contents_apart_and_does_not_look_at_the_version(one: Snapshot, other: Snapshot) -> None:
    same = msgspec.structs.replace(other, version=one.version) == one
    assert (snapshot_digest(one) == snapshot_digest(other)) is same


@settings(max_examples=80)
@given(st.lists(SNAPSHOTS, min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_a_history_that_is_told_what_changed_says_what_one_does_that_compares_everything(
    snapshots: list[Snapshot], rng: random.Random
) -> None:
    told, compares = History(), History()
    digests = [""]
    for snapshot in snapshots:
        before = told.current
        if before is not None and rng.random() < 0.8:
            old, new = ({rule.id: rule for rule in one.tunnels} for one in (before, snapshot))
            changed = {each for each in old | new if old.get(each) != new.get(each)} | {"team/a", "team/none"}
            head = msgspec.structs.replace(snapshot, tunnels=())
            is_new = told.change(head, {each: new.get(each) for each in changed})
        else:
            is_new = told.put(snapshot)
        assert is_new == compares.put(snapshot)
        assert told.digest == compares.digest == snapshot_digest(snapshot)
        assert told.current == compares.current
        assert told.told_version == snapshot.version
        digests.append(told.digest)
        have = rng.choice(digests)
        assert told.message_from(have) == compares.message_from(have)


def test_a_node_far_behind_gets_the_whole_and_one_at_the_edge_of_what_is_kept_a_delta() -> None:
    whole = big(1000)
    history = History()
    history.put(whole)
    head = msgspec.structs.replace(whole, tunnels=())
    digests = [history.digest]
    for n in range(KEPT_SNAPSHOTS):
        rule = msgspec.structs.replace(whole.tunnels[n], force_https=True)
        assert history.change(msgspec.structs.replace(head, version=n + 2), {rule.id: rule})
        digests.append(history.digest)
    assert isinstance(decode_from_control(history.message_from(digests[0])), Full)
    delta = decode_from_control(history.message_from(digests[1]))
    assert isinstance(delta, Delta)
    assert [rule.id for rule in delta.put] == [rule.id for rule in whole.tunnels[1:KEPT_SNAPSHOTS]]


def test_what_was_changed_and_changed_back_is_not_told() -> None:
    whole = big(1000)
    history = History()
    history.put(whole)
    first, second = whole.tunnels[:2]
    head = msgspec.structs.replace(whole, tunnels=())
    base = history.digest
    assert history.change(head, {first.id: None})
    without = history.digest
    assert history.change(head, {first.id: first, second.id: None})
    delta = decode_from_control(history.message_from(base))
    assert isinstance(delta, Delta)
    assert (delta.put, delta.removed) == ((), (second.id,))
    assert history.change(head, {first.id: None, second.id: second})
    assert history.digest == without == snapshot_digest(msgspec.structs.replace(whole, tunnels=whole.tunnels[1:]))
    assert not history.change(head, {first.id: None, second.id: second, "team-x/none": None})


@pytest.mark.parametrize("count", [3, MANY + 50])
def test_rules_are_put_in_and_taken_out_in_order_however_many(count: int) -> None:
    old = big(1000).tunnels
    gone = [rule.id for rule in old[400 : 400 + count]] + ["team-x/never-there"]
    new = [msgspec.structs.replace(rule, force_https=True) for rule in old[:count]]
    new += [msgspec.structs.replace(rule, id=f"{rule.id}-2") for rule in old[-count:]]
    after = replace_rules(old, new, gone)
    wanted = {rule.id: rule for rule in old if rule.id not in gone} | {rule.id: rule for rule in new}
    assert after == tuple(wanted[name] for name in sorted(wanted))
    assert all(find_rule(after, rule.id) is rule for rule in new)
    assert find_rule(after, gone[0]) is None
    assert find_rule((), "team/a") is None


def test_a_delta_that_starts_elsewhere_is_refused() -> None:
    old, new = Snapshot(1, "p", "r"), Snapshot(2, "p", "r", revoked_tokens=("t",))
    delta = diff_snapshots(old, new, base=snapshot_digest(old), digest=snapshot_digest(new))
    with pytest.raises(DeltaMismatch, match="starts from"):
        apply_delta(new, snapshot_digest(new), delta)


def test_one_changed_tunnel_of_ten_thousand_travels_in_less_than_two_kibibytes() -> None:
    old = big()
    changed = msgspec.structs.replace(old.tunnels[5000], hostnames=("other.example.com", "shop-05000.example.com"))
    new = msgspec.structs.replace(old, version=2, tunnels=(*old.tunnels[:5000], changed, *old.tunnels[5001:]))
    history = History()
    history.put(old)
    base = history.digest
    assert history.put(new)
    assert len(history.message_from(base)) < 2048
    assert len(history.message_from("unknown")) > 100_000


@pytest.mark.parametrize("garbage", [b"", b"\xc1", encode(Standing(1, "x"))[:-1], b"\x80", encode(Ack(1, "x"))])
def test_what_is_no_message_of_control_is_a_protocol_error(garbage: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message of control"):
        decode_from_control(garbage)


@given(st.binary(max_size=200))
def test_no_garbage_of_a_node_raises_anything_else(garbage: bytes) -> None:
    try:
        decode_from_node(garbage)
    except ProtocolError:
        pass


def test_messages_of_a_later_version_are_read() -> None:
    later = {"type": "presence", "reset": True, "weather": "fine"}
    assert decode_from_node(msgspec.msgpack.encode(later)) == Presence(reset=True)


class Node:
    """An exit node as far as the stream goes."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.digest = ""

    def hello(self) -> NodeHello:
        version = 0 if self.snapshot is None else self.snapshot.version
        return NodeHello("default", "eu", "n1", have_version=version, have_digest=self.digest)

    def take(self, message: bytes) -> Ack | Resync:
        match decode_from_control(message):
            case Full(snapshot, digest):
                self.snapshot, self.digest = snapshot, digest
            case Delta() as delta:
                if self.snapshot is None or delta.base != self.digest:
                    return Resync()
                self.snapshot, self.digest = apply_delta(self.snapshot, self.digest, delta), delta.digest
            case Standing(_, digest):
                assert digest == self.digest
            case other:
                raise AssertionError(other)
        assert self.snapshot is not None
        return Ack(self.snapshot.version, self.digest)


@settings(max_examples=150)
@given(st.lists(SNAPSHOTS, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_whatever_is_lost_or_late_a_node_ends_with_the_present_snapshot(
    snapshots: list[Snapshot], rng: random.Random
) -> None:
    """Streams break, control restarts with an empty history, nodes restart with an old file: any order of it."""
    history, node = History(), Node()
    feed = Feed(history)
    wire: list[bytes] = []

    def sent(message: bytes | None) -> None:
        if message is not None:
            assert not wire, "more than one change is on its way"
            wire.append(message)

    def answer() -> None:
        reply = node.take(wire.pop())
        sent(feed.lost(reply) if isinstance(reply, Resync) else feed.acknowledged(reply))

    for snapshot in snapshots:
        match rng.randrange(4):
            case 0:  # the stream breaks and comes back
                wire.clear()
                feed = Feed(history)
                sent(feed.opened(node.hello()))
            case 1:  # control starts anew
                wire.clear()
                history = History()
                feed = Feed(history)
                sent(feed.opened(node.hello()))
            case 2:
                if wire:
                    answer()
            case _:
                pass
        history.put(snapshot)
        sent(feed.published())
    feed_was_opened = rng.random() < 0.5
    if not feed_was_opened or not feed.is_current:
        wire.clear()
        feed = Feed(history)
        sent(feed.opened(node.hello()))
    for _ in range(3):
        if wire:
            answer()
    assert node.snapshot is not None
    assert history.current is not None
    assert snapshot_digest(node.snapshot) == history.digest
    assert feed.is_current


def test_a_message_is_encoded_once_for_a_thousand_nodes() -> None:
    history = History()
    history.put(big(10))
    feeds = [Feed(history) for _ in range(1000)]
    messages: list[Any] = [feed.opened(NodeHello("default", "eu", f"n{n}")) for n, feed in enumerate(feeds)]
    assert all(message is messages[0] for message in messages)


def test_what_changes_before_the_acknowledgement_is_told_in_one_step() -> None:
    history, node = History(), Node()
    history.put(Snapshot(1, "default", "eu"))
    feed = Feed(history)
    first = feed.opened(node.hello())
    assert first is not None
    for version in range(2, 20):
        history.put(Snapshot(version, "default", "eu", revoked_tokens=(f"t{version}",)))
        assert feed.published() is None
    reply = node.take(first)
    assert isinstance(reply, Ack)
    second = feed.acknowledged(reply)
    assert second is not None
    assert node.take(second) == Ack(19, history.digest)
    assert feed.acknowledged(Ack(19, history.digest)) is None
