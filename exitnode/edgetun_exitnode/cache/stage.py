"""The cache as a stage of the pipeline: answers from store, lets one fetch answer many, passes the rest through. Hot path.

A fresh hit costs a memo lookup, a dictionary lookup, a clock reading and two pushes (about 1 us): what the cache must know of a
request is worked out once per head (`view.py`), what it answers with once per second of age (`response.py`). No tasks, no
logging. Patience and other deadlines are one timer per flight, not per visitor.

One stage is built per route and configuration; the store and the memo of views are shared by the whole node.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, assert_never

from edgetun_core.errors import EdgetunError, UpstreamBroken
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead, ResponseHead
from edgetun_core.memo import Memo
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.cache.body import Body, Reader
from edgetun_exitnode.cache.collapse import (
    AskAgain,
    Asked,
    Cancel,
    Coordinator,
    Effect,
    Event,
    Fail,
    Fetch,
    FillAlone,
    FillTimeOver,
    FlightId,
    FlightKey,
    FoundStorable,
    GoAlone,
    Refresh,
    ServeStale,
    Stream,
    TimePassed,
    Wait,
)
from edgetun_exitnode.cache.collapse import Visitor as AnyVisitor
from edgetun_exitnode.cache.disk import DiskEntry, DiskTier, Loaded
from edgetun_exitnode.cache.flight import FILL_S, Flight
from edgetun_exitnode.cache.freshness import (
    Fresh,
    MustForward,
    Stale,
    Storable,
    decide_freshness,
    decide_storable,
)
from edgetun_exitnode.cache.key import (
    PART_SUFFIX,
    QueryFilter,
    Secondary,
    build_invalidated_targets,
    build_key,
)
from edgetun_exitnode.cache.parts import PartCollector
from edgetun_exitnode.cache.passing import PassThrough
from edgetun_exitnode.cache.ranges import Span, build_multipart, build_part
from edgetun_exitnode.cache.response import (
    StoredResponse,
    Use,
    decide_not_modified,
    decide_range,
    gateway_timeout,
    with_cache_status,
)
from edgetun_exitnode.cache.scheduling import Scheduler
from edgetun_exitnode.cache.stats import CacheStats
from edgetun_exitnode.cache.store import Entry, Store
from edgetun_exitnode.cache.stored import RETRY_S, Stored
from edgetun_exitnode.cache.view import RequestView, build_view
from edgetun_exitnode.cache.visitor import Visitor
from edgetun_exitnode.stage_memos import StageMemos, next_serial

MAX_ASKS: Final = 3
"""How often a visitor may turn out to want another variant before they go alone."""


class Finish(Protocol):
    """What is done to the heads of responses on their way to visitors, once per head that is shared."""

    def head(self, head: ResponseHead) -> ResponseHead:
        """The head as visitors get it."""

    def client(self, client: ResponseSink) -> ResponseSink:
        """A client that does so to every head."""


class Elsewhere(Protocol):
    """Which keys another exit node fetches for the whole fleet."""

    def stage(self, key: bytes, peer: Peer) -> CacheStage | None:
        """The stage that asks the owner of a key, for a visitor of this node; None when this node asks the origin itself."""


class CacheStage:
    """The cache and the collapser for one route; see the top of the file.

    `tenant` is who shares a budget of the store and nothing else ("namespace/tunnel"); `partition` tells apart what shares URIs
    but not answers (the origin's name). `stats` and `views` may be shared by several stages.
    """

    __slots__ = (
        "_alone",
        "_decorated",
        "_loads",
        "_memo_serial",
        "_partition",
        "_query",
        "_refused",
        "_resources",
        "_serial",
        "_tenant",
        "_views",
        "clock",
        "collapse",
        "coordinator",
        "elsewhere",
        "fetch_next",
        "finish",
        "flights",
        "may_store",
        "next",
        "on_invalidated",
        "rule",
        "scheduler",
        "stats",
        "store",
        "stored",
        "tenant",
        "wall_clock",
    )

    def __init__(
        self,
        rule: CacheRule,
        collapse: CollapseRule,
        tenant: str,
        store: Store,
        next_handler: Handler,
        clock: Callable[[], float],
        scheduler: Scheduler,
        *,
        wall_clock: Callable[[], float] = time.time,
        stats: CacheStats | None = None,
        memos: StageMemos | None = None,
        partition: str = "",
    ) -> None:
        self.rule = rule
        self.collapse = collapse
        self.tenant = tenant
        self.store = store
        self.next = next_handler
        self.fetch_next = next_handler
        """Where fetches for all go; where another exit node owns the key, to that (mesh/ownership.py)."""
        self.elsewhere: Elsewhere | None = None
        self.on_invalidated: Callable[[list[bytes]], None] | None = None
        """Hears of the keys that an unsafe request made stale, before its response goes to the visitor."""
        self.clock = clock
        self.scheduler = scheduler
        self.wall_clock = wall_clock
        self.stats = stats if stats is not None else CacheStats()
        self.may_store = rule.mode != "off" and store.max_bytes > 0
        self.coordinator = Coordinator(collapse.patience_s)
        self.flights: dict[FlightId, Flight] = {}
        self._resources = store.resources
        self._tenant = tenant.encode()
        self._partition = partition.encode()
        self._query = QueryFilter(rule.ignore_query)
        self.stored = Stored(rule, store, tenant, clock, wall_clock, self.stats, self._query)
        memos = memos or StageMemos()
        self._views = memos.views
        self._decorated = memos.decorated
        self._alone = memos.alone
        self._memo_serial = next_serial()
        self._refused: Memo[int, float] = Memo(4096)
        """Until when answers to requests with Authorization are known as not storable, by hash of the key."""
        self._loads: dict[DiskEntry, list[Visitor]] = {}
        """Who waits for which file."""
        self._serial = 0
        self.finish: Finish | None = None
        """What the stage in front does to heads and clients, for requests that come past it (pipeline/compression)."""

    # -- asked by a visitor -------------------------------------------------------------------------------------------

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Answers, joins or forwards; see `Handler.open`."""
        view = self._views.get(head)
        if view is None or view.owner is not self:
            view = build_view(self, head, self.rule, self._tenant, self._partition, self._query)
            self._views.remember(view)
        if view.is_plain and end:
            resource = self._resources.get(view.key)
            if resource is not None:
                entry = resource.only or resource.variants.get(view.secondary(resource.vary))
                if entry is not None and entry.rule is self.rule and entry.whole:
                    now = self.clock()
                    if now < entry.head_until or self._renew_head(entry, now):
                        entry.is_used = True
                        self.stats.hits += 1
                        client.on_head(entry.head_now, False)
                        client.on_data(entry.whole, True)
                        return CLOSED
        if self.finish is not None:
            client = self.finish.client(client)
        return self._open_slowly(view, head, peer, end, client)

    def open_relayed(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """The same for a visitor of another exit node, where the stages in front of this one are."""
        view = self._views.get(head)
        if view is None or view.owner is not self:
            view = build_view(self, head, self.rule, self._tenant, self._partition, self._query)
            self._views.remember(view)
        return self._open_slowly(view, head, peer, end, client)

    def open_stored(self, head: RequestHead, client: ResponseSink) -> RequestSink | None:
        """For another exit node that looks for a copy: answers from what is fresh in memory; None when there is nothing, and the client
        was told nothing."""
        view = build_view(self, head, self.rule, self._tenant, self._partition, self._query)
        if not self.may_store or view.bypass or view.is_solo or view.directives is not None:
            return None
        entry, _ = self.stored.find(view)
        now = self.clock()
        if entry is None or not isinstance(decide_freshness(entry.response.timing, None, now), Fresh):
            return None
        return self._answer(entry, view, client, now, "hit", None) or CLOSED

    def hit(self, head: RequestHead) -> Entry | None:
        """The fresh entry in one piece that answers a request without a body; whoever takes it pushes `head_now` and `whole`.

        As in `open`, which spares itself the call.
        """
        view = self._views.get(head)
        if view is None or view.owner is not self or not view.is_plain:
            return None
        resource = self._resources.get(view.key)
        if resource is None:
            return None
        entry = resource.only or resource.variants.get(view.secondary(resource.vary))
        if entry is None or entry.rule is not self.rule or not entry.whole:
            return None
        now = self.clock()
        if now < entry.head_until or self._renew_head(entry, now):
            entry.is_used = True
            self.stats.hits += 1
            return entry
        return None

    def _renew_head(self, entry: Entry, now: float) -> bool:
        """Renders the head for this second of age; False when the entry is no longer fresh."""
        response = entry.response
        if now >= response.fresh_until:
            return False
        head = response.head(now, "hit")
        entry.head_now = head if self.finish is None else self.finish.head(head)
        entry.head_until = response.valid_until(now)
        return True

    def _open_slowly(
        self,
        view: RequestView,
        head: RequestHead,
        peer: Peer,
        end: bool,
        client: ResponseSink,
        *,
        may_read_disk: bool = True,
    ) -> RequestSink:
        if view.bypass or not end:
            if head.protocol is not None:
                return self.next.open(head, peer, end, client)
            return self._bypass(view, peer, end, client)
        now = self.clock()
        if view.is_solo and view.directives is None and view.key not in self._resources:
            refused_until = self._refused.get(hash(view.key))
            if refused_until is not None and now < refused_until:
                return self._bypass(view, peer, True, client)
        fwd = b"fwd=uri-miss"
        if self.may_store:
            entry, fwd = self.stored.find(view)
            if entry is not None:
                freshness = decide_freshness(entry.response.timing, view.directives, now)
                match freshness:
                    case Fresh():
                        self.stats.hits += 1
                        return self._answer(entry, view, client, now, "hit", None) or CLOSED
                    case Stale():
                        fwd = b"fwd=stale"
                        is_failing = freshness.may_serve_on_error and now < entry.failed_until
                        if freshness.is_accepted:
                            self.stats.stale += 1
                            return self._answer(entry, view, client, now, "accepted", None) or CLOSED
                        if freshness.may_serve_while_revalidating or is_failing:
                            stage = self._stage_for(view, peer)
                            return stage._answer_stale(entry, view, peer, client, now, is_failing)
                    case MustForward():
                        fwd = b"fwd=request"
                    case _:
                        assert_never(freshness)
            elif self.store.disk is not None and not view.is_head and may_read_disk:
                on_disk = self.store.disk.find(view.key, view.secondary)
                if on_disk is not None:
                    return self._open_from_disk(self.store.disk, on_disk, view, peer, client)
        if view.directives is not None and view.directives.only_if_cached:
            self.stats.refused += 1
            client.on_head(gateway_timeout(self.wall_clock()), True)
            return CLOSED
        return self._stage_for(view, peer)._fetch_for(view, head, peer, client, fwd, now)

    def _stage_for(self, view: RequestView, peer: Peer) -> CacheStage:
        """This stage, or the one that asks the key's owner. They share what is stored, and no flight: a flight of the one may wait for
        one of the other at another node."""
        return (self.elsewhere.stage(view.key, peer) if self.elsewhere is not None else None) or self

    def _fetch_for(
        self, view: RequestView, head: RequestHead, peer: Peer, client: ResponseSink, fwd: bytes, now: float
    ) -> RequestSink:
        """Nothing that is stored answers."""
        flight_key = self._flight_key(view)
        if view.is_solo:
            return self._open_solo(view, peer, client, fwd, now)
        validates = view.may_validate and self.stored.can_be_validated(view)
        if validates and self.coordinator.goes_alone(flight_key, now):
            flight_key = self._own_key(view)
        elif self.coordinator.goes_alone(flight_key, now):
            self.stats.alone += 1
            return self.next.open(head, peer, True, self._watch_alone(view, client, flight_key, now))
        if view.byte_range is not None and not validates and self.may_store:
            part = self._answer_from_part(view, client, now)
            if part is not None:
                return part
        visitor = Visitor(view, peer, client, fwd)
        visitor.may_lead = validates or view.byte_range is None
        self._ask(visitor, flight_key, now)
        visitor.is_opening = False
        return CLOSED if visitor.is_over else visitor

    def _open_from_disk(
        self, disk: DiskTier, on_disk: DiskEntry, view: RequestView, peer: Peer, client: ResponseSink
    ) -> RequestSink:
        """Waits for a file to be read, with everyone who wants the same, and then goes on as if it had been in memory."""
        visitor = Visitor(view, peer, client, b"")
        waiting = self._loads.get(on_disk)
        if waiting is not None:
            waiting.append(visitor)
            return visitor
        self._loads[on_disk] = [visitor]
        since = self.clock()

        def done(loaded: Loaded | None) -> None:
            visitors = self._loads.pop(on_disk)
            if loaded is not None and not self.stored.take_from_disk(loaded, since):
                disk.remove(on_disk)
            for each in visitors:
                if not each.is_over:
                    each.connect(
                        self._open_slowly(each.view, each.view.head, each.peer, True, each.client, may_read_disk=False)
                    )

        disk.read(on_disk, done)
        return visitor

    def _open_solo(self, view: RequestView, peer: Peer, client: ResponseSink, fwd: bytes, now: float) -> RequestSink:
        """A request with Authorization: never shared while it is under way, stored where the origin says so (RFC 9111 §3.5)."""
        validates = view.may_validate and self.stored.can_be_validated(view)
        refused_until = self._refused.get(hash(view.key))
        if (
            not self.may_store
            or (view.byte_range is not None and not validates)
            or (refused_until is not None and now < refused_until and not validates)
        ):
            return self._bypass(view, peer, True, client)
        visitor = Visitor(view, peer, client, fwd if validates else b"fwd=bypass")
        self._ask(visitor, self._own_key(view), now)
        visitor.is_opening = False
        return CLOSED if visitor.is_over else visitor

    def remember_refused(self, view: RequestView, until: float) -> None:
        """Answers to requests with Authorization may not be stored for this key: such requests just pass for a while."""
        self._refused.put(hash(view.key), until)

    def _ask(self, visitor: Visitor, flight_key: FlightKey, now: float) -> None:
        """Has the coordinator decide who fetches for this visitor."""
        view = visitor.view
        visitor.asks += 1
        newer_than = self.store.invalidated_at(view.key, self.tenant)
        may_join_late = not view.wants_new
        event = Asked(flight_key, visitor, newer_than, visitor.may_lead, may_join_late)
        if view.is_head and not view.is_solo:
            # A GET on its way answers a HEAD as well, but cannot be led by one.
            get_key = self.flight_key(view.key, view.secondary(self.store.vary_of(view.key)), 0)
            of_get = Asked(get_key, visitor, newer_than, False, may_join_late)
            if self.coordinator.can_join(of_get, now):
                event = of_get
        self._apply(self.coordinator.handle(event, now), now, None)

    def _flight_key(self, view: RequestView) -> FlightKey:
        key = view.head_key if view.is_head else view.key
        return self.flight_key(key, view.secondary(self.store.vary_of(key)), 0)

    def _own_key(self, view: RequestView) -> FlightKey:
        """A key that nobody else has: the flight is for one visitor, and for the store."""
        self._serial += 1
        return (view.key, view.secondary(self.store.vary_of(view.key)), self._serial)

    def flight_key(self, key: bytes, secondary: Secondary, flight_id: FlightId) -> FlightKey:
        """What flights are joined by. Without collapsing each has a key of its own."""
        if self.collapse.enabled:
            return (key, secondary)
        if flight_id:
            return (key, secondary, -flight_id)
        self._serial += 1
        return (key, secondary, self._serial)

    # -- answering from store -------------------------------------------------------------------------------------------

    def _answer_stale(
        self, entry: Entry, view: RequestView, peer: Peer, client: ResponseSink, now: float, is_failing: bool
    ) -> RequestSink:
        if is_failing:
            self.stats.stale_on_error += 1
            return self._answer(entry, view, client, now, "error", None) or CLOSED
        self.stats.stale += 1
        reader = self._answer(entry, view, client, now, "revalidating", None)
        if now >= entry.asked_again_at and not view.is_head and view.byte_range is None:
            entry.asked_again_at = now + RETRY_S
            refresh = Refresh(self._flight_key(view), self.store.invalidated_at(view.key, self.tenant))
            for effect in self.coordinator.handle(refresh, now):
                assert isinstance(effect, Fetch)
                self._fetch(effect, view, peer, None, now)
        return reader or CLOSED

    def _answer(
        self, entry: Entry, view: RequestView, client: ResponseSink, now: float, use: Use, visitor: Visitor | None
    ) -> RequestSink | None:
        """Pushes a stored response; returns the reader of a body that goes in several pieces, else None."""
        entry.is_used = True
        response = entry.response
        if decide_not_modified(response, view.condition):
            client.on_head(response.not_modified(now, use), True)
            return None
        if view.is_head:
            client.on_head(response.head(now, use), True)
            return None
        body = entry.body
        part = decide_range(response, view.byte_range)
        if part == "unsatisfiable":
            client.on_head(response.unsatisfiable(now, use), True)
            return None
        if part == "whole":
            skip, limit = 0, -1
            head = response.head(now, use)
            if entry.whole == b"":
                client.on_head(head, True)
                return None
        elif len(part) == 1:
            skip, limit = part[0][0], part[0][1] - part[0][0] + 1
            head = response.partial(now, use, *part[0])
        else:
            skip, limit = 0, -1
            head, body = self.build_multipart(response, entry.pieces, part, now, use)
        reader = Reader(body, client, skip=skip, limit=limit)
        if visitor is not None:
            reader.is_paused = visitor.is_paused
            visitor.is_over = False
            visitor.reader = reader
        client.on_head(head, False)
        if visitor is None or visitor.is_opening:
            reader.start(self.scheduler)
        else:
            reader.pump()
        return None if reader.is_over else reader

    def _answer_from_part(self, view: RequestView, client: ResponseSink, now: float) -> RequestSink | None:
        """Answers a range that lies within what is stored of a response; None when it does not."""
        found = self.stored.find_part(view, now)
        if found is None:
            return None
        entry, number, span = found
        self.stats.hits += 1
        entry.is_used = True
        reader = Reader(build_part([entry.pieces[number]], entry.spans[number][0], span), client)
        client.on_head(entry.response.partial(now, "hit", *span), False)
        reader.start(self.scheduler)
        return CLOSED if reader.is_over else reader

    def build_multipart(
        self, response: StoredResponse, pieces: Sequence[bytes], spans: Sequence[Span], now: float, use: Use
    ) -> tuple[ResponseHead, Body]:
        """Head and body of several ranges."""
        content_type = next((value for name, value in response.fields if name == b"content-type"), None)
        boundary = secrets.token_hex(16).encode()
        body = build_multipart(pieces, response.length, spans, content_type, boundary)
        return response.multipart(now, use, body.total, boundary), body

    # -- told by flights ------------------------------------------------------------------------------------------------

    def tell(self, event: Event, error: EdgetunError | None = None) -> None:
        """Tells the coordinator, and does what it says."""
        now = self.clock()
        effects = self.coordinator.handle(event, now)
        if effects:
            self._apply(effects, now, error)

    def forget(self, flight: Flight) -> None:
        """A flight is over."""
        self.flights.pop(flight.id, None)
        if not self.flights:
            self.flights = {}  # an emptied dict keeps its size, and there is one per tunnel

    def decorate(self, head: ResponseHead, detail: bytes) -> ResponseHead:
        """The head with our Cache-Status, made once per head."""
        key = (head, detail)
        decorated = self._decorated.get(key)
        if decorated is None:
            decorated = with_cache_status(head, detail, self.wall_clock())
            if head.recurs and head.get(b"date") is not None:  # otherwise the Date added is of this second
                decorated.recurs = self._decorated.put(key, decorated)
        return decorated

    # -- effects --------------------------------------------------------------------------------------------------------

    def _apply(self, effects: list[Effect], now: float, error: EdgetunError | None) -> None:
        for effect in effects:
            match effect:
                case Wait(flight_id, visitor):
                    flight = self.flights[flight_id]
                    self.stats.collapsed += 1
                    _known(visitor).flight = flight
                    if flight.patience_timer is None:
                        self.arm_patience(flight, now)
                case Stream(flight_id, visitors):
                    self._stream(flight_id, visitors)
                case Fetch():
                    if effect.flight in self.coordinator and effect.leader is not None:
                        leader = _known(effect.leader)
                        self._fetch(effect, leader.view, leader.peer, leader, now)
                case GoAlone(visitors, remembered):
                    for each in visitors:
                        self._go_alone(_known(each), remembered, now, validates=effect.validates)
                case AskAgain(visitors):
                    for each in visitors:
                        visitor = _known(each)
                        visitor.fwd = b"fwd=vary-miss"
                        if visitor.is_over:
                            continue
                        self._ask_again(visitor)
                case ServeStale(visitors):
                    for each in visitors:
                        self._serve_stale(_known(each), now, error)
                case Fail(visitors):
                    failure = error or UpstreamBroken("the origin broke off")
                    for each in visitors:
                        _known(each).fail(failure)
                case Cancel(flight_id):
                    flight_or_none = self.flights.get(flight_id)
                    if flight_or_none is not None:
                        flight_or_none.cancel()
                case FillAlone(flight_id):
                    self._fill_alone(flight_id)
                case _:
                    assert_never(effect)

    def _fetch(self, effect: Fetch, view: RequestView, peer: Peer, leader: Visitor | None, now: float) -> None:
        flight = self.flights.get(effect.flight)
        if flight is None:
            flight = self.flights[effect.flight] = Flight(self, effect.flight)
            flight.is_own = isinstance(effect.key, tuple) and len(effect.key) == 3
            if leader is not None:
                if leader.view.is_solo:
                    self.stats.bypass += 1
                    flight.fwd = b"fwd=uri-miss" if leader.fwd == b"fwd=bypass" else leader.fwd
                else:
                    self.stats.misses += 1
                    flight.fwd = leader.fwd
            else:
                flight.fwd = b"fwd=stale"
        else:
            self.stats.promoted += 1
        if leader is not None:
            leader.flight = flight
        flight.fetch(view, peer, leader, now)
        if flight.response is None and not flight.is_over and flight.alone is None and flight.patience_timer is None:
            self.arm_patience(flight, now)  # a promoted leader has followers already

    def _stream(self, flight_id: FlightId, visitors: tuple[AnyVisitor, ...]) -> None:
        for each in visitors:
            visitor = _known(each)
            if visitor.is_over:
                continue
            if visitor.flight is None:  # joined a body that is coming in
                visitor.flight = self.flights[flight_id]
                self.stats.collapsed += 1
            visitor.flight.attach(visitor)

    def _ask_again(self, visitor: Visitor) -> None:
        if visitor.asks < MAX_ASKS:
            self._ask(visitor, self._flight_key(visitor.view), self.clock())
        else:
            self._go_alone(visitor, False, self.clock())

    def _serve_stale(self, visitor: Visitor, now: float, error: EdgetunError | None) -> None:
        visitor.flight = None
        if visitor.is_over:
            return
        entry = self.stored.find_for_error(visitor.view, now)
        if entry is None:
            if error is not None:
                visitor.fail(error)
            else:
                self._go_alone(visitor, False, now)
            return
        self.stats.stale_on_error += 1
        visitor.is_over = True  # unless the body goes in pieces
        self._answer(entry, visitor.view, visitor.client, now, "error", visitor)

    def _fill_alone(self, flight_id: FlightId) -> None:
        flight = self.flights.get(flight_id)
        if flight is not None and not flight.is_over and flight.fill_timer is None:
            flight.fill_timer = self.scheduler.call_later(FILL_S, lambda: self.tell(FillTimeOver(flight_id)))

    def arm_patience(self, flight: Flight, now: float) -> None:
        """Sets the timer for the first follower whose patience ends, while the head is waited for."""
        if flight.is_over or flight.patience_timer is not None:
            return
        at = self.coordinator.next_timer(flight.id)
        if at is not None:
            flight.patience_timer = self.scheduler.call_later(max(0.0, at - now), lambda: self._patience_ended(flight))

    def _patience_ended(self, flight: Flight) -> None:
        flight.patience_timer = None
        now = self.clock()
        effects = self.coordinator.handle(TimePassed(flight.id), now)
        self.stats.impatient += sum(len(effect.visitors) for effect in effects if isinstance(effect, GoAlone))
        self._apply(effects, now, None)
        if not flight.is_over and flight.patience_timer is None:
            self.arm_patience(flight, now)

    # -- passing through ------------------------------------------------------------------------------------------------

    def _go_alone(self, visitor: Visitor, remembered: bool, now: float, *, validates: bool = False) -> None:
        """Lets a visitor make a request of their own; what comes back is theirs alone, or confirms what is stored."""
        if visitor.flight is not None:
            self.stats.released += 1
            visitor.flight = None
        else:
            self.stats.alone += 1
        if visitor.is_over:
            return
        view = visitor.view
        if validates and view.may_validate and self.stored.can_be_validated(view):
            visitor.may_lead = True
            self._apply(self.coordinator.handle(Asked(self._own_key(view), visitor), now), now, None)
            return
        if view.byte_range is not None and self.may_store and not view.byte_range.more:
            has_part = (view.key + PART_SUFFIX) in self._resources
            collector = PartCollector(self, view, visitor.client, b"fwd=partial" if has_part else visitor.fwd, now)
            visitor.connect(collector.connect(self.next.open(view.head, visitor.peer, True, collector)))
            return
        if remembered:
            sink: ResponseSink = self._watch_alone(view, visitor.client, self._flight_key(view), now)
        else:
            fwd = visitor.fwd  # not the visitor: who holds the exchange would be held by it
            sink = PassThrough(visitor.client, lambda head: self.decorate(head, fwd))
        visitor.connect(self.next.open(view.head, visitor.peer, True, sink))

    def _watch_alone(
        self, view: RequestView, client: ResponseSink, flight_key: FlightKey, requested_at: float
    ) -> PassThrough:
        """A response of a key that is not collapsed; when it turns out storable the next request is collapsed again."""

        def decorate(head: ResponseHead) -> ResponseHead:
            key = (head, self._memo_serial)
            decorated = self._alone.get(key)
            if decorated is None:
                decorated = self.decorate(head, b"fwd=uri-miss; detail=not-collapsible")
                now = self.clock()
                verdict = decide_storable(
                    self.rule,
                    view.head,
                    self.stored.request_directives(view),
                    head,
                    requested_at=requested_at,
                    received_at=now,
                    wall_s=self.wall_clock(),
                )
                if isinstance(verdict, Storable) and verdict.is_shareable:
                    self.tell(FoundStorable(flight_key))
                elif decorated.recurs:
                    # What makes a head not storable stands in the head, so the same head is not storable again.
                    self._alone.put(key, decorated)
            return decorated

        return PassThrough(client, decorate)

    def _bypass(self, view: RequestView, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        self.stats.bypass += 1
        if view.bypass == b"method":
            return self.next.open(
                view.head, peer, end, PassThrough(client, lambda head: self._after_unsafe(view, head))
            )
        return self.next.open(view.head, peer, end, PassThrough(client, self._decorate_bypass))

    def _decorate_bypass(self, head: ResponseHead) -> ResponseHead:
        return self.decorate(head, b"fwd=bypass")

    def _after_unsafe(self, view: RequestView, response: ResponseHead) -> ResponseHead:
        """RFC 9111 §4.4: a successful unsafe request makes stale what is stored for its URI and for where it points."""
        if 200 <= response.status < 400:
            now = self.clock()
            locations = response.get_all(b"location") + response.get_all(b"content-location")
            keys: list[bytes] = []
            for target in build_invalidated_targets(view.head, locations):
                stripped = self._query.strip(target)
                for scheme in (b"http", b"https"):
                    key = build_key(self._tenant, scheme, view.head.authority, stripped, self._partition)
                    if key:
                        self.stats.invalidations += 1
                        self.store.invalidate(key, now)
                        keys.append(key)
            if keys and self.on_invalidated is not None:
                self.on_invalidated(keys)
        return self.decorate(response, b"fwd=method")


def _known(visitor: AnyVisitor) -> Visitor:
    """The coordinator hands back what it was given."""
    assert isinstance(visitor, Visitor)
    return visitor
