"""The rate that an autoscaler scales by: true whoever asks and however often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgetun_exitnode.observe.counters import MOST_SAMPLES, RATE_OVER_S, RateMeter


def test_a_steady_load_is_told_as_it_is_with_any_scrape_interval() -> None:
    for every_s in (0.5, 1.0, 5.0, 15.0, 60.0):
        meter = RateMeter(0.0)
        now = 0.0
        for _ in range(40):
            now += every_s
            said = meter.per_second(now, int(now * 200))
        assert abs(said - 200) < 1, every_s


def test_two_scrapers_get_the_same_answer() -> None:
    meter = RateMeter(0.0)
    for second in range(1, 60):
        first = meter.per_second(second, second * 50)
        assert meter.per_second(second + 0.001, second * 50) <= first
        assert abs(first - 50) < 1


def test_a_load_that_ends_is_forgotten_within_the_window() -> None:
    meter = RateMeter(0.0)
    for second in range(1, 30):
        meter.per_second(second, second * 1000)
    told = [meter.per_second(30 + second, 29_000) for second in range(int(RATE_OVER_S) + 2)]
    assert told[-1] == 0
    assert sorted(told, reverse=True) == told


def test_the_first_scrape_counts_from_the_start_and_one_at_the_same_moment_is_no_division_by_zero() -> None:
    meter = RateMeter(100.0)
    assert meter.per_second(100.0, 10) == 0
    assert meter.per_second(102.0, 10) == 5


@given(
    st.lists(
        st.tuples(st.integers(0, 300_000).map(lambda ms: ms / 1000), st.integers(0, 10_000)), max_size=2 * MOST_SAMPLES
    )
)
def test_a_rate_is_never_negative_nor_taken_over_less_than_the_window(steps: list[tuple[float, int]]) -> None:
    meter, now, total = RateMeter(0.0), 0.0, 0
    for wait_s, grown in steps:
        now, total = now + wait_s, total + grown
        said = meter.per_second(now, total)
        assert said >= 0
        assert said * min(now, RATE_OVER_S) <= total + 1e-6
    assert len(meter._samples) <= MOST_SAMPLES
