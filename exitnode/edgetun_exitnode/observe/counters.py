"""Plain integers that the hot path adds to; a scrape reads them. No locks: one thread writes."""

from __future__ import annotations

from bisect import bisect_left

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Counts observations in fixed buckets; bounds are inclusive upper ends, in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = LATENCY_BUCKETS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Adds what another of the same bounds counted."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def cumulative(self) -> list[tuple[str, int]]:
        """Buckets as Prometheus wants them: `(le, count of observations at or below)`, with `+Inf` last."""
        running = 0
        rows: list[tuple[str, int]] = []
        for bound, count in zip((*(str(b) for b in self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, running))
        return rows


class TunnelCounters:
    """What happened to one tunnel's exchanges."""

    __slots__ = ("failed", "forwarded", "in_flight", "no_session", "refused", "requests", "retried", "upstream_seconds")

    def __init__(self) -> None:
        self.requests = 0
        self.forwarded = 0
        self.refused = 0
        self.retried = 0
        self.failed = 0
        self.in_flight = 0
        self.no_session = 0
        self.upstream_seconds = Histogram()
