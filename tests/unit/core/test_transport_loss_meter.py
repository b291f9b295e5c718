"""What the counts of a connection say of its path."""

from __future__ import annotations

import random

from edgetun_agent.lossy import LOSSY_FIRST_S, LossMemory
from edgetun_core.transport.loss_meter import CLEAN_SHARE, LOSSY_EPISODES, QUIET_EPISODES, WINDOW_PACKETS, LossMeter

ROUND_TRIP_S = 0.05


def test_random_loss_of_one_percent_is_told_within_a_thousand_packets() -> None:
    meter, rng, lost = LossMeter(), random.Random(1), 0
    for sent in range(1, 1000):
        lost += rng.random() < 0.01
        if meter.observe(sent, lost, ROUND_TRIP_S, sent * 0.005) == "lossy":
            return
    raise AssertionError("not told")


def test_what_a_full_queue_loses_now_and_then_is_no_random_loss() -> None:
    """Cubic on 10 Mbit/s: a burst of losses per 3,000 packets."""
    meter, lost = LossMeter(), 0
    for sent in range(1, 30_000):
        if sent % 3000 < 20:
            lost += 1
        assert meter.observe(sent, lost, ROUND_TRIP_S, sent * 0.001) != "lossy"


def test_one_burst_is_one_episode_however_much_it_takes() -> None:
    meter = LossMeter()
    for number in range(200):
        assert meter.observe(1000 + number, number, ROUND_TRIP_S, 1.0 + number * 0.0002) is None


def losses_until_told(rtt_s: float, *, grown_s: float = 0.0, at_once: int = 1, every: int = 100) -> int:
    """How many episodes, `every` so many packets and of `at_once` packets each, it takes; the round trip has grown while they come."""
    meter, lost = LossMeter(), 0
    for sent in range(1, 3000):
        is_lost = sent % every == 0
        lost += is_lost * at_once
        if meter.observe(sent, lost, rtt_s + grown_s * (sent > 10), sent * rtt_s / 20) == "lossy":
            return sent // every
    return 0


def test_where_a_round_trip_is_long_three_losses_without_a_queue_are_enough() -> None:
    assert losses_until_told(0.2) == QUIET_EPISODES
    assert losses_until_told(0.005) == LOSSY_EPISODES


def test_losses_that_come_with_a_queue_or_that_are_most_of_what_was_sent_are_not_told_sooner() -> None:
    assert losses_until_told(0.2, grown_s=0.05) == LOSSY_EPISODES
    assert losses_until_told(0.2, at_once=30) == LOSSY_EPISODES  # a start that doubled into a short queue


def test_three_losses_among_many_packets_are_none_of_a_lossy_path() -> None:
    assert losses_until_told(0.2, every=250) == 0


def test_a_clean_path_is_told_now_and_then() -> None:
    meter = LossMeter()
    told = [meter.observe(sent, 0, ROUND_TRIP_S, float(sent)) for sent in range(3 * WINDOW_PACKETS + 1)]
    assert [verdict for verdict in told if verdict] == ["clean"] * 3


def test_between_clean_and_lossy_nothing_is_said() -> None:
    meter, lost = LossMeter(), 0
    for sent in range(1, 4 * WINDOW_PACKETS):
        lost += sent % int(1 / (2 * CLEAN_SHARE)) == 0
        assert meter.observe(sent, lost, ROUND_TRIP_S, sent * 0.001) is None


def test_a_path_that_is_lossy_again_is_believed_so_for_longer() -> None:
    memory = LossMemory()
    assert not memory.is_lossy(0.0)
    memory.found_lossy(0.0)
    assert memory.is_lossy(LOSSY_FIRST_S - 1)
    assert not memory.is_lossy(LOSSY_FIRST_S)
    memory.found_lossy(LOSSY_FIRST_S)
    assert memory.is_lossy(2.9 * LOSSY_FIRST_S)
