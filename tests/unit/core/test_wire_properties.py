"""What holds for the wire whatever happens: any split of the bytes, any order of events, any garbage."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgetun_core.errors import Cancelled, EdgetunError
from edgetun_core.http.exchange import RequestSink
from edgetun_core.http.message import Fields, RequestHead, ResponseHead
from edgetun_core.wire import frames
from edgetun_core.wire.frames import MAX_DATA_BYTES, encode_frame, encode_reset
from edgetun_core.wire.heads import (
    decode_request,
    decode_response,
    decode_trailers,
    encode_request,
    encode_response,
    encode_trailers,
)
from edgetun_core.wire.hello import Hello, Windows
from edgetun_core.wire.sending import MAX_PENDING_BYTES
from edgetun_core.wire.states import State
from support.exchanges import Opened, Recorder
from support.wire import OK, End, Pair, frames_in, get

# --- any split of the bytes

SIZES = st.sampled_from([1, 7, 100, 4_000, 16_383, 16_384, 20_000, 65_536])


@st.composite
def scripts(draw: st.DrawFn) -> list[bytes]:
    """Frames an exit node may send on one lane, some of them wrong."""
    script: list[bytes] = []
    number = 2
    for _ in range(draw(st.integers(1, 12))):
        what = draw(st.sampled_from(["request", "upload", "upload", "ping", "later", "reset", "wrong"]))
        if what == "request":
            script.append(encode_frame(frames.HEAD_END, number, encode_request(get(b"/%d" % number))))
            number += 2
        elif what == "upload":
            script.append(encode_frame(frames.HEAD, number, encode_request(get(b"/%d" % number))))
            script += [
                encode_frame(frames.DATA, number, random.Random(size).randbytes(size))
                for size in draw(st.lists(SIZES, max_size=3))
            ]
            script.append(
                draw(
                    st.sampled_from(
                        [
                            encode_frame(frames.DATA_END, number, b""),
                            encode_frame(frames.DATA_END, number, b"e" * 30_000),
                            encode_frame(frames.TRAILERS, number, encode_trailers(((b"a", b"b"),))),
                            encode_reset(number, Cancelled("left")),
                        ]
                    )
                )
            )
            number += 2
        elif what == "ping":
            script.append(encode_frame(frames.PING, 0, b"12345678"))
        elif what == "later":
            script.append(encode_frame(0x50, 3, b"?" * draw(SIZES)))
        elif what == "reset" and number > 2:
            script.append(encode_reset(number - 2, Cancelled("left")))
        elif what == "wrong":
            script.append(
                draw(
                    st.sampled_from(
                        [
                            encode_frame(frames.DATA, number, b"x"),
                            encode_frame(0x33, 0, b""),
                            encode_frame(frames.HEAD, number, b"\xc1"),
                            encode_frame(frames.MOVE, max(number - 2, 2), b"\0\0\0\1"),
                            b"\xff" * 9,
                        ]
                    )
                )
            )
            number += 2
    return script


def joined(calls: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Calls with neighbouring data made one: how a body is cut is nobody's business."""
    result: list[tuple[object, ...]] = []
    for call in calls:
        if call[0] == "data" and result and result[-1][0] == "data":
            call = ("data", result.pop()[1] + call[1], call[2])  # type: ignore[operator]
        if call[0] == "reset":
            call = ("reset", type(call[1]), str(call[1]))
        result.append(call)
    return result


def what_happens(pieces: list[bytes]) -> tuple[object, ...]:
    pair = Pair()
    pair.agent.session.data_to_send()
    for piece in pieces:
        pair.agent.session.receive(0, piece, 1.0)
    sent = [frame for _, data in pair.agent.session.data_to_send() for frame in frames_in(data)]
    return (
        [(opened.head, opened.end, joined(opened.calls)) for opened in pair.agent.opened],
        [(name, str(value)) for name, value in pair.agent.events],
        sent,
        pair.agent.bugs,
    )


def cut(data: bytes, places: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scripts(), st.lists(st.integers(0, 1 << 20), max_size=30))
def test_any_split_of_the_bytes_yields_the_same_calls(script: list[bytes], places: list[int]):
    data = b"".join(script)
    assert what_happens(cut(data, places)) == what_happens([data])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scripts(), st.integers(1, 9))
def test_a_trickle_of_bytes_yields_the_same_calls(script: list[bytes], size: int):
    data = b"".join(script)
    assume(len(data) < 50_000)
    assert what_happens([data[at : at + size] for at in range(0, len(data), size)]) == what_happens([data])


# --- any heads

TOKENS = st.binary(min_size=1, max_size=12).map(lambda raw: bytes(b"abcdefghijklmnop-_19"[byte % 20] for byte in raw))
VALUES = st.binary(max_size=40).map(lambda raw: raw.translate(None, b"\r\n\0"))
FIELDS = st.lists(st.tuples(TOKENS.map(lambda name: b"x-" + name), VALUES), max_size=10).map(tuple)


@given(TOKENS, TOKENS, FIELDS, st.none() | TOKENS)
def test_request_heads_arrive_as_they_were(method: bytes, host: bytes, fields: Fields, protocol: bytes | None):
    head = RequestHead(method, b"http", host, b"/" + host, fields, protocol, "a/b")
    assert decode_request(encode_request(head)) == head


@given(st.integers(100, 599), FIELDS)
def test_response_heads_arrive_as_they_were(status: int, fields: Fields):
    head = ResponseHead(status, fields)
    assert decode_response(encode_response(head)) == head
    assert decode_trailers(encode_trailers(fields)) == fields


@settings(max_examples=300)
@given(st.binary(max_size=200), st.data())
def test_no_block_is_read_as_a_head_that_breaks_http(noise: bytes, data: st.DataObject):
    block = bytearray(encode_request(get(b"/x", (b"accept", b"*/*"), (b"x-a", b"b"))))
    at = data.draw(st.integers(0, len(block)))
    block[at : at + data.draw(st.integers(0, 5))] = noise[: data.draw(st.integers(0, 5))]
    for candidate in (bytes(block), noise):
        try:
            head = decode_request(candidate)
        except EdgetunError:
            continue
        text = b" ".join((head.method, head.authority, head.target, *(part for pair in head.fields for part in pair)))
        assert not {0, 10, 13} & set(text)
        assert b" " not in head.method + head.authority + head.target


# --- any garbage


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=80)), max_size=20))
def test_random_bytes_never_raise(garbage: list[tuple[int, bytes]]):
    pair = Pair(lanes=3, bulk_from=2)
    visitor, _ = pair.edge.open(end=False)
    for lane, data in garbage:
        pair.edge.session.receive(lane, data, 1.0)
    assert pair.edge.bugs == []
    assert pair.edge.session.state is State.OPEN or visitor.names()[-1] == "reset"


@settings(max_examples=200, deadline=None)
@given(scripts(), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutated_frames_never_raise(script: list[bytes], mutations: list[tuple[int, int]]):
    data = bytearray(b"".join(script) or bytes(8))
    for place, value in mutations:
        data[place % len(data)] = value
    pair = Pair()
    pair.agent.session.receive(0, bytes(data), 1.0)
    assert pair.agent.bugs == []
    if pair.agent.session.state is State.CLOSED:
        assert str(pair.agent.error)
        assert pair.agent.session.mux.in_flight == 0


# --- any order of events


@dataclass
class Talk:
    """One exchange and what each side has pushed so far."""

    opener: End
    visitor: Recorder
    sink: RequestSink
    answer: Opened | None = None
    request: bytearray = field(default_factory=bytearray)
    response: bytearray = field(default_factory=bytearray)
    request_ended: bool = False
    response_begun: bool = False
    response_ended: bool = False
    is_reset: bool = False
    number: int = 0


BIG = ResponseHead(200, ((b"content-length", b"9999999"),))
WINDOWS = Windows(exchange_window=40_000, session_window=150_000)
LANES, BULK_FROM = 5, 3
PIECES = st.sampled_from([1, 10, 1_000, 16_000, 17_000, 40_000, 65_536, 100_000, 300_000])


class TwoEnds(RuleBasedStateMachine):
    """Two muxes joined by lanes that deliver as much as they like, when they like.

    Held at every step: what arrives is a beginning of what was sent, credit is never exceeded, buffers are bounded. At the
    end everything paused is resumed, and then everything has arrived, and credit is all back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(
            lanes=LANES,
            bulk_from=BULK_FROM,
            windows=WINDOWS,
            hello=Hello(exchange_window=40_000, session_window=150_000),
        )
        for end, _ in self.pair.ends():
            end.session.mux.max_parked = 20_000  # so that slow readers do stall the session now and then
        self.talks: list[Talk] = []
        self.count = 0
        self.rng = random.Random(1)

    def pick(self, index: int) -> Talk:
        return self.talks[index % len(self.talks)]

    def find_answers(self) -> None:
        for talk in self.talks:
            if talk.answer is None:
                other = self.pair.agent if talk.opener is self.pair.edge else self.pair.edge
                name = b"/%d" % talk.number
                talk.answer = next((opened for opened in other.opened if opened.head.target == name), None)

    @staticmethod
    def is_paused(calls: list[tuple[object, ...]]) -> bool:
        edges = [call[0] for call in calls if call[0] in ("pause", "resume")]
        return bool(edges) and edges[-1] == "pause"

    # --- what the two sides do

    @initialize(announced=st.lists(st.booleans(), min_size=1, max_size=4))
    def begin(self, announced: list[bool]) -> None:
        for index, is_announced in enumerate(announced):
            self.open(index % 2 == 0, is_announced, index % 3 == 2)
        self.pair.settle()
        self.find_answers()

    @rule(by_edge=st.booleans(), announced=st.booleans(), end=st.booleans())
    def open(self, by_edge: bool, announced: bool, end: bool) -> None:
        opener = self.pair.edge if by_edge else self.pair.agent
        self.count += 1
        fields = ((b"content-length", b"9999999"),) if announced else ()
        visitor, sink = opener.open(get(b"/%d" % self.count, *fields), end=end)
        self.talks.append(Talk(opener, visitor, sink, number=self.count, request_ended=end))

    @precondition(lambda self: self.talks)
    @rule(index=st.integers(0, 99), size=PIECES, end=st.booleans())
    def send(self, index: int, size: int, end: bool) -> None:
        talk = self.pick(index)
        if talk.request_ended or talk.is_reset or self.is_paused(talk.visitor.calls):
            return
        data = self.rng.randbytes(size)
        talk.request += data
        talk.request_ended = end
        talk.sink.send_data(data, end)

    @precondition(lambda self: self.talks)
    @rule(index=st.integers(0, 99), size=PIECES, how=st.sampled_from(["go on", "end", "trailers", "bare end"]))
    def answer(self, index: int, size: int, how: str) -> None:
        talk = self.pick(index)
        if talk.answer is None or talk.response_ended or talk.is_reset or self.is_paused(talk.answer.calls):
            return
        client = talk.answer.client
        if not talk.response_begun:
            talk.response_begun = True
            client.on_head(BIG if size > 100 else OK, False)
        if how == "bare end":
            client.on_data(b"", True)
        else:
            data = self.rng.randbytes(size)
            talk.response += data
            client.on_data(data, how == "end")
        if how == "trailers":
            client.on_trailers(((b"a", b"b"),))
        talk.response_ended = how != "go on"

    @precondition(lambda self: self.talks)
    @rule(index=st.integers(0, 99), by_visitor=st.booleans())
    def reset(self, index: int, by_visitor: bool) -> None:
        talk = self.pick(index)
        if by_visitor:
            talk.sink.reset(Cancelled("left"))
        elif talk.answer is not None and not talk.response_ended:
            talk.answer.client.on_reset(Cancelled("failed"))
        else:
            return
        talk.is_reset = True

    @precondition(lambda self: self.talks)
    @rule(index=st.integers(0, 99), visitor=st.booleans(), pause=st.booleans())
    def slow(self, index: int, visitor: bool, pause: bool) -> None:
        talk = self.pick(index)
        if visitor:
            (talk.sink.pause_response if pause else talk.sink.resume_response)()
        elif talk.answer is not None:
            (talk.answer.client.pause_request if pause else talk.answer.client.resume_request)()

    # --- what the link does

    @rule(of_edge=st.booleans(), lane=st.integers(0, LANES - 1), pause=st.booleans())
    def congest(self, of_edge: bool, lane: int, pause: bool) -> None:
        mux = (self.pair.edge if of_edge else self.pair.agent).session.mux
        (mux.pause_lane if pause else mux.resume_lane)(lane)

    @rule(of_edge=st.booleans())
    def flush(self, of_edge: bool) -> None:
        self.pair.flush(self.pair.edge if of_edge else self.pair.agent)

    @rule(of_edge=st.booleans(), lane=st.integers(0, LANES - 1), size=st.sampled_from([1, 5, 100, 10_000, None]))
    def deliver(self, of_edge: bool, lane: int, size: int | None) -> None:
        self.pair.deliver(self.pair.edge if of_edge else self.pair.agent, lane, size)
        self.pair.now += 0.001
        self.find_answers()

    @rule(of_edge=st.booleans(), lanes=st.permutations(range(LANES)), leave_out=st.integers(0, 2))
    def deliver_most(self, of_edge: bool, lanes: list[int], leave_out: int) -> None:
        source = self.pair.edge if of_edge else self.pair.agent
        self.pair.flush(source)
        for lane in lanes[leave_out:]:
            self.deliver(of_edge, lane, None)

    # --- what holds

    @invariant()
    def what_arrives_is_what_was_sent(self) -> None:
        for talk in self.talks:
            assert talk.response.startswith(talk.visitor.body)
            if talk.answer is not None:
                body = b"".join(call[1] for call in talk.answer.calls if call[0] == "data")  # type: ignore[misc]
                assert talk.request.startswith(body)

    @invariant()
    def both_sessions_stand_and_nothing_is_out_of_bounds(self) -> None:
        for end, _ in self.pair.ends():
            assert end.names[-1] == "open"
            assert end.bugs == []
            mux = end.session.mux
            assert 0 <= mux.recv_left <= 150_000
            assert mux.send_left >= 0
            assert 0 <= mux.early_bytes <= 150_000
            assert mux.held >= 0
            for exchange in mux.exchanges.values():
                assert exchange.send_left >= 0
                assert exchange.recv_left >= 0
                if exchange.flow is not None:
                    assert exchange.flow.pending_bytes <= 300_000 + MAX_PENDING_BYTES
                    assert exchange.flow.window <= mux.max_exchange_window
            for lane in mux.lanes:
                assert len(lane.rest) <= MAX_DATA_BYTES + 8

    def teardown(self) -> None:
        pair = self.pair
        for end, _ in pair.ends():
            for lane in range(LANES):
                end.session.mux.resume_lane(lane)
        for _ in range(3):
            pair.settle()
            self.find_answers()
            for talk in self.talks:
                talk.sink.resume_response()
                if talk.answer is not None:
                    talk.answer.client.resume_request()
        pair.settle()
        self.both_sessions_stand_and_nothing_is_out_of_bounds()
        for talk in self.talks:
            self.has_come_to_rest(talk)
        for mine, theirs in (
            (pair.edge.session.mux, pair.agent.session.mux),
            (pair.agent.session.mux, pair.edge.session.mux),
        ):
            assert mine.send_left == theirs.recv_left
            assert mine.held == mine.early_bytes == 0
            assert mine.exchanges.keys() == theirs.exchanges.keys()
            for number, exchange in mine.exchanges.items():
                if exchange.sending == 1:
                    assert exchange.send_left == theirs.exchanges[number].recv_left
            assert sum(lane.load for lane in mine.lanes[:BULK_FROM]) == mine.opened_now

    def has_come_to_rest(self, talk: Talk) -> None:
        if talk.is_reset:
            return
        assert talk.answer is not None
        assert talk.visitor.body == talk.response
        if talk.response_ended:
            assert talk.visitor.names()[-1] == "trailers" or talk.visitor.calls[-1][2] is True
            return
        assert talk.request_ended or not self.is_paused(talk.visitor.calls)
        assert not self.is_paused(talk.answer.calls)
        calls = [call for call in talk.answer.calls if call[0] == "data"]
        assert b"".join(call[1] for call in calls) == talk.request  # type: ignore[misc]
        if talk.request_ended and not talk.answer.end:
            assert calls[-1][2] is True


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
