"""HTTP dates, preconditions and ranges (RFC 9110 §5.6.7, §13, §14)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_exitnode.cache.dates import format_http_date, parse_http_date
from edgetun_exitnode.cache.validators import ByteRange, Condition, parse_condition, parse_etag, parse_range


@pytest.mark.parametrize(
    "text",
    [
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov  6 08:49:37 1994",
        b"sun, 06 NOV 1994 08:49:37 gmt",
        b"SUNDAY, 06-nov-94 08:49:37 GMT",
    ],
)
def test_the_three_formats_of_a_date_name_the_same_moment(text):
    assert parse_http_date(text) == 784111777.0


@pytest.mark.parametrize(
    "text",
    [b"", b"0", b"-1", b"Sun, 06 Nov 1994 08:49:37", b"Sun, 06 Nov 1994 08:49:37 UTC", b"Sun, 31 Feb 2024 08:49:37 GMT",
     b"Sun, 06 Nov 1994 08:49:37 EST", b"Sun, 06 Nov 1994 08:49:37 +0000", b"Sun, 06 Nov 1994 25:49:37 GMT", b"Sun, 06 Nov 1994 08:49:37 GMT\n",
     b"Sun, 06 Nov 0000 08:49:37 GMT"],
)  # fmt: skip
def test_what_is_no_date_is_none(text):
    assert parse_http_date(text) is None


def test_two_digit_years_are_of_the_nearest_century_within_50_years_ahead():
    """RFC 9110 §5.6.7."""
    this_year = time.gmtime().tm_year
    for years in (-40, -1, 0, 1, 49, 50):
        year = this_year + years
        read = parse_http_date(b"Monday, 01-Jan-%02d 00:00:00 GMT" % (year % 100))
        assert read is not None
        assert time.gmtime(read).tm_year == year
    read = parse_http_date(b"Monday, 01-Jan-%02d 00:00:00 GMT" % ((this_year + 51) % 100))
    assert read is not None
    assert time.gmtime(read).tm_year == this_year - 49


@given(st.integers(0, 4_000_000_000))
def test_a_date_written_is_read_back(seconds):
    assert parse_http_date(format_http_date(seconds)) == seconds


@given(st.binary(max_size=40))
def test_no_bytes_make_the_readers_raise(data):
    parse_http_date(data)
    parse_etag(data)
    parse_condition([data], [data])
    parse_condition([], [data])
    parse_range(b"bytes=" + data, [data])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"*"], Condition(any_etag=True)),
        ([b'"a"'], Condition(has_etags=True, etags=(b'"a"',))),
        ([b'"a", W/"b"'], Condition(has_etags=True, etags=(b'"a"', b'"b"'))),
        ([b'"a"', b'"b"'], Condition(has_etags=True, etags=(b'"a"', b'"b"'))),
        ([b'"a,b" ,, "c"'], Condition(has_etags=True, etags=(b'"a,b"', b'"c"'))),
        ([b"a"], Condition(has_etags=True)),
        ([b'"a" "b"'], Condition(has_etags=True)),
        ([b'w/"a"'], Condition(has_etags=True)),
        ([b'*, "a"'], Condition(has_etags=True)),
    ],
)
def test_if_none_match(lines, expected):
    assert parse_condition(lines, [b"Sun, 06 Nov 1994 08:49:37 GMT"]) == expected


def test_if_none_match_compares_weakly_and_unreadable_ones_match_nothing():
    condition = parse_condition([b'W/"a"'], [])
    assert condition is not None
    assert condition.is_not_modified(b'"a"', None)
    assert condition.is_not_modified(b'W/"a"', None)
    assert not condition.is_not_modified(b'"b"', None)
    assert not condition.is_not_modified(None, None)
    unreadable = parse_condition([b"a"], [])
    assert unreadable is not None
    assert not unreadable.is_not_modified(b'"a"', 0.0)


def test_if_modified_since_counts_only_without_if_none_match():
    condition = parse_condition([], [b"Sun, 06 Nov 1994 08:49:37 GMT"])
    assert condition is not None
    assert condition.is_not_modified(None, 784111777.0)
    assert not condition.is_not_modified(None, 784111778.0)
    assert not condition.is_not_modified(None, None)
    both = parse_condition([b'"a"'], [b"Sun, 06 Nov 1994 08:49:37 GMT"])
    assert both is not None
    assert not both.is_not_modified(b'"b"', 0.0)


@pytest.mark.parametrize(
    ("value", "length", "expected"),
    [
        (b"bytes=0-0", 10, (0, 0)),
        (b"bytes=0-99", 10, (0, 9)),
        (b"bytes=5-", 10, (5, 9)),
        (b"bytes=-3", 10, (7, 9)),
        (b"bytes=-30", 10, (0, 9)),
        (b"BYTES=1-2", 10, (1, 2)),
        (b"bytes=10-", 10, None),
        (b"bytes=-0", 10, None),
        (b"bytes=-5", 0, None),
    ],
)
def test_a_range_resolves(value, length, expected):
    wanted = parse_range(value, [])
    assert isinstance(wanted, ByteRange)
    assert wanted.resolve(length) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"bytes=",
        b"bytes=-",
        b"bytes=2-1",
        b"bytes=0-1;3-4",
        b"bytes=,",
        b"bytes=0-1,x",
        b"items=0-1",
        b"0-1",
        b"bytes=a-b",
    ],
)
def test_other_ranges_are_not_for_us(value):
    assert parse_range(value, []) is None


def test_if_range_matches_only_a_strong_tag():
    assert parse_range(b"bytes=0-1", [b'"a"']) == ByteRange(0, 1, 0, b'"a"')
    assert parse_range(b"bytes=0-1", [b"Sun, 06 Nov 1994 08:49:37 GMT"]) == ByteRange(
        0, 1, if_range_date=b"Sun, 06 Nov 1994 08:49:37 GMT"
    )
    for weak in (b'W/"a"', b"a"):
        wanted = parse_range(b"bytes=0-1", [weak])
        assert isinstance(wanted, ByteRange)
        assert wanted.never
