"""What is remembered of UDP: dead for a while, back after 30 s of health, slower each time it comes and goes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgetun_agent.udp_memory import (
    DEAD_FIRST_S,
    DEAD_MOST_S,
    HEALTHY_MOST_S,
    HEALTHY_S,
    PATIENCE,
    WINDOW_S,
    UdpMemory,
)

EVEN = 0.5
"""The chance that changes nothing."""


def recover(udp: UdpMemory, now: float) -> float:
    """Probes that all answer, from `now` on; returns how long it took until sessions may go back."""
    began = now = max(now, udp.probe_at)
    while not udp.probed(True, now, EVEN):
        assert udp.state == "recovering"
        assert udp.is_dead(now), "until it is well, TLS is first"
        assert udp.probe_at > now
        now = udp.probe_at
    return now - began


def test_nothing_is_doubted_at_first() -> None:
    udp = UdpMemory()
    assert not udp.is_dead(0.0)
    assert not udp.is_in_doubt


def test_quic_comes_back_after_thirty_seconds_in_which_every_probe_answered() -> None:
    udp = UdpMemory()
    udp.lost_to_tls(1000.0, EVEN)
    assert udp.is_dead(1000.0)
    assert udp.state == "fallback"
    assert udp.probe_at == 1000.0 + DEAD_FIRST_S
    assert not udp.is_dead(udp.probe_at)
    assert recover(udp, 0.0) == HEALTHY_S
    udp.opened()
    assert not udp.is_in_doubt
    assert not udp.is_dead(1100.0)


def test_one_probe_that_does_not_answer_begins_the_health_anew() -> None:
    udp = UdpMemory()
    udp.lost_to_tls(0.0, EVEN)
    now = udp.probe_at
    assert not udp.probed(True, now, EVEN)
    assert udp.healthy_at(now) == now + HEALTHY_S
    now = udp.probe_at
    assert not udp.probed(False, now, EVEN)
    assert udp.state == "fallback"
    assert udp.healthy_at(now) is None
    assert udp.probe_at == now + 2 * DEAD_FIRST_S, "and it is asked later than the first time"
    assert recover(udp, now) == HEALTHY_S


@given(st.lists(st.floats(min_value=0, max_value=1, exclude_max=True), min_size=1, max_size=30))
def test_the_time_to_the_next_probe_grows_and_is_bounded(chances: list[float]) -> None:
    udp = UdpMemory()
    udp.lost_to_tls(0.0, chances[0])
    for number, chance in enumerate(chances[1:], 1):
        udp.probed(False, 1000.0, chance)
        bound = min(DEAD_MOST_S, DEAD_FIRST_S * 2**number)
        assert 0.75 * bound <= udp.probe_at - 1000.0 <= 1.25 * bound


def test_a_path_that_comes_and_goes_moves_sessions_less_often() -> None:
    udp = UdpMemory()
    now, waits, healths = 0.0, [], []
    for _ in range(6):
        udp.lost_to_tls(now, EVEN)
        waits.append(udp.probe_at - now)
        healths.append(recover(udp, now))
        now = udp.probe_at
        udp.opened()
        now += 1.0  # and at once it is dead again
    assert waits[: PATIENCE + 1] == [DEAD_FIRST_S, DEAD_FIRST_S, 2 * DEAD_FIRST_S]
    assert healths[: PATIENCE + 1] == [HEALTHY_S, HEALTHY_S, 2 * HEALTHY_S]
    assert all(later >= earlier for earlier, later in itertools.pairwise(healths[:4]))
    assert max(healths) <= HEALTHY_MOST_S


def test_what_failed_long_ago_slows_nothing() -> None:
    udp = UdpMemory()
    for moment in range(5):
        udp.lost_to_tls(float(moment), EVEN)
        udp.opened()
    udp.lost_to_tls(WINDOW_S + 10.0, EVEN)
    assert udp.probe_at == WINDOW_S + 10.0 + DEAD_FIRST_S


def test_health_that_nobody_looked_at_for_a_while_counts_for_nothing() -> None:
    udp = UdpMemory()
    udp.lost_to_tls(0.0, EVEN)
    now = udp.probe_at
    udp.probed(True, now, EVEN)
    assert not udp.probed(True, now + 3600.0, EVEN), "the session was away, and there was no probe in between"
    assert udp.healthy_at(now + 3600.0) == now + 3600.0 + HEALTHY_S


def test_who_probes_keeps_the_others_from_it() -> None:
    udp = UdpMemory()
    udp.lost_to_tls(0.0, EVEN)
    now = udp.probe_at
    udp.claim(now)
    assert udp.probe_at > now


@given(st.lists(st.tuples(st.sampled_from(["lost", "yes", "no", "open"]), st.floats(0, 900)), max_size=60))
def test_whatever_happens_the_next_probe_is_in_bounded_time_and_memory_too(events: list[tuple[str, float]]) -> None:
    udp, now = UdpMemory(), 0.0
    for event, passed_s in events:
        now += passed_s
        match event:
            case "lost":
                udp.lost_to_tls(now, 0.99)
            case "open":
                udp.opened()
            case _:
                udp.probed(event == "yes", now, 0.0)
        assert udp.probe_at - now <= 1.25 * DEAD_MOST_S
        assert len(udp.failures) <= 16
