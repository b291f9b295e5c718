"""Decisions of the cache: may a response be stored, how long is it fresh, may it answer this request (RFC 9111 §3, §4.2).

Pure: every moment is handed in. `now`, `received_at` and `requested_at` are monotonic seconds, `wall_s` seconds since 1970.
What is not surely storable is not stored. A response without a stated freshness (or the operator's) is stored only where the
origin can be asked whether it still holds, and answers nobody without that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgetun_core.http.message import Fields, RequestHead, ResponseHead
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.dates import parse_http_date
from edgetun_exitnode.cache.directives import (
    MAX_DELTA_S,
    RequestDirectives,
    ResponseDirectives,
    parse_delta_s,
    parse_response_directives,
)
from edgetun_exitnode.cache.targeted import TARGETS, parse_targeted
from edgetun_exitnode.cache.validators import parse_etag

CACHEABLE_BY_DEFAULT: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""RFC 9110 §15.1, without 206: a part is never stored."""
UNDERSTOOD: Final = CACHEABLE_BY_DEFAULT | {302, 307, 403, 500, 502, 503, 504}
"""Statuses whose caching rules this cache knows and follows: what `must-understand` asks for (RFC 9111 §5.2.2.3)."""
NEVER_STORED: Final = frozenset({206, 304})
"""A part is stored as a part or not at all (`parts.py`); a 304 updates what is stored."""
ABOUT_THE_REQUEST: Final = frozenset({401, 407, 412, 416, 417, 421, 425, 426, 428, 429, 431, 511})
"""They answer something of this one request that is not in the key; four of them must not be stored at all (RFC 6585)."""
HEURISTIC_FRACTION: Final = 0.1
"""Of the time since Last-Modified, where the operator allows heuristics (RFC 9111 §4.2.2)."""
ERRORS: Final = frozenset({500, 502, 503, 504})
"""What stale-if-error stands in for (RFC 5861 §4)."""

MAX_VARY_NAMES: Final = 8
MAX_VARY_BYTES: Final = 512

_NOT_STORED_FIELDS: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"trailer",
        b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization",
        b"age",
    }
)  # fmt: skip
"""RFC 9111 §3.1. Trailers are not stored, so `trailer` would announce nothing; `age` is computed for each reuse."""

_ENDLESS_TYPES: Final = (b"text/event-stream", b"multipart/x-mixed-replace")

_SET_BY_US: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
"""Fields with the visitor's address, which the exit node writes itself: a response that varies on them is nobody else's."""

_NAMED_BY_THE_KEY: Final = frozenset({b"host", b"x-forwarded-host", b"x-forwarded-proto"})
"""Host and scheme are in the primary key; varying on them adds nothing."""

FoundFields = dict[bytes, list[bytes]]
"""Values by name of the fields that decide."""

_FIELD_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Timing:
    """When a stored response is fresh, and what may be done with it after (RFC 9111 §4.2, §4.2.4, RFC 5861).

    `age_on_arrival_s` is the corrected initial age of §4.2.3. `counts_from_arrival` is the operator's override: the lifetime
    runs from `received_at`, whatever age the response had then.
    """

    received_at: float
    age_on_arrival_s: float
    lifetime_s: float
    counts_from_arrival: bool = False
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    may_be_stale: bool = True
    """False: nobody's wish makes a stale one do (§4.2.4)."""
    is_immutable: bool = False
    """It does not change while it is fresh (RFC 8246)."""

    @property
    def fresh_until(self) -> float:
        """The monotonic moment from which the response is stale."""
        spent_s = 0.0 if self.counts_from_arrival else self.age_on_arrival_s
        return self.received_at + self.lifetime_s - spent_s

    @property
    def useful_until(self) -> float:
        """The moment from which it answers nobody any more."""
        return self.fresh_until + max(self.stale_while_revalidate_s, self.stale_if_error_s)


@dataclass(frozen=True, slots=True)
class Storable:
    """The response may be stored and, if `is_shareable`, shared with whoever asked for the same.

    One that is not shareable is stale from the first: it answers who asked, and others after the origin confirmed it.
    """

    timing: Timing
    fields: Fields
    """The fields as stored: without hop-by-hop fields, `Age`, and what must not be reused."""
    vary: tuple[bytes, ...]
    length: int
    """Content-Length, or -1 when the origin stated none."""
    is_shareable: bool = True
    answers_authorized: bool = False
    """It may answer requests with `Authorization` (§3.5)."""


@dataclass(frozen=True, slots=True)
class NotStorable:
    """The response is for the one visitor whose request it answers."""

    reason: str
    is_error: bool = False
    """The origin failed (5xx): it says nothing about the next response, so it is not remembered for long."""


@dataclass(frozen=True, slots=True)
class Told:
    """What another cache of the same fleet says of a response that comes from its store: it may be used for as long as there."""

    age_s: float
    fresh_s: float

    def apply(self, timing: Timing) -> Timing:
        """The timing here, with nothing added to what is left there."""
        spent_s = 0.0 if timing.counts_from_arrival else self.age_s
        return replace(timing, age_on_arrival_s=self.age_s, lifetime_s=self.fresh_s + spent_s)


Storability = Storable | NotStorable


@dataclass(frozen=True, slots=True)
class Fresh:
    """May be used as it is (RFC 9111 §4.2)."""

    age_s: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Stale:
    """May be used only where staleness is allowed (RFC 9111 §4.2.4)."""

    age_s: int
    ttl_s: int
    may_serve_while_revalidating: bool
    may_serve_on_error: bool
    is_accepted: bool = False
    """The visitor takes it as it is (`max-stale`, §5.2.1.2)."""


@dataclass(frozen=True, slots=True)
class MustForward:
    """The visitor wants it from the origin."""

    reason: str


Freshness = Fresh | Stale | MustForward


def current_age_s(timing: Timing, now: float) -> float:
    """RFC 9111 §4.2.3: the age on arrival and the time it has rested here."""
    return timing.age_on_arrival_s + max(0.0, now - timing.received_at)


def age_on_arrival_s(found: FoundFields, requested_at: float, received_at: float, wall_s: float) -> float:
    """corrected_initial_age of RFC 9111 §4.2.3: the larger of what the clocks say and what `Age` says plus the round trip."""
    # Of several values the first counts (§5.1); one that is no number counts as 0.
    ages = [parse_delta_s(value.split(b",", 1)[0].strip(b" \t")) for value in found.get(b"age", ())[:1]]
    dates = [date for value in found.get(b"date", ()) if (date := parse_http_date(value)) is not None]
    # Dates have whole seconds, and so has the moment they are compared with: made this very second is not old.
    apparent_age_s = max(0.0, int(wall_s) - min(dates)) if dates else 0.0
    corrected_age_s = max(ages, default=0) + max(0.0, received_at - requested_at)
    return max(apparent_age_s, corrected_age_s)


def freshness_lifetime_s(directives: ResponseDirectives, found: FoundFields, wall_s: float) -> float | None:
    """RFC 9111 §4.2.1 for a shared cache, or None when the origin stated no lifetime."""
    if directives.s_maxage_s is not None:
        return float(directives.s_maxage_s)
    if directives.max_age_s is not None:
        return float(directives.max_age_s)
    expires = found.get(b"expires")
    if not expires:
        return None
    moments = [parse_http_date(value) for value in expires]
    known = [moment for moment in moments if moment is not None]
    if len(known) < len(moments) or len(set(known)) > 1:
        return 0.0  # an invalid date, "0" above all, is in the past (§5.3); of two that differ neither counts (§4.2.1)
    dates = [date for value in found.get(b"date", ()) if (date := parse_http_date(value)) is not None]
    return min(max(0.0, min(known) - (max(dates) if dates else wall_s)), float(MAX_DELTA_S))


def heuristic_lifetime_s(found: FoundFields, wall_s: float, max_s: float) -> float:
    """A tenth of the time since the last change, at most `max_s` (RFC 9111 §4.2.2); 0 when that is not known."""
    modified = found.get(b"last-modified", ())
    if len(modified) != 1 or (changed_at := parse_http_date(modified[0])) is None:
        return 0.0
    dates = [date for value in found.get(b"date", ()) if (date := parse_http_date(value)) is not None]
    return min(max(0.0, (min(dates) if dates else wall_s) - changed_at) * HEURISTIC_FRACTION, max_s)


def parse_vary(values: Sequence[bytes]) -> tuple[bytes, ...] | None:
    """The names a response varies on, sorted, lower case; None when no other request can be known to match (§4.1)."""
    names: set[bytes] = set()
    for value in values:
        for part in value.split(b","):
            name = part.strip(b" \t").lower()
            if not name:
                continue
            if name == b"*" or name in _SET_BY_US or _FIELD_NAME.fullmatch(name) is None:
                return None
            names.add(name)
    names -= _NAMED_BY_THE_KEY
    if len(names) > MAX_VARY_NAMES or sum(map(len, names)) > MAX_VARY_BYTES:
        return None
    return tuple(sorted(names))


def decide_storable(
    rule: CacheRule,
    request: RequestHead,
    request_directives: RequestDirectives,
    response: ResponseHead,
    *,
    requested_at: float,
    received_at: float,
    wall_s: float,
    told: Told | None = None,
) -> Storability:
    """Says whether a response may be stored and shared, and for how long it is fresh (RFC 9111 §3, §4.2).

    `received_at` is when its head arrived. A body that turns out incomplete or too large is the caller's to drop.
    """
    status = response.status
    if request.method not in (b"GET", b"HEAD"):
        return NotStorable("method (§3)")
    failed = status >= 500
    if status < 200 or status in NEVER_STORED or (status in ABOUT_THE_REQUEST and status not in rule.statuses):
        return NotStorable("status (§3)", is_error=failed)
    found = _read_fields(response)
    directives = _read_directives(found)
    if directives.must_understand and status not in UNDERSTOOD:
        return NotStorable("must-understand (§5.2.2.3)", is_error=failed)
    if not rule.ignore_no_store:
        if directives.no_store and not directives.must_understand:
            return NotStorable("response no-store (§5.2.2.5)", is_error=failed)
        if directives.private:
            return NotStorable("response private (§5.2.2.7)", is_error=failed)
        if request_directives.no_store:
            return NotStorable("request no-store (§5.2.1.5)")
    has_authorization = request.get(b"authorization") is not None
    answers_authorized = (
        rule.allow_authorization or directives.public or directives.must_revalidate or directives.s_maxage_s is not None
    )
    if has_authorization and not answers_authorized:
        return NotStorable("Authorization (§3.5)")
    has_cookie = b"set-cookie" in found or b"set-cookie2" in found
    if has_cookie and not rule.allow_set_cookie:
        return NotStorable("Set-Cookie", is_error=failed)
    vary = parse_vary(found.get(b"vary", ()))
    if vary is None:
        return NotStorable("Vary (§4.1)")
    if any(value.lower().startswith(_ENDLESS_TYPES) for value in found.get(b"content-type", ())):
        return NotStorable("a body without end")
    length = _content_length(found.get(b"content-length", ()))
    if length is None:
        return NotStorable("Content-Length (§3.3)")
    if length > rule.max_object_bytes and request.method == b"GET":
        return NotStorable("larger than maxObjectBytes")
    timing = _decide_timing(rule, directives, response.status, found, requested_at, received_at, wall_s)
    if told is not None:
        timing = told.apply(timing)
    is_shareable = timing.fresh_until + timing.stale_while_revalidate_s > received_at
    if not is_shareable and not (status == 200 and request.method == b"GET" and _has_validator(found)):
        return NotStorable("no freshness (§4.2.1), and nothing to validate by", is_error=failed)
    dropped = _NOT_STORED_FIELDS | set(directives.no_cache_fields) | set(directives.private_fields)
    if has_cookie:
        dropped |= {b"set-cookie", b"set-cookie2"}
    fields = tuple(field for field in response.fields if field[0] not in dropped)
    return Storable(timing, fields, vary, length, is_shareable, answers_authorized)


_READ: Final = frozenset(
    {
        b"age", b"cache-control", b"content-length", b"content-type", b"date", b"etag", b"expires", b"last-modified",
        b"pragma", b"set-cookie", b"set-cookie2", b"vary", *TARGETS,
    }
)  # fmt: skip


def _read_directives(found: FoundFields) -> ResponseDirectives:
    """What the origin allows this cache. A targeted field takes the place of Cache-Control, Expires and Pragma (RFC 9213 §2.2)."""
    if any(name in found for name in TARGETS) and (targeted := parse_targeted(found)) is not None:
        for name in (b"cache-control", b"expires", b"pragma"):
            found.pop(name, None)
        return targeted
    return parse_response_directives(found.get(b"cache-control", ()))


def _has_validator(found: FoundFields) -> bool:
    etags = found.get(b"etag", ())
    if len(etags) == 1 and parse_etag(etags[0]) is not None:
        return True
    modified = found.get(b"last-modified", ())
    return len(modified) == 1 and parse_http_date(modified[0]) is not None


def _read_fields(response: ResponseHead) -> FoundFields:
    found: FoundFields = {}
    for name, value in response.fields:
        if name in _READ:
            found.setdefault(name, []).append(value)
    return found


def _content_length(values: Sequence[bytes]) -> int | None:
    if not values:
        return -1
    if len(set(values)) > 1 or not values[0].isdigit() or len(values[0]) > 15:
        return None
    return int(values[0])


def _decide_timing(
    rule: CacheRule,
    directives: ResponseDirectives,
    status: int,
    found: FoundFields,
    requested_at: float,
    received_at: float,
    wall_s: float,
) -> Timing:
    """When the response is fresh; with a lifetime of 0 it never is without asking the origin."""
    age_s = age_on_arrival_s(found, requested_at, received_at, wall_s)
    is_override = rule.mode == "override" and status in (rule.statuses or CACHEABLE_BY_DEFAULT)
    # §4.2.4, §5.2.2.2, §5.2.2.8, §5.2.2.10: s-maxage means proxy-revalidate too.
    may_be_stale = not (
        directives.must_revalidate
        or directives.proxy_revalidate
        or directives.no_cache
        or (directives.s_maxage_s is not None and not is_override)
    )
    revalidate_s = error_s = 0.0
    if may_be_stale:
        stated = directives.stale_while_revalidate_s
        revalidate_s = rule.stale_while_revalidate_s if stated is None or is_override else float(stated)
        stated = directives.stale_if_error_s
        error_s = rule.stale_if_error_s if stated is None or is_override else float(stated)
    if is_override:
        return Timing(received_at, age_s, rule.ttl_s, True, revalidate_s, error_s, may_be_stale)
    lifetime_s = freshness_lifetime_s(directives, found, wall_s)
    if directives.no_cache or (b"pragma" in found and b"cache-control" not in found):
        lifetime_s = 0.0  # §5.2.2.4: usable after validation only
    elif lifetime_s is None:
        # Neither the origin nor the operator gave a lifetime: nothing is said about staleness either.
        lifetime_s = revalidate_s = error_s = 0.0
        if rule.heuristic_max_s and (status in CACHEABLE_BY_DEFAULT or directives.public):
            lifetime_s = heuristic_lifetime_s(found, wall_s, rule.heuristic_max_s)
    return Timing(
        received_at,
        age_s,
        lifetime_s,
        False,
        revalidate_s,
        error_s,
        may_be_stale,
        directives.immutable and lifetime_s > 0,
    )


def decide_freshness(timing: Timing, request: RequestDirectives | None, now: float) -> Freshness:
    """Says whether a stored response may answer a request (RFC 9111 §4.2, §5.2.1).

    None for `request` leaves the visitor's directives out of account, as the operator's override does.
    """
    age_s = current_age_s(timing, now)
    left_s = timing.fresh_until - now
    if request is not None:
        if request.no_cache:
            return MustForward("request no-cache (§5.2.1.4)")
        if request.max_age_s is not None and age_s > request.max_age_s and not (timing.is_immutable and left_s > 0):
            return MustForward("request max-age (§5.2.1.1)")
        if request.min_fresh_s and left_s < request.min_fresh_s:
            return MustForward("request min-fresh (§5.2.1.3)")
        if left_s <= 0 and not (timing.may_be_stale and -left_s < request.max_stale_s):
            return MustForward("stale beyond max-stale (§5.2.1.2)")
    if left_s > 0:
        return Fresh(int(age_s), int(left_s))
    # int() rounds towards zero: a response that is stale by half a second says ttl=0, which RFC 9211 §2.4 counts as stale too.
    return Stale(
        int(age_s),
        int(left_s),
        may_serve_while_revalidating=-left_s < timing.stale_while_revalidate_s,
        may_serve_on_error=-left_s < timing.stale_if_error_s,
        is_accepted=request is not None,
    )
