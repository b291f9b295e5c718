"""Sentences of RFC 9111 that no other file here is about; docs/caching.md lists them all. The cases of the public cache-tests suite
(https://cache-tests.fyi) that are about a shared cache stand here or in the files that the table there names."""

from __future__ import annotations

import os
import time

import pytest

from edgetun_core.errors import NoSession
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.dates import format_http_date, parse_http_date
from support.cache import WALL_S, Bench, Guest

RESPECT = CacheRule()


def cc(value: str) -> tuple[bytes, bytes]:
    return (b"cache-control", value.encode())


def reused(*fields: tuple[bytes, bytes], status: int = 200, request: tuple[tuple[bytes, bytes], ...] = (), after_s: float = 1.0,
           rule: CacheRule = RESPECT, method: bytes = b"GET") -> Guest | None:  # fmt: skip
    """What a second request gets from store; None when it goes to the origin."""
    bench = Bench(rule)
    bench.ask(b"/", *request, method=method)
    bench.origin[0].answer(b"body", *fields, status=status)
    bench.time.advance(after_s)
    guest = bench.ask(b"/", *request, method=method)
    return guest if len(bench.origin) == 1 else None


def test_all_fields_are_stored_also_unknown_ones_and_repeated_ones():
    """§3.1."""
    fields = (
        (b"x-unknown", b"1"), (b"x-unknown", b"2"), (b"content-type", b"a/b"), (b"content-language", b"de"), (b"link", b"</a>"),
        (b"strict-transport-security", b"max-age=1"), (b"x-frame-options", b"DENY"), (b"content-security-policy", b"x"),
        (b"www-authenticate", b"Basic"), (b"server", b"s"), (b"via", b"1.1 x"), (b"warning", b"199 - x"),
    )  # fmt: skip
    guest = reused(*fields, cc("max-age=60"))
    assert guest is not None
    assert guest.head is not None
    assert [field for field in guest.head.fields if field in fields] == list(fields)


def test_fields_of_a_proxys_own_are_never_stored():
    """§3.1."""
    names = (b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization")
    guest = reused(*((name, b"x") for name in names), cc("max-age=60"))
    assert guest is not None
    assert guest.head is not None
    assert not {name for name, _ in guest.head.fields} & set(names)


def test_trailers_are_never_taken_for_fields():
    """§3.1."""
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer_head(200, (cc("max-age=60"),))
    bench.origin[0].send(b"body")
    bench.origin[0].trailers(((b"x-trailer", b"1"), (b"cache-control", b"max-age=9")))
    guest = bench.ask()
    assert guest.head is not None
    assert guest.head.get(b"x-trailer") is None
    assert guest.cache_status.endswith(b"ttl=60")


def test_unsafe_requests_are_written_through_and_answered_by_the_origin_only():
    """§4."""
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer(b"body", cc("max-age=60"))
    for number, method in enumerate((b"POST", b"PUT", b"DELETE", b"PATCH", b"M-SEARCH", b"PURGE"), 1):
        guest = bench.ask(method=method)
        assert guest.is_waiting
        bench.origin[number].answer(b"%d" % number, cc("max-age=60"))
        assert guest.body == b"%d" % number


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"M-SEARCH", b"BREW"])
@pytest.mark.parametrize("status", [200, 204, 303, 404, 500])
def test_unsafe_and_unknown_methods_invalidate_when_they_succeed(method, status):
    """§4.4."""
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer(b"body", cc("max-age=60"))
    bench.time.advance(0.1)
    bench.ask(method=method)
    bench.origin[1].answer(b"", status=status)
    bench.time.advance(0.1)
    assert bench.ask().is_waiting is (status < 400)


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE", b"HEAD", b"GET"])
def test_safe_methods_invalidate_nothing(method):
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer(b"body", cc("max-age=60"))
    bench.ask(b"/", method=method)
    if len(bench.origin) > 1:
        bench.origin[1].answer(b"")
    assert bench.ask().body == b"body"


@pytest.mark.parametrize(
    ("location", "is_gone"),
    [
        (b"/other", True),
        (b"other", True),
        (b"http://shop.test/other", True),
        (b"http://shop.test:80/other", True),
        (b"http://shop.test:8080/other", False),
        (b"http://evil.test/other", False),
        (b"//evil.test/other", False),
    ],
)
@pytest.mark.parametrize("field", [b"location", b"content-location"])
def test_where_an_unsafe_request_points_is_invalidated_on_the_same_origin_only(field, location, is_gone):
    """§4.4."""
    bench = Bench(RESPECT)
    bench.ask(b"/other")
    bench.origin[0].answer(b"body", cc("max-age=60"))
    bench.time.advance(0.1)
    bench.ask(b"/", method=b"POST")
    bench.origin[1].answer(b"", (field, location), status=201)
    bench.time.advance(0.1)
    assert bench.ask(b"/other").is_waiting is is_gone


def test_a_local_time_zone_changes_no_date():
    """§4.2."""
    before = os.environ.get("TZ")
    moment = parse_http_date(b"Sun, 06 Nov 1994 08:49:37 GMT")
    try:
        os.environ["TZ"] = "Asia/Tokyo"
        time.tzset()
        assert parse_http_date(b"Sun, 06 Nov 1994 08:49:37 GMT") == moment
        assert moment is not None
        assert format_http_date(moment) == b"Sun, 06 Nov 1994 08:49:37 GMT"
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


@pytest.mark.parametrize(
    ("why", "fields", "age"),
    [
        ("nothing said", (), 1),
        ("Age", ((b"age", b"10"),), 11),
        ("an old Date", ((b"date", format_http_date(WALL_S - 30)),), 31),
        ("both: the larger", ((b"age", b"10"), (b"date", format_http_date(WALL_S - 30))), 31),
        ("a Date in the future", ((b"date", format_http_date(WALL_S + 30)),), 1),
        ("a huge Age", ((b"age", b"99999999999"),), None),
    ],
)
def test_age_is_worked_out_as_the_rfc_says(why, fields, age):
    """§4.2.3."""
    guest = reused(cc("max-age=100"), *fields)
    assert (guest.age if guest is not None else None) == age


def test_the_response_delay_counts_to_the_age():
    """§4.2.3: counted from when the request was sent."""
    bench = Bench(RESPECT)
    bench.ask()
    bench.time.advance(5.0)
    bench.origin[0].answer(b"body", cc("max-age=100"), (b"age", b"3"))
    assert bench.ask().age == 8


@pytest.mark.parametrize(
    ("fields", "after_s", "is_reused"),
    [
        ((cc("max-age=10"),), 9.0, True),
        ((cc("max-age=10"),), 10.0, False),
        ((cc("max-age=10, s-maxage=20"),), 15.0, True),
        ((cc("max-age=20, s-maxage=10"),), 15.0, False),
        ((cc("max-age=20"), (b"expires", format_http_date(WALL_S - 100))), 15.0, True),
        ((cc("s-maxage=20"), (b"expires", b"0")), 15.0, True),
        ((cc("max-age=0"), (b"expires", format_http_date(WALL_S + 100))), 1.0, False),
        (((b"expires", format_http_date(WALL_S + 100)), (b"date", format_http_date(WALL_S))), 15.0, True),
        (((b"expires", b"0"),), 1.0, False),
        (((b"expires", b"Thu, 99 Nov 2050 00:00:00 GMT"),), 1.0, False),
        (((b"expires", b"Sunday, 06-Nov-94 08:49:37 GMT"),), 1.0, False),
        ((cc("MaX-aGe=10"),), 1.0, True),
        ((cc('max-age="10"'),), 1.0, True),
        ((cc("max-age=10, foo=bar, baz, max-agee=0"),), 1.0, True),
        ((cc("max-age = 10"),), 1.0, False),
        ((cc("max-age=-1"),), 1.0, False),
        ((cc("max-age=10, no-cache"),), 1.0, False),
        ((cc("no-store, max-age=10"),), 1.0, False),
        ((cc("private, max-age=10"),), 1.0, False),
        ((cc("max-age=10"), (b"pragma", b"no-cache")), 1.0, True),
        ((cc("max-age=99999999999"),), 1e6, True),
    ],
)
def test_which_lifetime_holds(fields, after_s, is_reused):
    """§4.2.1, §5.2.2, §5.3, §5.4."""
    assert (reused(*fields, after_s=after_s) is not None) is is_reused


@pytest.mark.parametrize(
    "status",
    [200, 203, 204, 299, 300, 301, 302, 307, 308, 400, 403, 404, 405, 410, 414, 499, 500, 501, 502, 503, 504, 599],
)
def test_any_final_status_with_a_stated_lifetime_is_stored(status):
    """§3."""
    guest = reused(cc("max-age=60"), status=status)
    assert guest is not None
    assert guest.status == status


@pytest.mark.parametrize("status", [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501])
def test_heuristics_are_for_the_statuses_that_allow_them(status):
    """§4.2.2."""
    changed = (b"last-modified", format_http_date(WALL_S - 1000))
    allowed = CacheRule(heuristic_max_s=600.0)
    assert reused(changed, status=status, rule=allowed) is not None
    assert reused(changed, status=599, rule=allowed) is None
    assert reused(changed, cc("public"), status=599, rule=allowed) is not None


def test_stale_is_served_to_nobody_unless_somebody_allows_it():
    """§4.2.4: also when the origin is out of reach."""
    for word in ("max-age=1", "max-age=1, must-revalidate", "max-age=1, proxy-revalidate", "s-maxage=1", "no-cache"):
        bench = Bench(RESPECT)
        bench.ask()
        bench.origin[0].answer(b"body", cc(word), (b"etag", b'"1"'))
        bench.time.advance(2.0)
        guest = bench.ask()
        bench.origin[1].fail(NoSession("none"))
        assert guest.error is not None
        assert guest.error.presentation.status in (502, 503, 504)


def test_a_must_revalidate_response_yields_an_error_and_not_a_stale_one_even_where_the_operator_allows_stale():
    """§5.2.2.2."""
    rule = CacheRule(stale_if_error_s=600.0, stale_while_revalidate_s=600.0)
    bench = Bench(rule)
    bench.ask()
    bench.origin[0].answer(b"body", cc("max-age=1, must-revalidate"))
    bench.time.advance(2.0)
    guest = bench.ask()
    bench.origin[1].fail(NoSession("none"))
    assert guest.error is not None


def test_conditions_are_evaluated_against_what_is_stored_and_against_nothing_else():
    """§4.3.2."""
    bench = Bench(RESPECT)
    bench.ask(b"/", (b"if-match", b'"1"'))
    assert bench.origin[0].head.get(b"if-match") == b'"1"'
    bench.ask(b"/none", (b"if-none-match", b'"1"'))
    bench.origin[1].answer(b"body", (b"etag", b'"2"'), cc("max-age=9"))
    assert bench.ask(b"/none", (b"if-none-match", b'"2"')).status == 304
    assert bench.ask(b"/none", (b"if-none-match", b"*")).status == 304
    assert bench.ask(b"/none", (b"if-none-match", b'"1", "2"'), (b"if-modified-since", b"nonsense")).status == 304
    assert bench.ask(b"/none", (b"if-none-match", b'"1"')).status == 200


@pytest.mark.parametrize(
    ("fields", "since_s", "status"),
    [
        (((b"last-modified", format_http_date(WALL_S - 50)),), -50, 304),
        (((b"last-modified", format_http_date(WALL_S - 50)),), -51, 200),
        (((b"date", format_http_date(WALL_S - 50)),), -50, 304),
        (((b"date", format_http_date(WALL_S - 50)),), -51, 200),
        ((), 0, 304),
        ((), -5, 200),
    ],
)
def test_if_modified_since_is_compared_with_last_modified_else_date_else_when_it_came(fields, since_s, status):
    """§4.3.2."""
    guest = reused(cc("max-age=100"), *fields, request=(), after_s=0.0)
    assert guest is not None
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer(b"body", cc("max-age=100"), *fields)
    assert bench.ask(b"/", (b"if-modified-since", format_http_date(WALL_S + since_s))).status == status


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ([(b"accept", b"a")], [(b"accept", b"a")], True),
        ([(b"accept", b"a, b")], [(b"accept", b"a,b")], True),
        ([(b"accept", b"a"), (b"accept", b"b")], [(b"accept", b"a, b")], True),
        ([(b"accept", b"a, b")], [(b"accept", b"b, a")], False),
        ([], [], True),
        ([], [(b"accept", b"a")], False),
        ([(b"accept", b"a")], [], False),
        ([(b"accept", b"a")], [(b"accept", b"a"), (b"x-other", b"b")], True),
    ],
)
def test_selecting_fields_must_match(first, second, is_same):
    """§4.1."""
    bench = Bench(RESPECT)
    bench.ask(b"/", *first)
    bench.origin[0].answer(b"body", cc("max-age=60"), (b"vary", b"Accept"))
    assert bench.ask(b"/", *second).is_complete is is_same


def test_of_two_responses_for_the_same_request_only_the_later_is_there():
    """§4, §4.1: so the one with the latest Date is chosen without a choice."""
    bench = Bench(RESPECT)
    for number, body in enumerate((b"one", b"two")):
        bench.ask(b"/", cc("no-cache"))
        bench.origin[number].answer(body, cc("max-age=60"), (b"date", format_http_date(WALL_S + number)))
        bench.time.advance(1.0)
    assert bench.ask().body == b"two"
    assert bench.store.entry_count == 1


def test_of_responses_that_forget_their_vary_the_known_names_still_select():
    """§4.1."""
    bench = Bench(RESPECT)
    bench.ask(b"/", (b"accept", b"a"))
    bench.origin[0].answer(b"a", cc("max-age=60"), (b"vary", b"accept"))
    bench.ask(b"/", (b"accept", b"b"))
    bench.origin[1].answer(b"b", cc("max-age=60"))
    assert bench.ask(b"/", (b"accept", b"a")).body == b"a"
    assert bench.ask(b"/", (b"accept", b"b")).body == b"b"
    assert bench.ask(b"/", (b"accept", b"c")).is_waiting


def test_min_fresh_wants_a_response_that_stays_fresh():
    """§5.2.1.3."""
    for wanted, is_served in ((b"50", True), (b"60", False)):
        bench = Bench(RESPECT)
        bench.ask()
        bench.origin[0].answer(b"body", cc("max-age=60"))
        bench.time.advance(5.0)
        assert bench.ask(b"/", (b"cache-control", b"min-fresh=" + wanted)).is_complete is is_served


def test_max_age_of_the_request_wants_nothing_stale_unless_max_stale_says_so():
    """§5.2.1.1."""
    bench = Bench(CacheRule(stale_while_revalidate_s=60.0))
    bench.ask()
    bench.origin[0].answer(b"body", cc("max-age=1"))
    bench.time.advance(2.0)
    assert bench.ask(b"/", cc("max-age=100, max-stale=10")).body == b"body"
    assert bench.ask(b"/", cc("max-age=100")).is_waiting


def test_a_response_to_a_request_with_no_store_is_not_stored_and_one_stored_before_answers_nobody_else_less():
    """§5.2.1.5."""
    bench = Bench(RESPECT)
    bench.ask(b"/", cc("no-store"))
    bench.origin[0].answer(b"secret", cc("max-age=60"))
    assert bench.store.entry_count == 0
    assert bench.ask().is_waiting
