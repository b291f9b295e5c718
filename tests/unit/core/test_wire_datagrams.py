"""UDP flows on the wire: three ways for a datagram, overtaking, bounds, and hostile bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.errors import Draining, ProtocolError
from edgetun_core.http.exchange import RequestSink
from edgetun_core.http.stream import ACCEPTED, UDP, build_stream_head
from edgetun_core.proxy_protocol import Endpoints
from edgetun_core.wire.datagrams import MAX_EARLY, MAX_HALVES, MAX_WAITING, Datagrams
from edgetun_core.wire.frames import DATAGRAM, encode_frame
from support.exchanges import Opened, Recorder
from support.wire import End, Pair, frames_in

HEAD = build_stream_head(UDP, "team/dns", Endpoints("192.0.2.1", 5353, "198.51.100.1", 53))
PATH = 1150


class Flow:
    """A flow from the exit node to the agent, and the datagrams that the link carries beside the lanes."""

    def __init__(self, path_bytes: int = PATH, *, accept: bool = True) -> None:
        self.pair = Pair()
        self.edge, self.agent = self.pair.edge, self.pair.agent
        for end in (self.edge, self.agent):
            end.session.mux.datagrams.path_bytes = path_bytes
        self.visitor: Recorder
        self.sink: RequestSink
        self.visitor, self.sink = self.edge.open(HEAD, end=False)
        if accept:
            self.pair.settle()
            self.service.client.on_head(ACCEPTED, False)
            self.pair.settle()

    @property
    def service(self) -> Opened:
        return self.agent.opened[-1]

    def ways(self, end: End) -> Datagrams:
        return end.session.mux.datagrams

    def beside(self, end: End) -> list[bytes]:
        return self.ways(end).take()

    def carry(self, end: End) -> None:
        """The link's datagrams of an end arrive."""
        other = self.agent if end is self.edge else self.edge
        for datagram in self.beside(end):
            assert len(datagram) <= self.ways(end).path_bytes
            other.session.receive_datagram(datagram)

    def heard(self) -> list[bytes]:
        """What the service got."""
        return [call[1] for call in self.service.calls if call[0] == "data"]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("size", "way"),
    [
        (0, "by_datagram"),
        (1145, "by_datagram"),
        (1146, "in_halves"),
        (2286, "in_halves"),
        (2287, "by_lane"),
        (65507, "by_lane"),
    ],
)
def test_a_datagrams_size_chooses_its_way_and_it_arrives_whole(size: int, way: str) -> None:
    flow = Flow()
    data = bytes(range(256)) * 256
    flow.sink.send_data(data[:size], False)
    flow.service.client.on_data(data[:size], False)
    for end in (flow.edge, flow.agent):
        assert getattr(flow.ways(end).counters, way) == 1
        flow.carry(end)
    flow.pair.settle()
    assert flow.heard() == [data[:size]]
    assert flow.visitor.calls[-1] == ("data", data[:size], False)


def test_one_that_udp_does_not_know_is_dropped_and_counted() -> None:
    flow = Flow()
    flow.sink.send_data(bytes(65508), False)
    assert flow.ways(flow.edge).counters.dropped == 1
    assert flow.beside(flow.edge) == []


def test_without_datagrams_of_the_link_all_go_on_the_lane() -> None:
    flow = Flow(path_bytes=0)
    flow.sink.send_data(b"query", False)
    assert frames_in(flow.pair.on_the_way(flow.edge)) == [("DATAGRAM", 2, b"query")]
    flow.pair.settle()
    assert flow.heard() == [b"query"]


def test_the_first_datagrams_go_behind_the_head_that_opens_the_flow() -> None:
    flow = Flow(accept=False)
    flow.sink.send_data(b"first", False)
    assert flow.beside(flow.edge) == []
    assert [kind for kind, _, _ in frames_in(flow.pair.on_the_way(flow.edge))] == ["HEAD", "DATAGRAM"]
    flow.pair.settle()
    assert flow.heard() == [b"first"]


def test_answers_that_overtake_the_head_wait_for_it_within_a_bound() -> None:
    flow = Flow(accept=False)
    flow.pair.settle()
    flow.service.client.on_head(ACCEPTED, False)
    for number in range(MAX_EARLY + 3):
        flow.service.client.on_data(b"%d" % number, False)
    flow.carry(flow.agent)
    assert flow.visitor.calls == []
    flow.pair.settle()
    assert flow.visitor.names() == ["head"] + ["data"] * MAX_EARLY
    assert flow.ways(flow.edge).counters.late == 3


def test_halves_in_any_order_and_of_several_datagrams_find_each_other() -> None:
    flow = Flow()
    one, two = b"a" * 1500, b"b" * 1500
    flow.sink.send_data(one, False)
    flow.sink.send_data(two, False)
    first, second, third, fourth = flow.beside(flow.edge)
    for datagram in (fourth, second, first, third):
        flow.agent.session.receive_datagram(datagram)
    assert flow.heard() == [one, two]


def test_a_half_that_is_lost_loses_its_datagram_and_no_other() -> None:
    flow = Flow()
    for number in range(MAX_HALVES + 5):
        flow.sink.send_data(bytes([number & 0xFF]) * 1500, False)
        flow.agent.session.receive_datagram(flow.beside(flow.edge)[0])
    assert flow.heard() == []
    assert flow.ways(flow.agent).counters.dropped == 5
    flow.sink.send_data(b"whole", False)
    flow.carry(flow.edge)
    assert flow.heard() == [b"whole"]


def test_behind_a_congested_lane_the_oldest_is_dropped_for_the_newest() -> None:
    flow = Flow(path_bytes=0)
    flow.edge.session.mux.pause_lane(0)
    for number in range(MAX_WAITING + 2):
        flow.sink.send_data(b"%d" % number, False)
    assert flow.ways(flow.edge).counters.dropped == 2
    flow.edge.session.mux.resume_lane(0)
    flow.pair.settle()
    assert flow.heard() == [b"%d" % number for number in range(2, MAX_WAITING + 2)]


def test_a_flow_ends_and_what_still_comes_for_it_is_late() -> None:
    flow = Flow()
    flow.service.client.on_data(b"last", False)
    late = flow.beside(flow.agent)
    flow.sink.reset(Draining("over"))
    flow.pair.settle()
    assert flow.service.calls[-1][0] == "reset"
    flow.edge.session.receive_datagram(late[0])
    assert flow.ways(flow.edge).counters.late == 1
    assert flow.visitor.names() == ["head"]
    assert flow.edge.session.mux.in_flight == flow.agent.session.mux.in_flight == 0


def test_a_drain_ends_flows_at_once() -> None:
    flow = Flow()
    flow.agent.session.drain(30.0, "bye", flow.pair.now)
    flow.pair.settle()
    assert isinstance(flow.visitor.error, Draining)
    assert flow.agent.names[-1] == "closed"
    assert flow.agent.error is None


def test_datagrams_of_no_flow_break_the_rules_on_a_lane_and_are_dropped_beside_it() -> None:
    flow = Flow()
    flow.edge.session.receive(0, encode_frame(DATAGRAM, 77, b"x"), flow.pair.now)
    assert isinstance(flow.edge.error, ProtocolError)
    assert "DATAGRAM of exchange 77, which was never opened" in str(flow.edge.error)


def test_an_exchange_that_carries_bytes_takes_no_datagrams() -> None:
    pair = Pair()
    visitor, _ = pair.edge.open(end=False)
    pair.settle()
    pair.agent.session.receive(0, encode_frame(DATAGRAM, 2, b"x"), pair.now)
    assert pair.agent.opened[0].calls == []
    assert "closed" not in pair.agent.names
    assert visitor.calls == []


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_hostile_datagrams_do_no_harm(datagrams: list[bytes]) -> None:
    flow = Flow()
    for data in datagrams:
        for datagram in (
            data,
            b"\x00\x00\x00\x00\x02" + data,
            b"\x01\x00\x00\x00\x02" + data,
            b"\x02\x00\x00\x00\x02" + data,
        ):
            flow.agent.session.receive_datagram(datagram)
    assert "closed" not in flow.agent.names
    assert flow.agent.bugs == []
    flow.sink.send_data(b"whole", False)
    flow.carry(flow.edge)
    assert flow.heard()[-1] == b"whole"
