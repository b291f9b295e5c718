"""What one exit node tells another of a request, and what the forward stage does where no session is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.errors import Draining, EdgetunError, NoSession, ProtocolError, SessionLost
from edgetun_core.http.message import Peer, Relayed, RequestHead, ResponseHead
from edgetun_core.snapshot import OriginRule, RouteRule, TunnelRule
from edgetun_core.wire.heads import decode_request, encode_request
from edgetun_exitnode.cache.freshness import Told
from edgetun_exitnode.observe.counters import TunnelCounters
from edgetun_exitnode.pipeline.forward import (
    MAX_RELAYED_TRIES,
    MAX_TRIES,
    MAX_WAITING,
    RELAY_WAIT_S,
    ForwardStage,
    Session,
)
from edgetun_exitnode.pipeline.relaying import (
    MAX_HOPS,
    TOLD,
    RelayedPeer,
    build_relayed_head,
    take_told,
    with_told,
)
from edgetun_exitnode.sessions.registry import FORGET_S, SessionRegistry
from support.exchanges import PEER, Answerer, Clock, Recorder, request

TUNNEL = "team/shop"


class Others:
    """The other exit nodes: links that are up, and whether one is being looked for."""

    def __init__(self) -> None:
        self.links: list[Answerer] = []
        self.primaries: list[Answerer] = []
        self.is_hopeful = False
        self.is_reaching_primary = False
        self.failures: list[EdgetunError] = []
        self.senders: list[str] = []

    def pick(self, avoid: Session | None, sender: str) -> Session | None:
        self.senders.append(sender)
        return next((link for link in self.links if link is not avoid), None)

    @property
    def has_primary(self) -> bool:
        return bool(self.primaries) or self.is_reaching_primary

    def pick_primary(self, avoid: Session | None, sender: str) -> Session | None:
        self.senders.append(sender)
        return next((link for link in self.primaries if link is not avoid), None)

    def failed(self, session: Session, error: EdgetunError) -> None:
        self.failures.append(error)


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = SessionRegistry(self.clock, self.clock.schedule)
        self.others = Others()
        self.registry.use_mesh(lambda _: self.others)
        rule = TunnelRule(TUNNEL, ("shop.example.com",), (OriginRule("main", "http://localhost:3000"),), (RouteRule(),))
        self.counters = TunnelCounters()
        self.stage = ForwardStage(rule, RouteRule(), self.registry.pool(TUNNEL), self.counters, self.clock)

    def ask(self, head: RequestHead | None = None, peer: Peer = PEER, *, end: bool = True) -> Recorder:
        visitor = Recorder()
        self.stage.open(head if head is not None else request(), peer, end, visitor)
        return visitor


@pytest.fixture
def bench() -> Bench:
    return Bench()


def of(hops: int, sender: str = "pool/eu/a") -> RelayedPeer:
    return RelayedPeer(Relayed(hops, "203.0.113.7"), b"https", sender)


def test_the_head_goes_as_the_visitor_sent_it_and_says_who_they_are(bench: Bench) -> None:
    link = Answerer()
    bench.others.links.append(link)
    head = request(b"/a", (b"x-forwarded-for", b"10.0.0.1"))
    head.recurs = True
    bench.ask(head)
    bench.ask(head)
    first, second = (opened.head for opened in link.opened)
    assert first is second, "built anew for an equal request"
    assert (first.target, first.fields, first.service) == (b"/a", head.fields, TUNNEL)
    assert first.relayed == Relayed(1, "192.0.2.1")
    assert bench.counters.relayed == 2


def test_a_local_session_is_preferred_and_the_others_are_not_even_asked(bench: Bench) -> None:
    local, link = Answerer(), Answerer()
    bench.registry.add(local, [TUNNEL])
    bench.others.links.append(link)
    bench.ask()
    assert (len(local.opened), len(link.opened), bench.others.senders) == (1, 0, [])


def test_a_relayed_request_goes_on_once_more_and_not_back_and_no_further(bench: Bench) -> None:
    link = Answerer()
    bench.others.links.append(link)
    bench.ask(peer=of(1))
    assert link.opened[0].head.relayed == Relayed(2, "203.0.113.7")
    assert bench.others.senders == ["pool/eu/a"]
    refused = bench.ask(peer=of(MAX_HOPS))
    assert isinstance(refused.error, NoSession)
    assert len(link.opened) == 1


def test_whose_visitor_it_is_not_says_at_once_that_it_has_no_session(bench: Bench) -> None:
    assert isinstance(bench.ask(peer=of(1)).error, NoSession)
    waiting = bench.ask()
    assert waiting.calls == []
    bench.clock.advance(5.1)
    assert isinstance(waiting.error, NoSession)


def test_visitors_wait_while_another_node_is_looked_for_however_long_the_laptop_is_off(bench: Bench) -> None:
    bench.clock.advance(FORGET_S + 100)
    assert isinstance(bench.ask().error, NoSession)
    bench.others.is_hopeful = True
    visitor = bench.ask()
    assert visitor.calls == []
    link = Answerer()
    bench.others.links.append(link)
    bench.registry.wake(TUNNEL)
    assert len(link.opened) == 1
    bench.others.links.clear()
    lost = bench.ask()
    bench.clock.advance(max(RELAY_WAIT_S, bench.stage.grace_s) + 0.1)
    assert isinstance(lost.error, NoSession)


@pytest.mark.parametrize("error", [NoSession("not here"), Draining("going"), SessionLost("gone")])
def test_a_holder_that_cannot_is_followed_by_the_next(bench: Bench, error: EdgetunError) -> None:
    first, second = Answerer(), Answerer()
    bench.others.links += [first, second]
    visitor = bench.ask()
    first.opened[0].client.on_reset(error)
    assert bench.others.failures == [error]
    second.opened[0].client.on_head(ResponseHead(200, ()), True)
    assert visitor.status == 200


def test_what_may_have_been_done_is_not_asked_again(bench: Bench) -> None:
    first, second = Answerer(), Answerer()
    bench.others.links += [first, second]
    visitor = bench.ask(request(method=b"POST"))
    first.opened[0].client.on_reset(SessionLost("gone"))
    assert isinstance(visitor.error, SessionLost)
    assert second.opened == []


class TestWithNothingButAStandby:
    @pytest.fixture
    def standby(self, bench: Bench) -> Answerer:
        session = Answerer()
        bench.registry.add(session, [TUNNEL], is_standby=True)
        return session

    def test_a_node_with_a_primary_is_asked_and_nobody_who_has_only_standbys_too(
        self, bench: Bench, standby: Answerer
    ) -> None:
        bench.others.links.append(Answerer())
        bench.ask()
        assert len(standby.opened) == 1
        better = Answerer()
        bench.others.primaries.append(better)
        bench.ask()
        bench.ask(request(method=b"POST"), end=False)
        assert (len(standby.opened), len(better.opened), bench.counters.relayed) == (1, 2, 2)
        assert better.opened[0].head.relayed == Relayed(1, "192.0.2.1")
        assert not bench.others.links[0].opened
        bench.registry.add(Answerer(), [TUNNEL])
        bench.ask()
        assert len(better.opened) == 2, "a primary of its own keeps the visitors"

    @pytest.mark.parametrize("error", [NoSession("not here"), Draining("going"), SessionLost("gone")])
    def test_its_own_standby_serves_when_the_relays_fail(
        self, bench: Bench, standby: Answerer, error: EdgetunError
    ) -> None:
        bench.others.primaries += [Answerer()]
        visitor = bench.ask()
        bench.others.primaries[0].opened[0].client.on_reset(error)
        standby.opened[0].client.on_head(ResponseHead(200, ()), True)
        assert visitor.status == 200
        assert bench.others.failures == [error]

    def test_relays_that_fail_again_and_again_have_an_end(self, bench: Bench, standby: Answerer) -> None:
        bench.others.primaries += [Answerer(lambda opened: opened.client.on_reset(NoSession("no"))) for _ in range(2)]
        bench.ask()
        assert len(standby.opened) == 1
        assert sum(len(link.opened) for link in bench.others.primaries) == MAX_TRIES

    def test_a_visitor_waits_while_a_primary_is_reached_and_not_for_longer(
        self, bench: Bench, standby: Answerer
    ) -> None:
        bench.others.is_reaching_primary = True
        visitors = [bench.ask(), bench.ask()]
        assert (visitors[0].calls, standby.opened) == ([], [])
        better = Answerer()
        bench.others.primaries.append(better)
        bench.registry.wake(TUNNEL)
        assert len(better.opened) == 2
        bench.others.primaries.clear()
        bench.ask()
        bench.clock.advance(max(RELAY_WAIT_S, bench.stage.grace_s) + 0.1)
        assert len(standby.opened) == 1

    def test_it_does_not_wait_when_the_dial_has_failed_or_too_many_wait(self, bench: Bench, standby: Answerer) -> None:
        bench.others.is_reaching_primary = True
        for _ in range(MAX_WAITING):
            bench.ask()
        assert standby.opened == []
        bench.ask()
        assert len(standby.opened) == 1
        bench.others.is_reaching_primary = False
        bench.registry.wake(TUNNEL)
        assert len(standby.opened) == 1 + MAX_WAITING

    def test_what_came_from_another_node_is_not_sent_back_and_not_further_than_two(
        self, bench: Bench, standby: Answerer
    ) -> None:
        bench.others.primaries.append(Answerer())
        bench.ask(peer=of(1))
        assert bench.others.senders == ["pool/eu/a"]
        bench.ask(peer=of(MAX_HOPS))
        assert (len(bench.others.primaries[0].opened), len(standby.opened)) == (1, 1)

    def test_what_other_nodes_hand_on_passes_its_cache_by_while_another_has_better(
        self, bench: Bench, standby: Answerer
    ) -> None:
        pool = bench.registry.pool(TUNNEL)
        assert pool.answers_itself
        bench.others.primaries.append(Answerer())
        assert not pool.answers_itself
        bench.registry.add(Answerer(), [TUNNEL])
        assert pool.answers_itself


def test_a_nodes_share_is_its_primaries_weight_or_its_standbys_below_zero(bench: Bench) -> None:
    pool, (one, other, third) = bench.registry.pool(TUNNEL), (Answerer(), Answerer(), Answerer())
    seen = [(pool.share, pool.is_on_standby)]
    for session, weight, is_standby in ((one, 3, True), (other, 2, True), (third, 4, False)):
        bench.registry.add(session, [TUNNEL], weight=weight, is_standby=is_standby)
        seen.append((pool.share, pool.is_on_standby))
    for session in (third, one, other):
        bench.registry.remove(session)
        seen.append((pool.share, pool.is_on_standby))
    assert seen == [(0, False), (-3, True), (-5, True), (4, False), (-5, True), (-2, True), (0, False)]


def test_tries_have_an_end(bench: Bench) -> None:
    bench.others.links += [Answerer(lambda opened: opened.client.on_reset(NoSession("no"))) for _ in range(2)]
    visitor = bench.ask()
    assert isinstance(visitor.error, NoSession)
    assert sum(len(link.opened) for link in bench.others.links) == MAX_RELAYED_TRIES


def test_the_wire_carries_what_is_told_and_refuses_what_cannot_be() -> None:
    head = build_relayed_head(
        request(), Peer("2001:db8::1", 9, b"https", b"2", "shop.example.com"), TUNNEL, is_fetch=True
    )
    again = decode_request(encode_request(head))
    assert again.relayed == head.relayed == Relayed(1, "2001:db8::1", 0, b"2", "shop.example.com", True)
    assert decode_request(encode_request(request())).relayed is None
    for wrong in (
        Relayed(0, "192.0.2.1"),
        Relayed(256, "192.0.2.1"),
        Relayed(1, "192.0.2.1\r\nx: y"),
        Relayed(1, "a" * 65),
        Relayed(1, "192.0.2.1", 65536),
        Relayed(1, "192.0.2.1", 1, b"2\r\n"),
        Relayed(1, "192.0.2.1", 1, b"2", "a b"),
    ):
        bad = RequestHead(b"GET", b"https", b"a", b"/", (), None, TUNNEL, wrong)
        with pytest.raises(ProtocolError):
            decode_request(encode_request(bad))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_ages_arrive_as_they_were_told(age_s: float, fresh_s: float) -> None:
    head = with_told(ResponseHead(200, ((b"etag", b'"1"'), (TOLD, b"from the origin"))), Told(age_s, fresh_s))
    told, bare = take_told(head)
    assert told is not None
    assert abs(told.age_s - age_s) <= 0.001
    assert abs(told.fresh_s - fresh_s) <= 0.001
    assert bare.fields == ((b"etag", b'"1"'),)


@pytest.mark.parametrize("fresh_s", [5e-324, 0.0001, 0.0004, 0.0009])
def test_what_is_fresh_is_never_told_as_if_it_never_had_been(fresh_s: float) -> None:
    told, _ = take_told(with_told(ResponseHead(200, ()), Told(1.0, fresh_s)))
    assert told == Told(1.0, 0.001)
    told, _ = take_told(with_told(ResponseHead(200, ()), Told(1.0, 0.0)))
    assert told == Told(1.0, 0.0)


@pytest.mark.parametrize("value", [b"", b"x", b"1", b"1 x", b"nan 1", b"1 inf", b"-1 1", b"1 -1", b"9e99 1"])
def test_rubbish_in_its_place_is_taken_off_and_says_nothing(value: bytes) -> None:
    told, bare = take_told(ResponseHead(200, ((TOLD, value),)))
    assert told is None
    assert bare.fields == ()
