from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edgetun.histogram import LIMIT_US, Histogram

values = st.lists(st.integers(0, LIMIT_US), min_size=1, max_size=200)


def of(*recorded: int) -> Histogram:
    histogram = Histogram()
    for value in recorded:
        histogram.record(value)
    return histogram


@given(values, st.floats(0.1, 100))
def test_a_percentile_is_never_below_the_true_value_and_at_most_one_percent_above(
    recorded: list[int], percent: float
) -> None:
    rank = max(1, math.ceil(round(len(recorded) * percent / 100, 6)))
    true = sorted(recorded)[rank - 1]
    shown = of(*recorded).percentile(percent)
    assert true <= shown <= true * 1.01


@given(values)
def test_least_most_count_and_sum_are_exact(recorded: list[int]) -> None:
    histogram = of(*recorded)
    assert (histogram.minimum, histogram.maximum) == (min(recorded), max(recorded))
    assert (histogram.count, histogram.total_us) == (len(recorded), sum(recorded))
    assert histogram.percentile(100) == max(recorded)


@given(values)
def test_every_value_stands_in_exactly_one_bucket_and_one_row(recorded: list[int]) -> None:
    histogram = of(*recorded)
    for low, high, count in histogram.buckets():
        assert sum(low <= value <= high for value in recorded) == count
    rows = histogram.rows()
    assert sum(count for _, _, count in rows) == len(recorded)
    assert all(rows[i][1] == rows[i + 1][0] for i in range(len(rows) - 1))
    assert rows[0][2] > 0
    assert rows[-1][2] > 0


@given(values, values)
def test_merging_counts_as_if_all_had_been_recorded_in_one(first: list[int], second: list[int]) -> None:
    merged = of(*first)
    merged.merge(of(*second))
    merged.merge(Histogram())
    together = of(*first, *second)
    assert list(merged.buckets()) == list(together.buckets())
    assert (merged.minimum, merged.maximum, merged.total_us) == (together.minimum, together.maximum, together.total_us)


def test_nothing_recorded_is_all_zero_and_has_no_rows() -> None:
    assert Histogram().percentile(99) == 0
    assert Histogram().mean_us == 0
    assert Histogram().rows() == []


def test_a_clock_that_stepped_back_and_an_endless_wait_stay_within_bounds() -> None:
    histogram = of(-5, LIMIT_US * 10)
    assert (histogram.minimum, histogram.maximum) == (0, LIMIT_US)


def test_p99_9_of_a_thousand_is_the_999th() -> None:
    assert of(*range(1, 1001)).percentile(99.9) in range(999, 1000 + 1)
    assert of(*[1] * 999, 200).percentile(99.9) == 1
