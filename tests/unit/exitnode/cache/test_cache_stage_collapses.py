"""One fetch for everyone who asks at once: streaming, leaving, failing, slow readers, bounds. Each line of the promise, at the stage."""

from __future__ import annotations

import gc
import weakref

import pytest

from edgetun_core.errors import LimitExceeded, NoSession, UpstreamBroken
from edgetun_core.http.message import RequestHead
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.cache.flight import WINDOW_BYTES
from edgetun_exitnode.cache.store import Store
from support.cache import PEER, Bench, Guest


def cc(value: str) -> tuple[bytes, bytes]:
    return (b"cache-control", value.encode())


def test_followers_get_the_body_from_its_first_byte_as_it_comes():
    bench = Bench()
    guests = [bench.ask() for _ in range(3)]
    bench.origin[0].answer_head(200, ())
    assert [guest.status for guest in guests] == [200, 200, 200]
    bench.origin[0].send(b"one ")
    late = bench.ask()
    assert [guest.body for guest in (*guests, late)] == [b"one "] * 4
    bench.origin[0].send(b"two")
    assert [guest.body for guest in (*guests, late)] == [b"one two"] * 4
    bench.origin[0].send(b"", end=True)
    assert all(guest.is_complete for guest in (*guests, late))
    assert guests[0].cache_status == b"edgetun; fwd=uri-miss; stored"
    assert guests[1].cache_status == b"edgetun; fwd=uri-miss; collapsed; ttl=1"
    assert len(bench.origin) == 1
    bench.check_nothing_left()


def test_followers_share_one_head_object_and_the_very_bytes():
    bench = Bench()
    chunks: list[list[int]] = []

    class Watching(Guest):
        def __init__(self):
            super().__init__()
            self.ids = []
            chunks.append(self.ids)

        def on_data(self, data, end):
            super().on_data(data, end)
            self.ids.append(id(data))

    guests = [bench.ask(guest=Watching()) for _ in range(10)]
    bench.origin[0].answer(b"shared")
    assert len({id(guest.head) for guest in guests[1:]}) == 1
    assert len({tuple(ids) for ids in chunks}) == 1


def test_the_leader_leaving_keeps_the_fetch_and_the_last_one_leaving_cancels_it():
    bench = Bench()
    leader, follower = bench.ask(), bench.ask()
    leader.leave()
    assert bench.origin[0].is_live
    follower.leave()
    assert bench.origin[0].cancelled is not None
    bench.check_nothing_left()


def test_the_leader_leaving_within_the_body_leaves_the_followers_theirs():
    bench = Bench()
    leader, follower = bench.ask(), bench.ask()
    bench.origin[0].answer_head(200, ())
    bench.origin[0].send(b"a")
    leader.leave()
    bench.origin[0].send(b"b", end=True)
    assert follower.body == b"ab"
    assert bench.ask().body == b"ab"
    bench.check_nothing_left()


def test_a_response_that_is_not_storable_is_the_leaders_and_the_others_ask_at_once_in_parallel():
    bench = Bench()
    guests = [bench.ask() for _ in range(5)]
    bench.origin[0].answer_head(200, (cc("private"),))
    assert len(bench.origin) == 5
    assert [guest.is_waiting for guest in guests] == [False, True, True, True, True]
    for number, exchange in enumerate(bench.origin.exchanges):
        exchange.send(b"%d" % number, end=True) if number == 0 else exchange.answer(b"%d" % number, cc("private"))
    assert [guest.body for guest in guests] == [b"0", b"1", b"2", b"3", b"4"]
    assert bench.store.entry_count == 0
    bench.check_nothing_left()


def test_a_key_that_is_not_storable_is_not_collapsed_for_two_minutes():
    bench = Bench()
    bench.ask()
    bench.origin[0].answer(b"", cc("no-store"))
    first, second = bench.ask(), bench.ask()
    assert len(bench.origin) == 3
    bench.origin[1].answer(b"1", cc("no-store"))
    bench.origin[2].answer(b"2", cc("no-store"))
    assert (first.body, second.body) == (b"1", b"2")
    assert first.cache_status == b"edgetun; fwd=uri-miss; detail=not-collapsible"
    bench.time.advance(120)
    bench.ask()
    bench.ask()
    assert len(bench.origin) == 4


def test_a_key_becomes_collapsible_again_as_soon_as_its_response_is_storable():
    bench = Bench()
    bench.ask()
    bench.origin[0].answer(b"", cc("no-store"))
    bench.ask()
    bench.origin[1].answer(b"now storable")
    bench.ask()
    bench.ask()
    assert len(bench.origin) == 3


def test_an_error_of_the_origin_keeps_a_key_from_collapsing_for_a_second_only():
    bench = Bench()
    leader, follower = bench.ask(), bench.ask()
    bench.origin[0].answer(b"oops", status=500)
    bench.origin[1].answer(b"oops", status=500)
    assert leader.status == follower.status == 500
    bench.time.advance(1.0)
    bench.ask()
    bench.ask()
    assert len(bench.origin) == 3


def test_a_visitor_alone_leaves_pauses_and_resumes_their_own_exchange():
    bench = Bench()
    leader, follower = bench.ask(), bench.ask()
    follower.pause()
    bench.origin[0].answer_head(200, (cc("private"),))
    assert bench.origin[1].is_paused
    follower.resume()
    assert not bench.origin[1].is_paused
    follower.leave()
    assert bench.origin[1].cancelled is not None
    leader.pause()
    assert bench.origin[0].is_paused
    leader.resume()
    assert not bench.origin[0].is_paused
    leader.leave()
    assert bench.origin[0].cancelled is not None
    bench.check_nothing_left()


def test_a_leader_paused_before_a_head_that_is_theirs_alone_stays_paused():
    bench = Bench()
    leader = bench.ask()
    leader.pause()
    bench.origin[0].answer_head(200, (cc("private"),))
    assert bench.origin[0].is_paused


def test_the_leader_gone_a_head_that_is_not_storable_cancels_the_fetch_and_releases_the_rest():
    bench = Bench()
    leader, follower = bench.ask(), bench.ask()
    leader.leave()
    bench.origin[0].answer_head(200, (cc("private"),))
    assert bench.origin[0].cancelled is not None
    bench.origin[1].answer(b"mine", cc("private"))
    assert follower.body == b"mine"
    bench.check_nothing_left()


def test_followers_of_another_variant_make_one_fetch_per_variant():
    bench = Bench()
    gzip = [bench.ask(b"/", (b"accept-encoding", b"gzip")) for _ in range(10)]
    br = [bench.ask(b"/", (b"accept-encoding", b"br")) for _ in range(10)]
    bench.origin[0].answer(b"zipped", (b"vary", b"accept-encoding"))
    assert all(guest.body == b"zipped" for guest in gzip)
    assert all(guest.is_waiting for guest in br)
    assert len(bench.origin) == 2
    bench.origin[1].answer(b"brotli", (b"vary", b"accept-encoding"))
    assert all(guest.body == b"brotli" for guest in br)
    assert br[0].cache_status == b"edgetun; fwd=vary-miss; stored"
    bench.check_nothing_left()
    bench.time.advance(2)
    for encoding in (b"gzip", b"br", b"gzip", b"br"):
        bench.ask(b"/", (b"accept-encoding", encoding))
    assert len(bench.origin) == 4, "what it varies on is remembered"


def test_a_newcomer_of_the_variant_on_its_way_joins_it():
    bench = Bench()
    bench.ask(b"/", (b"accept-encoding", b"gzip"))
    bench.origin[0].answer_head(200, ((b"vary", b"accept-encoding"),))
    same = bench.ask(b"/", (b"accept-encoding", b"gzip"))
    other = bench.ask(b"/", (b"accept-encoding", b"br"))
    bench.origin[0].send(b"zipped", end=True)
    assert same.body == b"zipped"
    assert other.is_waiting
    assert len(bench.origin) == 2


def test_a_follower_of_another_variant_joins_the_fetch_of_that_variant_that_is_on_its_way():
    bench = Bench()
    gzip = bench.ask(b"/", (b"accept-encoding", b"gzip"))
    br = bench.ask(b"/", (b"accept-encoding", b"br"))
    bench.time.advance(0.1)
    bench.ask(method=b"POST")
    bench.origin[1].answer()
    bench.time.advance(0.1)
    newer_br = bench.ask(b"/", (b"accept-encoding", b"br"))
    bench.origin[2].answer_head(200, ((b"vary", b"accept-encoding"),))
    bench.origin[2].send(b"bro")
    bench.origin[0].answer(b"zipped", (b"vary", b"accept-encoding"))
    assert gzip.body == b"zipped"
    assert br.body == b"bro"
    bench.origin[2].send(b"tli", end=True)
    assert br.body == newer_br.body == b"brotli"
    assert len(bench.origin) == 3
    bench.check_nothing_left()


def test_a_resource_that_varies_ever_more_sends_nobody_in_circles():
    bench = Bench()
    guests = [
        bench.ask(b"/", (b"a", b"%d" % n), (b"b", b"%d" % n), (b"c", b"%d" % n), (b"d", b"%d" % n)) for n in range(8)
    ]
    names = [b"a", b"a, b", b"a, b, c", b"a, b, c, d"]
    while bench.origin.live:
        exchange = bench.origin.live[0]
        exchange.answer(exchange.head.get(b"a"), (b"vary", names[min(len(bench.origin) - 1, 3)]))
    assert [guest.body for guest in guests] == [b"%d" % n for n in range(8)]
    assert len(bench.origin) == 8
    bench.check_nothing_left()


def test_impatient_followers_make_requests_of_their_own_which_are_not_stored():
    bench = Bench(collapse=CollapseRule(patience_s=3))
    leader, follower = bench.ask(), bench.ask()
    bench.time.advance(1)
    later = bench.ask()
    bench.time.advance(2)
    assert len(bench.origin) == 2
    bench.origin[1].answer(b"own")
    assert follower.body == b"own"
    assert bench.store.entry_count == 0
    assert later.is_waiting
    bench.origin[0].answer(b"shared")
    assert leader.body == later.body == b"shared"
    assert bench.stage.stats.impatient == 1
    bench.check_nothing_left()


def test_an_origin_that_fails_before_the_head_is_asked_once_more():
    bench = Bench()
    guests = [bench.ask() for _ in range(4)]
    bench.origin[0].fail(NoSession("gone"))
    assert isinstance(guests[0].error, NoSession)
    assert len(bench.origin) == 2
    bench.origin[1].answer(b"there")
    assert [guest.body for guest in guests[1:]] == [b"there"] * 3
    assert bench.ask().body == b"there"
    bench.check_nothing_left()


@pytest.mark.parametrize("within_open", [False, True])
def test_a_dead_origin_is_asked_twice_for_a_thousand_visitors(within_open):
    bench = Bench()
    first = [bench.ask() for _ in range(1000)]
    if within_open:
        bench.origin.script = lambda exchange: exchange.fail(NoSession("dead"))
    bench.origin[0].fail(NoSession("dead"))
    if not within_open:
        bench.origin[1].fail(NoSession("dead"))
    assert len(bench.origin) == 2
    assert all(isinstance(guest.error, NoSession) for guest in first)
    bench.check_nothing_left()


def test_promoted_followers_keep_their_patience():
    bench = Bench(collapse=CollapseRule(patience_s=3))
    bench.ask()
    promoted, waiting = bench.ask(), bench.ask()
    bench.time.advance(2)
    bench.origin[0].fail(NoSession("gone"))
    bench.time.advance(1)
    assert len(bench.origin) == 3
    bench.origin[2].answer(b"own")
    assert waiting.body == b"own"
    assert promoted.is_waiting


def test_a_body_that_breaks_off_is_aborted_for_all_and_not_stored():
    bench = Bench()
    guests = [bench.ask() for _ in range(3)]
    bench.origin[0].answer_head(200, ())
    bench.origin[0].send(b"half")
    bench.origin[0].fail(UpstreamBroken("cut"))
    assert all(isinstance(guest.error, UpstreamBroken) and guest.body == b"half" for guest in guests)
    assert bench.store.entry_count == 0
    bench.check_nothing_left()


@pytest.mark.parametrize("body", [b"", b"1234", b"123456"])
def test_a_body_of_another_length_than_stated_is_never_stored(body):
    bench = Bench()
    guests = [bench.ask(), bench.ask()]
    bench.origin[0].answer_head(200, ((b"content-length", b"5"),))
    bench.origin[0].send(body, end=True)
    assert all(isinstance(guest.error, UpstreamBroken) for guest in guests)
    assert bench.store.entry_count == 0
    bench.check_nothing_left()


def test_a_head_that_ends_what_should_have_a_body_is_never_stored():
    bench = Bench()
    guests = [bench.ask(), bench.ask()]
    for number in range(2):
        bench.origin[number].answer_head(200, ((b"content-length", b"5"),), end=True)
    assert all(isinstance(guest.error, UpstreamBroken) for guest in guests)
    assert bench.store.entry_count == 0
    bench.check_nothing_left()


def test_a_slow_follower_never_slows_the_others_and_loses_nothing():
    bench = Bench()
    fast, slow = bench.ask(), bench.ask()
    bench.origin[0].answer_head(200, ())
    slow.pause()
    for number in range(50):
        bench.origin[0].send(b"%02d" % number * 1000)
    bench.origin[0].send(b"end", end=True)
    assert fast.is_complete
    assert not bench.origin[0].is_paused
    assert slow.body == b""
    assert slow.pushed_while_paused == 0
    slow.resume()
    assert slow.body == fast.body
    assert slow.is_complete
    bench.check_nothing_left()


def test_pausing_and_leaving_from_within_a_push_is_obeyed():
    bench = Bench()

    class Pausing(Guest):
        def on_data(self, data, end):
            super().on_data(data, end)
            if not end:
                self.pause()

    class Leaving(Guest):
        def on_data(self, data, end):
            super().on_data(data, end)
            self.leave()

    class LeavingAtTheHead(Guest):
        def on_head(self, head, end):
            super().on_head(head, end)
            self.leave()

    pausing, leaving, gone = (bench.ask(guest=guest) for guest in (Pausing(), Leaving(), LeavingAtTheHead()))
    bench.origin[0].answer_head(200, ())
    bench.origin[0].send(b"1")
    bench.origin[0].send(b"2")
    assert (pausing.body, leaving.body, gone.body) == (b"1", b"1", b"")
    pausing.resume()
    assert pausing.body == b"12"
    bench.origin[0].send(b"3", end=True)
    pausing.resume()
    assert pausing.body == b"123"
    bench.check_nothing_left()


def test_a_visitor_who_asks_again_from_within_the_end_gets_the_stored_response():
    bench = Bench()
    again: list[Guest] = []
    guests = [bench.ask(guest=Guest(on_end=lambda: again.append(bench.ask()))) for _ in range(3)]
    bench.origin[0].answer(b"x")
    assert [guest.body for guest in again] == [b"x"] * 3
    assert all(guest.is_complete for guest in guests)
    assert len(bench.origin) == 1


@pytest.mark.parametrize("ending", ["head", "data", "private", "fail", "break"])
def test_everything_may_happen_within_open(ending):
    bench = Bench()

    def script(exchange):
        match ending:
            case "head":
                exchange.answer(b"")
            case "data":
                exchange.answer(b"x")
            case "private":
                exchange.answer(b"x", cc("private"))
            case "fail":
                exchange.fail(NoSession("none"))
            case "break":
                exchange.answer_head(200, ())
                exchange.fail(UpstreamBroken("cut"))

    bench.origin.script = script
    guest = bench.ask()
    assert guest.is_complete or guest.error is not None
    bench.check_nothing_left()


# -- bounds ---------------------------------------------------------------------------------------------------------------

SMALL = CacheRule(mode="override", ttl_s=1, max_object_bytes=256 * 1024)
CHUNK = b"c" * 65_536


def outgrown(guest_count: int, rule: CacheRule = SMALL) -> tuple[Bench, list[Guest]]:
    bench = Bench(rule)
    guests = [bench.ask() for _ in range(guest_count)]
    bench.origin[0].answer_head(200, ())
    for _ in range(6):
        bench.origin[0].send(CHUNK)
    return bench, guests


def test_a_body_larger_than_the_bound_streams_on_to_its_readers_and_is_neither_stored_nor_joined():
    bench, guests = outgrown(3)
    newcomer = bench.ask()
    assert len(bench.origin) == 2
    for _ in range(100):
        bench.origin[0].send(CHUNK)
    bench.origin[0].send(b"end", end=True)
    assert all(guest.body == CHUNK * 106 + b"end" and guest.is_complete for guest in guests)
    assert newcomer.is_waiting
    assert bench.store.entry_count == 0
    newcomer.leave()
    bench.check_nothing_left()


def test_a_length_stated_larger_than_the_bound_is_not_even_begun_to_be_shared():
    bench = Bench(SMALL)
    bench.ask()
    bench.ask()
    bench.origin[0].answer_head(200, ((b"content-length", b"1000000"),))
    assert len(bench.origin) == 2


def test_a_large_body_is_held_at_the_pace_of_its_only_reader_within_the_bound():
    bench, [guest] = outgrown(1)
    guest.pause()
    flight = next(iter(bench.stage.flights.values()))
    sent = 0
    while not bench.origin[0].is_paused:
        bench.origin[0].send(CHUNK)
        sent += 1
        assert sent < 100
    assert flight.body.size_bytes <= SMALL.max_object_bytes + WINDOW_BYTES + 2 * len(CHUNK)
    guest.resume()
    assert not bench.origin[0].is_paused
    bench.origin[0].send(b"end", end=True)
    assert guest.body == CHUNK * (6 + sent) + b"end"
    bench.check_nothing_left()


def test_a_large_body_read_at_speed_keeps_nothing():
    bench, guests = outgrown(2)
    flight = next(iter(bench.stage.flights.values()))
    for _ in range(50):
        bench.origin[0].send(CHUNK)
        assert flight.body.size_bytes <= 2 * len(CHUNK)
    bench.origin[0].send(b"", end=True)
    assert all(guest.is_complete for guest in guests)


def test_who_falls_too_far_behind_a_body_too_large_to_keep_is_cut_off_and_the_others_are_not_slowed():
    bench, [fast, slow] = outgrown(2)
    slow.pause()
    flight = next(iter(bench.stage.flights.values()))
    for _ in range(100):
        bench.origin[0].send(CHUNK)
        assert not bench.origin[0].is_paused
        assert flight.body.size_bytes <= SMALL.max_object_bytes + WINDOW_BYTES + 2 * len(CHUNK)
    assert isinstance(slow.error, LimitExceeded)
    bench.origin[0].send(b"", end=True)
    assert fast.is_complete
    bench.check_nothing_left()


def test_the_last_reader_of_a_large_body_leaving_cancels_it():
    bench, guests = outgrown(2)
    for guest in guests:
        guest.leave()
    assert bench.origin[0].cancelled is not None
    bench.check_nothing_left()


def test_the_fastest_reader_leaving_resumes_nothing_it_should_not_and_the_rest_go_on():
    bench, [fast, slow] = outgrown(2)
    slow.pause()
    bench.origin[0].send(CHUNK)
    fast.leave()
    while not bench.origin[0].is_paused and bench.origin[0].is_live:
        bench.origin[0].send(CHUNK)
    assert slow.error is None
    slow.resume()
    assert not bench.origin[0].is_paused
    bench.origin[0].send(b"end", end=True)
    assert slow.body.endswith(b"end")
    bench.check_nothing_left()


def test_bodies_under_way_stay_within_the_stores_bounds():
    store = Store(2 * 1024 * 1024)
    bench = Bench(store=store)
    guests = [bench.ask(b"/%d" % number) for number in range(40)]
    for exchange in bench.origin.exchanges:
        exchange.answer_head(200, ())
    for _ in range(3):
        for exchange in bench.origin.exchanges:
            exchange.send(CHUNK)
            assert store.reserved_bytes <= store.max_bytes // 2
            assert store.reserved_bytes + store.stored_bytes <= store.max_bytes
    for exchange in bench.origin.exchanges:
        exchange.send(b"end", end=True)
    assert all(guest.body == CHUNK * 3 + b"end" for guest in guests)
    assert 0 < store.entry_count < 40
    bench.check_nothing_left()


def test_many_tiny_chunks_count_with_what_they_cost():
    bench = Bench(store=Store(1024 * 1024))
    guest = bench.ask()
    bench.origin[0].answer_head(200, ())
    for _ in range(20_000):
        bench.origin[0].send(b"x")
    flight = next(iter(bench.stage.flights.values()))
    assert flight.is_passing
    assert len(flight.body.chunks) < 10_000
    bench.origin[0].send(b"", end=True)
    assert guest.body == b"x" * 20_000
    bench.check_nothing_left()


def test_in_the_override_a_slow_body_is_joined_beyond_its_ttl_instead_of_fetched_beside_itself():
    bench = Bench()
    bench.ask()
    bench.origin[0].answer_head(200, ())
    bench.origin[0].send(b"a")
    bench.time.advance(30)
    late = bench.ask()
    assert len(bench.origin) == 1
    assert late.age == 30
    bench.time.advance(31)
    bench.ask()
    assert len(bench.origin) == 2
    bench.origin[0].send(b"b", end=True)
    assert late.body == b"ab"


def test_in_respect_mode_a_slow_body_is_joined_only_while_it_is_fresh():
    bench = Bench(CacheRule())
    bench.ask()
    bench.origin[0].answer_head(200, (cc("max-age=5"),))
    bench.time.advance(4.9)
    bench.ask()
    assert len(bench.origin) == 1
    bench.time.advance(0.1)
    bench.ask()
    assert len(bench.origin) == 2


def test_exchanges_leave_no_garbage_behind():
    gc.collect()
    gc.disable()
    try:
        bench = Bench()
        watched: list[weakref.ref[Guest]] = []
        for answer in ("share", "private", "fail", "leave"):
            guests = [bench.ask(b"/" + answer.encode()) for _ in range(3)]
            exchange = bench.origin.exchanges[-1]
            match answer:
                case "share":
                    exchange.answer(b"x")
                case "private":
                    for each in (exchange, *bench.origin.exchanges[-2:]):
                        if each.is_live:
                            each.answer(b"x", cc("private"))
                    for each in bench.origin.live:
                        each.answer(b"x", cc("private"))
                case "fail":
                    exchange.fail(NoSession("x"))
                    bench.origin.exchanges[-1].fail(NoSession("x"))
                case "leave":
                    for guest in guests:
                        guest.leave()
            for each in bench.origin.exchanges:
                assert not each.is_live
            bench.origin.exchanges.clear()
            for guest in guests:
                guest.sink = None  # as a front does when an exchange is over
                watched.append(weakref.ref(guest))
            del guests, guest, exchange, each
        assert [ref() for ref in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_heads_seen_once_do_not_pile_up():
    bench = Bench(CacheRule(mode="override", ttl_s=1, max_object_bytes=100), store=Store(100_000))
    bench.origin.script = lambda exchange: exchange.answer(b"x")
    views = bench.stage._views
    for number in range(1000):
        bench.stage.open(RequestHead(b"GET", b"http", b"h", b"/%d" % number, ()), PEER, True, Guest())
    assert not len(views), "they do not come again"
    for number in range(20_000):
        head = RequestHead(b"GET", b"http", b"h", b"/%d" % number, ((b"x", b"y" * (number % 5000)),))
        head.recurs = True
        bench.stage.open(head, PEER, True, Guest())
        bench.origin.exchanges.clear()
        if number % 100 == 0:
            held = [*views.young, *views._old]
            assert sum(2 * len(head.fields[0][1]) + 1000 for head in held) < 2 * 6.5 * 1024 * 1024
    assert 500 < len(views) < 20_000
    assert bench.store.stored_bytes <= 100_000
    bench.check_nothing_left()


def test_without_a_store_bodies_are_still_shared_while_they_come_in():
    bench = Bench(store=Store(0))
    for _ in range(2):
        guests = [bench.ask() for _ in range(3)]
        bench.origin.exchanges[-1].answer_head(200, ())
        bench.origin.exchanges[-1].send(b"x" * 100_000)
        guests.append(bench.ask())
        bench.origin.exchanges[-1].send(b"end", end=True)
        assert [len(guest.body) for guest in guests] == [100_003] * 4
        assert guests[0].cache_status == b"edgetun; fwd=uri-miss"
    assert len(bench.origin) == 2
    assert bench.store.entry_count == 0
    bench.check_nothing_left()
