"""Validation: the origin is asked whether what is stored still holds, once for everyone who waits (RFC 9111 §3.2, §4.3)."""

from __future__ import annotations

import gc
import weakref

import pytest

from edgetun_core.errors import NoSession
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.cache.dates import format_http_date
from edgetun_exitnode.cache.store import Store
from support.cache import WALL_S, Bench, Guest, OriginExchange

RESPECT = CacheRule()
TAG = (b"etag", b'"1"')
LAST_MODIFIED = (b"last-modified", format_http_date(WALL_S - 5000))


def cc(value: str) -> tuple[bytes, bytes]:
    return (b"cache-control", value.encode())


def stored(*fields: tuple[bytes, bytes], rule: CacheRule = RESPECT, body: bytes = b"hello", **more) -> Bench:
    """A bench with one stored response for `/`, one second old."""
    bench = Bench(rule, **more)
    bench.ask()
    bench.origin[0].answer(body, *fields)
    bench.time.advance(1.0)
    return bench


def confirm(bench: Bench, *fields: tuple[bytes, bytes]) -> None:
    bench.origin.exchanges[-1].answer_head(304, fields, end=True)


def test_a_stale_response_is_confirmed_by_a_304_and_serves_from_store_again():
    """§4.3.3, §4.3.4."""
    bench = stored(TAG, LAST_MODIFIED, cc("max-age=1"))
    guest = bench.ask()
    assert bench.origin[1].head.get(b"if-none-match") == b'"1"'
    assert bench.origin[1].head.get(b"if-modified-since") == LAST_MODIFIED[1]
    confirm(bench, TAG, cc("max-age=10"), (b"x-new", b"yes"))
    assert (guest.status, guest.body, guest.is_complete) == (200, b"hello", True)
    assert guest.cache_status == b"edgetun; fwd=stale; fwd-status=304; ttl=10"
    assert guest.head is not None
    assert guest.head.get(b"x-new") == b"yes"
    assert guest.head.get_all(b"cache-control") == [b"max-age=10"]
    bench.time.advance(9.0)
    later = bench.ask()
    assert later.cache_status == b"edgetun; hit; ttl=1"
    assert later.age == 9
    assert len(bench.origin) == 2
    bench.check_nothing_left()


def test_one_validation_answers_everyone_who_waits():
    bench = stored(TAG, cc("max-age=1"))
    guests = [bench.ask() for _ in range(50)]
    guests.append(bench.ask(b"/", (b"if-none-match", b'"1"')))
    guests.append(bench.ask(b"/", (b"range", b"bytes=1-2")))
    assert len(bench.origin) == 2
    confirm(bench, TAG)
    assert all(guest.body == b"hello" and guest.is_complete for guest in guests[:50])
    assert guests[1].cache_status == b"edgetun; fwd=stale; collapsed; ttl=1"
    assert guests[50].status == 304
    assert (guests[51].status, guests[51].body) == (206, b"el")
    bench.check_nothing_left()


def test_a_200_replaces_what_was_stored_for_everyone_who_waits():
    """§4.3.3: a full response is used and takes the place."""
    bench = stored(TAG, cc("max-age=1"))
    guests = [bench.ask() for _ in range(3)]
    bench.origin[1].answer(b"newer", (b"etag", b'"2"'), cc("max-age=1"))
    assert [guest.body for guest in guests] == [b"newer"] * 3
    assert bench.ask().body == b"newer"
    assert len(bench.origin) == 2


def test_the_fields_of_a_304_replace_the_stored_ones_but_not_those_of_framing_and_coding():
    """§3.2, §3.1."""
    bench = stored(
        TAG, cc("max-age=1"), (b"content-encoding", b"br"), (b"x-two", b"a"), (b"x-two", b"b"), (b"x-kept", b"k")
    )
    guest = bench.ask()
    confirm(bench, TAG, cc("max-age=5"), (b"content-encoding", b"gzip"), (b"content-length", b"0"), (b"x-two", b"c"),
            (b"connection", b"x"), (b"age", b"2"))  # fmt: skip
    assert guest.head is not None
    assert guest.head.get(b"content-encoding") == b"br"
    assert guest.head.get_all(b"content-length") == [b"5"]
    assert guest.head.get_all(b"x-two") == [b"c"]
    assert guest.head.get(b"x-kept") == b"k"
    assert guest.head.get(b"connection") is None
    assert guest.age == 2
    assert guest.cache_status.endswith(b"ttl=3")


@pytest.mark.parametrize(
    ("kept", "answered"),
    [
        ([TAG], [TAG]),
        ([TAG], []),
        ([(b"etag", b'W/"1"')], [(b"etag", b'W/"1"')]),
        ([(b"etag", b'W/"1"')], []),
        ([LAST_MODIFIED], [LAST_MODIFIED]),
        ([LAST_MODIFIED], []),
        ([TAG, LAST_MODIFIED], [LAST_MODIFIED]),
    ],
)
def test_a_304_means_the_response_that_the_question_was_about(kept, answered):
    """§4.3.4; small servers leave the validator out of their 304."""
    bench = stored(*kept, cc("max-age=1"))
    guest = bench.ask()
    confirm(bench, *answered)
    assert guest.body == b"hello"
    assert len(bench.origin) == 2


@pytest.mark.parametrize(
    ("kept", "answered"),
    [
        ([TAG], [(b"etag", b'"2"')]),
        ([TAG], [(b"etag", b'W/"2"')]),
        ([LAST_MODIFIED], [(b"last-modified", format_http_date(WALL_S - 1))]),
    ],
)
def test_a_304_that_names_nothing_stored_updates_nothing_and_the_whole_is_asked_for(kept, answered):
    """§4.3.4."""
    bench = stored(*kept, cc("max-age=1"))
    guests = [bench.ask(), bench.ask()]
    confirm(bench, *answered)
    assert len(bench.origin) == 3
    again = bench.origin[2].head
    assert again.get(b"if-none-match") is None
    assert again.get(b"if-modified-since") is None
    bench.origin[2].answer(b"whole", cc("max-age=1"))
    assert [guest.body for guest in guests] == [b"whole", b"whole"]
    bench.check_nothing_left()


def test_a_validation_answered_within_open_does_as_well():
    bench = stored(TAG, cc("max-age=1"))
    bench.origin.script = lambda exchange: exchange.answer_head(304, (TAG,), end=True)
    assert bench.ask().body == b"hello"
    bench.time.advance(2.0)
    answers = iter([(304, ((b"etag", b'"other"'),)), (200, (cc("max-age=1"),))])

    def script(exchange):
        status, fields = next(answers)
        exchange.answer_head(status, fields, end=status == 304)
        if status == 200:
            exchange.send(b"whole", end=True)

    bench.origin.script = script
    assert bench.ask().body == b"whole"
    bench.check_nothing_left()


def test_a_304_that_says_no_store_answers_who_asked_and_is_stored_no_longer():
    bench = stored(TAG, cc("max-age=1"))
    guests = [bench.ask(), bench.ask()]
    confirm(bench, TAG, cc("no-store"), (b"set-cookie", b"a=b"))
    assert (guests[0].status, guests[0].body) == (200, b"hello")
    assert guests[0].head is not None
    assert guests[0].head.get(b"set-cookie") == b"a=b"
    assert guests[1].is_waiting
    assert len(bench.origin) == 3
    assert bench.origin[2].head.get(b"if-none-match") is None
    bench.origin[2].answer(b"own", cc("no-store"))
    assert guests[1].body == b"own"
    assert bench.store.entry_count == 0
    bench.check_nothing_left()


@pytest.mark.parametrize("word", ["no-cache", "max-age=0, must-revalidate", "s-maxage=0"])
def test_what_must_be_validated_each_time_is_stored_and_asked_about_each_time(word):
    """§5.2.2.4, §4.2.4: nobody gets it without the origin's yes, also not those who wait for the same."""
    bench = Bench(RESPECT)
    first, second = bench.ask(), bench.ask()
    bench.origin[0].answer(b"hello", TAG, cc(word))
    assert first.body == b"hello"
    assert second.is_waiting
    assert len(bench.origin) == 2, "the follower is released at the head"
    bench.origin[1].answer(b"hello", TAG, cc(word))
    assert bench.store.entry_count == 1
    third, fourth = bench.ask(), bench.ask()
    assert len(bench.origin) == 4, "each asks on its own, at once"
    for number in (2, 3):
        assert bench.origin[number].head.get(b"if-none-match") == b'"1"'
        bench.origin[number].answer_head(304, (TAG, cc(word)), end=True)
    assert third.body == fourth.body == b"hello"
    assert third.cache_status == b"edgetun; fwd=stale; fwd-status=304; ttl=-1"
    bench.check_nothing_left()


def test_a_validated_response_that_became_fresh_is_collapsed_and_shared_again():
    bench = stored(TAG, cc("no-cache"))
    guest = bench.ask()
    confirm(bench, TAG, cc("max-age=5"))
    assert guest.body == b"hello"
    assert bench.ask().cache_status == b"edgetun; hit; ttl=5"


def test_a_reload_is_answered_by_a_304_and_freshens_for_all():
    """§5.2.1.4: `no-cache` wants validation, not a transfer."""
    bench = stored(TAG, cc("max-age=60"))
    guest = bench.ask(b"/", cc("no-cache"))
    assert bench.origin[1].head.get(b"if-none-match") == b'"1"'
    confirm(bench, TAG)
    assert guest.body == b"hello"
    assert guest.cache_status == b"edgetun; fwd=request; fwd-status=304; ttl=60"


def test_stale_while_revalidate_renews_by_304():
    bench = stored(TAG, cc("max-age=1, stale-while-revalidate=10"))
    assert bench.ask().cache_status == b"edgetun; hit; ttl=-1; detail=stale-while-revalidate"
    confirm(bench, TAG)
    assert bench.ask().cache_status == b"edgetun; hit; ttl=1"
    assert len(bench.origin) == 2
    bench.check_nothing_left()


@pytest.mark.parametrize("failure", ["503", "reset"])
def test_a_validation_that_fails_falls_back_to_stale_where_that_is_allowed(failure):
    """§4.3.3, RFC 5861 §4."""
    for allowed in (True, False):
        bench = stored(TAG, cc("max-age=1, stale-if-error=10" if allowed else "max-age=1, must-revalidate"))
        guest = bench.ask()
        if failure == "503":
            bench.origin[1].answer(b"broken", status=503)
        else:
            bench.origin[1].fail(NoSession("none"))
        if allowed:
            assert guest.body == b"hello"
        elif failure == "503":
            assert (guest.status, guest.body) == (503, b"broken")
        else:
            assert guest.error is not None
        assert bench.store.entry_count == 1, "an error says nothing about what is stored"
        bench.check_nothing_left()


def test_the_override_validates_too_and_counts_from_the_304():
    bench = stored(TAG, rule=CacheRule(mode="override", ttl_s=1.0))
    guests = [bench.ask() for _ in range(3)]
    bench.time.advance(5.0)
    confirm(bench, TAG)
    assert [guest.body for guest in guests] == [b"hello"] * 3
    bench.time.advance(0.9)
    assert bench.ask().body == b"hello"
    assert len(bench.origin) == 2


def test_a_slow_reader_takes_a_validated_body_at_its_pace_and_the_others_do_not_wait():
    body = b"x" * 300_000
    bench = stored(TAG, cc("max-age=1"), body=body)
    slow, quick = bench.ask(), bench.ask()
    slow.pause()
    confirm(bench, TAG)
    assert quick.body == body
    assert len(slow.body) < len(body)
    slow.resume()
    assert slow.body == body
    gone = bench.ask(b"/", cc("no-cache"))
    gone.pause()
    confirm(bench, TAG)
    gone.leave()
    bench.check_nothing_left()


def test_the_leader_leaving_a_validation_leaves_it_to_who_waits():
    bench = stored(TAG, cc("max-age=1"))
    leader, follower = bench.ask(), bench.ask()
    leader.leave()
    confirm(bench, TAG)
    assert follower.body == b"hello"
    bench.check_nothing_left()


def test_what_was_invalidated_while_it_was_being_validated_does_not_come_back():
    """§4.4."""
    bench = stored(TAG, cc("max-age=1"))
    guest = bench.ask()
    bench.time.advance(0.1)
    bench.ask(method=b"POST")
    bench.origin[2].answer(b"written")
    bench.time.advance(0.1)
    bench.origin[1].answer_head(304, (TAG,), end=True)
    assert guest.body == b"hello", "asked before the write"
    assert bench.store.entry_count == 0
    bench.check_nothing_left()


def test_all_variants_are_named_and_the_one_confirmed_answers():
    """§4.1, §4.3.1: a variant nobody has asked for yet may be one that is stored."""
    bench = Bench(RESPECT)
    for number, language in enumerate((b"de", b"en")):
        bench.ask(b"/", (b"accept-language", language))
        bench.origin[number].answer(
            language, (b"etag", b'"%s"' % language), (b"vary", b"accept-language"), cc("max-age=9")
        )
    guest = bench.ask(b"/", (b"accept-language", b"fr, en"))
    assert bench.origin[2].head.get(b"if-none-match") == b'"en", "de"'
    bench.origin[2].answer_head(304, ((b"etag", b'"en"'), (b"vary", b"accept-language")), end=True)
    assert guest.body == b"en"
    assert guest.cache_status.startswith(b"edgetun; fwd=vary-miss; fwd-status=304")
    assert bench.ask(b"/", (b"accept-language", b"fr, en")).cache_status == b"edgetun; hit; ttl=9"
    assert bench.ask(b"/", (b"accept-language", b"de")).body == b"de"
    assert len(bench.origin) == 3


def test_a_weak_tag_of_another_variant_is_not_offered():
    bench = Bench(RESPECT)
    bench.ask(b"/", (b"accept-language", b"de"))
    bench.origin[0].answer(b"de", (b"etag", b'W/"de"'), (b"vary", b"accept-language"), cc("max-age=9"))
    bench.ask(b"/", (b"accept-language", b"en"))
    assert bench.origin[1].head.get(b"if-none-match") is None


def test_variants_with_the_same_strong_tag_are_all_updated_by_one_304():
    """§4.3.4."""
    bench = Bench(RESPECT)
    for number, language in enumerate((b"de", b"en")):
        bench.ask(b"/", (b"accept-language", language))
        bench.origin[number].answer(b"same", TAG, (b"vary", b"accept-language"), cc("max-age=1"))
    bench.time.advance(1.0)
    bench.ask(b"/", (b"accept-language", b"en"))
    bench.origin[2].answer_head(304, (TAG, cc("max-age=9")), end=True)
    assert bench.ask(b"/", (b"accept-language", b"de")).cache_status == b"edgetun; hit; ttl=9"


def test_vary_that_changes_with_a_304_is_obeyed():
    bench = stored(TAG, cc("max-age=1"))
    same, other = bench.ask(b"/", (b"x-v", b"1")), bench.ask(b"/", (b"x-v", b"2"))
    confirm(bench, TAG, (b"vary", b"x-v"))
    assert same.body == b"hello"
    assert other.is_waiting
    assert len(bench.origin) == 3
    assert bench.origin[2].head.get(b"x-v") == b"2"
    bench.origin[2].answer(b"two", (b"vary", b"x-v"), cc("max-age=1"))
    assert other.body == b"two"


def test_a_range_of_a_stale_response_is_cut_after_validation():
    bench = stored(TAG, cc("max-age=1"))
    guest = bench.ask(b"/", (b"range", b"bytes=0-1"))
    assert bench.origin[1].head.get(b"range") is None
    assert bench.origin[1].head.get(b"if-none-match") == b'"1"'
    confirm(bench, TAG)
    assert (guest.status, guest.body) == (206, b"he")


@pytest.mark.parametrize(
    ("fields", "is_confirmed"),
    [
        ((TAG, cc("max-age=9"), (b"content-length", b"5")), True),
        ((cc("max-age=9"),), True),
        (((b"etag", b'"2"'), cc("max-age=9")), False),
        ((TAG, cc("max-age=9"), (b"content-length", b"6")), False),
        ((LAST_MODIFIED, cc("max-age=9")), False),
    ],
)
def test_a_head_freshens_the_stored_get_or_makes_it_stale(fields, is_confirmed):
    """§4.3.5."""
    bench = stored(TAG, cc("max-age=2"))
    bench.ask(b"/", cc("no-cache"), method=b"HEAD")
    bench.origin[1].answer(b"", *fields)
    guest = bench.ask()
    if is_confirmed:
        assert guest.cache_status == b"edgetun; hit; ttl=9"
        assert guest.body == b"hello"
    else:
        assert bench.origin[2].head.get(b"if-none-match") == b'"1"'
        assert guest.is_waiting


def test_max_stale_is_heeded_within_what_the_origin_allows():
    """§5.2.1.2, §4.2.4."""
    bench = stored(TAG, cc("max-age=1"))
    bench.time.advance(3.0)
    assert bench.ask(b"/", cc("max-stale=5")).cache_status == b"edgetun; hit; ttl=-3; detail=max-stale"
    assert bench.ask(b"/", cc("max-stale")).body == b"hello"
    assert bench.ask(b"/", cc("max-stale=2")).is_waiting
    for word in ("must-revalidate, max-age=1", "s-maxage=1", "proxy-revalidate, max-age=1", "no-cache"):
        bench = stored(TAG, cc(word))
        assert bench.ask(b"/", cc("max-stale")).is_waiting


def test_an_immutable_response_is_not_validated_for_a_reload_while_it_is_fresh():
    """RFC 8246 §2."""
    bench = stored(TAG, cc("max-age=60, immutable"))
    assert bench.ask(b"/", cc("max-age=0")).cache_status == b"edgetun; hit; ttl=59"
    assert bench.ask(b"/", cc("no-cache")).is_waiting, "a forced reload still asks"


def test_without_a_store_nothing_is_validated():
    bench = Bench(RESPECT, store=Store(0))
    bench.ask()
    bench.origin[0].answer(b"hello", TAG, cc("max-age=1"))
    bench.time.advance(2.0)
    bench.ask()
    assert bench.origin[1].head.get(b"if-none-match") is None


def test_without_collapsing_each_validates_on_its_own():
    bench = stored(TAG, cc("max-age=1"), collapse=CollapseRule(enabled=False))
    guests = [bench.ask(), bench.ask()]
    assert len(bench.origin) == 3
    for number in (1, 2):
        bench.origin[number].answer_head(304, (TAG,), end=True)
    assert [guest.body for guest in guests] == [b"hello", b"hello"]
    bench.check_nothing_left()


def test_what_was_evicted_while_it_was_being_validated_still_answers_who_waits():
    bench = stored(TAG, cc("max-age=1"))
    guest = bench.ask()
    bench.store.remove(next(iter(bench.store.resources.values())).variants[()])
    confirm(bench, TAG)
    assert guest.body == b"hello"
    assert bench.ask().body == b"hello", "and is stored again"
    bench.check_nothing_left()


def test_followers_keep_their_patience_when_a_304_named_nothing_stored():
    bench = stored(TAG, cc("max-age=1"), collapse=CollapseRule(patience_s=5.0))
    leader, follower = bench.ask(), bench.ask()
    confirm(bench, (b"etag", b'"2"'))
    assert len(bench.origin) == 3
    bench.time.advance(6.0)
    assert len(bench.origin) == 4, "the follower asks on their own"
    bench.origin[3].answer(b"own")
    assert follower.body == b"own"
    bench.origin[2].answer(b"late", cc("max-age=1"))
    assert leader.body == b"late"
    bench.check_nothing_left()


def test_validations_leave_no_garbage_behind():
    watched: list[weakref.ref[Guest]] = []
    gc.collect()
    gc.disable()
    try:
        bench = stored(TAG, cc("max-age=1"))
        for word in ("max-age=1", "no-cache", "no-store", "max-age=1"):
            guests = [bench.ask(b"/", cc("no-cache")) for _ in range(3)]
            for exchange in bench.origin.live:
                confirm_one(exchange, word)
            for exchange in bench.origin.live:
                confirm_one(exchange, word)
            assert all(guest.is_complete for guest in guests)
            bench.origin.exchanges.clear()
            for guest in guests:
                guest.sink = None
                watched.append(weakref.ref(guest))
            del guests, guest, exchange
            bench.time.advance(200.0)
        assert [ref() for ref in watched] == [None] * len(watched)
    finally:
        gc.enable()


def confirm_one(exchange: OriginExchange, word: str) -> None:
    if exchange.head.get(b"if-none-match") is not None:
        exchange.answer_head(304, (TAG, cc(word)), end=True)
    else:
        exchange.answer(b"hello", TAG, cc(word))


def test_what_was_compressed_stays_compressed_through_a_validation():
    bench = stored(TAG, cc("max-age=1"))
    entry = next(iter(bench.store.resources.values())).variants[()]
    before = entry.response
    before.encodings = {}
    bench.ask()
    confirm(bench, TAG)
    assert entry.response is not before
    assert entry.response.encodings is before.encodings
