"""The store keeps its bounds, never mixes things up, and lets no tenant push out another beyond their share."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.freshness import Timing
from edgetun_exitnode.cache.key import build_key, build_prefix
from edgetun_exitnode.cache.response import StoredResponse
from edgetun_exitnode.cache.store import ENTRY_OVERHEAD_BYTES, MAX_VARIANTS, Entry, Store

RULE = CacheRule()
EACH = 10_000


def entry(tenant="t", size=EACH, at=0.0, secondary=(), lifetime=1e9, body=None) -> Entry:
    response = StoredResponse(200, (), Timing(at, 0.0, lifetime), size, 0.0)
    body = body if body is not None else b"x" * max(0, size - ENTRY_OVERHEAD_BYTES)
    return Entry(tenant, secondary, RULE, response, [body])


def put(store, key, tenant="t", *, now=0.0, names=(), requested_at=None, **more) -> Entry | None:
    one = entry(tenant, at=now, **more)
    return one if store.put(key, one, names, now if requested_at is None else requested_at, now) else None


def test_bytes_are_bounded_with_the_overhead_of_entries_counted():
    store = Store(20 * EACH)
    for number in range(200):
        assert put(store, b"%d" % number) is not None
        assert store.stored_bytes <= store.max_bytes
    assert store.stored_bytes > 15 * EACH
    tiny = Store(100_000)
    for number in range(1000):
        put(tiny, b"%d" % number, size=1, body=b"")
    assert tiny.entry_count <= 100_000 / ENTRY_OVERHEAD_BYTES


def test_what_is_used_outlives_what_is_not():
    store = Store(20 * EACH)
    hot = [put(store, b"hot%d" % number) for number in range(5)]
    for number in range(500):
        for one in hot:
            assert one is not None
            one.is_used = True
        put(store, b"cold%d" % number)
    assert all(b"hot%d" % number in store.resources for number in range(5))


def test_an_object_larger_than_the_bounds_is_refused_and_evicts_nothing():
    store = Store(20 * EACH, tenant_max_bytes=5 * EACH)
    put(store, b"a")
    assert put(store, b"big", size=6 * EACH) is None
    assert b"a" in store.resources
    assert b"big" not in store.resources


def test_a_tenant_over_its_budget_evicts_only_from_itself():
    store = Store(20 * EACH, tenant_max_bytes=5 * EACH)
    for number in range(4):
        put(store, b"quiet%d" % number, "quiet")
    for number in range(100):
        put(store, b"loud%d" % number, "loud")
    assert store.tenant_bytes("quiet") >= 4 * EACH
    assert store.tenant_bytes("loud") <= 5 * EACH


def test_a_flood_of_one_tenant_takes_nothing_from_one_below_its_share():
    store = Store(20 * EACH)
    for number in range(4):
        put(store, b"quiet%d" % number, "quiet")
    for number in range(500):
        put(store, b"loud%d" % number, "loud")
    assert all(b"quiet%d" % number in store.resources for number in range(4))


def test_a_newcomer_takes_room_from_who_holds_most():
    store = Store(20 * EACH)
    for number in range(100):
        put(store, b"loud%d" % number, "loud")
    for number in range(4):
        assert put(store, b"new%d" % number, "new") is not None
    assert all(b"new%d" % number in store.resources for number in range(4))
    assert store.tenant_bytes("loud") < 17 * EACH


def test_room_is_taken_from_who_holds_most_and_not_from_who_came_first():
    store = Store(20 * EACH)
    for number in range(3):
        put(store, b"first%d" % number, "first")
    for number in range(17):
        put(store, b"most%d" % number, "most")
    for number in range(4):
        put(store, b"new%d" % number, "new")
    assert sum(b"first%d" % number in store.resources for number in range(3)) == 3
    assert sum(b"new%d" % number in store.resources for number in range(4)) == 4


def test_taking_out_what_the_hand_or_the_broom_points_at_leaves_them_in_the_queue():
    store = Store(10 * EACH)
    for number in range(30):
        put(store, b"%d" % number)
        shelf = store._shelves["t"]
        for pointed in (shelf.hand, shelf.broom):
            if pointed is not None and number % 3 == 0:
                store.remove(pointed)
    held = [one for resource in store.resources.values() for one in resource.variants.values()]
    assert store.stored_bytes == sum(one.size_bytes for one in held) <= 10 * EACH
    assert store.entry_count == len(held)


def test_bodies_under_way_count_against_the_bounds_and_have_bounds_of_their_own():
    store = Store(20 * EACH)
    for number in range(19):
        put(store, b"%d" % number)
    assert store.reserve("t", 4 * EACH)
    assert store.stored_bytes + store.reserved_bytes <= store.max_bytes
    assert not store.reserve("t", 2 * EACH), "one tenant's may be a quarter"
    assert store.reserve("u", 4 * EACH)
    assert not store.reserve("v", 3 * EACH), "all together may be half"
    store.release("t", 4 * EACH)
    store.release("u", 4 * EACH)
    assert store.reserved_bytes == 0


def test_variants_of_a_resource_are_bounded():
    store = Store(1000 * EACH)
    store.learn_vary(b"k", (b"user-agent",))
    for number in range(100):
        put(store, b"k", names=(b"user-agent",), secondary=(b"%d" % number,))
    assert store.entry_count == MAX_VARIANTS


def test_names_learned_later_drop_what_was_stored_without_them_and_are_remembered():
    store = Store(100 * EACH)
    put(store, b"k")
    assert store.learn_vary(b"k", (b"b",)) == (b"b",)
    assert b"k" not in store.resources
    assert store.learn_vary(b"k", (b"a",)) == (b"a", b"b")
    assert store.learn_vary(b"k", ()) == (b"a", b"b")
    assert put(store, b"k", names=(b"b",), secondary=(None,)) is None, "knew fewer names"
    assert put(store, b"k", names=(b"a", b"b"), secondary=(None, None)) is not None


def test_an_origin_that_varies_on_ever_other_names_is_followed_within_a_bound():
    store = Store(100 * EACH)
    for number in range(100):
        names = store.learn_vary(b"k", (b"n%d" % number,))
        assert b"n%d" % number in names
        assert len(names) <= 16
        assert put(store, b"k", names=names, secondary=tuple(None for _ in names)) is not None
        assert store.entry_count == 1


def test_what_was_asked_for_before_an_invalidation_is_not_stored_after_it():
    store = Store(100 * EACH)
    put(store, b"k")
    store.invalidate(b"k", now=5.0)
    assert b"k" not in store.resources
    assert put(store, b"k", now=6.0, requested_at=4.0) is None
    assert put(store, b"k", now=6.0, requested_at=5.0) is None
    assert put(store, b"k", now=6.0, requested_at=5.5) is not None


def test_the_memory_of_invalidations_is_bounded_and_forgets_to_the_safe_side():
    store = Store(100 * EACH)
    store.invalidate(b"k", now=5.0)
    for number in range(30_000):
        store.invalidate(b"%d" % number, now=6.0)
    assert len(store._invalidated) <= 8192
    assert put(store, b"k", now=7.0, requested_at=4.0) is None


def test_the_later_response_stays():
    store = Store(100 * EACH)
    later = put(store, b"k", now=9.0)
    assert put(store, b"k", now=8.0) is None
    assert store.resources[b"k"].only is later
    assert put(store, b"k", now=10.0) is not None
    assert store.entry_count == 1


def test_what_answers_nobody_any_more_is_swept_out_as_new_entries_come():
    store = Store(1000 * EACH)
    for number in range(50):
        put(store, b"old%d" % number, lifetime=1.0)
    for number in range(60):
        put(store, b"new%d" % number, now=10.0, lifetime=1e9)
    assert store.entry_count <= 65
    assert store.stats.expired >= 45


def test_purges_by_tenant_and_by_prefix():
    store = Store(1000 * EACH)
    for tenant in ("a", "b"):
        for path in (b"/x/1", b"/x/2", b"/y"):
            put(store, build_key(tenant.encode(), b"http", b"h", path), tenant)
    assert store.purge_prefix("a", build_prefix(b"a", b"h", b"/x/"), now=1.0) == 2
    assert put(store, build_key(b"a", b"http", b"h", b"/x/1"), "a", now=2.0, requested_at=0.5) is None
    assert store.purge_tenant("b", now=1.0) == 3
    assert store.entry_count == 1
    assert store.purge_tenant("nobody", now=1.0) == 0


@pytest.mark.parametrize("tenants", [1, 3, 1000])
def test_tenants_without_anything_leave_nothing_behind(tenants):
    store = Store(5 * EACH)
    for number in range(tenants):
        put(store, b"%d" % number, str(number))
        store.reserve(str(number), 10)
        store.release(str(number), 10)
    for key in list(store.resources):
        store.invalidate(key, 1.0)
    assert not store._shelves
    assert not store._filled
    assert store.stored_bytes == 0


class StoreModel(RuleBasedStateMachine):
    """Against a model that remembers the last of everything put: what is found is what was put last, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(12 * EACH, tenant_max_bytes=8 * EACH)
        self.last: dict[tuple[bytes, tuple[bytes, ...]], Entry] = {}
        self.now = 0.0
        self.reserved: list[tuple[str, int]] = []

    keys = st.integers(0, 12).map(lambda n: b"%d" % n)
    tenants = st.sampled_from(["a", "b", "c"])

    @rule(
        key=keys,
        tenant=tenants,
        size=st.integers(0, 3 * EACH),
        used=st.booleans(),
        variant=st.sampled_from([None, b"1", b"2"]),
    )
    def put(self, key, tenant, size, used, variant):
        self.now += 1
        key = tenant.encode() + b"\0" + key
        names = self.store.learn_vary(key, () if variant is None else (b"v",))
        secondary = (variant,) if names else ()
        one = put(self.store, key, tenant, size=size, now=self.now, names=names, secondary=secondary)
        if one is not None:
            one.is_used = used
            self.last[key, secondary] = one

    @rule(key=keys, tenant=tenants)
    def invalidate(self, key, tenant):
        self.now += 1
        key = tenant.encode() + b"\0" + key
        self.store.invalidate(key, self.now)
        for known in [known for known in self.last if known[0] == key]:
            del self.last[known]

    @rule(tenant=tenants)
    def purge(self, tenant):
        self.now += 1
        self.store.purge_tenant(tenant, self.now)
        for known in [known for known in self.last if known[0].startswith(tenant.encode() + b"\0")]:
            del self.last[known]

    @rule(tenant=tenants, size=st.integers(1, 4 * EACH))
    def reserve(self, tenant, size):
        if self.store.reserve(tenant, size):
            self.reserved.append((tenant, size))

    @rule()
    def release(self):
        if self.reserved:
            self.store.release(*self.reserved.pop())

    @invariant()
    def the_bounds_hold_and_nothing_wrong_is_found(self):
        store = self.store
        assert store.stored_bytes + store.reserved_bytes <= store.max_bytes
        entries = [entry for resource in store.resources.values() for entry in resource.variants.values()]
        assert sum(entry.size_bytes for entry in entries) == store.stored_bytes
        assert len(entries) == store.entry_count
        assert sum(size for _, size in self.reserved) == store.reserved_bytes
        for key, resource in store.resources.items():
            assert resource.key == key
            assert resource.variants
            assert (resource.only is not None) == (not resource.vary)
            for secondary, found in resource.variants.items():
                assert found.resource is resource
                assert self.last[key, secondary] is found
        for tenant in ("a", "b", "c"):
            held = sum(entry.size_bytes for entry in entries if entry.tenant == tenant)
            assert held == store.tenant_bytes(tenant) <= store.tenant_max_bytes


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def hot_share_after(store: Store, hot: int, scanned: int, *, asked_meanwhile: int = 0) -> float:
    """Stores `hot` keys, asks for each twice, lets a scan of `scanned` keys pass, and returns which share of the hot is still there."""
    names = [b"hot%d" % number for number in range(hot)]
    kept = {name: put(store, name) for name in names}
    for name in names:
        found = kept[name]
        assert found is not None
        found.is_used = True
    for number in range(scanned):
        put(store, b"scan%d" % number)
        if asked_meanwhile and number % asked_meanwhile == 0:
            found = kept[names[number // asked_meanwhile % hot]]
            if found is not None and found.resource is not None:
                found.is_used = True
    return sum(name in store.resources for name in names) / hot


@pytest.mark.parametrize("scanned", [200, 2_000, 20_000])
def test_a_scan_of_things_asked_for_once_leaves_what_is_used(scanned):
    store = Store(100 * EACH)
    assert hot_share_after(store, 50, scanned) == 1.0
    assert store.stored_bytes <= store.max_bytes


def test_scans_again_and_again_leave_what_is_used_now_and_then():
    store = Store(100 * EACH)
    assert hot_share_after(store, 80, 5_000, asked_meanwhile=5) >= 0.9


def test_what_nobody_uses_any_more_makes_room_in_the_end():
    """A new working set, larger than what is free, takes the place of the old one although it is asked for in turn."""
    store = Store(100 * EACH)
    hot_share_after(store, 80, 0)
    for _ in range(8):
        for number in range(60):
            key = b"new%d" % number
            resource = store.resources.get(key)
            if resource is None:
                put(store, key)
            else:
                next(iter(resource.variants.values())).is_used = True
    assert sum(b"new%d" % number in store.resources for number in range(60)) >= 55
