"""Compression for visitors, as the first stage of a route's chain, in front of the cache. Hot path.

What a request head means for it is worked out once per head (`open_for`, kept by the router), what a response head means once
per response head. A stored response is compressed once per coding (`shared.py`). Nothing is held back: a piece of a body leaves
compressed and flushed in the call that brought it; only a head waits for its first piece, within the tick.
"""

from __future__ import annotations

import re

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Field, Fields, Peer, RequestHead, ResponseHead
from edgetun_core.snapshot import CompressionRule
from edgetun_exitnode.cache.scheduling import Scheduler
from edgetun_exitnode.cache.stage import CacheStage
from edgetun_exitnode.cache.store import Entry
from edgetun_exitnode.pipeline.compression.encoders import ENCODE_WHOLE, Encoder, Encoders
from edgetun_exitnode.pipeline.compression.negotiate import decide_accepted
from edgetun_exitnode.pipeline.compression.shared import Follower, SharedEncodings
from edgetun_exitnode.pipeline.compression.verdict import (
    Verdict,
    decide_verdict,
    filter_of,
    weaken_not_modified,
)
from edgetun_exitnode.pipeline.router import OpenFunction
from edgetun_exitnode.stage_memos import StageMemos, next_serial

BURST_BYTES = 256 * 1024
"""What is compressed for one visitor in a turn of the loop: 1 to 3 ms."""
_WEAK = re.compile(rb'(^|[, \t])W/(?=")')


class CompressionStats:
    """Plain counts for the metrics: bodies by coding, their bytes before and after, and how many came from a shared encoding."""

    __slots__ = ("bodies", "bytes_in", "bytes_out", "shared")

    def __init__(self) -> None:
        self.bodies: dict[bytes, int] = dict.fromkeys(ENCODE_WHOLE, 0)
        self.bytes_in = 0
        self.bytes_out = 0
        self.shared = 0


class Compressor:
    """What the routes of one exit node share: encoders and their bounds, encodings of stored responses, counts."""

    __slots__ = ("encoders", "encodings", "stats")

    def __init__(self) -> None:
        self.encoders = Encoders()
        self.encodings = SharedEncodings(self.encoders)
        self.stats = CompressionStats()


class CompressionStage:
    """Compression for one route."""

    __slots__ = (
        "_memo",
        "_next",
        "_offered",
        "_open_plain",
        "_rule",
        "_serial",
        "_types",
        "cache",
        "compressor",
        "min_bytes",
        "scheduler",
    )

    def __init__(
        self,
        rule: CompressionRule,
        compressor: Compressor,
        following: Handler,
        scheduler: Scheduler,
        memos: StageMemos | None = None,
    ) -> None:
        self._rule = rule
        self._next = following
        self._types = filter_of(rule.types)
        self._offered = tuple(coding.encode() for coding in rule.codings if coding.encode() in ENCODE_WHOLE)
        self._memo = (memos or StageMemos()).verdicts
        self._serial = next_serial()
        self._open_plain: OpenFunction = _Plain(self, following).open
        self.cache: CacheStage | None = None
        if isinstance(following, CacheStage):
            # Requests that get content as it is pass us by: the cache sees to their heads, once per head instead of once per visitor.
            self.cache = following
            following.finish = _Finish(self)
            self._open_plain = following.open
        self.compressor = compressor
        self.scheduler = scheduler
        self.min_bytes = rule.min_bytes

    @staticmethod
    def is_needed(rule: CompressionRule) -> bool:
        return rule.enabled

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        return self.open_for(head)(head, peer, end, client)

    def open_for(self, head: RequestHead) -> OpenFunction:
        """What opens exchanges with this head."""
        if head.protocol is not None or head.method == b"CONNECT":
            return self._next.open
        lines = head.get_all(b"accept-encoding")
        accepted = decide_accepted(b",".join(lines) if lines else None, self._offered)
        if not accepted.codings or accepted.is_better_plain or head.get(b"range") is not None:
            return self._open_plain
        return _Negotiated(self, self._next, self._rule, head, accepted.codings, not accepted.identity).open

    def verdict(self, head: ResponseHead) -> Verdict:
        key = (head, self._serial)
        verdict: Verdict | None = self._memo.get(key)
        if verdict is None:
            verdict = decide_verdict(head, self._types, self.min_bytes)
            if head.recurs:
                self._memo.put(key, verdict)
        return verdict


class _Finish:
    """`Vary` for those who come past us."""

    __slots__ = ("_stage",)

    def __init__(self, stage: CompressionStage) -> None:
        self._stage = stage

    def head(self, head: ResponseHead) -> ResponseHead:
        return self._stage.verdict(head).plain

    def client(self, client: ResponseSink) -> ResponseSink:
        return client if client.__class__ is _Exchange else _Varying(self._stage, client)


class _Plain:
    """Requests that get content as it is: only `Vary` is seen to."""

    __slots__ = ("_next", "_stage")

    def __init__(self, stage: CompressionStage, following: Handler) -> None:
        self._stage = stage
        self._next = following.open

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        return self._next(head, peer, end, _Varying(self._stage, client))


class _Varying:
    __slots__ = ("_client", "_stage")

    def __init__(self, stage: CompressionStage, client: ResponseSink) -> None:
        self._stage = stage
        self._client = client

    def on_interim(self, head: ResponseHead) -> None:
        self._client.on_interim(head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        self._client.on_head(self._stage.verdict(head).plain, end)

    def on_data(self, data: bytes, end: bool) -> None:
        self._client.on_data(data, end)

    def on_trailers(self, fields: Fields) -> None:
        self._client.on_trailers(fields)

    def on_reset(self, error: EdgetunError) -> None:
        self._client.on_reset(error)

    def pause_request(self) -> None:
        self._client.pause_request()

    def resume_request(self) -> None:
        self._client.resume_request()


class _Negotiated:
    """Requests with one head, whose visitors accept `coding`.

    Behind it, `Accept-Encoding` is the list of what was accepted in our order and without weights: the hundred ways in which
    clients write the same would be a hundred variants to an origin that compresses itself.
    """

    __slots__ = (
        "_cache",
        "_head",
        "_next",
        "_passing",
        "coding",
        "has_secrets",
        "if_none_match",
        "is_forced",
        "is_head",
        "stage",
    )

    def __init__(
        self,
        stage: CompressionStage,
        following: Handler,
        rule: CompressionRule,
        head: RequestHead,
        codings: tuple[bytes, ...],
        is_forced: bool,
    ) -> None:
        self.stage = stage
        self._next = following.open
        self._cache = stage.cache
        self._passing: ResponseHead | None = None
        """A stored response's head of this second, which is known to go out as it is."""
        self.coding = codings[0]
        self.is_forced = is_forced
        """The visitor takes no content as it is."""
        self.is_head = head.method == b"HEAD"
        self.if_none_match = b",".join(head.get_all(b"if-none-match"))
        self.has_secrets = (not rule.allow_cookies and head.get(b"cookie") is not None) or (
            not rule.allow_authorization and head.get(b"authorization") is not None
        )
        self._head = _rewrite(head, codings)

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        cache = self._cache
        if cache is not None and end:
            entry = cache.hit(self._head)
            if entry is not None:
                if entry.head_now is self._passing and entry.whole:
                    client.on_head(entry.head_now, False)
                    client.on_data(entry.whole, True)
                    return CLOSED
                return self._answer_hit(entry, client)
        exchange = _Exchange(self, client)
        sink = self._next(self._head, peer, end, exchange)
        if sink is CLOSED:
            return sink
        return exchange.opened(sink, end)

    def _answer_hit(self, entry: Entry, client: ResponseSink) -> RequestSink:
        """A stored body in one piece: without an object for the exchange."""
        whole = entry.whole
        assert whole is not None
        verdict = self.stage.verdict(entry.head_now)
        if verdict.is_worth_it and (verdict.is_public or not self.has_secrets):
            send_whole(self, verdict, client, whole)
        elif self.is_forced or self.is_head:
            exchange = _Exchange(self, client)
            exchange.on_head(entry.head_now, False)
            exchange.on_data(whole, True)
        else:
            self._passing = entry.head_now
            client.on_head(entry.head_now, False)
            client.on_data(whole, True)
        return CLOSED


def send_whole(plan: _Negotiated, verdict: Verdict, client: ResponseSink, data: bytes) -> None:
    """Answers with a body that is there at once."""
    coding = plan.coding
    compressor = plan.stage.compressor
    stats = compressor.stats
    if not plan.is_forced and len(data) < plan.stage.min_bytes:
        output = b""
    elif verdict.source is not None:
        known = compressor.encodings.find_whole(verdict.source, coding)
        if known is None:
            output = compressor.encodings.encode_whole(verdict.source, coding, data)
        else:
            output = known
            stats.shared += 1
    else:
        output = ENCODE_WHOLE[coding](data)
        if len(output) >= len(data):
            output = b""
    if not output and plan.is_forced:
        output = ENCODE_WHOLE[coding](data)
    if not output:
        client.on_head(verdict.plain, not data)
        if data:
            client.on_data(data, True)
        return
    stats.bodies[coding] += 1
    stats.bytes_in += len(data)
    stats.bytes_out += len(output)
    client.on_head(verdict.encoded(coding, len(output)), False)
    client.on_data(output, True)


def _rewrite(head: RequestHead, codings: tuple[bytes, ...]) -> RequestHead:
    """The head for the stages behind. `If-Match` names what we made weak ourselves by its strong tag again: the comparison is
    strong (RFC 9110 §13.1.1), and who was given the compressed page could otherwise never say which one they mean to change."""
    fields: list[Field] = []
    for field in head.fields:
        if field[0] == b"accept-encoding":
            continue
        if field[0] == b"if-match" and b"W/" in field[1]:
            fields.append((b"if-match", _WEAK.sub(rb"\1", field[1])))
            continue
        fields.append(field)
    fields.append((b"accept-encoding", b", ".join(sorted(codings))))
    return head.replace(fields=tuple(fields))


class _Exchange:
    """One response on its way to a visitor who accepts a coding."""

    __slots__ = (
        "_burst",
        "_client",
        "_encoder",
        "_follower",
        "_held",
        "_is_over",
        "_is_paused",
        "_is_request_whole",
        "_is_resting",
        "_is_settled",
        "_plan",
        "_sink",
    )

    def __init__(self, plan: _Negotiated, client: ResponseSink) -> None:
        self._plan = plan
        self._client = client
        self._sink: RequestSink | None = None
        self._held: Verdict | None = None
        """A head that waits for the first piece of its body."""
        self._encoder: Encoder | Follower | None = None
        self._follower: Follower | None = None
        self._is_settled = False
        """It is known that this response passes as it is."""
        self._is_over = False
        self._is_paused = False
        self._is_resting = False
        self._is_request_whole = False
        self._burst = 0

    def opened(self, sink: RequestSink, end: bool) -> RequestSink:
        """`open` returned: what did not come within it may take long."""
        if self._is_settled:
            return sink
        self._sink = sink
        self._is_request_whole = end
        self._begin()
        return self

    # The response.

    def on_interim(self, head: ResponseHead) -> None:
        self._client.on_interim(head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        plan = self._plan
        verdict = plan.stage.verdict(head)
        if end:
            self._let_go()
        is_wanted = verdict.is_worth_it or (plan.is_forced and verdict.may_encode)
        if not is_wanted or (plan.has_secrets and not verdict.is_public) or (end and not plan.is_head):
            self._is_settled = True
            if head.status == 304 and plan.if_none_match:
                self._client.on_head(weaken_not_modified(head, plan.if_none_match), end)
            else:
                self._client.on_head(verdict.plain, end)
        elif end or plan.is_head:
            self._is_settled = True
            self._client.on_head(verdict.encoded(plan.coding, -1), end)
        else:
            self._held = verdict
            if self._sink is not None:
                plan.stage.scheduler.call_later(0.0, self._begin)

    def on_data(self, data: bytes, end: bool) -> None:
        if self._held is not None:
            if end:
                verdict, self._held = self._held, None
                self._is_settled = True
                self._let_go()
                send_whole(self._plan, verdict, self._client, data)
                return
            self._begin()
        if end:
            self._let_go()
        encoder = self._encoder
        if encoder is None:
            self._client.on_data(data, end)
            return
        stats = self._plan.stage.compressor.stats
        stats.bytes_in += len(data)
        if end:
            output = encoder.finish(data)
            self._close()
            stats.bytes_out += len(output)
            self._client.on_data(output, True)
            return
        output = encoder.encode(data)
        self._burst += len(data)
        if self._burst >= BURST_BYTES:
            self._rest()
        if output:
            stats.bytes_out += len(output)
            self._client.on_data(output, False)

    def _rest(self) -> None:
        """So much was compressed in one go that others must have their turn: a stored body would all come in this tick."""
        self._burst = 0
        sink = self._sink
        if sink is not None and not self._is_resting:
            self._is_resting = True
            if not self._is_paused:
                sink.pause_response()
            self._plan.stage.scheduler.call_later(0.0, self._go_on)

    def _go_on(self) -> None:
        self._is_resting = False
        if not self._is_paused and not self._is_over and self._sink is not None:
            self._sink.resume_response()

    def on_trailers(self, fields: Fields) -> None:
        self._begin()
        self._let_go()
        if self._encoder is not None:
            output = self._encoder.finish(b"")
            self._close()
            if output:
                self._client.on_data(output, False)
        self._client.on_trailers(fields)

    def on_reset(self, error: EdgetunError) -> None:
        self._held = None
        self._close()
        self._is_request_whole = True
        self._let_go()
        self._client.on_reset(error)

    def pause_request(self) -> None:
        self._client.pause_request()

    def resume_request(self) -> None:
        self._client.resume_request()

    def _let_go(self) -> None:
        """The response is over. We and whoever gave it point at each other, and are not to wait for the garbage collector."""
        self._is_over = True
        if self._is_request_whole and self._sink is not None:
            self._sink = CLOSED

    def _begin(self) -> None:
        """Sends the head that waits; the body will come in pieces."""
        verdict, self._held = self._held, None
        if verdict is None or self._is_over:
            return
        plan = self._plan
        compressor = plan.stage.compressor
        if verdict.source is not None:
            self._follower = self._encoder = compressor.encodings.follow(verdict.source, plan.coding)
        else:
            self._encoder = compressor.encoders.make(plan.coding)
        if self._encoder is None:
            self._is_settled = True
            self._client.on_head(verdict.plain, False)
            return
        compressor.stats.bodies[plan.coding] += 1
        self._client.on_head(verdict.encoded(plan.coding, -1), False)

    def _close(self) -> None:
        """Gives back the encoder."""
        self._is_over = True
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        elif self._encoder is not None:
            self._plan.stage.compressor.encoders.release(self._plan.coding)
        self._encoder = None

    # The request.

    def send_data(self, data: bytes, end: bool) -> None:
        assert self._sink is not None
        self._sink.send_data(data, end)
        if end:
            self._on_request_whole()

    def send_trailers(self, fields: Fields) -> None:
        assert self._sink is not None
        self._sink.send_trailers(fields)
        self._on_request_whole()

    def _on_request_whole(self) -> None:
        self._is_request_whole = True
        if self._is_over:
            self._sink = CLOSED

    def reset(self, error: EdgetunError) -> None:
        assert self._sink is not None
        self._held = None
        self._close()
        sink, self._sink = self._sink, CLOSED
        sink.reset(error)

    def pause_response(self) -> None:
        assert self._sink is not None
        if not self._is_paused:
            self._is_paused = True
            if not self._is_resting:
                self._sink.pause_response()

    def resume_response(self) -> None:
        assert self._sink is not None
        if self._is_paused:
            self._is_paused = False
            if not self._is_resting:
                self._sink.resume_response()
