"""Limits refuse before anything is spent; header rules change copies, never the shared head."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.errors import Cancelled
from edgetun_core.http.message import Peer, ResponseHead
from edgetun_core.snapshot import HeaderRules, LimitRule
from edgetun_exitnode.pipeline.headers import RequestHeaderStage, ResponseHeaderStage
from edgetun_exitnode.pipeline.limits import MAX_BUCKETS, LimitStage, RateLimit
from support.exchanges import PEER, Answerer, Clock, Recorder, request


def test_a_burst_is_served_and_then_the_rate_holds() -> None:
    limit = RateLimit(rate=2.0, burst=3)
    assert [limit.decide("192.0.2.1", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limit.decide("192.0.2.1", 0.0) == 0.5
    assert limit.decide("192.0.2.1", 0.25) == 0.25
    assert limit.decide("192.0.2.1", 0.5) == 0.0
    assert limit.decide("192.0.2.2", 0.5) == 0.0


def test_ipv6_visitors_of_one_network_share_a_bucket() -> None:
    limit = RateLimit(rate=1.0, burst=1)
    assert limit.decide("2001:db8::1", 0.0) == 0.0
    assert limit.decide("2001:db8::2", 0.0) == 1.0
    assert limit.decide("2001:db8:0:1::1", 0.0) == 0.0


@given(st.lists(st.floats(0, 3), max_size=200), st.floats(0.5, 50), st.integers(1, 20))
def test_no_visitor_gets_more_than_the_burst_and_the_rate(gaps: list[float], rate: float, burst: int) -> None:
    limit = RateLimit(rate, burst)
    now, served = 0.0, 0
    for gap in gaps:
        now += gap
        served += limit.decide("192.0.2.1", now) == 0.0
    assert served <= burst + rate * now + 1e-6


def test_a_flood_of_addresses_is_remembered_only_within_the_bound() -> None:
    limit = RateLimit(1.0, 1)
    for number in range(3 * MAX_BUCKETS):
        limit.decide(str(number), 0.0)
    assert len(limit._buckets) <= 2 * MAX_BUCKETS


def test_a_refused_visitor_is_told_when_to_come_back() -> None:
    behind = Answerer()
    stage = LimitStage(LimitRule(requests_per_second=0.5, burst=1), Clock(), behind)
    stage.open(request(), PEER, True, Recorder())
    visitor = Recorder()
    stage.open(request(), PEER, True, visitor)
    assert visitor.error.presentation.status == 429
    assert visitor.error.retry_after_s == 2  # type: ignore[attr-defined]
    assert len(behind.opened) == 1


def test_a_body_announced_too_large_is_refused_before_it_is_read() -> None:
    behind = Answerer()
    stage = LimitStage(LimitRule(max_request_body_bytes=10), Clock(), behind)
    visitor = Recorder()
    stage.open(request(b"/", (b"content-length", b"11"), method=b"POST"), PEER, False, visitor)
    assert visitor.error.presentation.status == 413
    assert behind.opened == []


def test_a_body_of_unknown_length_is_cut_off_where_the_limit_is() -> None:
    behind = Answerer()
    stage = LimitStage(LimitRule(max_request_body_bytes=10), Clock(), behind)
    visitor = Recorder()
    sink = stage.open(request(method=b"POST"), PEER, False, visitor)
    sink.send_data(b"x" * 10, False)
    assert behind.opened[0].calls == [("data", b"x" * 10, False)]
    sink.send_data(b"y", True)
    assert visitor.error.presentation.status == 413
    assert behind.opened[0].calls[-1][0] == "reset"
    sink.send_data(b"z", True)
    sink.reset(Cancelled("gone"))
    assert len(behind.opened[0].calls) == 2
    assert visitor.names() == ["reset"]


def test_a_body_within_the_limit_passes_whole_with_its_answer() -> None:
    behind = Answerer()
    stage = LimitStage(LimitRule(max_request_body_bytes=10), Clock(), behind)
    visitor = Recorder()
    sink = stage.open(request(method=b"POST"), PEER, False, visitor)
    sink.send_data(b"x" * 9, False)
    sink.send_trailers(((b"a", b"b"),))
    behind.opened[0].client.on_head(ResponseHead(200, ()), False)
    behind.opened[0].client.on_data(b"ok", True)
    assert behind.opened[0].calls == [("data", b"x" * 9, False), ("trailers", ((b"a", b"b"),))]
    assert visitor.names() == ["head", "data"]


def test_request_rules_remove_set_and_add() -> None:
    behind = Answerer()
    rules = HeaderRules(remove=("x-a",), set=(("x-b", "new"),), add=(("x-c", "2"),))
    head = request(b"/", (b"x-a", b"1"), (b"x-b", b"old"), (b"x-c", b"1"))
    RequestHeaderStage(rules, behind).open(head, PEER, True, Recorder())
    assert behind.opened[0].head.fields == ((b"x-c", b"1"), (b"x-b", b"new"), (b"x-c", b"2"))
    assert head.fields[0] == (b"x-a", b"1")


def test_a_head_seen_again_is_not_changed_again() -> None:
    behind = Answerer()
    stage = RequestHeaderStage(HeaderRules(remove=("x-a",)), behind)
    head = request()
    head.recurs = True
    stage.open(head, PEER, True, Recorder())
    stage.open(head, Peer("192.0.2.9", 1, b"https"), True, Recorder())
    assert behind.opened[0].head is behind.opened[1].head
    assert behind.opened[0].head.recurs, "what is made of it is worth keeping too"

    once = request()
    stage.open(once, PEER, True, Recorder())
    stage.open(once, PEER, True, Recorder())
    assert behind.opened[2].head is not behind.opened[3].head


def test_response_rules_change_the_final_head_alone() -> None:
    behind = Answerer()
    visitor = Recorder()
    ResponseHeaderStage(HeaderRules(set=(("x-frame-options", "DENY"),)), behind).open(request(), PEER, True, visitor)
    client = behind.opened[0].client
    client.on_interim(ResponseHead(103, ((b"link", b"</a>"),)))
    client.on_head(ResponseHead(200, ()), False)
    client.on_data(b"x", False)
    client.on_trailers(())
    assert visitor.calls[0] == ("interim", 103, ((b"link", b"</a>"),))
    assert visitor.fields == {b"x-frame-options": b"DENY"}
    assert visitor.names() == ["interim", "head", "data", "trailers"]
