"""A leak is told from noise."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.trend import Allowance, decide_trend, theil_sen

NOISE = random.Random(1)
HALF_AN_HOUR = [10.0 * number for number in range(181)]
ALLOWED = Allowance(0.03, 4.0)


def noisy(per_hour: float, spread: float = 2.0) -> list[tuple[float, float]]:
    return [(at, 100.0 + per_hour * at / 3600 + NOISE.uniform(-spread, spread)) for at in HALF_AN_HOUR]


@given(st.floats(-1e3, 1e3), st.floats(-1e6, 1e6))
def test_the_slope_of_a_line_is_its_slope(slope: float, start: float) -> None:
    points = [(float(at), start + slope * at) for at in range(20)]
    assert theil_sen(points) == pytest.approx(slope, abs=1e-6 * (1 + abs(start) / 1e3))


def test_what_is_flat_is_flat_whatever_its_noise() -> None:
    trend = decide_trend(noisy(0.0, 10.0), 300, ALLOWED)
    assert trend.is_flat
    assert trend.allowed == 4.0


def test_a_leak_is_found_through_noise() -> None:
    trend = decide_trend(noisy(20.0), 300, ALLOWED)
    assert not trend.is_flat
    assert trend.slope_per_hour == pytest.approx(20.0, abs=2)
    assert trend.growth == pytest.approx(20.0 * 1500 / 3600, abs=1)


def test_single_outliers_do_not_matter_and_neither_does_the_warm_up() -> None:
    points = noisy(0.0)
    for index in range(40, 180, 12):
        points[index] = (points[index][0], 10_000.0)
    points[:20] = [(at, 10.0 + at / 3) for at, _ in points[:20]]
    assert decide_trend(points, 300, ALLOWED).is_flat


def test_what_shrinks_is_flat_enough() -> None:
    assert decide_trend(noisy(-50.0), 300, ALLOWED).is_flat


def test_many_points_are_thinned_and_too_few_are_told() -> None:
    many = [(float(at), at / 3600) for at in range(10_000)]
    assert theil_sen(many) == pytest.approx(1 / 3600)
    with pytest.raises(ValueError, match="too few"):
        decide_trend([(0.0, 1.0), (400.0, 1.0)], 300, ALLOWED)
    with pytest.raises(ValueError, match="no measurement"):
        decide_trend([], 300, ALLOWED)
    with pytest.raises(ValueError, match="two times"):
        theil_sen([(1.0, 1.0), (1.0, 2.0)])
