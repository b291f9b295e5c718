"""Partial responses are stored, combined, and answer ranges and nothing else (RFC 9111 §3.3, §3.4)."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.errors import UpstreamBroken
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.dates import format_http_date
from edgetun_exitnode.cache.parts import combine, parse_content_range
from edgetun_exitnode.cache.store import Store
from support.cache import PEER, WALL_S, Bench, Guest

BODY = bytes(range(256)) * 4
TAG = (b"etag", b'"1"')
FRESH = (b"cache-control", b"max-age=60")


def ask(bench: Bench, first: int, last: int, *fields: tuple[bytes, bytes]) -> Guest:
    return bench.ask(b"/", (b"range", b"bytes=%d-%d" % (first, last)), *fields)


def answer(bench: Bench, first: int, last: int, *fields: tuple[bytes, bytes], length: int = len(BODY)) -> None:
    body = BODY[first : last + 1]
    content_range = (b"content-range", b"bytes %d-%d/%d" % (first, last, length))
    bench.origin.exchanges[-1].answer(
        body, content_range, (b"content-length", b"%d" % len(body)), *(fields or (TAG, FRESH)), status=206
    )


@pytest.fixture
def bench() -> Bench:
    return Bench(CacheRule())


def test_a_part_answers_ranges_within_it_and_nothing_else(bench):
    first = ask(bench, 100, 299)
    assert bench.origin[0].head.get(b"range") == b"bytes=100-299"
    answer(bench, 100, 299)
    assert first.body == BODY[100:300]
    assert first.cache_status == b"edgetun; fwd=uri-miss; stored"
    bench.time.advance(3.0)
    inner = ask(bench, 150, 199)
    assert (inner.status, inner.body, inner.age) == (206, BODY[150:200], 3)
    assert inner.head is not None
    assert inner.head.get(b"content-range") == b"bytes 150-199/1024"
    assert inner.head.get(b"content-length") == b"50"
    assert inner.cache_status == b"edgetun; hit; ttl=57"
    assert len(bench.origin) == 1
    beyond = ask(bench, 250, 350)
    assert beyond.is_waiting
    whole = bench.ask()
    assert whole.is_waiting, "a part is never taken for the whole"
    assert bench.origin[2].head.get(b"range") is None


def test_parts_with_the_same_strong_validator_are_combined_until_they_are_the_whole(bench):
    ask(bench, 0, 399)
    answer(bench, 0, 399)
    ask(bench, 300, 799)
    answer(bench, 300, 799, TAG, FRESH, (b"x-new", b"yes"))
    across = ask(bench, 350, 500)
    assert across.body == BODY[350:501]
    assert across.head is not None
    assert across.head.get(b"x-new") == b"yes", "the newest fields hold (§3.4)"
    last = bench.ask(b"/", (b"range", b"bytes=-224"))
    assert last.is_waiting
    answer(bench, 800, 1023)
    assert last.cache_status == b"edgetun; fwd=partial; stored"
    whole = bench.ask()
    assert (whole.status, whole.body) == (200, BODY)
    assert whole.head is not None
    assert whole.head.get(b"content-length") == b"1024"
    assert whole.head.get(b"content-range") is None
    assert bench.store.entry_count == 1
    assert len(bench.origin) == 3
    bench.check_nothing_left()


@pytest.mark.parametrize(
    "other",
    [
        ((b"etag", b'"2"'), FRESH),
        ((b"last-modified", format_http_date(WALL_S - 3600)), FRESH),
    ],
)
def test_parts_of_different_representations_are_never_mixed(bench, other):
    ask(bench, 0, 499)
    answer(bench, 0, 499)
    ask(bench, 500, 1023)
    answer(bench, 500, 1023, *other)
    assert ask(bench, 500, 600).body == BODY[500:601]
    assert ask(bench, 0, 100).is_waiting, "the newer part took the older one's place"
    assert bench.ask().is_waiting


def test_parts_of_another_length_are_not_combined(bench):
    ask(bench, 0, 499)
    answer(bench, 0, 499)
    ask(bench, 500, 999)
    answer(bench, 500, 999, length=1000)
    assert bench.ask().is_waiting


@pytest.mark.parametrize(
    ("why", "fields", "content_range"),
    [
        ("no validator", (FRESH,), None),
        ("a weak one", ((b"etag", b'W/"1"'), FRESH), None),
        ("a date too near to tell", ((b"last-modified", format_http_date(WALL_S - 5)), FRESH), None),
        ("no freshness", (TAG,), None),
        ("no-store", (TAG, (b"cache-control", b"no-store")), None),
        ("Set-Cookie", (TAG, FRESH, (b"set-cookie", b"a=b")), None),
        ("unknown length", (TAG, FRESH), b"bytes 0-9/*"),
        ("nonsense", (TAG, FRESH), b"bytes 9-0/100"),
        ("another length of the body", (TAG, FRESH), b"bytes 0-99/100"),
    ],
)
def test_what_is_not_stored(bench, why, fields, content_range):
    guest = ask(bench, 0, 9)
    if content_range is None:
        answer(bench, 0, 9, *fields)
    else:
        bench.origin[0].answer(BODY[:10], (b"content-range", content_range), *fields, status=206)
    assert guest.body == BODY[:10]
    assert bench.store.entry_count == 0
    assert ask(bench, 0, 9).is_waiting


def test_a_part_that_breaks_off_or_whose_visitor_leaves_is_not_stored_and_gives_its_room_back(bench):
    for how in ("break", "leave"):
        guest = ask(bench, 0, 499)
        exchange = bench.origin.exchanges[-1]
        exchange.answer_head(206, ((b"content-range", b"bytes 0-499/1024"), TAG, FRESH))
        exchange.send(BODY[:200])
        assert bench.store.reserved_bytes > 0
        if how == "break":
            exchange.fail(UpstreamBroken("cut"))
            assert guest.error is not None
        else:
            guest.leave()
            assert exchange.cancelled is not None
        assert bench.store.entry_count == 0
        bench.check_nothing_left()


def test_a_part_is_invalidated_replaced_by_the_whole_and_varies_as_the_rest_does(bench):
    ask(bench, 0, 499, (b"accept-language", b"de"))
    answer(bench, 0, 499, TAG, FRESH, (b"vary", b"accept-language"))
    assert ask(bench, 0, 99, (b"accept-language", b"en")).is_waiting
    assert ask(bench, 0, 99, (b"accept-language", b"de")).is_complete
    bench.time.advance(0.1)
    bench.ask(method=b"POST")
    bench.origin.exchanges[-1].answer(b"done")
    bench.time.advance(0.1)
    assert ask(bench, 0, 99, (b"accept-language", b"de")).is_waiting
    answer(bench, 0, 99)
    assert bench.store.entry_count == 1
    bench.ask()
    bench.origin.exchanges[-1].answer(BODY, TAG, FRESH)
    assert bench.store.entry_count == 1
    assert ask(bench, 0, 99).body == BODY[:100]


def test_a_stale_part_and_one_that_if_range_does_not_match_go_to_the_origin(bench):
    ask(bench, 0, 499)
    answer(bench, 0, 499)
    assert ask(bench, 0, 9, (b"if-range", b'"1"')).is_complete
    assert ask(bench, 0, 9, (b"if-range", b'"2"')).is_waiting
    assert ask(bench, 0, 9, (b"cache-control", b"no-cache")).is_waiting
    bench.time.advance(61.0)
    assert ask(bench, 0, 9).is_waiting


def test_a_large_part_waits_for_a_slow_reader():
    body = b"x" * 400_000
    bench = Bench(CacheRule())
    ask(bench, 0, 399_999)
    bench.origin[0].answer(body, (b"content-range", b"bytes 0-399999/500000"), TAG, FRESH, status=206)
    guest = Guest()
    guest.sink = bench.stage.open(bench.origin[0].head, PEER, True, guest)
    guest.pause()
    bench.time.advance(0)
    assert 0 < len(guest.body) < len(body)
    guest.resume()
    assert guest.body == body
    assert guest.is_complete
    bench.check_nothing_left()


def test_no_more_than_the_bounds_is_kept():
    bench = Bench(CacheRule(max_object_bytes=600))
    ask(bench, 0, 399)
    answer(bench, 0, 399)
    ask(bench, 600, 999)
    answer(bench, 600, 999)
    assert ask(bench, 600, 999).is_complete, "the newer part, where both would be too much"
    assert ask(bench, 0, 399).is_waiting
    bench = Bench(CacheRule(), store=Store(0))
    ask(bench, 0, 9)
    answer(bench, 0, 9)
    assert bench.store.entry_count == 0


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 80)), min_size=1, max_size=12))
def test_combined_parts_hold_every_byte_that_came_and_no_other(asked):
    parts: tuple[tuple[int, bytes], ...] = ()
    known: dict[int, int] = {}
    for turn, (first, size) in enumerate(asked):
        data = bytes((turn * 37 + i) % 256 for i in range(size))
        parts = combine(parts, (first, data))
        known |= {first + i: byte for i, byte in enumerate(data)}
    held = {first + i: byte for first, data in parts for i, byte in enumerate(data)}
    assert held == known
    ends = [(first, first + len(data)) for first, data in parts]
    assert all(a[1] < b[0] for a, b in pairwise(ends))


@pytest.mark.parametrize(
    "text",
    [
        b"bytes 0-9/*",
        b"bytes */10",
        b"bytes 5-4/10",
        b"bytes 0-10/10",
        b"items 0-1/2",
        b"",
        b"bytes 0-1/2, bytes 0-1/2",
    ],
)
def test_a_content_range_that_says_not_where_is_none(text):
    assert parse_content_range([text]) is None
    assert parse_content_range([b"bytes 0-1/2", b"bytes 0-1/2"]) is None
    assert parse_content_range([b"Bytes 0-1/2"]) == (0, 1, 2)


def test_a_part_leaves_no_garbage_behind(bench):
    watched: list[weakref.ref[Guest]] = []
    gc.collect()
    gc.disable()
    try:
        for turn in range(3):
            guest = bench.ask(b"/%d" % turn, (b"range", b"bytes=0-9"))
            exchange = bench.origin.exchanges.pop()
            if turn:
                exchange.answer(BODY[:10], (b"content-range", b"bytes 0-9/1024"), TAG, FRESH, status=206)
            else:
                guest.leave()
            guest.sink = None
            watched.append(weakref.ref(guest))
        del guest, exchange
        assert [ref() for ref in watched] == [None] * 3
    finally:
        gc.enable()
