"""A black hole for large packets, told from loss and from silence."""

from __future__ import annotations

import random

from edgetun_core.transport.path_mtu import BlackHole

ROUND_TRIP_S = 0.02


def test_large_packets_that_all_vanish_are_noticed_within_forty() -> None:
    hole = BlackHole()
    now = 0.0
    for sent in range(1000):
        now += 0.001
        assert not hole.is_there(sent, 0, ROUND_TRIP_S, now)
    told = [hole.is_there(1000 + more, max(0, more - 2), ROUND_TRIP_S, now + more * 0.01) for more in range(40)]
    assert any(told)


def test_heavy_random_loss_is_none() -> None:
    hole, rng, lost = BlackHole(), random.Random(1), 0
    for sent in range(20_000):
        lost += rng.random() < 0.3
        assert not hole.is_there(sent, lost, ROUND_TRIP_S, sent * 0.002)


def test_an_overflowing_queue_is_none() -> None:
    """Most of a round trip's packets, told at once, and then none."""
    hole, lost = BlackHole(), 0
    for sent in range(20_000):
        if sent % 500 < 200:
            lost += 1
        assert not hole.is_there(sent, lost, ROUND_TRIP_S, sent * 0.0001)


def test_without_large_packets_nothing_is_said() -> None:
    hole = BlackHole()
    assert not any(hole.is_there(0, lost, ROUND_TRIP_S, float(lost)) for lost in range(1000))
