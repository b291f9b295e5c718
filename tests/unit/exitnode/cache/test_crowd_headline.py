"""The headline: however many visitors come, the origin sees one request per TTL."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetun_core.http.message import RequestHead
from edgetun_core.snapshot import CacheRule
from support.cache import Bench, Guest, SimulatedTime


def answer_after(bench: Bench, latency_s: float, body: bytes = b"page") -> None:
    """The origin answers each request, head and body, after a while."""
    bench.origin.script = lambda exchange: bench.time.call_later(
        latency_s, lambda: exchange.is_live and exchange.answer(body, (b"content-type", b"text/html"))
    )


def crowd(bench: Bench, moments: list[float]) -> list[Guest]:
    head = RequestHead(b"GET", b"https", b"shop.test", b"/", ((b"accept", b"*/*"),))
    guests = []
    start = bench.time.now
    for moment in sorted(moments):
        bench.time.advance(start + moment - bench.time.now)
        guests.append(bench.send(head))
    bench.time.advance(60)
    return guests


@pytest.mark.parametrize("latency_s", [0.0, 0.001, 0.05, 0.2])
def test_10000_visitors_within_2_s_are_at_most_2_origin_requests(latency_s):
    bench = Bench()
    answer_after(bench, latency_s)
    guests = crowd(bench, [number * 2.0 / 10_000 for number in range(10_000)])
    assert len(bench.origin) <= 2
    assert all(guest.is_complete and guest.body == b"page" for guest in guests)
    bench.check_nothing_left()


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.2), st.integers(0, 2**32))
def test_random_crowds_too(latency_s, seed):
    bench = Bench()
    answer_after(bench, latency_s)
    rng = random.Random(seed)
    guests = crowd(bench, [rng.uniform(0, 1.999) for _ in range(500)])
    assert len(bench.origin) <= 2
    assert all(guest.body == b"page" for guest in guests)


def test_1000_at_once_are_1_origin_request_also_when_it_takes_5_s():
    bench = Bench()
    answer_after(bench, 5.0)
    guests = crowd(bench, [0.0] * 1000)
    assert len(bench.origin) == 1
    assert all(guest.body == b"page" for guest in guests)


def test_1000_at_once_are_1_origin_request_also_when_the_leader_leaves():
    bench = Bench()
    answer_after(bench, 5.0)
    head = RequestHead(b"GET", b"https", b"shop.test", b"/", ())
    guests = [bench.send(head) for _ in range(1000)]
    bench.time.advance(1)
    for guest in guests[:500]:
        guest.leave()
    bench.time.advance(10)
    assert len(bench.origin) == 1
    assert all(guest.body == b"page" for guest in guests[500:])
    assert all(guest.head is None for guest in guests[:500])
    bench.check_nothing_left()


def test_a_crowd_of_reloads_and_of_all_kinds_of_browsers_is_one_request_per_variant():
    bench = Bench()
    bench.origin.script = lambda exchange: bench.time.call_later(
        0.1, lambda: exchange.is_live and exchange.answer(b"page", (b"etag", b'"1"'), (b"vary", b"accept-encoding"))
    )
    guests = []
    for number in range(1000):
        fields = [(b"user-agent", b"%d" % number), (b"accept-encoding", (b"gzip", b"gzip, br", b"br")[number % 3])]
        if number % 2:
            fields.append((b"cache-control", b"max-age=0"))
        if number % 5 == 0:
            fields.append((b"if-none-match", b'"1"'))
        guests.append(bench.ask(b"/", *fields))
    bench.time.advance(0.9)
    assert len(bench.origin) == 3
    assert all(guest.is_complete for guest in guests)
    assert [guest.status for guest in guests] == [304 if number % 5 == 0 else 200 for number in range(1000)]


def test_with_stale_while_revalidate_a_crowd_waits_only_once():
    bench = Bench(CacheRule(mode="override", ttl_s=1, stale_while_revalidate_s=30), time=SimulatedTime())
    answer_after(bench, 0.5)
    head = RequestHead(b"GET", b"https", b"shop.test", b"/", ())
    bench.send(head)
    bench.time.advance(0.5)
    for _ in range(1000):
        bench.time.advance(0.01)
        assert bench.send(head).is_complete
    assert len(bench.origin) <= 9
