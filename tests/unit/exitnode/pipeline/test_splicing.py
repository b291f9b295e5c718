"""What another exit node hands on goes straight into an agent's session: credit, cancelling, losses and counts stay as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgetun_core.errors import Cancelled, Draining, EdgetunError, ProtocolError, SessionLost
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.snapshot import LimitRule, OriginRule, RouteRule, TunnelRule
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.wire.heads import encode_response
from edgetun_core.wire.splices import Spliced
from edgetun_exitnode.observe.counters import TunnelCounters
from edgetun_exitnode.pipeline.forward import ForwardStage
from edgetun_exitnode.sessions.registry import SessionRegistry
from support.exchanges import PEER, Answerer, Clock, Opened, Recorder
from support.wire import OK, Pair, get

KIB = 1024
WINDOW = 256 * KIB


class Nobody:
    """Hears of no session's fate."""

    def on_session_open(self, runner: SessionRunner) -> None: ...
    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None: ...
    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None: ...


class Holder:
    """The exit node in the middle: the visitor's node asks over `near`, agents answer over `far`."""

    def __init__(
        self, agents: int = 1, route: RouteRule | None = None, *, by_head: bool = True, lanes: int = 1
    ) -> None:
        clock = Clock()
        self.registry = SessionRegistry(clock, clock.schedule)
        rule = TunnelRule("team/shop", ("a.test",), (OriginRule("main", "http://localhost:1"),), (RouteRule(),))
        self.counters = TunnelCounters()
        pool = self.registry.pool("team/shop")
        self.stage = ForwardStage(rule, route or RouteRule(), pool, self.counters, clock)
        self._by_head = by_head
        self.near = Pair(lanes=lanes, bulk_from=1)
        self.near.agent.session.mux._handler = self
        self.far: list[Pair] = []
        self.runners: list[SessionRunner] = []
        for _ in range(agents):
            pair = Pair(lanes=lanes, bulk_from=1)
            runner = SessionRunner(Answerer(), Nobody(), offer=None, decide=None)
            runner._session = pair.edge.session
            runner.mux = pair.edge.session.mux
            self.registry.add(runner, ("team/shop",))
            self.far.append(pair)
            self.runners.append(runner)

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        splicing = self.stage.splicing(head, PEER) if self._by_head else None
        handler = splicing if splicing is not None else self.stage
        return handler.open(head, PEER, end, client)

    def ask(self, *, end: bool = True, head: RequestHead | None = None) -> tuple[Recorder, RequestSink]:
        visitor, sink = self.near.edge.open(head, end=end)
        self.settle()
        return visitor, sink

    def settle(self) -> None:
        for _ in range(50):
            before = [dict(pair.sent) for pair in (self.near, *self.far)]
            for pair in (self.near, *self.far):
                pair.settle()
            if before == [dict(pair.sent) for pair in (self.near, *self.far)]:
                return
        raise AssertionError("it never comes to rest")

    @property
    def asked(self) -> list[Opened]:
        """What agents were asked, by agent."""
        return [opened for pair in self.far for opened in pair.agent.opened]

    def is_at_rest(self) -> bool:
        muxes = [pair.edge.session.mux for pair in (self.near, *self.far)]
        muxes += [pair.agent.session.mux for pair in (self.near, *self.far)]
        counts = (
            [mux.in_flight for mux in muxes] + [mux.opened_now for mux in muxes] + [mux.served_now for mux in muxes]
        )
        counts += [lane.load for mux in muxes for lane in mux.lanes]
        counts += [mux.held for mux in muxes]
        counts += [self.stage.in_flight, self.counters.in_flight]
        bugs = [bug for pair in (self.near, *self.far) for end, _ in pair.ends() for bug in end.bugs]
        return not any(counts) and not bugs


@pytest.fixture(params=[True, False], ids=["known head", "single"])
async def one(request: pytest.FixtureRequest) -> Holder:
    return Holder(by_head=request.param)


async def test_a_short_answer_passes_and_nothing_of_it_is_left(one: Holder) -> None:
    visitor, _ = one.ask()
    (asked,) = one.asked
    assert asked.head.get(b"x-forwarded-for") == PEER.address.encode()
    assert any(isinstance(each, Spliced) for each in one.far[0].edge.session.mux.exchanges.values())
    assert one.stage.in_flight == one.counters.in_flight == 1
    asked.client.on_interim(ResponseHead(103, ((b"link", b"</a>"),)))
    asked.client.on_head(OK, False)
    asked.client.on_data(b"hello", True)
    one.settle()
    assert visitor.calls == [
        ("interim", 103, ((b"link", b"</a>"),)),
        ("head", 200, OK.fields, False),
        ("data", b"hello", True),
    ]
    assert one.is_at_rest()
    assert one.counters.forwarded == 1
    assert sum(one.counters.upstream_seconds.counts) == 1


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        (lambda client: client.on_head(OK, True), [("head", 200, OK.fields, True)]),
        (
            lambda client: (client.on_head(OK, False), client.on_data(b"", True)),
            [("head", 200, OK.fields, False), ("data", b"", True)],
        ),
        (
            lambda client: (
                client.on_head(OK, False),
                client.on_data(b"a", False),
                client.on_trailers(((b"x", b"1"),)),
            ),
            [("head", 200, OK.fields, False), ("data", b"a", False), ("trailers", ((b"x", b"1"),))],
        ),
    ],
)
async def test_every_kind_of_end_passes(
    one: Holder, answer: Callable[[ResponseSink], object], calls: list[object]
) -> None:
    visitor, _ = one.ask()
    answer(one.asked[0].client)
    one.settle()
    assert visitor.calls == calls
    assert one.is_at_rest()


async def test_a_body_and_trailers_of_a_request_pass(one: Holder) -> None:
    visitor, sink = one.ask(end=False)
    sink.send_data(b"x" * 100_000, False)
    one.settle()
    trailers: Fields = ((b"sum", b"1"),)
    sink.send_trailers(trailers)
    one.settle()
    (asked,) = one.asked
    assert sum(len(call[1]) for call in asked.calls if call[0] == "data") == 100_000  # type: ignore[arg-type]
    assert asked.calls[-1] == ("trailers", trailers)
    asked.client.on_head(OK, False)
    asked.client.on_data(b"ok", True)
    one.settle()
    assert visitor.body == b"ok"
    assert one.is_at_rest()


async def test_an_answer_may_end_before_its_request(one: Holder) -> None:
    visitor, sink = one.ask(end=False)
    one.asked[0].client.on_head(OK, False)
    one.asked[0].client.on_data(b"no need", True)
    one.settle()
    assert visitor.body == b"no need"
    sink.send_data(b"late", True)
    one.settle()
    assert one.is_at_rest()


async def test_a_visitor_who_does_not_read_stops_the_agent_and_what_waits_here_is_bounded(one: Holder) -> None:
    visitor, sink = one.ask()
    (asked,) = one.asked
    asked.client.on_head(OK, False)
    one.settle()
    sink.pause_response()
    pushed = 0
    while ("pause",) not in asked.calls:
        asked.client.on_data(b"x" * (32 * KIB), False)
        pushed += 32 * KIB
        one.settle()
        assert pushed < 8 * WINDOW, "nobody stops the agent"
    came = len(visitor.body)
    assert pushed - came <= 2 * WINDOW
    sink.resume_response()
    one.settle()
    assert ("resume",) in asked.calls
    asked.client.on_data(b"end", True)
    one.settle()
    assert len(visitor.body) == pushed + 3
    assert one.is_at_rest()


async def test_the_last_piece_waits_for_the_credit_of_the_visitors_node(one: Holder) -> None:
    visitor, _ = one.ask()
    incoming = next(iter(one.near.agent.session.mux.exchanges.values()))
    incoming.send_left = 3
    one.asked[0].client.on_head(OK, False)
    one.asked[0].client.on_data(b"hello", True)
    one.settle()
    assert visitor.body == b"hel"
    assert one.stage.in_flight == 0  # the agent has done its part
    incoming.receive_credit(10)
    one.settle()
    assert visitor.body == b"hello"
    assert one.is_at_rest()


async def test_more_than_the_agents_credit_still_breaks_its_session(one: Holder) -> None:
    visitor, _ = one.ask()
    spliced = next(iter(one.far[0].edge.session.mux.exchanges.values()))
    spliced.recv_left = 3
    one.asked[0].client.on_head(OK, False)
    one.asked[0].client.on_data(b"hello", True)
    one.settle()
    assert "credit" in str(one.far[0].edge.error)
    assert visitor.names() == ["head", "reset"]


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_visitor_who_leaves_half_way_is_told_to_the_agent(one: Holder, has_begun: bool) -> None:
    visitor, sink = one.ask()
    (asked,) = one.asked
    if has_begun:
        asked.client.on_head(OK, False)
        asked.client.on_data(b"half", False)
        one.settle()
    sink.reset(Cancelled("gone"))
    one.settle()
    assert isinstance(asked.calls[-1][1], Cancelled)
    asked.client.on_data(b"late", True)
    one.settle()
    assert visitor.names() == (["head", "data"] if has_begun else [])
    assert one.is_at_rest()
    assert one.counters.failed == 0


async def test_an_agent_that_gives_up_half_way_is_told_to_the_visitor(one: Holder) -> None:
    visitor, _ = one.ask()
    one.asked[0].client.on_head(OK, False)
    one.asked[0].client.on_data(b"half", False)
    one.settle()
    one.asked[0].client.on_reset(ProtocolError("the origin broke off"))
    one.settle()
    assert visitor.names() == ["head", "data", "reset"]
    assert one.counters.failed == 1
    assert one.is_at_rest()


@pytest.mark.parametrize("why", [Draining("going"), SessionLost("gone")])
async def test_another_session_is_asked_before_anything_came(why: EdgetunError) -> None:
    holder = Holder(agents=2)
    visitor, sink = holder.ask()
    first = next(pair for pair in holder.far if pair.agent.opened)
    second = next(pair for pair in holder.far if not pair.agent.opened)
    if isinstance(why, Draining):
        first.agent.opened[0].client.on_reset(why)
    else:
        holder.registry.remove(holder.runners[holder.far.index(first)])
        first.lose(why)
    holder.settle()
    assert visitor.calls == []
    assert holder.counters.retried == 1
    assert holder.stage.in_flight == 1
    (asked,) = second.agent.opened
    sink.pause_response()
    asked.client.on_head(OK, False)
    asked.client.on_data(b"ok", True)
    holder.settle()
    assert visitor.body == b"ok"
    assert holder.counters.failed == 0
    assert holder.is_at_rest()


async def test_who_leaves_after_another_session_was_asked_is_told_to_that_one() -> None:
    holder = Holder(agents=2)
    _, sink = holder.ask()
    first = next(pair for pair in holder.far if pair.agent.opened)
    second = next(pair for pair in holder.far if not pair.agent.opened)
    first.agent.opened[0].client.on_reset(Draining("going"))
    holder.settle()
    sink.reset(Cancelled("gone"))
    holder.settle()
    assert isinstance(second.agent.opened[0].calls[-1][1], Cancelled)
    assert holder.is_at_rest()


@pytest.mark.parametrize("case", ["begun", "with a body", "unsafe"])
async def test_what_may_not_be_asked_twice_fails(case: str) -> None:
    holder = Holder(agents=2)
    head = get() if case != "unsafe" else RequestHead(b"POST", b"https", b"shop.example.com", b"/", ())
    visitor, _ = holder.ask(end=case != "with a body", head=head)
    first = next(pair for pair in holder.far if pair.agent.opened)
    if case == "begun":
        first.agent.opened[0].client.on_head(OK, False)
        holder.settle()
    holder.registry.remove(holder.runners[holder.far.index(first)])
    first.lose(SessionLost("gone"))
    holder.settle()
    assert isinstance(visitor.error, SessionLost)
    assert len(holder.asked) == 1
    assert holder.counters.failed == 1
    assert holder.is_at_rest()


async def test_a_lost_session_with_the_visitors_node_cancels_at_the_agent(one: Holder) -> None:
    one.ask()
    one.near.agent.session.lost(SessionLost("the other node died"))
    one.settle()
    assert isinstance(one.asked[0].calls[-1][1], Cancelled)
    assert one.stage.in_flight == one.counters.in_flight == 0
    assert one.far[0].edge.session.mux.in_flight == 0


async def test_without_a_session_to_take_it_the_visitor_is_told(one: Holder) -> None:
    one.runners[0].mux.stop_opening(Draining("going"))  # type: ignore[union-attr]
    visitor, _ = one.ask()
    assert visitor.names() == ["reset"]
    assert one.is_at_rest()


async def test_the_limit_of_a_route_holds() -> None:
    holder = Holder(route=RouteRule(limits=LimitRule(max_concurrent_requests=1)))
    first, _ = holder.ask()
    second, _ = holder.ask()
    assert (first.names(), second.names()) == ([], ["reset"])
    assert holder.counters.refused == 1


async def test_a_head_that_is_none_ends_the_exchange_and_not_the_session(one: Holder) -> None:
    visitor, _ = one.ask()
    incoming = next(iter(one.far[0].agent.session.mux.exchanges.values()))
    bad = ResponseHead(200, ())
    bad.wire = encode_response(ResponseHead(99, ()))
    incoming.on_head(bad, False)  # type: ignore[attr-defined]
    one.settle()
    assert visitor.names() == ["reset"]
    assert one.far[0].edge.names == ["hello", "open"]
    assert one.is_at_rest()


async def test_a_large_body_passes_over_the_lanes_for_bulk() -> None:
    holder = Holder(lanes=2)
    visitor, _ = holder.ask()
    (asked,) = holder.asked
    body = bytes(range(256)) * 4_000
    asked.client.on_head(ResponseHead(200, ((b"content-length", b"%d" % len(body)),)), False)
    for start in range(0, len(body), 60_000):
        asked.client.on_data(body[start : start + 60_000], start + 60_000 >= len(body))
        holder.settle()
    assert visitor.body == body
    assert holder.near.sent["agent", 1] > len(body) // 2
    assert holder.is_at_rest()


async def test_with_only_a_standby_the_stage_decides_as_it_always_does(one: Holder) -> None:
    one.registry.remove(one.runners[0])
    one.registry.add(one.runners[0], ("team/shop",), is_standby=True)
    visitor, _ = one.ask()
    assert not any(isinstance(each, Spliced) for each in one.far[0].edge.session.mux.exchanges.values())
    one.asked[0].client.on_head(OK, True)
    one.settle()
    assert visitor.status == 200
    assert one.is_at_rest()
