"""The store: entries by primary and secondary key, bounded in bytes, with fair shares for tenants. Hot path: `find`.

Eviction is SIEVE per tenant: a queue in order of arrival, one bit per entry that a hit sets, and a hand that walks from old to
new, clears the bit of what was used and evicts what was not. A hit moves nothing. Everything is O(1) amortised.

Admission. A newcomer begins without the bit, so a scan of things asked for once evicts only itself. One that was evicted lately and is
asked for again begins with it: that is no scan but a working set that did not fit in yet, and the hand moves on to older ones.

A store of 0 bytes stores nothing, and lets bodies be shared while they come in, within `IN_FLIGHT_WITHOUT_STORE_BYTES`.

Bounds. Bytes stored and bytes reserved by bodies that are still coming in are together at most `max_bytes`; reserved ones at
most half of it, one tenant's at most a quarter. A tenant holds at most `tenant_max_bytes`. When the store is full, whoever
brings more than an equal share evicts from their own; otherwise the room is taken from a tenant that holds most, within a
factor of two. So a tenant that holds less than half an equal share never loses an entry to another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edgetun_core.http.message import Fields, ResponseHead
from edgetun_core.memo import Memo
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.body import CHUNK_OVERHEAD_BYTES, Body, build_stored_body
from edgetun_exitnode.cache.disk import LEAST_LIFETIME_S, REWRITE_S, DiskEntry, DiskTier, StoredHead
from edgetun_exitnode.cache.key import HEAD_SUFFIX, PART_SUFFIX, Secondary
from edgetun_exitnode.cache.ranges import Span
from edgetun_exitnode.cache.response import StoredResponse

ENTRY_OVERHEAD_BYTES: Final = 2048
"""What an entry costs beside its body and fields: objects, links, prepared heads."""
FIELD_OVERHEAD_BYTES: Final = 150
MAX_KNOWN_NAMES: Final = 16
"""How many names a key may be known to vary on, over all of its responses."""
MAX_VARIANTS: Final = 32
"""Entries of one primary key; the oldest goes when one more comes."""
IN_FLIGHT_WITHOUT_STORE_BYTES: Final = 64 * 1024 * 1024
KEPT_FOR_VALIDATION_S: Final = 86_400.0
"""How long beyond its use a response with a validator is kept when nobody asks for it: a 304 makes it fresh again."""
MAX_TAGS: Final = 128
MAX_TAG_BYTES: Final = 1024
"""Further and longer tags of a response are not heeded."""
TAG_OVERHEAD_BYTES: Final = 250
_TAG_FIELDS: Final = {b"surrogate-key": b" ", b"cache-tag": b","}
GHOSTS: Final = 16_384
"""Half of how many evicted keys are remembered."""
_MEMORY: Final = 8192
"""How many keys' Vary and invalidations are remembered."""
_NEVER: Final = float("-inf")
_NOT_RENDERED: Final = ResponseHead(200, ())


def fields_bytes(fields: Fields) -> int:
    """What fields cost, tags with their places in the index."""
    return sum(
        len(name) + len(value) * (3 if name in _TAG_FIELDS else 1) + FIELD_OVERHEAD_BYTES for name, value in fields
    ) + TAG_OVERHEAD_BYTES * len(response_tags(fields))


def response_tags(fields: Fields) -> tuple[bytes, ...]:
    """The tags by which an origin lets responses be purged: `Surrogate-Key`, between spaces, and `Cache-Tag`, between commas."""
    found: dict[bytes, None] = {}
    for name, value in fields:
        separator = _TAG_FIELDS.get(name)
        if separator is not None:
            for part in value.split(separator):
                tag = part.strip(b" \t")
                if tag and len(tag) <= MAX_TAG_BYTES and len(found) < MAX_TAGS:
                    found[tag] = None
    return tuple(found)


class Entry:
    """One stored response with its complete body: `whole` when it is in one piece."""

    __slots__ = (
        "asked_again_at",
        "failed_until",
        "head_now",
        "head_until",
        "is_used",
        "newer",
        "older",
        "pieces",
        "resource",
        "response",
        "rule",
        "secondary",
        "size_bytes",
        "spans",
        "tags",
        "tenant",
        "whole",
    )

    def __init__(
        self, tenant: str, secondary: Secondary, rule: CacheRule, response: StoredResponse, pieces: list[bytes]
    ) -> None:
        self.tenant = tenant
        self.secondary = secondary
        self.rule = rule
        self.response = response
        self.whole: bytes | None = pieces[0] if len(pieces) == 1 else (b"" if not pieces else None)
        self.pieces = pieces
        self.spans: tuple[Span, ...] = ()
        """Of a partial response: where each piece lies in the whole."""
        self.tags = response_tags(response.fields)
        self.size_bytes = (
            ENTRY_OVERHEAD_BYTES
            + sum(len(piece) + CHUNK_OVERHEAD_BYTES for piece in pieces)
            + fields_bytes(response.fields)
            + sum(len(value) for value in secondary if value is not None)
        )
        self.head_now = _NOT_RENDERED
        self.head_until = _NEVER
        """Until when `head_now` is right; also never beyond the end of freshness, so one comparison covers both."""
        self.asked_again_at = _NEVER
        """Not before this moment is the origin asked again in the background."""
        self.failed_until = _NEVER
        """Until this moment the origin is not asked again after an error."""
        self.is_used = False
        self.resource: Resource | None = None
        self.older: Entry | None = None
        self.newer: Entry | None = None

    @property
    def useful_until(self) -> float:
        """The moment from which it can answer nobody, not even after the origin confirmed it."""
        more_s = KEPT_FOR_VALIDATION_S if self.response.can_be_validated else 0.0
        return self.response.timing.useful_until + more_s

    @property
    def body(self) -> Body:
        """The body as readers take it."""
        return build_stored_body(self.pieces)


class Resource:
    """All stored responses of one primary key. `vary` is the union of what they vary on, so one secondary key finds them."""

    __slots__ = ("key", "only", "variants", "vary")

    def __init__(self, key: bytes, vary: tuple[bytes, ...]) -> None:
        self.key = key
        self.vary = vary
        self.variants: dict[Secondary, Entry] = {}
        self.only: Entry | None = None
        """The one entry, when nothing varies."""


class _Shelf:
    """One tenant's entries in order of arrival, and its hand and broom."""

    __slots__ = ("broom", "bucket", "hand", "newest", "oldest", "reserved_bytes", "stored_bytes", "tagged", "tenant")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.stored_bytes = 0
        self.reserved_bytes = 0
        self.bucket = 0
        self.oldest: Entry | None = None
        self.newest: Entry | None = None
        self.hand: Entry | None = None
        self.broom: Entry | None = None
        self.tagged: dict[bytes, dict[Entry, None]] = {}
        """Entries by tag, for purging."""

    def tag(self, entry: Entry) -> None:
        for tag in entry.tags:
            self.tagged.setdefault(tag, {})[entry] = None

    def untag(self, entry: Entry) -> None:
        for tag in entry.tags:
            entries = self.tagged[tag]
            del entries[entry]
            if not entries:
                del self.tagged[tag]

    def add(self, entry: Entry) -> None:
        self.tag(entry)
        entry.older = self.newest
        if self.newest is not None:
            self.newest.newer = entry
        else:
            self.oldest = entry
        self.newest = entry
        self.stored_bytes += entry.size_bytes

    def take(self, entry: Entry) -> None:
        self.untag(entry)
        if self.hand is entry:
            self.hand = entry.newer
        if self.broom is entry:
            self.broom = entry.newer
        if entry.older is not None:
            entry.older.newer = entry.newer
        else:
            self.oldest = entry.newer
        if entry.newer is not None:
            entry.newer.older = entry.older
        else:
            self.newest = entry.older
        entry.older = entry.newer = None
        self.stored_bytes -= entry.size_bytes

    def choose_victim(self) -> Entry | None:
        """SIEVE's hand: the next entry not used since it last came by."""
        entry = self.hand or self.oldest
        while entry is not None and entry.is_used:
            entry.is_used = False
            entry = entry.newer or self.oldest
        if entry is not None:
            self.hand = entry.newer
        return entry

    def sweep(self, now: float) -> list[Entry]:
        """Looks at two entries and returns those that answer nobody any more."""
        useless: list[Entry] = []
        for _ in range(2):
            entry = self.broom or self.oldest
            if entry is None or entry in useless:
                break
            self.broom = entry.newer
            if entry.useful_until <= now:
                useless.append(entry)
        return useless


@dataclass(slots=True)
class StoreStats:
    """Plain counts for the metrics."""

    stores: int = 0
    evictions: int = 0
    expired: int = 0
    refused: int = 0


class Store:
    """See the top of the file. One store per exit node, shared by all tunnels; used on the event loop only."""

    def __init__(self, max_bytes: int, *, tenant_max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.tenant_max_bytes = min(tenant_max_bytes or max_bytes, max_bytes)
        self.resources: dict[bytes, Resource] = {}
        self.stored_bytes = 0
        self.reserved_bytes = 0
        self.entry_count = 0
        self.stats = StoreStats()
        self.disk: DiskTier | None = None
        """Where what is stored outlives the process, if anywhere; set by `use_disk`."""
        self._wall_clock: Callable[[], float] = time.time
        self._clock: Callable[[], float] = time.monotonic
        self._shelves: dict[str, _Shelf] = {}
        self._buckets: list[dict[_Shelf, None]] = [{} for _ in range(64)]
        self._filled = 0
        """Bit n is set when bucket n holds a shelf; a shelf stands in the bucket of its stored bytes' bit length."""
        # By hash, for keys are as long as visitors make them. Keys that collide are varied or refused needlessly, never mixed up.
        self._vary: Memo[int, tuple[bytes, ...]] = Memo(_MEMORY)
        self._evicted: Memo[int, bool] = Memo(GHOSTS)
        """Hashes of keys that were evicted lately."""
        self._invalidated: dict[int, float] = {}
        self._all_invalidated_at = _NEVER

    def use_disk(self, disk: DiskTier, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        """From now on what is stored goes to disk too, and what is taken out goes from there."""
        self.disk = disk
        self._clock = clock
        self._wall_clock = wall_clock

    def _write(self, key: bytes, names: tuple[bytes, ...], entry: Entry, *, is_same_body: bool = False) -> None:
        """Has an entry written, but not the same hot one every second."""
        disk, response = self.disk, entry.response
        timing = response.timing
        now = self._clock()
        if (
            disk is None
            or entry.spans
            or response.is_head_only
            or (timing.useful_until - now < LEAST_LIFETIME_S and not response.can_be_validated)
        ):
            return
        present = disk.get(key, entry.secondary)
        is_short_lived = timing.lifetime_s < LEAST_LIFETIME_S
        if (
            present is not None
            and (is_same_body or is_short_lived)
            and now - present.written_at < REWRITE_S
            and present.tags == entry.tags
        ):
            return  # what is there is validated after a restart, and does
        head = StoredHead(
            entry.tenant, key, names, entry.secondary, entry.rule, response.status, response.fields, response.length,
            response.answers_authorized, entry.tags, self._wall_clock() - (now - timing.received_at),
            timing.age_on_arrival_s, timing.lifetime_s, timing.counts_from_arrival, timing.stale_while_revalidate_s,
            timing.stale_if_error_s, timing.may_be_stale, timing.is_immutable,
        )  # fmt: skip
        disk.write(head, entry.pieces, now)

    # -- finding ------------------------------------------------------------------------------------------------------

    def vary_of(self, key: bytes) -> tuple[bytes, ...]:
        """The names that responses of this key are known to vary on."""
        resource = self.resources.get(key)
        if resource is not None:
            return resource.vary
        return self._vary.get(hash(key)) or ()

    def learn_vary(self, key: bytes, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Adds names to what a key varies on, and returns them all; entries that know fewer names are dropped.

        Names are not taken away while the key is known (but for a bound on them): a response that does not vary answers a narrower circle than it
        could, and never a wrong one.
        """
        known = self.vary_of(key)
        if set(names) <= set(known):
            return known
        union = tuple(sorted({*known, *names}))
        if len(union) > MAX_KNOWN_NAMES:
            union = names  # begin anew; what is stored goes, as below
        resource = self.resources.get(key)
        if resource is not None:
            for entry in list(resource.variants.values()):
                self.remove(entry)
        self._vary.put(hash(key), union)
        return union

    # -- filling ------------------------------------------------------------------------------------------------------

    def put(
        self,
        key: bytes,
        entry: Entry,
        names: tuple[bytes, ...],
        requested_at: float,
        now: float,
        *,
        is_on_disk: bool = False,
    ) -> bool:
        """Stores an entry under `key` and its secondary key for `names`; False when it may not or cannot be.

        It may not when the key was invalidated after the entry was asked for, when something later is there, or when other
        names have been learned meanwhile. It cannot when it is larger than the bounds.
        """
        shelf = self._shelf(entry.tenant)
        if (
            self.invalidated_at(key, entry.tenant) >= requested_at
            or self.vary_of(key) != names
            or not self._make_room(shelf, entry.size_bytes)
        ):
            self.stats.refused += 1
            self._drop_if_empty(shelf)
            return False
        resource = self.resources.get(key)
        if resource is None:
            resource = self.resources[key] = Resource(key, names)
        present = resource.variants.get(entry.secondary)
        if present is not None:
            if present.response.timing.received_at > entry.response.timing.received_at:
                self.stats.refused += 1
                return False
            self._unlink(present)
        elif len(resource.variants) >= MAX_VARIANTS:
            self._unlink(next(iter(resource.variants.values())))
            self.stats.evictions += 1
        self.resources[key] = resource  # unlinking may have emptied and dropped it
        shelf = self._shelf(entry.tenant)
        resource.variants[entry.secondary] = entry
        if not names:
            resource.only = entry
        entry.resource = resource
        shelf.add(entry)
        self._place(shelf)
        self.stored_bytes += entry.size_bytes
        self.entry_count += 1
        self.stats.stores += 1
        if self._evicted.get(hash(key)):
            entry.is_used = True
        for useless in shelf.sweep(now):
            self._unlink(useless)
            self.stats.expired += 1
        if self.disk is not None and not is_on_disk:
            self._write(key, names, entry)
        return True

    def renew(self, entry: Entry, response: StoredResponse) -> bool:
        """Puts a validated response in the place of what the entry held, with the same body; False when it was taken out meanwhile.

        An entry that was invalidated or purged is out, so a 304 that was asked for before cannot bring it back.
        """
        if entry.resource is None:
            return False
        shelf = self._shelves[entry.tenant]
        more_bytes = fields_bytes(response.fields) - fields_bytes(entry.response.fields)
        shelf.untag(entry)
        if response.encodings is None:
            response.encodings = entry.response.encodings  # of the same body: what was compressed once stays compressed
        entry.response = response
        entry.tags = response_tags(response.fields)
        shelf.tag(entry)
        entry.head_until = _NEVER
        entry.asked_again_at = entry.failed_until = _NEVER
        entry.size_bytes += more_bytes
        shelf.stored_bytes += more_bytes
        self.stored_bytes += more_bytes
        self._place(shelf)
        resource = entry.resource
        if more_bytes > 0 and not self._make_room(shelf, 0):
            self.remove(entry)
        if self.disk is not None:
            self._write(resource.key, resource.vary, entry, is_same_body=True)
        return True

    def reserve(self, tenant: str, size_bytes: int) -> bool:
        """Takes room for a body that is coming in; False when there is none, and nothing was taken."""
        shelf = self._shelf(tenant)
        bound = self.max_bytes // 2 or IN_FLIGHT_WITHOUT_STORE_BYTES
        if (
            self.reserved_bytes + size_bytes > bound
            or shelf.reserved_bytes + size_bytes > bound // 2
            or (self.max_bytes and not self._make_room(shelf, size_bytes))
        ):
            self._drop_if_empty(shelf)
            return False
        shelf = self._shelf(tenant)  # making room may have emptied and dropped it
        shelf.reserved_bytes += size_bytes
        self.reserved_bytes += size_bytes
        return True

    def release(self, tenant: str, size_bytes: int) -> None:
        """Gives back what `reserve` took."""
        shelf = self._shelf(tenant)
        shelf.reserved_bytes -= size_bytes
        self.reserved_bytes -= size_bytes
        self._drop_if_empty(shelf)

    # -- taking out ---------------------------------------------------------------------------------------------------

    def remove(self, entry: Entry) -> None:
        """Takes an entry out; does nothing when it is out already."""
        resource = entry.resource
        if resource is not None:
            self._unlink(entry)
            if self.disk is not None:
                self.disk.remove_key(resource.key)

    def drop_parts(self, key: bytes) -> None:
        """The whole is stored: parts of it are of no use."""
        self._remove_resource(key + PART_SUFFIX)

    def invalidate(self, key: bytes, now: float) -> None:
        """Drops what is stored for a URI and keeps out what was asked for before now (RFC 9111 §4.4)."""
        for each in (key, key + HEAD_SUFFIX, key + PART_SUFFIX):
            self._remove_resource(each)
            self._remember_invalidation(each, now)
        if self.disk is not None:
            self.disk.remove_key(key)

    def purge_prefix(self, tenant: str, prefix: bytes | tuple[bytes, ...], now: float) -> int:
        """Drops all keys of a tenant that begin with `prefix`, or one of them (see `key.build_prefix`); returns how many entries went.

        Bodies of the tenant that are under way are not stored either: they may belong to it.
        """
        before = self.entry_count
        shelf = self._shelves.get(tenant)
        entry = shelf.oldest if shelf is not None else None
        while entry is not None:
            newer = entry.newer
            if entry.resource is not None and entry.resource.key.startswith(prefix):
                self._unlink(entry)
            entry = newer
        return self._purged(tenant, now, before, lambda on_disk: on_disk.key.startswith(prefix))

    def purge_tag(self, tenant: str, tag: bytes, now: float) -> int:
        """Drops all responses of a tenant that the origin gave this tag (`response_tags`); returns how many entries went."""
        before = self.entry_count
        shelf = self._shelves.get(tenant)
        for entry in list(shelf.tagged.get(tag, ())) if shelf is not None else ():
            self._unlink(entry)
        return self._purged(tenant, now, before, lambda on_disk: tag in on_disk.tags)

    def _purged(self, tenant: str, now: float, before: int, is_meant: Callable[[DiskEntry], bool]) -> int:
        """The end of every purge: the disk, what is on its way, and the count of what is gone."""
        self._remember_invalidation(tenant.encode(), now)
        in_memory = before - self.entry_count
        on_disk = self.disk.remove_of(tenant, is_meant) if self.disk is not None else 0
        return max(in_memory, on_disk)  # most of what is in memory is on disk too

    def purge_tenant(self, tenant: str, now: float) -> int:
        """Drops everything of a tenant; returns how many entries went."""
        before = self.entry_count
        shelf = self._shelves.get(tenant)
        while shelf is not None and shelf.oldest is not None:
            self._unlink(shelf.oldest)
        return self._purged(tenant, now, before, lambda _: True)

    def invalidated_at(self, key: bytes, tenant: str) -> float:
        """When the key or all of its tenant's were last invalidated; what was asked for by then must not be stored."""
        invalidated = self._invalidated
        if not invalidated:
            return self._all_invalidated_at
        return max(
            self._all_invalidated_at, invalidated.get(hash(key), _NEVER), invalidated.get(hash(tenant.encode()), _NEVER)
        )

    def tenant_bytes(self, tenant: str) -> int:
        """Bytes stored for a tenant."""
        shelf = self._shelves.get(tenant)
        return shelf.stored_bytes if shelf is not None else 0

    # -- inside -------------------------------------------------------------------------------------------------------

    def _remember_invalidation(self, key: bytes, now: float) -> None:
        if len(self._invalidated) >= _MEMORY:
            # Forgetting one could let an old body in; taking all as invalidated now cannot.
            self._invalidated.clear()
            self._all_invalidated_at = now
        self._invalidated[hash(key)] = now

    def _remove_resource(self, key: bytes) -> None:
        resource = self.resources.get(key)
        if resource is not None:
            for entry in list(resource.variants.values()):
                self._unlink(entry)

    def _make_room(self, shelf: _Shelf, need: int) -> bool:
        if need > self.tenant_max_bytes or self.reserved_bytes + need > self.max_bytes:
            return False
        while shelf.stored_bytes + need > self.tenant_max_bytes:
            if not self._evict_from(shelf):
                return False
        while self.stored_bytes + self.reserved_bytes + need > self.max_bytes:
            fair_bytes = self.max_bytes // max(1, len(self._shelves))
            if shelf.stored_bytes + need > fair_bytes and self._evict_from(shelf):
                continue
            if not self._evict_from(self._largest()):
                return False
        return True

    def _largest(self) -> _Shelf | None:
        return next(iter(self._buckets[self._filled.bit_length() - 1])) if self._filled else None

    def _evict_from(self, shelf: _Shelf | None) -> bool:
        entry = shelf.choose_victim() if shelf is not None else None
        if entry is None:
            return False
        resource = entry.resource
        if resource is not None:
            self._evicted.put(hash(resource.key), True)
        self._unlink(entry)
        self.stats.evictions += 1
        return True

    def _unlink(self, entry: Entry) -> None:
        resource = entry.resource
        assert resource is not None
        entry.resource = None
        del resource.variants[entry.secondary]
        if resource.only is entry:
            resource.only = None
        if not resource.variants:
            del self.resources[resource.key]
            if resource.vary:
                self._vary.put(hash(resource.key), resource.vary)
        shelf = self._shelves[entry.tenant]
        shelf.take(entry)
        self._place(shelf)
        self.stored_bytes -= entry.size_bytes
        self.entry_count -= 1
        self._drop_if_empty(shelf)

    def _shelf(self, tenant: str) -> _Shelf:
        shelf = self._shelves.get(tenant)
        if shelf is None:
            shelf = self._shelves[tenant] = _Shelf(tenant)
        return shelf

    def _drop_if_empty(self, shelf: _Shelf) -> None:
        if shelf.oldest is None and not shelf.reserved_bytes and self._shelves.get(shelf.tenant) is shelf:
            del self._shelves[shelf.tenant]

    def _place(self, shelf: _Shelf) -> None:
        bucket = shelf.stored_bytes.bit_length()
        if bucket == shelf.bucket:
            return
        if shelf.bucket:
            shelves = self._buckets[shelf.bucket]
            del shelves[shelf]
            if not shelves:
                self._filled &= ~(1 << shelf.bucket)
        if bucket:
            self._buckets[bucket][shelf] = None
            self._filled |= 1 << bucket
        shelf.bucket = bucket
