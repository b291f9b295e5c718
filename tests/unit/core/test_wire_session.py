"""The session as a conversation: hello, versions, ping, drain, close."""

from __future__ import annotations

import msgspec
import pytest

from edgetun_core.errors import (
    AuthError,
    Cancelled,
    Draining,
    EdgetunError,
    LimitExceeded,
    NoSession,
    ProtocolError,
    SessionLost,
)
from edgetun_core.wire import frames
from edgetun_core.wire.frames import SessionBroken, encode_frame
from edgetun_core.wire.hello import Drain, Hello, Refusal, Welcome, Windows, encode_control
from edgetun_core.wire.session import Session
from edgetun_core.wire.states import TRANSITIONS, Event, State
from support.exchanges import PEER
from support.wire import HELLO, OK, End, Pair, frames_in, get


def hello_frame(**values: object) -> bytes:
    return encode_frame(frames.HELLO, 0, msgspec.msgpack.encode(values))


def edge_alone() -> End:
    return End("edge", hello=None, windows=None, lanes=1, bulk_from=1)


def agent_alone(lanes: int = 1) -> End:
    end = End("agent", hello=HELLO, windows=None, lanes=lanes, bulk_from=lanes)
    end.session.data_to_send()
    return end


class TestHello:
    def test_hello_and_welcome_open_both_ends(self):
        pair = Pair()
        assert pair.edge.names == ["hello", "open"]
        assert pair.agent.names == ["open"]
        assert pair.edge.session.state is pair.agent.session.state is State.OPEN
        assert pair.agent.session.welcome == pair.edge.session.welcome
        assert pair.agent.session.welcome.node == "n1"
        assert pair.edge.session.hello == HELLO

    def test_hello_is_the_first_frame_and_nothing_else_is_sent_before_the_answer(self):
        agent = End("agent", hello=HELLO, windows=None, lanes=4, bulk_from=4)
        ((lane, data),) = agent.session.data_to_send()
        assert lane == 0
        assert [name for name, _, _ in frames_in(data)] == ["HELLO"]

    def test_a_hello_in_a_log_carries_no_credential(self):
        assert "s3cret" not in repr(Hello(credential="s3cret")) + str(Hello(credential="s3cret"))

    def test_the_highest_common_version_is_spoken(self):
        edge = edge_alone()
        edge.session.receive(0, hello_frame(versions=[0, 1, 2, 77], agent_id="a"), 1.0)
        assert edge.session.welcome.version == 1

    def test_a_hello_of_a_later_version_with_unknown_fields_is_understood(self):
        edge = edge_alone()
        edge.session.receive(0, hello_frame(versions=[1, 2], agent_id="a", hologram={"x": [1, 2]}), 1.0)
        assert edge.names == ["hello", "open"]

    def test_without_a_common_version_the_agent_is_told_what_to_do(self):
        edge = edge_alone()
        agent = agent_alone()
        edge.session.receive(0, hello_frame(versions=[99]), 1.0)
        for lane, data in edge.session.data_to_send():
            agent.session.receive(lane, data, 1.0)
        assert isinstance(agent.error, ProtocolError)
        assert "99" in str(agent.error)
        assert "up to date" in str(agent.error)
        assert agent.session.refusal.retry_after_s < 0

    def test_a_refusal_reaches_the_agent_with_its_reason_and_when_to_come_back(self):
        pair = Pair(connect=False)
        pair.edge.answer = Refusal(code=0x04, reason="the credential ended; renew it", retry_after_s=2.5)
        pair.settle()
        assert isinstance(pair.agent.error, AuthError)
        assert str(pair.agent.error) == "the credential ended; renew it"
        assert pair.agent.session.refusal.retry_after_s == 2.5
        assert pair.edge.session.closed_with.code == 0x04

    @pytest.mark.parametrize("hostile", [float("nan"), float("inf"), -1e9, 1e300])
    def test_a_nonsensical_retry_after_is_not_believed(self, hostile):
        agent = agent_alone()
        agent.session.receive(0, encode_frame(frames.REFUSE, 0, encode_control(Refusal(retry_after_s=hostile))), 1.0)
        assert agent.session.refusal.retry_after_s == 0

    def test_windows_of_both_ends_are_what_each_announced(self):
        pair = Pair(hello=Hello(exchange_window=20_000, session_window=90_000), windows=Windows(exchange_window=30_000))
        assert pair.edge.session.mux.send_window == 20_000
        assert pair.edge.session.mux.send_left == 90_000
        assert pair.agent.session.mux.send_window == 30_000

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("exchange_window", -1),
            ("exchange_window", 1 << 40),
            ("session_window", -1),
            ("session_window", 1 << 40),
            ("max_exchanges", -1),
        ],
    )
    def test_windows_out_of_bounds_close_the_session(self, field, value):
        edge = edge_alone()
        edge.session.receive(0, hello_frame(versions=[1], **{field: value}), 1.0)
        assert isinstance(edge.error, SessionBroken)

    def test_frames_of_other_lanes_that_overtake_the_welcome_wait_for_it(self):
        pair = Pair(lanes=2, connect=False)
        pair.flush(pair.agent)
        pair.deliver(pair.agent, 0)
        pair.edge.session.mux._open_lane = pair.edge.session.mux.lanes[1]
        pair.edge.open(get(b"/early"))
        pair.flush(pair.edge)
        pair.deliver(pair.edge, 1)
        assert pair.agent.opened == []
        pair.deliver(pair.edge, 0)
        assert [opened.head.target for opened in pair.agent.opened] == [b"/early"]

    def test_what_overtakes_the_welcome_is_bounded(self):
        agent = agent_alone(lanes=2)
        for _ in range(13):
            agent.session.receive(1, bytes(1024 * 1024), 1.0)
        assert isinstance(agent.error, SessionBroken)

    @pytest.mark.parametrize(
        "first",
        [
            encode_frame(frames.HEAD_END, 1, b"x"),
            encode_frame(frames.PING, 0, b"x"),
            encode_frame(frames.WELCOME, 0, encode_control(Welcome())),
            encode_frame(frames.DATA, 1, b"x"),
            encode_frame(frames.DATA, 1, bytes(60_000)),
            encode_frame(frames.CREDIT, 0, bytes(4)),
            encode_frame(0x40, 0, b""),
            encode_frame(frames.HELLO, 0, b"\xc1"),
            encode_frame(frames.HELLO, 0, msgspec.msgpack.encode({"versions": "one"})),
            encode_frame(frames.HELLO, 5, b"\x80"),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ],
        ids=repr,
    )
    def test_anything_but_a_hello_at_first_closes_the_session_with_a_reason(self, first):
        edge = edge_alone()
        edge.session.receive(0, first, 1.0)
        assert isinstance(edge.error, ProtocolError)
        assert str(edge.error)
        ((_, data),) = edge.session.data_to_send()
        assert frames_in(data)[-1][0] == "CLOSE"
        assert edge.session.closed_with.code == ProtocolError.presentation.close_code

    def test_bytes_on_another_lane_before_hello_close_the_session(self):
        edge = edge_alone()
        edge.session.receive(1, b"x", 1.0)
        assert isinstance(edge.error, ProtocolError)

    def test_a_second_hello_closes_the_session(self):
        pair = Pair()
        pair.edge.session.receive(0, hello_frame(versions=[1]), 1.0)
        assert "HELLO while open" in str(pair.edge.error)

    def test_a_peer_that_never_says_hello_is_given_up(self):
        edge = edge_alone()
        assert edge.session.next_timer() == 5.0
        edge.session.handle_timer(4.9)
        assert edge.names == []
        edge.session.handle_timer(5.0)
        assert isinstance(edge.error, SessionLost)
        assert edge.session.next_timer() is None

    def test_nothing_can_be_opened_before_the_welcome(self):
        visitor, _ = agent_alone().open()
        assert isinstance(visitor.error, NoSession)


class TestPing:
    def test_the_round_trip_is_known_after_the_first_ping(self):
        pair = Pair(connect=False)
        pair.flush(pair.agent)
        pair.deliver(pair.agent, 0)
        pair.flush(pair.edge)
        pair.now += 0.040
        pair.deliver(pair.edge, 0)  # WELCOME and PING
        pair.flush(pair.agent)
        pair.now += 0.040
        pair.deliver(pair.agent, 0)
        assert pair.edge.session.rtt_s == pytest.approx(0.080)

    def test_the_round_trip_is_smoothed(self):
        pair = Pair()
        session = pair.edge.session
        session.rtt_s = 0.080
        session.handle_timer(session.next_timer())
        sent_at = session._pings[next(iter(session._pings))]
        pair.now = sent_at + 0.160
        pair.settle()
        assert session.rtt_s == pytest.approx(0.090)

    def test_a_ping_goes_over_every_lane_and_bodies_do_not_count_as_round_trips(self):
        pair = Pair(lanes=6, bulk_from=4)
        session = pair.edge.session
        session.data_to_send()
        session.handle_timer(session.next_timer())
        pings = {lane: frames_in(data)[0] for lane, data in session.data_to_send()}
        assert {lane: name for lane, (name, _, _) in pings.items()} == dict.fromkeys(range(6), "PING")
        before = session.rtt_s
        for lane in (4, 5):
            session.receive(lane, encode_frame(frames.PONG, 0, pings[lane][2]), 1000.0)
        assert session.rtt_s == before
        session.receive(0, encode_frame(frames.PONG, 0, pings[0][2]), 1000.0)
        assert session.rtt_s != before

    def test_pings_come_every_interval_and_a_silent_peer_is_given_up(self):
        pair = Pair()
        session = pair.edge.session
        assert session.next_timer() == 6.0
        now = 1.0
        while session.state is State.OPEN:
            now = session.next_timer()
            session.handle_timer(now)
        assert now == 16.0
        assert isinstance(pair.edge.error, SessionLost)
        assert "15 s" in str(pair.edge.error)

    def test_any_byte_received_keeps_the_peer_alive(self):
        pair = Pair()
        session = pair.edge.session
        for now in range(2, 100, 2):
            session.receive(0, encode_frame(0x41, 0, b""), float(now))
            session.handle_timer(float(now))
        assert session.state is State.OPEN

    @pytest.mark.parametrize("bulk_from", [3, 2, 1])
    def test_control_alive_but_a_data_lane_dead_is_noticed(self, bulk_from):
        pair = Pair(lanes=3, bulk_from=bulk_from)
        for step in range(60):
            pair.now = 2.0 + step
            for end, _ in pair.ends():
                due = end.session.next_timer()
                if due is not None and due <= pair.now:
                    end.session.handle_timer(pair.now)
                pair.flush(end)
            for name in ("agent", "edge"):
                pair.pipes.pop((name, 2), None)  # the black hole
            pair.settle()
        assert isinstance(pair.edge.error, SessionLost)
        assert "lane 2" in str(pair.edge.error)

    def test_a_peer_that_does_not_ping_its_bulk_lanes_is_not_given_up_for_their_silence(self):
        pair = Pair(lanes=2, bulk_from=1, connect=False)
        pair.agent.session.mux.pause_lane(1)  # says nothing on it, as before such lanes were pinged
        pair.settle()
        pair.edge.session.receive(1, encode_frame(frames.PONG, 0, b"answered once"), pair.now)
        for step in range(60):
            pair.now = 2.0 + step
            for end, _ in pair.ends():
                due = end.session.next_timer()
                if due is not None and due <= pair.now:
                    end.session.handle_timer(pair.now)
            pair.settle()
        assert pair.edge.session.state is State.OPEN

    def test_a_process_that_stood_still_reads_before_it_gives_the_peer_up(self):
        pair = Pair()
        session = pair.edge.session
        session.next_timer()
        session.handle_timer(1000.0)
        assert session.state is State.OPEN
        session.next_timer()
        session.handle_timer(1005.0)
        assert isinstance(pair.edge.error, SessionLost)

    def test_ping_is_answered_on_its_lane_with_its_payload(self):
        pair = Pair(lanes=2)
        pair.edge.session.receive(1, encode_frame(frames.PING, 0, b"whatever"), 1.0)
        ((lane, data),) = pair.edge.session.data_to_send()
        assert (lane, frames_in(data)) == (1, [("PONG", 0, b"whatever")])

    def test_pings_to_an_end_that_cannot_write_pile_up_no_answers(self):
        pair = Pair()
        pair.edge.session.mux.pause_lane(0)
        for _ in range(1000):
            pair.edge.session.receive(0, encode_frame(frames.PING, 0, b"x"), 1.0)
        assert pair.edge.session.data_to_send() == []


class TestDrain:
    def test_exchanges_in_flight_finish_and_then_both_ends_close_in_good_order(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        pair.edge.session.drain(30.0, "the node is going away", pair.now)
        pair.settle()
        assert pair.agent.events[-1] == ("draining", 30.0)
        assert pair.edge.session.state is pair.agent.session.state is State.DRAINING
        pair.agent.opened[0].client.on_head(OK, True)
        pair.settle()
        assert visitor.names() == ["head"]
        assert pair.edge.events[-1] == pair.agent.events[-1] == ("closed", None)

    def test_an_exchange_that_crosses_the_drain_is_still_served(self):
        pair = Pair()
        visitor, _ = pair.edge.open()  # not flushed yet
        pair.agent.session.drain(30.0, "", pair.now)
        pair.settle()
        pair.agent.opened[0].client.on_head(OK, True)
        pair.settle()
        assert visitor.status == 200
        assert pair.edge.error is None

    def test_a_response_on_a_slow_lane_is_not_cut_by_the_close_on_a_fast_one(self):
        pair = Pair(lanes=2)
        pair.edge.session.mux._open_lane = pair.edge.session.mux.lanes[1]
        visitor, _ = pair.edge.open()
        pair.settle()
        pair.agent.session.drain(30.0, "", pair.now)
        pair.agent.opened[0].client.on_head(OK, False)
        pair.agent.opened[0].client.on_data(b"late", True)
        for _ in range(5):  # lane 0 has all the time in the world
            for end, _other in pair.ends():
                pair.flush(end)
                pair.deliver(end, 0)
        assert pair.edge.session.state is State.DRAINING
        pair.settle()
        assert visitor.body == b"late"
        assert pair.edge.error is pair.agent.error is None

    def test_nothing_is_opened_at_either_end_while_draining(self):
        pair = Pair()
        pair.edge.open()
        pair.settle()
        pair.edge.session.drain(30.0, "", pair.now)
        pair.settle()
        for end in (pair.edge, pair.agent):
            visitor, _ = end.open()
            assert isinstance(visitor.error, Draining)

    def test_an_exchange_opened_after_the_peer_answered_the_drain_is_refused(self):
        pair = Pair()
        pair.edge.open()
        pair.settle()
        pair.agent.session.drain(30.0, "", pair.now)
        pair.settle()
        pair.edge.session.mux._last_id = 1 << 30  # an exit node that does not know its manners
        visitor, _ = pair.edge.open()
        pair.settle()
        assert isinstance(visitor.error, Draining)

    def test_after_the_deadline_what_is_left_is_cut(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        pair.edge.session.drain(3.0, "", pair.now)
        pair.settle()
        assert pair.edge.session.next_timer() == pair.now + 3.0
        pair.edge.session.handle_timer(pair.now + 3.0)
        pair.settle()
        assert isinstance(visitor.error, SessionLost)
        assert isinstance(pair.agent.error, Draining)
        assert isinstance(pair.agent.opened[0].calls[-1][1], Cancelled)

    def test_an_idle_session_drains_at_once(self):
        pair = Pair()
        pair.agent.session.drain(30.0, "bye", pair.now)
        pair.settle()
        assert pair.edge.events[-1] == pair.agent.events[-1] == ("closed", None)

    def test_both_may_drain_at_the_same_time(self):
        pair = Pair()
        pair.edge.open()
        pair.settle()
        pair.agent.session.drain(30.0, "", pair.now)
        pair.edge.session.drain(30.0, "", pair.now)
        pair.settle()
        pair.agent.opened[0].client.on_head(OK, True)
        pair.settle()
        assert pair.edge.error is pair.agent.error is None

    def test_a_session_that_is_not_open_yet_closes_instead(self):
        agent = agent_alone()
        agent.session.drain(30.0, "", 1.0)
        assert agent.session.state is State.CLOSED

    @pytest.mark.parametrize("deadline", [float("nan"), -1.0, 1e9])
    def test_a_nonsensical_deadline_closes_the_session(self, deadline):
        pair = Pair()
        pair.edge.session.receive(0, encode_frame(frames.DRAIN, 0, encode_control(Drain(deadline_s=deadline))), 1.0)
        assert isinstance(pair.edge.error, ProtocolError)


class TestClose:
    def test_the_peer_learns_the_code_and_the_reason(self):
        pair = Pair()
        pair.edge.session.close(LimitExceeded("too many agents; come back later"))
        pair.settle()
        assert isinstance(pair.agent.error, LimitExceeded)
        assert str(pair.agent.error) == "too many agents; come back later"

    def test_open_exchanges_are_reset_on_both_sides_after_the_owner_heard(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        heard: list[int] = []
        visitor.on_reset = lambda error: heard.append(len(pair.edge.events))  # type: ignore[method-assign]
        pair.lose(SessionLost("gone"))
        assert pair.edge.names[-1] == "closed"
        assert heard == [len(pair.edge.events)]
        assert pair.agent.opened[0].calls[-1][0] == "reset"
        assert pair.edge.session.mux.in_flight == pair.agent.session.mux.in_flight == 0

    def test_nothing_is_opened_or_received_after_the_end(self):
        pair = Pair()
        pair.edge.session.close(None)
        visitor, _ = pair.edge.open()
        assert isinstance(visitor.error, SessionLost)
        pair.edge.session.receive(0, b"\xff" * 100, 1.0)
        pair.edge.session.handle_timer(1e9)
        pair.edge.session.close(EdgetunError("again"))
        pair.edge.session.lost(None)
        assert pair.edge.names.count("closed") == 1

    def test_a_link_that_ends_without_a_word_is_a_loss(self):
        pair = Pair()
        pair.edge.session.lost(None)
        assert isinstance(pair.edge.error, SessionLost)

    def test_frames_behind_the_one_that_closes_are_not_handled(self):
        pair = Pair()
        pair.agent.handler.at_open = lambda _: pair.agent.session.close(None)
        for _ in range(3):
            pair.edge.open()
        pair.settle()
        assert len(pair.agent.opened) == 1


class TestStates:
    def test_a_closed_session_has_no_way_out(self):
        assert not [state for state, _ in TRANSITIONS if state is State.CLOSED]

    @pytest.mark.parametrize("state", [State.CONNECTING, State.OPEN, State.DRAINING])
    @pytest.mark.parametrize("event", [Event.CLOSE_SAID, Event.CLOSE_HEARD, Event.BROKEN, Event.SILENT, Event.LOST])
    def test_every_other_state_can_end_at_any_time(self, state, event):
        assert TRANSITIONS[state, event] is State.CLOSED

    def test_what_is_not_in_the_table_is_an_error_with_both_names(self):
        session = Session(edge_alone(), edge_alone().handler, PEER, 0.0)
        with pytest.raises(SessionBroken, match="drain said while connecting"):
            session._move(Event.DRAIN_SAID)

    def test_a_control_frame_on_another_lane_closes_the_session(self):
        pair = Pair(lanes=2)
        pair.edge.session.receive(1, encode_frame(frames.DRAIN, 0, encode_control(Drain())), 1.0)
        assert "lane 0" in str(pair.edge.error)


class TestCheck:
    """Asking whether somebody is there, out of turn."""

    def opened(self, lanes: int = 1) -> Pair:
        pair = Pair(lanes=lanes)
        pair.settle()
        return pair

    def test_a_peer_that_answers_is_there(self):
        pair = self.opened()
        pair.edge.session.check(0.9, 1.0)
        pair.settle()
        assert pair.edge.names[-1] == "answered"
        assert pair.edge.session.next_timer() > 1.9
        pair.edge.session.handle_timer(2.0)
        assert pair.edge.session.state is State.OPEN

    def test_a_peer_that_does_not_answer_is_gone_when_it_should_have(self):
        pair = self.opened()
        pair.edge.session.check(0.9, 1.0)
        assert pair.edge.session.next_timer() == 1.9
        pair.edge.session.handle_timer(1.8)
        assert pair.edge.session.state is State.OPEN
        pair.edge.session.handle_timer(1.9)
        assert isinstance(pair.edge.error, SessionLost)
        assert "answered" not in pair.edge.names

    def test_a_second_question_does_not_put_the_first_ones_deadline_off(self):
        pair = self.opened()
        pair.edge.session.check(0.9, 1.0)
        pair.edge.session.check(0.9, 1.5)
        assert pair.edge.session.next_timer() == 1.9

    def test_where_every_lane_is_full_nothing_is_asked_and_the_next_answer_counts(self):
        pair = self.opened()
        pair.edge.session.mux.pause_lane(0)
        pair.edge.session.check(0.9, 1.0)
        assert pair.edge.session.next_timer() > 1.9
        pair.edge.session.mux.resume_lane(0)
        pair.edge.session.handle_timer(pair.edge.session.next_timer())
        pair.settle()
        assert pair.edge.names[-1] == "answered"

    def test_before_the_session_is_open_there_is_nothing_to_ask(self):
        edge = edge_alone()
        edge.session.check(0.9, 1.0)
        assert edge.session.data_to_send() == []
