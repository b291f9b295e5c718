"""What visitors get from store and past it: hits, conditions, ranges, request directives, invalidation, Cache-Status."""

from __future__ import annotations

import pytest

from edgetun_core.errors import NoSession, UpstreamTimeout
from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.cache.dates import format_http_date
from support.cache import WALL_S, Bench, Guest

RESPECT = CacheRule()


def cc(value: str) -> tuple[bytes, bytes]:
    return (b"cache-control", value.encode())


def filled(body=b"hello", *fields, rule=None, target=b"/", **more) -> Bench:
    """A bench with one response stored."""
    bench = Bench(rule, **more)
    first = bench.ask(target)
    bench.origin[0].answer(body, *fields)
    assert first.is_complete
    assert first.body == body
    bench.check_nothing_left()
    return bench


def test_a_fresh_response_is_served_from_store_with_age_ttl_and_length():
    bench = filled(b"hello", (b"content-type", b"text/plain"))
    bench.time.advance(0.4)
    guest = bench.ask()
    assert guest.body == b"hello"
    assert guest.is_complete
    assert guest.head is not None
    assert guest.head.get(b"content-length") == b"5"
    assert guest.head.get(b"content-type") == b"text/plain"
    assert guest.age == 0
    assert guest.cache_status == b"edgetun; hit; ttl=0"
    assert len(bench.origin) == 1


def test_the_same_head_object_serves_everyone_within_a_second_of_age():
    bench = filled(rule=CacheRule(mode="override", ttl_s=60))
    heads = []
    for _ in range(40):
        bench.time.advance(0.1)
        heads.append(bench.ask().head)
    ages = [head.get(b"age") for head in heads]
    assert ages == sorted(ages)
    assert len({id(head) for head in heads}) == len(set(ages)) <= 5


def test_the_age_and_the_ttl_count_seconds():
    bench = filled(b"x", cc("max-age=10"), (b"age", b"3"), rule=RESPECT)
    bench.time.advance(2.5)
    guest = bench.ask()
    assert guest.age == 5
    assert guest.cache_status == b"edgetun; hit; ttl=4"
    bench.time.advance(4.4)
    assert bench.ask().age == 9
    bench.time.advance(0.1)
    assert bench.ask().is_waiting, "stale at 10 s of age"


def test_a_response_is_asked_for_again_when_its_ttl_is_over():
    bench = filled()
    bench.time.advance(0.999)
    assert bench.ask().is_complete
    bench.time.advance(0.001)
    assert bench.ask().is_waiting
    assert len(bench.origin) == 2


def test_a_head_rendered_just_before_the_end_of_freshness_does_not_outlive_it():
    """The age turns over at another moment than the freshness ends."""
    bench = Bench()
    bench.ask()
    bench.time.advance(0.5)
    bench.origin[0].answer()
    bench.time.advance(0.6)
    assert bench.ask().age == 1
    bench.time.advance(0.39)
    assert bench.ask().is_complete
    bench.time.advance(0.01)
    assert bench.ask().is_waiting


def test_the_overrides_lifetime_starts_when_the_head_arrives():
    bench = Bench()
    bench.ask()
    bench.time.advance(5)
    bench.origin[0].answer_head(200, ())
    bench.time.advance(0.5)
    bench.origin[0].send(b"late", end=True)
    bench.time.advance(0.49)
    assert bench.ask().body == b"late"
    bench.time.advance(0.01)
    assert bench.ask().is_waiting


def test_a_date_is_added_where_the_origin_sent_none_and_kept_where_it_did():
    bench = filled()
    bench.time.advance(0.5)
    guest = bench.ask()
    assert guest.head is not None
    assert guest.head.get_all(b"date") == [format_http_date(WALL_S)]
    bench = filled(b"x", (b"date", b"Tue, 14 Nov 2023 22:13:00 GMT"))
    guest = bench.ask()
    assert guest.head is not None
    assert guest.head.get_all(b"date") == [b"Tue, 14 Nov 2023 22:13:00 GMT"]


def test_the_leader_gets_the_response_as_the_origin_sent_it():
    bench = Bench()
    leader = bench.ask()
    bench.origin[0].answer(b"x", (b"x-a", b"1"), (b"cache-status", b"nearer; hit"))
    assert leader.head is not None
    assert leader.head.get(b"x-a") == b"1"
    assert leader.head.get_all(b"cache-status") == [b"nearer; hit", b"edgetun; fwd=uri-miss; stored"]
    assert leader.age is None


@pytest.mark.parametrize(("target", "other"), [(b"/a", b"/b"), (b"/?a", b"/?b"), (b"/", b"/?")])
def test_other_targets_are_other_keys(target, other):
    bench = filled(target=target)
    assert bench.ask(other).is_waiting


def test_scheme_host_tenant_and_partition_are_in_the_key_and_the_default_port_is_not():
    bench = filled()
    assert bench.ask(scheme=b"https").is_waiting
    assert bench.ask(authority=b"other.test").is_waiting
    assert bench.ask(authority=b"shop.test:8080").is_waiting
    assert bench.ask(authority=b"shop.test:80").is_complete
    for more in ({"tenant": "team/other"}, {"partition": "second"}):
        assert Bench(store=bench.store, time=bench.time, **more).ask().is_waiting


def test_ignored_query_parameters_do_not_count():
    rule = CacheRule(mode="override", ttl_s=1, ignore_query=("fbclid", "utm_*"))
    bench = filled(target=b"/p?b=1&a=2&utm_source=x", rule=rule)
    assert bench.origin[0].head.target == b"/p?b=1&a=2&utm_source=x"
    for same in (b"/p?b=1&a=2", b"/p?fbclid=9&b=1&utm_x&a=2"):
        assert bench.ask(same).is_complete
    for other in (b"/p?a=2&b=1", b"/p?b=1&a=2&fbclid2=1", b"/p"):
        assert bench.ask(other).is_waiting


def test_a_response_without_freshness_is_not_stored_in_respect_mode():
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer()
    assert bench.ask().is_waiting


def test_empty_bodies_and_large_bodies_are_served_whole():
    for size in (0, 1, 65_536, 65_537, 1_000_000):
        body = bytes(range(256)) * (size // 256) + b"y" * (size % 256)
        bench = filled(body)
        guest = bench.ask()
        assert guest.body == body
        assert guest.is_complete
        assert guest.head is not None
        assert guest.head.get(b"content-length") == b"%d" % size


def test_a_large_stored_body_is_pushed_at_the_readers_pace():
    """Within `open` nothing can be paused, so one piece at most is pushed there."""
    bench = filled(b"z" * 1_000_000)
    pushed_in_open = 0

    class Slow(Guest):
        def on_data(self, data, end):
            nonlocal pushed_in_open
            super().on_data(data, end)
            if self.sink is None:
                pushed_in_open += len(data)
            else:
                self.pause()

    guest = Slow()
    bench.send(RequestHead(b"GET", b"http", b"shop.test", b"/", ()), guest=guest)
    assert 0 < pushed_in_open <= 65_536
    while not guest.is_complete:
        before = len(guest.body)
        guest.resume()
        assert len(guest.body) > before
    assert guest.body == b"z" * 1_000_000


def test_large_bodies_are_stored_in_pieces():
    bench = Bench()
    bench.ask()
    bench.origin[0].answer_head(200, ())
    for _ in range(100):
        bench.origin[0].send(b"z" * 10_000)
    bench.origin[0].send(b"end", end=True)
    pieces: list[int] = []

    class Counting(Guest):
        def on_data(self, data, end):
            super().on_data(data, end)
            pieces.append(len(data))

    guest = Counting()
    bench.send(RequestHead(b"GET", b"http", b"shop.test", b"/", ()), guest=guest)
    assert guest.body == b"z" * 1_000_000 + b"end"
    assert max(pieces) <= 65_536
    assert len(pieces) <= 20


def test_a_204_gets_no_content_length():
    bench = Bench()
    bench.ask()
    bench.origin[0].answer_head(204, (), end=True)
    guest = bench.ask()
    assert guest.status == 204
    assert guest.head is not None
    assert guest.head.get(b"content-length") is None


def test_trailers_go_to_who_is_there_and_are_not_stored():
    bench = Bench()
    leader, follower = bench.ask(), bench.ask()
    bench.origin[0].answer_head(200, ((b"trailer", b"x-sum"),))
    bench.origin[0].send(b"body")
    bench.origin[0].trailers(((b"x-sum", b"1"),))
    for guest in (leader, follower):
        assert guest.body == b"body"
        assert guest.trailers == ((b"x-sum", b"1"),)
    later = bench.ask()
    assert later.body == b"body"
    assert later.trailers is None
    assert later.head is not None
    assert later.head.get(b"trailer") is None


# -- HEAD -----------------------------------------------------------------------------------------------------------------


def test_a_head_is_answered_from_a_stored_get():
    bench = filled(b"hello")
    guest = bench.ask(method=b"HEAD")
    assert guest.is_complete
    assert guest.body == b""
    assert guest.head is not None
    assert guest.head.get(b"content-length") == b"5"


def test_a_head_that_misses_is_forwarded_as_head_shared_by_heads_and_never_answers_a_get():
    bench = Bench()
    first, second = bench.ask(method=b"HEAD"), bench.ask(method=b"HEAD")
    assert len(bench.origin) == 1
    assert bench.origin[0].head.method == b"HEAD"
    bench.origin[0].answer_head(200, ((b"content-length", b"5"),), end=True)
    assert first.is_complete
    assert second.is_complete
    assert bench.ask(method=b"HEAD").cache_status == b"edgetun; hit; ttl=1"
    get = bench.ask()
    assert get.is_waiting
    assert bench.origin[1].head.method == b"GET"
    bench.origin[1].answer(b"hello")
    assert get.body == b"hello"


def test_a_head_is_answered_by_a_get_on_its_way():
    bench = Bench()
    get = bench.ask()
    head = bench.ask(method=b"HEAD")
    assert len(bench.origin) == 1
    bench.origin[0].answer_head(200, ((b"content-length", b"2"),))
    assert head.is_complete
    assert not get.is_complete
    bench.origin[0].send(b"ok", end=True)
    assert get.body == b"ok"
    bench.check_nothing_left()


def test_a_head_never_becomes_the_leader_of_a_get():
    bench = Bench()
    get, head = bench.ask(), bench.ask(method=b"HEAD")
    bench.origin[0].fail(NoSession("no agent"))
    assert get.error is not None
    assert head.error is not None
    assert len(bench.origin) == 1


# -- conditions -----------------------------------------------------------------------------------------------------------


def test_if_none_match_is_answered_by_304_from_store():
    bench = filled(b"x", (b"etag", b'"v1"'), (b"content-type", b"a/b"), (b"vary", b"accept"), cc("max-age=9"))
    guest = bench.ask(b"/", (b"if-none-match", b'"v0", W/"v1"'))
    assert guest.status == 304
    assert guest.is_complete
    assert guest.head is not None
    names = [name for name, _ in guest.head.fields]
    assert b"content-type" not in names
    assert b"content-length" not in names
    assert {b"etag", b"vary", b"cache-control", b"date", b"age", b"cache-status"} <= set(names)
    assert bench.ask(b"/", (b"if-none-match", b'"v2"')).body == b"x"
    assert bench.ask(b"/", (b"if-none-match", b"*")).status == 304
    assert bench.ask(b"/", (b"if-none-match", b'"v1"'), method=b"HEAD").status == 304
    assert len(bench.origin) == 1


def test_if_modified_since_is_answered_by_304_from_store():
    moment = format_http_date(WALL_S - 100)
    bench = filled(b"x", (b"last-modified", moment))
    assert bench.ask(b"/", (b"if-modified-since", moment)).status == 304
    assert bench.ask(b"/", (b"if-modified-since", format_http_date(WALL_S - 101))).body == b"x"
    assert bench.ask(b"/", (b"if-modified-since", b"yesterday")).body == b"x"
    assert bench.ask(b"/", (b"if-modified-since", moment), (b"if-none-match", b'"x"')).body == b"x"


def test_conditions_are_not_evaluated_against_an_error():
    bench = Bench()
    bench.ask()
    bench.origin[0].answer(b"gone", (b"etag", b'"v1"'), status=404)
    assert bench.ask(b"/", (b"if-none-match", b'"v1"')).status == 404


def test_reloading_visitors_share_one_whole_fetch_and_each_gets_their_304():
    bench = Bench()
    reload = bench.ask(b"/", (b"if-none-match", b'"v1"'))
    old = bench.ask(b"/", (b"if-none-match", b'"v0"'))
    new = bench.ask()
    assert len(bench.origin) == 1
    assert bench.origin[0].head.get(b"if-none-match") is None
    bench.origin[0].answer(b"body", (b"etag", b'"v1"'))
    assert reload.status == 304
    assert old.body == new.body == b"body"
    assert bench.ask(b"/", (b"if-none-match", b'"v1"')).status == 304
    bench.check_nothing_left()


def test_a_304_alone_does_not_stop_the_body_from_being_stored():
    bench = Bench()
    guest = bench.ask(b"/", (b"if-none-match", b'"v1"'))
    bench.origin[0].answer_head(200, ((b"etag", b'"v1"'),))
    assert guest.status == 304
    bench.origin[0].send(b"body", end=True)
    assert bench.ask().body == b"body"
    bench.check_nothing_left()


def test_a_body_that_nobody_reads_is_given_up_after_a_while():
    bench = Bench()
    bench.ask(b"/", (b"if-none-match", b'"v1"'))
    bench.origin[0].answer_head(200, ((b"etag", b'"v1"'),))
    bench.time.advance(29)
    assert bench.origin[0].is_live
    bench.time.advance(2)
    assert bench.origin[0].cancelled is not None
    bench.check_nothing_left()


@pytest.mark.parametrize("name", [b"if-match", b"if-unmodified-since"])
def test_conditions_for_the_origin_alone_pass_through(name):
    bench = filled()
    guest = bench.ask(b"/", (name, b'"x"'))
    assert guest.is_waiting
    assert bench.origin[1].head.get(name) == b'"x"'
    bench.origin[1].answer(status=412)
    assert guest.cache_status == b"edgetun; fwd=bypass"


# -- ranges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "wanted", "first", "last"), [
    (10, b"bytes=0-0", 0, 0), (10, b"bytes=2-5", 2, 5), (10, b"bytes=7-", 7, 9), (10, b"bytes=-3", 7, 9),
    (200_000, b"bytes=60000-70000", 60_000, 70_000), (200_000, b"bytes=-1", 199_999, 199_999),
])  # fmt: skip
def test_a_range_is_cut_from_a_stored_body(size, wanted, first, last):
    body = bytes(number % 251 for number in range(size))
    bench = Bench()
    bench.ask()
    bench.origin[0].answer_head(200, ((b"etag", b'"v1"'),))
    for start in range(0, size, 40_000):
        bench.origin[0].send(body[start : start + 40_000], end=start + 40_000 >= size)
    guest = bench.ask(b"/", (b"range", wanted))
    assert guest.status == 206
    assert guest.body == body[first : last + 1]
    assert guest.head is not None
    assert guest.head.get(b"content-range") == b"bytes %d-%d/%d" % (first, last, size)
    assert guest.head.get_all(b"content-length") == [b"%d" % (last - first + 1)]
    assert guest.is_complete
    assert len(bench.origin) == 1


def test_a_range_beyond_the_end_gets_416():
    guest = filled(b"0123456789").ask(b"/", (b"range", b"bytes=10-"))
    assert guest.status == 416
    assert guest.head is not None
    assert guest.head.get(b"content-range") == b"bytes */10"


@pytest.mark.parametrize(("if_range", "status"), [
    (b'"v1"', 206), (b'"v2"', 200), (b'W/"v1"', 200), (b"Tue, 14 Nov 2023 22:13:00 GMT", 200),
])  # fmt: skip
def test_if_range_needs_the_same_strong_tag(if_range, status):
    bench = filled(b"0123456789", (b"etag", b'"v1"'), (b"last-modified", b"Tue, 14 Nov 2023 22:13:00 GMT"))
    guest = bench.ask(b"/", (b"range", b"bytes=0-1"), (b"if-range", if_range))
    assert guest.status == status
    assert guest.body == (b"01" if status == 206 else b"0123456789")


def test_a_weak_tag_of_the_response_never_matches_if_range():
    bench = filled(b"0123456789", (b"etag", b'W/"v1"'))
    assert bench.ask(b"/", (b"range", b"bytes=0-1"), (b"if-range", b'W/"v1"')).status == 200


def test_a_matching_if_none_match_comes_before_the_range():
    bench = filled(b"0123456789", (b"etag", b'"v1"'))
    assert bench.ask(b"/", (b"range", b"bytes=0-1"), (b"if-none-match", b'"v1"')).status == 304


def test_a_range_of_an_error_is_the_error():
    bench = Bench()
    bench.ask()
    bench.origin[0].answer(b"not here", status=404)
    guest = bench.ask(b"/", (b"range", b"bytes=0-1"))
    assert guest.status == 404
    assert guest.body == b"not here"


def test_a_range_with_nothing_to_cut_it_from_goes_alone_and_its_206_is_not_stored():
    bench = Bench()
    guest = bench.ask(b"/", (b"range", b"bytes=0-1"))
    other = bench.ask(b"/", (b"range", b"bytes=2-3"))
    assert [exchange.head.get(b"range") for exchange in bench.origin.exchanges] == [b"bytes=0-1", b"bytes=2-3"]
    bench.origin[0].answer(b"01", (b"content-range", b"bytes 0-1/10"), status=206)
    assert guest.body == b"01"
    assert other.is_waiting
    assert bench.ask().is_waiting
    assert len(bench.origin) == 3


def test_a_206_to_a_plain_request_is_never_stored_as_a_200():
    bench = Bench()
    guest = bench.ask()
    bench.origin[0].answer(b"01", (b"content-range", b"bytes 0-1/10"), cc("max-age=60"), status=206)
    assert guest.status == 206
    assert bench.store.entry_count == 0


def test_a_range_is_cut_from_a_body_on_its_way():
    bench = Bench()
    whole = bench.ask()
    part = bench.ask(b"/", (b"range", b"bytes=3-5"))
    bench.origin[0].answer_head(200, ((b"content-length", b"10"),))
    late = bench.ask(b"/", (b"range", b"bytes=-2"))
    bench.origin[0].send(b"01234")
    assert part.status == 206
    assert part.body == b"34"
    assert not part.is_complete
    bench.origin[0].send(b"56")
    assert part.body == b"345"
    assert part.is_complete
    bench.origin[0].send(b"789", end=True)
    assert late.body == b"89"
    assert late.is_complete
    assert whole.body == b"0123456789"
    assert len(bench.origin) == 1
    bench.check_nothing_left()


def test_a_range_of_a_body_of_unknown_length_on_its_way_gets_the_whole():
    bench = Bench()
    bench.ask()
    part = bench.ask(b"/", (b"range", b"bytes=3-5"))
    bench.origin[0].answer(b"0123456789")
    assert part.status == 200
    assert part.body == b"0123456789"


# -- what visitors ask of caches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [cc("no-cache"), cc("max-age=0"), (b"pragma", b"no-cache")])
def test_a_reload_does_not_pierce_the_shield_of_the_override(field):
    bench = filled()
    assert bench.ask(b"/", field).body == b"hello"
    assert len(bench.origin) == 1


@pytest.mark.parametrize("field", [cc("no-cache"), cc("max-age=0"), cc("min-fresh=60"), (b"pragma", b"no-cache")])
def test_a_reload_gets_what_the_origin_says_now_where_its_word_is_respected(field):
    bench = filled(b"old", cc("max-age=60"), rule=RESPECT)
    bench.time.advance(1)
    guest = bench.ask(b"/", field)
    assert guest.is_waiting
    second = bench.ask(b"/", field)
    assert len(bench.origin) == 2, "but two at once are one request"
    bench.origin[1].answer(b"new", cc("max-age=60"))
    assert guest.body == second.body == b"new"
    assert guest.cache_status == b"edgetun; fwd=request; stored"
    assert bench.ask().body == b"new"


def test_max_age_of_the_request_is_met_by_a_response_young_enough():
    bench = filled(b"x", cc("max-age=60"), rule=RESPECT)
    bench.time.advance(5)
    assert bench.ask(b"/", cc("max-age=5")).is_complete
    assert bench.ask(b"/", cc("max-age=4")).is_waiting


def test_no_store_of_the_request_passes_through_unless_configured():
    for rule in (RESPECT, CacheRule(mode="override", ttl_s=1)):
        bench = filled(b"x", cc("max-age=60"), rule=rule)
        assert bench.ask(b"/", cc("no-store")).is_waiting
        assert bench.ask(b"/", cc("no-store")).is_waiting
        assert len(bench.origin) == 3
    bench = filled(rule=CacheRule(mode="override", ttl_s=1, ignore_no_store=True))
    assert bench.ask(b"/", cc("no-store")).is_complete


@pytest.mark.parametrize("rule", [RESPECT, CacheRule(mode="override", ttl_s=1)])
def test_only_if_cached_never_reaches_the_origin(rule):
    bench = filled(b"x", cc("max-age=60"), rule=rule)
    assert bench.ask(b"/", cc("only-if-cached")).body == b"x"
    guest = bench.ask(b"/other", cc("only-if-cached"))
    assert guest.status == 504
    assert guest.is_complete
    assert len(bench.origin) == 1


# -- what passes through ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        [(b"authorization", b"Bearer x")],
        [(b"cookie", b"session=1")],
        [(b"accept", b"text/html, Text/Event-Stream")],
    ],
)
def test_private_requests_are_neither_answered_from_store_nor_collapsed_nor_stored(fields):
    bench = filled()
    guests = [bench.ask(b"/", *fields) for _ in range(3)]
    assert len(bench.origin) == 4
    for number, guest in enumerate(guests):
        bench.origin[number + 1].answer(b"%d" % number, cc("max-age=60"))
        assert guest.body == b"%d" % number
        assert guest.cache_status == b"edgetun; fwd=bypass"
    assert bench.ask().body == b"hello"


@pytest.mark.parametrize(("rule", "field"), [
    (CacheRule(mode="override", ttl_s=1, allow_authorization=True), (b"authorization", b"x")),
    (CacheRule(mode="override", ttl_s=1, allow_cookies=True), (b"cookie", b"x")),
])  # fmt: skip
def test_private_requests_are_shared_when_the_operator_vouches_for_it(rule, field):
    bench = Bench(rule)
    bench.ask(b"/", field)
    bench.ask(b"/", field)
    assert len(bench.origin) == 1
    bench.origin[0].answer()
    assert bench.ask(b"/", field).body == b"hello"


@pytest.mark.parametrize(
    "field", [(b"x-original-url", b"/admin"), (b"x-http-method-override", b"DELETE"), (b"x-host", b"evil.test")]
)
def test_fields_that_rewrite_a_request_for_some_origins_cannot_poison_what_others_get(field):
    bench = Bench()
    bench.ask(b"/", field)
    other = bench.ask()
    assert len(bench.origin) == 2
    bench.origin[0].answer(b"poisoned")
    bench.origin[1].answer(b"good")
    assert other.body == bench.ask().body == b"good"


def test_a_request_that_comes_back_to_its_own_tunnel_does_not_wait_for_itself():
    bench = Bench()
    bench.ask()
    looped = bench.ask(b"/", (b"cdn-loop", b'other, edgetun; tunnel="team/shop"'))
    assert len(bench.origin) == 2, "the stage behind refuses it"
    assert looped.is_waiting
    bench.ask(b"/", (b"cdn-loop", b'edgetun; tunnel="team/another"'))
    assert len(bench.origin) == 2


def test_a_get_with_a_body_passes_through():
    bench = filled()
    guest = bench.ask(end=False)
    assert guest.sink is not None
    guest.sink.send_data(b"body", True)
    assert bench.origin[1].sent == b"body"
    bench.origin[1].answer()
    assert guest.cache_status == b"edgetun; fwd=bypass"


def test_an_upgrade_passes_through_untouched():
    bench = filled()
    guest = bench.ask(protocol=b"websocket", end=False)
    bench.origin[1].answer_head(101, ())
    assert guest.head is not None
    assert guest.head.fields == ()


def test_other_methods_pass_through():
    bench = filled()
    for method, status in ((b"OPTIONS", b"fwd=bypass"), (b"POST", b"fwd=method"), (b"PROPFIND", b"fwd=method")):
        guest = bench.ask(method=method)
        bench.origin.exchanges[-1].answer(status=400)
        assert guest.cache_status == b"edgetun; " + status
    assert len(bench.origin) == 4


def test_interim_responses_pass():
    bench = Bench()
    leader, follower = bench.ask(), bench.ask()
    bypass = bench.ask(b"/", (b"cookie", b"a"))
    for exchange in bench.origin.exchanges:
        exchange.client.on_interim(ResponseHead(103, ()))
        exchange.answer()
    assert [len(guest.interim) for guest in (leader, follower, bypass)] == [1, 0, 1]


# -- Set-Cookie -----------------------------------------------------------------------------------------------------------


def test_a_response_with_set_cookie_is_its_visitors_alone():
    bench = Bench()
    leader, follower = bench.ask(), bench.ask()
    bench.origin[0].answer(b"one", (b"set-cookie", b"s=1"))
    assert leader.body == b"one"
    bench.origin[1].answer(b"two", (b"set-cookie", b"s=2"))
    assert follower.body == b"two"
    assert follower.head is not None
    assert follower.head.get_all(b"set-cookie") == [b"s=2"]
    assert bench.store.entry_count == 0


def test_set_cookie_allowed_goes_to_the_leader_and_to_nobody_else():
    bench = Bench(CacheRule(mode="override", ttl_s=1, allow_set_cookie=True))
    leader, follower = bench.ask(), bench.ask()
    bench.origin[0].answer(b"one", (b"set-cookie", b"s=1"))
    late = bench.ask()
    for guest, cookies in ((leader, [b"s=1"]), (follower, []), (late, [])):
        assert guest.head is not None
        assert guest.body == b"one"
        assert guest.head.get_all(b"set-cookie") == cookies


# -- invalidation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH"])
def test_a_successful_unsafe_request_makes_its_uri_and_where_it_points_stale(method):
    bench = Bench(CacheRule(mode="override", ttl_s=60))
    for target in (b"/a", b"/b?x=1", b"/c", b"/d"):
        bench.ask(target)
        bench.origin.exchanges[-1].answer()
    bench.ask(b"/a", method=method)
    bench.origin.exchanges[-1].answer(
        b"", (b"location", b"/b?x=1"), (b"content-location", b"http://SHOP.test:80/c"), status=303
    )
    assert bench.ask(b"/a").is_waiting
    assert bench.ask(b"/b?x=1").is_waiting
    assert bench.ask(b"/c").is_waiting
    assert bench.ask(b"/d").is_complete


def test_another_origin_cannot_be_invalidated_and_a_failed_request_invalidates_nothing():
    bench = Bench(CacheRule(mode="override", ttl_s=60))
    bench.ask(b"/a", authority=b"other.test")
    bench.origin.exchanges[-1].answer()
    bench.ask(b"/a")
    bench.origin.exchanges[-1].answer()
    bench.ask(b"/z", method=b"POST")
    bench.origin.exchanges[-1].answer(b"", (b"location", b"http://other.test/a"), (b"content-location", b"http://[/a"))
    bench.ask(b"/a", method=b"POST")
    bench.origin.exchanges[-1].answer(status=500)
    assert bench.ask(b"/a", authority=b"other.test").is_complete
    assert bench.ask(b"/a").is_complete


def test_who_asks_after_a_write_never_gets_what_was_asked_for_before_it():
    bench = Bench()
    before = bench.ask()
    bench.time.advance(0.1)
    bench.ask(method=b"POST")
    bench.origin[1].answer()
    bench.time.advance(0.1)
    after = bench.ask()
    assert len(bench.origin) == 3
    bench.origin[0].answer(b"old")
    assert before.body == b"old"
    assert after.is_waiting
    assert bench.ask().is_waiting
    bench.origin[2].answer(b"new")
    assert after.body == b"new"
    assert bench.ask().body == b"new"
    assert len(bench.origin) == 3


# -- Vary -----------------------------------------------------------------------------------------------------------------


def test_each_variant_is_stored_and_found_by_itself():
    bench = Bench(CacheRule(mode="override", ttl_s=60))
    for encoding in (b"gzip", b"br", None):
        fields = [] if encoding is None else [(b"accept-encoding", encoding)]
        guest = bench.ask(b"/", *fields)
        bench.origin.exchanges[-1].answer(encoding or b"plain", (b"vary", b"Accept-Encoding"))
        assert guest.body == (encoding or b"plain")
    assert guest.cache_status == b"edgetun; fwd=vary-miss; stored"
    for encoding in (b"gzip", b"br", None):
        fields = [] if encoding is None else [(b"accept-encoding", encoding)]
        assert bench.ask(b"/", *fields).body == (encoding or b"plain")
    assert bench.ask(b"/", (b"accept-encoding", b"")).is_waiting, "empty is not absent"
    assert len(bench.origin) == 4


def test_white_space_and_lines_make_no_variant_of_their_own():
    bench = Bench(CacheRule(mode="override", ttl_s=60))
    bench.ask(b"/", (b"accept-encoding", b"gzip, br"))
    bench.origin[0].answer(b"x", (b"vary", b"accept-encoding"))
    assert bench.ask(b"/", (b"accept-encoding", b"gzip,br")).is_complete
    assert bench.ask(b"/", (b"accept-encoding", b"gzip"), (b"accept-encoding", b"br")).is_complete
    assert bench.ask(b"/", (b"accept-encoding", b'"gzip, br"')).is_waiting


def test_a_response_that_forgets_its_vary_answers_only_its_own_variant():
    bench = Bench(CacheRule(mode="override", ttl_s=1))
    bench.ask(b"/", (b"accept-encoding", b"gzip"))
    bench.origin[0].answer(b"zipped", (b"vary", b"accept-encoding"))
    bench.ask()
    bench.origin[1].answer(b"plain")
    assert bench.ask(b"/", (b"accept-encoding", b"gzip")).body == b"zipped"
    assert bench.ask().body == b"plain"


# -- stale ----------------------------------------------------------------------------------------------------------------

SWR = CacheRule(mode="override", ttl_s=1, stale_while_revalidate_s=10)
SIE = CacheRule(mode="override", ttl_s=1, stale_if_error_s=10)


def test_stale_while_revalidate_makes_exactly_one_refresh_in_the_background():
    bench = filled(b"old", rule=SWR)
    bench.time.advance(3)
    guests = [bench.ask() for _ in range(100)]
    assert all(guest.body == b"old" for guest in guests)
    assert guests[0].cache_status == b"edgetun; hit; ttl=-2; detail=stale-while-revalidate"
    assert guests[0].age == 3
    assert len(bench.origin) == 2
    bench.origin[1].answer(b"new")
    assert bench.ask().body == b"new"
    bench.check_nothing_left()


def test_beyond_the_window_of_stale_while_revalidate_visitors_wait():
    bench = filled(b"old", rule=SWR)
    bench.time.advance(11)
    assert bench.ask().is_waiting


def test_a_refresh_that_fails_is_tried_again_only_after_a_while():
    bench = filled(b"old", rule=SWR)
    bench.origin.script = lambda exchange: exchange.fail(NoSession("no agent"))
    bench.time.advance(2)
    for _ in range(100):
        bench.time.advance(0.02)
        assert bench.ask().body == b"old"
    assert len(bench.origin) == 1 + 2
    bench.check_nothing_left()


@pytest.mark.parametrize("how", ["no agent", "timeout", "502", "503 with a body", "within open"])
def test_stale_if_error_covers_5xx_timeouts_and_no_agent(how):
    bench = filled(b"old", rule=SIE)
    bench.time.advance(3)
    if how == "within open":
        bench.origin.script = lambda exchange: exchange.fail(NoSession("no agent"))
    guests = [bench.ask() for _ in range(3)]
    match how:
        case "no agent":
            bench.origin[1].fail(NoSession("no agent"))
        case "timeout":
            bench.origin[1].fail(UpstreamTimeout("60 s"))
        case "502":
            bench.origin[1].answer_head(502, (), end=True)
        case "503 with a body":
            bench.origin[1].answer_head(503, ())
            assert bench.origin[1].cancelled is not None
    for guest in guests:
        assert guest.status == 200
        assert guest.body == b"old"
        assert guest.cache_status == b"edgetun; fwd=stale; ttl=-2; detail=stale-if-error"
        assert guest.age == 3
    assert len(bench.origin) == 2
    assert bench.ask().body == b"old"
    assert len(bench.origin) == 2, "the origin is not asked again within a second of its failure"
    bench.origin.script = None
    bench.time.advance(1.0)
    assert bench.ask().is_waiting
    assert len(bench.origin) == 3


def test_a_large_stale_body_is_served_on_error_too_and_a_503_within_open_is_reset():
    body = b"old" * 100_000
    bench = filled(body, rule=SIE)
    bench.time.advance(3)
    bench.origin.script = lambda exchange: exchange.answer_head(503, ())
    guest = bench.ask()
    assert guest.body == body
    assert guest.is_complete
    bench.check_nothing_left()


def test_must_revalidate_overrides_stale():
    for directive in ("must-revalidate", "proxy-revalidate"):
        bench = filled(b"old", cc(directive), rule=SIE)
        bench.time.advance(2)
        guest = bench.ask()
        bench.origin[1].fail(NoSession("no agent"))
        assert guest.error is not None


def test_an_error_beyond_the_window_is_the_visitors():
    bench = filled(b"old", rule=SIE)
    bench.time.advance(11)
    guest = bench.ask()
    bench.origin[1].answer(b"broken", status=503)
    assert guest.status == 503


def test_the_origins_newest_word_replaces_what_is_stored_also_when_it_may_not_be_stored():
    bench = filled(b"old", rule=SIE)
    bench.time.advance(2)
    guest = bench.ask()
    bench.origin[1].answer(b"yours", cc("private"))
    assert guest.body == b"yours"
    assert bench.store.entry_count == 0


# -- configuration --------------------------------------------------------------------------------------------------------


def test_what_was_stored_under_another_configuration_is_not_served():
    bench = filled()
    same = Bench(CacheRule(mode="override", ttl_s=1.0), store=bench.store, time=bench.time)
    assert same.ask().is_complete
    other = Bench(CacheRule(mode="override", ttl_s=2.0), store=bench.store, time=bench.time)
    assert other.ask().is_waiting


def test_collapsing_works_without_storing():
    bench = Bench(CacheRule(mode="off"))
    first, second = bench.ask(), bench.ask()
    assert len(bench.origin) == 1
    bench.origin[0].answer(b"x", cc("max-age=60"))
    assert first.body == second.body == b"x"
    assert first.cache_status == b"edgetun; fwd=uri-miss"
    assert bench.store.entry_count == 0
    assert bench.ask().is_waiting


def test_storing_works_without_collapsing():
    bench = Bench(collapse=CollapseRule(enabled=False))
    first, second = bench.ask(), bench.ask()
    assert len(bench.origin) == 2
    bench.origin[0].answer(b"one")
    bench.origin[1].answer(b"two")
    assert (first.body, second.body) == (b"one", b"two")
    assert bench.ask().is_complete
    bench.check_nothing_left()


def test_every_request_counts_once():
    bench = filled()
    bench.ask()
    bench.ask(method=b"HEAD")
    bench.ask(b"/", (b"cookie", b"a"))
    bench.ask(b"/new")
    bench.ask(b"/new")
    bench.ask(b"/new", (b"range", b"bytes=0-1"))
    bench.ask(b"/newer", (b"range", b"bytes=0-1"))
    bench.ask(b"/newer", cc("only-if-cached"))
    stats = bench.stage.stats
    assert (stats.hits, stats.misses, stats.collapsed, stats.bypass, stats.alone, stats.refused) == (2, 2, 2, 1, 1, 1)
    assert stats.stores == 1
