"""Cache-Control is read strictly, and in doubt against storing (RFC 9111 §5.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_exitnode.cache.directives import (
    MAX_DELTA_S,
    RequestDirectives,
    ResponseDirectives,
    parse_request_directives,
    parse_response_directives,
)

MALFORMED = ResponseDirectives(no_store=True, no_cache=True)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ResponseDirectives()),
        ([b""], ResponseDirectives()),
        ([b"max-age=10"], ResponseDirectives(max_age_s=10)),
        ([b"MAX-AGE=10, Public"], ResponseDirectives(max_age_s=10, public=True)),
        ([b'max-age="10"'], ResponseDirectives(max_age_s=10)),
        ([b"public", b"s-maxage=3"], ResponseDirectives(public=True, s_maxage_s=3)),
        ([b" , ,public,,  max-age=1 ,"], ResponseDirectives(public=True, max_age_s=1)),
        # Said twice and differently is stale (RFC 9111 §4.2.1).
        ([b"max-age=10, max-age=3"], ResponseDirectives(max_age_s=0)),
        ([b"max-age=10", b"max-age=30"], ResponseDirectives(max_age_s=0)),
        ([b"max-age=10", b"max-age=10"], ResponseDirectives(max_age_s=10)),
        ([b"immutable, must-understand"], ResponseDirectives(immutable=True, must_understand=True)),
        ([b'private="a b"'], ResponseDirectives(private=True)),
        ([b"max-age=ten"], ResponseDirectives(max_age_s=0)),
        ([b"max-age"], ResponseDirectives(max_age_s=0)),
        ([b"max-age=-1"], ResponseDirectives(max_age_s=0)),
        ([b"max-age=1.5"], ResponseDirectives(max_age_s=0)),
        ([b"max-age=99999999999999999999"], ResponseDirectives(max_age_s=MAX_DELTA_S)),
        ([b"max-age=00000000000000000001"], ResponseDirectives(max_age_s=1)),
        ([b"s-maxage=x, max-age=9"], ResponseDirectives(s_maxage_s=0, max_age_s=9)),
        ([b"private"], ResponseDirectives(private=True)),
        ([b'private="Set-Cookie, X-User"'], ResponseDirectives(private_fields=(b"set-cookie", b"x-user"))),
        ([b'private=""'], ResponseDirectives(private=True)),
        ([b'private="a", private'], ResponseDirectives(private=True, private_fields=(b"a",))),
        ([b'no-cache="a"'], ResponseDirectives(no_cache_fields=(b"a",))),
        ([b"no-cache=a"], ResponseDirectives(no_cache_fields=(b"a",))),
        ([b"no-store=whatever"], ResponseDirectives(no_store=True)),
        ([b'ext="no-store", max-age=5'], ResponseDirectives(max_age_s=5)),
        ([b'ext="a\\"b, no-store", max-age=5'], ResponseDirectives(max_age_s=5)),
        ([b"community=UCI"], ResponseDirectives()),
        ([b"must-revalidate, proxy-revalidate"], ResponseDirectives(must_revalidate=True, proxy_revalidate=True)),
        (
            [b"stale-while-revalidate=5, stale-if-error=6"],
            ResponseDirectives(stale_while_revalidate_s=5, stale_if_error_s=6),
        ),
        # What breaks the grammar counts as no-store.
        ([b'private="unfinished'], MALFORMED),
        ([b"max-age=10; public"], MALFORMED),
        ([b"max-age = 10"], MALFORMED),
        ([b"max-age=10 public"], MALFORMED),
        ([b"public", b"="], MALFORMED),
        ([b"max-age=1\n2"], MALFORMED),
        ([b"max-age=10\n"], MALFORMED),
        ([b"a" * 9000], MALFORMED),
        ([b"max-age=\x00"], MALFORMED),
    ],
)
def test_response_directives(lines, expected):
    assert parse_response_directives(lines) == expected


@pytest.mark.parametrize(
    ("lines", "pragma", "expected"),
    [
        ([], [], RequestDirectives()),
        ([b"no-cache"], [], RequestDirectives(no_cache=True)),
        ([], [b"no-cache"], RequestDirectives(no_cache=True)),
        ([], [b"x, No-Cache"], RequestDirectives(no_cache=True)),
        ([b"max-age=5"], [b"no-cache"], RequestDirectives(max_age_s=5)),
        ([b"max-age=5, max-age=1"], [], RequestDirectives(max_age_s=1)),
        ([b"min-fresh=5"], [], RequestDirectives(min_fresh_s=5)),
        ([b"min-fresh=x"], [], RequestDirectives(min_fresh_s=MAX_DELTA_S)),
        ([b"min-fresh=0"], [], RequestDirectives()),
        ([b"only-if-cached, no-store"], [], RequestDirectives(only_if_cached=True, no_store=True)),
        ([b"max-stale=100"], [], RequestDirectives(max_stale_s=100)),
        ([b"max-stale"], [], RequestDirectives(max_stale_s=MAX_DELTA_S)),
        ([b"max-stale=x"], [], RequestDirectives()),
        ([b"max-stale, max-stale=5"], [], RequestDirectives(max_stale_s=5)),
        ([b'"'], [], RequestDirectives(no_cache=True)),
    ],
)
def test_request_directives(lines, pragma, expected):
    assert parse_request_directives(lines, pragma) == expected


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_are_read_or_refused_and_never_raise(lines):
    parse_response_directives(lines)
    parse_request_directives(lines, lines)


token = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)


@given(st.lists(st.tuples(token, st.none() | token | st.integers(0, 10**6).map(str)), max_size=6))
def test_a_no_store_is_never_overlooked_among_other_directives(others):
    parts = [name if argument is None else f"{name}={argument}" for name, argument in others]
    for position in range(len(parts) + 1):
        line = ", ".join([*parts[:position], "No-Store", *parts[position:]]).encode()
        assert parse_response_directives([line]).no_store


def test_hostile_white_space_and_quotes_cost_no_more_than_their_length():
    for line in (b" " * 8000, b" ," * 4000, b'a="' + b"\\" * 7000, b"\t " * 4000 + b";"):
        parse_response_directives([line])
