"""The forward stage: which session, what head, who waits, what is asked again."""

from __future__ import annotations

import pytest

from edgetun_core.errors import Cancelled, Draining, LimitExceeded, NoSession, SessionLost, UpstreamTimeout
from edgetun_core.http.message import Peer, RequestHead, ResponseHead
from edgetun_core.snapshot import LimitRule, OriginRule, RouteRule, TunnelRule
from edgetun_exitnode.observe.counters import TunnelCounters
from edgetun_exitnode.pipeline.forward import MAX_HELD_BYTES, MAX_WAITING, ForwardStage
from edgetun_exitnode.sessions.registry import FORGET_S, SessionRegistry
from edgetun_exitnode.stage_memos import StageMemos
from support.exchanges import PEER, Answerer, Clock, Recorder, request

OK = ResponseHead(200, ())
ANY_PATH = RouteRule()


class Bench:
    """A forward stage with its registry and a clock in hand."""

    def __init__(self, route: RouteRule = ANY_PATH, grace_s: float = 5.0, memos: StageMemos | None = None) -> None:
        self.clock = Clock()
        self.registry = SessionRegistry(self.clock, self.clock.schedule)
        origins = (OriginRule("main", "http://localhost:3000"), OriginRule("api", "http://localhost:4000"))
        self.rule = TunnelRule("team/shop", ("shop.example.com",), origins, (route,), reconnect_grace_s=grace_s)
        self.counters = TunnelCounters()
        pool = self.registry.pool("team/shop")
        self.stage = ForwardStage(self.rule, route, pool, self.counters, self.clock, memos)

    def connect(self) -> Answerer:
        session = Answerer()
        self.registry.add(session, ("team/shop",))
        return session


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_agent_learns_who_asked_and_a_spoofed_claim_is_dropped(bench: Bench) -> None:
    session = bench.connect()
    head = request(
        b"/",
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"forwarded", b"for=evil"),
        (b"x-real-ip", b"1"),
        (b"x_forwarded_for", b"2"),
        (b"accept", b"*/*"),
    )
    bench.stage.open(head, PEER, True, Recorder())
    sent = session.opened[0].head
    assert sent.service == "team/shop"
    assert sent.get_all(b"x-forwarded-for") == [b"192.0.2.1"]
    assert sent.get_all(b"forwarded") == [b"for=192.0.2.1;host=shop.example.com;proto=https"]
    assert sent.get_all(b"x-forwarded-proto") == [b"https"]
    assert sent.get_all(b"x-forwarded-host") == [b"shop.example.com"]
    assert sent.get(b"x-real-ip") is None
    assert sent.get(b"x_forwarded_for") is None
    assert sent.get_all(b"via") == [b"1.1 edgetun"]
    assert sent.get(b"accept") == b"*/*"


def test_ipv6_addresses_and_ports_are_quoted_in_forwarded(bench: Bench) -> None:
    session = bench.connect()
    bench.stage.open(request(host=b"shop.example.com:8443"), Peer("2001:db8::1", 1, b"https"), True, Recorder())
    assert session.opened[0].head.get(b"forwarded") == b'for="[2001:db8::1]";host="shop.example.com:8443";proto=https'


def test_the_same_head_from_the_same_visitor_is_prepared_once(bench: Bench) -> None:
    session = bench.connect()
    head = request()
    head.recurs = True
    bench.stage.open(head, PEER, True, Recorder())
    bench.stage.open(head, PEER, True, Recorder())
    bench.stage.open(head, Peer("192.0.2.2", 1, b"https"), True, Recorder())
    first, second, other = (opened.head for opened in session.opened)
    assert first is second
    assert other.get(b"x-forwarded-for") == b"192.0.2.2"


def test_a_request_that_came_back_to_its_own_tunnel_is_refused(bench: Bench) -> None:
    session = bench.connect()
    visitor = Recorder()
    bench.stage.open(request(b"/", (b"cdn-loop", b'other, edgetun; tunnel="team/shop"')), PEER, True, visitor)
    assert visitor.error.presentation.status == 508
    assert session.opened == []
    bench.stage.open(request(b"/", (b"cdn-loop", b'edgetun; tunnel="team/blog"')), PEER, True, Recorder())
    assert len(session.opened) == 1


def test_a_stripped_prefix_is_told_to_the_origin() -> None:
    bench = Bench(RouteRule("/api", strip_prefix=True, origin="api"))
    session = bench.connect()
    bench.stage.open(request(b"/api/v1?x=1"), PEER, True, Recorder())
    bench.stage.open(request(b"/api?x=1"), PEER, True, Recorder())
    assert session.opened[0].head.target == b"/v1?x=1"
    assert session.opened[0].head.service == "team/shop#api"
    assert session.opened[0].head.get(b"x-forwarded-prefix") == b"/api"
    assert session.opened[1].head.target == b"/?x=1"


def test_the_least_busy_session_is_chosen(bench: Bench) -> None:
    busy, idle = bench.connect(), bench.connect()
    busy.in_flight = 3
    bench.stage.open(request(), PEER, True, Recorder())
    assert (len(busy.opened), len(idle.opened)) == (0, 1)


def test_an_answer_passes_back_and_frees_the_place() -> None:
    bench = Bench(RouteRule(limits=LimitRule(max_concurrent_requests=1)))
    session = bench.connect()
    visitor, refused = Recorder(), Recorder()
    bench.stage.open(request(), PEER, True, visitor)
    bench.stage.open(request(), PEER, True, refused)
    assert refused.error.presentation.status == 503
    client = session.opened[0].client
    client.on_interim(ResponseHead(103, ()))
    client.on_head(OK, False)
    client.on_data(b"x", False)
    client.on_trailers(())
    assert visitor.names() == ["interim", "head", "data", "trailers"]
    bench.stage.open(request(), PEER, True, Recorder())
    assert len(session.opened) == 2
    assert sum(bench.counters.upstream_seconds.counts) == 1


def test_a_visitor_who_leaves_cancels_behind_and_frees_the_place(bench: Bench) -> None:
    session = bench.connect()
    sink = bench.stage.open(request(), PEER, True, Recorder())
    sink.reset(Cancelled("gone"))
    assert [call[0] for call in session.opened[0].calls] == ["reset"]
    assert bench.stage.in_flight == 0


class TestWaiting:
    def test_a_visitor_waits_for_the_agent_and_is_served_when_it_is_back(self, bench: Bench) -> None:
        visitor = Recorder()
        bench.stage.open(request(), PEER, True, visitor)
        bench.clock.advance(2.0)
        assert visitor.calls == []
        session = bench.connect()
        session.opened[0].client.on_head(OK, True)
        assert visitor.names() == ["head"]
        assert bench.clock.pending == 0

    def test_the_wait_ends_with_503_and_a_time_to_come_back(self, bench: Bench) -> None:
        visitor = Recorder()
        bench.stage.open(request(), PEER, True, visitor)
        bench.clock.advance(4.9)
        assert visitor.calls == []
        bench.clock.advance(0.2)
        assert isinstance(visitor.error, NoSession)
        assert visitor.error.retry_after_s == 5  # type: ignore[attr-defined]
        assert bench.stage.in_flight == 0

    def test_a_laptop_long_gone_is_told_at_once(self, bench: Bench) -> None:
        bench.clock.advance(FORGET_S + 1)
        visitor = Recorder()
        bench.stage.open(request(), PEER, True, visitor)
        assert isinstance(visitor.error, NoSession)

    def test_the_number_who_wait_is_bounded(self, bench: Bench) -> None:
        visitors = [Recorder() for _ in range(MAX_WAITING + 1)]
        for visitor in visitors:
            bench.stage.open(request(), PEER, True, visitor)
        assert [visitor.names() for visitor in visitors].count(["reset"]) == 1
        assert visitors[-1].names() == ["reset"]

    def test_a_waiting_body_is_paused_held_and_sent_in_order(self, bench: Bench) -> None:
        visitor = Recorder()
        sink = bench.stage.open(request(method=b"POST"), PEER, False, visitor)
        assert visitor.names() == ["pause"]
        sink.send_data(b"one", False)
        sink.send_data(b"two", True)
        session = bench.connect()
        assert session.opened[0].end is False
        assert session.opened[0].calls == [("data", b"one", False), ("data", b"two", False), ("data", b"", True)]
        assert visitor.names() == ["pause", "resume"]

    def test_a_body_that_does_not_stop_is_refused_at_the_bound(self, bench: Bench) -> None:
        visitor = Recorder()
        sink = bench.stage.open(request(method=b"POST"), PEER, False, visitor)
        sink.send_data(b"x" * (MAX_HELD_BYTES + 1), False)
        assert isinstance(visitor.error, LimitExceeded)
        assert bench.stage.in_flight == 0
        sink.send_data(b"x", True)
        assert visitor.names() == ["pause", "reset"]

    def test_a_waiting_body_of_which_nothing_has_come_is_asked_for_again(self, bench: Bench) -> None:
        visitor = Recorder()
        bench.stage.open(request(method=b"POST"), PEER, False, visitor)
        assert visitor.names() == ["pause"]
        bench.connect()
        assert visitor.names() == ["pause", "resume"]

    def test_a_visitor_who_leaves_while_waiting_waits_no_more(self, bench: Bench) -> None:
        sink = bench.stage.open(request(), PEER, True, Recorder())
        sink.reset(Cancelled("gone"))
        session = bench.connect()
        assert session.opened == []
        assert bench.registry.pool("team/shop").waiting == 0


class TestRetry:
    def test_a_safe_request_whose_session_dies_goes_to_another(self, bench: Bench) -> None:
        first, second = bench.connect(), bench.connect()
        visitor = Recorder()
        bench.stage.open(request(), PEER, True, visitor)
        bench.registry.remove(first)
        first.opened[0].client.on_reset(SessionLost("gone"))
        second.opened[0].client.on_head(OK, True)
        assert visitor.names() == ["head"]
        assert bench.counters.retried == 1

    def test_without_another_session_it_waits_for_one(self, bench: Bench) -> None:
        first = bench.connect()
        visitor = Recorder()
        bench.stage.open(request(), PEER, True, visitor)
        bench.registry.remove(first)
        first.opened[0].client.on_reset(SessionLost("gone"))
        assert visitor.calls == []
        bench.connect().opened[0].client.on_head(OK, True)
        assert visitor.names() == ["head"]

    def test_a_request_that_may_have_had_effects_is_not_asked_twice(self, bench: Bench) -> None:
        first, second = bench.connect(), bench.connect()
        visitor = Recorder()
        bench.stage.open(request(method=b"POST"), PEER, True, visitor)
        first.opened[0].client.on_reset(SessionLost("gone"))
        assert isinstance(visitor.error, SessionLost)
        assert second.opened == []

    def test_what_a_draining_session_refused_goes_to_another_whatever_its_method(self, bench: Bench) -> None:
        first, second = bench.connect(), bench.connect()
        bench.stage.open(request(method=b"POST"), PEER, True, Recorder())
        bench.registry.remove(first)
        first.opened[0].client.on_reset(Draining("going"))
        assert len(second.opened) == 1

    def test_after_the_head_nothing_is_asked_again(self, bench: Bench) -> None:
        first, second = bench.connect(), bench.connect()
        visitor = Recorder()
        bench.stage.open(request(), PEER, True, visitor)
        first.opened[0].client.on_head(OK, False)
        first.opened[0].client.on_reset(SessionLost("gone"))
        assert visitor.names() == ["head", "reset"]
        assert second.opened == []

    def test_an_origin_that_timed_out_is_not_asked_again(self, bench: Bench) -> None:
        first, second = bench.connect(), bench.connect()
        visitor = Recorder()
        bench.stage.open(request(), PEER, True, visitor)
        first.opened[0].client.on_reset(UpstreamTimeout("slow"))
        assert isinstance(visitor.error, UpstreamTimeout)
        assert second.opened == []

    def test_sessions_that_fail_within_open_end_the_tries(self, bench: Bench) -> None:
        dead = Answerer(lambda opened: opened.client.on_reset(SessionLost("gone")))
        bench.registry.add(dead, ("team/shop",))
        visitor = Recorder()
        bench.stage.open(request(), PEER, True, visitor)
        assert isinstance(visitor.error, SessionLost)
        assert len(dead.opened) == 3
        assert bench.stage.in_flight == 0


def test_pools_of_tunnels_that_are_gone_are_forgotten_unless_served(bench: Bench) -> None:
    kept = bench.registry.pool("team/shop")
    session = Answerer()
    bench.registry.add(session, ("team/old",))
    bench.registry.forget(bench.registry.services)
    assert bench.registry.pool("team/shop") is not kept
    assert session in bench.registry.pool("team/old").sessions
    assert bench.registry.services_of(session) == ("team/old",)


def test_the_pool_of_a_tunnel_that_is_gone_goes_with_its_last_session() -> None:
    registry = SessionRegistry(lambda: 0.0, lambda *_: None, lambda service: service == "team/shop")  # type: ignore[arg-type, return-value]
    one, two = Answerer(), Answerer()
    for session in (one, two):
        registry.add(session, ("team/shop", "team/old"))
    registry.forget(["team/old"])
    registry.remove(one)
    assert set(registry.services) == {"team/shop", "team/old"}
    registry.remove(two)
    assert registry.services == ["team/shop"]


def test_a_flood_of_large_heads_pins_no_memory(bench: Bench) -> None:
    bench.connect()

    def ask(head: RequestHead, *, recurs: bool) -> None:
        head.recurs = recurs
        bench.stage.open(head, PEER, True, Recorder())

    for number in range(20):
        ask(request(b"/", (b"x", b"%d" % number * 10_000)), recurs=True)
    assert len(bench.stage._memo) == 0
    ask(request(), recurs=False)
    assert len(bench.stage._memo) == 0, "nobody asks for it again"
    ask(request(), recurs=True)
    assert len(bench.stage._memo) == 1


def test_stages_share_one_memo_and_never_each_others_heads() -> None:
    memos = StageMemos()
    first, second = Bench(memos=memos), Bench(RouteRule("/api", strip_prefix=True, origin="api"), memos=memos)
    sessions = [first.connect(), second.connect()]
    head = request(b"/api/v1")
    head.recurs = True
    for bench in (first, second, first, second):
        bench.stage.open(head, PEER, True, Recorder())
    assert [[opened.head.target for opened in session.opened] for session in sessions] == [
        [b"/api/v1", b"/api/v1"],
        [b"/v1", b"/v1"],
    ]
    assert all(session.opened[0].head is session.opened[1].head for session in sessions)
    assert len(memos.forwarded) == 2
