"""What a stage finds in the store and puts there: selection, validation, parts, files read back. No exchanges here.

One per stage: it knows the rule that entries are stored under, and whose they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from edgetun_core.http.message import ResponseHead
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.body import build_pieces
from edgetun_exitnode.cache.directives import NO_REQUEST_DIRECTIVES, RequestDirectives
from edgetun_exitnode.cache.disk import Loaded
from edgetun_exitnode.cache.freshness import (
    Fresh,
    Stale,
    Storable,
    Timing,
    current_age_s,
    decide_freshness,
    decide_storable,
)
from edgetun_exitnode.cache.key import PART_SUFFIX, QueryFilter, build_host
from edgetun_exitnode.cache.parts import MAX_SPANS, Part, are_of_one, combine, find_span
from edgetun_exitnode.cache.ranges import Span
from edgetun_exitnode.cache.response import StoredResponse, matches_if_range
from edgetun_exitnode.cache.stats import CacheStats
from edgetun_exitnode.cache.store import Entry, Store
from edgetun_exitnode.cache.validation import Conditions, build_conditions, decide_freshened_by_head, update_fields
from edgetun_exitnode.cache.view import RequestView

if TYPE_CHECKING:
    from edgetun_exitnode.cache.flight import Flight

RETRY_S: Final = 1.0
"""After a failed fetch, how long a stale response answers without asking the origin again."""


class Stored:
    """See the top of the file."""

    __slots__ = ("_query", "clock", "may_store", "rule", "stats", "store", "tenant", "wall_clock")

    def __init__(
        self,
        rule: CacheRule,
        store: Store,
        tenant: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        stats: CacheStats,
        query: QueryFilter,
    ) -> None:
        self.rule = rule
        self.store = store
        self.tenant = tenant
        self.clock = clock
        self.wall_clock = wall_clock
        self.stats = stats
        self.may_store = rule.mode != "off" and store.max_bytes > 0
        self._query = query

    def find_part(self, view: RequestView, now: float) -> tuple[Entry, int, Span] | None:
        """A fresh part that holds all of the range asked for: where, which piece, and the range (RFC 9111 §3.3)."""
        resource = self.store.resources.get(view.key + PART_SUFFIX)
        wanted = view.byte_range
        if resource is None or wanted is None or wanted.more or view.condition is not None:
            return None
        entry = resource.variants.get(view.secondary(resource.vary))
        if entry is None or entry.rule is not self.rule:
            return None
        response = entry.response
        if not isinstance(decide_freshness(response.timing, view.directives, now), Fresh):
            return None
        span = wanted.resolve(response.length) if matches_if_range(response, wanted) else None
        number = find_span(entry.spans, span) if span is not None else None
        return (entry, number, span) if span is not None and number is not None else None

    def find(self, view: RequestView) -> tuple[Entry | None, bytes]:
        """The stored response that fits a request, fresh or not; and why it is forwarded when there is none."""
        for key in (view.key, view.head_key) if view.is_head else (view.key,):
            resource = self.store.resources.get(key)
            if resource is None:
                continue
            entry = resource.variants.get(view.secondary(resource.vary))
            if entry is None:
                return None, b"fwd=vary-miss"
            if entry.rule is not self.rule:
                if entry.rule != self.rule:
                    # Stored under another configuration: what that one allowed says nothing about this one.
                    self.store.remove(entry)
                    continue
                entry.rule = self.rule
            if view.is_solo and not entry.response.answers_authorized:
                return None, b"fwd=bypass"
            return entry, b""
        return None, b"fwd=uri-miss"

    def can_be_validated(self, view: RequestView) -> bool:
        """The origin can be asked to confirm the stored response that fits this request."""
        if not self.may_store:
            return False
        entry, _ = self.find(view)
        return entry is not None and entry.response.can_be_validated

    def conditions_for(self, view: RequestView) -> tuple[Conditions | None, dict[StoredResponse, Entry]]:
        """What to ask the origin to confirm, and the entries that it may confirm (RFC 9111 §4.3.1)."""
        entry, _ = self.find(view)
        resource = self.store.resources.get(view.key)
        if resource is None:
            return None, {}
        entries = {each.response: each for each in resource.variants.values() if each.rule is self.rule}
        if view.is_solo:
            entries = {response: each for response, each in entries.items() if response.answers_authorized}
        conditions = build_conditions(entry.response if entry is not None else None, tuple(reversed(entries)))
        return conditions, entries if conditions is not None else {}

    def freshen_by_head(self, view: RequestView, head: ResponseHead, requested_at: float, now: float) -> None:
        """A 200 to a HEAD confirms the stored GET, or makes it stale (RFC 9111 §4.3.5)."""
        if head.status != 200 or not self.may_store:
            return
        resource = self.store.resources.get(view.key)
        entry = resource.variants.get(view.secondary(resource.vary)) if resource is not None else None
        if entry is None or entry.rule is not self.rule or entry.response.status != 200:
            return
        stored = entry.response
        if not decide_freshened_by_head(stored, head):
            self.store.renew(entry, stored.with_timing(self.stale_timing(stored, now), self.wall_clock()))
            return
        merged = ResponseHead(200, update_fields(stored.fields, head.fields, self.wall_clock()))
        verdict = decide_storable(
            self.rule,
            view.fetch_head,
            self.request_directives(view),
            merged,
            requested_at=requested_at,
            received_at=now,
            wall_s=self.wall_clock(),
        )
        if not isinstance(verdict, Storable):
            self.store.remove(entry)
        else:
            renewed = StoredResponse(200, verdict.fields, verdict.timing, stored.length, self.wall_clock())
            renewed.answers_authorized, renewed.key_parameter = verdict.answers_authorized, stored.key_parameter
            self.store.renew(entry, renewed)

    def stale_timing(self, response: StoredResponse, now: float) -> Timing:
        """What is known of a response, with nothing left of its freshness."""
        return Timing(now, current_age_s(response.timing, now), 0.0, may_be_stale=False)

    def find_for_error(self, view: RequestView, now: float) -> Entry | None:
        """The stored response that may answer although the origin failed (RFC 5861 §4)."""
        if not self.may_store:
            return None
        entry, _ = self.find(view)
        if entry is None:
            return None
        freshness = decide_freshness(entry.response.timing, view.directives, now)
        if isinstance(freshness, Stale) and freshness.may_serve_on_error:
            entry.failed_until = now + RETRY_S
            return entry
        return None

    def forget_stale(self, view: RequestView) -> None:
        """The origin's newest response may not be stored: what is stored is not what it would say."""
        entry, _ = self.find(view)
        if entry is not None:
            self.store.remove(entry)

    def put(self, flight: Flight, response: StoredResponse, now: float) -> None:
        """Stores a complete response."""
        if not self.may_store:
            return
        view = flight.view
        pieces = build_pieces(flight.body.chunks)
        entry = Entry(self.tenant, view.secondary(flight.names), self.rule, response, pieces)
        if self.store.put(flight.key, entry, flight.names, flight.requested_at, now):
            self.store.drop_parts(flight.key)
            self.stats.stores += 1
        else:
            self.stats.not_stored += 1

    def put_part(
        self, view: RequestView, response: StoredResponse, names: tuple[bytes, ...], part: Part, requested_at: float
    ) -> None:
        """Stores a complete part, with what is stored already where they belong together (RFC 9111 §3.4)."""
        now = self.clock()
        key = view.key + PART_SUFFIX
        names = self.store.learn_vary(key, names)
        secondary = view.secondary(names)
        resource = self.store.resources.get(key)
        present = resource.variants.get(secondary) if resource is not None else None
        parts: tuple[Part, ...] = (part,)
        if present is not None and present.rule is self.rule and are_of_one(present.response, response):
            known = tuple((span[0], piece) for span, piece in zip(present.spans, present.pieces, strict=True))
            together = combine(known, part)
            if sum(len(data) for _, data in together) <= self.rule.max_object_bytes and len(together) <= MAX_SPANS:
                parts = together
                fields = update_fields(present.response.fields, response.fields, self.wall_clock())
                response = StoredResponse(200, fields, response.timing, response.length, self.wall_clock())
        response.key_parameter = self.key_parameter(view)
        if len(parts) == 1 and len(parts[0][1]) == response.length:
            if present is not None:
                self.store.remove(present)
            response.state_length()
            whole_names = self.store.learn_vary(view.key, names)
            entry = Entry(self.tenant, view.secondary(whole_names), self.rule, response, build_pieces([parts[0][1]]))
            is_stored = self.store.put(view.key, entry, whole_names, requested_at, now)
        else:
            entry = Entry(self.tenant, secondary, self.rule, response, [data for _, data in parts])
            entry.whole = None
            entry.spans = tuple((first, first + len(data) - 1) for first, data in parts)
            is_stored = self.store.put(key, entry, names, requested_at, now)
        if is_stored:
            self.stats.stores += 1
        else:
            self.stats.not_stored += 1

    def take_from_disk(self, loaded: Loaded, since: float) -> bool:
        """Puts what was read into memory; False when it is of no use."""
        head, now = loaded.head, self.clock()
        timing = head.timing(now, self.wall_clock())
        if timing is None or head.rule != self.rule:
            return False
        response = StoredResponse(head.status, head.fields, timing, head.length, self.wall_clock())
        response.answers_authorized = head.answers_authorized
        if timing.useful_until <= now and not response.can_be_validated:
            return False
        names = self.store.learn_vary(head.key, head.names)
        if names != head.names:
            return False
        entry = Entry(self.tenant, head.secondary, self.rule, response, loaded.pieces)
        return self.store.put(head.key, entry, names, since, now, is_on_disk=True)

    def key_parameter(self, view: RequestView) -> bytes:
        """The `key` parameter of Cache-Status, where the operator wants it shown (RFC 9211 §2.8)."""
        if not self.rule.show_key:
            return b""
        shown = build_host(view.head.scheme, view.head.authority) + self._query.strip(view.head.target)
        if not shown.isascii() or not shown.decode("ascii").isprintable():
            return b""
        return b'; key="%s"' % shown.replace(b"\\", b"\\\\").replace(b'"', b'\\"')

    def request_directives(self, view: RequestView) -> RequestDirectives:
        """What the request asks of caches, as far as this stage heeds it."""
        return view.directives or NO_REQUEST_DIRECTIVES
