"""Whether a measurement over time grows: Theil-Sen's slope, which single outliers do not move, against what may be. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MOST_POINTS = 400
"""The slope looks at all pairs; more points than this are thinned out evenly."""

Points = Sequence[tuple[float, float]]
"""(seconds, value), in order of time."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a value may grow over the whole of what is looked at: a share of its median, or so much, whichever is more."""

    share: float
    least: float

    def of(self, median: float) -> float:
        return max(self.least, self.share * median)


@dataclass(frozen=True, slots=True)
class Trend:
    """`growth` is the slope times the time looked at."""

    median: float
    slope_per_hour: float
    growth: float
    allowed: float
    points: int

    @property
    def is_flat(self) -> bool:
        return self.growth <= self.allowed


def theil_sen(points: Points) -> float:
    """The median of the slopes of all pairs, per second. Raises ValueError for fewer than two times."""
    step = -(-len(points) // MOST_POINTS)
    kept = points[::step] if step > 1 else points
    slopes = [
        (value - before) / (at - earlier)
        for index, (at, value) in enumerate(kept)
        for earlier, before in kept[:index]
        if at > earlier
    ]
    if not slopes:
        raise ValueError("a trend wants values of two times at least")
    return statistics.median(slopes)


def decide_trend(points: Points, warm_up_s: float, allowance: Allowance) -> Trend:
    """The trend of what came after the first `warm_up_s`. Raises ValueError when hardly anything is left."""
    if not points:
        raise ValueError("there is no measurement")
    settled = [(at, value) for at, value in points if at - points[0][0] >= warm_up_s]
    if len(settled) < 5:
        raise ValueError(f"{len(settled)} measurements after the first {warm_up_s:g} s: too few for a trend")
    slope = theil_sen(settled)
    median = statistics.median(value for _, value in settled)
    growth = slope * (settled[-1][0] - settled[0][0])
    return Trend(median, slope * 3600, growth, allowance.of(median), len(settled))
