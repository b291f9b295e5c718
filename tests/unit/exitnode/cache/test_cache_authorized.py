"""Requests with Authorization: what the origin gives to everyone may be stored, and nothing is shared on its way (RFC 9111 §3.5)."""

from __future__ import annotations

import pytest

from edgetun_core.snapshot import CacheRule
from support.cache import Bench

RESPECT = CacheRule()
OVERRIDE = CacheRule(mode="override", ttl_s=60.0)
ALICE = (b"authorization", b"Bearer alice")
BOB = (b"authorization", b"Bearer bob")


def cc(value: str) -> tuple[bytes, bytes]:
    return (b"cache-control", value.encode())


@pytest.mark.parametrize("rule", [RESPECT, OVERRIDE])
@pytest.mark.parametrize("word", ["public, max-age=60", "s-maxage=60", "must-revalidate, max-age=60"])
def test_an_answer_the_origin_gives_to_everyone_is_stored_and_reused(rule, word):
    bench = Bench(rule)
    first = bench.ask(b"/", ALICE)
    bench.origin[0].answer(b"for all", cc(word))
    assert first.body == b"for all"
    assert first.cache_status == b"edgetun; fwd=uri-miss; stored"
    assert bench.ask(b"/", BOB).body == b"for all"
    assert bench.ask().body == b"for all"
    assert bench.ask(b"/", BOB, method=b"HEAD").status == 200
    assert len(bench.origin) == 1
    bench.check_nothing_left()


@pytest.mark.parametrize("rule", [RESPECT, OVERRIDE])
@pytest.mark.parametrize("word", ["max-age=60", "private, max-age=60", "no-store", "proxy-revalidate, max-age=60"])
def test_any_other_answer_is_for_who_asked_alone(rule, word):
    bench = Bench(rule)
    for number, who in enumerate((ALICE, BOB, ALICE)):
        guest = bench.ask(b"/", who)
        bench.origin[number].answer(b"%d" % number, cc(word))
        assert guest.body == b"%d" % number
        assert guest.cache_status == b"edgetun; fwd=bypass"
    assert bench.store.entry_count == 0
    assert bench.ask().is_waiting


def test_what_was_stored_for_everyone_else_is_not_given_to_who_is_known():
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer(b"log in", cc("max-age=60"))
    assert bench.ask(b"/", ALICE).is_waiting
    assert bench.ask().body == b"log in"


def test_an_answer_of_ones_own_takes_nothing_out_of_the_store():
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer(b"log in", cc("max-age=60"))
    bench.ask(b"/", ALICE)
    bench.origin[1].answer(b"hello alice", cc("private"))
    assert bench.ask().body == b"log in"


def test_authorized_requests_are_never_collapsed_and_nobody_joins_them_before_the_head():
    bench = Bench(RESPECT)
    guests = [bench.ask(b"/", ALICE), bench.ask(b"/", ALICE), bench.ask(), bench.ask(b"/", ALICE, method=b"HEAD")]
    assert len(bench.origin) == 4
    for exchange in bench.origin.exchanges:
        exchange.answer(b"x", cc("private"))
    assert all(guest.is_complete for guest in guests)
    bench.check_nothing_left()


def test_only_the_operators_word_collapses_them():
    bench = Bench(CacheRule(allow_authorization=True))
    bench.ask(b"/", ALICE)
    bench.ask(b"/", BOB)
    assert len(bench.origin) == 1


def test_they_are_validated_with_their_own_authorization():
    bench = Bench(RESPECT)
    bench.ask(b"/", ALICE)
    bench.origin[0].answer(b"for all", (b"etag", b'"1"'), cc("public, max-age=1"))
    bench.time.advance(2.0)
    guest = bench.ask(b"/", BOB)
    assert bench.origin[1].head.get(b"authorization") == BOB[1]
    assert bench.origin[1].head.get(b"if-none-match") == b'"1"'
    bench.origin[1].answer_head(304, ((b"etag", b'"1"'),), end=True)
    assert guest.body == b"for all"
    bench.check_nothing_left()


def test_the_key_is_shown_only_when_the_operator_wants_it():
    """RFC 9211 §2.8."""
    bench = Bench(CacheRule(show_key=True))
    bench.ask(b'/a"b?c=\\d')
    bench.origin[0].answer(b"x", cc("max-age=60"))
    assert bench.ask(b'/a"b?c=\\d').cache_status == rb'edgetun; hit; ttl=60; key="shop.test/a\"b?c=\\d"'
    bench = Bench(RESPECT)
    bench.ask()
    bench.origin[0].answer(b"x", cc("max-age=60"))
    assert b"key" not in bench.ask().cache_status


def test_only_if_cached_does_not_reach_the_origin_with_authorization_either():
    bench = Bench(RESPECT)
    bench.ask(b"/", ALICE)
    bench.origin[0].answer(b"mine", cc("private"))
    assert bench.ask(b"/", ALICE, cc("only-if-cached")).status == 504
    assert len(bench.origin) == 1
