"""Plain integers that the hot path adds to; a scrape reads them. No locks: one thread writes."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

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

    __slots__ = (
        "failed",
        "forwarded",
        "in_flight",
        "no_session",
        "refused",
        "relayed",
        "requests",
        "retried",
        "upstream_seconds",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.forwarded = 0
        self.refused = 0
        self.retried = 0
        self.relayed = 0
        self.failed = 0
        self.in_flight = 0
        self.no_session = 0
        self.upstream_seconds = Histogram()


RATE_OVER_S = 10.0
"""A rate is taken over at least this long, so that one burst or one quick scrape is no trend."""
MOST_SAMPLES = 256


class RateMeter:
    """How fast a counter grows, from what it said at the scrapes before: nothing runs between two of them.

    However many ask, and how often: a rate is over the last `RATE_OVER_S` or, with rarer scrapes, since the one before.
    """

    __slots__ = ("_samples",)

    def __init__(self, now: float, total: int = 0) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now, total)], maxlen=MOST_SAMPLES)

    def per_second(self, now: float, total: int) -> float:
        """Notes the counter's value, and says how much it grew per second. Times are the monotonic clock's seconds."""
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - RATE_OVER_S:
            samples.popleft()
        since, before = samples[0]
        if now - samples[-1][0] >= 1.0:
            samples.append((now, total))
        return max(0.0, (total - before) / (now - since)) if now > since else 0.0


class StreamCounters:
    """What happened to one TCP or UDP tunnel's connections (flows) and datagrams."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "connections",
        "datagrams_in",
        "datagrams_out",
        "datagrams_too_large",
        "dropped",
        "idle",
        "refused",
        "reset_by_origin",
        "reset_by_visitor",
    )

    def __init__(self) -> None:
        self.connections = 0
        self.refused = 0
        self.idle = 0
        """Closed since nothing came for too long."""
        self.reset_by_visitor = 0
        self.reset_by_origin = 0
        """By the local service, its agent or the session to it."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.datagrams_in = 0
        self.datagrams_out = 0
        self.dropped = 0
        """Datagrams that a full queue or a refused flow did not take."""
        self.datagrams_too_large = 0
        """Datagrams larger than the tunnel or the path to the visitor takes."""
