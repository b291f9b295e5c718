"""What a node tells of its sessions, and the snapshot that it keeps on disk."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.control_stream import NodeLoad, SessionInfo, snapshot_digest
from edgetun_core.control_stream.messages import MOST_PORTS_PER_MESSAGE, MOST_SESSIONS_PER_PRESENCE
from edgetun_core.snapshot import Snapshot
from edgetun_exitnode.control.last_good import LastGood
from edgetun_exitnode.control.presence import Told

IDS = [f"s{n}" for n in range(6)]
SESSIONS = st.dictionaries(
    st.sampled_from(IDS), st.tuples(st.sampled_from(["quic", "tls"]), st.sampled_from([1.0, 2.0]))
).map(lambda found: {key: SessionInfo(key, "a", "t", transport, since) for key, (transport, since) in found.items()})


@given(st.lists(SESSIONS, min_size=1, max_size=8), st.sets(st.integers(0, 7)))
def test_control_ends_with_what_the_node_has_also_after_streams_that_broke(
    states: list[dict[str, SessionInfo]], breaks: set[int]
) -> None:
    told, known = Told(), dict[str, SessionInfo]()
    for index, state in enumerate(states):
        if index in breaks:
            told.begin()
        for message in told.report(state, NodeLoad(len(state))):
            if message.reset:
                known = {}
            known.update((info.session_id, info) for info in message.opened)
            for gone in message.closed:
                del known[gone]
        assert known == state
        assert told.report(state, NodeLoad(len(state))) == [], "nothing changed, and something was told"


def test_ports_that_cannot_be_had_are_told_anew_with_each_stream_and_then_when_they_change() -> None:
    told, load = Told(), NodeLoad(0)
    busy = {"team/db": "TCP port 5432: is taken by another program"}
    assert [message.ports for message in told.report({}, load, {})] == [{}], "control may remember what was told before"
    assert told.report({}, load, {}) == []
    assert [message.ports for message in told.report({}, load, busy)] == [busy]
    assert told.report({}, load, busy) == []
    assert [message.ports for message in told.report({}, NodeLoad(1), busy)] == [None]
    told.begin()
    assert [message.ports for message in told.report({}, load, busy)] == [busy]
    assert [message.ports for message in told.report({}, load)] == [{}]
    many = {f"team/t{number}": "taken" for number in range(2000)}
    (message,) = told.report({}, load, many)
    assert len(message.ports or {}) == MOST_PORTS_PER_MESSAGE


def test_ten_thousand_sessions_are_told_in_bounded_messages() -> None:
    sessions = {f"s{n}": SessionInfo(f"s{n}", "a", "t", "quic", 1.0) for n in range(10_000)}
    messages = Told().report(sessions, NodeLoad(10_000))
    assert [message.reset for message in messages] == [True] + [False] * (len(messages) - 1)
    assert max(len(message.opened) for message in messages) == MOST_SESSIONS_PER_PRESENCE
    assert sum(len(message.opened) for message in messages) == 10_000


def test_a_round_trip_that_wavers_is_not_told() -> None:
    told = Told()
    told.report({"s": SessionInfo("s", "a", "t", "quic", 1.0, rtt_s=0.020)}, NodeLoad(1))
    assert told.report({"s": SessionInfo("s", "a", "t", "quic", 1.0, rtt_s=0.023)}, NodeLoad(1)) == []
    assert told.report({"s": SessionInfo("s", "a", "t", "quic", 1.0, rtt_s=0.050)}, NodeLoad(1))


def test_an_agent_that_comes_back_with_another_weight_or_on_standby_is_told() -> None:
    told, load = Told(), NodeLoad(1)
    for weight, standby in ((1, False), (3, False), (3, True)):
        (presence,) = told.report({"s": SessionInfo("s", "a", "t", "quic", 1.0, weight=weight, standby=standby)}, load)
        assert [info.share for info in presence.opened] == [-weight if standby else weight]
    assert SessionInfo("s", "a", "t", "quic", 1.0, weight=0).share == 1


def test_the_last_snapshot_comes_back_and_one_that_is_damaged_or_foreign_counts_as_none(tmp_path: Path) -> None:
    snapshot = Snapshot(7, "p", "eu", revoked_tokens=("t",))
    kept = LastGood(tmp_path / "state")
    assert kept.read("p", "eu") is None
    kept.write(snapshot, snapshot_digest(snapshot))
    assert kept.read("p", "eu") == (snapshot, snapshot_digest(snapshot))
    assert kept.read("p", "us") is None
    kept.path.write_bytes(kept.path.read_bytes()[:-2])
    assert kept.read("p", "eu") is None
    assert [path.name for path in kept.path.parent.iterdir()] == [kept.path.name]
