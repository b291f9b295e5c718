"""What may be stored and how long it is fresh, by the sections of RFC 9111."""

from __future__ import annotations

import pytest

from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.dates import format_http_date
from edgetun_exitnode.cache.directives import NO_REQUEST_DIRECTIVES, RequestDirectives
from edgetun_exitnode.cache.freshness import (
    Fresh,
    MustForward,
    NotStorable,
    Stale,
    Storable,
    Timing,
    current_age_s,
    decide_freshness,
    decide_storable,
)

WALL = 1_700_000_000.0
RESPECT = CacheRule()
OVERRIDE = CacheRule(mode="override", ttl_s=2.0)
DATE = (b"date", format_http_date(WALL))


def cc(value: str) -> tuple[bytes, bytes]:
    return (b"cache-control", value.encode())


def decide(
    *fields,
    rule=RESPECT,
    status=200,
    method=b"GET",
    request_fields=(),
    directives=NO_REQUEST_DIRECTIVES,
    delay=0.0,
    wall=WALL,
):
    return decide_storable(
        rule,
        RequestHead(method, b"http", b"shop.test", b"/", tuple(request_fields)),
        directives,
        ResponseHead(status, fields),
        requested_at=100.0 - delay,
        received_at=100.0,
        wall_s=wall,
    )


def fresh_for(verdict) -> float:
    assert isinstance(verdict, Storable), verdict
    return verdict.timing.fresh_until - 100.0


@pytest.mark.parametrize(
    ("section", "fields", "status", "expected_s"),
    [
        ("§4.2.1 max-age", [cc("max-age=10")], 200, 10),
        ("§4.2.1 s-maxage before max-age", [cc("max-age=10, s-maxage=5")], 200, 5),
        ("§4.2.1 max-age before Expires", [cc("max-age=10"), DATE, (b"expires", format_http_date(WALL + 99))], 200, 10),
        ("§4.2.1 Expires less Date", [DATE, (b"expires", format_http_date(WALL + 7))], 200, 7),
        ("§4.2.1 Expires without Date", [(b"expires", format_http_date(WALL + 7))], 200, 7),
        ("§4.2.1 two Expires that are one", [DATE, (b"expires", format_http_date(WALL + 7)), (b"expires", format_http_date(WALL + 7))], 200, 7),
        ("§5.2.2.7 private with names", [cc('max-age=10, private="x"')], 200, 10),
        ("§5.2.2.4 no-cache with names", [cc('max-age=10, no-cache="x"')], 200, 10),
        ("§5.2.2.3 must-understand lifts no-store", [cc("max-age=10, no-store, must-understand")], 200, 10),
        ("§3 a status without rules of its own", [cc("max-age=10")], 299, 10),
        ("§3 an unknown status", [cc("max-age=10")], 599, 10),
        ("§5.1 the first of several ages", [cc("max-age=10"), (b"age", b"4, 8")], 200, 6),
        ("§5.1 the first of several Age lines", [cc("max-age=10"), (b"age", b"4"), (b"age", b"9")], 200, 6),
        ("§5.1 an Age that is no number", [cc("max-age=10"), (b"age", b"old")], 200, 10),
        ("RFC 9213 §2.2 edgetun's own field first", [cc("max-age=10"), (b"cdn-cache-control", b"max-age=20"), (b"edgetun-cache-control", b"max-age=30")], 200, 30),
        ("RFC 9213 §2.2 a targeted field before Cache-Control", [cc("no-store"), (b"cdn-cache-control", b"max-age=20")], 200, 20),
        ("RFC 9213 §2.1 malformed: the next one counts", [cc("max-age=10"), (b"edgetun-cache-control", b"max-age=30,"), (b"cdn-cache-control", b"max-age=20")], 200, 20),
        ("RFC 9213 §2.1 malformed: Cache-Control counts", [cc("max-age=10"), (b"cdn-cache-control", b"Max-Age=20")], 200, 10),
        ("RFC 9213 §2.2 empty: Cache-Control counts", [cc("max-age=10"), (b"cdn-cache-control", b"")], 200, 10),
        ("RFC 9213 §2.1 parameters mean nothing", [cc("max-age=10"), (b"cdn-cache-control", b"max-age=20;x=y, no-store=?0")], 200, 20),
        ("RFC 9213 two lines are one", [(b"cdn-cache-control", b"max-age=20"), (b"cdn-cache-control", b"must-revalidate")], 200, 20),
        ("RFC 9651 the last of two keys", [(b"cdn-cache-control", b"max-age=20, max-age=7")], 200, 7),
        ("§4.2.3 Age is spent already", [cc("max-age=10"), (b"age", b"4")], 200, 6),
        ("§4.2.3 an old Date is spent already", [cc("max-age=10"), (b"date", format_http_date(WALL - 3))], 200, 7),
        ("§3 redirect with stated freshness", [cc("max-age=10")], 302, 10),
        ("§3 error with stated freshness", [cc("max-age=10")], 503, 10),
        ("§3 404", [cc("max-age=10")], 404, 10),
        ("RFC 9110 §5.6.7 an hour in the future counts as now", [cc("max-age=10"), (b"date", format_http_date(WALL + 3600))], 200, 10),
    ],
)  # fmt: skip
def test_stored_by_the_origins_word(section, fields, status, expected_s):
    assert fresh_for(decide(*fields, status=status)) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("section", "fields", "status"),
    [
        ("§4.2.2 no freshness stated, none guessed", [DATE], 200),
        ("§3 public alone says not how long", [cc("public")], 200),
        ("§5.2.2.5 no-store", [cc("max-age=10, no-store")], 200),
        ("§5.2.2.7 private", [cc("max-age=10, private")], 200),
        (
            "§4.2.1 two Expires that differ",
            [DATE, (b"expires", format_http_date(WALL + 7)), (b"expires", format_http_date(WALL + 3))],
            200,
        ),
        ("§5.2.2.7 private with what is no name", [cc('max-age=10, private="x y"')], 200),
        ("§5.2.2.3 must-understand, and we do not", [cc("max-age=10, must-understand")], 299),
        ("RFC 9213 no-store for caches like this one", [cc("max-age=10"), (b"cdn-cache-control", b"no-store")], 200),
        ("RFC 9213 private for this one", [cc("max-age=10"), (b"edgetun-cache-control", b"private")], 200),
        (
            "RFC 9213 §2.1 a number as text is left out, and Expires does not count",
            [(b"cdn-cache-control", b'max-age="20"'), DATE, (b"expires", format_http_date(WALL + 9))],
            200,
        ),
        ("RFC 6585 429", [cc("max-age=10")], 429),
        ("RFC 6585 511", [cc("max-age=10")], 511),
        ("§5.2.2.4 no-cache", [cc("max-age=10, no-cache")], 200),
        ("§4.2.1 stale on arrival", [cc("max-age=0")], 200),
        ("§4.2.1 s-maxage=0 before max-age", [cc("s-maxage=0, max-age=10")], 200),
        ("§4.2.3 spent on the way", [cc("max-age=10"), (b"age", b"10")], 200),
        ("§5.3 an invalid Expires is in the past", [DATE, (b"expires", b"0")], 200),
        ("§5.3 one of two is invalid", [DATE, (b"expires", b"-1"), (b"expires", format_http_date(WALL + 9))], 200),
        ("§5.4 Pragma alone", [(b"pragma", b"no-cache"), DATE, (b"expires", format_http_date(WALL + 9))], 200),
        ("§4.1 Vary: *", [cc("max-age=10"), (b"vary", b"accept, *")], 200),
        ("§4.1 Vary that is no list of names", [cc("max-age=10"), (b"vary", b"a b")], 200),
        ("§4.1 Vary on the visitor's address", [cc("max-age=10"), (b"vary", b"X-Forwarded-For")], 200),
        ("§4.1 Vary on more than is sensible", [cc("max-age=10"), (b"vary", b"a,b,c,d,e,f,g,h,i")], 200),
        ("§3.3 206 is a part", [cc("max-age=10"), (b"content-range", b"bytes 0-1/2")], 206),
        ("§3 304 is no whole response", [cc("max-age=10")], 304),
        ("§3 401", [cc("max-age=10")], 401),
        ("Set-Cookie", [cc("max-age=10"), (b"set-cookie", b"a=b")], 200),
        ("malformed Cache-Control", [cc("max-age=10;public")], 200),
        ("event stream", [cc("max-age=10"), (b"content-type", b"Text/Event-Stream; charset=utf-8")], 200),
        ("two lengths", [cc("max-age=10"), (b"content-length", b"1"), (b"content-length", b"2")], 200),
        ("too large", [cc("max-age=10"), (b"content-length", b"99999999")], 200),
    ],
)
def test_not_stored_by_the_origins_word(section, fields, status):
    assert isinstance(decide(*fields, status=status), NotStorable)


@pytest.mark.parametrize(
    ("why", "fields", "status"),
    [
        ("nothing stated", [], 200),
        ("no-cache", [cc("no-cache")], 200),
        ("max-age=0, must-revalidate", [cc("max-age=0, must-revalidate")], 200),
        ("a year", [cc("public, max-age=31536000, immutable")], 200),
        ("Expires in the past", [(b"expires", b"0")], 200),
        ("Pragma", [(b"pragma", b"no-cache")], 200),
        ("an Age beyond the TTL", [(b"age", b"100")], 200),
        ("an origin whose clock is an hour behind", [(b"date", format_http_date(WALL - 3600))], 200),
        ("404", [], 404),
        ("301", [], 301),
    ],
)
def test_override_gives_its_ttl_from_the_moment_the_head_arrived(why, fields, status):
    assert fresh_for(decide(*fields, status=status, rule=OVERRIDE, delay=5.0)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("why", "fields", "status"),
    [
        ("no-store", [cc("no-store")], 200),
        ("private", [cc("private, max-age=60")], 200),
        ("malformed", [cc("max-age=10;")], 200),
        ("Set-Cookie", [(b"set-cookie", b"a=b")], 200),
        ("Vary: *", [(b"vary", b"*")], 200),
        ("500", [], 500),
        ("503", [], 503),
        ("302", [], 302),
        ("403", [], 403),
        ("206", [], 206),
        ("event stream", [(b"content-type", b"text/event-stream")], 200),
    ],
)
def test_override_never_shares(why, fields, status):
    assert isinstance(decide(*fields, status=status, rule=OVERRIDE), NotStorable)


def test_override_applies_to_the_statuses_named_and_the_origins_word_to_the_rest():
    rule = CacheRule(mode="override", ttl_s=2.0, statuses=(200, 503))
    assert fresh_for(decide(status=503, rule=rule)) == 2.0
    assert isinstance(decide(status=404, rule=rule), NotStorable)
    assert fresh_for(decide(cc("max-age=9"), status=404, rule=rule)) == 9.0
    for never in (206, 304):
        assert isinstance(
            decide(status=never, rule=CacheRule(mode="override", ttl_s=2, statuses=(never,))), NotStorable
        )


def test_no_store_and_private_are_stored_only_when_the_operator_says_so():
    rule = CacheRule(mode="override", ttl_s=2.0, ignore_no_store=True)
    assert fresh_for(decide(cc("no-store, private"), rule=rule)) == 2.0


def test_an_answer_to_an_authorized_request_needs_the_origins_word_or_the_operators():
    """§3.5."""
    authorized = [(b"authorization", b"Bearer x")]
    assert isinstance(decide(cc("max-age=9"), request_fields=authorized), NotStorable)
    for word in ("public, max-age=9", "s-maxage=9", "must-revalidate, max-age=9"):
        verdict = decide(cc(word), request_fields=authorized)
        assert fresh_for(verdict) == 9.0
        assert isinstance(verdict, Storable)
        assert verdict.answers_authorized
    for word in ("max-age=9", "proxy-revalidate, max-age=9"):
        verdict = decide(cc(word))
        assert isinstance(verdict, Storable)
        assert not verdict.answers_authorized
    assert (
        fresh_for(decide(cc("max-age=9"), request_fields=authorized, rule=CacheRule(allow_authorization=True))) == 9.0
    )


def test_a_request_with_no_store_is_never_stored():
    assert isinstance(decide(cc("max-age=9"), directives=RequestDirectives(no_store=True)), NotStorable)


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"OPTIONS", b"get"])
def test_only_get_and_head_are_stored(method):
    assert isinstance(decide(cc("max-age=9"), method=method), NotStorable)


def test_what_must_not_be_stored_is_taken_off_the_fields():
    verdict = decide(
        (b"connection", b"x"), (b"age", b"1"), (b"trailer", b"x"), (b"proxy-authenticate", b"x"), (b"te", b"x"),
        (b"content-type", b"text/html"), (b"set-cookie", b"a=b"), (b"x-user", b"me"), cc('no-cache="X-User"'),
        rule=CacheRule(mode="override", ttl_s=1, allow_set_cookie=True),
    )  # fmt: skip
    assert isinstance(verdict, Storable)
    assert [name for name, _ in verdict.fields] == [b"content-type", b"cache-control"]


def test_vary_names_are_folded_and_what_the_key_holds_adds_nothing():
    verdict = decide(cc("max-age=9"), (b"vary", b"Host, Accept-Encoding ,"), (b"vary", b"accept, X-Forwarded-Proto"))
    assert isinstance(verdict, Storable)
    assert verdict.vary == (b"accept", b"accept-encoding")


def test_an_error_is_told_apart_so_that_it_is_not_remembered_for_long():
    for status in (500, 502, 503, 504, 520):
        verdict = decide(status=status)
        assert isinstance(verdict, NotStorable)
        assert verdict.is_error
    verdict = decide(status=200)
    assert isinstance(verdict, NotStorable)
    assert not verdict.is_error


@pytest.mark.parametrize(
    ("fields", "rule", "expected"),
    [
        ([cc("max-age=1, stale-while-revalidate=5, stale-if-error=6")], RESPECT, (5, 6)),
        ([cc("max-age=1")], CacheRule(stale_while_revalidate_s=3, stale_if_error_s=4), (3, 4)),
        ([cc("max-age=1, stale-if-error=0")], CacheRule(stale_if_error_s=4), (0, 0)),
        ([cc("max-age=1, must-revalidate, stale-while-revalidate=5")], CacheRule(stale_if_error_s=4), (0, 0)),
        ([cc("max-age=1, proxy-revalidate")], CacheRule(stale_if_error_s=4), (0, 0)),
        ([cc("s-maxage=1")], CacheRule(stale_if_error_s=4), (0, 0)),
        ([cc("must-revalidate")], CacheRule(mode="override", ttl_s=1, stale_if_error_s=4), (0, 0)),
        ([], CacheRule(mode="override", ttl_s=1, stale_if_error_s=4, stale_while_revalidate_s=2), (2, 4)),
    ],
)
def test_how_long_stale_is_allowed(fields, rule, expected):
    """§4.2.4, §5.2.2.2, §5.2.2.8, §5.2.2.10; RFC 5861."""
    verdict = decide(*fields, rule=rule)
    assert isinstance(verdict, Storable)
    assert (verdict.timing.stale_while_revalidate_s, verdict.timing.stale_if_error_s) == expected


def test_the_age_counts_the_round_trip_and_the_rest_here():
    """§4.2.3."""
    verdict = decide(cc("max-age=60"), (b"age", b"3"), delay=2.0)
    assert isinstance(verdict, Storable)
    assert current_age_s(verdict.timing, 100.0) == pytest.approx(5.0)
    assert current_age_s(verdict.timing, 104.5) == pytest.approx(9.5)


TIMING = Timing(
    received_at=100.0, age_on_arrival_s=1.0, lifetime_s=11.0, stale_while_revalidate_s=5, stale_if_error_s=9
)


@pytest.mark.parametrize(
    ("request_directives", "now", "expected"),
    [
        (None, 100.0, Fresh(1, 10)),
        (None, 109.9, Fresh(10, 0)),
        (None, 110.0, Stale(11, 0, True, True)),
        (None, 116.0, Stale(17, -6, False, True)),
        (None, 119.0, Stale(20, -9, False, False)),
        (RequestDirectives(max_age_s=5), 103.9, Fresh(4, 6)),
        (RequestDirectives(max_age_s=5), 104.1, MustForward),
        (RequestDirectives(max_age_s=0), 100.0, MustForward),
        (RequestDirectives(min_fresh_s=5), 104.0, Fresh(5, 6)),
        (RequestDirectives(min_fresh_s=5), 106.0, MustForward),
        (RequestDirectives(no_cache=True), 100.0, MustForward),
    ],
)
def test_whether_a_stored_response_may_answer(request_directives, now, expected):
    """§4.2, §5.2.1."""
    decided = decide_freshness(TIMING, request_directives, now)
    if expected is MustForward:
        assert isinstance(decided, MustForward)
    else:
        assert decided == expected


@pytest.mark.parametrize(
    "validator", [(b"etag", b'"a"'), (b"etag", b'W/"a"'), (b"last-modified", format_http_date(WALL - 9999))]
)
@pytest.mark.parametrize("word", ["no-cache", "max-age=0", "s-maxage=0, max-age=9", "public"])
def test_what_is_stale_from_the_first_is_stored_where_it_can_be_validated_and_shared_with_nobody(word, validator):
    """§4.3, §5.2.2.4."""
    verdict = decide(cc(word), DATE, validator)
    assert isinstance(verdict, Storable)
    assert not verdict.is_shareable
    assert isinstance(decide(cc(word), DATE, validator, status=404), NotStorable)
    assert isinstance(decide(cc(word), DATE, validator, method=b"HEAD"), NotStorable)


def test_a_lifetime_is_guessed_only_where_the_operator_allows_it_and_within_bounds():
    """§4.2.2: a tenth of the time since the last change, never where a lifetime is stated."""
    rule = CacheRule(heuristic_max_s=60.0)
    changed = (b"last-modified", format_http_date(WALL - 200))
    assert fresh_for(decide(DATE, changed, rule=rule)) == 20.0
    assert fresh_for(decide(DATE, changed, status=404, rule=rule)) == 20.0
    assert fresh_for(decide(DATE, (b"last-modified", format_http_date(WALL - 9999)), rule=rule)) == 60.0
    assert fresh_for(decide(DATE, changed, cc("max-age=5"), rule=rule)) == 5.0
    assert fresh_for(decide(DATE, changed, cc("public"), status=299, rule=rule)) == 20.0
    for fields, status in (
        ((DATE,), 200),
        ((DATE, changed), 299),
        ((DATE, changed, (b"expires", b"0")), 404),
        ((DATE, (b"last-modified", b"yesterday")), 200),
        ((DATE, (b"last-modified", format_http_date(WALL + 9999))), 404),
    ):
        assert isinstance(decide(*fields, status=status, rule=rule), NotStorable)
    verdict = decide(DATE, changed)
    assert isinstance(verdict, Storable)
    assert not verdict.is_shareable


def test_fields_named_by_private_or_no_cache_are_not_stored_and_the_rest_is():
    """§5.2.2.4, §5.2.2.7."""
    verdict = decide(
        cc('max-age=9, private="X-User", no-cache="X-Token, x-other"'), (b"x-user", b"me"), (b"x-token", b"t")
    )
    assert isinstance(verdict, Storable)
    assert [name for name, _ in verdict.fields] == [b"cache-control"]


def test_a_targeted_field_speaks_of_stale_too():
    """RFC 9213 §2.2."""
    verdict = decide(cc("max-age=1, stale-if-error=60"), (b"cdn-cache-control", b"max-age=9, must-revalidate"))
    assert isinstance(verdict, Storable)
    assert verdict.timing.stale_if_error_s == 0
    assert not verdict.timing.may_be_stale
