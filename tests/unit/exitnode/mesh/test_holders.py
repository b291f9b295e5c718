"""Who holds what: control's word, peers' word, what is remembered, and what a peer turned down."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_control.exits.peers import AWAY_S, PeerBook
from edgetun_core.control_stream import PeerChange, Peers, decode_from_control, encode
from edgetun_core.control_stream.messages import MOST_TUNNELS_PER_MESSAGE
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import ProtocolError
from edgetun_core.fleet_identity import ExitNodeName
from edgetun_exitnode.mesh.holders import ANSWERED_S, DENIED_S, REMEMBERED_S, Holders

A, B, C = (ExitNodeName("pool", "eu", name) for name in "abc")
AT = {name: Endpoint(f"10.0.0.{index}", 7445, 0, name.node) for index, name in enumerate((A, B, C), 1)}
OWN = str(ExitNodeName("pool", "eu", "own"))


def told(holders: Holders, *changes: PeerChange, now: float = 0.0, **more: object) -> set[str]:
    return holders.take(Peers(changed=changes, **more), now)  # type: ignore[arg-type]


def test_control_tells_who_holds_a_tunnel_and_who_no_longer_does() -> None:
    holders = Holders(OWN)
    assert told(holders, PeerChange(str(A), AT[A], ("t/x", "t/y")), PeerChange(OWN, AT[B], ("t/x",))) == {"t/x", "t/y"}
    assert holders.holders("t/x", 0.0) == [str(A)], "a node finds itself and leaves itself out"
    assert told(holders, PeerChange(str(A), closed=("t/x",))) == {"t/x"}
    assert holders.holders("t/x", 0.0) == []
    assert told(holders, gone=(str(A),)) == {"t/y"}
    assert holders.holders("t/y", 0.0) == []
    assert holders.peers == {}


def test_a_draining_node_is_no_holder() -> None:
    holders = Holders(OWN)
    told(holders, PeerChange(str(A), AT[A], ("t/x",), is_draining=True), PeerChange(str(B), AT[B], ("t/x",)))
    assert holders.holders("t/x", 0.0) == [str(B)]
    holders.drains(str(A), False)
    assert holders.holders("t/x", 0.0) == [str(A), str(B)]


def test_a_control_that_has_just_begun_does_not_make_a_node_forget_at_once() -> None:
    holders = Holders(OWN)
    told(holders, PeerChange(str(A), AT[A], ("t/x",)), PeerChange(str(B), AT[B], ("t/x",)))
    holders.stream_ended()
    assert not holders.is_complete
    told(holders, PeerChange(str(B), AT[B], ("t/x",)), now=10.0, reset=True)
    assert holders.is_complete
    assert holders.holders("t/x", 10.0) == [str(A), str(B)]
    assert holders.holders("t/x", 11.0 + REMEMBERED_S) == [str(B)]


def test_a_peers_word_counts_briefly_and_its_refusal_until_there_is_news() -> None:
    holders = Holders(OWN)
    holders.meet(str(A), AT[A])
    holders.answered("t/x", str(A), 0.0)
    holders.answered("t/x", str(B), 0.0)  # nobody knows where that is
    assert holders.holders("t/x", 1.0) == [str(A)]
    assert holders.holders("t/x", ANSWERED_S + 1) == []
    holders.answered("t/x", str(A), 0.0)
    holders.deny("t/x", str(A), 1.0)
    assert holders.holders("t/x", 2.0) == []
    holders.answered("t/x", str(A), 2.0, is_own_word=False)
    assert holders.holders("t/x", 2.0) == [], "hearsay counts for more than what the node itself said"
    assert holders.holders("t/x", 1.5 + DENIED_S) == [str(A)]
    holders.deny("t/x", str(A), 2.0)
    holders.answered("t/x", str(A), 2.5)
    assert holders.holders("t/x", 2.5) == [str(A)]


def test_what_is_on_disk_is_remembered_briefly_and_rubbish_is_refused() -> None:
    holders = Holders(OWN)
    told(holders, PeerChange(str(A), AT[A], ("t/x",)))
    again = Holders(OWN)
    again.restore(holders.encode(5.0), 100.0)
    assert again.holders("t/x", 101.0) == [str(A)]
    assert again.holders("t/x", 101.0 + REMEMBERED_S) == []
    assert again.peers == {str(A): AT[A]}, "whom to ask is known for longer"
    for rubbish in (b"", b"\xc1", b"\x80", b"x" * 100):
        with pytest.raises(ProtocolError):
            Holders(OWN).restore(rubbish, 0.0)


def test_a_holders_share_is_as_it_or_control_said_last() -> None:
    holders = Holders(OWN)
    told(holders, PeerChange(str(A), AT[A], ("t/x", "t/y"), shares={"t/x": 4}), PeerChange(str(B), AT[B], ("t/x",)))
    assert [holders.share("t/x", str(one)) for one in (A, B, C)] == [4, 1, 1], "who says nothing is of an older version"
    assert holders.share("t/y", str(A)) == 1
    told(holders, PeerChange(str(A), opened=("t/x",), shares={"t/x": -2}))
    assert holders.share("t/x", str(A)) == -2
    holders.answered("t/x", str(A), 0.0, 7, is_own_word=False)
    assert holders.share("t/x", str(A)) == -2, "hearsay counts for more than what the node itself said"
    holders.answered("t/x", str(A), 0.0, 3)
    assert holders.share("t/x", str(A)) == 3
    again = Holders(OWN)
    again.restore(holders.encode(0.0), 100.0)
    assert again.share("t/x", str(A)) == 3
    told(holders, PeerChange(str(A), closed=("t/x",)))
    assert holders.share("t/x", str(A)) == 1
    holders.answered("t/x", str(A), 0.0, 7, is_own_word=False)
    assert holders.share("t/x", str(A)) == 7
    holders.forget(str(A))
    assert holders._shares == {}, "what nobody holds is remembered"


def test_what_an_earlier_version_kept_on_disk_is_read() -> None:
    kept = msgspec.msgpack.encode({"peers": {str(A): AT[A]}, "holders": {"t/x": (str(A),)}})
    holders = Holders(OWN)
    holders.restore(kept, 0.0)
    assert (holders.holders("t/x", 1.0), holders.share("t/x", str(A))) == ([str(A)], 1)


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("open"),
            st.sampled_from([A, B]),
            st.sampled_from("123"),
            st.sets(st.sampled_from("xyz")),
            st.sampled_from([1, 3, -1, -2]),
        ),
        st.tuples(st.just("close"), st.sampled_from([A, B]), st.sampled_from("123"), st.just(set[str]()), st.just(0)),
        st.tuples(st.just("drain"), st.sampled_from([A, B]), st.just(""), st.just(set[str]()), st.just(0)),
        st.tuples(st.just("flush"), st.just(A), st.just(""), st.just(set[str]()), st.just(0)),
    ),
    max_size=30,
)


@given(EVENTS, st.integers(0, 30))
def test_nodes_end_with_what_control_knows_whenever_they_came(
    events: list[tuple[str, ExitNodeName, str, set[str], int]], comes_at: int
) -> None:
    book, early, late = PeerBook(), Holders(OWN), Holders(OWN)
    has_come = False
    sessions: dict[tuple[ExitNodeName, str], tuple[set[str], int]] = {}
    draining: set[ExitNodeName] = set()

    def flush() -> None:
        for message in book.flush().get("pool", []):
            read = decode_from_control(encode(message))
            assert isinstance(read, Peers)
            for one in (early, late) if has_come else (early,):
                one.take(read, 0.0)

    for name in (A, B):
        book.came(name, AT[name], False)
    for index, (what, name, session, tunnels, share) in enumerate(events):
        if index == comes_at:
            has_come = True
            for message in book.everything("pool"):
                late.take(message, 0.0)
        match what:
            case "open":
                book.opened(name, session, tuple(sorted(tunnels)), share)
                sessions[name, session] = tunnels, share
            case "close":
                book.closed(name, session)
                sessions.pop((name, session), None)
            case "drain":
                draining ^= {name}
                book.loaded(name, name in draining)
            case _:
                flush()
    flush()
    for tunnel in "xyz":
        shares: dict[str, list[int]] = {}
        for (name, _), (held, share) in sessions.items():
            if tunnel in held and name not in draining:
                shares.setdefault(str(name), []).append(share)
        for one in (early, late) if has_come else (early,):
            assert one.holders(tunnel, 0.0) == sorted(shares)
            for node, of_it in shares.items():
                assert one.share(tunnel, node) == (sum(share for share in of_it if share > 0) or sum(of_it))
    assert book.flush() == {}, "nothing changed, and something was told"


def test_one_change_of_a_node_with_ten_thousand_sessions_is_a_small_message() -> None:
    book = PeerBook()
    book.came(A, AT[A], False)
    for number in range(10_000):
        book.opened(A, f"s{number}", (f"team/tunnel-{number:05}",))
    first = book.flush()["pool"]
    assert all(sum(len(one.opened) for one in message.changed) <= MOST_TUNNELS_PER_MESSAGE for message in first)
    book.closed(A, "s77")
    book.opened(A, "new", ("team/another",))
    (message,) = book.flush()["pool"]
    assert len(encode(message)) < 200


def test_a_node_that_left_is_told_of_until_it_had_time_to_come_back() -> None:
    book, holders = PeerBook(), Holders(OWN)
    book.came(A, AT[A], False)
    book.opened(A, "s", ("t/x",))
    for message in book.flush()["pool"]:
        holders.take(message, 0.0)
    book.left(A, 100.0)
    book.expire(101.0)
    assert book.flush() == {}
    book.expire(101.0 + AWAY_S)
    for message in book.flush()["pool"]:
        holders.take(message, 0.0)
    assert holders.peers == {}
    assert book.everything("pool") == [Peers(reset=True)]


def test_agents_statuses_tell_of_nodes_that_follow_another_replica() -> None:
    book = PeerBook()
    book.shown("team/laptop", {B: (AT[B], 1)}, frozenset({"t/x"}))
    book.shown("team/desk", {B: (AT[B], 3), C: (AT[C], -1)}, frozenset({"t/y"}))
    (message,) = book.flush()["pool"]
    assert {(one.node, one.opened) for one in message.changed} == {(str(B), ("t/x", "t/y")), (str(C), ("t/y",))}
    assert {one.node: one.shares for one in message.changed} == {str(B): {"t/y": 3}, str(C): {"t/y": -1}}
    book.shown("team/desk", {B: (AT[B], 3), C: (AT[C], 2)}, frozenset({"t/y"}))
    assert book.flush()["pool"][0].changed == (PeerChange(str(C), None, ("t/y",), shares={"t/y": 2}),)
    # it comes here: what it says itself counts
    book.came(B, AT[B], False)
    (message,) = book.flush()["pool"]
    assert message.changed[0].closed == ("t/x", "t/y")
    book.shown("team/desk", {}, frozenset())
    (message,) = book.flush()["pool"]
    assert message.gone == (str(C),)


def test_a_node_of_an_older_version_says_nowhere_it_is_reached_and_is_not_told_of() -> None:
    book = PeerBook()
    book.came(A, None, False)
    book.opened(A, "s", ())
    assert book.flush() == {}
