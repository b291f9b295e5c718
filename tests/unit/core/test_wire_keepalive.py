"""The search for how long a path may be silent, as conversations with paths that forget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.wire import frames
from edgetun_core.wire.frames import encode_frame
from edgetun_core.wire.hello import Hello, Welcome
from edgetun_core.wire.keepalive import (
    CLOSE_ENOUGH,
    FEATURE,
    FORGET_INTERVALS,
    FORGET_S,
    PROOFS,
    SHARE_OF_DEAD_AFTER,
    KeepAlive,
)
from edgetun_core.wire.session import Session
from edgetun_core.wire.states import State
from support.exchanges import PEER, Answerer
from support.wire import End


class Path:
    """A path that forgets after `timeout_s`; the agent speaks when its search says so, and nobody else does."""

    def __init__(self, timeout_s: float, keep: KeepAlive | None = None) -> None:
        self.timeout_s = timeout_s
        self.keep = keep or KeepAlive()
        self.port = 1000
        self.now = 0.0

    def rounds(self, count: int) -> None:
        for _ in range(count):
            silence_s = self.keep.interval_s
            self.now += silence_s
            if silence_s > self.timeout_s:
                self.port += 1
            self.keep.answered(f"192.0.2.1:{self.port}".encode(), silence_s, self.now)


def begun(first_s: float = 5.0, dead_after_s: float = 300.0, idle_timeout_s: float = float("inf")) -> KeepAlive:
    keep = KeepAlive()
    keep.begin(first_s, dead_after_s, idle_timeout_s)
    return keep


def test_the_interval_grows_while_replies_come_from_where_they_came() -> None:
    path = Path(1e9, begun())
    path.rounds(1)  # the first reply only says what the address is
    path.rounds(PROOFS - 1)
    assert path.keep.proven_s == 5.0
    assert path.keep.interval_s == 10.0
    path.rounds(PROOFS)
    assert path.keep.interval_s == 20.0


def test_it_never_grows_beyond_what_both_ends_and_the_link_take_for_death() -> None:
    for keep, most_s in ((begun(dead_after_s=15.0), 10.0), (begun(dead_after_s=300.0, idle_timeout_s=30.0), 20.0)):
        Path(1e9, keep).rounds(100)
        assert keep.interval_s == pytest.approx(most_s)


@given(st.floats(min_value=6.0, max_value=190.0))
def test_a_nat_that_forgets_is_found_out_from_below(timeout_s: float) -> None:
    path = Path(timeout_s, begun())
    path.rounds(60)
    assert path.keep.interval_s <= timeout_s
    assert path.keep.interval_s >= min(timeout_s / CLOSE_ENOUGH / 1.01, 100.0)
    lost = path.keep.lost_total
    path.rounds(3)
    assert path.keep.lost_total == lost, "what was found holds"
    assert lost <= 8, "and it was not asked more often than a search needs"


def test_a_nat_that_forgets_sooner_than_the_first_interval_is_kept_open_too() -> None:
    path = Path(1.7, begun())
    path.rounds(30)
    assert 1.0 <= path.keep.interval_s <= 1.7


def test_a_lost_binding_is_forgotten_after_a_while_since_networks_change() -> None:
    path = Path(8.0, begun())
    path.rounds(40)
    found_s = path.keep.interval_s
    path.timeout_s = 1e9
    path.now += max(FORGET_S, FORGET_INTERVALS * path.keep.failed_s)
    path.rounds(PROOFS * 3)
    assert path.keep.interval_s > found_s


def test_another_address_in_the_middle_of_traffic_is_another_network() -> None:
    path = Path(1e9, begun())
    path.rounds(3 * PROOFS)
    assert path.keep.interval_s > 5.0
    path.keep.answered(b"198.51.100.7:1", 0.1, path.now)
    assert path.keep.interval_s == path.keep.proven_s == 5.0
    assert path.keep.lost_total == 0


def test_replies_that_follow_traffic_prove_nothing() -> None:
    keep = begun()
    for _ in range(20):
        keep.answered(b"192.0.2.1:1", 1.0, 0.0)
    assert keep.interval_s == 5.0


def test_a_session_that_died_of_silence_falls_back_to_what_has_held() -> None:
    path = Path(1e9, begun())
    path.rounds(2 * PROOFS)
    assert path.keep.interval_s == 20.0
    path.keep.died(path.now)
    assert path.keep.interval_s == path.keep.proven_s == 10.0
    path.keep.begin(5.0, 300.0)  # the next session on the same path knows it
    assert path.keep.interval_s == 10.0
    path.rounds(PROOFS)
    assert path.keep.interval_s == 15.0


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b""]), st.floats(0, 100), st.booleans()), max_size=200))
def test_whatever_is_heard_the_interval_stays_in_bounds(heard: list[tuple[bytes, float, bool]]) -> None:
    keep, now = begun(dead_after_s=15.0), 0.0
    for seen, silence_s, died in heard:
        now += silence_s
        if died:
            keep.died(now)
        else:
            keep.answered(seen, silence_s, now)
        assert 1.0 <= keep.interval_s <= SHARE_OF_DEAD_AFTER * 15.0 + 1e-9
        assert keep.proven_s <= keep.interval_s or keep.failed_s < float("inf")


# ---- in the session

HELLO = Hello(agent_id="a", session_id="s", credential="c", services=("a/b",), features=(FEATURE,))


def opened(features: tuple[str, ...]) -> tuple[Session, KeepAlive]:
    """An agent's session that was welcomed at second 0."""
    keep = KeepAlive()
    end = End("agent", hello=HELLO, windows=None, lanes=1, bulk_from=1)
    end.session = Session(end, Answerer(), PEER, 0.0, hello=HELLO, keep_alive=keep)
    end.session.mux.set_lanes(1, 1)
    end.session.data_to_send()
    welcome = Welcome(node="n1", services=("a/b",), features=features)
    from edgetun_core.wire.hello import encode_control

    end.session.receive(0, encode_frame(frames.WELCOME, 0, encode_control(welcome)), 0.0)
    assert end.session.state is State.OPEN
    return end.session, keep


def pongs(session: Session, address: bytes) -> bytes:
    """The answers to the pings that were just sent."""
    sent = b"".join(data for _, data in session.data_to_send())
    answer = b""
    while sent:
        size = int.from_bytes(sent[1:4], "big")
        if sent[0] == frames.PING:
            answer += encode_frame(frames.PONG, 0, sent[8 : 8 + size] + address)
        sent = sent[8 + size :]
    return answer


def test_an_agents_session_pings_as_seldom_as_the_path_bears() -> None:
    session, keep = opened((FEATURE,))
    now, waits = 0.0, []
    session.receive(0, pongs(session, b"192.0.2.1:1"), now)
    for _ in range(2 * PROOFS + 2):
        due = session.next_timer()
        assert due is not None
        waits.append(due - now)
        now = due
        session.handle_timer(now)
        session.receive(0, pongs(session, b"192.0.2.1:1"), now)
    assert waits[0] == 5.0
    assert waits[-1] == pytest.approx(10.0)
    # A path that forgot: the very next silence is as short as what has held.
    now = session.next_timer() or 0.0
    session.handle_timer(now)
    session.receive(0, pongs(session, b"192.0.2.1:2"), now)
    session.handle_timer(session.next_timer() or 0.0)
    assert keep.lost_total == 1
    assert session.ping_interval_s == 5.0


def test_towards_an_exit_node_that_tells_no_address_nothing_grows() -> None:
    session, _ = opened(())
    now = 0.0
    for _ in range(3 * PROOFS):
        session.receive(0, pongs(session, b""), now)
        due = session.next_timer()
        assert due == now + 5.0
        now = due
        session.handle_timer(now)


def test_a_dead_exit_node_is_noticed_as_soon_at_the_longest_interval() -> None:
    session, keep = opened((FEATURE,))
    now = 0.0
    session.receive(0, pongs(session, b"192.0.2.1:1"), now)
    while session.ping_interval_s < 10.0 - 1e-6:
        now = session.next_timer() or 0.0
        session.handle_timer(now)
        session.receive(0, pongs(session, b"192.0.2.1:1"), now)
    last = now
    while session.state is State.OPEN:
        now = session.next_timer() or 0.0
        session.handle_timer(now)
    assert now - last == pytest.approx(15.0)
    assert keep.lost_total == 1


def test_the_exit_node_leaves_a_silent_path_to_its_agent_and_asks_before_it_would_be_dead() -> None:
    edge = End("edge", hello=None, windows=None, lanes=1, bulk_from=1)
    from edgetun_core.wire.hello import encode_control

    edge.session.receive(0, encode_frame(frames.HELLO, 0, encode_control(HELLO)), 100.0)
    edge.session.receive(0, pongs(edge.session, b""), 100.0)
    pinged = []
    now = 100.0
    while edge.session.state is State.OPEN:
        now = edge.session.next_timer() or 0.0
        edge.session.handle_timer(now)
        if any(data and data[0] == frames.PING for _, data in edge.session.data_to_send()):
            pinged.append(now)
    assert pinged[0] == pytest.approx(111.0)
    assert now == pytest.approx(115.0)


def test_pings_are_answered_with_the_address_they_came_from_and_no_longer_than_a_pong_may_be() -> None:
    edge = End("edge", hello=None, windows=None, lanes=1, bulk_from=1)
    from edgetun_core.wire.hello import encode_control

    edge.session.receive(0, encode_frame(frames.HELLO, 0, encode_control(HELLO)), 0.0)
    edge.session.data_to_send()
    for payload in (b"12345678", b"x" * 64):
        edge.session.receive(0, encode_frame(frames.PING, 0, payload), 1.0)
        ((_, answer),) = edge.session.data_to_send()
        assert answer == encode_frame(frames.PONG, 0, (payload + b"192.0.2.1:4711")[:64])
