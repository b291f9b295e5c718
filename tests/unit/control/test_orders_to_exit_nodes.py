"""What control asks of exit nodes by itself: drains of regions that shall be empty, homecomings, and an even spread."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from edgetun_control.exits.orders import (
    HOME_AFTER_MOST_S,
    HOME_AFTER_S,
    MOST_MOVES,
    SPREAD_AFTER_S,
    TOO_MANY_BY,
    AgentSeen,
    Homecoming,
    NodeSeen,
    SessionSeen,
    Spreading,
    decide_drains,
)
from edgetun_core.fleet_identity import ExitNodeName


def name(region: str, number: int = 1) -> ExitNodeName:
    return ExitNodeName("p", region, f"edgetun-exit-p-{region}-5d9f-{number}")


def node(
    region: str, sessions: int = 0, number: int = 1, *, draining: bool = False, told: bool | None = None
) -> NodeSeen:
    return NodeSeen(name(region, number), tuple(f"{region}{number}-{n}" for n in range(sessions)), draining, told)


def in_eu(pool: str, region: str) -> bool:
    return (pool, region) == ("p", "eu")


def test_the_nodes_of_a_closed_region_are_told_to_drain_once() -> None:
    assert decide_drains([node("eu"), node("us")], in_eu) == [(name("eu"), True)]
    assert decide_drains([node("eu", told=True, draining=True)], in_eu) == []


def test_a_region_that_is_open_again_takes_sessions_again_and_that_is_said_once() -> None:
    assert decide_drains([node("us", told=True, draining=True)], in_eu) == [(name("us"), False)]
    assert decide_drains([node("us", draining=True)], in_eu) == [(name("us"), False)], "another replica had told it"
    assert decide_drains([node("us", draining=True, told=False)], in_eu) == [], "it drains because it is going away"


def agent(*regions: str, placed: str = "p/eu", shown: tuple[str, ...] = ()) -> AgentSeen:
    sessions = tuple(SessionSeen(name(region), f"s-{region}-{n}") for n, region in enumerate(regions))
    return AgentSeen("t/laptop", frozenset({placed}), sessions, frozenset(shown))


def always(pool: str, region: str) -> bool:
    return True


def test_an_agent_that_has_a_session_at_home_is_left_alone() -> None:
    homecoming = Homecoming()
    for now in range(0, 4000, 5):
        assert homecoming.decide([agent("us", "eu")], always, now) == []


def test_an_agent_that_is_away_comes_home_with_one_session_after_a_while() -> None:
    homecoming = Homecoming()
    assert homecoming.decide([agent("us", "us")], always, 0) == []
    assert homecoming.decide([agent("us", "us")], always, HOME_AFTER_S - 1) == []
    (move,) = homecoming.decide([agent("us", "us")], always, HOME_AFTER_S)
    assert (move.node, len(move.session_ids)) == (name("us"), 1)
    assert "p/eu" in move.reason


def test_one_that_does_not_come_is_told_ever_more_rarely() -> None:
    homecoming = Homecoming()
    told = [now for now in range(0, 20_000, 5) if homecoming.decide([agent("us")], always, now)]
    gaps = [after - before for before, after in itertools.pairwise(told)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= HOME_AFTER_MOST_S
    assert len(told) < 15


def test_no_agent_is_sent_to_a_region_without_room_and_the_wait_begins_anew() -> None:
    homecoming = Homecoming()
    homecoming.decide([agent("us")], always, 0)
    assert homecoming.decide([agent("us")], lambda *_: False, 100) == []
    assert homecoming.decide([agent("us")], always, 101) == []


def test_a_session_at_home_that_another_replica_of_control_sees_counts() -> None:
    homecoming = Homecoming()
    shown = ("edgetun-exit-p-eu-6c8b-xyz12",)
    for now in range(0, 1000, 5):
        assert homecoming.decide([agent("us", shown=shown)], always, now) == []
    # eu-west is not eu
    other = ("edgetun-exit-p-eu-west-6c8b-xyz12",)
    assert any(homecoming.decide([agent("us", shown=other)], always, now) for now in range(1000, 1100, 5))


def test_an_agent_of_nobodys_placing_is_left_alone() -> None:
    homecoming = Homecoming()
    for now in range(0, 1000, 50):
        assert homecoming.decide([agent("us", placed="other/eu")], always, now) == []
        assert homecoming.decide([AgentSeen("k", frozenset(), agent("us").sessions)], always, now) == []


def test_a_new_node_gets_its_share_after_a_while() -> None:
    spreading = Spreading()
    region = [node("eu", 100), node("eu", 0, 2)]
    assert spreading.decide(region, {}, 0) == []
    (move,) = spreading.decide(region, {}, SPREAD_AFTER_S)
    assert move.node == name("eu")
    assert len(move.session_ids) == MOST_MOVES


def test_a_single_node_and_one_of_a_balanced_region_keep_what_they_have_whatever_the_status_says() -> None:
    spreading = Spreading()
    for now in range(0, 100, 5):
        assert spreading.decide([node("eu", 500)], {("p", "eu"): (1, 0)}, now) == []
        assert spreading.decide([node("us", 100), node("us", 95, 2)], {}, now) == []


def test_nodes_at_another_replica_count_by_the_pools_status() -> None:
    spreading = Spreading()
    told = {("p", "eu"): (4, 200)}
    assert spreading.decide([node("eu", 200)], told, 0) == []
    (move,) = spreading.decide([node("eu", 200)], told, SPREAD_AFTER_S)
    assert len(move.session_ids) == MOST_MOVES


@settings(deadline=None)
@given(st.lists(st.integers(0, 150), min_size=1, max_size=4))
def test_a_spread_ends_and_no_node_gives_away_more_than_its_surplus(counts: list[int]) -> None:
    spreading, now = Spreading(), 0.0
    for _ in range(120):
        now += 5
        nodes = [node("eu", count, number) for number, count in enumerate(counts)]
        moves = spreading.decide(nodes, {}, now)
        for move in moves:
            index = next(i for i, one in enumerate(nodes) if one.name == move.node)
            mean = sum(counts) / len(counts)
            assert counts[index] - len(move.session_ids) >= mean - 1
            counts[index] -= len(move.session_ids)
            for _n in range(len(move.session_ids)):  # they land where there are fewest
                counts[counts.index(min(counts))] += 1
    assert max(counts) <= max(1.5 * sum(counts) / len(counts), sum(counts) / len(counts) + TOO_MANY_BY) + 1
