"""One fetch fanned out to everyone who asked for the same: the shell of `collapse.py` that moves the bytes. Hot path.

Bounds. While the response may be stored, the body is kept whole, at most `max_object_bytes` and within what the store lets be
reserved: readers are cursors into it, and the fetch is never paused for any of them. A body that outgrows that is no longer
shared with newcomers, and becomes a window: the fetch keeps pace with the fastest reader (`WINDOW_BYTES` ahead of them), and
who falls more than `max_object_bytes` plus the window behind is cut off. docs/caching.md says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Cancelled, EdgetunError, LimitExceeded, UpstreamBroken
from edgetun_core.http.exchange import RequestSink
from edgetun_core.http.message import Fields, Peer, ResponseHead
from edgetun_exitnode.cache.body import CHUNK_OVERHEAD_BYTES, Body, Reader
from edgetun_exitnode.cache.collapse import (
    BrokeAfterHead,
    Ended,
    FailedBeforeHead,
    FlightId,
    HeadNotStorable,
    HeadStorable,
    Left,
    Outgrew,
    Satisfied,
)
from edgetun_exitnode.cache.freshness import ERRORS, NotStorable, Storable, Told, decide_storable
from edgetun_exitnode.cache.response import (
    StoredResponse,
    Use,
    decide_not_modified,
    decide_range,
    mark_stored,
    with_cache_status,
)
from edgetun_exitnode.cache.scheduling import TimerHandle
from edgetun_exitnode.cache.store import Entry
from edgetun_exitnode.cache.validation import Conditions, Confirmed, Unidentified, decide_confirmed, update_fields
from edgetun_exitnode.cache.view import RequestView
from edgetun_exitnode.cache.visitor import Visitor

if TYPE_CHECKING:
    from edgetun_exitnode.cache.stage import CacheStage

WINDOW_BYTES: Final = 1024 * 1024
RESERVE_STEP_BYTES: Final = 64 * 1024
JOINABLE_WHILE_RUNNING_S: Final = 60.0
"""How long newcomers may join a body that is still coming in where the operator's override holds, also beyond its TTL: a new
fetch each TTL beside one that takes longer than that would only slow both down."""
FILL_S: Final = 30.0
"""How long a body that nobody reads may take to come in."""
ERROR_NOT_COLLAPSIBLE_S: Final = 1.0
"""How long an origin's 5xx keeps a key from being collapsed."""


class Flight:
    """One origin exchange for all who asked for the same; the `ResponseSink` of that exchange."""

    __slots__ = (
        "alone",
        "attempt",
        "body",
        "conditions",
        "entries",
        "fill_timer",
        "fwd",
        "id",
        "is_ended_at_head",
        "is_over",
        "is_own",
        "is_passing",
        "is_storing",
        "is_upstream_paused",
        "is_validated",
        "leader",
        "names",
        "origin_head",
        "patience_timer",
        "peer",
        "readers",
        "requested_at",
        "reserved_bytes",
        "response",
        "stage",
        "told",
        "upstream",
        "view",
    )

    def __init__(self, stage: CacheStage, flight_id: FlightId) -> None:
        self.stage = stage
        self.id = flight_id
        self.view: RequestView
        self.peer: Peer
        self.leader: Visitor | None = None
        self.names: tuple[bytes, ...] = ()
        self.fwd = b"fwd=uri-miss"
        self.requested_at = 0.0
        self.attempt = 0
        self.upstream: RequestSink | None = None
        self.is_upstream_paused = False
        self.origin_head: ResponseHead | None = None
        self.is_ended_at_head = False
        self.response: StoredResponse | None = None
        self.conditions: Conditions | None = None
        """What the origin was asked to confirm, while it has not answered."""
        self.entries: dict[StoredResponse, Entry] = {}
        """Where what it may confirm is stored."""
        self.is_validated = False
        """It confirmed what was stored (304)."""
        self.is_storing = True
        self.told: Told | None = None
        """What the exit node that owns the key said of the response."""
        self.body = Body()
        self.readers: dict[Visitor, Reader] = {}
        self.alone: Visitor | None = None
        """The leader, when the response is theirs alone."""
        self.is_passing = False
        self.is_over = False
        self.is_own = False
        """For one visitor and the store: nobody can ask for its key."""
        self.reserved_bytes = 0
        self.patience_timer: TimerHandle | None = None
        self.fill_timer: TimerHandle | None = None

    # -- the request ----------------------------------------------------------------------------------------------------

    def fetch(
        self, view: RequestView, peer: Peer, leader: Visitor | None, now: float, *, validates: bool = True
    ) -> None:
        """Sends the request; again with another leader when the first try failed. `validates`: what is stored may do if the origin
        says so (RFC 9111 §4.3)."""
        stage = self.stage
        self.view = view
        self.peer = peer
        self.leader = leader if leader is not None and not leader.is_over else None
        self.requested_at = now
        self.names = stage.store.vary_of(self.key)
        self.upstream = None
        self.attempt += 1
        attempt = self.attempt
        stage.stats.fetches += 1
        head = view.fetch_head
        self.conditions = None
        if validates and stage.may_store and not view.is_head:
            self.conditions, self.entries = stage.stored.conditions_for(view)
            if self.conditions is not None:
                stage.stats.validations += 1
                head = head.replace(fields=head.fields + self.conditions.fields)
        self.told = None
        upstream = stage.fetch_next.open(head, peer, True, self)
        # All of the answer may have come already, and even another attempt.
        if attempt != self.attempt:
            upstream.reset(Cancelled("another try took its place"))
            return
        if self.is_over:
            upstream.reset(Cancelled("nobody waits for this response any more"))
            return
        self.upstream = upstream
        if self.alone is not None:
            self._connect_alone(self.alone)
        elif self.is_upstream_paused:
            upstream.pause_response()

    @property
    def key(self) -> bytes:
        """The primary key of what is fetched."""
        return self.view.head_key if self.view.is_head else self.view.key

    @property
    def owned_key(self) -> bytes:
        """By which the exit node that owns it is found: the same for GET and HEAD."""
        return self.view.key

    @property
    def takes_copies(self) -> bool:
        """Whether a copy that another exit node has stored, and is still fresh there, would do: nobody asked for what is newer."""
        view = self.view
        return self.stage.may_store and not (self.is_own or view.is_solo or view.is_head or view.directives is not None)

    def cancel(self) -> None:
        """Nobody waits: gives the fetch up."""
        if not self.is_over:
            upstream = self._finish()
            self.stage.forget(self)
            if upstream is not None:
                upstream.reset(Cancelled("nobody waits for this response any more"))

    def leave(self, visitor: Visitor) -> None:
        """A visitor went away."""
        visitor.flight = None
        self.readers.pop(visitor, None)
        if visitor is self.leader:
            self.leader = None
        self.stage.tell(Left(self.id, visitor))
        self.keep_pace()

    # -- the response ---------------------------------------------------------------------------------------------------

    def satisfied(self, visitor: Visitor) -> None:
        """A visitor has, or is about to get, all they asked for."""
        self.readers.pop(visitor, None)
        if visitor is self.leader:
            self.leader = None
        self.stage.tell(Satisfied(self.id, visitor))

    def owner_says(self, told: Told) -> None:
        """How old the response is at the exit node that owns the key, and how long fresh; comes just before its head."""
        self.told = told

    def on_interim(self, head: ResponseHead) -> None:
        # Hints before the final head are the leader's: nobody knows yet whether the response may be shared.
        if self.leader is not None and not self.leader.is_over:
            self.leader.client.on_interim(head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        stage = self.stage
        now = stage.clock()
        self._cancel_patience()
        if head.status in ERRORS and stage.stored.find_for_error(self.view, now) is not None:
            upstream = self._finish()
            if upstream is not None:  # otherwise `fetch` does it when `open` returns
                upstream.reset(Cancelled("a stored response answers instead"))
            stage.tell(FailedBeforeHead(self.id, stale_allowed=True))
            stage.forget(self)
            return
        if head.status == 304 and self.conditions is not None:
            self._on_not_modified(self.conditions, head, end, now)
            return
        self.conditions = None
        if end and not self.view.is_head and (head.get(b"content-length") or b"0").strip(b"0") and head.status != 304:
            self.on_reset(UpstreamBroken("the origin sent less than its Content-Length"))
            return
        self.entries = {}
        if self.view.is_head:
            stage.stored.freshen_by_head(self.view, head, self.requested_at, now)
        self.origin_head = head
        self.is_ended_at_head = end
        verdict = self._decide(head, now)
        match verdict:
            case NotStorable():
                self._take_alone(verdict, end, now)
            case Storable():
                self._share(verdict, head, end, now)

    def _on_not_modified(self, conditions: Conditions, head: ResponseHead, end: bool, now: float) -> None:
        """The origin confirms what is stored: one 304 answers everyone who waits (RFC 9111 §4.3.3, §4.3.4)."""
        stage = self.stage
        self.conditions = None
        entries, self.entries = self.entries, {}
        upstream, self.upstream = self.upstream, None
        if not end and upstream is not None:
            upstream.reset(Cancelled("a 304 has no body"))
        confirmed = decide_confirmed(head, conditions)
        match confirmed:
            case Unidentified():
                # Nothing of it may be used; once more, and now for the whole.
                self.fetch(self.view, self.peer, self.leader, now, validates=False)
                stage.arm_patience(self, now)
                return
            case Confirmed(answer, also):
                stage.stats.validated += 1
        for other in also:
            entry = entries[other]
            renewed = self._renew(other, head, now)
            if isinstance(renewed, StoredResponse):
                stage.store.renew(entry, renewed)
            else:
                stage.store.remove(entry)
        entry = entries[answer]
        self.is_validated = True
        self.body = entry.body
        merged = ResponseHead(answer.status, update_fields(answer.fields, head.fields, stage.wall_clock()))
        verdict = self._decide(merged, now)
        match verdict:
            case Storable():
                self._share(verdict, merged, True, now, confirmed=(entry, answer))
            case NotStorable():
                # It still holds for who asked, and for nobody else.
                stage.store.remove(entry)
                self.is_storing = False
                timing = stage.stored.stale_timing(answer, now)
                lone = Storable(timing, tuple(f for f in merged.fields if f[0] != b"age"), (), answer.length, False)
                self._share(lone, merged, True, now)

    def _renew(self, stored: StoredResponse, head: ResponseHead, now: float) -> StoredResponse | None:
        """A stored response as a 304 updates it; None when it may not be stored any more."""
        merged = ResponseHead(stored.status, update_fields(stored.fields, head.fields, self.stage.wall_clock()))
        verdict = self._decide(merged, now)
        if isinstance(verdict, NotStorable):
            return None
        return self._build(verdict, stored.status, stored.length)

    def _decide(self, head: ResponseHead, now: float) -> Storable | NotStorable:
        stage = self.stage
        return decide_storable(
            stage.rule,
            self.view.head,
            stage.stored.request_directives(self.view),
            head,
            requested_at=self.requested_at,
            received_at=now,
            wall_s=stage.wall_clock(),
            told=self.told,
        )

    def _build(self, verdict: Storable, status: int, length: int) -> StoredResponse:
        response = StoredResponse(
            status,
            verdict.fields,
            verdict.timing,
            length,
            self.stage.wall_clock(),
            is_head_only=self.view.is_head,
        )
        response.fwd = self.fwd
        response.answers_authorized = verdict.answers_authorized
        response.key_parameter = self.stage.stored.key_parameter(self.view)
        return response

    def _take_alone(self, verdict: NotStorable, end: bool, now: float) -> None:
        stage = self.stage
        self.alone = self.leader
        remember_s = stage.collapse.not_collapsible_s
        if verdict.is_error:
            remember_s = min(remember_s, ERROR_NOT_COLLAPSIBLE_S)
        elif not self.view.is_solo:
            stage.stored.forget_stale(self.view)
        if self.view.is_solo:
            stage.remember_refused(self.view, now + remember_s)
        if self.is_own:
            remember_s = 0.0  # nobody else has this key
        if end:
            self._finish()
        stage.tell(HeadNotStorable(self.id, remember_s))
        if end:
            stage.tell(Ended(self.id))
            stage.forget(self)

    def _share(
        self,
        verdict: Storable,
        head: ResponseHead,
        end: bool,
        now: float,
        *,
        confirmed: tuple[Entry, StoredResponse] | None = None,
    ) -> None:
        """The response answers everyone who waits, or is stored for later. `confirmed` is what a 304 stands for."""
        stage = self.stage
        length = verdict.length if confirmed is None else confirmed[1].length
        response = self._build(verdict, head.status, length)
        names = stage.store.learn_vary(self.key, verdict.vary)
        secondary = self.view.secondary(names)
        differing: tuple[Visitor, ...] = ()
        if names != self.names:
            differing = tuple(
                visitor
                for visitor in stage.coordinator.visitors(self.id)
                if isinstance(visitor, Visitor) and visitor.view.secondary(names) != secondary
            )
            self.names = names
        self.response = response
        if confirmed is not None:
            entry = confirmed[0]
            # In its place where it is the variant asked for; another variant's bytes are stored for this one beside it.
            if entry.secondary == secondary and stage.store.renew(entry, response):
                self.is_storing = False
        if end:
            self._complete(now)
        joinable_until = response.fresh_until
        if verdict.timing.counts_from_arrival:
            joinable_until = max(joinable_until, now + JOINABLE_WHILE_RUNNING_S)
        for visitor in differing:
            visitor.flight = None
        stage.tell(
            HeadStorable(
                self.id,
                stage.flight_key(self.key, secondary, self.id),
                joinable_until,
                differing,
                verdict.is_shareable,
                0.0 if self.is_own else stage.collapse.not_collapsible_s,
            )
        )
        if end:
            stage.tell(Ended(self.id))
            stage.forget(self)

    def attach(self, visitor: Visitor) -> None:
        """Gives a visitor the head, and the body from its first byte on."""
        if visitor.is_over:
            return
        if visitor is self.alone:
            assert self.origin_head is not None
            if self.is_ended_at_head:
                visitor.is_over = True
                visitor.flight = None
            elif self.upstream is not None:
                self._connect_alone(visitor)
            visitor.client.on_head(self.stage.decorate(self.origin_head, visitor.fwd), self.is_ended_at_head)
            return
        response, view, stage = self.response, visitor.view, self.stage
        assert response is not None
        now = stage.clock()
        use: Use = "led" if visitor is self.leader else "collapsed"
        if decide_not_modified(response, view.condition):
            visitor.finish()
            visitor.client.on_head(response.not_modified(now, use), True)
            return
        if view.is_head:
            visitor.finish()
            visitor.client.on_head(response.head(now, use), True)
            return
        part = decide_range(response, view.byte_range)
        if part == "unsatisfiable":
            visitor.finish()
            visitor.client.on_head(response.unsatisfiable(now, use), True)
            return
        if part != "whole" and len(part) == 1:
            first, last = part[0]
            reader = Reader(self.body, visitor.client, skip=first, limit=last - first + 1, is_paused=visitor.is_paused)
            head = response.partial(now, use, first, last)
        elif part != "whole" and self.body.is_complete:
            head, body = stage.build_multipart(response, self.body.chunks, part, now, use)
            reader = Reader(body, visitor.client, is_paused=visitor.is_paused)
        else:  # several ranges of a body that is still coming in: the whole is always right
            reader = Reader(self.body, visitor.client, is_paused=visitor.is_paused)
            if self.is_validated:
                head = response.head(now, "validated" if use == "led" else use)
            elif use == "led":
                assert self.origin_head is not None
                detail = self.fwd + (b"; stored" if stage.may_store else b"")
                head = with_cache_status(self.origin_head, detail, stage.wall_clock())
                mark_stored(head, response)
            else:
                head = response.head(now, use)
        if self.body.is_complete and not self.body.total and self.body.trailers is None:
            visitor.finish()
            visitor.client.on_head(head, True)
            return
        reader.on_done = visitor.finish
        visitor.reader = reader
        self.readers[visitor] = reader
        visitor.client.on_head(head, False)
        if visitor.is_opening:
            reader.start(stage.scheduler)
        else:
            reader.pump()

    def on_data(self, data: bytes, end: bool) -> None:
        alone = self.alone
        if alone is not None:
            if end:
                self._end_alone(alone)
            alone.client.on_data(data, end)
            return
        if self.response is None or self.is_over:
            return
        body = self.body
        if data:
            body.append(data)
            if self.view.is_head or (0 <= self.response.length < body.total):
                self._break(UpstreamBroken("the origin sent more than its Content-Length"))
                return
            if not self.is_passing and not self._reserve(len(data) + CHUNK_OVERHEAD_BYTES):
                self._outgrow()
        if end:
            self._end()
        else:
            self._pump_all()

    def on_trailers(self, fields: Fields) -> None:
        if self.alone is not None:
            alone = self.alone
            self._end_alone(alone)
            alone.client.on_trailers(fields)
        elif self.response is not None and not self.is_over:
            self.body.trailers = fields
            self._end()

    def on_reset(self, error: EdgetunError) -> None:
        if self.is_over:
            return
        if self.alone is not None:
            alone = self.alone
            self._end_alone(alone)
            alone.client.on_reset(error)
        elif self.response is not None:
            self._break(error)
        else:
            self._cancel_patience()
            self.upstream = None
            stale_allowed = self.stage.stored.find_for_error(self.view, self.stage.clock()) is not None
            self.stage.tell(FailedBeforeHead(self.id, stale_allowed), error)
            if self.id not in self.stage.coordinator:
                self._finish()
                self.stage.forget(self)

    def pause_request(self) -> None:
        """There is no request body."""

    def resume_request(self) -> None:
        """There is no request body."""

    # -- inside -----------------------------------------------------------------------------------------------------------

    def _pump_all(self) -> None:
        for reader in tuple(self.readers.values()):
            reader.pump()
        if self.is_passing and not self.is_over:
            self._forget_read()
            self.keep_pace()

    def _end(self) -> None:
        """The body is complete, or says it is."""
        length = self.response.length if self.response is not None else -1
        if 0 <= length != self.body.total:
            self._break(UpstreamBroken("the origin sent less than its Content-Length"))
            return
        # Stored and out of the coordinator before anyone hears of the end: they may ask again from within.
        self._complete(self.stage.clock())
        self.stage.tell(Ended(self.id))
        self.stage.forget(self)
        self._pump_all()

    def _complete(self, now: float) -> None:
        self.body.is_complete = True
        response = self.response
        assert response is not None
        was_passing = self.is_passing
        self._finish()
        if not was_passing and self.is_storing:
            response.set_length(self.body.total)
            self.stage.stored.put(self, response, now)

    def _break(self, error: EdgetunError) -> None:
        self.stage.stats.broken += 1
        upstream = self._finish()
        self.stage.tell(BrokeAfterHead(self.id), error)
        self.stage.forget(self)
        if upstream is not None:
            upstream.reset(error)

    def _finish(self) -> RequestSink | None:
        """The fetch is over, one way or another; returns the exchange if one is open. Leaves no reference in a circle: garbage
        is collected rarely."""
        self.is_over = True
        self._cancel_patience()
        if self.fill_timer is not None:
            self.fill_timer.cancel()
            self.fill_timer = None
        if self.reserved_bytes:
            self.stage.store.release(self.stage.tenant, self.reserved_bytes)
            self.reserved_bytes = 0
        upstream, self.upstream = self.upstream, None
        return upstream

    def _connect_alone(self, visitor: Visitor) -> None:
        assert self.upstream is not None
        visitor.upstream = self.upstream
        if visitor.is_paused:
            self.upstream.pause_response()

    def _end_alone(self, visitor: Visitor) -> None:
        visitor.is_over = True
        visitor.flight = None
        visitor.upstream = None
        self._finish()
        self.stage.tell(Ended(self.id))
        self.stage.forget(self)

    def _reserve(self, size_bytes: int) -> bool:
        """Takes room in the store for what is kept, a step at a time; False when the body is too large to be stored."""
        if self.body.total > self.stage.rule.max_object_bytes:
            return False
        needed = self.body.size_bytes - self.reserved_bytes
        if needed <= 0:
            return True
        step = max(needed, RESERVE_STEP_BYTES if self.reserved_bytes else needed)
        if not self.stage.store.reserve(self.stage.tenant, step):
            return False
        self.reserved_bytes += step
        return True

    def _outgrow(self) -> None:
        self.is_passing = True
        self.stage.tell(Outgrew(self.id, self.stage.collapse.not_collapsible_s))

    def keep_pace(self) -> None:
        """For a body too large to keep: forgets what all have read, cuts off who is too far behind, and holds the fetch at the
        pace of the fastest reader."""
        if self.is_passing and not self.is_over:
            self._cut_off()
            self._pace()

    def _cut_off(self) -> None:
        body = self.body
        bound = self.stage.rule.max_object_bytes + WINDOW_BYTES
        while body.total - body.start > bound and self.readers:
            slowest = min(self.readers, key=lambda visitor: self.readers[visitor].position)
            self.stage.stats.cut_off += 1
            self.readers.pop(slowest)
            slowest.fail(LimitExceeded("the download fell too far behind", remedy="ask again, or raise maxObjectBytes"))
            self.stage.tell(Left(self.id, slowest))
            self._forget_read()

    def _pace(self) -> None:
        if self.is_over:
            return
        body = self.body
        ahead = body.total - max((reader.position for reader in self.readers.values()), default=body.total)
        if not self.is_upstream_paused and ahead > WINDOW_BYTES:
            self.is_upstream_paused = True
            if self.upstream is not None:
                self.upstream.pause_response()
        elif self.is_upstream_paused and ahead <= WINDOW_BYTES // 4:
            self.is_upstream_paused = False
            if self.upstream is not None:
                self.upstream.resume_response()

    def _forget_read(self) -> None:
        if self.readers:
            self.body.drop_before(min(reader.next for reader in self.readers.values()))
            excess = self.reserved_bytes - self.body.size_bytes
            if excess > 0:
                self.reserved_bytes -= excess
                self.stage.store.release(self.stage.tenant, excess)

    def _cancel_patience(self) -> None:
        if self.patience_timer is not None:
            self.patience_timer.cancel()
            self.patience_timer = None
