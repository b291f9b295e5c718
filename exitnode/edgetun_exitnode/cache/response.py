"""A response that may answer more than one visitor, and the heads it answers with, each rendered once per second of age.

Sharing the `ResponseHead` objects matters: a front keeps its rendering on the head, so a crowd costs one rendering a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal
from weakref import ref

from edgetun_core.http.message import Field, Fields, ResponseHead
from edgetun_exitnode.cache.dates import format_http_date, parse_http_date
from edgetun_exitnode.cache.freshness import Timing, current_age_s
from edgetun_exitnode.cache.ranges import Span, join_spans
from edgetun_exitnode.cache.validators import ByteRange, Condition, parse_etag

if TYPE_CHECKING:
    from edgetun_exitnode.pipeline.compression.shared import SharedEncoding

STRONG_DATE_S: Final = 60.0
CACHE_NAME: Final = b"edgetun"
"""How this cache calls itself in Cache-Status (RFC 9211 §2)."""

Use = Literal["hit", "led", "validated", "collapsed", "revalidating", "error", "accepted"]
"""How a response comes to answer a visitor: from store, from a fetch made for them, from store after the origin confirmed it (304),
from another visitor's fetch, stale while a fetch runs, stale because the origin failed, or stale because the visitor takes it."""

_KEPT_IN_304: Final = frozenset(
    {b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary", b"last-modified"}
)
"""RFC 9110 §15.4.5."""


def cache_status(detail: bytes) -> Field:
    """Our member of Cache-Status; it comes after those of caches nearer to the origin (RFC 9211 §2)."""
    return (b"cache-status", CACHE_NAME + b"; " + detail)


def with_cache_status(response: ResponseHead, detail: bytes, wall_s: float) -> ResponseHead:
    """The head of a forwarded response: as the origin sent it, with our Cache-Status, and a `Date` if it had none
    (RFC 9110 §6.6.1)."""
    fields: Fields = (*response.fields, cache_status(detail))
    if response.get(b"date") is None:
        fields = ((b"date", format_http_date(wall_s)), *fields)
    return ResponseHead(response.status, fields)


class StoredResponse:
    """Status, fields and times of a response as it is reused. `fields` hold no `age`; `length` is -1 while unknown."""

    __slots__ = (
        "__weakref__",
        "_heads",
        "_heads_until",
        "answers_authorized",
        "date",
        "encodings",
        "etag",
        "fields",
        "fresh_until",
        "fwd",
        "is_head_only",
        "key_parameter",
        "last_modified",
        "last_modified_field",
        "length",
        "status",
        "timing",
    )

    def __init__(
        self, status: int, fields: Fields, timing: Timing, length: int, wall_s: float, *, is_head_only: bool = False
    ) -> None:
        head = ResponseHead(status, fields)
        if head.get(b"date") is None:
            fields = ((b"date", format_http_date(wall_s)), *fields)
        self.status = status
        self.fields = fields
        self.timing = timing
        self.fresh_until = timing.fresh_until
        self.length = length
        self.is_head_only = is_head_only
        self.answers_authorized = False
        self.key_parameter = b""
        """`key` of Cache-Status, where the operator shows it (RFC 9211 §2.8)."""
        self.fwd = b"fwd=uri-miss"
        """Why it was fetched (RFC 9211 §2.2), for those who share the fetch."""
        self.etag = parse_etag(head.get(b"etag"))
        modified = head.get(b"last-modified")
        self.last_modified = None if modified is None else parse_http_date(modified)
        self.last_modified_field = modified if self.last_modified is not None else None
        stated = head.get(b"date")
        self.date = (parse_http_date(stated) if stated is not None else None) or wall_s
        """When the origin made it; when it came, if the origin does not say."""
        self.encodings: dict[bytes, SharedEncoding] | None = None
        """What `pipeline/compression` made of the body, by coding."""
        self._heads: dict[tuple[Use, int], ResponseHead] = {}
        self._heads_until = float("-inf")

    def state_length(self) -> None:
        """Adds the Content-Length that is known already."""
        self.fields = (*self.fields, (b"content-length", b"%d" % self.length))

    @property
    def can_be_validated(self) -> bool:
        """The origin can be asked whether it still holds (RFC 9111 §4.3.1)."""
        return self.status == 200 and (self.etag is not None or self.last_modified is not None)

    def with_timing(self, timing: Timing, wall_s: float) -> StoredResponse:
        """The same response with another freshness."""
        other = StoredResponse(self.status, self.fields, timing, self.length, wall_s, is_head_only=self.is_head_only)
        other.fwd, other.answers_authorized = self.fwd, self.answers_authorized
        other.key_parameter = self.key_parameter
        return other

    def set_length(self, length: int) -> None:
        """The body is complete: from now on its length is stated, so that a front need not chunk."""
        if self.length < 0 and self.status not in (204, 304) and not self.is_head_only:
            self.fields = (*self.fields, (b"content-length", b"%d" % length))
            self._heads_until = float("-inf")
        self.length = length

    def valid_until(self, now: float) -> float:
        """Until when a head rendered now is right: the next whole second of age, or the end of freshness."""
        age_s = current_age_s(self.timing, now)
        next_second = now + (int(age_s) + 1 - age_s)
        return min(next_second, self.fresh_until) if now < self.fresh_until else next_second

    def head(self, now: float, use: Use) -> ResponseHead:
        """The head of the whole response."""
        return self._render(now, use, self.status)

    def not_modified(self, now: float, use: Use) -> ResponseHead:
        """The head of a 304 (RFC 9110 §15.4.5)."""
        return self._render(now, use, 304)

    def _render(self, now: float, use: Use, status: int) -> ResponseHead:
        if now >= self._heads_until:
            self._heads.clear()
            self._heads_until = self.valid_until(now)
        head = self._heads.get((use, status))
        if head is None:
            fields = self.fields
            if status == 304:
                fields = tuple(field for field in fields if field[0] in _KEPT_IN_304)
            head = ResponseHead(status, (*fields, *self._ending(now, use)))
            mark_stored(head, self)
            head.recurs = True
            self._heads[use, status] = head
        return head

    def partial(self, now: float, use: Use, first: int, last: int) -> ResponseHead:
        """The head of a 206 with the bytes `first` to `last` (RFC 9110 §15.3.7)."""
        fields = tuple(field for field in self.fields if field[0] != b"content-length")
        return ResponseHead(
            206,
            (
                *fields,
                (b"content-range", b"bytes %d-%d/%d" % (first, last, self.length)),
                (b"content-length", b"%d" % (last - first + 1)),
                *self._ending(now, use),
            ),
        )

    def multipart(self, now: float, use: Use, length: int, boundary: bytes) -> ResponseHead:
        """The head of a 206 with several parts of `length` bytes together (RFC 9110 §15.3.7.2)."""
        fields = tuple(field for field in self.fields if field[0] not in (b"content-length", b"content-type"))
        return ResponseHead(
            206,
            (
                *fields,
                (b"content-type", b"multipart/byteranges; boundary=" + boundary),
                (b"content-length", b"%d" % length),
                *self._ending(now, use),
            ),
        )

    @property
    def has_strong_date(self) -> bool:
        """Last-Modified tells two representations apart for sure: it lay a minute back when the response was made (RFC 9110 §8.8.2.2)."""
        return self.last_modified is not None and self.date - self.last_modified >= STRONG_DATE_S

    def unsatisfiable(self, now: float, use: Use) -> ResponseHead:
        """The head of a 416 (RFC 9110 §15.5.17)."""
        fields = tuple(field for field in self.fields if field[0] in (b"date", b"etag", b"vary"))
        content_range = (b"content-range", b"bytes */%d" % self.length)
        return ResponseHead(416, (*fields, content_range, (b"content-length", b"0"), *self._ending(now, use)))

    def _ending(self, now: float, use: Use) -> Fields:
        ttl_s = self.fresh_until - now
        # A stale response never says ttl=0 or more (RFC 9211 §2.4).
        ttl = int(ttl_s) if ttl_s > 0 else min(-1, int(ttl_s))
        match use:
            case "hit":
                detail = b"hit; ttl=%d" % ttl
            case "collapsed":
                detail = b"%s; collapsed; ttl=%d" % (self.fwd, ttl)
            case "led":
                detail = b"%s; ttl=%d" % (self.fwd, ttl)
            case "validated":
                detail = b"%s; fwd-status=304; ttl=%d" % (self.fwd, ttl)
            case "accepted":
                detail = b"hit; ttl=%d; detail=max-stale" % ttl
            case "revalidating":
                detail = b"hit; ttl=%d; detail=stale-while-revalidate" % ttl
            case "error":
                detail = b"fwd=stale; ttl=%d; detail=stale-if-error" % ttl
        return ((b"age", b"%d" % int(current_age_s(self.timing, now))), cache_status(detail + self.key_parameter))


def mark_stored(head: ResponseHead, response: StoredResponse) -> None:
    """Tells of a head that it answers with this response, for `stored_behind`. It does not keep the response: a response keeps its
    heads, and what is superseded every second must not wait for the garbage collector."""
    head.view = ref(response)


def stored_behind(head: ResponseHead) -> StoredResponse | None:
    """The response of the cache that a head answers with; None when it is none of the cache's, or the response is gone."""
    view = head.view
    if isinstance(view, ref):
        response = view()
        if isinstance(response, StoredResponse):
            return response
    return None


def decide_not_modified(response: StoredResponse, condition: Condition | None) -> bool:
    """True when a 304 answers; conditions are evaluated only where the answer would be 2xx (RFC 9110 §13.2.1)."""
    return (
        condition is not None
        and 200 <= response.status < 300
        # Without Last-Modified the Date stands in for it (RFC 9111 §4.3.2).
        and condition.is_not_modified(
            response.etag, response.date if response.last_modified is None else response.last_modified
        )
    )


def decide_range(
    response: StoredResponse, wanted: ByteRange | None
) -> tuple[Span, ...] | Literal["whole", "unsatisfiable"]:
    """Which bytes answer a Range request, in ascending order; the whole is always right (RFC 9110 §14.2)."""
    if wanted is None or response.status != 200 or response.length < 0 or not matches_if_range(response, wanted):
        return "whole"
    if not wanted.more:
        span = wanted.resolve(response.length)
        return (span,) if span is not None else "unsatisfiable"
    spans = [span for one in (wanted, *wanted.more) if (span := one.resolve(response.length)) is not None]
    return join_spans(spans) or "unsatisfiable"


def matches_if_range(response: StoredResponse, wanted: ByteRange) -> bool:
    """True when the visitor's other parts are of this very response, or they do not say (RFC 9110 §13.1.5)."""
    if wanted.never:
        return False
    if wanted.if_range_date is not None:
        return response.has_strong_date and response.last_modified_field == wanted.if_range_date
    return wanted.if_range is None or wanted.if_range == response.etag


def gateway_timeout(wall_s: float) -> ResponseHead:
    """What `only-if-cached` gets when nothing fits (RFC 9111 §5.2.1.7)."""
    return ResponseHead(
        504,
        (
            (b"date", format_http_date(wall_s)),
            (b"content-length", b"0"),
            (b"cache-control", b"no-store"),
            cache_status(b"detail=only-if-cached"),
        ),
    )
