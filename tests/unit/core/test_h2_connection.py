"""A server's and a client's connection talk to each other, and to a peer that writes frames by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.http.h1 import H1Limits
from edgetun_core.http.h2 import PREFACE, Code, Connection, H2Limits, State, Stream, render_block
from edgetun_core.http.h2.frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    build_priority_update,
    build_window_update,
    frame,
)
from edgetun_core.http.h2.states import TRANSITIONS, Event, after
from edgetun_core.http.h2.stream import TURN_FRAMES
from edgetun_core.http.message import RequestHead
from edgetun_core.http.multiplexed import build_request_fields, read_request, read_response
from support.h2_frames import GET, POST, frames_of, headers, settings

OK = render_block([(b":status", b"200")])


class Recorder(Stream):
    __slots__ = ("calls", "on_open")

    def begin(self, stream_id):
        super().begin(stream_id)
        self.calls = []

    def got_head(self, received, end):
        self.calls.append(("head", received.head, end))
        if self.connection.on_open is not None:
            self.connection.on_open(self)

    def got_body(self, data, end):
        self.calls.append(("body", data, end))

    def got_trailers(self, fields):
        self.calls.append(("trailers", fields))

    def got_broken(self, error, code):
        self.calls.append(("broken", code))

    def on_full(self):
        self.calls.append("full")

    def on_room(self):
        self.calls.append("room")


class Server(Connection[Recorder]):
    def __init__(self, limits=None, on_open=None):
        super().__init__(limits or H2Limits(), is_server=True)
        self.opened = []
        self.on_open = on_open
        self.start()
        self.data_to_send()

    recurs = True

    def read_head(self, fields):
        received = read_request(fields, b"http", H1Limits())
        received.head.recurs = self.recurs
        return received

    def make_stream(self):
        stream = Recorder(self)
        self.opened.append(stream)
        return stream

    def refuse_request(self, stream, error, end):
        stream.put_head(render_block([(b":status", b"%d" % error.status)]), True)


class Client(Connection[Recorder]):
    on_open = None

    def __init__(self, limits=None):
        super().__init__(limits or H2Limits(), is_server=False)
        self.start()

    def read_head(self, fields):
        return read_response(fields)

    def ask(self, head, end=True):
        stream = Recorder(self)
        block = render_block(build_request_fields(head, scheme=b"http", authority=b"localhost"))
        self.open_stream(stream, block, end)
        return stream


def greeted(limits=None, on_open=None) -> Server:
    """A server that has had a client's preface."""
    server = Server(limits, on_open)
    server.receive_data(PREFACE + settings())
    assert [one.kind for one in frames_of(server.data_to_send())] == [0x4]
    return server


def pair(limits=None, on_open=None):
    server, client = Server(limits, on_open), Client(limits)
    server.start()
    exchange(client, server)
    return client, server


def exchange(*ends):
    """Hands bytes over until nobody says anything more."""
    client, server = ends
    while True:
        one, other = client.data_to_send(), server.data_to_send()
        if not one and not other:
            return
        if one:
            server.receive_data(one)
        if other:
            client.receive_data(other)


HEAD = RequestHead(b"GET", b"http", b"localhost", b"/a", ((b"a", b"b"),))


def test_a_client_asks_and_a_server_answers_with_interim_head_body_and_trailers():
    client, server = pair()
    asked = client.ask(RequestHead(b"POST", b"http", b"localhost", b"/", ()), end=False)
    asked.put_body(b"que", False)
    asked.put_body(b"stion", True)
    exchange(client, server)
    (stream,) = server.opened
    assert stream.calls[0][0] == "head"
    assert [call[1:] for call in stream.calls[1:]] == [(b"que", False), (b"stion", True)]
    stream.put_interim(render_block([(b":status", b"103"), (b"link", b"x")]))
    stream.put_head(OK, False)
    stream.put_body(b"answer", False)
    stream.put_trailers(render_block([(b"grpc-status", b"0")]))
    exchange(client, server)
    assert [call[1].status for call in asked.calls[:2]] == [103, 200]
    assert asked.calls[2:] == [("body", b"answer", False), ("trailers", ((b"grpc-status", b"0"),))]
    assert not server.streams
    assert not client.streams
    assert asked.state is stream.state is State.CLOSED


def test_repeated_blocks_give_the_same_head_object_until_the_table_changes():
    server = greeted()
    server.receive_data(headers(1, *GET) + headers(3, *GET))
    one, two = (stream.calls[0][1] for stream in server.opened)
    assert one is two
    server.receive_data(frame(HEADERS, 0x5, 5, b"\x82\x86\x84\x41\x01x\x40\x01a\x01b"))
    server.receive_data(headers(7, *GET))
    assert server.opened[3].calls[0][1] == one


def test_a_block_whose_head_comes_once_is_not_kept():
    server = greeted()
    server.recurs = False
    server.receive_data(headers(1, *GET) + headers(3, *GET))
    one, two = (stream.calls[0][1] for stream in server.opened)
    assert one is not two
    server.recurs = True
    server.receive_data(headers(5, *GET) + headers(7, *GET))
    assert server.opened[2].calls[0][1] is server.opened[3].calls[0][1]


def test_a_body_leaves_within_both_windows_and_goes_on_with_updates():
    server = greeted(on_open=lambda stream: stream.put_whole(OK, b"x" * 100_000))
    server.receive_data(headers(1, *GET))

    def sent():
        return sum(len(one.payload) for one in frames_of(server.data_to_send()) if one.kind == DATA)

    assert sent() == 65_535
    server.receive_data(build_window_update(1, 10_000))
    assert sent() == 0  # the connection's window is closed
    server.receive_data(build_window_update(0, 5_000))
    assert sent() == 5_000
    server.receive_data(build_window_update(0, 1_000_000))
    assert sent() == 5_000
    server.receive_data(build_window_update(1, 1_000_000))
    (last,) = [one for one in frames_of(server.data_to_send()) if one.flags & END_STREAM] or [None]
    assert last is None or last.kind == DATA
    assert not server.streams


def test_a_smaller_initial_window_may_make_a_window_negative():
    server = greeted(on_open=lambda stream: stream.put_whole(OK, b"x" * 80_000))
    server.receive_data(headers(1, *GET))
    server.data_to_send()
    server.receive_data(settings((0x4, 100)) + build_window_update(0, 1_000_000))
    assert server.streams[1].send_window == 100 - 65_535
    server.receive_data(build_window_update(1, 65_435))
    assert [one for one in frames_of(server.data_to_send()) if one.kind == DATA] == []
    server.receive_data(build_window_update(1, 7))
    assert [len(one.payload) for one in frames_of(server.data_to_send()) if one.kind == DATA] == [7]


def test_a_writer_is_paused_at_the_bound_and_resumed_when_the_peer_takes_more():
    server = greeted(H2Limits(stream_queue_bytes=100_000))
    server.receive_data(headers(1, *GET))
    (stream,) = server.opened
    stream.put_head(OK, False)
    server.data_to_send()
    for _ in range(20):
        stream.put_body(b"x" * 10_000, False)
    assert stream.calls.count("full") == 1
    server.data_to_send()
    assert "room" not in stream.calls
    server.receive_data(build_window_update(0, 1 << 20) + build_window_update(1, 1 << 20))
    server.data_to_send()
    assert stream.calls.count("room") == 1
    assert server.queued_bytes == 0


def test_windows_are_given_back_as_bodies_are_taken_and_held_while_paused():
    limits = H2Limits(stream_window_bytes=65_535, connection_window_bytes=100_000)
    server = greeted(limits)
    server.receive_data(headers(1, *POST, end=False) + headers(3, *POST, end=False))
    one, _ = server.opened
    one.pause_receiving()
    server.receive_data(frame(DATA, 0, 1, b"x" * 16_000) * 4)
    assert frames_of(server.data_to_send()) == []
    server.receive_data(frame(DATA, 0, 3, b"x" * 16_000) * 2)
    assert frames_of(server.data_to_send()) == []
    one.resume_receiving()
    updates = [(one.stream_id, int.from_bytes(one.payload, "big")) for one in frames_of(server.data_to_send())]
    assert updates == [(0, 96_000), (1, 64_000)]


def test_a_stream_that_ends_paused_gives_the_connection_its_window_back():
    server = greeted(H2Limits(stream_window_bytes=65_535, connection_window_bytes=65_535))
    for stream_id in range(1, 41, 2):
        server.receive_data(headers(stream_id, *POST, end=False))
        server.opened[-1].pause_receiving()
        server.receive_data(frame(DATA, END_STREAM, stream_id, b"x" * 16_000))
        server.opened[-1].put_head(OK, True)
    assert server.failure is None
    assert server.receive_window + server.unreturned == 65_535


def test_while_the_transport_is_blocked_heads_wait_and_keep_their_place():
    server = greeted()
    server.receive_data(headers(1, *GET) + headers(3, *GET) + headers(5, *GET))
    server.is_blocked = True
    for stream in server.opened[:2]:
        stream.put_whole(OK, b"body")
    server.opened[2].put_head(OK, True)
    assert server.data_to_send() == b""
    server.is_blocked = False
    found = frames_of(server.data_to_send())
    assert [(one.kind, one.stream_id) for one in found] == [
        (HEADERS, 1), (HEADERS, 3), (HEADERS, 5), (DATA, 1), (DATA, 3),
    ]  # fmt: skip
    assert not server.streams


def test_a_smaller_header_table_is_confirmed_before_the_next_block():
    server = greeted(on_open=lambda stream: stream.put_head(OK, True))
    server.receive_data(settings((0x1, 0)) + headers(1, *GET) + headers(3, *GET))
    blocks = [one.payload for one in frames_of(server.data_to_send()) if one.kind == HEADERS]
    assert blocks == [b"\x20" + OK, OK]


def test_urgent_responses_go_first_and_incremental_ones_by_turns():
    server = greeted()
    asked = [
        (1, ((b"priority", b"u=5"),)),
        (3, ((b"priority", b"u=1"),)),
        (5, ((b"priority", b"u=3, i"),)),
        (7, ((b"priority", b"u=3, i"),)),
        (9, ((b"priority", b"u=1"),)),
    ]
    for stream_id, fields in asked:
        server.receive_data(headers(stream_id, *GET, *fields))
    server.send_window = 0
    for stream in server.opened:
        stream.put_whole(OK, b"x" * 30_000)
    server.data_to_send()
    server.receive_data(build_window_update(0, 1 << 20))
    order = [one.stream_id for one in frames_of(server.data_to_send()) if one.kind == DATA]
    assert order == [3, 3, 9, 9, 5, 7, 5, 7, 1, 1]


def test_a_priority_update_counts_before_and_after_its_request():
    server = greeted()
    server.receive_data(build_priority_update(3, b"u=0") + headers(1, *GET) + headers(3, *GET) + headers(5, *GET))
    server.receive_data(build_priority_update(5, b"u=1"))
    assert [stream.urgency for stream in server.opened] == [3, 0, 1]


def test_the_least_urgent_is_not_starved():
    server = greeted(H2Limits(stream_queue_bytes=1 << 30, connection_queue_bytes=1 << 30))
    server.receive_data(headers(1, *GET, (b"priority", b"u=7")) + headers(3, *GET, (b"priority", b"u=0")))
    server.receive_data(settings((0x4, 0x7FFFFFFF)) + build_window_update(0, 1 << 30))
    for stream in server.opened:
        stream.put_head(OK, False)
        stream.put_body(b"x" * 1_000_000, True)
    order = [one.stream_id for one in frames_of(server.data_to_send(10_000_000)) if one.kind == DATA]
    assert 0 < order.index(1) < 16 * TURN_FRAMES


def test_going_away_takes_two_steps_and_serves_what_crossed():
    server = greeted()
    server.receive_data(headers(1, *GET))
    server.shut_down()
    first = frames_of(server.data_to_send())
    assert [one.kind for one in first] == [GOAWAY, PING]
    assert first[0].payload[:4] == b"\x7f\xff\xff\xff"
    server.receive_data(headers(3, *GET) + frame(PING, 1, 0, first[1].payload) + headers(5, *GET))
    (second,) = frames_of(server.data_to_send())
    assert (second.kind, second.payload[:4]) == (GOAWAY, b"\0\0\0\x03")
    assert sorted(server.streams) == [1, 3]


def test_a_clients_streams_beyond_a_goaway_may_be_tried_again():
    client, _ = pair()
    one, two = client.ask(HEAD), client.ask(HEAD)
    client.receive_data(frame(GOAWAY, 0, 0, b"\0\0\0\x01" + b"\0" * 4))
    assert two.calls == [("broken", Code.REFUSED_STREAM)]
    assert one.calls == []
    assert client.open_limit == 0


def test_a_client_keeps_to_the_servers_number_of_streams():
    client, _ = pair(H2Limits(max_concurrent_streams=2))
    assert client.open_limit == 2
    client.ask(HEAD)
    client.ask(HEAD)
    assert client.open_limit == 0


def test_an_answer_to_head_may_announce_a_length():
    client, server = pair(
        on_open=lambda s: s.put_head(render_block([(b":status", b"200"), (b"content-length", b"9")]), True)
    )
    asked = client.ask(RequestHead(b"HEAD", b"http", b"localhost", b"/", ()))
    asked.expects_no_body = True
    exchange(client, server)
    assert [call[0] for call in asked.calls] == ["head"]
    asked = client.ask(HEAD)
    exchange(client, server)
    assert asked.calls == [("broken", Code.PROTOCOL_ERROR)]


def test_the_end_of_the_transport_breaks_every_stream_once():
    client, server = pair()
    client.ask(HEAD)
    client.ask(HEAD)
    exchange(client, server)
    from edgetun_core.errors import SessionLost

    server.fail(SessionLost("gone"), None)
    server.fail(SessionLost("gone"), None)
    assert [stream.calls[1:] for stream in server.opened] == [[("broken", Code.CANCEL)]] * 2
    assert server.data_to_send() == b""


def test_large_heads_go_out_in_pieces_and_are_read_in_pieces():
    client, server = pair(
        on_open=lambda s: s.put_head(render_block([(b":status", b"200"), (b"x", b"\xfe" * 40_000)]), True)
    )
    asked = client.ask(HEAD)
    exchange(client, server)
    assert asked.calls[0][1].get(b"x") == b"\xfe" * 40_000


def test_the_table_of_states_is_complete_and_nothing_leaves_closed():
    assert not any(state is State.CLOSED for state, _ in TRANSITIONS)
    with pytest.raises(ValueError, match="REMOTE_END cannot happen to a stream that is HALF_CLOSED_REMOTE"):
        after(State.HALF_CLOSED_REMOTE, Event.REMOTE_END)


@given(st.binary(max_size=400), st.integers(1, 50))
def test_no_bytes_make_a_server_raise(data, step):
    server = greeted(on_open=lambda stream: stream.put_whole(OK, b"x"))
    for at in range(0, len(data), step):
        server.receive_data(data[at : at + step])
    frames_of(server.data_to_send())


@given(
    st.lists(st.tuples(st.integers(0, 17), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=30)), max_size=12)
)
def test_no_frames_make_a_server_raise_or_count_wrongly(sequence):
    server = greeted(on_open=lambda stream: stream.put_whole(OK, b"x" * 70_000))
    server.receive_data(headers(1, *GET) + headers(3, *POST, end=False))
    for kind, flags, stream_id, payload in sequence:
        server.receive_data(frame(kind, flags, stream_id, payload))
        frames_of(server.data_to_send())
    assert server.queued_bytes == sum(stream.queued_bytes for stream in server.streams.values())
    assert all(stream.state not in (State.CLOSED, State.IDLE) for stream in server.streams.values())
    for stream in server.opened:
        assert sum(call[0] == "broken" for call in stream.calls if isinstance(call, tuple)) <= 1
