"""Exchanges over a session, as conversations: heads, bodies, ends, resets, credit, lanes, hostile frames."""

from __future__ import annotations

import pytest

from edgetun_core.errors import Cancelled, EdgetunError, LimitExceeded, ProtocolError, UpstreamTimeout
from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.wire import frames, openings
from edgetun_core.wire.frames import MAX_DATA_BYTES, SessionBroken, encode_frame
from edgetun_core.wire.heads import encode_request, encode_response, encode_trailers
from edgetun_core.wire.hello import Hello, Windows
from edgetun_core.wire.receiving import FAST_PATH_BYTES_S
from edgetun_core.wire.sending import MAX_FRESH_BYTES, MAX_PENDING_BYTES
from support.exchanges import Recorder
from support.wire import HELLO, OK, Pair, frames_in, get

KIB = 1024
WINDOW = 256 * KIB


def serve(pair: Pair, head: ResponseHead = OK, *body: bytes) -> Recorder:
    """Opens an exchange from the edge and answers it from the agent."""
    visitor, _ = pair.edge.open()
    pair.settle()
    client = pair.agent.opened[-1].client
    client.on_head(head, not body)
    for piece in body[:-1]:
        client.on_data(piece, False)
    if body:
        client.on_data(body[-1], True)
    pair.settle()
    return visitor


class TestExchange:
    def test_a_request_and_its_response_arrive_as_they_were(self):
        pair = Pair()
        head = get(b"/a?b=c", (b"accept", b"*/*"), (b"cookie", b"x=\xff"))
        visitor, _ = pair.edge.open(head)
        pair.settle()
        opened = pair.agent.opened[0]
        assert opened.head == head
        assert opened.end
        opened.client.on_interim(ResponseHead(103, ((b"link", b"</a.css>"),)))
        opened.client.on_head(OK, False)
        opened.client.on_data(b"hello ", False)
        opened.client.on_data(b"you", True)
        pair.settle()
        assert visitor.calls == [
            ("interim", 103, ((b"link", b"</a.css>"),)),
            ("head", 200, OK.fields, False),
            ("data", b"hello ", False),
            ("data", b"you", True),
        ]
        assert pair.edge.session.mux.in_flight == pair.agent.session.mux.in_flight == 0

    def test_a_small_exchange_is_one_frame_there_and_two_back(self):
        pair = Pair()
        pair.edge.open()
        assert [name for name, _, _ in frames_in(pair.on_the_way(pair.edge))] == ["HEAD+END"]
        pair.settle()
        pair.agent.opened[0].client.on_head(OK, False)
        pair.agent.opened[0].client.on_data(b"x", True)
        assert [name for name, _, _ in frames_in(pair.on_the_way(pair.agent))] == ["HEAD", "DATA+END"]

    def test_many_exchanges_leave_in_one_write(self):
        pair = Pair()
        for _ in range(100):
            pair.edge.open()
        wakes = pair.edge.wakes
        assert len(pair.edge.session.data_to_send()) == 1
        pair.edge.open()
        assert pair.edge.wakes == wakes + 1

    def test_a_request_with_a_body_and_trailers_arrives_whole(self):
        pair = Pair()
        _, sink = pair.edge.open(end=False)
        sink.send_data(b"one", False)
        sink.send_data(b"two", False)
        sink.send_trailers(((b"digest", b"abc"),))
        pair.settle()
        assert pair.agent.opened[0].calls == [
            ("data", b"one", False),
            ("data", b"two", False),
            ("trailers", ((b"digest", b"abc"),)),
        ]

    def test_response_trailers_end_the_exchange(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        client = pair.agent.opened[0].client
        client.on_head(OK, False)
        client.on_data(b"x", False)
        client.on_trailers(((b"grpc-status", b"0"),))
        pair.settle()
        assert visitor.calls[-1] == ("trailers", ((b"grpc-status", b"0"),))
        assert pair.edge.session.mux.in_flight == pair.agent.session.mux.in_flight == 0

    def test_either_end_may_open_exchanges(self):
        pair = Pair()
        from_edge, _ = pair.edge.open(get(b"/e"))
        from_agent, _ = pair.agent.open(get(b"/a"))
        pair.settle()
        pair.edge.opened[0].client.on_head(ResponseHead(201, ()), True)
        pair.agent.opened[0].client.on_head(ResponseHead(202, ()), True)
        pair.settle()
        assert (from_agent.status, from_edge.status) == (201, 202)

    def test_an_answer_within_open_is_sent_as_well(self):
        pair = Pair()
        pair.agent.handler.at_open = lambda opened: opened.client.on_head(OK, True)
        visitor, _ = pair.edge.open()
        pair.settle()
        assert visitor.status == 200

    def test_the_end_of_a_response_ends_the_exchange_and_the_rest_of_the_request_is_dropped(self):
        pair = Pair()
        visitor, sink = pair.edge.open(end=False)
        pair.settle()
        sink.send_data(b"more", False)
        pair.agent.opened[0].client.on_head(ResponseHead(413, ()), True)
        pair.settle()
        sink.send_data(b"still more", True)
        pair.settle()
        assert visitor.names() == ["head"]
        assert pair.edge.session.mux.in_flight == pair.agent.session.mux.in_flight == 0
        assert pair.edge.names[-1] == "open"

    def test_an_accepted_upgrade_carries_bytes_until_both_sides_end(self):
        pair = Pair()
        visitor, sink = pair.edge.open(get(protocol=b"websocket"), end=False)
        pair.settle()
        opened = pair.agent.opened[0]
        assert opened.head.protocol == b"websocket"
        opened.client.on_head(ResponseHead(101, ()), False)
        opened.client.on_data(b"from the origin", True)
        pair.settle()
        sink.send_data(b"from the visitor", False)
        sink.send_data(b"", True)
        pair.settle()
        assert visitor.body == b"from the origin"
        assert opened.calls == [("data", b"from the visitor", False), ("data", b"", True)]
        assert pair.edge.session.mux.in_flight == pair.agent.session.mux.in_flight == 0

    def test_a_refused_upgrade_ends_like_any_exchange(self):
        pair = Pair()
        visitor, _ = pair.edge.open(get(protocol=b"websocket"), end=False)
        pair.settle()
        pair.agent.opened[0].client.on_head(ResponseHead(403, ()), True)
        pair.settle()
        assert visitor.status == 403
        assert pair.edge.session.mux.in_flight == pair.agent.session.mux.in_flight == 0

    def test_calls_after_the_end_are_ignored(self):
        pair = Pair()
        visitor = serve(pair, OK, b"x")
        client = pair.agent.opened[0].client
        client.on_head(OK, True)
        client.on_data(b"y", True)
        client.on_trailers(())
        client.on_interim(ResponseHead(103, ()))
        client.on_reset(EdgetunError("late"))
        client.pause_request()
        client.resume_request()
        assert pair.on_the_way(pair.agent) == b""
        assert visitor.body == b"x"


class TestReset:
    def test_a_visitor_who_leaves_cancels_the_request_at_the_other_end(self):
        pair = Pair()
        visitor, sink = pair.edge.open()
        other, _ = pair.edge.open()
        pair.settle()
        sink.reset(Cancelled("the visitor left"))
        pair.settle()
        assert isinstance(pair.agent.opened[0].calls[-1][1], Cancelled)
        pair.agent.opened[1].client.on_head(OK, True)
        pair.settle()
        assert visitor.calls == []
        assert other.status == 200

    def test_a_failed_origin_reaches_the_visitor_with_its_code_and_message(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        pair.agent.opened[0].client.on_reset(UpstreamTimeout("localhost:3000 was silent for 60 s"))
        pair.settle()
        assert isinstance(visitor.error, UpstreamTimeout)
        assert str(visitor.error) == "localhost:3000 was silent for 60 s"

    def test_a_long_message_is_cut_and_not_refused(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        pair.agent.opened[0].client.on_reset(EdgetunError("é" * 4000))
        pair.settle()
        assert str(visitor.error).startswith("éé")

    def test_late_frames_of_an_exchange_that_was_reset_are_dropped(self):
        pair = Pair()
        visitor, sink = pair.edge.open()
        pair.settle()
        client = pair.agent.opened[0].client
        client.on_head(OK, False)
        for _ in range(3):
            client.on_data(b"x" * 20_000, False)
        sink.reset(Cancelled("left"))
        pair.settle()
        assert visitor.calls == []
        assert pair.edge.names[-1] == "open"
        assert pair.edge.session.mux.in_flight == pair.agent.session.mux.in_flight == 0

    def test_credit_used_by_late_frames_comes_back(self):
        pair = Pair(windows=Windows(session_window=64 * KIB))
        for _ in range(20):
            _, sink = pair.edge.open()
            pair.settle()
            client = pair.agent.opened[-1].client
            client.on_head(OK, False)
            client.on_data(bytes(30_000), False)
            pair.flush(pair.agent)
            sink.reset(Cancelled("left"))
            pair.settle()
        assert serve(pair, OK, bytes(50_000)).body == bytes(50_000)

    def test_both_ends_may_reset_at_once(self):
        pair = Pair()
        visitor, sink = pair.edge.open()
        pair.settle()
        sink.reset(Cancelled("left"))
        pair.agent.opened[0].client.on_reset(UpstreamTimeout("slow"))
        pair.settle()
        assert visitor.calls == []
        assert pair.edge.names[-1] == pair.agent.names[-1] == "open"


class TestLimits:
    def test_beyond_the_peers_limit_nothing_is_opened(self):
        pair = Pair(hello=Hello(max_exchanges=2))
        for _ in range(2):
            pair.edge.open()
        visitor, _ = pair.edge.open()
        assert isinstance(visitor.error, LimitExceeded)

    def test_a_peer_that_opens_too_many_is_refused_those_and_keeps_the_others(self):
        pair = Pair(hello=Hello(max_exchanges=2))
        pair.edge.session.mux._open_limit = 99
        visitors = [pair.edge.open(end=False) for _ in range(3)]
        visitors[2][1].send_data(b"late", True)
        pair.settle()
        assert isinstance(visitors[2][0].error, LimitExceeded)
        assert len(pair.agent.opened) == 2
        pair.agent.opened[0].client.on_head(OK, True)
        pair.settle()
        assert visitors[0][0].status == 200
        pair.edge.open()
        pair.settle()
        assert len(pair.agent.opened) == 3

    def test_a_head_that_no_frame_can_carry_resets_its_exchange_alone(self):
        pair = Pair()
        visitor, _ = pair.edge.open(get(b"/" + b"x" * 70_000))
        assert isinstance(visitor.error, LimitExceeded)
        assert isinstance(
            serve(pair, ResponseHead(200, ((b"x", bytes(70_000).replace(b"\0", b"x")),))).error, LimitExceeded
        )

    def test_endless_interim_heads_are_cut(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        for _ in range(100):
            pair.agent.opened[0].client.on_interim(ResponseHead(103, ()))
        pair.settle()
        assert isinstance(visitor.error, ProtocolError)
        assert pair.edge.names[-1] == "open"

    def test_when_the_ids_are_used_up_the_session_drains(self):
        pair = Pair()
        session = pair.edge.session
        session.mux._next_id = session.mux._last_id + 2
        visitor, _ = pair.edge.open()
        assert visitor.error.presentation.label == "draining"
        assert pair.edge.names[-1] == "draining"


class TestCredit:
    def body(self, size: int) -> bytes:
        return bytes(range(256)) * (size // 256)

    def test_a_body_larger_than_every_window_arrives_whole_and_in_order(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        client = pair.agent.opened[0].client
        client.on_head(OK, False)
        body = self.body(20 * 1024 * KIB)
        client.on_data(body, True)
        pair.settle()
        assert visitor.body == body

    def test_exchanges_that_wait_for_the_sessions_credit_take_turns_as_often_as_needed(self):
        pair = Pair(windows=Windows(session_window=64 * KIB))
        visitors = [pair.edge.open()[0] for _ in range(3)]
        pair.settle()
        body = self.body(400 * KIB)
        for opened in pair.agent.opened:
            opened.client.on_head(OK, False)
            opened.client.on_data(body, True)
        pair.settle()
        assert [visitor.body == body for visitor in visitors] == [True] * 3

    def test_a_slow_reader_stops_the_sender_at_the_window(self):
        pair = Pair()
        _, sink = pair.edge.open()
        pair.settle()
        opened = pair.agent.opened[0]
        opened.client.on_head(OK, False)
        pair.settle()
        sink.pause_response()
        sent = 0
        while ("pause",) not in opened.calls:
            opened.client.on_data(bytes(16 * KIB), False)
            sent += 16 * KIB
            pair.settle()
        assert sent == WINDOW
        sink.resume_response()
        pair.settle()
        assert opened.calls == [("pause",), ("resume",)]

    def test_a_slow_origin_stops_the_visitors_upload(self):
        pair = Pair()
        visitor, sink = pair.edge.open(end=False)
        pair.settle()
        pair.agent.opened[0].client.pause_request()
        for _ in range(16):
            sink.send_data(bytes(16 * KIB), False)
        pair.settle()
        assert visitor.names() == ["pause"]
        pair.agent.opened[0].client.resume_request()
        pair.settle()
        assert visitor.names() == ["pause", "resume"]

    def test_one_read_beyond_the_pause_is_kept_and_sent_later(self):
        pair = Pair()
        _visitor, sink = pair.edge.open(end=False)
        pair.settle()
        opened = pair.agent.opened[0]
        opened.client.pause_request()
        sink.send_data(bytes(WINDOW), False)
        sink.send_data(b"y" * MAX_DATA_BYTES, True)
        pair.settle()
        assert sum(len(call[1]) for call in opened.calls) == WINDOW
        opened.client.resume_request()
        pair.settle()
        assert sum(len(call[1]) for call in opened.calls) == WINDOW + MAX_DATA_BYTES
        assert opened.calls[-1][2]

    def test_a_producer_that_never_stops_is_reset(self):
        pair = Pair()
        visitor, sink = pair.edge.open(end=False)
        pair.settle()
        pair.agent.opened[0].client.pause_request()
        pushed = 0
        while "reset" not in visitor.names():
            sink.send_data(bytes(MAX_DATA_BYTES), False)
            pushed += MAX_DATA_BYTES
            assert pushed <= WINDOW + MAX_PENDING_BYTES + MAX_DATA_BYTES
        pair.settle()
        assert isinstance(visitor.error, LimitExceeded)
        assert isinstance(pair.agent.opened[0].calls[-1][1], LimitExceeded)

    def test_trailers_wait_for_the_data_before_them(self):
        pair = Pair()
        _, sink = pair.edge.open(end=False)
        pair.settle()
        opened = pair.agent.opened[0]
        opened.client.pause_request()
        sink.send_data(bytes(WINDOW + 5), False)
        sink.send_trailers(((b"a", b"b"),))
        pair.settle()
        assert opened.calls[-1][0] == "data"
        opened.client.resume_request()
        pair.settle()
        assert opened.calls[-1] == ("trailers", ((b"a", b"b"),))

    def test_the_sessions_credit_bounds_all_exchanges_together_and_all_of_them_resume(self):
        pair = Pair(windows=Windows(session_window=512 * KIB))
        pair.edge.session.mux.max_parked = 0
        visitors = [pair.edge.open() for _ in range(10)]
        pair.settle()
        for _, sink in visitors:
            sink.pause_response()
        for opened in pair.agent.opened:
            opened.client.on_head(OK, False)
            opened.client.on_data(bytes(100 * KIB), False)
        pair.settle()
        arrived = sum(len(visitor.body) for visitor, _ in visitors)
        assert arrived <= 512 * KIB
        for _, sink in visitors:
            sink.resume_response()
            pair.settle()
        assert [len(visitor.body) for visitor, _ in visitors] == [100 * KIB] * 10

    def test_slow_readers_do_not_stall_the_others_of_the_session(self):
        pair = Pair(windows=Windows(session_window=512 * KIB))
        for _ in range(20):
            _, sink = pair.edge.open()
            pair.settle()
            sink.pause_response()
            opened = pair.agent.opened[-1]
            opened.client.on_head(OK, False)
            opened.client.on_data(bytes(300 * KIB), True)
            pair.settle()
        assert serve(pair, OK, bytes(300 * KIB)).body == bytes(300 * KIB)

    @pytest.mark.parametrize(("rtt_s", "bound"), [(0.1, 8 * 1024 * KIB), (0.005, 2 * 1024 * KIB)])
    def test_the_window_widens_on_a_path_that_drains_it_fast_and_never_beyond_its_bound(self, rtt_s, bound):
        pair = Pair()
        pair.edge.session.mux.rtt_s = rtt_s
        _visitor, _ = pair.edge.open()
        pair.settle()
        client = pair.agent.opened[0].client
        client.on_head(OK, False)
        for _ in range(400):
            client.on_data(bytes(MAX_DATA_BYTES), False)
            pair.now += 0.001
            pair.settle()
        exchange = next(iter(pair.edge.session.mux.exchanges.values()))
        assert exchange.flow.window == bound

    def test_on_a_long_path_the_first_credit_widens_and_the_one_after_a_pause_does_not(self):
        pair = Pair()
        pair.edge.session.mux.rtt_s = 0.2
        _visitor, sink = pair.edge.open()
        pair.settle()
        client = pair.agent.opened[0].client
        client.on_head(OK, False)

        def send(size: int) -> int:
            for _ in range(size // MAX_DATA_BYTES + 1):
                client.on_data(bytes(MAX_DATA_BYTES), False)
                pair.now += 0.0001
                pair.settle()
            return next(iter(pair.edge.session.mux.exchanges.values())).flow.window

        wider = int(0.2 * FAST_PATH_BYTES_S)  # what the path may carry in a round trip
        assert send(WINDOW // 2) == wider > 4 * WINDOW
        sink.pause_response()
        send(wider)
        sink.resume_response()
        assert send(0) == wider

    def test_a_source_that_is_read_many_times_in_a_tick_puts_a_bounded_piece_on_its_lane(self):
        """A socket may be read so often before the link is asked whether it takes more."""
        pair = Pair(windows=Windows(exchange_window=8 * 1024 * KIB))
        visitor, _ = pair.edge.open()
        pair.settle()
        opened = pair.agent.opened[0]
        opened.client.on_head(OK, False)
        sent = 0
        while ("pause",) not in opened.calls:
            opened.client.on_data(bytes(MAX_DATA_BYTES), False)
            sent += MAX_DATA_BYTES
        assert MAX_FRESH_BYTES < sent <= MAX_FRESH_BYTES + 2 * MAX_DATA_BYTES
        pair.settle()  # the link takes it, so the source goes on
        assert opened.calls == [("pause",), ("resume",)]
        assert len(visitor.body) == sent

    def test_a_lane_that_the_link_pauses_is_not_taken_up_again_by_the_flush(self):
        pair = Pair(windows=Windows(exchange_window=8 * 1024 * KIB))
        visitor, _ = pair.edge.open()
        pair.settle()
        opened, mux = pair.agent.opened[0], pair.agent.session.mux
        opened.client.on_head(OK, False)
        opened.client.on_data(bytes(4 * 1024 * KIB), False)
        assert sum(len(data) for _, data in pair.agent.session.data_to_send()) < MAX_FRESH_BYTES + 2 * MAX_DATA_BYTES
        mux.pause_lane(0)
        pair.agent.session.flushed()
        assert pair.agent.session.data_to_send() == []
        mux.resume_lane(0)
        assert pair.agent.session.data_to_send()
        assert not visitor.body

    def test_the_window_stays_where_the_reader_is_the_slow_one(self):
        pair = Pair()
        pair.edge.session.mux.rtt_s = 0.01
        pair.edge.open()
        pair.settle()
        client = pair.agent.opened[0].client
        client.on_head(OK, False)
        for _ in range(100):
            client.on_data(bytes(MAX_DATA_BYTES), False)
            pair.now += 0.1
            pair.settle()
        exchange = next(iter(pair.edge.session.mux.exchanges.values()))
        assert exchange.flow.window == WINDOW

    @pytest.mark.parametrize("size", [16 * KIB - 1, 16 * KIB, MAX_DATA_BYTES])
    def test_a_peer_that_exceeds_its_credit_closes_the_session(self, size):
        pair = Pair()
        pair.edge.open(end=False)
        pair.settle()
        frame = encode_frame(frames.DATA, 2, bytes(size))
        pair.agent.opened[0].client.pause_request()
        for _ in range(WINDOW // size):
            pair.agent.session.receive(0, frame, 1.0)
        assert pair.agent.names[-1] == "open"
        for _ in range(2):
            pair.agent.session.receive(0, frame, 1.0)
        assert "credit of exchange 2" in str(pair.agent.error)

    def test_a_peer_that_exceeds_the_sessions_credit_closes_it(self):
        pair = Pair(hello=Hello(session_window=100 * KIB))
        pair.agent.session.mux.held = 1 << 40
        for number in range(2, 12, 2):
            pair.edge.open(end=False)
            pair.settle()
            pair.agent.session.receive(0, encode_frame(frames.DATA, number, bytes(30 * KIB)), 1.0)
        assert "credit of the session" in str(pair.agent.error)

    def test_a_paused_lane_pauses_producers_and_resumes_them(self):
        pair = Pair()
        pair.edge.open()
        pair.settle()
        opened = pair.agent.opened[0]
        opened.client.on_head(OK, False)
        pair.agent.session.mux.pause_lane(0)
        opened.client.on_data(b"x", False)
        opened.client.on_data(b"y", False)
        assert opened.calls == [("pause",)]
        pair.agent.session.mux.resume_lane(0)
        assert opened.calls == [("pause",), ("resume",)]
        opened.client.on_data(b"z", True)
        pair.settle()
        assert pair.edge.session.mux.in_flight == 0

    def test_a_pause_within_open_reaches_the_sink_that_open_returns(self):
        pair = Pair()

        def answer(opened):
            opened.client.on_head(OK, False)
            opened.client.on_data(bytes(WINDOW), False)

        pair.agent.handler.at_open = answer
        pair.edge.open()
        pair.flush(pair.edge)
        pair.deliver(pair.edge, 0)
        assert pair.agent.opened[0].calls == [("pause",)]


class TestLanes:
    def test_exchanges_spread_over_the_regular_lanes_and_answers_stay_on_theirs(self):
        pair = Pair(lanes=6, bulk_from=4)
        for _ in range(8):
            pair.edge.open()
            pair.settle()
        used = [lane.load for lane in pair.edge.session.mux.lanes]
        assert used == [2, 2, 2, 2, 0, 0]
        before = {lane: pair.sent.get(("agent", lane), 0) for lane in range(4)}
        for opened in pair.agent.opened:
            opened.client.on_head(OK, True)
        pair.settle()
        assert all(pair.sent["agent", lane] > before[lane] for lane in range(4))
        assert [lane.load for lane in pair.edge.session.mux.lanes] == [0] * 6

    def test_a_paused_lane_takes_no_new_exchanges_while_there_is_another(self):
        pair = Pair(lanes=2)
        pair.edge.session.mux.pause_lane(0)
        for _ in range(100):
            pair.edge.open()
        assert pair.edge.session.mux.lanes[0].load == 0

    def test_a_large_announced_body_moves_to_a_bulk_lane_with_its_first_byte(self):
        pair = Pair(lanes=3, bulk_from=2)
        visitor, _ = pair.edge.open()
        pair.settle()
        client = pair.agent.opened[0].client
        client.on_head(ResponseHead(200, ((b"content-length", b"300000"),)), False)
        client.on_data(bytes(1000), False)
        assert [name for name, _, _ in frames_in(pair.on_the_way(pair.agent))] == ["HEAD", "MOVE"]
        assert [name for name, _, _ in frames_in(pair.on_the_way(pair.agent, 2))] == ["DATA"]
        client.on_data(bytes(299_000), True)
        pair.settle()
        assert len(visitor.body) == 300_000
        assert [lane.load for lane in pair.agent.session.mux.lanes] == [0, 0, 0]

    def test_an_unannounced_body_moves_when_it_turns_out_large(self):
        pair = Pair(lanes=3, bulk_from=2)
        _visitor, sink = pair.edge.open(end=False)
        for _ in range(10):
            sink.send_data(bytes(50_000), False)
            pair.settle()
        assert pair.sent["edge", 2] > 200_000
        assert sum(len(call[1]) for call in pair.agent.opened[0].calls) == 500_000

    def test_frames_that_overtake_their_move_wait_for_it(self):
        pair = Pair(lanes=2, bulk_from=1)
        visitor, _ = pair.edge.open()
        pair.settle()
        client = pair.agent.opened[0].client
        client.on_head(ResponseHead(200, ((b"content-length", b"262145"),)), False)
        client.on_data(b"a" * 100, False)
        client.on_data(b"b" * 30_000, False)
        client.on_data(b"c" * 100, True)
        pair.flush(pair.agent)
        pair.deliver(pair.agent, 1)
        assert visitor.calls == []
        pair.deliver(pair.agent, 0)
        assert visitor.names() == ["head", "data"]
        assert visitor.body == b"a" * 100 + b"b" * 30_000 + b"c" * 100
        assert pair.edge.session.mux.early_bytes == 0

    def test_data_that_overtakes_the_head_of_its_exchange_waits_for_it(self):
        pair = Pair(lanes=2, bulk_from=1)
        head = RequestHead(b"PUT", b"https", b"h", b"/", ((b"content-length", b"300000"),), None, "a/b")
        _, sink = pair.edge.open(head, end=False)
        for _ in range(10):
            sink.send_data(bytes(20_000), False)
        sink.send_trailers(((b"x", b"y"),))
        pair.flush(pair.edge)
        while pair.deliver(pair.edge, 1, 7777):
            pass
        assert pair.agent.opened == []
        assert pair.agent.session.mux.early_bytes == 200_000
        pair.deliver(pair.edge, 0)
        calls = pair.agent.opened[0].calls
        assert sum(len(call[1]) for call in calls if call[0] == "data") == 200_000
        assert calls[-1] == ("trailers", ((b"x", b"y"),))
        assert pair.agent.session.mux.early_bytes == 0

    def test_a_reset_that_overtakes_the_head_leaves_no_orphan(self):
        pair = Pair(lanes=2, bulk_from=1)
        head = RequestHead(b"PUT", b"https", b"h", b"/", ((b"content-length", b"300000"),), None, "a/b")
        _, sink = pair.edge.open(head, end=False)
        sink.send_data(bytes(20_000), False)
        sink.reset(Cancelled("left"))
        pair.flush(pair.edge)
        pair.deliver(pair.edge, 1)
        pair.settle()
        assert pair.agent.opened == []
        assert pair.agent.session.mux.in_flight == 0
        assert pair.agent.session.mux.early_bytes == 0
        assert pair.agent.names[-1] == "open"

    def test_ids_may_arrive_out_of_order_on_lanes_of_their_own(self):
        pair = Pair(lanes=3)
        for lane in (0, 1, 2):
            pair.edge.session.mux._open_lane = pair.edge.session.mux.lanes[lane]
            pair.edge.open(get(b"/%d" % lane))
        pair.flush(pair.edge)
        for lane in (2, 1, 0):
            pair.deliver(pair.edge, lane)
        assert [opened.head.target for opened in pair.agent.opened] == [b"/2", b"/1", b"/0"]
        assert pair.agent.session.mux._openings.ahead == set()
        assert pair.agent.session.mux.served_total == 3

    def test_without_a_bulk_lane_nothing_moves(self):
        pair = Pair(lanes=2)
        visitor = serve(pair, ResponseHead(200, ((b"content-length", b"600000"),)), bytes(600_000))
        assert len(visitor.body) == 600_000
        assert all(pair.sent.get((name, lane), 0) < 600_000 or lane < 2 for name in ("agent",) for lane in range(3))


class TestHostile:
    """Every one of these closes one session, with a reason, and nothing else."""

    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            (encode_frame(0x17, 2, b""), "unknown kind 0x17"),
            (encode_frame(0x08, 0, b""), "unknown kind 0x08"),
            (encode_frame(0x92 ^ 0x01, 2, b""), "unknown kind 0x93"),
            (encode_frame(0xFF, 2, b""), "unknown kind 0xff"),
            ((frames.WORD_HEAD | 65_537).to_bytes(4, "big") + bytes(4), "HEAD of 65537 bytes"),
            ((frames.WORD_DATA | 0xFFFFFF).to_bytes(4, "big") + bytes(4), "DATA of 16777215 bytes"),
            ((frames.PING << 24 | 65).to_bytes(4, "big") + bytes(4), "PING of 65 bytes"),
            ((frames.WORD_CREDIT | 5).to_bytes(4, "big") + bytes(4), "CREDIT of 5 bytes"),
            (encode_frame(frames.CREDIT, 2, bytes(4)), "CREDIT without an amount"),
            (encode_frame(frames.CREDIT, 2, b"\x01"), "CREDIT without an amount"),
            (encode_frame(frames.CREDIT, 0, b"\x7f\xff\xff\xff") * 2, "adds up to more"),
            (encode_frame(frames.CREDIT, 2, b"\x7f\xff\xff\xff") * 2, "adds up to more"),
            (encode_frame(frames.RESET, 2, b"\x01"), "RESET of 1 bytes"),
            (encode_frame(frames.MOVE, 2, b"\x01"), "MOVE of 1 bytes"),
            (encode_frame(frames.MOVE, 2, (1).to_bytes(4, "big")), "MOVE to lane 1 out of place"),
            (encode_frame(frames.DATA, 2, b"x"), "DATA before HEAD"),
            (encode_frame(frames.DATA, 2, bytes(20_000)), "DATA before HEAD"),
            (encode_frame(frames.TRAILERS, 2, b"\x90"), "TRAILERS before HEAD"),
            (encode_frame(frames.DATA, 4, b"x"), "exchange 4, which was never opened"),
            (encode_frame(frames.HEAD, 4, encode_response(OK)), "exchange 4, which was never opened"),
            (encode_frame(frames.RESET, 4, b"\0\0"), "exchange 4, which was never opened"),
            (encode_frame(frames.CREDIT, 4, b"\0\0\0\1"), "exchange 4, which was never opened"),
            (encode_frame(frames.DATA, 0, b"x"), "without its number"),
            (encode_frame(frames.HEAD, 0, encode_request(get())), "exchange 0"),
            (encode_frame(frames.PING, 2, b"x"), "belongs to the session"),
            (encode_frame(frames.WELCOME, 0, b"\x80"), "WELCOME while open"),
            (encode_frame(frames.CLOSE, 0, b"\xc1"), "cannot be read"),
            (encode_frame(frames.HEAD, 2, encode_response(OK)) * 2, "a second HEAD"),
            (encode_frame(frames.HEAD, 2, encode_response(OK)) + encode_frame(frames.DATA, 2, b""), "empty DATA"),
            (
                encode_frame(frames.HEAD, 2, encode_response(OK))
                + encode_frame(frames.MOVE, 2, (64).to_bytes(4, "big")),
                "lane 64",
            ),
            (encode_frame(frames.HEAD, 2, encode_response(OK)) + encode_frame(frames.INTERIM, 2, b""), "INTERIM out"),
            (encode_frame(frames.HEAD_END, 1, encode_request(get())) * 2, "HEAD after its end|opened twice"),
            (
                encode_frame(frames.HEAD, 1, encode_request(get())) + encode_frame(frames.INTERIM, 1, b""),
                "in a request",
            ),
            (
                encode_frame(frames.HEAD_END, 1, encode_request(get())) + encode_frame(frames.DATA, 1, b"x"),
                "DATA after the end",
            ),
        ],
    )
    @pytest.mark.parametrize("by_byte", [False, True], ids=["whole", "by byte"])
    def test_a_broken_frame_closes_the_session_with_a_reason(self, frame, reason, by_byte):
        pair = Pair()
        visitor, _ = pair.edge.open(end=False)
        pair.flush(pair.edge)
        for piece in [frame[at : at + 1] for at in range(len(frame))] if by_byte else [frame]:
            pair.edge.session.receive(0, piece, 1.0)
        assert isinstance(pair.edge.error, SessionBroken)
        assert any(part in str(pair.edge.error) for part in reason.split("|"))
        assert visitor.names()[-1] == "reset"
        assert pair.edge.bugs == []

    def test_frames_of_a_later_version_that_may_be_ignored_are(self):
        pair = Pair()
        for kind in (0x41, 0x5F):
            pair.edge.session.receive(0, encode_frame(kind, 7, b"later"), 1.0)
        assert serve(pair, OK, b"x").body == b"x"

    @pytest.mark.parametrize(
        "head",
        [
            RequestHead(b"GE T", b"https", b"h", b"/", ()),
            RequestHead(b"", b"https", b"h", b"/", ()),
            RequestHead(b"GET", b"ftp", b"h", b"/", ()),
            RequestHead(b"GET", b"https", b"h h", b"/", ()),
            RequestHead(b"GET", b"https", b"h\r\nx: y", b"/", ()),
            RequestHead(b"GET", b"https", b"h/x", b"/", ()),
            RequestHead(b"GET", b"https", b"h", b"/ HTTP/1.1\r\n", ()),
            RequestHead(b"GET", b"https", b"h", b"", ()),
            RequestHead(b"GET", b"https", b"h", b"http://x/", ()),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"X-Upper", b"1"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"", b"1"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"a:b", b"1"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"a", b"1\r\nb: 2"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"a", b"\0"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"connection", b"close"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"transfer-encoding", b"chunked"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"host", b"other"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"te", b"gzip"),)),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"content-length", b"1"), (b"content-length", b"2"))),
            RequestHead(b"GET", b"https", b"h", b"/", ((b"content-length", b"+1"),)),
            RequestHead(b"GET", b"https", b"h", b"/", (), b"web socket"),
            RequestHead(b"GET", b"https", b"h", b"/", (), None, "a b"),
        ],
    )
    def test_a_bad_request_head_resets_its_exchange_alone(self, head):
        pair = Pair()
        visitor, _ = pair.edge.open(head)
        pair.settle()
        assert isinstance(visitor.error, ProtocolError)
        assert pair.agent.opened == []
        assert serve(pair, OK, b"fine").body == b"fine"

    @pytest.mark.parametrize(
        "head",
        [
            ResponseHead(99, ()),
            ResponseHead(600, ()),
            ResponseHead(-200, ()),
            ResponseHead(101, ()),
            ResponseHead(103, ()),
            ResponseHead(200, ((b"set-cookie", b"a\nb"),)),
            ResponseHead(200, ((b"Server", b"x"),)),
            ResponseHead(200, ((b"keep-alive", b"x"),)),
            ResponseHead(200, (*tuple((b"x", b"y") for _ in range(200)), (b"z", b""))),
        ],
    )
    def test_a_bad_response_head_resets_its_exchange_alone(self, head):
        pair = Pair()
        other, _ = pair.edge.open()
        visitor, _ = pair.edge.open()
        pair.settle()
        pair.agent.opened[1].client.on_head(head, True)
        pair.agent.opened[0].client.on_head(OK, True)
        pair.settle()
        assert visitor.error.presentation.label in ("protocol", "limit")
        assert other.status == 200

    def test_bad_trailers_reset_their_exchange_alone(self):
        pair = Pair()
        visitor, _ = pair.edge.open()
        pair.settle()
        pair.agent.opened[0].client.on_head(OK, False)
        pair.agent.opened[0].client.on_trailers(((b"content-length", b"5"),))
        pair.settle()
        assert isinstance(visitor.error, ProtocolError)
        assert pair.edge.names[-1] == "open"

    def test_ids_that_are_left_out_for_ever_close_the_session(self, monkeypatch):
        monkeypatch.setattr(openings, "MAX_IDS_AHEAD", 50)
        pair = Pair()
        block = encode_request(get())
        for number in range(4, 200, 2):
            pair.agent.session.receive(0, encode_frame(frames.HEAD_END, number, block), 1.0)
        assert "never came" in str(pair.agent.error)

    def test_frames_before_their_heads_are_bounded_in_number_and_bytes(self):
        pair = Pair(lanes=2, bulk_from=1)
        for number in range(4, 4000, 2):
            pair.agent.session.receive(1, encode_frame(frames.RESET, number, b"\0\0"), 1.0)
        assert "before their HEAD" in str(pair.agent.error)

        pair = Pair(lanes=2, bulk_from=1)
        for number in range(4, 4000, 2):
            pair.agent.session.receive(1, encode_frame(frames.DATA, number, bytes(60_000)), 1.0)
        assert "credit of the session" in str(pair.agent.error)

    def test_trailers_before_their_move_are_bounded(self):
        pair = Pair(lanes=2, bulk_from=1)
        block = encode_trailers(((b"x", b"y" * 60_000),))
        for number in range(4, 4000, 2):
            pair.agent.session.receive(1, encode_frame(frames.TRAILERS, number, block), 1.0)
        assert "trailers" in str(pair.agent.error)

    def test_a_peer_that_is_refused_without_end_and_does_not_read_is_given_up(self):
        pair = Pair(hello=Hello(max_exchanges=0))
        pair.agent.session.mux.pause_lane(0)
        block = encode_request(get())
        for number in range(2, 30_000, 2):
            pair.agent.session.receive(0, encode_frame(frames.HEAD_END, number, block), 1.0)
        assert "does not read" in str(pair.agent.error)

    @pytest.mark.parametrize("where", ["open", "data", "head"])
    def test_a_bug_in_a_handler_resets_its_exchange_and_is_reported(self, where):
        pair = Pair()

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        visitor, sink = pair.edge.open(end=False)
        other, _ = pair.edge.open()
        if where == "open":
            pair.agent.handler.at_open = lambda opened: fail() if not opened.end else None
        pair.flush(pair.edge)
        pair.deliver(pair.edge, 0)
        if where == "data":
            pair.agent.opened[0].send_data = fail  # type: ignore[method-assign]
            next(iter(pair.agent.session.mux.exchanges.values())).take = fail
            sink.send_data(b"x", False)
        if where == "head":
            visitor.on_head = fail  # type: ignore[method-assign]
            pair.agent.opened[0].client.on_head(OK, False)
        pair.settle()
        assert [type(bug) for bug in (pair.edge if where == "head" else pair.agent).bugs] == [ZeroDivisionError]
        assert visitor.names()[-1] == "reset"
        pair.agent.opened[1].client.on_head(OK, True)
        pair.settle()
        assert other.status == 200
        assert HELLO.agent_id == pair.edge.session.hello.agent_id
